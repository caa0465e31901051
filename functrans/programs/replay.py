"""The equations of another program, written as if its function had run here.

    replay : (trace, Jaxpr a b, [tracer a]) -> [tracer b]

In this way the equations of the small calls of `jax.numpy` replace the calls, without running their
Python again.

Read next: `outputs.py`, results that are not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from functrans import caches
from functrans import jaxpr as jx
from functrans.rules import STAGING_RULES
from functrans.templates import Template, Writing
from functrans.tracer import StagingTrace, stage


def replay(trace: StagingTrace, program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    """Write the equations of another program as if its function had run here."""
    atoms, here = [*map(trace.atom, args)], source_info_util.current()
    if Literal not in map(type, atoms):  # the equations depend on types alone
        kept = _replayed(program)
        return [trace.value(atom, here) for atom in Writing(trace).copy(kept, atoms, None)]
    return _replay_each(trace, program, args)


@caches.by_program
def _replayed(program: ClosedJaxpr) -> Template:
    """The equations that `replay` writes if no input is a literal."""

    def replay(*tracers):
        return _replay_each(jx.current_trace(), program, tracers), None

    return Template(stage(replay, program.in_avals, program.jaxpr.debug_info)[0])


def walk(program: ClosedJaxpr, inputs: Sequence, meet: Callable) -> list:
    """Evaluate a program; `meet(equation, inputs)` gives the results of each equation."""
    known = jx.environment(program, inputs)

    def read(atom):
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in program.jaxpr.eqns:
        outs = meet(equation, [*map(read, equation.invars)])
        known.update(zip(equation.outvars, outs, strict=True))
    return [*map(read, program.jaxpr.outvars)]


def _replay_each(trace: StagingTrace, program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
    here = source_info_util.current()

    def write(equation, inputs):
        source = jx.scoped(here, equation)
        simplify, outs = STAGING_RULES.get(equation.primitive), None
        if simplify is not None:
            with jx.in_place_of(equation, source):
                outs = simplify(trace, equation.primitive, inputs, equation.params)
        if outs is None:
            atoms, outputs = [*map(trace.atom, inputs)], [Var(v.aval) for v in equation.outvars]
            written = equation.replace(invars=atoms, outvars=outputs, source_info=source)
            trace.equations.append(written)
            outs = [trace.value(atom, source) for atom in outputs]
        return outs

    return walk(program, args, write)


def opened(program: ClosedJaxpr, opens: Callable[[JaxprEqn], bool]) -> ClosedJaxpr:
    """The program, with the equations of the calls that `opens` selects in their place."""
    if not any(map(opens, program.jaxpr.eqns)):
        return program

    def open_each(*tracers):
        trace = jx.current_trace()
        atoms = _open_each(Writing(trace), program, [*map(trace.atom, tracers)], opens)
        return [*map(trace.value, atoms)], None

    return stage(open_each, program.in_avals, program.jaxpr.debug_info)[0]


def _open_each(sink: Writing, program: ClosedJaxpr, inputs: Sequence, opens: Callable) -> list:
    known = jx.environment(program, inputs)
    known |= zip(program.jaxpr.constvars, map(sink.enter, program.consts), strict=True)

    for equation in program.jaxpr.eqns:
        given = sink.read(equation.invars, known)
        if opens(equation):
            with jx.in_place_of(equation):
                outs = _open_each(sink, equation.params["jaxpr"], given, opens)
        else:
            outs = sink.bind(equation, given)
        known.update(zip(equation.outvars, outs, strict=True))
    return sink.read(program.jaxpr.outvars, known)
