"""A loop that runs until a condition is met.

    c = f(c) while g(c)        forward:      (c, c_dot) = (f(c), J f(c) c_dot) while g(c)
                               linearize:    n, c = the loop, which counts its steps;
                                             then c_dot = the counted loop of the pairs

The linear half is the whole loop again; it reads nothing of the first one but the number of
steps.  Its transpose takes that many steps back (`counted_loops.py`).

JAX does not transpose a `while_loop`.  So a derivative binds a primitive of functrans that does the
same, and JAX asks this rule when it differentiates a derivative of functrans (`foreign.py`).

The condition may give an array: `jax.vmap` makes one if examples differ in the condition.  The loop
then goes on as long as one element is true, and an example keeps its value once its own element is
false.  So we bind a primitive, which takes such a condition; `lax.while_loop` does not.

Read next: `varying.py`, what a loop reads on several devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Primitive
from jax.extend.core.primitives import while_p
from jax.ref import AbstractRef

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.counted_loops import counted_loop
from functrans.control_flow.kept import counted_of
from functrans.control_flow.steps import as_carried, by_halves, paired, settled, started
from functrans.control_flow.varying import copied_as
from functrans.errors import operations
from functrans.forward import jvp_jaxpr
from functrans.programs.halves import divided, reached_outputs
from functrans.programs.live import either, reading, settle, taking, trimmed_step
from functrans.programs.loops import evaluate
from functrans.rules import NotLinear, Rule, Trimmed, call, low_params
from functrans.tracer import stage
from functrans.values import Flags

until_p = Primitive("while")
until_p.multiple_results = True


class Loop(NamedTuple):
    """The static part of a `while` equation, whose inputs are the constants of condition and body,
    and the carry."""

    primitives = while_p, until_p

    condition: ClosedJaxpr
    body: ClosedJaxpr
    asked: int
    consts: int

    @classmethod
    def of(cls, params: dict) -> Loop:
        # What binds a primitive of ours must not hold a "hi" primitive, which JAX would not lower.
        params = low_params(params)
        counts = params["cond_nconsts"], params["body_nconsts"]
        return cls(params["cond_jaxpr"], params["body_jaxpr"], *counts)

    def parts(self, inputs: Sequence) -> tuple[list, list, list]:
        """The constants of the condition, those of the body, and the carry."""
        end = self.asked + self.consts
        return list(inputs[: self.asked]), list(inputs[self.asked : end]), list(inputs[end:])

    def settle(self, derive: Callable, consts: Sequence, carry: Sequence) -> tuple[Flags, Any]:
        """Derive the body for all that moves in some step; return the flags of the carry too."""
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
        # JAX looks into its own loop alone for references, as kernels have.
        has_references = any(isinstance(values.typeof(x), AbstractRef) for x in [*asked, *consts])
        primitive = while_p if has_references else until_p
        return primitive.bind(*asked, *consts, *carry, **programs, **counts)

    def refuse_order(self) -> None:
        """Complain about an ordered effect, which would happen again out of order."""
        if any(str(effect).startswith("Ordered") for effect in self.body.effects):
            raise operations.ordered_effect()

    def counted(
        self, step: ClosedJaxpr, asked: list, consts: list, carry: list, linear: Flags = ()
    ) -> list:
        """The number of steps, and the last carry, without the linear part of the carry.

        Each of several examples has its own number.
        """
        linear = linear or (False,) * len(carry)
        types = values.pick(self.body.out_avals, linear)
        aval = self.condition.out_avals[0].update(dtype=np.dtype(np.int32), weak_type=False)

        def condition(asked, state):
            whole = values.merge(state[1:], map(values.zeros, types), linear)
            return evaluate(self.condition, *asked, *whole)

        def body(consts, state):
            n, *c = state
            return [n + 1, *evaluate(step, *consts, *c)[: len(c)]]

        return self.bind(condition, body, asked, consts, [values.full(0, aval), *carry])


def _staged(function: Callable, origin: ClosedJaxpr, consts: Any, carry: list) -> tuple:
    """The program of a function of constants and the carry, and all constants that it takes."""
    inputs, tree = jax.tree.flatten((consts, carry))
    info, avals = origin.jaxpr.debug_info, [*map(values.typeof, inputs)]
    program, _ = stage(lambda *xs: (function(*jax.tree.unflatten(tree, xs)), None), avals, info)
    jaxpr, inputs = jx.constants_first(program, inputs[: len(inputs) - len(carry)])
    return jx.with_constants(jaxpr, []), inputs


class WhileRule(Rule):
    """Derives the body, and loops again."""

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
            return [*map(as_carried, values.pick(c_dots, moving), dot_avals)]

        def condition(asked, pair):
            return evaluate(loop.condition, *asked, *pair[:count])

        def body(fixed, pair):
            (consts, k_dots), (c, c_dot) = fixed, (pair[:count], pair[count:])
            outs = evaluate(program, *consts, *c, *k_dots, *c_dot)
            return [*outs[:count], *carried(values.with_zeros(outs[count:], moved, avals))]

        fixed = consts, values.pick(k_dots, k_moving)
        outs = loop.bind(condition, body, asked, fixed, [*carry, *carried(c_dots)])
        return outs[:count], values.with_zeros(outs[count:], moving, avals)

    def linearize(self, primitive, primals, tangents, params):
        loop = Loop.of(params)
        loop.refuse_order()
        asked, consts, carry = loop.parts(primals)
        n, *outs = loop.counted(loop.body, asked, consts, carry)
        (_, k_dots, c_dots), avals = loop.parts(tangents), loop.body.out_avals
        body, consts = copied_as(values.typeof(n), loop.body, consts)
        k_dots = [*map(values.varying_as, k_dots, map(values.typeof, consts))]
        k = values.moving(k_dots)
        c = settled(by_halves, body, k, values.moving(c_dots))
        step = paired(body, (len(k), len(c)), (*k, *c), c, by_halves)
        consts = [*consts, *values.pick(k_dots, k)]
        carry = [*carry, *started(c_dots, c, avals)]
        wanted = (*[False] * len(c), *[True] * sum(c))
        y_dots = counted_loop(n, counted_of(step, len(consts), wanted), consts, carry)
        return outs, values.with_zeros(y_dots, c, avals)

    def transpose(self, primitive, cotangents, inputs, params):
        # Only a loop that takes no step, or never ends, is linear in its whole carry.
        raise NotLinear.at(primitive, inputs)

    def depends(self, params, inputs):
        loop = Loop.of(params)
        asked, consts, carry = loop.parts(inputs)
        moving, _ = loop.settle(lambda *key: (reached_outputs(*key),), consts, carry)
        reads = reached_outputs(loop.condition, (*asked, *moving))[0]
        return [True] * len(moving) if reads else moving

    def trim(self, params, wanted):
        """Drop a carry that only feeds itself; keep one that the condition reads."""
        condition, consts = params["cond_jaxpr"], params["body_nconsts"]
        asked, given = params["cond_nconsts"], tuple(wanted)
        condition, body, read, carry = _trimmed(params["body_jaxpr"], ref(condition), consts, given)
        programs = {"cond_jaxpr": condition, "body_jaxpr": body}
        counts = {"body_nconsts": sum(read[:consts])}
        return Trimmed(params | programs | counts, (*[True] * asked, *read), carry)

    def split(self, primitive, inputs, owned, params):
        """Run now the loop without the part that depends on the tape; record the whole loop."""
        loop = Loop.of(params)
        loop.refuse_order()
        _, consts_owned, carry_owned = loop.parts(owned)
        asked, consts, carry = loop.parts(inputs)
        count = len(consts)

        def divide(body, linear):
            return divided(body, linear, linear[count:])

        linear, (first, _, _) = loop.settle(divide, consts_owned, carry_owned)
        known, _ = values.part(consts, consts_owned)
        # The condition does not read the linear part.
        n, *outs = loop.counted(first, asked, known, values.part(carry, linear)[0], linear)
        step, consts = copied_as(values.typeof(n), loop.body, consts)
        whole = counted_of(step, len(consts), linear)
        return values.merge(outs, counted_loop(n, whole, consts, carry), linear)


@caches.by_program
def _trimmed(body: ClosedJaxpr, condition: Any, consts: int, wanted: Flags) -> tuple:
    """The condition and the body for the read part of the carry; flags of the body's constants
    and of the carry; and those of the carry alone."""
    question, asked = reading(condition(), (True,))
    others = len(asked) - len(wanted)
    step, read, carry = trimmed_step(body, consts, either([wanted, asked[others:]]), ())
    return taking(question, (*[True] * others, *carry)), step, read, carry


for primitive in Loop.primitives:
    call(primitive, WhileRule())
