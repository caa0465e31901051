"""Calls with a derivative that the user wrote: `jax.custom_jvp` and `jax.custom_vjp`.

    custom_jvp :  the user gives   (x, x_dot) -> (y, y_dot)
    custom_vjp :  the user gives   x -> (y, residuals)   and   (residuals, y_bar) -> x_bar

The second rule is linear in `y_bar`, so the pushforward is its transpose:
`<y_bar, y_dot> = <bwd(y_bar), x_dot>`.  On a tape it is one equation, of a primitive of functrans:
to evaluate it, transpose the user's rule; to transpose it, run the rule.

Read next: `declared.py`, rules of another kind of primitive.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.dtypes import float0
from jax.extend.core import Primitive
from jax.extend.core.primitives import custom_jvp_call_p, custom_vjp_call_p
from jax.interpreters import batching, mlir

from functrans import jaxpr as jx
from functrans import values
from functrans.control_flow.calls import InlinedRule, pushed, recorded, transpose_inside
from functrans.derivatives.common import emitted, without_name
from functrans.errors import operations
from functrans.linearize import linearize
from functrans.programs.halves import reached_outputs
from functrans.programs.replay import replay
from functrans.programs.strong import pushed_on_a_tape
from functrans.reverse import transpose_function
from functrans.rules import CALL, NotLinear, Rule, Trimmed, call, staging_rule
from functrans.values import Zero


def _to_symbolic(x: Any) -> Any:
    """JAX's own symbol for zero, for rules with `symbolic_zeros=True`."""
    return SymbolicZero(x.aval) if type(x) is Zero else x


def from_symbolic(x: Any) -> Any:
    """A `Zero` for a zero as the user's rule may write it: a symbol, or a float0 array."""
    if isinstance(x, SymbolicZero) or not values.is_value(x) or jax.typeof(x).dtype == float0:
        return Zero(x.aval if hasattr(x, "aval") else jax.typeof(x))
    return x


class CustomRule(Rule):
    """A tape sees the function's own equations: a linear function is its own derivative."""

    may_split = True

    def depends(self, params, inputs):
        return reached_outputs(params["call_jaxpr"], tuple(inputs))

    def split(self, primitive, inputs, owned, params):
        return jx.evaluate(params["call_jaxpr"], *inputs)


class CustomJvpRule(CustomRule):
    """Asks the user's rule, which never sees the function's own equations."""

    def forward(self, primitive, primals, tangents, params):
        _, jvp = params["subfuns"]
        given = _to_symbolic if params["symbolic_zeros"] else values.instantiate

        def push(tangents):
            outs = jvp.call_wrapped(*primals, *map(given, tangents))
            split = len(outs) // 2
            return list(outs[:split]), [from_symbolic(t) for t in outs[split:]]

        try:
            return pushed_on_a_tape(push, tangents)
        except jax.errors.UnexpectedTracerError as error:
            raise operations.ended_trace() from error

    def transpose(self, primitive, cotangents, inputs, params):
        # Only a linear function gets here, and it is its own derivative.
        return transpose_inside(params["call_jaxpr"], inputs, cotangents)


class CustomVjpRule(CustomRule):
    """The user's forward rule runs now; the backward rule waits for a cotangent."""

    def _run(self, primals, tangents, params):
        _, fwd, bwd = params["subfuns"]
        flags = values.moving(tangents)
        given = [x for pair in zip(primals, flags, strict=True) for x in pair]
        returned = list(fwd.call_wrapped(*given))
        _, residual_tree, forwarded = params["out_trees"]()
        # The rule names a residual that is an argument by its position, and does not return it.
        stored = residual_tree.num_leaves - sum(i is not None for i in forwarded)
        fresh, outs = iter(returned[:stored]), returned[stored:]
        residuals = [next(fresh) if i is None else primals[i] for i in forwarded]
        rule = BackwardRule(bwd, [jax.typeof(x) for x in outs], flags, params["symbolic_zeros"])
        return outs, residuals, rule

    def forward(self, primitive, primals, tangents, params):
        outs, residuals, rule = self._run(primals, tangents, params)
        return outs, rule.push(residuals, values.pick(tangents, rule.moving))

    def linearize(self, primitive, primals, tangents, params):
        outs, residuals, rule = self._run(primals, tangents, params)
        moving = values.pick(tangents, rule.moving)
        return outs, transposed_p.bind(*residuals, *moving, rule=rule)

    def transpose(self, primitive, cotangents, inputs, params):
        return transpose_inside(params["call_jaxpr"], inputs, cotangents)


class BackwardRule:
    """The user's backward rule, `(residuals, y_bar) -> x_bar` for the moving entries of `x`."""

    def __init__(self, bwd: Any, out_avals: Sequence, moving: Sequence[bool], symbolic_zeros: bool):
        self.bwd = bwd
        self.out_avals = [aval.to_tangent_aval() for aval in out_avals]
        self.moving = moving
        self.symbolic_zeros = symbolic_zeros

    def __call__(self, residuals: Sequence, cotangents: Sequence) -> list:
        """Run the user's rule."""
        given = _to_symbolic if self.symbolic_zeros else values.instantiate
        # The seed of a gradient is a number; a user's rule may ask for an array's attributes.
        y_bars = [jnp.asarray(y) if np.isscalar(y) else y for y in cotangents]

        def pull(y_bars):
            returned = self.bwd.call_wrapped(*residuals, *map(given, y_bars))
            # Since JAX 0.11 a backward rule returns logs too, beside the cotangents.
            x_bars = returned[0] if isinstance(returned, tuple) else returned
            return [from_symbolic(x) for x in values.pick(x_bars, self.moving)]

        return pushed_on_a_tape(pull, y_bars)

    def push(self, residuals: Sequence, tangents: Sequence) -> list:
        """Transpose the user's rule: cotangents for inputs, tangents for outputs."""
        moving = [values.is_differentiable(aval) for aval in self.out_avals]
        avals = values.pick(self.out_avals, moving)

        def pull(*y_bars):
            cotangents = values.with_zeros(y_bars, moving, self.out_avals)
            return [values.instantiate(x_bar) for x_bar in self(residuals, cotangents)]

        try:
            pushed = transpose_function(pull, avals, tangents)
        except NotLinear as error:
            raise NotLinear(
                "the forward derivative of a custom_vjp function is the transpose of its backward "
                "rule, and this rule is not linear in the cotangent. Only reverse mode (grad, vjp, "
                "jacrev) can use it; for all other transforms (jvp, hessian, jet, ...) give the "
                f"function a jax.custom_jvp rule. In the rule: {error}"
            ) from error
        return values.with_zeros(pushed, moving, self.out_avals)


transposed_p = Primitive("transposed_backward_rule")
"""`y_dot` from `(residuals, x_dot)`; the user wrote only the transpose."""
transposed_p.multiple_results = True


def _push(*inputs, rule):
    split = len(inputs) - sum(rule.moving)
    return [values.instantiate(t) for t in rule.push(inputs[:split], inputs[split:])]


def _push_batched(inputs, axes, *, rule):
    outs = jax.vmap(lambda *xs: _push(*xs, rule=rule), in_axes=axes)(*inputs)
    return outs, [0] * len(outs)


class TransposedRule(Rule):
    """To differentiate it, differentiate its evaluation; to transpose it, run the rule."""

    def forward(self, primitive, primals, tangents, params):
        return pushed(partial(_push, **params), primals, tangents)

    def linearize(self, primitive, primals, tangents, params):
        return recorded(partial(_push, **params), primals, tangents)

    def transpose(self, primitive, cotangents, inputs, params):
        rule = params["rule"]
        split = len(inputs) - sum(rule.moving)
        return [*[None] * split, *rule(inputs[:split], cotangents)]


transposed_p.def_impl(_push)
transposed_p.def_abstract_eval(lambda *inputs, rule: rule.out_avals)
batching.primitive_batchers[transposed_p] = _push_batched
mlir.register_lowering(transposed_p, mlir.lower_fun(_push, multiple_results=True))


def _staged(trace, primitive, args, params):
    """JAX writes the equation, in the form that JAX understands, and we replay it."""

    def call(*inputs):
        return list(primitive.bind(*inputs, **params))

    return replay(trace, jax.make_jaxpr(call)(*args), args)


staging_rule(CALL, _staged)
call(custom_jvp_call_p, CustomJvpRule())
call(custom_vjp_call_p, CustomVjpRule())
call(transposed_p, TransposedRule())


class ForwardRule(InlinedRule):
    """A forward rule with `optimize_remat=True`, as JAX writes it: if nobody reads a residual
    that it computes, the function itself runs in its place."""

    def trim(self, params, wanted):
        count, consts = params["num_res"], params["num_consts"]
        if any(wanted[:count]):
            return None
        program = _function_itself(params)
        inputs = [False] * consts + [True] * len(program.in_avals)
        outputs = [False] * count + [True] * len(program.out_avals)
        kept = params | {"fwd_jaxpr": program, "num_consts": 0, "num_res": 0}
        return Trimmed(kept, inputs, outputs)


def _function_itself(params: dict) -> Any:
    jaxpr, consts = params["fun_jaxpr_thunk"]()
    parts = jaxpr.invars, jaxpr.outvars, jaxpr.eqns, jaxpr.debug_info, jaxpr.constvars
    return jx.closed(*parts, consts)


def _without_residuals(trace, primitive, args, params):
    """May be empty, if all residuals are arguments."""
    if params["num_res"]:
        return None
    return replay(trace, _function_itself(params), args[params["num_consts"] :])


@without_name
def declare_optimized() -> None:
    """Find the primitive that stands for such a forward rule."""

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, x), lambda x, y_bar: (y_bar,), optimize_remat=True)

    def linearized(x):
        return linearize(lambda x: ([identity(x)], []), [x], [True])[0][0]

    for primitive in emitted(linearized):
        call(primitive, ForwardRule("fwd_jaxpr"))
        staging_rule(primitive, _without_residuals)
