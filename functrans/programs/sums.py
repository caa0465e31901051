"""Sums over the steps of a loop that are made after it, as one large product.

    sum_t x_t^T y_t  =  [x_1; x_2; ...]^T [y_1; y_2; ...]

Such is the gradient of a weight that every step multiplies by.

Read next: `places.py`, sums in a few places.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var

from functrans import jaxpr as jx
from functrans import values
from functrans.programs.live import giving, live, reached
from functrans.rules import RULES


class Sums(NamedTuple):
    """The body of a loop without some of the sums over its steps, and how these are made later."""

    body: ClosedJaxpr
    """Its results are the sums that stay in it, its other results, and factors to be stacked."""
    stay: list[bool]
    """For each of the sums."""
    products: list[tuple[JaxprEqn, int, int]]
    """Each with the positions of its factors among what is stacked."""
    after: ClosedJaxpr
    """From the sums of the products to the sums that do not stay."""

    def pick_stay(self, xs: Iterable) -> list:
        """Those, of something for each sum, of the sums that stay."""
        return values.pick(xs, self.stay)

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
    stacked = [var for var, kind in zip(jaxpr.invars, kinds, strict=True) if kind == "step"]
    seeds = [var for var, kind in zip(jaxpr.invars, kinds, strict=True) if kind != "const"]

    products = _sums_of_products(jaxpr.eqns, reached(jaxpr.eqns, seeds))
    positions = {var: i for i, var in enumerate(stacked)}
    free, taken, stay = _size(stacked) / 2, {}, []
    for total in jaxpr.outvars[:sums]:
        terms = products.get(total, {}) if isinstance(total, Var) else {}
        new = dict.fromkeys(a for e in terms.values() for a in e.invars if a not in stacked)
        more = [var for var in new if var not in positions]
        stays = not terms or _size(new) > _size([total]) or _size(more) > free
        stay.append(stays)
        if not stays:
            taken |= terms
            positions |= {var: len(positions) + i for i, var in enumerate(more)}
            free -= _size(more)
    gone, kept = values.part(jaxpr.outvars[:sums], stay)
    body = giving(program, [*kept, *jaxpr.outvars[sums:], *list(positions)[len(stacked) :]])
    rest = [e for e in jaxpr.eqns if not e.effects and taken.keys().isdisjoint(e.outvars)]
    after = jx.closed(list(taken), gone, live(rest, gone), jaxpr.debug_info)
    products = [(e, positions[e.invars[0]], positions[e.invars[1]]) for e in taken.values()]
    return Sums(body, stay, products, after)


def _sums_of_products(equations: Sequence[JaxprEqn], changing: set[Var]) -> dict[Any, dict]:
    """For each variable that is a sum of products, or linear in one, the products by their outputs.

    A product counts if both factors are in `changing`.
    """
    found: dict[Any, dict[Var, JaxprEqn]] = {}
    for equation in equations:
        inputs, outputs = equation.invars, equation.outvars
        if not all(isinstance(a, Var) for a in inputs):
            continue
        if equation.primitive is lax.dot_general_p:
            if changing.issuperset(inputs):
                found[outputs[0]] = {outputs[0]: equation}
        elif inputs and _is_linear(equation) and all(a in found for a in inputs):
            terms = {var: product for a in inputs for var, product in found[a].items()}
            found.update(dict.fromkeys(outputs, terms))
    return found


def sum_of_products(equation: JaxprEqn, left: Any, right: Any) -> Any:
    """The sum over the first axis, that of the steps, of the product of `equation`."""
    contracted, batch = equation.params["dimension_numbers"]
    rank = len(contracted[0])
    is_sharded = not jax.typeof(left).sharding.mesh.empty
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
    with jx.in_place_of(equation):
        params = {**equation.params, "dimension_numbers": numbers}
        return lax.dot_general_p.bind(left, right, **params)


def _is_linear(equation: JaxprEqn) -> bool:
    """Whether the equation is linear in all of its inputs together, and does nothing else."""
    rule = RULES.get(equation.primitive)
    return bool(rule) and not equation.effects and rule.is_linear(len(equation.invars))


def _size(variables: Iterable) -> int:
    """In bytes."""
    return sum(var.aval.size * var.aval.dtype.itemsize for var in variables)
