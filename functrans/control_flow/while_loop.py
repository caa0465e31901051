"""A loop that runs until a condition is met: it has a forward derivative only.

    c = f(c) while g(c)        forward:    (c, c_dot) = (f(c), J f(c) c_dot) while g(c)

What is linear in the tangents is the whole loop again, which runs a second time.  Its transpose
would have to run the steps backwards, and how many there are, and what each of them needs, is not
known before: an array for that has no size.

Read next: `checkpoint.py`, a function to be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.extend.core.primitives import while_p

from functrans import jaxpr as jx
from functrans import values
from functrans.errors import checks
from functrans.forward import jvp_jaxpr
from functrans.programs.halves import divided, reached_outputs, settle
from functrans.rules import Rule, call
from functrans.values import Flags


class Loop(NamedTuple):
    """What is static in a `while` equation; its inputs are the constants of condition and body,
    and the carry."""

    condition: ClosedJaxpr
    body: ClosedJaxpr
    asked: int
    consts: int

    @classmethod
    def of(cls, params: dict) -> Loop:
        counts = params["cond_nconsts"], params["body_nconsts"]
        return cls(params["cond_jaxpr"], params["body_jaxpr"], *counts)

    def parts(self, inputs: Sequence) -> tuple[list, list, list]:
        """The constants of the condition, those of the body, and the carry."""
        end = self.asked + self.consts
        return list(inputs[: self.asked]), list(inputs[self.asked : end]), list(inputs[end:])

    def settle(self, derive: Callable, consts: Sequence, carry: Sequence) -> tuple[Flags, Any]:
        """Derive the body for all that moves in some step; return the flags of the carry, too."""
        consts = tuple(consts)

        def feedback(moving, moved):
            return tuple([a or b for a, b in zip(moving, moved, strict=True)])

        return settle(lambda flags: derive(self.body, (*consts, *flags)), tuple(carry), feedback)


class WhileRule(Rule):
    """Derive the body, and loop again."""

    may_split = True

    def forward(self, primitive, primals, tangents, params):
        loop = Loop.of(params)
        asked, consts, carry = loop.parts(primals)
        _, k_dots, c_dots = loop.parts(tangents)
        k_moving = values.moving(k_dots)
        moving, (program, moved) = loop.settle(jvp_jaxpr, k_moving, values.moving(c_dots))
        k_dots, avals = values.pick(k_dots, k_moving), loop.body.out_avals

        def carried(c_dots):
            return [values.instantiate(c_dot) for c_dot in values.pick(c_dots, moving)]

        def condition(pair):
            return jx.evaluate(loop.condition, *asked, *pair[0])[0]

        def body(pair):
            c, c_dot = pair
            outs: Any = jx.evaluate(program, *consts, *c, *k_dots, *c_dot)
            return outs[: len(c)], carried(values.with_zeros(outs[len(c) :], moved, avals))

        outs, outs_dot = lax.while_loop(condition, body, (carry, carried(c_dots)))
        return outs, values.with_zeros(outs_dot, moving, [values.typeof(out) for out in outs])

    def transpose(self, primitive, cotangents, inputs, params):
        raise checks.no_reverse(
            "a while_loop, or a fori_loop whose bounds are not Python integers,",
            "Use jax.lax.scan, or a fori_loop between Python integers, with a jax.lax.cond inside "
            "where it may end early; or forward mode (jvp, jacfwd).",
        )

    def depends(self, params, inputs):
        loop = Loop.of(params)
        asked, consts, carry = loop.parts(inputs)
        moving, _ = loop.settle(lambda *key: (reached_outputs(*key),), consts, carry)
        reads = reached_outputs(loop.condition, (*asked, *moving))[0]
        return [True] * len(moving) if reads else moving

    def split(self, primitive, inputs, owned, params):
        """The loop without what depends on the tape runs now; what does is the whole loop again."""
        loop = Loop.of(params)
        _, consts_owned, carry_owned = loop.parts(owned)
        asked, consts, carry = loop.parts(inputs)
        count = len(consts)

        def divide(body, linear):
            return divided(body, linear, linear[count:])

        linear, (first, _, _) = loop.settle(divide, consts_owned, carry_owned)
        consts, _ = values.part(consts, consts_owned)
        carry, _ = values.part(carry, linear)
        # The condition does not read what is linear: zeros stand for it.
        types = values.pick(loop.body.out_avals, linear)

        def condition(c):
            whole = values.merge(c, map(values.zeros, types), linear)
            return jx.evaluate(loop.condition, *asked, *whole)[0]

        def body(c):
            return jx.evaluate(first, *consts, *c)[: len(c)]

        outs = lax.while_loop(condition, body, carry)
        written = jx.current_trace().write(primitive, inputs, params)
        return values.merge(outs, values.pick(written, linear), linear)


call(while_p, WhileRule())
