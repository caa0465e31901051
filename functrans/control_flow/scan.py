"""A loop with a carry: its derivative is a loop again, and its transpose runs backwards.

    (c', y) = f(k, c, x)        for each x in xs

    forward:      scan over pairs:          (c, c_dot), (x, x_dot)  ->  (c', c_dot'), (y, y_dot)
    linearize:    scan f, stacking what the linear half reads;  then scan the linear half
    transpose:    scan the transpose from the last x to the first, summing k_bar on the way

What moves in the carry is a fixed point: a tangent that enters it in one step is there in the next.

Read next: `custom.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import NamedTuple

from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.extend.core.primitives import scan_p

from functrans import jaxpr as jx
from functrans.control_flow.halves import Halves, halves, hoist
from functrans.jaxpr import Linear
from functrans.linearize import jvp_jaxpr
from functrans.reverse import transpose_jaxpr
from functrans.rules import NotLinear, Rule, call


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

    def halves(self, program: ClosedJaxpr, moving: tuple[bool, ...]) -> tuple[Halves, list]:
        """Both halves of the body; of a carry, the second finds no more than what was stacked."""
        inputs = [not self.consts <= i < self.consts + self.carry for i in range(len(moving))]
        outputs = [i >= self.carry for i in range(len(program.out_avals))]
        half = halves(program, moving, tuple(inputs), tuple(outputs))
        return half, half.gaps

    def carried(self, tangents: Sequence, moving: Sequence[bool]) -> list:
        """The tangents of the carry, where a zero is written out if it moves in another step."""
        return [jx.instantiate(t) for t in compress(tangents, self.split(moving)[1])]


class ScanRule(Rule):
    """Derive the body, and scan again."""

    def forward(self, primitive, primals, tangents, params):
        loop = Loop.of(params)
        moving, program, gaps = loop.fixed_point(jvp_jaxpr, tangents)
        (consts, carry, xs), (k_dots, c_dots, x_dots) = loop.split(primals), loop.split(tangents)

        def body(pair, step):
            (c, c_dot), (x, x_dot) = pair, step
            outs = jx.evaluate(program, *consts, *c, *x, *jx.present(k_dots), *c_dot, *x_dot)
            outs, outs_dot = outs[: len(gaps)], jx.fill(gaps, outs[len(gaps) :])
            next_dot = loop.carried(outs_dot, moving)
            return (outs[: loop.carry], next_dot), (
                outs[loop.carry :],
                jx.present(outs_dot[loop.carry :]),
            )

        start = carry, loop.carried(c_dots, moving)
        (carry, c_dot), (ys, y_dots) = lax.scan(
            body, start, (xs, jx.present(x_dots)), **loop.options
        )
        return [*carry, *ys], self._tangents(loop, moving, gaps, [*carry, *ys], c_dot, y_dots)

    def linearize(self, primitive, primals, tangents, params):
        loop = Loop.of(params)
        moving, half, gaps = loop.fixed_point(loop.halves, tangents)
        outer, half = hoist(half, loop.consts)
        (consts, carry, xs), (k_dots, c_dots, x_dots) = loop.split(primals), loop.split(tangents)

        def primal_body(c, x):
            outs = jx.evaluate(half.first, *consts, *c, *x)
            ys, residuals = outs[loop.carry : len(gaps)], outs[len(gaps) :]
            return outs[: loop.carry], (ys, residuals)

        carry, (ys, stacked) = lax.scan(primal_body, carry, xs, **loop.options)
        fixed = {("in", i): x for i, x in enumerate(consts)}
        fixed |= {("outer", i): x for i, x in enumerate(jx.evaluate(outer, *consts))}
        given = {("fresh", i): x for i, x in enumerate(stacked)}
        given |= {("in", i + loop.consts + loop.carry): x for i, x in enumerate(xs)}
        given |= {("out", i + loop.carry): y for i, y in enumerate(ys)}
        read = sorted({source for source in half.sources if source in given})

        def linear_body(c_dot, step):
            x_dot, values = step
            known = fixed | dict(zip(read, values, strict=True))
            residuals = [s[1] if s[0] == "value" else known[s] for s in half.sources]
            outs = jx.evaluate(half.second, *residuals, *jx.present(k_dots), *c_dot, *x_dot)
            outs_dot = jx.fill(gaps, outs)
            return loop.carried(outs_dot, moving), jx.present(outs_dot[loop.carry :])

        start = loop.carried(c_dots, moving)
        steps = jx.present(x_dots), [given[source] for source in read]
        c_dot, y_dots = lax.scan(linear_body, start, steps, **loop.options)
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
        count = sum(in_consts)

        def known(values):
            return [x for x in values if type(x) is not Linear]

        def body(sums, step):
            (c_bar, k_bars), (x, y_bar) = sums, step
            pulled = jx.evaluate(program, *known(consts), *x, *c_bar, *y_bar)
            x_bars = list(map(jx.instantiate, jx.fill(gaps, pulled)))
            k_bars = [jx.add(k, new) for k, new in zip(k_bars, x_bars, strict=False)]
            return (x_bars[count : count + loop.carry], k_bars), x_bars[count + loop.carry :]

        zeros = [jx.zeros(k.aval.to_tangent_aval()) for k in consts if type(k) is Linear]
        start = [*map(jx.instantiate, c_bars)], zeros
        options = loop.options | {"reverse": not loop.options["reverse"]}
        steps = known(xs), jx.present(y_bars)
        (c_bar, k_bars), x_bars = lax.scan(body, start, steps, **options)
        rest = iter([*k_bars, *c_bar, *x_bars])
        pulled = [next(rest) if is_linear else None for is_linear in in_body]
        return [
            x_bar if is_linear else None for x_bar, is_linear in zip(pulled, linear, strict=True)
        ]


call(scan_p, ScanRule())
