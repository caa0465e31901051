"""A loop that runs until a condition is met: it has a forward derivative only.

    c = f(c) while g(c)        forward:    (c, c_dot) = (f(c), J f(c) c_dot) while g(c)

What is linear in the tangents is the whole loop again, which runs a second time.  Its transpose
would have to run the steps backwards, and how many there are, and what each of them needs, is not
known before: an array for that has no size.

The condition may give an array: `jax.vmap` makes one of a condition that differs between examples.
The loop then goes on as long as one of them is true, and an example whose own is false stays as it
is.  So a loop is bound again as the primitive, which takes such a condition; `lax.while_loop` does
not.

Read next: `checkpoint.py`, a function to be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import jax
from jax.extend.core import ClosedJaxpr
from jax.extend.core.primitives import while_p

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.errors import operations
from functrans.forward import jvp_jaxpr
from functrans.programs.halves import divided, reached_outputs
from functrans.programs.live import either, reading, settle, taking, trimmed_step
from functrans.programs.loops import evaluate
from functrans.rules import Rule, Trimmed, call
from functrans.tracer import stage
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
            return either([moving, moved])

        return settle(lambda flags: derive(self.body, (*consts, *flags)), tuple(carry), feedback)

    def bind(
        self, condition: Callable, body: Callable, asked: list, consts: Any, carry: list
    ) -> list:
        """Loop with another condition and body: functions of their constants and the carry."""
        condition_of, asked = _staged(condition, self.condition, asked, carry)
        body_of, consts = _staged(body, self.body, consts, carry)
        counts = {"cond_nconsts": len(asked), "body_nconsts": len(consts)}
        programs = {"cond_jaxpr": condition_of, "body_jaxpr": body_of}
        return while_p.bind(*asked, *consts, *carry, **programs, **counts)


def _staged(function: Callable, origin: ClosedJaxpr, consts: Any, carry: list) -> tuple:
    """The program of a function of constants and the carry; and all constants that it takes."""
    inputs, tree = jax.tree.flatten((consts, carry))
    info, avals = origin.jaxpr.debug_info, [*map(values.typeof, inputs)]
    program, _ = stage(lambda *xs: (function(*jax.tree.unflatten(tree, xs)), None), avals, info)
    jaxpr, inputs = jx.constants_first(program, inputs[: len(inputs) - len(carry)])
    return jx.with_constants(jaxpr, []), inputs


def _as_carried(x: Any, aval: Any) -> Any:
    """A tangent, with the type that it has in every step."""
    x = values.instantiate(x)
    return x if values.typeof(x).weak_type == aval.weak_type else values.cast(x, aval)


class WhileRule(Rule):
    """Derive the body, and loop again."""

    may_split = True

    def forward(self, primitive, primals, tangents, params):
        loop = Loop.of(params)
        asked, consts, carry = loop.parts(primals)
        _, k_dots, c_dots = loop.parts(tangents)
        k_moving = values.moving(k_dots)
        moving, (program, moved) = loop.settle(jvp_jaxpr, k_moving, values.moving(c_dots))
        avals, count = loop.body.out_avals, len(carry)
        dot_avals = [*map(values.tangent_aval, values.pick(avals, moving))]

        def carried(c_dots):
            return [*map(_as_carried, values.pick(c_dots, moving), dot_avals)]

        def condition(asked, pair):
            return evaluate(loop.condition, *asked, *pair[:count])

        def body(fixed, pair):
            (consts, k_dots), (c, c_dot) = fixed, (pair[:count], pair[count:])
            outs = evaluate(program, *consts, *c, *k_dots, *c_dot)
            return [*outs[:count], *carried(values.with_zeros(outs[count:], moved, avals))]

        fixed = consts, values.pick(k_dots, k_moving)
        outs = loop.bind(condition, body, asked, fixed, [*carry, *carried(c_dots)])
        return outs[:count], values.with_zeros(outs[count:], moving, avals)

    def transpose(self, primitive, cotangents, inputs, params):
        raise operations.no_reverse(
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

    def trim(self, params, wanted):
        """A carry that only feeds itself goes; one that the condition reads stays."""
        condition, consts = params["cond_jaxpr"], params["body_nconsts"]
        asked, given = params["cond_nconsts"], tuple(wanted)
        condition, body, read, carry = _trimmed(params["body_jaxpr"], ref(condition), consts, given)
        programs = {"cond_jaxpr": condition, "body_jaxpr": body}
        counts = {"body_nconsts": sum(read[:consts])}
        return Trimmed(params | programs | counts, (*[True] * asked, *read), carry)

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

        def condition(asked, c):
            whole = values.merge(c, map(values.zeros, types), linear)
            return evaluate(loop.condition, *asked, *whole)

        def body(consts, c):
            return evaluate(first, *consts, *c)[: len(c)]

        outs = loop.bind(condition, body, asked, consts, carry)
        written = jx.current_trace().write(primitive, inputs, params)
        return values.merge(outs, values.pick(written, linear), linear)


@caches.by_program
def _trimmed(body: ClosedJaxpr, condition: Any, consts: int, wanted: Flags) -> tuple:
    """The condition and the body for the carry that is read; the flags of the constants of the body
    and of the carry; and those of the carry alone."""
    question, asked = reading(condition(), (True,))
    others = len(asked) - len(wanted)
    step, read, carry = trimmed_step(body, consts, either([wanted, asked[others:]]), ())
    return taking(question, (*[True] * others, *carry)), step, read, carry


call(while_p, WhileRule())
