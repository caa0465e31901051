"""A loop with a carry: its derivative is a loop again, and its transpose runs backwards.

    (c', y) = f(k, c, x)        for each x in xs

    forward:      scan over pairs:          (c, c_dot), (x, x_dot)  ->  (c', c_dot'), (y, y_dot)
    linearize:    scan f, stacking what the linear half reads;  then scan the linear half
    transpose:    scan the transpose from the last x to the first, summing k_bar on the way;
                  a sum of products becomes one product of stacked factors

Which entries of the carry move is a fixed point: if a step makes an entry move, it moves in the
next step too.

Read next: `while_loop.py`, a loop until a condition is met.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.extend.core.primitives import scan_p

from functrans import caches, values
from functrans.control_flow.kept import keeps_few, linear_scan
from functrans.control_flow.steps import by_halves
from functrans.forward import jvp_jaxpr
from functrans.linearize import linearize_jaxpr
from functrans.programs.cuts import FIXED, STACKED, THERE, Prices, cut
from functrans.programs.halves import (
    Halves,
    divided,
    hoist,
    located,
    numbered,
    reached_outputs,
)
from functrans.programs.live import settle, trimmed_step
from functrans.programs.loops import evaluate, scan
from functrans.programs.sums import Sums, sums_after
from functrans.reverse import transpose_jaxpr
from functrans.rules import NotLinear, Rule, Trimmed, call
from functrans.values import Flags

COUNTS = ("num_consts", "num_carry", "ft_in", "ft_out")
"""The params with the numbers of inputs and outputs of each kind; the latter two since JAX 0.11."""


class Loop(NamedTuple):
    """The static part of a `scan` equation, whose inputs are `consts, carry, xs`."""

    program: ClosedJaxpr
    consts: int
    carry: int
    options: dict

    @classmethod
    def of(cls, params: dict) -> Loop:
        if "ft_in" in params:  # since JAX 0.11
            consts, carry = (len(part) for part in params["ft_in"].unpack()[:2])
        else:
            consts, carry = params["num_consts"], params["num_carry"]
        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        return cls(params["jaxpr"], consts, carry, options)

    def parts(self, inputs: Sequence) -> tuple[list, list, list]:
        """Part a list with one entry for each input into those of consts, carry and xs."""
        end = self.consts + self.carry
        return list(inputs[: self.consts]), list(inputs[self.consts : end]), list(inputs[end:])

    def settle(self, derive: Callable, moving: Flags) -> tuple[Flags, Any]:
        """Derive the body for everything that moves in some step."""

        def feedback(moving, moved):
            consts, carry, xs = self.parts(moving)
            pairs = zip(carry, moved[: self.carry], strict=True)
            return (*consts, *(before or after for before, after in pairs), *xs)

        return settle(lambda flags: derive(self.program, flags), moving, feedback)

    def carried(self, tangents: Sequence, moving: Sequence[bool]) -> list:
        """The tangents of the carry; a zero that moves in a later step becomes an array."""
        return [values.instantiate(t) for t in values.pick(tangents, self.parts(moving)[1])]

    def tangents(self, moving: Flags, moved: Flags, outs: list, c_dots: list, y_dots: list) -> list:
        """The tangents of all results, from those of carry and ys that move."""
        flags = [*self.parts(moving)[1], *moved[self.carry :]]
        return values.with_zeros([*c_dots, *y_dots], flags, [values.typeof(out) for out in outs])


def halves_of_step(
    first: ClosedJaxpr, second: ClosedJaxpr, moved: Flags, outs: int, consts: int, carry: int
) -> Halves:
    """Both halves of a body with `outs` known results.

    The second loop cannot read the carry of the first, only the arrays that the first stacked: as
    few bytes as it can compute its residuals from.
    """
    kinds = [FIXED] * consts + [STACKED] * carry
    kinds += [THERE] * (len(first.in_avals) - len(kinds))
    prices = Prices(tuple(kinds), (*[STACKED] * carry, *[THERE] * (outs - carry)))
    halves = cut(first, second, prices)
    return located(*halves, moved, outs, *([price < STACKED for price in part] for part in prices))


def two_loops(half: Halves, known: Any, linear: Any, finish: Callable, options: dict) -> tuple:
    """Loop over the first half, then over the second; a tape may record the second loop.

    Args:
      known, linear: consts, carry and xs of either loop.
      finish: a function that parts the results of the second half into carry and ys.

    Returns:
      The carry and the ys of the first loop, and those of the second.
    """
    (consts, carry, xs), (linear_consts, linear_carry, linear_xs) = known, linear
    outer, half = hoist(half, len(consts))
    size = len(carry)

    def body(c, x):
        outs = evaluate(half.first, *consts, *c, *x)
        return outs[:size], (outs[size : half.count], outs[half.count :])

    new_carry, (ys, stacked) = scan(body, carry, xs, **options)
    fixed = numbered("in", consts) | numbered("outer", evaluate(outer, *consts))
    steps = numbered("fresh", stacked) | numbered("in", xs, len(consts) + size)
    steps |= numbered("out", ys, size)
    read = [address for address in steps if address in half.addresses]

    def linear_body(c, step):
        x, stacked = step
        at_hand = fixed | dict(zip(read, stacked, strict=True))
        residuals = [address.read(at_hand) for address in half.addresses]
        return finish(evaluate(half.second, *residuals, *linear_consts, *c, *x))

    linear_steps = linear_xs, [steps[address] for address in read]
    c_linear, y_linear = scan(linear_body, linear_carry, linear_steps, **options)
    return new_carry, ys, c_linear, y_linear


class StepBack(NamedTuple):
    """The transpose of a step: `(k, x, c_bar', y_bar) -> (k_bar, c_bar, x_bar)`."""

    sums: Sums
    moved: tuple[Flags, Flags]
    """Which of the `k_bar`, and which of the `c_bar` and `x_bar`, are not known to be zero."""
    avals: tuple[list, list]
    """Their types."""

    @classmethod
    def of(cls, loop: Loop, linear: Sequence, moving: Flags) -> StepBack:
        """`linear` says which of consts, carry and xs are linear, `moving` which ys have a
        cotangent.

        A carry that starts from a constant, usually zero, is linear in each step all the same.
        """
        in_body = (*linear[0], *[True] * loop.carry, *linear[2])
        all_moving = (*[True] * loop.carry, *moving)
        program, moved = transpose_jaxpr(loop.program, in_body, all_moving)
        avals, count = values.pick(loop.program.in_avals, in_body), sum(linear[0])
        kinds = ["const"] * (loop.consts - count) + ["step"] * (len(linear[2]) - sum(linear[2]))
        kinds += ["carry"] * loop.carry + ["bar"] * sum(moving)
        sums = sums_after(program, kinds, sum(moved[:count]), loop.options["length"])
        return cls(sums, (moved[:count], moved[count:]), (avals[:count], avals[count:]))

    def scan(self, loop: Loop, fixed: list, xs: list, c_bars: list, y_bars: list) -> tuple:
        """Loop from the last step to the first; return `k_bar`, `c_bar` and `x_bar`."""
        (k_moved, rest_moved), (k_avals, rest_avals), sums = self.moved, self.avals, self.sums

        def body(state, step):
            (c_bar, k_bars), (x, y_bar) = state, step
            outs = iter(evaluate(sums.body, *fixed, *x, *c_bar, *y_bar))
            k_bars = [values.add(k_bar, next(outs)) for k_bar in k_bars]
            bars = [*map(values.instantiate, values.with_zeros(outs, rest_moved, rest_avals))]
            return (bars[: loop.carry], k_bars), (bars[loop.carry :], list(outs))

        summed = map(values.tangent_aval, values.pick(k_avals, k_moved))
        starts = c_bars, [*map(values.zeros, sums.pick_stay([*summed]))]
        options = loop.options | {"reverse": not loop.options["reverse"]}
        (c_bars, k_bars), x_bars, later = sums.scan(body, starts, (xs, y_bars), options)
        k_bars = values.merge(later, k_bars, sums.stay)
        return values.with_zeros(k_bars, k_moved, k_avals), c_bars, x_bars


class ScanRule(Rule):
    """Derives the body, and scans again."""

    may_split = True

    def forward(self, primitive, primals, tangents, params):
        loop = Loop.of(params)
        moving, (program, moved) = loop.settle(jvp_jaxpr, values.moving(tangents))
        (consts, carry, xs), (k_dots, c_dots, x_dots) = loop.parts(primals), loop.parts(tangents)
        avals, count = loop.program.out_avals, len(moved)

        def body(pair, step):
            (c, c_dot), (x, x_dot) = pair, step
            outs = evaluate(program, *consts, *c, *x, *present(k_dots), *c_dot, *x_dot)
            outs, outs_dot = outs[:count], values.with_zeros(outs[count:], moved, avals)
            next_dot, y_dots = loop.carried(outs_dot, moving), present(outs_dot[loop.carry :])
            return (outs[: loop.carry], next_dot), (outs[loop.carry :], y_dots)

        start, steps = (carry, loop.carried(c_dots, moving)), (xs, present(x_dots))
        (carry, c_dot), (ys, y_dots) = scan(body, start, steps, **loop.options)
        outs = [*carry, *ys]
        return outs, loop.tangents(moving, moved, outs, c_dot, y_dots)

    def linearize(self, primitive, primals, tangents, params):
        loop = Loop.of(params)
        if keeps_few(loop):
            return self.linearize_keeping(primitive, primals, tangents, params)
        moving, derived = loop.settle(linearize_jaxpr, values.moving(tangents))
        first, second, moved = derived
        avals = loop.program.out_avals
        half = halves_of_step(first, second, moved, len(moved), loop.consts, loop.carry)
        k_dots, c_dots, x_dots = loop.parts(tangents)

        def finish(outs):
            outs_dot = values.with_zeros(outs, moved, avals)
            return loop.carried(outs_dot, moving), present(outs_dot[loop.carry :])

        known = loop.parts(primals)
        linear = present(k_dots), loop.carried(c_dots, moving), present(x_dots)
        carry, ys, c_dot, y_dots = two_loops(half, known, linear, finish, loop.options)
        outs = [*carry, *ys]
        return outs, loop.tangents(moving, moved, outs, c_dot, y_dots)

    def linearize_keeping(self, primitive, primals, tangents, params):
        """The same for a loop that keeps a few carries and stacks nothing."""
        loop = Loop.of(params)
        moving, (_, moved) = loop.settle(by_halves, values.moving(tangents))
        outs, (k_dots, c_dots, x_dots) = primitive.bind(*primals, **params), loop.parts(tangents)
        linear = present(k_dots), loop.carried(c_dots, moving), present(x_dots)
        dots = linear_scan(loop, moving, loop.parts(primals), linear)
        count = len(linear[1])
        return outs, loop.tangents(moving, moved, outs, dots[:count], dots[count:])

    def transpose(self, primitive, cotangents, inputs, params):
        loop, linear = Loop.of(params), values.linear(inputs)
        (consts, carry, xs), flags = loop.parts(inputs), loop.parts(linear)
        if not all(values.is_differentiable(values.aval_of(c)) for c in carry):
            raise NotLinear.at(primitive, inputs)
        c_bars, y_bars = cotangents[: loop.carry], cotangents[loop.carry :]
        back = StepBack.of(loop, flags, values.moving(y_bars))
        fixed, known_xs = values.part(consts, flags[0])[0], values.part(xs, flags[2])[0]
        bars = [*map(values.instantiate, c_bars)], present(y_bars)
        k_bars, c_bars, x_bars = back.scan(loop, fixed, known_xs, *bars)
        return [
            *values.merge([None] * len(fixed), k_bars, flags[0]),
            *[bar if flag else None for bar, flag in zip(c_bars, flags[1], strict=True)],
            *values.merge([None] * len(known_xs), x_bars, flags[2]),
        ]

    def depends(self, params, inputs):
        loop = Loop.of(params)
        flags, reached = loop.settle(_reached, tuple(inputs))
        return [*loop.parts(flags)[1], *reached[-1][loop.carry :]]

    def trim(self, params, wanted):
        """Drop a carry that only feeds itself, and the work for it."""
        loop = Loop.of(params)
        end = loop.carry
        key = loop.consts, loop.carry, tuple(wanted)
        body, read, carry = _trimmed(loop.program, *key)
        counts = [sum(part) for part in loop.parts(read)]
        kept = params | {"jaxpr": body} | _counted(*counts, sum(wanted[end:]))
        return Trimmed(kept, read, (*carry, *wanted[end:]))

    def split(self, primitive, inputs, owned, params):
        """Two loops: over the part that does not depend on the tape, and over the rest."""
        loop = Loop.of(params)

        def divide(program, linear):
            rest = [False] * (len(program.out_avals) - loop.carry)
            return divided(program, linear, (*loop.parts(linear)[1], *rest))

        linear, (first, second, moved) = loop.settle(divide, tuple(owned))
        pairs = zip(loop.parts(inputs), loop.parts(linear), strict=True)
        known, rest = zip(*(values.part(*pair) for pair in pairs), strict=True)
        size, outs = sum(moved[: loop.carry]), len(moved) - sum(moved)
        half = halves_of_step(first, second, moved, outs, len(known[0]), len(known[1]))

        def finish(outs):
            return outs[:size], outs[size:]

        carry, ys, c_linear, y_linear = two_loops(half, known, rest, finish, loop.options)
        return values.merge([*carry, *ys], [*c_linear, *y_linear], moved)


def _reached(program: ClosedJaxpr, flags: Flags) -> tuple[Flags]:
    return (reached_outputs(program, flags),)


@caches.by_program
def _trimmed(program: ClosedJaxpr, consts: int, carry: int, wanted: Flags) -> tuple:
    return trimmed_step(program, consts, wanted[:carry], wanted[carry:])


@functools.lru_cache(maxsize=256)
def _counted(consts: int, carry: int, xs: int, ys: int) -> dict:
    """The params that say how many inputs and outputs of each kind a loop has, as this JAX does."""
    number = jax.ShapeDtypeStruct((), bool)
    arrays = jax.ShapeDtypeStruct((1,), bool)

    def loop(ks, cs, xs):
        def body(cs, xs):
            new = functools.reduce(jnp.logical_xor, [*ks, *cs, *xs], True)
            return [new] * carry, [new] * ys

        return lax.scan(body, cs, xs, length=1)

    with jax.disable_jit(False):
        written = jax.make_jaxpr(loop)([number] * consts, [number] * carry, [arrays] * xs)
    (equation,) = (e for e in written.eqns if e.primitive is scan_p)
    return {name: p for name, p in equation.params.items() if name in COUNTS}


def present(tangents: Sequence) -> list:
    """The tangents that are not known to be zero."""
    return values.pick(tangents, values.moving(tangents))


call(scan_p, ScanRule())
