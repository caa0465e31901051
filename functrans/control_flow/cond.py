"""A choice between functions: the derivative of the chosen one.

    y = f_i(x)          forward:    y_dot = J f_i(x) x_dot
                        reverse:    x_bar = J f_i(x)^T y_bar

Every branch takes and gives the same types.  So if a tangent moves in one branch, the others give
zeros for it, and the residuals of all branches share slots of equal type.

Read next: `scan.py`, a loop of a known length.
"""

from __future__ import annotations

from jax.extend.core.primitives import cond_p

from functrans.control_flow.base import CallRule
from functrans.rules import call


class CondRule(CallRule):
    """Chooses between the derived branches; the index comes first, and has no tangent."""

    head = 1

    def bodies(self, params):
        return params["branches"]

    def with_bodies(self, params, bodies, ins, outs):
        return params | {"branches": bodies}

    def again(self, primitive, params, bodies, inputs, ins, outs):
        return primitive.bind(*inputs, **params | {"branches": bodies})


call(cond_p, CondRule())
