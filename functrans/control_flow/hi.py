"""JAX's "hi" primitives, which stand for a function: that function is what is differentiated.

    y = p(x)          is          y = expand_p(x)

Since JAX 0.11 some functions of `jax.numpy` and `jax.lax` are one such primitive.  Functions take
their places wherever they appear, also inside the jaxprs of calls and loops.  The root of an
equation is more than the function that finds it: its derivative is that of the implicit function,

    f(p, x) = 0          =>          x_dot = -(df/dx)^-1 (df/dp p_dot)

Read next: `reduce.py`, a function that is folded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import set_current_trace

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.calls import pushed, recorded
from functrans.control_flow.custom import from_symbolic
from functrans.derivatives.common import emitted
from functrans.rules import Rule, call, staging_rule, without_name
from functrans.tracer import stage
from functrans.values import Zero


def function_of(primitive: Any) -> Callable:
    """The function of flat lists for which a hi primitive stands."""

    def expand(*flat):
        return jax.tree.leaves(primitive.expand(*jax.tree.unflatten(primitive.in_tree, flat)))

    return implicit(primitive, expand) if is_root(primitive) else expand


def is_root(primitive: Any) -> bool:
    return hasattr(primitive, "tangent_solve")


def implicit(primitive: Any, expand: Callable) -> Callable:
    """A root, with the derivative of the implicit function."""
    solve = jax.custom_jvp(expand)

    def pushforward(primals, tangents):
        outs = solve(*primals)
        root_and_aux = jax.tree.unflatten(primitive.out_tree, outs)
        root = root_and_aux[0] if primitive.has_aux else root_and_aux
        _, _, p, tangent_consts = jax.tree.unflatten(primitive.in_tree, primals)
        p_dot = jax.tree.unflatten(primitive.in_tree, list(map(from_symbolic, tangents)))[2]
        leaves, tree = jax.tree.flatten(p)

        def at_the_root(*leaves):
            return jax.tree.leaves(primitive.f(jax.tree.unflatten(tree, leaves), root))

        _, moved = pushed(at_the_root, leaves, jax.tree.leaves(p_dot))
        right = jax.tree.unflatten(jax.tree.structure(root), map(values.instantiate, moved))
        root_dot = jax.tree.map(lax.neg, primitive.tangent_solve(tangent_consts, root, right))
        rest = [values.instantiate(Zero.like(x)) for x in outs[len(jax.tree.leaves(root)) :]]
        return outs, [*jax.tree.leaves(root_dot), *rest]

    solve.defjvp(pushforward, symbolic_zeros=True)
    return solve


class HiRule(Rule):
    """Differentiate the function."""

    def forward(self, primitive, primals, tangents, params):
        return pushed(function_of(params["_prim"]), primals, tangents)

    def linearize(self, primitive, primals, tangents, params):
        return recorded(function_of(params["_prim"]), primals, tangents)


def _expanded(trace, primitive, inputs, params):
    with set_current_trace(trace):
        return function_of(params["_prim"])(*inputs)


@caches.by_program
def low(program: Any) -> Any:
    """A jaxpr in which no hi primitive is left, at any depth."""

    def evaluated(*xs):
        return jx.evaluate(program, *xs), None

    return stage(evaluated, program.in_avals, program.jaxpr.debug_info)[0]


def low_params(params: dict) -> dict:
    """Params whose programs are low."""
    leaves, tree = jax.tree.flatten(params, is_leaf=lambda x: hasattr(x, "eqns"))
    leaves = [low(x) if getattr(x, "is_high", False) else x for x in leaves]
    return jax.tree.unflatten(tree, leaves)


@without_name
def declare_hi() -> None:
    def root(x):
        return lax.custom_root(lambda y: y - x, x, lambda f, y: y, lambda g, y: y)

    for primitive in emitted(root):
        if primitive.name == "call_hi_primitive":  # since JAX 0.11
            call(primitive, HiRule())
            staging_rule(primitive, _expanded)
            staging_rule("hi", low_params)
