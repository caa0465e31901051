"""A choice between functions: the derivative of the one that is chosen.

    y = f_i(x)          forward:    y_dot = J f_i(x) x_dot
                        reverse:    x_bar = J f_i(x)^T y_bar

Every branch takes and gives the same types.  So a tangent that moves in one branch is written out
as zeros in the others, and the residuals of all branches share places of equal type.

Read next: `scan.py`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress
from typing import Any

from jax.extend.core import ClosedJaxpr, set_current_trace
from jax.extend.core.primitives import cond_p

from functrans import jaxpr as jx
from functrans.control_flow.halves import Halves, halves, located, merged, parted, split
from functrans.forward import jvp_jaxpr
from functrans.jaxpr import Linear
from functrans.reverse import transpose_jaxpr
from functrans.rules import Rule, call, staged
from functrans.tracer import stage


def union(gaps: Sequence[list]) -> list:
    """The gaps of all branches together: a tangent is zero if it is in each of them."""
    return [None if None in column else column[0] for column in zip(*gaps, strict=True)]


def filled(values: Sequence, own: list, wanted: list) -> list:
    """The tangents of one branch for the gaps of all: zeros are written out where others move."""
    pairs = zip(jx.fill(own, values), wanted, strict=True)
    return [jx.instantiate(tangent) for tangent, gap in pairs if gap is None]


def restage(fun: Any, like: ClosedJaxpr, avals: Sequence) -> ClosedJaxpr:
    return stage(fun, avals, like.jaxpr.debug_info)


# Derived programs hang on the first branch. They must not keep it alive, which may be another one
# too: the others are held weakly.


def apart(branches: Sequence) -> tuple:
    """The first branch, and references to the others."""
    return branches[0], tuple(map(weakref.ref, branches[1:]))


def together(first: ClosedJaxpr, others: tuple) -> list:
    return [first, *(other() for other in others)]


@jx.cached_by_program
def jvp_branches(first: ClosedJaxpr, others: tuple, moving: tuple[bool, ...]) -> tuple:
    """The branches of `(x, x_dot) -> (y, y_dot)`, and the gaps of `y_dot`."""
    derived = [jvp_jaxpr(branch, moving) for branch in together(first, others)]
    wanted = union([gaps for _, gaps in derived])

    def branch(program, own):
        def run(*inputs):
            outs = jx.evaluate(program, *inputs)
            return [*outs[: len(own)], *filled(outs[len(own) :], own, wanted)]

        return restage(run, program, program.in_avals)

    return tuple(branch(*pair) for pair in derived), wanted


@jx.cached_by_program
def linear_branches(first: ClosedJaxpr, others: tuple, moving: tuple[bool, ...]) -> tuple:
    """The branches of both halves, what the second ones read, and the gaps of `y_dot`."""
    derived = [halves(branch, moving) for branch in together(first, others)]
    wanted = union([half.gaps for half in derived])
    finish = [partial(filled, own=half.gaps, wanted=wanted) for half in derived]
    avals = [a.to_tangent_aval() for a in compress(first.in_avals, moving)]
    return *two_switches(derived, finish, avals), wanted


@jx.cached_by_program
def mixed_branches(first: ClosedJaxpr, others: tuple, linear: tuple[bool, ...]) -> tuple:
    """Both halves of branches that are linear in some inputs, and which outputs are linear."""
    branches = together(first, others)
    found = [split(branch, linear, (False,) * len(first.out_avals))[2] for branch in branches]
    either = tuple(map(any, zip(*found, strict=True)))
    count = len(either) - sum(either)
    pairs = [split(branch, linear, either)[:2] for branch in branches]
    derived = [located(one, two, count) for one, two in pairs]
    avals = parted(first.in_avals, linear)[1]
    return *two_switches(derived, [list] * len(branches), avals), either


def two_switches(derived: list[Halves], finish: Sequence[Callable], linear_avals: list) -> tuple:
    """The branches of both halves, and which of `(x, y)` the second ones read.

    The first give `(y, places)`, where each fresh residual of each branch has a place; the second
    take `(what they read of x and y, places, x_dot)`.
    """
    places, locations = _share([half.fresh for half in derived])
    read = sorted({s for half in derived for s in half.sources if s[0] in ("in", "out")})
    known, count = derived[0].first, derived[0].count

    def primal(half, location, _):
        def run(*inputs):
            outs = jx.evaluate(half.first, *inputs)
            given = dict(zip(location, outs[count:], strict=True))
            rest = [given[i] if i in given else jx.zeros(place) for i, place in enumerate(places)]
            return [*outs[:count], *rest]

        return restage(run, half.first, known.in_avals)

    def linear(half, location, finish):
        def run(*inputs):
            at_hand = dict(zip(read, inputs, strict=False))
            at_hand |= {("fresh", i): inputs[len(read) + at] for i, at in enumerate(location)}
            given = [at if kind == "value" else at_hand[kind, at] for kind, at in half.sources]
            return finish(jx.evaluate(half.second, *given, *inputs[len(read) + len(places) :]))

        of = {"in": known.in_avals, "out": known.out_avals}
        avals = [*(of[kind][i] for kind, i in read), *places, *linear_avals]
        return restage(run, half.second, avals)

    triples = list(zip(derived, locations, finish, strict=True))
    primals, tangents = (tuple(half(*triple) for triple in triples) for half in (primal, linear))
    return primals, tangents, read


def _share(residuals: Sequence[list]) -> tuple[list, list[list[int]]]:
    """Places for the residuals of all branches, and for each residual the number of its place."""
    places: list = []
    located = []
    for avals in residuals:
        free = list(range(len(places)))
        location = []
        for aval in avals:
            at = next((i for i in free if places[i] == aval), len(places))
            if at == len(places):
                places.append(aval)
            else:
                free.remove(at)
            location.append(at)
        located.append(location)
    return places, located


@jx.cached_by_program
def transposed_branches(
    first: ClosedJaxpr, others: tuple, linear: tuple[bool, ...], moving: tuple[bool, ...]
) -> tuple:
    """The branches of `(known inputs, y_bar) -> x_bar`, and the gaps of `x_bar`."""
    derived = [transpose_jaxpr(branch, linear, moving) for branch in together(first, others)]
    wanted = union([gaps for _, gaps in derived])

    def branch(program, own):
        def run(*inputs):
            return filled(jx.evaluate(program, *inputs), own, wanted)

        return restage(run, program, program.in_avals)

    return tuple(branch(*pair) for pair in derived), wanted


class CondRule(Rule):
    """Derive each branch, and choose between the results."""

    def forward(self, primitive, primals, tangents, params):
        index, *operands = primals
        first, others = apart(params["branches"])
        branches, gaps = jvp_branches(first, others, jx.moving(tangents[1:]))
        inputs = [*operands, *jx.present(tangents)]
        outs = primitive.bind(index, *inputs, **params | {"branches": branches})
        return outs[: len(gaps)], jx.fill(gaps, outs[len(gaps) :])

    def linearize(self, primitive, primals, tangents, params):
        index, *operands = primals
        first, others = apart(params["branches"])
        moving = jx.moving(tangents[1:])
        *branches, gaps = linear_branches(first, others, moving)
        known, linear = (index, operands), jx.present(tangents)
        outs, tangents_out = choose_twice(primitive, params, branches, known, linear, len(gaps))
        return outs, jx.fill(gaps, tangents_out)

    def transpose(self, primitive, cotangents, inputs, params):
        index, *operands = inputs
        first, others = apart(params["branches"])
        linear = tuple(type(x) is Linear for x in operands)
        pulls, gaps = transposed_branches(first, others, linear, jx.moving(cotangents))
        known = [x for x in operands if type(x) is not Linear]
        pulled = primitive.bind(
            index, *known, *jx.present(cotangents), **params | {"branches": pulls}
        )
        x_bars = iter(jx.fill(gaps, pulled))
        return [None, *(next(x_bars) if is_linear else None for is_linear in linear)]


def choose_twice(primitive, params, branches, known, linear, count):
    """Choose the first half, then the second one, which may run on a tape."""
    (index, operands), (primal, tangent, read) = known, branches
    outs = primitive.bind(index, *operands, **params | {"branches": primal})
    outs, places = outs[:count], outs[count:]
    given = {"in": operands, "out": outs}
    inputs = [*(given[kind][i] for kind, i in read), *places, *linear]
    return outs, primitive.bind(index, *inputs, **params | {"branches": tangent})


def _mixed(trace, primitive, inputs, params):
    """On a tape, do what the branches do beside their linear work now."""
    if not trace.is_linear:
        return None
    (index, *operands), (first, others) = inputs, apart(params["branches"])
    owned = tuple(map(trace.owns, operands))
    *branches, linear = mixed_branches(first, others, owned)
    if all(linear):
        return None
    known, rest = parted(operands, owned)
    count = len(linear) - sum(linear)
    with set_current_trace(trace):
        outs = choose_twice(primitive, params, branches, (index, known), rest, count)
    return merged(*outs, linear)


call(cond_p, CondRule())
staged(cond_p, _mixed)
