"""Counted loops, evaluated: one by one, and many at once.

    vmap reversed_loop : all examples take as many steps as the longest; each counts its own

If several examples take different numbers of steps, the number is an array, and the carry has an
axis of examples.  The schedule of checkpoints follows the largest number.  JAX alone would give
each example a schedule of its own, and would select the whole stack in each step.

The `while` of `while_loop.py` is evaluated here too: as JAX evaluates its own.

Read next: `kept.py`, how many carries a loop keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive
from jax.extend.core.primitives import while_p
from jax.interpreters import batching, mlir

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.counted_loops import Counted, Reversed, counted_p, reversed_p
from functrans.control_flow.steps import noted, reached, settled
from functrans.control_flow.while_loop import until_p
from functrans.programs import revolve
from functrans.programs.jitted import bind_jit
from functrans.programs.passing import exchanged
from functrans.tracer import stage
from functrans.values import Flags


def _calling(program: ClosedJaxpr, consts: Sequence) -> Callable:
    """A function of lists of inputs, as one equation."""
    return lambda *xs: bind_jit(program, [*consts, *(x for part in xs for x in part)], "step")


def _run_counted(*inputs, **params):
    loop = Counted(**params)
    n, consts, carry = loop.parts(inputs)
    outs = revolve.advance(n, _calling(loop.step, consts), carry, loop.ends)
    return values.pick(outs, loop.wanted)


def _run_reversed(*inputs, **params):
    loop = Reversed(**params)
    n, consts, carry, bars = loop.parts(inputs)
    of_carry_alone = np.ndim(n) > 0 and not all(loop.ends[1])
    notes = noted(loop.back, loop.consts, loop.carry, of_carry_alone)
    outer = bind_jit(notes.outer, [*consts, *carry], "before")
    step, note = (_calling(program, consts) for program in (loop.step, notes.note))
    back = _calling(notes.back, [*consts, *outer])
    outs = revolve.there_and_back(n, step, note, back, carry, bars, loop.ends, loop.kept)
    return values.pick(outs, loop.wanted)


def _effects(*programs: ClosedJaxpr) -> frozenset:
    return frozenset().union(*(program.effects for program in programs))


def _type_of_counted(*_, **params):
    loop = Counted(**params)
    return values.pick(loop.step.out_avals, loop.wanted), _effects(loop.step)


def _type_of_reversed(*_, **params):
    loop = Reversed(**params)
    return values.pick(loop.back.out_avals, loop.wanted), _effects(loop.step, loop.back)


def _mapped(program: ClosedJaxpr, flags: Flags, *rest: Any) -> ClosedJaxpr:
    return _of_batches(program, flags, *rest) if any(flags) else program


@caches.by_program
def _of_batches(
    program: ClosedJaxpr, flags: Flags, outputs: Flags, avals: tuple, axis: tuple
) -> ClosedJaxpr:
    """The program on batches, for flags of the batched inputs and of the wanted batched outputs."""
    size, name, spmd_name = axis
    axes = [0 if flag else None for flag in flags]

    def mapped(*xs):
        run = partial(jx.evaluate, program)
        outs = jax.vmap(
            run, in_axes=axes, axis_size=size, axis_name=name, spmd_axis_name=spmd_name
        )(*xs)
        pairs = zip(outs, outputs, strict=True)
        return [x if flag else lax.index_in_dim(x, 0, keepdims=False) for x, flag in pairs], None

    return stage(mapped, avals, program.jaxpr.debug_info)[0]


class Batch:
    """The inputs of a loop; some have an axis of examples, the first."""

    def __init__(self, axis: Any, n: Any, n_axis: int | None):
        self.key = axis.size, axis.name, axis.spmd_name
        self.size, self.n, self.counts_differ = axis.size, n, n_axis is not None
        # With several examples all of the carry has their axis.
        self.all = self.counts_differ or np.ndim(n) > 0 or _is_named(axis)
        if n_axis is not None:
            self.n = jnp.moveaxis(n, n_axis, 0)
        elif np.ndim(n) > 0:
            self.n = self.broadcast(n)

    def broadcast(self, x: Any) -> Any:
        return batching.broadcast(x, self.size, 0, None)

    def carried(self, xs: Sequence, axes: Sequence, flags: Sequence) -> list:
        """The carry of a step, with the axis in the entries with the flag."""
        moved = [_first(x, axis) for x, axis in zip(xs, axes, strict=True)]
        triples = zip(moved, axes, flags, strict=True)
        return [self.broadcast(x) if f and a is None else x for x, a, f in triples]

    def flags(self, program: ClosedJaxpr, fixed: Sequence[bool], axes: Sequence) -> Flags:
        own = [axis is not None for axis in axes]
        return (True,) * len(own) if self.all else settled(reached, program, fixed, own)


def _is_named(axis: Any) -> bool:
    """Whether a body may ask for the place of its example, by the name of the axis."""
    return type(axis.name) is not object


def _first(x: Any, axis: int | None) -> Any:
    return x if axis is None else jnp.moveaxis(x, axis, 0)


def _types(*lists: Sequence) -> tuple:
    return tuple([values.typeof(x) for xs in lists for x in xs])


def _batch_counted(axis, inputs, axes, **params):
    loop = Counted(**params)
    (n, consts, carry), (n_axis, k_axes, c_axes) = loop.parts(inputs), loop.parts(axes)
    batch = Batch(axis, n, n_axis)
    k = tuple([a is not None for a in k_axes])
    c = batch.flags(loop.step, k, c_axes)
    consts, carry = batch.carried(consts, k_axes, k), batch.carried(carry, c_axes, c)
    step = _mapped(loop.step, (*k, *c), c, _types(consts, carry), batch.key)
    outs = counted_p.bind(batch.n, *consts, *carry, **params | {"step": step})
    return outs, [0 if flag else None for flag in values.pick(c, loop.wanted)]


def _batch_reversed(axis, inputs, axes, **params):
    loop = Reversed(**params)
    n, consts, carry, bars = loop.parts(inputs)
    n_axis, k_axes, c_axes, b_axes = loop.parts(axes)
    batch = Batch(axis, n, n_axis)
    k = tuple([a is not None for a in k_axes])
    c = batch.flags(loop.step, k, c_axes)
    b = batch.flags(loop.back, (*k, *c), b_axes)
    consts, carry = batch.carried(consts, k_axes, k), batch.carried(carry, c_axes, c)
    bars = batch.carried(bars, b_axes, b)
    step = _mapped(loop.step, (*k, *c), c, _types(consts, carry), batch.key)
    back = _mapped(loop.back, (*k, *c, *b), b, _types(consts, carry, bars), batch.key)
    programs = {"step": step, "back": back}
    outs = reversed_p.bind(batch.n, *consts, *carry, *bars, **params | programs)
    return outs, [0 if flag else None for flag in values.pick(b, loop.wanted)]


# ---- loops until a condition is met --------------------------------------------------------------


def _type_of_until(*avals, **params):
    return jx.abstract_eval(while_p, avals, params)


def _batch_until(axis, inputs, axes, **params):
    """As JAX batches its own; the loop that it writes becomes ours."""

    def until(primitive, params):
        return until_p if primitive is while_p else primitive, params

    with exchanged(until):
        return batching.fancy_primitive_batchers[while_p](axis, inputs, axes, **params)


# ---- declarations --------------------------------------------------------------------------------


def _declare(primitive: Primitive, run: Callable, type_of: Callable, batch: Callable) -> None:
    def compiled(params: tuple, *inputs):
        return run(*inputs, **dict(params))

    def batched(axis, inputs, axes, **params):
        if all(a is None for a in axes) and not _is_named(axis):  # JAX asks in this case, too
            outs = primitive.bind(*inputs, **params)
            return outs, [None] * len(outs)
        return batch(axis, inputs, axes, **params)

    jitted: Any = jax.jit(compiled, static_argnums=0)
    caches.TO_EMPTY.append(jitted.clear_cache)
    primitive.def_impl(lambda *inputs, **params: jitted((*params.items(),), *inputs))
    primitive.def_effectful_abstract_eval(type_of)
    mlir.register_lowering(primitive, mlir.lower_fun(run, multiple_results=True))
    batching.fancy_primitive_batchers[primitive] = batched


_declare(counted_p, _run_counted, _type_of_counted, _batch_counted)
_declare(reversed_p, _run_reversed, _type_of_reversed, _batch_reversed)
_declare(until_p, while_p.bind, _type_of_until, _batch_until)
