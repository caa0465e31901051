"""Calls that say something to other transformations, and nothing about derivatives.

    y = f(x)          forward, linearize:    those of the equations of f, in the place of the call

They are calls of one function as it is (`closed_call`), of one that a compiler may replace
(`composite`), and of one that `jax.vmap` is to batch by a rule of the user's (`custom_vmap`).  The
last is pushed forward with its rule, so that the tangents are batched by it too.

Read next: `../jit.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import linear_call
from jax.extend.core.primitives import call_p, closed_call_p

from functrans import jaxpr as jx
from functrans.derivatives.common import emitted
from functrans.forward import forward, jvp_jaxpr
from functrans.jaxpr import Linear, Zero
from functrans.linearize import LinearizeTrace
from functrans.reverse import transpose
from functrans.rules import NotLinear, Rule, call


def transpose_inside(program: Any, inputs: Sequence, cotangents: Sequence) -> list:
    """Transpose the equations of a call that is linear in some of its inputs."""
    x_bars = iter(transpose(*jx.opened(program, inputs), cotangents))
    return [next(x_bars) if type(x) is Linear else None for x in inputs]


def pushed(function: Callable, primals: Sequence, tangents: Sequence) -> tuple[list, list]:
    """Run a function of flat lists on pairs, here."""
    outs, tangents_out, _ = forward(lambda *xs: (function(*xs), []), primals, tangents)
    return outs, tangents_out


def recorded(function: Callable, primals: Sequence, tangents: Sequence) -> tuple[list, list]:
    """Run a function of flat lists on pairs whose tangents go to the tape that is running."""
    trace = LinearizeTrace(jx.current_trace())
    outs, tangents_out, _ = trace.run_function(lambda *xs: (function(*xs), []), primals, tangents)
    return outs, tangents_out


class CallRule(Rule):
    """Differentiate the equations inside, here; `names` are those of the param with the jaxpr."""

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


class CustomVmapRule(CallRule):
    """Forward, the pair of primal and tangent is batched by the derivative of the user's rule."""

    def forward(self, primitive, primals, tangents, params):
        moving, count = jx.moving(tangents), len(primals)
        program, gaps = jvp_jaxpr(self.program(params), moving)

        @custom_vmap
        def pushforward(*inputs):
            return jx.evaluate(program, *inputs)

        @pushforward.def_vmap
        def batched_pushforward(size, batched, *inputs):
            # A primal and its tangent share one flag: if one of them has the axis, both get it.
            moved = jx.fill([None if m else False for m in moving], batched[count:])
            batched_primals = [a or b for a, b in zip(batched[:count], moved, strict=True)]
            wanted = [*batched_primals, *compress(batched_primals, moving)]
            values = [
                jnp.broadcast_to(x, (size, *jnp.shape(x))) if want and not has else x
                for x, has, want in zip(inputs, batched, wanted, strict=True)
            ]
            zeros = [None if m else Zero.like(x) for m, x in zip(moving, values, strict=False)]
            flags: list = []

            def run(*xs):
                args, batched = (
                    jax.tree.unflatten(params["in_tree"], v) for v in (xs, batched_primals)
                )
                outs, out_batched = params["rule"](size, batched, *args)
                flags.extend(jax.tree.leaves(out_batched))
                return jax.tree.leaves(outs)

            outs, outs_dot = pushed(run, values[:count], jx.fill(zeros, values[count:]))
            is_open = [gap is None for gap in gaps]
            moved = map(jx.instantiate, compress(outs_dot, is_open))
            return [*outs, *moved], [*flags, *compress(flags, is_open)]

        outs = pushforward(*primals, *jx.present(tangents))
        return outs[: len(gaps)], jx.fill(gaps, outs[len(gaps) :])


class LinearCallRule(Rule):
    """`y = A(r) x`, of which the user has given `A(r)^T` as well: `y_dot = A x_dot + (A_dot) x`."""

    def split(self, params, inputs):
        end = params["num_callee_consts"] + params["num_res"]
        return list(inputs[:end]), list(inputs[end:])

    def forward(self, primitive, primals, tangents, params):
        (known, x), (known_dot, x_dot) = self.split(params, primals), self.split(params, tangents)
        outs = primitive.bind(*primals, **params)
        total: list = [Zero.like(out) for out in outs]
        if jx.present(known_dot):
            moving = (*jx.moving(known_dot), *[False] * len(x))
            program, gaps = jvp_jaxpr(params["callee"], moving)
            moved = jx.evaluate(program, *primals, *jx.present(known_dot))[len(gaps) :]
            total = jx.fill(gaps, moved)
        if jx.present(x_dot):
            moved = primitive.bind(*known, *map(jx.instantiate, x_dot), **params)
            total = [jx.add(a, b) for a, b in zip(total, moved, strict=True)]
        return outs, total

    def transpose(self, primitive, cotangents, inputs, params):
        known, _ = self.split(params, inputs)
        if any(type(value) is Linear for value in known):
            raise NotLinear.at(primitive)
        program, consts = params["transpose_thunk"]()

        def transposed(known, y_bar):
            return jx.evaluate(program, *consts, *known[params["num_callee_consts"] :], *y_bar)

        def again(known, x):
            return jx.evaluate(params["callee"], *known, *x)

        x_bar = linear_call(transposed, again, known, list(map(jx.instantiate, cotangents)))
        return [*[None] * len(known), *x_bar]


call(call_p, CallRule("call_jaxpr"))
call(closed_call_p, CallRule("call_jaxpr"))
for composite_p in emitted(jax.lax.composite(lambda x: x, name="functrans.none")):
    call(composite_p, CallRule("jaxpr", "call_jaxpr"))
batched_identity = custom_vmap(lambda x: x)
batched_identity.def_vmap(lambda size, batched, x: (x, batched[0]))
for custom_vmap_p in emitted(batched_identity):
    call(custom_vmap_p, CustomVmapRule("call"))
for linear_call_p in emitted(lambda x: linear_call(lambda r, x: x, lambda r, x: x, (), x)):
    call(linear_call_p, LinearCallRule())
