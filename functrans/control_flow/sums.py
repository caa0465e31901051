"""Sums over the steps of a loop that are made after it, as one large product.

    sum_t x_t^T y_t  =  [x_1; x_2; ...]^T [y_1; y_2; ...]

Such is the gradient of a weight that every step multiplies by.

Read next: `loops.py`, how a loop is written; then `scan.py`, whose transpose has these sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var

from functrans import jaxpr as jx
from functrans.control_flow.halves import parted
from functrans.rules import RULES, Elementwise, LinearRule


class Sums(NamedTuple):
    """The body of a loop without some of the sums over its steps, and how these are made later."""

    body: ClosedJaxpr
    """Its results are the sums that stay in it, its other results, and factors to be stacked."""
    stay: list[bool]
    """For each of the sums."""
    products: list[tuple[JaxprEqn, int, int]]
    """Each with the places of its factors among what is stacked."""
    after: ClosedJaxpr
    """From the sums of the products to the sums that do not stay."""

    def later(self, stacked: Sequence) -> list:
        """The sums that do not stay, from what was stacked before the loop and in it."""
        sums = [sum_of_products(e, stacked[i], stacked[j]) for e, i, j in self.products]
        return jx.evaluate(self.after, *sums)


def sums_after(program: ClosedJaxpr, kinds: Sequence[str], sums: int) -> Sums:
    """Take those of the sums over a loop's steps that are sums of products out of the loop.

    One large product is faster than many small ones, but its factors have to be stacked. Those that
    are not yet stacked must be smaller than the product, which the loop would read and write in
    each step, and all of them together at most half of what is stacked anyway.

    Args:
      program: the body; its first results, `sums` of them, are to be summed.
      kinds: for each input of the body `"const"`, `"carry"`, or `"step"` if it is stacked.
    """
    jaxpr = program.jaxpr
    made = {var: equation for equation in jaxpr.eqns for var in equation.outvars}
    stacked = [var for var, kind in zip(jaxpr.invars, kinds, strict=True) if kind == "step"]
    moving = {var for var, kind in zip(jaxpr.invars, kinds, strict=True) if kind != "const"}
    for equation in jaxpr.eqns:
        if any(isinstance(a, Var) and a in moving for a in equation.invars):
            moving.update(equation.outvars)

    def terms(atom: Any) -> list:
        """The products whose sum, or a linear function of it, this is; `None` for another term."""
        equation = made.get(atom) if isinstance(atom, Var) else None
        if equation is None or not all(isinstance(a, Var) for a in equation.invars):
            return [None]
        if equation.primitive is lax.dot_general_p:
            return [equation if moving.issuperset(equation.invars) else None]
        inner = equation.invars if _is_linear(equation) else [None]
        return [term for a in inner for term in terms(a)]

    places = {var: i for i, var in enumerate(stacked)}
    room, taken, stay = _size(stacked) / 2, {}, []
    for total in jaxpr.outvars[:sums]:
        found = terms(total)
        new = dict.fromkeys(a for e in found if e for a in e.invars if a not in stacked)
        more = [var for var in new if var not in places]
        stays = None in found or _size(new) > _size([total]) or _size(more) > room
        stay.append(stays)
        if not stays:
            taken |= {equation.outvars[0]: equation for equation in found}
            places |= {var: len(places) + i for i, var in enumerate(more)}
            room -= _size(more)
    gone, kept = parted(jaxpr.outvars[:sums], stay)
    body = jx.giving(program, [*kept, *jaxpr.outvars[sums:], *list(places)[len(stacked) :]])
    rest = [e for e in jaxpr.eqns if not e.effects and taken.keys().isdisjoint(e.outvars)]
    after = jx.closed(list(taken), gone, jx.live(rest, gone), jaxpr.debug_info)
    products = [(e, places[e.invars[0]], places[e.invars[1]]) for e in taken.values()]
    return Sums(body, stay, products, after)


def sum_of_products(equation: JaxprEqn, left: Any, right: Any) -> Any:
    """The sum over the first axis, that of the steps, of the product of `equation`."""
    contracted, batch = equation.params["dimension_numbers"]
    rank = len(contracted[0])
    is_sharded = not jx.typeof(left).sharding.mesh.empty
    if rank and contracted == (tuple(range(rank)),) * 2 and not is_sharded:
        # The axis of the steps and the contracted axes are one: XLA need not bring them together.
        left, right = (
            lax.reshape(x, (math.prod(x.shape[: rank + 1]), *x.shape[rank + 1 :]))
            for x in (left, right)
        )
        numbers = ((0,), (0,)), batch
    else:
        above = [[tuple(d + 1 for d in dims) for dims in pair] for pair in (contracted, batch)]
        numbers = tuple((0, *dims) for dims in above[0]), tuple(above[1])
    with jx.context_of(equation):
        params = {**equation.params, "dimension_numbers": numbers}
        return lax.dot_general_p.bind(left, right, **params)


def _is_linear(equation: JaxprEqn) -> bool:
    """Whether the equation is linear in all of its inputs together, and does nothing else."""
    rule = RULES.get(equation.primitive)
    if equation.effects:
        return False
    if isinstance(rule, LinearRule):
        return rule.argnums is None or len(rule.argnums) == len(equation.invars)
    return isinstance(rule, Elementwise) and all(p in (1, -1) for p in rule.partials)


def _size(variables: Iterable) -> int:
    """In bytes."""
    return sum(var.aval.size * var.aval.dtype.itemsize for var in variables)
