"""Broadcast last: compute on the small array, then broadcast the result.

    A (B x)  =  B (A' x)            where B broadcasts x along further dimensions

Read backwards, `B^T` sums: reverse mode then sums a cotangent before it multiplies, not after.  A
linear program has such broadcasts where a parameter meets a batch.

Read next: `strong.py`, zeros that absorb.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var, new_jaxpr_eqn

from functrans import jaxpr as jx
from functrans.programs.live import live
from functrans.values import aval_of

MOVED = (lax.neg_p, lax.mul_p, lax.dot_general_p)


class Broadcast(NamedTuple):
    """A small variable, and the dimensions of the large one that it has."""

    small: Any
    dimensions: Sequence[int]


def broadcast_last(jaxpr: Jaxpr) -> Jaxpr:
    """The same linear program, which multiplies arrays before it broadcasts them."""
    wide = {e.outvars[0] for e in jaxpr.eqns if e.primitive is lax.broadcast_in_dim_p}
    if not any(e.primitive in MOVED and not wide.isdisjoint(_variables(e)) for e in jaxpr.eqns):
        return jaxpr
    rewrite = _Rewrite()
    for equation in jaxpr.eqns:
        rewrite.add(equation)
    equations = live(rewrite.equations, jaxpr.outvars)
    return jx.closed(jaxpr.invars, jaxpr.outvars, equations, jaxpr.debug_info).jaxpr


class _Rewrite:
    """The equations of the new program, and which variables are broadcasts."""

    def __init__(self):
        self.equations: list[JaxprEqn] = []
        self.broadcasts: dict[Any, Broadcast] = {}

    def add(self, equation: JaxprEqn) -> None:
        """Write an equation, or others with the same result."""
        found = None
        if equation.primitive is lax.broadcast_in_dim_p:
            found = self.broadcast(equation)
        elif equation.primitive in MOVED and (found := self.moved(equation)):
            (out,) = equation.outvars
            shape, dimensions = aval_of(out).shape, tuple(found.dimensions)
            params = {"shape": shape, "broadcast_dimensions": dimensions}
            equation = self.equation(equation, lax.broadcast_in_dim_p, [found.small], params, out)
        self.equations.append(equation)
        if found:
            self.broadcasts[equation.outvars[0]] = found

    def broadcast(self, equation: JaxprEqn) -> Broadcast | None:
        source, out = equation.invars[0], aval_of(equation.outvars[0])
        is_plain = len(equation.invars) == 1 and type(source) is Var and out.sharding.mesh.empty
        # In half precision a sum may overflow where the sum of the products does not.
        if not is_plain or out.dtype.itemsize < 4:
            return None
        dims = equation.params["broadcast_dimensions"]
        kept = [i for i, d in enumerate(dims) if aval_of(source).shape[i] == out.shape[d]]
        small, dimensions = self.broadcasts.get(source, (source, range(aval_of(source).ndim)))
        inner = [n for n, i in enumerate(dimensions) if i in kept]
        return Broadcast(
            self.squeezed(equation, small, inner), [dims[dimensions[n]] for n in inner]
        )

    def moved(self, equation: JaxprEqn) -> Broadcast | None:
        """If the equation is linear in a broadcast, the small result of which its own is one."""
        inputs, out, params = equation.invars, aval_of(equation.outvars[0]), equation.params
        found = [i for i, x in enumerate(inputs) if type(x) is Var and x in self.broadcasts]
        if len(found) != 1:
            return None
        (i,) = found
        small, dimensions = self.broadcasts[inputs[i]]
        given = [*inputs]
        given[i] = small
        if equation.primitive is lax.mul_p and aval_of(inputs[1 - i]).shape:
            shape, other = aval_of(inputs[i]).shape, aval_of(inputs[1 - i]).shape
            if shape != out.shape or any(n > 1 for d, n in enumerate(other) if d not in dimensions):
                return None
            given[1 - i] = self.squeezed(equation, inputs[1 - i], dimensions)
        elif equation.primitive is lax.dot_general_p:
            smaller = _without_broadcast(params["dimension_numbers"], i, inputs, dimensions)
            if smaller is None:
                return None
            numbers, dimensions = smaller
            params = {**params, "dimension_numbers": numbers}
        return Broadcast(self.write(equation, equation.primitive, given, params), dimensions)

    def squeezed(self, like: JaxprEqn, x: Any, dimensions: Sequence[int]) -> Any:
        """`x` in these dimensions alone; in all others its size is 1."""
        shape = tuple(aval_of(x).shape[d] for d in dimensions)
        if shape == aval_of(x).shape:
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
        avals, effects = jx.abstract_eval(primitive, tuple(map(aval_of, inputs)), params)
        outputs, source = [out or Var(avals[0])], like.source_info
        return new_jaxpr_eqn([*inputs], outputs, primitive, params, effects, source, like.ctx)


def _variables(equation: JaxprEqn) -> set:
    return {x for x in equation.invars if type(x) is not Literal}


def _without_broadcast(
    numbers: tuple, i: int, inputs: Sequence, dimensions: Sequence[int]
) -> tuple[tuple, list[int]] | None:
    """Dimension numbers of a product without the broadcast dimensions of factor `i`.

    And the remaining dimensions of the result; `None` if a broadcast dimension is not free.
    """
    contracted, batch = numbers
    bound = [{*contracted[side], *batch[side]} for side in (0, 1)]
    free = [(k, d) for k in (0, 1) for d in range(aval_of(inputs[k]).ndim) if d not in bound[k]]
    if not bound[i].issubset(dimensions):
        return None
    found = [(None, d) for d in batch[0]] + free
    left = [n for n, (side, d) in enumerate(found) if side != i or d in dimensions]

    def renumbered(pair: tuple) -> tuple:
        return tuple(
            tuple(map(dimensions.index, dims)) if side == i else tuple(dims)
            for side, dims in enumerate(pair)
        )

    return (renumbered(contracted), renumbered(batch)), left
