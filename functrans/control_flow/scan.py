"""A loop with a carry: its derivative is a loop again, and its transpose runs backwards.

    (c', y) = f(k, c, x)        for each x in xs

    forward:      scan over pairs:          (c, c_dot), (x, x_dot)  ->  (c', c_dot'), (y, y_dot)
    linearize:    scan f, stacking what the linear half reads;  then scan the linear half
    transpose:    scan the transpose from the last x to the first, summing k_bar on the way;
                  a sum of products is one product, of what the steps have stacked

What moves in the carry is a fixed point: a tangent that enters it in one step is there in the next.

Read next: `custom.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, set_current_trace
from jax.extend.core.primitives import scan_p

from functrans import jaxpr as jx
from functrans.control_flow.halves import (
    Halves,
    hoist,
    located,
    merged,
    parted,
    postpone,
    split,
)
from functrans.control_flow.loops import evaluate, scan
from functrans.control_flow.sums import sums_after
from functrans.forward import jvp_jaxpr
from functrans.jaxpr import Linear
from functrans.linearize import linearize_jaxpr
from functrans.reverse import transpose_jaxpr
from functrans.rules import NotLinear, Rule, call, staged


class Loop(NamedTuple):
    """What is static in a `scan` equation, whose inputs are `consts, carry, xs`."""

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

    def split(self, inputs: Sequence) -> tuple[list, list, list]:
        end = self.consts + self.carry
        return list(inputs[: self.consts]), list(inputs[self.consts : end]), list(inputs[end:])

    def fixed_point(self, derive: Callable, tangents: Sequence) -> tuple:
        """Derive the body for all that moves in some step; return what moves, and the result."""
        moving = list(jx.moving(tangents))
        while True:
            *derived, gaps = derive(self.program, tuple(moving))
            _, before, _ = self.split(moving)
            after = [m or gap is None for m, gap in zip(before, gaps, strict=False)]
            if after == before:
                return moving, *derived, gaps
            moving[self.consts : self.consts + self.carry] = after

    def carried(self, tangents: Sequence, moving: Sequence[bool]) -> list:
        """The tangents of the carry, where a zero is written out if it moves in another step."""
        return [jx.instantiate(t) for t in compress(tangents, self.split(moving)[1])]


def loop_halves(first: Any, second: Any, count: int, consts: int, carry: int) -> Halves:
    """Both halves of a body; of a carry, the second finds no more than what was stacked."""
    inputs = [not consts <= i < consts + carry for i in range(len(first.in_avals))]
    return located(first, second, count, inputs, [i >= carry for i in range(count)])


def two_loops(half: Halves, known: Any, linear: Any, finish: Callable, options: dict) -> tuple:
    """Loop over the first half, then over the second, which may run on a tape.

    Args:
      known, linear: consts, carry and xs of either loop.
      finish: takes what the second half returns apart, in carry and ys.

    Returns:
      The carry and the ys of the first loop, and those of the second.
    """
    (consts, carry, xs), (linear_consts, linear_carry, linear_xs) = known, linear
    outer, half = hoist(half, len(consts))
    size = len(carry)
    later, made_of, half = postpone(half, size)

    def body(c, x):
        outs = evaluate(half.first, *consts, *c, *x)
        return outs[:size], (outs[size : half.count], outs[half.count :])

    new_carry, (ys, stacked) = scan(body, carry, xs, **options)
    fixed = {("in", i): x for i, x in enumerate(consts)}
    fixed |= {("outer", i): x for i, x in enumerate(evaluate(outer, *consts))}
    given = {("fresh", i): x for i, x in enumerate(stacked)}
    given |= {("in", i + len(consts) + size): x for i, x in enumerate(xs)}
    given |= {("out", i + size): y for i, y in enumerate(ys)}
    read = [source for source in given if source in half.sources or source in made_of]

    def linear_body(c, step):
        x, values = step
        at_hand = fixed | dict(zip(read, values, strict=True))
        made = evaluate(later, *(at_hand[source] for source in made_of))
        at_hand |= {("later", i): x for i, x in enumerate(made)}
        residuals = [at if kind == "value" else at_hand[kind, at] for kind, at in half.sources]
        return finish(evaluate(half.second, *residuals, *linear_consts, *c, *x))

    steps = linear_xs, [given[source] for source in read]
    c_linear, y_linear = scan(linear_body, linear_carry, steps, is_linear=True, **options)
    return new_carry, ys, c_linear, y_linear


class ScanRule(Rule):
    """Derive the body, and scan again."""

    def forward(self, primitive, primals, tangents, params):
        loop = Loop.of(params)
        moving, program, gaps = loop.fixed_point(jvp_jaxpr, tangents)
        (consts, carry, xs), (k_dots, c_dots, x_dots) = loop.split(primals), loop.split(tangents)

        def body(pair, step):
            (c, c_dot), (x, x_dot) = pair, step
            outs = evaluate(program, *consts, *c, *x, *jx.present(k_dots), *c_dot, *x_dot)
            outs, outs_dot = outs[: len(gaps)], jx.fill(gaps, outs[len(gaps) :])
            next_dot = loop.carried(outs_dot, moving)
            return (outs[: loop.carry], next_dot), (
                outs[loop.carry :],
                jx.present(outs_dot[loop.carry :]),
            )

        start = carry, loop.carried(c_dots, moving)
        (carry, c_dot), (ys, y_dots) = scan(body, start, (xs, jx.present(x_dots)), **loop.options)
        return [*carry, *ys], self._tangents(loop, moving, gaps, [*carry, *ys], c_dot, y_dots)

    def linearize(self, primitive, primals, tangents, params):
        loop = Loop.of(params)
        moving, first, second, gaps = loop.fixed_point(linearize_jaxpr, tangents)
        half = loop_halves(first, second, len(gaps), loop.consts, loop.carry)
        k_dots, c_dots, x_dots = loop.split(tangents)

        def finish(outs):
            outs_dot = jx.fill(gaps, outs)
            return loop.carried(outs_dot, moving), jx.present(outs_dot[loop.carry :])

        known = loop.split(primals)
        linear = jx.present(k_dots), loop.carried(c_dots, moving), jx.present(x_dots)
        carry, ys, c_dot, y_dots = two_loops(half, known, linear, finish, loop.options)
        return [*carry, *ys], self._tangents(loop, moving, gaps, [*carry, *ys], c_dot, y_dots)

    def _tangents(self, loop, moving, gaps, outs, c_dot, y_dots):
        is_moving = [*loop.split(moving)[1], *(gap is None for gap in gaps[loop.carry :])]
        return jx.fill(jx.gaps_for([jx.typeof(out) for out in outs], is_moving), [*c_dot, *y_dots])

    def transpose(self, primitive, cotangents, inputs, params):
        loop = Loop.of(params)
        linear = [type(x) is Linear for x in inputs]
        consts, carry, xs = loop.split(inputs)
        if not all(
            jx.is_differentiable(c.aval if type(c) is Linear else jx.typeof(c)) for c in carry
        ):
            raise NotLinear.at(primitive)
        # A carry that starts from a constant, as a rule zero, is linear all the same in each step.
        in_consts, _, in_xs = loop.split(linear)
        in_body = (*in_consts, *[True] * loop.carry, *in_xs)
        c_bars, y_bars = cotangents[: loop.carry], cotangents[loop.carry :]
        moving = (*[True] * loop.carry, *jx.moving(y_bars))
        program, gaps = transpose_jaxpr(loop.program, in_body, moving)
        k_gaps, gaps = gaps[: sum(in_consts)], gaps[sum(in_consts) :]
        fixed, x_known, y_bars = _known(consts), _known(xs), jx.present(y_bars)
        kinds = ["const"] * len(fixed) + ["step"] * len(x_known)
        kinds += ["carry"] * loop.carry + ["step"] * len(y_bars)
        sums = sums_after(program, kinds, k_gaps.count(None))

        def body(state, step):
            (c_bar, k_bars), (x, y_bar) = state, step
            outs = iter(evaluate(sums.body, *fixed, *x, *c_bar, *y_bar))
            k_bars = [jx.add(k_bar, next(outs)) for k_bar in k_bars]
            x_bars = list(map(jx.instantiate, jx.fill(gaps, outs)))
            return (x_bars[: loop.carry], k_bars), (x_bars[loop.carry :], list(outs))

        k_avals = [k.aval.to_tangent_aval() for k in consts if type(k) is Linear]
        summed = [aval for aval, gap in zip(k_avals, k_gaps, strict=True) if gap is None]
        start = list(map(jx.instantiate, c_bars)), list(map(jx.zeros, compress(summed, sums.stay)))
        options = loop.options | {"reverse": not loop.options["reverse"]}
        (c_bar, k_bars), (x_bars, new) = scan(body, start, (x_known, y_bars), **options)
        k_bars = merged(sums.later([*x_known, *y_bars, *new]), k_bars, sums.stay)
        rest = iter([*jx.fill(k_gaps, k_bars), *c_bar, *x_bars])
        pulled = [next(rest) if is_linear else None for is_linear in in_body]
        return [
            x_bar if is_linear else None for x_bar, is_linear in zip(pulled, linear, strict=True)
        ]


def _known(values: Sequence) -> list:
    return [x for x in values if type(x) is not Linear]


def _mixed(trace, primitive, inputs, params):
    """On a tape, run what a loop does beside its linear work now."""
    if not trace.is_linear:
        return None
    loop, linear = Loop.of(params), list(map(trace.owns, inputs))
    carry = slice(loop.consts, loop.consts + loop.carry)
    while True:
        forced = (*linear[carry], *[False] * (len(loop.program.out_avals) - loop.carry))
        first, second, found = split(loop.program, tuple(linear), forced)
        if list(found[: loop.carry]) == linear[carry]:
            break
        linear[carry] = found[: loop.carry]
    if all(found):
        return None
    parts = [parted(*pair) for pair in zip(loop.split(inputs), loop.split(linear), strict=True)]
    known, rest = zip(*parts, strict=True)
    size = sum(linear[carry])
    half = loop_halves(first, second, len(found) - sum(found), len(known[0]), len(known[1]))
    with set_current_trace(trace):
        outs = two_loops(half, known, rest, lambda outs: (outs[:size], outs[size:]), loop.options)
    return merged([*outs[0], *outs[1]], [*outs[2], *outs[3]], found)


call(scan_p, ScanRule())
staged(scan_p, _mixed)
