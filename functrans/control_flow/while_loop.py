"""A loop that runs until a condition is met: it has a forward derivative only.

    c = f(c) while g(c)        forward:    (c, c_dot) = (f(c), J f(c) c_dot) while g(c)

What is linear in the tangents is the whole loop again, which runs a second time.  Its transpose
would have to run the steps backwards, and how many there are, and what each of them needs, is not
known before: an array for that has no size.

Read next: `scan.py`, the loop with a known number of steps.
"""

from __future__ import annotations

from itertools import compress
from typing import Any

from jax import lax
from jax.extend.core import set_current_trace
from jax.extend.core.primitives import while_p

from functrans import jaxpr as jx
from functrans.control_flow.halves import merged, parted, split
from functrans.errors import checks
from functrans.forward import jvp_jaxpr
from functrans.rules import Rule, call, staged


class WhileRule(Rule):
    """Derive the body, and loop again."""

    def forward(self, primitive, primals, tangents, params):
        count, total = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        asked, consts, carry = primals[:count], primals[count:total], primals[total:]
        k_dots, c_dots = tangents[count:total], tangents[total:]
        # What moves is a fixed point: a tangent that enters the carry in one step is there in the
        # next.
        moving: tuple[bool, ...] = jx.moving(c_dots)
        while True:
            program, gaps = jvp_jaxpr(params["body_jaxpr"], (*jx.moving(k_dots), *moving))
            after = tuple(m or gap is None for m, gap in zip(moving, gaps, strict=True))
            if after == moving:
                break
            moving = after

        def carried(c_dots):
            pairs = zip(c_dots, moving, strict=True)
            return [jx.instantiate(c_dot) for c_dot, moves in pairs if moves]

        def condition(pair):
            return jx.evaluate(params["cond_jaxpr"], *asked, *pair[0])[0]

        def body(pair):
            c, c_dot = pair
            outs: Any = jx.evaluate(program, *consts, *c, *jx.present(k_dots), *c_dot)
            return outs[: len(c)], carried(jx.fill(gaps, outs[len(c) :]))

        outs, outs_dot = lax.while_loop(condition, body, (carry, carried(c_dots)))
        return outs, jx.fill(jx.gaps_for([jx.typeof(out) for out in outs], moving), outs_dot)

    def transpose(self, primitive, cotangents, inputs, params):
        raise checks.no_reverse(
            "a while_loop, or a fori_loop whose bounds are not Python integers,",
            "Use jax.lax.scan, or a fori_loop between Python integers, with a jax.lax.cond inside "
            "where it may end early; or forward mode (jvp, jacfwd).",
        )


def _mixed(trace, primitive, inputs, params):
    """On a tape, compute what does not depend on it now; what does is the whole loop again."""
    if not trace.is_linear:
        return None
    count, start = params["cond_nconsts"], params["body_nconsts"]
    linear = list(map(trace.owns, inputs))[count:]
    while True:
        first, _, found = split(params["body_jaxpr"], tuple(linear), tuple(linear[start:]))
        if list(found) == linear[start:]:
            break
        linear[start:] = found
    if all(found):
        return None
    known, size = parted(inputs[count:], linear)[0], len(found) - sum(found)
    consts, carry = known[: len(known) - size], known[len(known) - size :]
    # The condition does not read what is linear, of which zeros take the places.
    types = list(compress(params["cond_jaxpr"].in_avals[count:], found))

    def condition(c):
        values = merged(c, map(jx.zeros, types), found)
        return jx.evaluate(params["cond_jaxpr"], *inputs[:count], *values)[0]

    with set_current_trace(trace):
        outs = lax.while_loop(condition, lambda c: jx.evaluate(first, *consts, *c)[:size], carry)
    written = trace.write(primitive, inputs, params)
    return merged(outs, compress(written, found), found)


call(while_p, WhileRule())
staged(while_p, _mixed)
