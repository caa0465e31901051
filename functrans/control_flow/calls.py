"""Calls that matter to other transforms, and say nothing about derivatives.

    y = f(x)          forward, linearize:    those of the equations of f, in the place of the call

They are calls of a plain function (`closed_call`), of one that a compiler may replace
(`composite`), and of one that `jax.vmap` batches by the user's rule (`custom_vmap`).  We push the
last forward with its rule, so that the rule batches the tangents too.

Read next: `custom.py`, derivatives that a user gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import linear_call
from jax.extend.core.primitives import call_p, closed_call_p

from functrans import jaxpr as jx
from functrans import values
from functrans.derivatives.common import emitted, when_met, without_name
from functrans.forward import forward, jvp_jaxpr
from functrans.linearize import LinearizeTrace
from functrans.programs.halves import reached_outputs
from functrans.reverse import transpose
from functrans.rules import NotLinear, Rule, call
from functrans.values import Linear, Zero


def transpose_inside(program: Any, inputs: Sequence, cotangents: Sequence) -> list:
    """Transposes the equations of a call that is linear in some of its inputs."""
    x_bars = iter(transpose(*jx.constants_first(program, inputs), cotangents))
    return [next(x_bars) if type(x) is Linear else None for x in inputs]


def pushed(function: Callable, primals: Sequence, tangents: Sequence) -> tuple[list, list]:
    """Run a function of flat lists on pairs, in the current trace."""
    outs, tangents_out, _ = forward(lambda *xs: (function(*xs), []), primals, tangents)
    return outs, tangents_out


def recorded(function: Callable, primals: Sequence, tangents: Sequence) -> tuple[list, list]:
    """Run a function of flat lists on pairs, and record the tangents on the current tape."""
    trace = LinearizeTrace(jx.current_trace())
    outs, tangents_out, _ = trace.run_function(lambda *xs: (function(*xs), []), primals, tangents)
    return outs, tangents_out


class InlinedRule(Rule):
    """Differentiates the equations inside; `names` are those of the param with the jaxpr."""

    may_split = True

    def __init__(self, *names: str):
        self.names = names

    def function(self, params):
        if "subfuns" in params:  # a call of a Python function
            return params["subfuns"][0].call_wrapped
        program = self.program(params)
        return lambda *xs: jx.evaluate(program, *xs)

    def program(self, params: dict) -> Any:
        found = next(params[name] for name in self.names if name in params)
        return found if hasattr(found, "consts") else jx.with_constants(found, [])

    def forward(self, primitive, primals, tangents, params):
        return pushed(self.function(params), primals, tangents)

    def linearize(self, primitive, primals, tangents, params):
        return recorded(self.function(params), primals, tangents)

    def transpose(self, primitive, cotangents, inputs, params):
        return transpose_inside(self.program(params), inputs, cotangents)

    def depends(self, params, inputs):
        return reached_outputs(jx.closed_of(self.program(params).jaxpr), tuple(inputs))

    def split(self, primitive, inputs, owned, params):
        return jx.evaluate(self.program(params), *inputs)


class CustomVmapRule(InlinedRule):
    """In forward mode the derivative of the user's rule batches primals and tangents together."""

    def forward(self, primitive, primals, tangents, params):
        moving, count = values.moving(tangents), len(primals)
        program, moved = jvp_jaxpr(self.program(params), moving)

        @custom_vmap
        def pushforward(*inputs):
            return jx.evaluate(program, *inputs)

        @pushforward.def_vmap
        def batched_pushforward(size, batched, *inputs):
            # A primal and its tangent share one flag: if one of them has the axis, both get it.
            still = [False] * (count - sum(moving))
            dots_batched = values.merge(still, batched[count:], moving)
            flags = [a or b for a, b in zip(batched[:count], dots_batched, strict=True)]
            wanted = [*flags, *values.pick(flags, moving)]
            xs = [
                jnp.broadcast_to(x, (size, *jnp.shape(x))) if want and not has else x
                for x, has, want in zip(inputs, batched, wanted, strict=True)
            ]
            out_flags: list = []  # `pushed` gives back arrays alone

            def run(*xs):
                args, batched = (jax.tree.unflatten(params["in_tree"], v) for v in (xs, flags))
                outs, out_batched = params["rule"](size, batched, *args)
                out_flags.extend(jax.tree.leaves(out_batched))
                return jax.tree.leaves(outs)

            avals = [jax.typeof(x) for x in xs[:count]]
            tangents = values.with_zeros(xs[count:], moving, avals)
            outs, outs_dot = pushed(run, xs[:count], tangents)
            outs_dot = map(values.instantiate, values.pick(outs_dot, moved))
            return [*outs, *outs_dot], [*out_flags, *values.pick(out_flags, moved)]

        results = pushforward(*primals, *values.pick(tangents, moving))
        outs, outs_dot = results[: len(moved)], results[len(moved) :]
        return outs, values.with_zeros(outs_dot, moved, [jax.typeof(out) for out in outs])


class LinearCallRule(Rule):
    """`y = A(r) x`, for which the user gives `A(r)^T` too: `y_dot = A x_dot + (A_dot) x`."""

    def parts(self, params, inputs):
        """The values that the callee closes over, the residuals, and the linear inputs."""
        end = params["num_callee_consts"] + params["num_res"]
        return list(inputs[:end]), list(inputs[end:])

    def forward(self, primitive, primals, tangents, params):
        (known, x), (known_dot, x_dot) = self.parts(params, primals), self.parts(params, tangents)
        outs = primitive.bind(*primals, **params)
        total: list = [Zero.like(out) for out in outs]
        moving = values.moving(known_dot)
        if any(moving):
            program, moved = jvp_jaxpr(params["callee"], (*moving, *[False] * len(x)))
            results = jx.evaluate(program, *primals, *values.pick(known_dot, moving))
            avals = [jax.typeof(out) for out in outs]
            total = values.with_zeros(results[len(moved) :], moved, avals)
        if any(values.moving(x_dot)):
            terms = primitive.bind(*known, *map(values.instantiate, x_dot), **params)
            total = [values.add(a, b) for a, b in zip(total, terms, strict=True)]
        return outs, total

    def transpose(self, primitive, cotangents, inputs, params):
        known, _ = self.parts(params, inputs)
        if any(type(value) is Linear for value in known):
            raise NotLinear.at(primitive, known)
        program, consts = params["transpose_thunk"]()

        def transposed(known, y_bar):
            return jx.evaluate(program, *consts, *known[params["num_callee_consts"] :], *y_bar)

        def again(known, x):
            return jx.evaluate(params["callee"], *known, *x)

        x_bar = linear_call(transposed, again, known, list(map(values.instantiate, cotangents)))
        return [*[None] * len(known), *x_bar]


call(call_p, InlinedRule("call_jaxpr"))
call(closed_call_p, InlinedRule("call_jaxpr"))


@without_name
def declare_composite() -> None:
    for primitive in emitted(jax.lax.composite(lambda x: x, name="functrans.none")):
        call(primitive, InlinedRule("jaxpr", "call_jaxpr"))


@without_name
def declare_custom_vmap() -> None:
    identity = custom_vmap(lambda x: x)
    identity.def_vmap(lambda size, batched, x: (x, batched[0]))
    for primitive in emitted(identity):
        call(primitive, CustomVmapRule("call"))


@without_name
def declare_linear_call() -> None:
    for primitive in emitted(lambda x: linear_call(lambda r, x: x, lambda r, x: x, (), x)):
        call(primitive, LinearCallRule())


@when_met("eval_jaxpr")  # until JAX 0.10: a step of a loop under `jax.disable_jit`
def declare_evaluation(primitive: Any) -> None:
    call(primitive, InlinedRule("jaxpr"))
