"""Sums in which one term is zero except in a few places: add it there, and leave the rest.

    s + scatter_add(0, i, y)  =  scatter_add(s, i, y)

The cotangent of `x[i]` is an array of zeros except for one element.  A loop sums such arrays over
its steps, and adding whole arrays would cost each step as much as x is large.

Read next: `bases.py`, a linear program at every vector of a basis.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import add_jaxvals_p

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.programs.live import giving
from functrans.tracer import stage


def added_in_place(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program, which adds no arrays of zeros any more."""
    return _rewritten(program) or program


@caches.by_program
def _rewritten(program: ClosedJaxpr) -> ClosedJaxpr | None:
    equations, outputs = program.jaxpr.eqns, program.jaxpr.outvars
    uses = Counter(a for e in equations for a in (*e.invars,) if isinstance(a, Var))
    uses.update(a for a in outputs if isinstance(a, Var))
    made = {e.outvars[0]: e for e in equations if len(e.outvars) == 1}

    def maker(atom: Any) -> JaxprEqn | None:
        """The equation of a value that is zero except in a few places, and is read once."""
        equation = made.get(atom) if isinstance(atom, Var) and uses[atom] == 1 else None
        if equation is None:
            return None
        if equation.primitive is add_jaxvals_p:
            return equation if all(map(maker, equation.invars)) else None
        is_placed = equation.primitive in PLACED and _is_zero(equation.invars[0])
        return equation if is_placed else None

    def _is_zero(atom: Any) -> bool:
        while isinstance(atom, Var) and (equation := made.get(atom)) is not None:
            if equation.primitive is not lax.broadcast_in_dim_p:
                return False
            atom = equation.invars[0]
        return isinstance(atom, Literal) and atom.val == 0

    if not any(e.primitive is add_jaxvals_p and any(map(maker, e.invars)) for e in equations):
        return None

    def rewritten(*inputs):
        known = jx.environment(program, inputs)

        def read(atom):
            return atom.val if isinstance(atom, Literal) else known[atom]

        def add(total, equation):
            if equation.primitive is add_jaxvals_p:
                left, right = map(maker, equation.invars)
                return add(add(total, left), right)
            return PLACED[equation.primitive](total, equation, [*map(read, equation.invars[1:])])

        for equation in equations:
            if equation.primitive is add_jaxvals_p:
                left, right = equation.invars
                if maker(left) and not maker(right):
                    left, right = right, left
                if found := maker(right):
                    with jx.in_place_of(equation):
                        known[equation.outvars[0]] = add(read(left), found)
                    continue
            outs = jx.bind(equation, [*map(read, equation.invars)])
            known.update(zip(equation.outvars, outs, strict=True))
        return [*map(read, outputs)], None

    new, _ = stage(rewritten, program.in_avals, program.jaxpr.debug_info)
    return giving(new, new.jaxpr.outvars)


def _scattered(total: Any, equation: JaxprEqn, inputs: list) -> Any:
    return equation.primitive.bind(total, *inputs, **equation.params)


def _sliced(total: Any, equation: JaxprEqn, inputs: list) -> Any:
    update, *starts = inputs
    before = lax.dynamic_slice(total, starts, update.shape)
    return lax.dynamic_update_slice(total, values.add(before, update), starts)


PLACED: dict[Any, Callable] = {
    lax.scatter_add_p: _scattered,
    lax.dynamic_update_slice_p: _sliced,
}
"""Operations that put something into an array, their first input."""
