"""The two halves of a jaxpr, and where the second finds what it reads of the first.

    halves : (x -> y)  ->  (x -> (y, fresh),  (residuals, x_dot) -> y_dot)

A residual that is an input, an output or a constant is at hand anyway, so it is not fresh: no loop
stacks it a second time, and no branch hands it over.

Read next: `cond.py`.
"""

from __future__ import annotations

from itertools import compress
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Literal, Var

from functrans import jaxpr as jx
from functrans.linearize import linearize_jaxpr

Source = tuple[str, Any]


class Halves(NamedTuple):
    """A linearized jaxpr: see `halves`."""

    first: ClosedJaxpr
    second: ClosedJaxpr
    gaps: list
    sources: list[Source]
    """For each residual `("in", i)`, `("out", i)`, `("fresh", i)` or `("value", x)`."""

    @property
    def fresh(self) -> list:
        """The types of the residuals that only the first half can give."""
        return list(self.first.out_avals[len(self.gaps) :])


@jx.cached_by_program
def halves(
    program: ClosedJaxpr,
    moving: tuple[bool, ...],
    inputs: tuple[bool, ...] | None = None,
    outputs: tuple[bool, ...] | None = None,
) -> Halves:
    """Linearize a jaxpr in the inputs that move.

    `inputs` and `outputs` say which are at hand for the second half; if left out, all are.
    """
    first, second, gaps = linearize_jaxpr(program, moving)
    jaxpr = first.jaxpr
    ys, atoms = jaxpr.outvars[: len(gaps)], jaxpr.outvars[len(gaps) :]
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
    return Halves(jx.giving(first, [*ys, *fresh]), second, gaps, sources)


def hoist(half: Halves, consts: int) -> tuple[ClosedJaxpr, Halves]:
    """What a loop need not do again: the residuals that depend on nothing but its constants.

    Returns the program that computes them from the constants, the first inputs of the body, and the
    halves in which their sources are `("outer", i)`.
    """
    jaxpr, count = half.first.jaxpr, len(half.gaps)
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
