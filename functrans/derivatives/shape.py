"""The derivatives of the operations that move elements about without computing with them.

    y = P x,        y_dot = P x_dot,        x_bar = P^T y_bar

where each row of the matrix P has at most one 1: `P^T` puts each element back to where it came
from, sums the copies, and puts zero where nothing was read.

Read next: `reduction.py`, sums and extrema.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.experimental import layout
from jax.experimental.layout import Layout, with_layout_constraint

from functrans.derivatives.common import (
    emitted,
    mul,
    named,
    unnamed,
    when_imported,
    when_met,
    zeros_like,
)
from functrans.rules import (
    Linear,
    Rule,
    Zero,
    call,
    elementwise,
    instantiate,
    linear,
    sharding_of,
    zero,
)


def zero_of(x: Any) -> Any:
    """The scalar zero that fills a pad."""
    return np.zeros((), x.dtype)


# ---- the same elements in another arrangement ----------------------------------------------------


# P = reshape . transpose, so P^T = transpose^(-1) . reshape.
def reshape_transpose(y_bar, x, *, dimensions):
    if dimensions is None:
        return lax.reshape(y_bar, x.shape, out_sharding=sharding_of(x.aval))
    sharding = sharding_of(x.aval, dimensions)
    permuted = lax.reshape(y_bar, [x.shape[d] for d in dimensions], out_sharding=sharding)
    return lax.transpose(permuted, inverse(dimensions))


def inverse(permutation: Sequence[int]) -> tuple[int, ...]:
    """The permutation that undoes another."""
    return tuple(sorted(range(len(permutation)), key=permutation.__getitem__))


def transpose_transpose(y_bar, x, *, permutation):
    return lax.transpose(y_bar, inverse(permutation))


linear(lax.reshape_p, reshape_transpose)
linear(lax.squeeze_p, lambda y_bar, x, *, dimensions: lax.expand_dims(y_bar, dimensions))
linear(lax.transpose_p, transpose_transpose)
linear(lax.rev_p, lambda y_bar, x, *, dimensions: lax.rev(y_bar, dimensions))

# ---- copies: their cotangents are summed ---------------------------------------------------------


# We sum over the new dimensions, and over those in which the one element of x was repeated.
def broadcast_transpose(y_bar, x, *_, shape, broadcast_dimensions):
    kept = [d for d, size in zip(broadcast_dimensions, x.shape, strict=True) if size == shape[d]]
    axes = tuple(d for d in range(len(shape)) if d not in kept)
    if all(shape[d] == 1 for d in axes):
        x_bar = lax.squeeze(y_bar, axes)
    else:
        x_bar = lax.reduce_sum(y_bar, axes)
    repeated = [i for i, d in enumerate(broadcast_dimensions) if d not in kept]
    return lax.expand_dims(x_bar, repeated)


# Dimension d of y is (reps_d, size_d): the sum is over the first.
def tile_transpose(y_bar, x, *, reps):
    pairs = [n for pair in zip(reps, x.shape, strict=True) for n in pair]
    places = [d for own in range(x.ndim) for d in (None, own)]
    split = lax.reshape(y_bar, pairs, out_sharding=sharding_of(x.aval, places))
    return lax.reduce_sum(split, tuple(range(0, 2 * x.ndim, 2)))


linear(lax.broadcast_in_dim_p, broadcast_transpose)
linear(lax.tile_p, tile_transpose)

# ---- parts and wholes ----------------------------------------------------------------------------


def concatenate_transpose(y_bar, *xs, dimension):
    ends = np.cumsum([x.shape[dimension] for x in xs]).tolist()
    return [
        lax.slice_in_dim(y_bar, end - x.shape[dimension], end, axis=dimension)
        if type(x) is Linear
        else None
        for x, end in zip(xs, ends, strict=True)
    ]


def split_transpose(y_bars, x, *, axis):
    return lax.concatenate([instantiate(y_bar) for y_bar in y_bars], axis)


def stack_transpose(y_bar, *xs, axis):
    return [
        lax.index_in_dim(y_bar, i, axis, keepdims=False) if type(x) is Linear else None
        for i, x in enumerate(xs)
    ]


def unstack_transpose(y_bars, x, *, axis):
    return lax.stack([instantiate(y_bar) for y_bar in y_bars], axis)


linear(lax.concatenate_p, concatenate_transpose, argnums=None)
linear(lax.split_p, split_transpose)
linear(lax.stack_p, stack_transpose, argnums=None)
linear(lax.unstack_p, unstack_transpose)


# y[start + stride i] was read, so x_bar has zeros before, between and after the elements of y_bar.
def slice_transpose(y_bar, x, *, start_indices, strides):
    strides = strides or (1,) * x.ndim
    padding = []
    for start, stride, size, read in zip(start_indices, strides, x.shape, y_bar.shape, strict=True):
        end = start + (read - 1) * stride + 1 if read else start
        padding.append((start, size - end, stride - 1))
    return lax.pad(y_bar, zero_of(x), padding)


# The inverse of a pad reads what the pad has written: undo the edges, then skip the interior.
# The padding value goes to all other places, those where padding a 0 with a 1 gives a 1.
def pad_transpose(y_bar, x, value, *, padding_config):
    return (
        unpad(y_bar, padding_config) if type(x) is Linear else None,
        pad_value_transpose(y_bar, x, padding_config) if type(value) is Linear else None,
    )


def unpad(y_bar, padding_config):
    if any(low or high for low, high, _ in padding_config):
        edges = [(-low, -high, 0) for low, high, _ in padding_config]
        y_bar = lax.pad(y_bar, zero_of(y_bar), edges)
    if all(interior == 0 for _, _, interior in padding_config):
        return y_bar
    steps = [interior + 1 for _, _, interior in padding_config]
    return lax.slice(y_bar, [0] * y_bar.ndim, y_bar.shape, steps)


def pad_value_transpose(y_bar, x, padding_config):
    is_padding = lax.pad(zeros_like(x), np.ones((), y_bar.dtype), padding_config)
    return lax.reduce_sum(mul(y_bar, is_padding), tuple(range(y_bar.ndim)))


linear(lax.slice_p, slice_transpose)
linear(lax.pad_p, pad_transpose, argnums=(0, 1))

# ---- the same elements in another place: device, sharding, layout --------------------------------


class EachToEach(Rule):
    """`y_i = P x_i` for each argument by itself, with the params that belong to it."""

    may_split = True

    def __init__(self, params_of: Any, transposed: Any):
        self.params_of = params_of
        self.transposed = transposed

    def forward(self, primitive, primals, tangents, params):
        outs = primitive.bind(*primals, **params)
        moved = self._move(primitive, tangents, params)
        return list(outs), moved

    def transpose(self, primitive, cotangents, inputs, params):
        return self._move(primitive, cotangents, self.transposed(params))

    def depends(self, params, inputs):
        return inputs

    # Two equations take the place of one: a barrier keeps each group together, no longer both.
    def split(self, primitive, inputs, owned, params):
        outs: list = [None] * len(inputs)
        for flag in (False, True):
            group = [i for i, is_owned in enumerate(owned) if is_owned is flag]
            given, own_params = [inputs[i] for i in group], self.params_of(params, group)
            for i, out in zip(group, primitive.bind(*given, **own_params), strict=True):
                outs[i] = out
        return outs

    def _move(self, primitive, tangents, params):
        live = [i for i, tangent in enumerate(tangents) if type(tangent) is not Zero]
        result = list(tangents)
        if live:
            moved = primitive.bind(*[tangents[i] for i in live], **self.params_of(params, live))
            for i, tangent in zip(live, moved, strict=True):
                result[i] = tangent
        return result


def device_put_params(params: dict, live: list[int]) -> dict:
    return {key: tuple(values[i] for i in live) for key, values in params.items()}


def device_put_back(params: dict) -> dict:
    return params | {"devices": params["srcs"], "srcs": params["devices"]}


call(lax.device_put_p, EachToEach(device_put_params, device_put_back))
call(lax.optimization_barrier_p, EachToEach(lambda params, live: params, lambda params: params))


def constrain(primitive: Any) -> None:
    """A constraint on the value is put on its tangent, and on its cotangent."""
    linear(primitive, lambda y_bar, x, **params: primitive.bind(y_bar, **params))


def _with_layout(x):
    return with_layout_constraint(x, Layout(()))


def _relayout(x):
    explicit_layout: Any = vars(layout)["explicit_layout"]  # since JAX 0.11
    return explicit_layout(lambda x: x, in_layouts=Layout(()))(x)


constrain(lax.sharding_constraint_p)
constrain(unnamed("layout_constraint", _with_layout))
relayout_p = unnamed("relayout", _relayout, optional=True)
linear(relayout_p, lambda y_bar, x: relayout_p.bind(y_bar, dst_layout=x.aval.layout))


def _reshard(x):
    axis = jax.sharding.AxisType.Explicit
    mesh = jax.sharding.AbstractMesh((1,), ("axis",), axis_types=(axis,))
    return jax.sharding.reshard(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))


def reshard_transpose(y_bar, x):
    sharding = sharding_of(x.aval)
    return y_bar if sharding is None else jax.sharding.reshard(y_bar, sharding)


linear(unnamed("reshard", _reshard), reshard_transpose)


@when_imported("xla_metadata")
def declare_metadata(module: Any) -> None:
    (tagged_p,) = emitted(lambda x: module.set_xla_metadata(x, key="value"))
    linear(tagged_p, lambda y_bar, x: y_bar)


class Alike(EachToEach):
    """`x` and `y` in one sharding, which their tangents share where both move."""

    def split(self, primitive, inputs, owned, params):
        return inputs

    def _move(self, primitive, tangents, params):
        still = any(type(t) is Zero for t in tangents)
        return list(tangents) if still else list(primitive.bind(*tangents, **params))


@when_imported("shard_alike")  # until JAX 0.10
def declare_shard_alike(module: Any) -> None:
    (alike_p,) = emitted(lambda x: module.shard_alike(x, x)[0])
    call(alike_p, Alike(lambda params, live: params, lambda params: params))


# From the array on each host to one array of all hosts, and back: each undoes the other.
@when_imported("multihost_utils")
def declare_hosts(module: Any) -> None:
    whole_p = module.host_local_array_to_global_array_p
    parts_p = module.global_array_to_host_local_array_p
    linear(whole_p, lambda y_bar, x, **params: parts_p.bind(y_bar, **params))
    linear(parts_p, lambda y_bar, x, **params: whole_p.bind(y_bar, **params))


@when_met("tie")  # y, but not before x is there
def declare_tie(primitive: Any) -> None:
    elementwise(primitive, None, 1)


# ---- numbers as elements of an extended dtype, which says what type their tangents have ----------


def converted_jvp(primitive: Any) -> Callable:
    def jvp(primals, tangents, **params):
        y = primitive.bind(*primals, **params)
        return y, lax.convert_element_type(tangents[0], jax.typeof(y).to_tangent_aval().dtype)

    return jvp


def converted_transpose(y_bar, x):
    return lax.convert_element_type(y_bar, x.aval.to_ct_aval().dtype)


@when_met("from_edtype")
@when_met("to_edtype")
def declare_conversion(primitive: Any) -> None:
    linear(primitive, converted_transpose, jvp=converted_jvp(primitive))


# ---- no argument that could have a tangent -------------------------------------------------------

zero(lax.iota_p, *map(named, ("empty2", "create_token", "after_all")))
zero(unnamed("empty", lambda x: lax.empty((), "float32")))
