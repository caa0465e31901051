"""A jitted call inside a differentiated function stays one call in each half.

    jit f          forward:     jit (jvp f)
                   linearize:   jit (primal half),  then  jit (linear half)
                   transpose:   jit (transpose of the linear half)

When we stage a small call that asks for it, as those of `jax.numpy` do, its equations replace the
call.

Read next: `cond.py`, one of several functions.
"""

from __future__ import annotations

from jax.extend.core import ClosedJaxpr
from jax.extend.core.primitives import jit_p

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.base import (
    CallRule,
    Cut,
    linearized_bodies,
    sharing_slots,
    tangent_avals,
)
from functrans.control_flow.library import derivative_of
from functrans.control_flow.odeint import is_solver, linearized, with_fixed_steps
from functrans.linearize import linearize_jaxpr
from functrans.programs.cuts import SHARED, Prices, cut
from functrans.programs.halves import located
from functrans.programs.jitted import bind_jit, says_nothing
from functrans.programs.replay import replay
from functrans.rules import call, staging_rule
from functrans.tracer import StagingTrace
from functrans.values import Flags


class JitRule(CallRule):
    """A tangent or a cotangent has the sharding of its primal; a residual has its own."""

    carried = "jaxpr"

    def bodies(self, params):
        return (params["jaxpr"],)

    def with_bodies(self, params, bodies, ins, outs):
        sides = {"in": ins, "out": outs}
        lists = {f"{side}_{what}": side for side in sides for what in ("shardings", "layouts")}
        lists["donated_invars"] = "in"
        given = {name: tuple(values.pick(params[name], sides[s])) for name, s in lists.items()}
        return {**params, "jaxpr": bodies[0], **given}

    def again(self, primitive, params, bodies, inputs, ins, outs):
        return bind_jit(bodies[0], inputs, params["name"], params, ins, outs)

    def forward(self, primitive, primals, tangents, params):
        own = derivative_of(params)
        if is_solver(params):
            params = {**params, "jaxpr": with_fixed_steps(params["jaxpr"])}
        if own is None:
            return super().forward(primitive, primals, tangents, params)
        (y,) = primitive.bind(*primals, **params)
        return [y], [own(y, *primals, *tangents)]

    def linearize(self, primitive, primals, tangents, params):
        if is_solver(params):
            return linearized(params, primals, tangents)
        how = super().linearize if derivative_of(params) is None else self.forward
        return how(primitive, primals, tangents, params)

    def halves(self, params, moving):
        """Pass as few bytes as possible between two programs that XLA does not see together."""
        is_apart = jx.current_trace().apart and not is_inlined(params)
        return self.derive(params, _apart if is_apart else linearized_bodies, moving)


@caches.by_program
def _apart(program: ClosedJaxpr, _: tuple, moving: Flags) -> Cut:
    primal, linear, moved = linearize_jaxpr(program, moving)
    # Others may keep the arrays of inputs and outputs too.
    prices = Prices((SHARED,) * len(program.in_avals), (SHARED,) * len(moved))
    half = located(*cut(primal, linear, prices), moved, len(moved))
    return sharing_slots([half], tangent_avals(program, moving))


def inlined(trace, primitive, inputs, params):
    """Write the equations of a small call that asks for it. On a tape a call stays one equation, so
    that reverse mode transposes it at once."""
    if type(trace) is StagingTrace and is_inlined(params):
        return replay(trace, params["jaxpr"], inputs)
    return None


def is_inlined(params: dict) -> bool:
    """Whether the call asks for it, and does not place its inputs and outputs."""
    inline = getattr(params["inline"], "value", params["inline"]) in (True, "jax_early")
    return inline and says_nothing(params)


call(jit_p, JitRule())
staging_rule(jit_p, inlined)
