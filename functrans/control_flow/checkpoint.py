"""`jax.checkpoint`: keep the inputs of a function, and compute the rest again where it is needed.

    linearize f at x:    y = f(x) now,    and later  (x, x_dot) -> y_dot,  which evaluates f again

The linear half is one equation of the same primitive. It reads no residuals but `x`; its transpose
evaluates what is not linear in it first, and that is the recomputation.

Read next: `custom.py`.
"""

from __future__ import annotations

from itertools import compress
from typing import Any

from jax.extend.core import ClosedJaxpr
from jax.extend.core.primitives import remat_p

from functrans import jaxpr as jx
from functrans.jaxpr import Linear
from functrans.linearize import jvp_jaxpr, linearize_jaxpr
from functrans.reverse import transpose_jaxpr
from functrans.rules import Rule, call
from functrans.tracer import stage


def bind(program: ClosedJaxpr, args: list, params: dict) -> list:
    """Evaluate a derived jaxpr in place of the one that the equation with these params carries."""
    jaxpr, inputs = jx.opened(program, args)
    return remat_p.bind(*inputs, **{**params, "jaxpr": jaxpr, "differentiated": True})


@jx.cached_by_program
def tangents_alone(program: ClosedJaxpr, moving: tuple[bool, ...]) -> tuple[ClosedJaxpr, list]:
    """The jaxpr of `(x, x_dot) -> y_dot`; and the gaps of `y_dot`, which it fills.

    Its equations are linear in `x_dot` or do not read it, so that they can be transposed.
    """
    first, second, gaps = linearize_jaxpr(program, moving)
    count = len(moving)

    def pushforward(*inputs):
        outs = jx.evaluate(first, *inputs[:count])
        return jx.evaluate(second, *outs[len(gaps) :], *inputs[count:])

    tangent_avals = [a.to_tangent_aval() for a in compress(program.in_avals, moving)]
    avals = [*program.in_avals, *tangent_avals]
    return stage(pushforward, avals, program.jaxpr.debug_info), gaps


# The equation carries an open jaxpr; what derives from it hangs on this closed one.
closed_of = jx.cached_by_program(lambda jaxpr: jx.with_constants(jaxpr, []))


class CheckpointRule(Rule):
    """Derive the jaxpr that is inside, and bind the result as a checkpoint again."""

    def forward(self, primitive, primals, tangents, params):
        program, gaps = jvp_jaxpr(closed_of(params["jaxpr"]), jx.moving(tangents))
        outs = bind(program, [*primals, *jx.present(tangents)], params)
        return outs[: len(gaps)], jx.fill(gaps, outs[len(gaps) :])

    def linearize(self, primitive, primals, tangents, params):
        program, gaps = tangents_alone(closed_of(params["jaxpr"]), jx.moving(tangents))
        outs = primitive.bind(*primals, **params)
        return outs, jx.fill(gaps, bind(program, [*primals, *jx.present(tangents)], params))

    def transpose(self, primitive, cotangents, inputs, params):
        linear = tuple(type(x) is Linear for x in inputs)
        moving = jx.moving(cotangents)
        program, gaps = transpose_jaxpr(closed_of(params["jaxpr"]), linear, moving)
        known = compress(inputs, [not is_linear for is_linear in linear])
        x_bars: Any = bind(program, [*known, *jx.present(cotangents)], params)
        x_bars = iter(jx.fill(gaps, x_bars))
        return [next(x_bars) if is_linear else None for is_linear in linear]


call(remat_p, CheckpointRule())
