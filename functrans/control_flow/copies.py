"""A copy is made last: what is linear in a copy is done to what was copied, and the result copied.

    A (B x)  =  B (A' x)            where B copies x along further dimensions

Read backwards, `B^T` sums: a cotangent is summed before it is multiplied, not after.  A linear
program has such copies where a parameter meets a batch.

Read next: `basis.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, new_jaxpr_eqn

from functrans import jaxpr as jx
from functrans.rules import simplified

MOVED = (lax.neg_p, lax.mul_p, lax.dot_general_p)


class Copy(NamedTuple):
    """A variable, and in which dimensions of the whole it is not a copy."""

    small: Any
    places: Sequence[int]


def copies_last(jaxpr: Jaxpr) -> Jaxpr:
    """The same linear program, where copies are negated and multiplied before they are made."""
    wide = {e.outvars[0] for e in jaxpr.eqns if e.primitive is lax.broadcast_in_dim_p}
    if not any(e.primitive in MOVED and not wide.isdisjoint(_variables(e)) for e in jaxpr.eqns):
        return jaxpr
    rewrite = _Rewrite()
    for equation in jaxpr.eqns:
        rewrite.add(equation)
    equations = jx.live(rewrite.equations, jaxpr.outvars)
    return jx.closed(jaxpr.invars, jaxpr.outvars, equations, jaxpr.debug_info).jaxpr


simplified(copies_last)


class _Rewrite:
    """The equations of the new program, and which variables are copies."""

    def __init__(self):
        self.equations: list[JaxprEqn] = []
        self.copies: dict[Any, Copy] = {}

    def add(self, equation: JaxprEqn) -> None:
        """Write an equation, or what gives the same."""
        copy = None
        if equation.primitive is lax.broadcast_in_dim_p:
            copy = self.broadcast(equation)
        elif equation.primitive in MOVED and (copy := self.moved(equation)):
            (out,) = equation.outvars
            params = {"shape": jx.aval_of(out).shape, "broadcast_dimensions": tuple(copy.places)}
            equation = self.equation(equation, lax.broadcast_in_dim_p, [copy.small], params, out)
        self.equations.append(equation)
        if copy:
            self.copies[equation.outvars[0]] = copy

    def broadcast(self, equation: JaxprEqn) -> Copy | None:
        source, out = equation.invars[0], jx.aval_of(equation.outvars[0])
        is_plain = len(equation.invars) == 1 and type(source) is Var and out.sharding.mesh.empty
        # In half precision a sum may overflow although the sum of the products does not.
        if not is_plain or out.dtype.itemsize < 4:
            return None
        dims = equation.params["broadcast_dimensions"]
        kept = [i for i, d in enumerate(dims) if jx.aval_of(source).shape[i] == out.shape[d]]
        small, places = self.copies.get(source, (source, range(jx.aval_of(source).ndim)))
        inner = [n for n, i in enumerate(places) if i in kept]
        return Copy(self.squeezed(equation, small, inner), [dims[places[n]] for n in inner])

    def moved(self, equation: JaxprEqn) -> Copy | None:
        """What the result of the equation is a copy of, if it is linear in a copy."""
        inputs, out, params = equation.invars, jx.aval_of(equation.outvars[0]), equation.params
        found = [i for i, x in enumerate(inputs) if type(x) is Var and x in self.copies]
        if len(found) != 1:
            return None
        (i,) = found
        small, places = self.copies[inputs[i]]
        given = [*inputs]
        given[i] = small
        if equation.primitive is lax.mul_p and jx.aval_of(inputs[1 - i]).shape:
            shape, other = jx.aval_of(inputs[i]).shape, jx.aval_of(inputs[1 - i]).shape
            if shape != out.shape or any(n > 1 for d, n in enumerate(other) if d not in places):
                return None
            given[1 - i] = self.squeezed(equation, inputs[1 - i], places)
        elif equation.primitive is lax.dot_general_p:
            smaller = _without_copied(params["dimension_numbers"], i, inputs, places)
            if smaller is None:
                return None
            numbers, places = smaller
            params = {**params, "dimension_numbers": numbers}
        return Copy(self.write(equation, equation.primitive, given, params), places)

    def squeezed(self, like: JaxprEqn, x: Any, places: Sequence[int]) -> Any:
        """`x` in these dimensions alone; in all others its size is 1."""
        shape = tuple(jx.aval_of(x).shape[d] for d in places)
        if shape == jx.aval_of(x).shape:
            return x
        return self.write(like, lax.reshape_p, [x], {"new_sizes": shape, "dimensions": None})

    def write(self, like: JaxprEqn, primitive: Any, inputs: Sequence, params: dict) -> Var:
        self.equations.append(self.equation(like, primitive, inputs, params))
        return self.equations[-1].outvars[0]

    def equation(
        self, like: JaxprEqn, primitive: Any, inputs: Sequence, params: dict, out: Any = None
    ) -> JaxprEqn:
        """A new equation, with the line and the scope of another."""
        if primitive in (lax.reshape_p, lax.broadcast_in_dim_p):
            params = {**params, "sharding": None}
        avals, effects = jx.abstract_eval(primitive, tuple(map(jx.aval_of, inputs)), params)
        outputs, source = [out or Var(avals[0])], like.source_info
        return new_jaxpr_eqn([*inputs], outputs, primitive, params, effects, source, like.ctx)


def _variables(equation: JaxprEqn) -> set:
    return {x for x in equation.invars if type(x) is not Literal}


def _without_copied(
    numbers: tuple, i: int, inputs: Sequence, places: Sequence[int]
) -> tuple[tuple, list[int]] | None:
    """Dimension numbers of a product without the copied dimensions of factor `i`.

    Also those dimensions of the result that are left; `None` if a copied dimension is not free.
    """
    contracted, batch = numbers
    bound = [{*contracted[side], *batch[side]} for side in (0, 1)]
    free = [(k, d) for k in (0, 1) for d in range(jx.aval_of(inputs[k]).ndim) if d not in bound[k]]
    if not bound[i].issubset(places):
        return None
    found = [(None, d) for d in batch[0]] + free
    left = [n for n, (side, d) in enumerate(found) if side != i or d in places]

    def renumbered(pair: tuple) -> tuple:
        return tuple(
            tuple(map(places.index, dims)) if side == i else tuple(dims)
            for side, dims in enumerate(pair)
        )

    return (renumbered(contracted), renumbered(batch)), left
