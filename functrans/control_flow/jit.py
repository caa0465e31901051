"""A jitted call inside a differentiated function stays one call in each half.

    jit f          forward:     jit (jvp f)
                   linearize:   jit (primal half),  then  jit (linear half)
                   transpose:   jit (transpose of the linear half)

A small call that asks for it, as those of `jax.numpy` do, is replaced by its equations when it is
staged.

Read next: `cond.py`, one of several functions.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.extend.core.primitives import jit_p

from functrans import values
from functrans.control_flow.base import CallRule
from functrans.control_flow.library import derivative_of
from functrans.control_flow.odeint import is_solver, with_fixed_steps
from functrans.programs.jitted import bind_jit, model_params
from functrans.programs.replay import replay
from functrans.rules import call, staging_rule


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
        how = super().linearize if derivative_of(params) is None else self.forward
        return how(primitive, primals, tangents, params)


def inlined(trace, primitive, inputs, params):
    """Write the equations of a small call that asks for it; on a tape a call stays one equation, so
    that it is transposed at once."""
    if trace.writes_everything and is_inlined(params):
        return replay(trace, params["jaxpr"], inputs)
    return None


def is_inlined(params: dict) -> bool:
    """Whether the call asks for it, and says nothing of where its inputs and outputs are."""
    inline = getattr(params["inline"], "value", params["inline"]) in (True, "jax_early")
    return inline and _said(params) <= _unsaid(jax.sharding.get_abstract_mesh())


def _said(params: dict) -> set:
    """What the call says of its inputs and outputs: each sharding and each layout."""
    shardings = params["in_shardings"], params["out_shardings"]
    return {*shardings[0], *shardings[1], *params["in_layouts"], *params["out_layouts"]}


@functools.lru_cache(maxsize=16)
def _unsaid(mesh: Any) -> set:
    return _said(model_params(mesh))


call(jit_p, JitRule())
staging_rule(jit_p, inlined)
