"""The two halves of a jaxpr, and the places where the second finds its residuals.

    y = f(x)        ->        (y, residuals) = f1(x),        y_dot = f2(residuals, x_dot)

A residual that is an input, an output or a constant is there already; it is not *fresh*.  No
loop stacks it a second time, and no branch returns it.  Work that is the same in each step of a
loop runs before the loop (`hoist`).

Read next: `cuts.py`, where to cut so that the fewest bytes pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.programs.live import depends, giving, live, reached
from functrans.tracer import RecordingTrace, stage
from functrans.values import Flags


class Address(NamedTuple):
    """Where the second half finds a residual."""

    kind: str
    """`in`, `out` or `fresh`, for the first half; `outer`, before the loop; or `value`, a
    constant."""
    at: Any
    """Its number among those of its kind; for a constant, the value."""

    def read(self, at_hand: dict[Address, Any]) -> Any:
        return self.at if self.kind == "value" else at_hand[self]


def numbered(kind: str, xs: Sequence, first: int = 0) -> dict[Address, Any]:
    """Some values, each at its address."""
    return {Address(kind, first + i): x for i, x in enumerate(xs)}


class Halves(NamedTuple):
    """A jaxpr in two: `x -> (y, fresh residuals)` and `(residuals, x_dot) -> y_dot`."""

    first: ClosedJaxpr
    second: ClosedJaxpr
    count: int
    """How many results the first half has before the fresh residuals."""
    addresses: list[Address]
    """An address for each residual."""
    moved: Flags
    """Which `y_dot` the second half gives; the others are zero."""

    @property
    def fresh(self) -> list:
        """The types of the residuals that only the first half can give."""
        return list(self.first.out_avals[self.count :])


def located(
    first: ClosedJaxpr,
    second: ClosedJaxpr,
    moved: Flags,
    count: int,
    inputs: Sequence[bool] | None = None,
    outputs: Sequence[bool] | None = None,
) -> Halves:
    """Find the residuals: the outputs of `first` after `count` results.

    `inputs` and `outputs` say which of these the second half has; by default all.
    """
    jaxpr = first.jaxpr
    ys, atoms = jaxpr.outvars[:count], jaxpr.outvars[count:]
    found: dict[Any, Address] = {}
    for kind, variables, flags in (("in", jaxpr.invars, inputs), ("out", ys, outputs)):
        for i, var in enumerate(variables):
            if isinstance(var, Var) and (flags is None or flags[i]):
                found.setdefault(var, Address(kind, i))
    found.update(zip(jaxpr.constvars, (Address("value", x) for x in first.consts), strict=True))
    fresh: list[Var] = []
    addresses = []
    for atom in atoms:
        if isinstance(atom, Literal):
            addresses.append(Address("value", atom.val))
            continue
        if atom not in found:
            found[atom] = Address("fresh", len(fresh))
            fresh.append(atom)
        addresses.append(found[atom])
    return Halves(giving(first, [*ys, *fresh]), second, count, addresses, moved)


# ---- by dependence -------------------------------------------------------------------------------


@caches.by_program
def reached_outputs(program: ClosedJaxpr, inputs: Flags) -> Flags:
    """For each output, whether it depends on one of these inputs; looks into calls."""
    jaxpr = program.jaxpr
    found = reached(jaxpr.eqns, values.pick(jaxpr.invars, inputs), depends)
    return jx.among(jaxpr.outvars, found)


class Divided(NamedTuple):
    """`known inputs -> (known outputs, residuals)`, `(residuals, linear inputs) -> linear outputs`,
    and which outputs are linear."""

    first: ClosedJaxpr
    second: ClosedJaxpr
    linear: Flags


@caches.by_program
def divided(program: ClosedJaxpr, linear: Flags, forced: Flags | None = None) -> Divided:
    """Divide a jaxpr that is linear in some of its inputs, and does other work too.

    A user's rule may call a loop that carries both values and tangents. On a tape its values are
    computed now, and only the linear part is written down.

    Args:
      linear: the inputs in which the program is linear.
      forced: the outputs that the second half gives in any case.
    """
    known_avals, linear_avals = values.part(program.in_avals, linear)
    info = program.jaxpr.debug_info

    def known_part(*known):
        tape = RecordingTrace(jx.current_trace())

        def run(*tracers):
            outs = jx.evaluate(program, *values.merge(known, tracers, linear))
            pairs = zip(map(tape.owns, outs), forced or [False] * len(outs), strict=True)
            flags = tuple([is_owned or is_forced for is_owned, is_forced in pairs])
            known_outs, linear_outs = values.part(outs, flags)
            return linear_outs, (known_outs, flags)

        jaxpr, residuals, (known_outs, flags) = tape.record(run, linear_avals, info)
        return [*known_outs, *residuals], (jaxpr, flags)

    first, (jaxpr, flags) = stage(known_part, known_avals, info)
    return Divided(first, jx.with_constants(jaxpr, []), flags)


# ---- a loop, and what is done outside of it ------------------------------------------------------


def hoist(half: Halves, consts: int) -> tuple[ClosedJaxpr, Halves]:
    """Take out of a loop the residuals that depend only on its constants.

    Returns the program that computes them from the constants, the first inputs of the body, and the
    halves in which their addresses are `outer`.
    """
    jaxpr, count = half.first.jaxpr, half.count
    varying = changing(jaxpr, jaxpr.invars[consts:])
    ys, fresh = jaxpr.outvars[:count], jaxpr.outvars[count:]
    stays = [var in varying for var in fresh]
    hoisted, kept = values.part(fresh, stays)
    equations = [e for e in jaxpr.eqns if not e.effects]
    outer = jx.closed(
        jaxpr.invars[:consts],
        hoisted,
        live(equations, hoisted),
        jaxpr.debug_info,
        jaxpr.constvars,
        half.first.consts,
    )
    moved = dict(zip(hoisted, numbered("outer", hoisted), strict=True))
    moved |= dict(zip(kept, numbered("fresh", kept), strict=True))
    addresses = [moved[fresh[s.at]] if s.kind == "fresh" else s for s in half.addresses]
    return outer, half._replace(first=giving(half.first, [*ys, *kept]), addresses=addresses)


def changing(jaxpr: Jaxpr, inputs: Sequence[Var]) -> set[Var]:
    """The variables that may differ between the steps of a loop, given which inputs do.

    An equation with an effect stays in the loop, and so do those that read its results.
    """
    effects = [v for e in jaxpr.eqns if e.effects for v in e.outvars]
    return reached(jaxpr.eqns, [*inputs, *effects])
