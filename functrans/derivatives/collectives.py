"""The derivatives of the operations by which the devices of a mesh communicate.

    y_d = sum_e A_de x_e        y_d_bar given on each device        x_e_bar = sum_d A_de^T y_d_bar

All but the extrema are linear: they copy, permute and sum values of the devices along an axis of
the mesh.  The transpose of a sum is a copy, and that of a copy is a sum,

    psum             y_d = sum_e x_e             x_e_bar = sum_d y_d_bar
    all_gather       y_d = (x_0, x_1, ...)       x_e_bar = sum_d y_d_bar[e], a reduce_scatter
    all_to_all       y_d = (x_0[d], x_1[d], ...) x_e_bar = (y_0_bar[e], ...), an all_to_all
    ppermute         y_p(e) = x_e                x_e_bar = y_p(e)_bar

where every device counts: the inner product that defines a transpose is a sum over devices.

The types of `check_vma=True` say which devices count.  A value of a *varying* type is a
number on each device, and all count; one of an *invariant* type is a single number, of which each
device has a copy, and it counts once.  So there are more operations,

    pvary                   invariant -> varying       copy       psum_invariant
    psum_invariant          varying -> invariant       sum        pvary
    all_gather_invariant    varying -> invariant       gather     each device's own slice

the transpose in the last column.

A value of an *unreduced* type is the sum of the devices' values, a sum not carried out yet; the
dual of it, the type of its cotangents, is *reduced*: a single number like an invariant one.

    vary_unreduced_cast        varying -> unreduced         reduced_vary_cast
    unreduced_psum             unreduced -> invariant       preduced
    unreduced_reduce_scatter   unreduced -> varying         all_gather_reduced

and the operations on the right have those on the left as their transposes.

Read next: `random.py`, keys and bits; or `../control_flow/shard_map.py`, where the axes come
from.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from functrans.derivatives.common import add, eq, indicator, mul, unnamed, zeros_like
from functrans.derivatives.reduction import repeat
from functrans.rules import Linear, linear, zero

AXIS = "i"


def inside(fun: Callable, shape: tuple, dtype: Any) -> list:
    """The primitives that a function of one varying array binds inside of `shard_map`."""
    mesh, spec = AbstractMesh((1,), (AXIS,), axis_types=(AxisType.Auto,)), PartitionSpec(AXIS)

    def body(x):
        fun(x)
        return x

    mapped = jax.shard_map(body, mesh=mesh, in_specs=spec, out_specs=spec)
    (equation,) = jax.make_jaxpr(mapped)(jax.ShapeDtypeStruct(shape, dtype)).jaxpr.eqns
    return [inner.primitive for inner in equation.params["jaxpr"].eqns]


def collective(name: str, fun: Callable, optional: bool = False) -> Any:
    """The primitive of this name that `fun` binds on each device."""
    return unnamed(name, fun, (1,), find=inside, optional=optional)


# ---- every device counts -------------------------------------------------------------------------


# Under `vmap` an axis with a name becomes a dimension of the array, and has a number.
def psum_transpose(y_bar, x, *, axes, axis_index_groups):
    dimensions = tuple(axis for axis in axes if isinstance(axis, int))
    names = tuple(axis for axis in axes if axis not in dimensions)
    x_bar = lax.psum(y_bar, names, axis_index_groups=axis_index_groups) if names else y_bar
    return repeat(x_bar, x, dimensions) if dimensions else x_bar


def all_gather_transpose(
    y_bar, x, *, all_gather_dimension, axis_name, axis_index_groups, tiled, **_
):
    return lax.psum_scatter(
        y_bar,
        axis_name,
        scatter_dimension=all_gather_dimension,
        axis_index_groups=axis_index_groups,
        tiled=tiled,
    )


def reduce_scatter_transpose(
    y_bar, x, *, scatter_dimension, axis_name, axis_index_groups, tiled, **_
):
    return lax.all_gather(
        y_bar, axis_name, axis=scatter_dimension, axis_index_groups=axis_index_groups, tiled=tiled
    )


# The blocks of a dimension go to the devices, and those of the devices to a dimension.  Another
# equation makes a block a dimension of its own (`tiled=False`).
def all_to_all_transpose(y_bar, x, *, split_axis, concat_axis, axis_name, axis_index_groups, **_):
    return lax.all_to_all(
        y_bar, axis_name, concat_axis, split_axis, axis_index_groups=axis_index_groups, tiled=True
    )


# A device that receives nothing has a zero; a value that is sent nowhere has a zero cotangent.
def ppermute_transpose(y_bar, x, *, axis_name, perm):
    return lax.ppermute(y_bar, axis_name, [(target, source) for source, target in perm])


# y_d = x_s  =>  x_s_bar = sum_d y_d_bar,  and zero on the other devices
def pbroadcast_transpose(y_bar, x, *, axis_name, source):
    is_source = indicator(eq(lax.axis_index(axis_name), source), y_bar)
    return mul(lax.psum(y_bar, axis_name), is_source)


def pbroadcast_dynamic_transpose(y_bar, x, source, *, axis_name):
    source = lax.convert_element_type(source, "int32")  # the type of an axis_index
    return pbroadcast_transpose(y_bar, x, axis_name=axis_name, source=source)


# A device has received rows from others.  Their cotangents go back, and an offset at the receiver
# becomes one at the sender.  The rows of `base` that were overwritten have no part in y.  No row of
# x may be sent twice, because the operation that sends it back writes and does not add.
def ragged_all_to_all_transpose(
    y_bar, x, base, sent_from, sent, written_at, received, *, axis_name, **groups
):
    def at_the_others(offsets):
        return lax.all_to_all(offsets, axis_name, 0, 0, tiled=True, **groups)

    def exchange(rows, into, *places):
        return lax.ragged_all_to_all(rows, into, *places, axis_name=axis_name, **groups)

    x_bar = base_bar = None
    if type(x) is Linear:
        back = at_the_others(written_at), received, at_the_others(sent_from), sent
        x_bar = exchange(y_bar, zeros_like(x), *back)
    if type(base) is Linear:
        zeros = zeros_like(base)
        written = exchange(add(1, zeros_like(x)), zeros, sent_from, sent, written_at, received)
        base_bar = lax.select(eq(written, 0), y_bar, zeros)
    return x_bar, base_bar


reduce_scatter_p = collective("reduce_scatter", lambda x: lax.psum_scatter(x, AXIS, tiled=True))
pbroadcast_p = collective("pbroadcast", lambda x: lax.pbroadcast(x, AXIS, 0))
# In JAX 0.10 the source of a broadcast is a number.
pbroadcast_dynamic_p = collective(
    "pbroadcast_dynamic", lambda x: lax.pbroadcast(x, AXIS, lax.axis_index(AXIS)), optional=True
)

linear(lax.psum_p, psum_transpose)
linear(lax.all_gather_p, all_gather_transpose)
linear(reduce_scatter_p, reduce_scatter_transpose)
linear(lax.all_to_all_p, all_to_all_transpose)
linear(lax.ppermute_p, ppermute_transpose)
linear(pbroadcast_p, pbroadcast_transpose)
linear(pbroadcast_dynamic_p, pbroadcast_dynamic_transpose)
linear(lax.ragged_all_to_all_p, ragged_all_to_all_transpose, argnums=(0, 1))

# ---- one number for all devices ------------------------------------------------------------------


def total(y_bar, x, *, axes):
    return lax.psum(y_bar, axes)


def converted(kind: str) -> Callable:
    """The transpose that takes the cotangent's numbers as those of another kind of type."""
    return lambda y_bar, x, *, axes: lax.pcast(y_bar, axes, to=kind)


# Each device's slice of the one y_bar.
def all_gather_invariant_transpose(y_bar, x, *, all_gather_dimension, axis_name, tiled, **_):
    size = x.shape[all_gather_dimension] if tiled else 1
    start = mul(lax.axis_index(axis_name), size)
    x_bar = lax.dynamic_slice_in_dim(y_bar, start, size, all_gather_dimension)
    return x_bar if tiled else lax.squeeze(x_bar, (all_gather_dimension,))


def invariant_and_back(x):
    return lax.pcast(lax.psum(x, AXIS), AXIS, to="varying")


psum_invariant_p = collective("psum_invariant", invariant_and_back)
pvary_p = collective("pvary", invariant_and_back)
all_gather_invariant_p = collective(
    "all_gather_invariant", lambda x: lax.all_gather(x, AXIS, to="invarying")
)

linear(psum_invariant_p, converted("varying"))
linear(pvary_p, total)
linear(all_gather_invariant_p, all_gather_invariant_transpose)

# ---- sums that are not carried out yet, and their duals ------------------------------------------


def all_gather_reduced_transpose(y_bar, x, *, all_gather_dimension, axis_name, tiled, **_):
    return lax.psum_scatter(y_bar, axis_name, scatter_dimension=all_gather_dimension, tiled=tiled)


def unreduced_reduce_scatter_transpose(y_bar, x, *, scatter_dimension, axis_name, tiled, **_):
    return lax.all_gather(y_bar, axis_name, axis=scatter_dimension, tiled=tiled, to="reduced")


def unreduced(x):
    return lax.pcast(x, AXIS, to="unreduced")


def reduced_and_back(x):
    return lax.pcast(lax.all_gather(x, AXIS, to="reduced"), AXIS, to="varying")


vary_unreduced_cast_p = collective("vary_unreduced_cast", unreduced)
unreduced_psum_p = collective("unreduced_psum", lambda x: lax.psum(unreduced(x), AXIS))
unreduced_reduce_scatter_p = collective(
    "unreduced_reduce_scatter", lambda x: lax.psum_scatter(unreduced(x), AXIS, tiled=True)
)
all_gather_reduced_p = collective("all_gather_reduced", reduced_and_back)
reduced_vary_cast_p = collective("reduced_vary_cast", reduced_and_back)
preduced_p = collective("preduced", lambda x: lax.pcast(lax.psum(x, AXIS), AXIS, to="reduced"))

linear(vary_unreduced_cast_p, converted("varying"))
linear(reduced_vary_cast_p, converted("unreduced"))
linear(unreduced_psum_p, converted("reduced"))
linear(preduced_p, total)
linear(unreduced_reduce_scatter_p, unreduced_reduce_scatter_transpose)
linear(all_gather_reduced_p, all_gather_reduced_transpose)

# ---- nothing to differentiate --------------------------------------------------------------------


def _inspect(x):
    jax.debug.inspect_array_sharding(x, callback=lambda sharding: None)
    return x


zero(unnamed("inspect_sharding", _inspect))
