"""The two halves of a jaxpr, and where the second finds what it reads of the first.

    y = f(x)        ->        (y, residuals) = f1(x),        y_dot = f2(residuals, x_dot)

A residual that is an input, an output or a constant is at hand anyway, so it is not fresh: no loop
stacks it a second time, and no branch hands it over.  What need not be done in each step of a loop
is done before it (`hoist`), and what need not be stacked is made again (`postpone`).

Read next: `sums.py`, what is done after a loop; or `cond.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, NamedTuple

from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, Var, set_current_trace

from functrans import jaxpr as jx
from functrans.linearize import linearize_jaxpr
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
