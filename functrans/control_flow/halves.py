"""The two halves of a jaxpr, and where the second finds what it reads of the first.

    y = f(x)        ->        (y, residuals) = f1(x),        y_dot = f2(residuals, x_dot)

A residual that is an input, an output or a constant is at hand anyway, so it is not fresh: no loop
stacks it a second time, and no branch hands it over.

Read next: `cond.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Literal, Var, set_current_trace, take_current_trace

from functrans import jaxpr as jx
from functrans.linearize import linearize_jaxpr
from functrans.tracer import RecordingTrace, stage

Source = tuple[str, Any]

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
    return Halves(giving(first, [*ys, *fresh]), second, count, sources, [])


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
        with take_current_trace() as parent:
            tape = RecordingTrace(parent)
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


def giving(program: ClosedJaxpr, outputs: Sequence[Any]) -> ClosedJaxpr:
    """The program with these outputs, and with the equations that they need."""
    jaxpr, equations = program.jaxpr, jx.live(program.jaxpr.eqns, outputs)
    info = jaxpr.debug_info
    return jx.closed(jaxpr.invars, outputs, equations, info, jaxpr.constvars, program.consts)


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
    first = giving(half.first, [*jaxpr.outvars[:count], *kept])
    return outer, half._replace(first=first, sources=sources)
