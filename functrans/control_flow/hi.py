"""JAX's "hi" primitives, which stand for a function: we differentiate the function.

    y = p(x)          is          y = expand_p(x)

Since JAX 0.11 some functions of `jax.numpy` and `jax.lax` are one such primitive.  The functions
replace the primitives everywhere, also inside the jaxprs of calls and loops.  The root of an
equation is more than the function that finds it; its derivative is that of the implicit function,

    f(p, x) = 0          =>          x_dot = -(df/dx)^-1 (df/dp p_dot)

A primitive with rules of its own stays one equation, of a primitive of functrans, until an
interpreter asks these rules.  JAX compiles it as the function.

Read next: `reduce.py`, a function that is folded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental import hijax
from jax.extend.core import ClosedJaxpr, Primitive, set_current_trace
from jax.interpreters import batching, mlir

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.calls import pushed, recorded, transpose_inside
from functrans.control_flow.custom import from_symbolic
from functrans.control_flow.declared import PUSHES, rules_of
from functrans.derivatives.common import emitted, without_name
from functrans.programs.halves import reached_outputs
from functrans.rules import Rule, call, staging_rule
from functrans.tracer import StagingTrace, stage
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
    """Asks the rules of the primitive itself, or differentiates the function."""

    may_split = True

    def forward(self, primitive, primals, tangents, params):
        of, found = params["_prim"], rules_of(params["_prim"])
        if found:
            return PUSHES[found[0]](of, primals, tangents, False)
        return pushed(function_of(of), primals, tangents)

    def linearize(self, primitive, primals, tangents, params):
        of, found = params["_prim"], rules_of(params["_prim"])
        if found:  # a rule for reverse mode comes last
            return PUSHES[found[-1]](of, primals, tangents, True)
        return recorded(function_of(of), primals, tangents)

    def transpose(self, primitive, cotangents, inputs, params):
        # Only a linear function gets here, and it is its own derivative.
        return transpose_inside(program_of(params["_prim"]), inputs, cotangents)

    def depends(self, params, inputs):
        return reached_outputs(program_of(params["_prim"]), tuple(inputs))

    def split(self, primitive, inputs, owned, params):
        return function_of(params["_prim"])(*inputs)


def program_of(primitive: Any) -> ClosedJaxpr:
    """The function, staged."""
    function, info = function_of(primitive), jx.debug_info("hi", type(primitive))
    return stage(lambda *xs: (function(*xs), None), primitive.in_avals_flat, info)[0]


def _staged(trace, primitive, inputs, params):
    # A tape sees the function's own equations: a linear function is its own derivative.
    if type(trace) is StagingTrace and rules_of(params["_prim"]):
        return trace.write(with_rules_p, inputs, params)
    with set_current_trace(trace):
        return function_of(params["_prim"])(*inputs)


# ---- a primitive with rules of its own, in an equation of functrans ------------------------------


with_rules_p = Primitive("hi_with_rules")
with_rules_p.multiple_results = True


def _evaluate(*inputs, _prim):
    return function_of(_prim)(*inputs)


def _batched(axis, inputs, axes, *, _prim):
    trees = (jax.tree.unflatten(_prim.in_tree, xs) for xs in (inputs, axes))
    outs, out_axes = _prim.batch(axis, *trees)
    return [_prim.out_tree.flatten_up_to(tree) for tree in (outs, out_axes)]


with_rules_p.def_impl(_evaluate)
with_rules_p.def_abstract_eval(lambda *_, _prim: _prim.out_avals_flat)
batching.fancy_primitive_batchers[with_rules_p] = _batched
mlir.register_lowering(with_rules_p, mlir.lower_fun(_evaluate, multiple_results=True))
call(with_rules_p, HiRule())
staging_rule(with_rules_p, _staged)


# ---- programs in which no hi primitive is left ---------------------------------------------------


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
    names: Any = vars(hijax)
    base = names.get("HiPrim") or names["VJPHiPrimitive"]  # the name before JAX 0.11

    class Identity(base):
        def __init__(self, aval):
            self.in_avals, self.out_aval, self.params = (aval,), aval, {}
            super().__init__()

    for primitive in emitted(lambda x: Identity(jax.typeof(x))(x)):
        call(primitive, HiRule())
        staging_rule(primitive, _staged)
        staging_rule("hi", low_params)
