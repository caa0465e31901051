"""Sums over the steps of a loop, computed after it as one large product.

    sum_t x_t^T y_t  =  [x_1; x_2; ...]^T [y_1; y_2; ...]

The gradient of a weight by which every step multiplies is such a sum.

Read next: `places.py`, sums in a few places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Var
from jax.extend.core.primitives import remat_p

from functrans import jaxpr as jx
from functrans import values
from functrans.programs.cuts import is_opened, size
from functrans.programs.live import giving, live, reached
from functrans.programs.loops import scan
from functrans.programs.replay import opened
from functrans.rules import RULES


class Sums(NamedTuple):
    """The body of a loop without some of the sums over its steps, which come after the loop."""

    body: ClosedJaxpr
    """Its results are the sums that stay in it, its other results, and factors to stack."""
    stay: list[bool]
    """For each of the sums."""
    products: list[tuple[JaxprEqn, int, int]]
    """Each with the positions of its factors among the stacked arrays."""
    after: ClosedJaxpr
    """From the sums of the products to the sums that do not stay."""
    block: int
    """How many steps lie between two such sums."""

    def pick_stay(self, xs: Iterable) -> list:
        """Of a list with an entry for each sum, the entries of the sums that stay."""
        return values.pick(xs, self.stay)

    def later(self, stacked: Sequence) -> list:
        """The sums that do not stay, over the steps of a block, from its stacked factors."""
        products = [sum_of_products(e, stacked[i], stacked[j]) for e, i, j in self.products]
        return jx.evaluate(self.after, *products)

    def scan(self, body: Callable, start: Any, steps: Any, options: dict) -> tuple:
        """Loop over the steps, in blocks.

        Args:
          body: gives the next state, and a pair: its other results, and the factors.

        Returns:
          The last state, the other results, and the sums that do not stay.
        """
        length, reverse = options["length"], options["reverse"]

        def block(state, steps):
            state, (outs, new) = scan(body, state, steps, **options | {"length": self.block})
            return state, outs, self.later([*jax.tree.leaves(steps), *new])

        def next_block(pair, steps):
            (state, sums) = pair
            state, outs, more = block(state, steps)
            return (state, [*map(values.add, sums, more)]), outs

        if self.block == length:
            return block(start, steps)
        zeros, count = [*map(values.zeros, self.after.out_avals)], length // self.block
        blocks = jax.tree.map(lambda x: lax.reshape(x, (count, self.block, *x.shape[1:])), steps)
        (state, sums), outs = scan(
            next_block, (start, zeros), blocks, length=count, reverse=reverse
        )
        return state, jax.tree.map(lambda x: lax.reshape(x, (length, *x.shape[2:])), outs), sums


def sums_after(program: ClosedJaxpr, kinds: Sequence[str], sums: int, length: int) -> Sums:
    """Move sums of products over the steps of a loop behind the loop.

    One large product is faster than many small ones, but its factors must be stacked. Factors that
    are not yet stacked must be smaller than the product, which the loop would read and write in
    each step. If they are larger than half of what the steps read, of which a loop would stack all
    that it does not make again, the loop runs in blocks, each of so many steps that its factors are
    as large as the products; or, if these were but few, some of the sums stay.

    Args:
      program: the body; its first results, `sums` of them, are to be summed.
      kinds: for each input of the body `"const"`; `"step"` for a stacked value, `"bar"` for
        a stacked cotangent; or `"carry"`, a cotangent too.
      length: the number of steps.
    """
    if sums:
        program = exposed(opened(program, is_opened), [kind != "const" for kind in kinds])
    jaxpr = program.jaxpr
    of_kind: dict[str, list[Var]] = {"const": [], "step": [], "carry": [], "bar": []}
    for var, kind in zip(jaxpr.invars, kinds, strict=True):
        of_kind[kind].append(var)
    stacked, bars = [*of_kind["step"], *of_kind["bar"]], [*of_kind["carry"], *of_kind["bar"]]
    varying, linear = (reached(jaxpr.eqns, xs) for xs in ([*stacked, *bars], bars))
    products = _sums_of_products(jaxpr.eqns, varying)
    read = {
        a
        for e in jaxpr.eqns
        if not linear.isdisjoint(e.outvars)
        for a in e.invars
        if isinstance(a, Var)
    }
    half = (_size(read & varying - linear) + _size(of_kind["bar"])) / 2
    totals = [(total, products.get(total, {})) for total in jaxpr.outvars[:sums]]
    taken, new, stay = _taken(totals, stacked, math.inf)
    block = length
    if _size(new) > half:
        gone = _size(total for (total, _), stays in zip(totals, stay, strict=True) if not stays)
        block = _divisor(length, gone / _size(new))
    if block < min(length, SHORT):
        (taken, new, stay), block = _taken(totals, stacked, half), length
    positions = {var: i for i, var in enumerate([*stacked, *new])}
    gone, kept = values.part(jaxpr.outvars[:sums], stay)
    body = giving(program, [*kept, *jaxpr.outvars[sums:], *new])
    rest = [e for e in jaxpr.eqns if not e.effects and taken.keys().isdisjoint(e.outvars)]
    after = jx.closed(list(taken), gone, live(rest, gone), jaxpr.debug_info)
    products = [(e, positions[e.invars[0]], positions[e.invars[1]]) for e in taken.values()]
    return Sums(body, stay, products, after, block)


SHORT = 8  # fewer steps are not worth a block


def _taken(totals: Sequence[tuple], stacked: Sequence, free: float) -> tuple[dict, list, list]:
    """The products to compute later, the factors to stack for them, in `free`
    bytes; and for each sum, whether it stays."""
    taken, new, stay = {}, [], []
    for total, terms in totals:
        factors = dict.fromkeys(a for e in terms.values() for a in e.invars if a not in stacked)
        more = [var for var in factors if var not in new]
        stay.append(not terms or _size(factors) > _size([total]) or _size(more) > free)
        if not stay[-1]:
            taken |= terms
            new += more
            free -= _size(more)
    return taken, new, stay


def _divisor(number: int, limit: float) -> int:
    """The largest divisor up to `limit`."""
    return max(d for d in range(1, 1 + max(1, int(min(number, limit)))) if number % d == 0)


def exposed(program: ClosedJaxpr, changing: Sequence[bool]) -> ClosedJaxpr:
    """The program, in which a checkpoint gives factors instead of sums of their products.

    Args:
      changing: the inputs that differ between steps.
    """
    jaxpr = program.jaxpr
    if not any(e.primitive is remat_p for e in jaxpr.eqns):
        return program
    found = reached(jaxpr.eqns, values.pick(jaxpr.invars, changing))
    equations = [new for e in jaxpr.eqns for new in _exposed(e, found)]
    info, consts = jaxpr.debug_info, program.consts
    return jx.closed(jaxpr.invars, jaxpr.outvars, equations, info, jaxpr.constvars, consts)


def _exposed(equation: JaxprEqn, changing: Container) -> list[JaxprEqn]:
    """A checkpoint, followed by the equations of the sums of products."""
    if equation.primitive is not remat_p:
        return [equation]
    flags = [isinstance(a, Var) and a in changing for a in equation.invars]
    body = exposed(opened(jx.closed_of(equation.params["jaxpr"]), is_opened), flags)
    jaxpr = body.jaxpr
    found = _sums_of_products(jaxpr.eqns, reached(jaxpr.eqns, values.pick(jaxpr.invars, flags)))
    if body.consts or found.keys().isdisjoint(a for a in jaxpr.outvars if isinstance(a, Var)):
        return [equation]
    is_sum = jx.among(jaxpr.outvars, found)
    is_sum = [s and jaxpr.outvars.count(a) == 1 for s, a in zip(is_sum, jaxpr.outvars, strict=True)]
    (kept, sums), (rest, outs) = (
        values.part(atoms, is_sum) for atoms in (jaxpr.outvars, equation.outvars)
    )
    after = live([e for e in jaxpr.eqns if found.keys() >= {*e.outvars}], sums)
    made = {v: Var(v.aval) for e in after for v in e.outvars} | dict(zip(sums, outs, strict=True))
    given = dict(zip(jaxpr.invars, equation.invars, strict=True))
    factors = dict.fromkeys(a for e in after for a in e.invars if a not in {**given, **made})
    new = {v: Var(v.aval) for v in factors}
    renamed = given | made | new
    params = equation.params | {"jaxpr": giving(body, [*kept, *factors]).jaxpr}
    line, outputs = equation.source_info, [*rest, *new.values()]
    call = equation.replace(outvars=outputs, primitive=remat_p, params=params)

    def renaming(atoms: Sequence) -> list:
        return [renamed[a] for a in atoms]

    tail = [e.replace(renaming(e.invars), renaming(e.outvars), source_info=line) for e in after]
    return [call, *tail]


def _sums_of_products(equations: Sequence[JaxprEqn], changing: set[Var]) -> dict[Any, dict]:
    """For each variable that is a sum of products, or linear in one, its products by their outputs.

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
    """The sum over the first axis, the steps, of the product of `equation`."""
    contracted, batch = equation.params["dimension_numbers"]
    rank = len(contracted[0])
    is_sharded = not jax.typeof(left).sharding.mesh.empty
    if rank and contracted == (tuple(range(rank)),) * 2 and not is_sharded:
        # Make one axis of the steps and the contracted axes; then XLA need not move them together.
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
    return sum(map(size, variables))
