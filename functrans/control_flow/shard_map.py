"""`jax.shard_map`: one function run by every device of a mesh, each on its shard of the inputs.

    y = unshard (f (shard x))

    forward:      shard_map (jvp f)
    linearize:    shard_map (primal half),  then  shard_map (linear half)
    transpose:    shard_map (transpose of the linear half), with the specs of inputs and outputs
                  exchanged

for `unshard` is the transpose of `shard`, except for replicated values.  A replicated input is a
copy of x on each of n devices.  A replicated output may be read from any of n equal copies; we
read each with the weight 1/n:

    x_d = x                  =>     x_bar = sum_d x_d_bar
    y = sum_d y_d / n        =>     y_d_bar = y_bar / n

We do this for `check_vma=False`.  With `check_vma=True` the types inside tell which values are
replicated.  Such a value counts once, however many devices hold it, and where it meets one that
varies there is a `pvary`, whose transpose is the sum.

JAX writes `jax.pmap` as a `shard_map`.

Read next: `strong.py`, products that a zero absorbs; or
`../derivatives/collectives.py`, the operations by which devices communicate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, set_current_trace
from jax.sharding import AbstractMesh, PartitionSpec

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.base import CallRule, Roles, transposed_bodies
from functrans.derivatives.common import without_name
from functrans.programs.replay import replay
from functrans.rules import call, staging_rule
from functrans.tracer import RecordingTrace, StagingTrace, stage
from functrans.values import Flags


class Mapped(NamedTuple):
    """The static part of a `shard_map` equation."""

    program: ClosedJaxpr
    mesh: Any
    in_specs: Sequence[Any]
    out_specs: Sequence[Any]
    axes: frozenset
    """The axes of the mesh over which this call maps; the others belong to the compiler, or to a
    call around this one."""
    checked: bool

    @classmethod
    def of(cls, params: dict) -> Mapped:
        names = ("mesh", "in_specs", "out_specs", "newly_manual_axes", "check_vma")
        return cls(jx.closed_of(params["jaxpr"]), *(params[name] for name in names))

    def map(self, fun: Callable, in_specs: Sequence, out_specs: Sequence) -> Callable:
        """Map another function of flat lists in the same way."""
        return jax.shard_map(
            fun,
            mesh=self.mesh,
            in_specs=tuple(in_specs),
            out_specs=list(out_specs),
            axis_names=self.axes,
            check_vma=self.checked,
        )

    def inside(self, function: Callable) -> Any:
        """Call a function without arguments where the axes that collectives name are
        bound."""
        result: list = []  # JAX returns arrays alone

        def body():
            result.append(function())
            return []

        jax.make_jaxpr(self.map(body, (), ()))()
        return result[0]

    def spec_of(self, aval: Any) -> PartitionSpec:
        """The spec of a residual: if devices differ, side by side along dimension 0."""
        kind = aval.manual_axis_type
        varying = kind.varying if self.checked else self.axes
        axes = tuple(a for a in self.mesh.axis_names if a in self.axes and a in varying)
        first = [axes] if axes else []
        return PartitionSpec(*first, unreduced=kind.unreduced, reduced=kind.reduced)

    def replicated(self, spec: PartitionSpec) -> tuple:
        """The axes along which, by this spec, all devices hold the same value."""
        named = {name for part in spec for name in (part if isinstance(part, tuple) else [part])}
        return tuple(a for a in self.mesh.axis_names if a in self.axes and a not in named)

    def share(self, y_bar: Any, spec: PartitionSpec) -> Any:
        """The cotangent of each of n equal copies."""
        count = math.prod(self.mesh.shape[axis] for axis in self.replicated(spec))
        return y_bar if count == 1 else lax.div(y_bar, values.constant(count, jax.typeof(y_bar)))

    def total(self, x_bar: Any, spec: PartitionSpec) -> Any:
        """The cotangent of a copied value."""
        axes = self.replicated(spec)
        return lax.psum(x_bar, axes) if axes else x_bar


class Written(NamedTuple):
    """A live call as JAX writes it.

    The values that the function closes over are among the inputs, for they may have tangents too.
    """

    program: ClosedJaxpr
    """The inputs of the one equation."""
    inputs: list
    form: Any
    """The form in which JAX wants the list of results."""

    @classmethod
    def of(cls, primitive: Any, args: Sequence, params: dict) -> Written:
        form: Any = None

        def bind(*xs):
            nonlocal form
            outs = primitive.bind(*xs, **params)
            form = outs.map(jax.typeof)  # types, since tracers must not outlive this
            return list(outs)

        program = jax.make_jaxpr(bind)(*args)
        (equation,) = program.jaxpr.eqns
        known = jx.environment(program, args)
        inputs = [x.val if isinstance(x, Literal) else known[x] for x in equation.invars]
        return cls(program, inputs, form)

    @property
    def params(self) -> dict:
        return self.program.jaxpr.eqns[0].params


def live(trace: Any, primitive: Any, fun: Callable, args: Any, params: dict) -> Any:
    """Let our traces treat a live call as an equation, which closes over nothing."""
    call = Written.of(primitive, args, {"subfuns": (fun,), **params})
    owned, outs = tuple([trace.owns(x) for x in call.inputs]), None
    if type(trace) is not StagingTrace:
        if not any(owned):
            with set_current_trace(trace.parent):
                outs = primitive.bind(*call.inputs, **primitive.get_bind_params(call.params))
        elif isinstance(trace, RecordingTrace):
            outs = trace.split(primitive, call.inputs, owned, call.params)
        else:
            outs = trace.process_primitive(primitive, call.inputs, call.params)
    if outs is None:
        outs = replay(trace, call.program, args)
    return call.form.update(list(outs))


class ShardMapRule(CallRule):
    """Derives the function that each device runs, and maps the result over the same mesh."""

    def bodies(self, params):
        return (Mapped.of(params).program,)

    def derive(self, params, derivation, *key):
        mapped = Mapped.of(params)
        if derivation is transposed_bodies and not mapped.checked:
            specs = tuple(mapped.in_specs), tuple(mapped.out_specs)
            axes = mapped._replace(program=None, in_specs=None, out_specs=None)
            return mapped.inside(lambda: transposed(mapped.program, axes, *specs, *key))
        return mapped.inside(lambda: derivation(mapped.program, (), *key))

    def forward(self, primitive, primals, tangents, params):
        params, primals = unbound(primitive, primals, params)
        return super().forward(primitive, primals, tangents, params)

    def linearize(self, primitive, primals, tangents, params):
        params, primals = unbound(primitive, primals, params)
        return super().linearize(primitive, primals, tangents, params)

    def again(self, primitive, params, bodies, inputs, ins, outs):
        mapped, (program,) = Mapped.of(params), bodies
        specs = {"in": mapped.in_specs, "out": mapped.out_specs}

        def specs_of(roles: Roles, avals: Sequence) -> list:
            pairs = zip(roles, avals, strict=True)
            return [mapped.spec_of(a) if r is None else specs[r.side][r.index] for r, a in pairs]

        def body(*xs):
            columns = zip(xs, ins, program.in_avals, strict=True)
            xs = [lax.squeeze(x, (0,)) if r is None and not a.shape else x for x, r, a in columns]
            ys = jx.evaluate(program, *xs)
            return [stored(y) if r is None else y for y, r in zip(ys, outs, strict=True)]

        in_specs, out_specs = specs_of(ins, program.in_avals), specs_of(outs, program.out_avals)
        return mapped.map(body, in_specs, out_specs)(*inputs)


def unbound(primitive: Any, inputs: list, params: dict) -> tuple[dict, list]:
    """The params as they stand in an equation, and its inputs."""
    if "subfuns" not in params:
        return params, inputs
    call = Written.of(primitive, inputs, params)
    return call.params, call.inputs


def stored(x: Any) -> Any:
    """With at least one dimension, along which to join the values of several devices."""
    return x if jax.typeof(x).shape else lax.expand_dims(x, (0,))


@caches.by_program
def transposed(
    program: ClosedJaxpr,
    mapped: Mapped,
    in_specs: tuple,
    out_specs: tuple,
    linear: Flags,
    moving: Flags,
) -> tuple:
    """The transpose, with the factor 1/n of each replicated output, and the sum over devices for
    each replicated input."""
    (pull,), moved = transposed_bodies(program, (), linear, moving)
    y_specs = values.pick(out_specs, moving)
    x_specs = values.pick(values.pick(in_specs, linear), moved)
    count = len(pull.in_avals) - len(y_specs)

    def pullback(*xs):
        y_bars = map(mapped.share, xs[count:], y_specs)
        return [*map(mapped.total, jx.evaluate(pull, *xs[:count], *y_bars), x_specs)], None

    return (stage(pullback, pull.in_avals, program.jaxpr.debug_info)[0],), moved


@without_name
def declare_shard_map() -> None:
    mesh = AbstractMesh((1,), ("axis",))
    nothing = jax.shard_map(
        lambda x: x, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )
    (equation,) = jax.make_jaxpr(nothing)(1.0).jaxpr.eqns
    call(equation.primitive, ShardMapRule())


staging_rule("shard_map", live)
