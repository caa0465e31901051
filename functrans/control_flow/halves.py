"""The two halves of a jaxpr, and where the second finds what it reads of the first.

    y = f(x)        ->        (y, residuals) = f1(x),        y_dot = f2(residuals, x_dot)

A residual that is an input, an output or a constant is at hand anyway, so it is not fresh: no loop
stacks it a second time, and no branch hands it over.  What need not be done in each step of a loop
is done before it (`hoist`) or after it (`sums_after`), and what need not be done for each vector of
a basis is done for all at once (`at_identity`).

Read next: `cond.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any, NamedTuple

import jax.core
import numpy as np
from jax import lax
from jax.extend.core import (
    ClosedJaxpr,
    JaxprEqn,
    Literal,
    Var,
    set_current_trace,
)

from functrans import jaxpr as jx
from functrans.jaxpr import Linear
from functrans.linearize import linearize_jaxpr
from functrans.rules import RULES, Elementwise, LinearRule, Multilinear
from functrans.tracer import RecordingTrace, stage

Source = tuple[str, Any]

ARITHMETIC = (lax.add_p, lax.sub_p, lax.mul_p, lax.neg_p, lax.square_p, lax.integer_pow_p)

# Some equations carry an open jaxpr; what derives from it hangs on this closed one.
closed_of = jx.cached_by_program(lambda jaxpr: jx.with_constants(jaxpr, []))


class Halves(NamedTuple):
    """A jaxpr in two: `x -> (y, fresh residuals)` and `(residuals, x_dot) -> y_dot`."""

    first: ClosedJaxpr
    second: ClosedJaxpr
    count: int
    """How many results the first has before the fresh residuals."""
    sources: list[Source]
    """For each residual `("in", i)`, `("out", i)`, `("fresh", i)` or `("value", x)`."""
    gaps: list
    """The zeros among `y_dot`, which the second half leaves out."""

    @property
    def fresh(self) -> list:
        """The types of the residuals that only the first half can give."""
        return list(self.first.out_avals[self.count :])


@jx.cached_by_program
def halves(program: ClosedJaxpr, moving: tuple[bool, ...]) -> Halves:
    """Linearize a jaxpr in the inputs that move; all its inputs and outputs are at hand."""
    first, second, gaps = linearize_jaxpr(program, moving)
    return located(first, second, len(gaps))._replace(gaps=gaps)


def located(
    first: ClosedJaxpr,
    second: ClosedJaxpr,
    count: int,
    inputs: Sequence[bool] | None = None,
    outputs: Sequence[bool] | None = None,
) -> Halves:
    """Find the residuals, which are what `first` gives after `count` results.

    `inputs` and `outputs` say which are at hand for the second half; if left out, all are.
    """
    jaxpr = first.jaxpr
    ys, atoms = jaxpr.outvars[:count], jaxpr.outvars[count:]
    found: dict[Any, Source] = {}
    for kind, variables, flags in (("in", jaxpr.invars, inputs), ("out", ys, outputs)):
        for i, var in enumerate(variables):
            if isinstance(var, Var) and (flags is None or flags[i]):
                found.setdefault(var, (kind, i))
    found.update(zip(jaxpr.constvars, (("value", x) for x in first.consts), strict=True))
    fresh: list[Var] = []
    sources = []
    for atom in atoms:
        if isinstance(atom, Literal):
            sources.append(("value", atom.val))
            continue
        if atom not in found:
            found[atom] = ("fresh", len(fresh))
            fresh.append(atom)
        sources.append(found[atom])
    return Halves(jx.giving(first, [*ys, *fresh]), second, count, sources, [])


@jx.cached_by_program
def split(
    program: ClosedJaxpr, linear: tuple[bool, ...], at_least: tuple[bool, ...]
) -> tuple[ClosedJaxpr, ClosedJaxpr, tuple[bool, ...]]:
    """Split a jaxpr that is linear in some of its inputs, and does other work as well.

    A user's rule may call a loop that carries both values and tangents.  On a tape its values are
    computed now, and only what is linear is written down.

    Args:
      linear: which inputs the program is linear in.
      at_least: which outputs are to be given by the second half in any case.

    Returns:
      `known inputs -> (known outputs, residuals)`, `(residuals, linear inputs) -> linear outputs`,
      and which outputs are linear.
    """
    half: list = []

    def known_part(*known):
        tape = RecordingTrace(jx.current_trace())
        new = map(tape.new_input, compress(program.in_avals, linear))
        inputs = merged(known, new, linear)
        try:
            with set_current_trace(tape):
                outs = jx.evaluate(program, *inputs)
            flags = [tape.owns(x) or forced for x, forced in zip(outs, at_least, strict=True)]
            info = program.jaxpr.debug_info
            jaxpr, residuals = tape.finish(list(compress(outs, flags)), info)
        finally:
            tape.invalidate()
        half.extend([jaxpr, tuple(flags)])
        return [*parted(outs, flags)[0], *residuals]

    first = stage(known_part, parted(program.in_avals, linear)[0], program.jaxpr.debug_info)
    return first, jx.with_constants(half[0], []), half[1]


def parted(values: Sequence, flags: Sequence[bool]) -> tuple[list, list]:
    """The values without the flag, and those with it."""
    pairs = list(zip(values, flags, strict=True))
    return [x for x, flag in pairs if not flag], [x for x, flag in pairs if flag]


def merged(unflagged: Iterable, flagged: Iterable, flags: Sequence[bool]) -> list:
    """The inverse of `parted`."""
    parts: Any = iter(unflagged), iter(flagged)
    return [next(parts[flag]) for flag in flags]


# ---- a loop, and what is done outside of it ------------------------------------------------------


def hoist(half: Halves, consts: int) -> tuple[ClosedJaxpr, Halves]:
    """What a loop need not do again: the residuals that depend on nothing but its constants.

    Returns the program that computes them from the constants, the first inputs of the body, and the
    halves in which their sources are `("outer", i)`.
    """
    jaxpr, count = half.first.jaxpr, half.count
    fixed = {*jaxpr.constvars, *jaxpr.invars[:consts]}
    equations = []
    for equation in jaxpr.eqns:
        if not equation.effects and all(
            isinstance(atom, Literal) or atom in fixed for atom in equation.invars
        ):
            fixed.update(equation.outvars)
            equations.append(equation)
    fresh = jaxpr.outvars[count:]
    moved = [var in fixed for var in fresh]
    outer = jx.closed(
        jaxpr.invars[:consts],
        list(compress(fresh, moved)),
        jx.live(equations, list(compress(fresh, moved))),
        jaxpr.debug_info,
        jaxpr.constvars,
        half.first.consts,
    )
    places = {"outer": 0, "fresh": 0}
    found = []
    for is_moved in moved:
        kind = "outer" if is_moved else "fresh"
        found.append((kind, places[kind]))
        places[kind] += 1
    sources = [found[at] if kind == "fresh" else (kind, at) for kind, at in half.sources]
    kept = [var for var, is_moved in zip(fresh, moved, strict=True) if not is_moved]
    first = jx.giving(half.first, [*jaxpr.outvars[:count], *kept])
    return outer, half._replace(first=first, sources=sources)


def postpone(half: Halves, carry: int) -> tuple[ClosedJaxpr, list[Source], Halves]:
    """What a loop need not stack: what only the second half reads, and can make of what it has.

    Of `s = logistic(x)` the second half reads `s` and `s (1 - s)`; it is given `s` alone. Nothing
    is computed twice, as the first half then does without. Arithmetic alone is postponed.

    Returns the program that makes such residuals, the sources of its inputs, and the halves in
    which the sources of its results are `("later", i)`. `carry` is the number of results of the
    first half that are not stacked.
    """
    jaxpr, count = half.first.jaxpr, half.count
    ys, fresh = jaxpr.outvars[:count], jaxpr.outvars[count:]
    read = [("in", i) for i in range(len(jaxpr.invars)) if ("in", i) in half.sources]
    found: dict[Any, Source] = {jaxpr.invars[i]: (kind, i) for kind, i in read}
    found |= {y: ("out", i) for i, y in enumerate(ys) if i >= carry and isinstance(y, Var)}
    needed = {var for equation in jx.live(jaxpr.eqns, ys) for var in equation.outvars}
    made = {
        equation.outvars[0]: equation
        for equation in jaxpr.eqns
        if equation.primitive in ARITHMETIC and needed.isdisjoint(equation.outvars)
    }
    stays = dict.fromkeys(fresh, True)

    def is_made(var: Any) -> bool:
        return var in made and all(
            isinstance(a, Literal) or a in found or stays.get(a) or is_made(a)
            for a in made[var].invars
        )

    for var in reversed(fresh):  # after what it is made of
        stays[var] = False
        stays[var] = not is_made(var)
    later = [var for var in fresh if not stays[var]]
    kept = [var for var in fresh if stays[var]]
    found |= {var: ("fresh", i) for i, var in enumerate(kept)}
    equations = jx.live([e for var, e in made.items() if var not in found], later)
    own = {equation.outvars[0] for equation in equations}
    leaves = {
        a: found[a] for e in equations for a in e.invars if isinstance(a, Var) and a not in own
    }
    program = jx.closed(list(leaves), later, equations, jaxpr.debug_info)
    moved = found | {var: ("later", i) for i, var in enumerate(later)}
    sources = [moved[fresh[i]] if kind == "fresh" else (kind, i) for kind, i in half.sources]
    first = jx.giving(half.first, [*ys, *kept])
    return program, list(leaves.values()), half._replace(first=first, sources=sources)


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

        sum_t x_t^T y_t  =  [x_1; x_2; ...]^T [y_1; y_2; ...]

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


# ---- a linear program at every vector of a basis -------------------------------------------------


def at_identity(linear: Callable, avals: Sequence[Any]) -> tuple[ClosedJaxpr, list]:
    """Stage a linear function of a list, and do its first products with a whole basis.

    Where basis vectors meet a matrix as they came, or scaled element by element by what is known,
    the products are the columns of the matrix, scaled, `A I = A`; nothing is multiplied and summed.

    Returns the rest of the program, a function of a basis vector and of one of each of the
    products; and the products, stacked over the basis.
    """
    types = [jax.core.ShapedArray(aval.shape, aval.dtype) for aval in avals]
    program = stage(lambda *xs: linear(list(xs)), types, jx.debug_info("jacobian", linear))
    jaxpr, ends = program.jaxpr, list(itertools.accumulate(aval.size for aval in avals))
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
    # A diagonal matrix D makes (D 1)_i e_i of e_i: what it makes of ones is the scale.
    ones = [(i, lax.full(aval.shape, 1, aval.dtype)) for i, aval in enumerate(avals)]
    scaled = dict(zip(jaxpr.invars, ones, strict=True))
    rest: list[JaxprEqn] = []
    products: dict[Var, Any] = {}
    for equation in jaxpr.eqns:
        values = [a.val if isinstance(a, Literal) else known.get(a) for a in equation.invars]
        moving = [i for i, x in enumerate(values) if x is None]
        if not moving:
            known.update(zip(equation.outvars, jx.bind(equation, values), strict=True))
            continue
        rest.append(equation)
        i, scale = scaled.get(equation.invars[moving[0]], (0, None))
        if scale is None or len(moving) > 1:
            continue
        position = moving[0]
        if equation.primitive is lax.dot_general_p:
            columns = _columns(equation, position, values[1 - position], scale)
            if columns is not None:
                others = ends[i] - scale.size, ends[-1] - ends[i], 0
                padding = [others, *[(0, 0, 0)] * (columns.ndim - 1)]
                products[equation.outvars[0]] = lax.pad(
                    columns, np.zeros((), columns.dtype), padding
                )
        elif _is_diagonal(equation, scale.shape):
            values[position] = scale
            scaled[equation.outvars[0]] = i, *jx.bind(equation, values)
    kept = jx.live([e for e in rest if products.keys().isdisjoint(e.outvars)], jaxpr.outvars)
    inputs, consts = [*jaxpr.invars, *products], list(known.values())
    program = jx.closed(inputs, jaxpr.outvars, kept, jaxpr.debug_info, list(known), consts)
    return program, list(products.values())


def _is_diagonal(equation: JaxprEqn, shape: tuple) -> bool:
    """Whether an equation multiplies each element of an array of this shape, and no more."""
    rule = RULES.get(equation.primitive)
    is_elementwise = isinstance(rule, Elementwise) and not isinstance(rule, Multilinear)
    return is_elementwise and Linear(equation.outvars[0].aval).shape == shape


def _columns(equation: JaxprEqn, position: int, matrix: Any, scale: Any) -> Any:
    """The products with all vectors of the basis, scaled, one for each place on the first axis.

    `None` if a product does not sum over all dimensions of the vector.
    """
    (contracted, _), aval = equation.params["dimension_numbers"], equation.outvars[0].aval
    if len(contracted[position]) < scale.ndim:
        return None
    order = [d for _, d in sorted(zip(contracted[position], contracted[1 - position], strict=True))]
    free = [d for d in range(matrix.ndim) if d not in order]
    columns = jx.cast(lax.transpose(matrix, [*order, *free]), aval)
    factor = lax.broadcast_in_dim(jx.cast(scale, aval), columns.shape, range(scale.ndim))
    return lax.reshape(columns * factor, (scale.size, *columns.shape[scale.ndim :]))
