"""`jax.shard_map`: one function run by every device of a mesh, each on its shard of the inputs.

    y = unshard (f (shard x))

    forward:      shard_map (jvp f)
    linearize:    shard_map (primal half),  then  shard_map (linear half)
    transpose:    shard_map (transpose of the linear half), where the specs of inputs and outputs
                  have changed sides

for `unshard` is the transpose of `shard`, but for what is replicated.  A replicated input is a copy
of x on each of n devices; a replicated output is read from any of n equal copies, which is to say
from each with the weight 1/n:

    x_d = x                  =>     x_bar = sum_d x_d_bar
    y = sum_d y_d / n        =>     y_d_bar = y_bar / n

That is done here where `check_vma=False`.  With `check_vma=True` the types inside say what is
replicated: such a value counts once, however many devices hold it, and where it meets one that
varies there is a `pvary`, whose transpose is the sum.

`jax.pmap` is written by JAX as a `shard_map`.

Read next: `../derivatives/collectives.py`, the operations in which devices meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal
from jax.sharding import AbstractMesh, PartitionSpec

from functrans import jaxpr as jx
from functrans.control_flow.halves import Halves, closed_of, halves
from functrans.forward import jvp_jaxpr
from functrans.jaxpr import Linear
from functrans.reverse import transpose_jaxpr
from functrans.rules import Rule, call, staged


class Mapped(NamedTuple):
    """What is static in a `shard_map` equation."""

    program: ClosedJaxpr
    mesh: Any
    in_specs: Sequence[Any]
    out_specs: Sequence[Any]
    axes: frozenset
    """The axes of the mesh over which this call maps; the others are left to the compiler, or
    belong to a call around this one."""
    checked: bool

    @classmethod
    def of(cls, params: dict) -> Mapped:
        names = ("mesh", "in_specs", "out_specs", "newly_manual_axes", "check_vma")
        return cls(closed_of(params["jaxpr"]), *(params[name] for name in names))

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

    def derive(self, derivation: Callable, *key: Any) -> Any:
        """`derivation(program, *key)`, asked where the axes that collectives name are bound."""
        derived: list = []

        def body():
            derived.append(derivation(self.program, *key))
            return []

        jax.make_jaxpr(self.map(body, (), ()))()
        return derived[0]

    def spec_of(self, aval: Any) -> PartitionSpec:
        """How a residual is stored: where devices differ, side by side along dimension 0."""
        kind = aval.manual_axis_type
        varying = kind.varying if self.checked else self.axes
        axes = tuple(a for a in self.mesh.axis_names if a in self.axes and a in varying)
        first = [axes] if axes else []
        return PartitionSpec(*first, unreduced=kind.unreduced, reduced=kind.reduced)

    def replicated(self, spec: PartitionSpec) -> tuple:
        """The axes along which all devices hold the same, by this spec."""
        named = {name for part in spec for name in (part if isinstance(part, tuple) else [part])}
        return tuple(a for a in self.mesh.axis_names if a in self.axes and a not in named)

    def share(self, y_bar: Any, spec: PartitionSpec) -> Any:
        """The cotangent of each of n equal copies."""
        count = math.prod(self.mesh.shape[axis] for axis in self.replicated(spec))
        return y_bar if count == 1 else lax.div(y_bar, jx.number(count, jx.typeof(y_bar)))

    def total(self, x_bar: Any, spec: PartitionSpec) -> Any:
        """The cotangent of what was copied."""
        axes = self.replicated(spec)
        return lax.psum(x_bar, axes) if axes else x_bar


def written(primitive: Any, args: Sequence, params: dict) -> tuple[dict, list, Any]:
    """A live call as JAX writes it: the params of the equation, its inputs, and how JAX wants the
    list of its results to be given back.

    What the function has closed over is among the inputs, for it may be to be differentiated too.
    """
    form: Any = None

    def bind(*xs):
        nonlocal form
        outs = primitive.bind(*xs, **params)
        form = outs.map(jx.typeof)  # types, as tracers must not outlive this
        return list(outs)

    program = jax.make_jaxpr(bind)(*args)
    (equation,) = program.jaxpr.eqns
    values = jx.environment(program, args)
    inputs = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
    return equation.params, inputs, lambda outs: form.update(list(outs))


def live(trace: Any, primitive: Any, fun: Callable, args: Any, params: dict) -> Any:
    """How each of our traces treats a live call: as one without closures."""
    params, inputs, given_back = written(primitive, args, {"subfuns": (fun,), **params})
    return given_back(trace.process_primitive(primitive, inputs, primitive.get_bind_params(params)))


def for_moving(specs: Sequence, gaps: Sequence) -> list:
    """The specs of what fills the gaps."""
    return [spec for spec, gap in zip(specs, gaps, strict=True) if gap is None]


def stored(x: Any) -> Any:
    """With one dimension at least, along which the values of several devices can be joined."""
    return x if jx.typeof(x).shape else lax.expand_dims(x, (0,))


def residuals(half: Halves, given: Iterator) -> list:
    """What the linear half reads, where `given` are those that are no constants."""

    def restored(kind, at):
        if kind == "value":
            return at
        x = next(given)
        is_scalar = kind == "fresh" and not half.fresh[at].shape
        return lax.squeeze(x, (0,)) if is_scalar else x

    return [restored(*source) for source in half.sources]


class ShardMapRule(Rule):
    """Derive the function that each device runs, and map the result over the same mesh."""

    def forward(self, primitive, primals, tangents, params):
        params, primals, _ = written(primitive, primals, params)
        mapped, moving = Mapped.of(params), jx.moving(tangents)
        program, gaps = mapped.derive(jvp_jaxpr, moving)
        pushforward = mapped.map(
            lambda *xs: jx.evaluate(program, *xs),
            [*mapped.in_specs, *compress(mapped.in_specs, moving)],
            [*mapped.out_specs, *for_moving(mapped.out_specs, gaps)],
        )
        outs = pushforward(*primals, *jx.present(tangents))
        return outs[: len(gaps)], jx.fill(gaps, outs[len(gaps) :])

    def linearize(self, primitive, primals, tangents, params):
        params, primals, _ = written(primitive, primals, params)
        mapped, moving = Mapped.of(params), jx.moving(tangents)
        half = mapped.derive(halves, moving)
        count = len(half.gaps)

        def primal_half(*xs):
            outs = jx.evaluate(half.first, *xs)
            return [*outs[:count], *map(stored, outs[count:])]

        def linear_half(*xs):
            given = iter(xs)
            return jx.evaluate(half.second, *residuals(half, given), *given)

        fresh_specs = [mapped.spec_of(aval) for aval in half.fresh]
        outs = mapped.map(primal_half, mapped.in_specs, [*mapped.out_specs, *fresh_specs])(*primals)
        outs, fresh = outs[:count], outs[count:]
        known = {"in": (primals, mapped.in_specs), "out": (outs, mapped.out_specs)}
        known["fresh"] = fresh, fresh_specs
        places = [(*known[kind], at) for kind, at in half.sources if kind != "value"]
        pushforward = mapped.map(
            linear_half,
            [*(specs[at] for _, specs, at in places), *compress(mapped.in_specs, moving)],
            for_moving(mapped.out_specs, half.gaps),
        )
        pushed = pushforward(*(values[at] for values, _, at in places), *jx.present(tangents))
        return outs, jx.fill(half.gaps, pushed)

    def transpose(self, primitive, cotangents, inputs, params):
        mapped, moving = Mapped.of(params), jx.moving(cotangents)
        linear = tuple(type(x) is Linear for x in inputs)
        known = [not is_linear for is_linear in linear]
        program, gaps = mapped.derive(transpose_jaxpr, linear, moving)
        y_specs = list(compress(mapped.out_specs, moving))
        x_specs = for_moving(list(compress(mapped.in_specs, linear)), gaps)

        def pullback(*xs):
            if mapped.checked:
                return jx.evaluate(program, *xs)
            split = sum(known)
            y_bars = map(mapped.share, xs[split:], y_specs)
            return list(map(mapped.total, jx.evaluate(program, *xs[:split], *y_bars), x_specs))

        pull = mapped.map(pullback, [*compress(mapped.in_specs, known), *y_specs], x_specs)
        pulled = pull(*compress(inputs, known), *jx.present(cotangents))
        x_bars = iter(jx.fill(gaps, pulled))
        return [next(x_bars) if is_linear else None for is_linear in linear]


def _shard_map_p() -> Any:
    mesh = AbstractMesh((1,), ("axis",))
    nothing = jax.shard_map(
        lambda x: x, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec()
    )
    (equation,) = jax.make_jaxpr(nothing)(1.0).jaxpr.eqns
    return equation.primitive


call(_shard_map_p(), ShardMapRule())
staged("shard_map", live)
