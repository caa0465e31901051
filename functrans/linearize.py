"""Linearization: the forward interpreter with its tangents recorded.

    linearize : (a -> b) -> a -> (b, Linear (a_dot -> b_dot))

The primal work is done; the tangent work, which is linear, is a jaxpr:

    f(x + x_dot) = f(x) + L x_dot + O(x_dot^2),        L = (c1, c2, ...; x_dot) -> y_dot

whose first inputs are the *residuals*, what the tangent equations read from the primal run.

Read next: `reverse.py`, which reads the linear jaxpr backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, take_current_trace

from functrans import jaxpr as jx
from functrans.forward import ForwardTrace
from functrans.tracer import RecordingTrace, stage


class LinearProgram(NamedTuple):
    """A linear function as a jaxpr of `(*residuals, *tangents_in) -> tangents_out`."""

    jaxpr: Jaxpr
    residuals: list
    gaps: list
    """For each output of the function the `Zero` that it is, or `None` if the jaxpr gives it."""


def linearize(fun: Callable, primals: Sequence, gaps: Sequence) -> tuple[list, list, LinearProgram]:
    """Run a function of a flat list that returns two, its outputs and `aux`.

    Only inputs that are gaps have a tangent, and are inputs of the linear program.

    Returns the outputs, `aux`, and the linear program.
    """
    return _record(lambda trace, *pair: trace.run_function(fun, *pair), primals, gaps, fun)


def _record(run: Callable, primals: Sequence, gaps: Sequence, fun: Any) -> tuple:
    with take_current_trace() as parent:
        tape = RecordingTrace(parent)
        new = [
            tape.new_input(jx.typeof(x).to_tangent_aval())
            for x, gap in zip(primals, gaps, strict=True)
            if gap is None
        ]
        try:
            outs, tangents, aux = run(ForwardTrace(parent, tape), primals, jx.fill(gaps, new))
            jaxpr, residuals = tape.finish(jx.present(tangents), jx.debug_info("linearize", fun))
        finally:
            tape.invalidate()
    return outs, aux, LinearProgram(jaxpr, residuals, jx.gaps(tangents))


@jx.cached_by_program
def linearize_jaxpr(program: ClosedJaxpr, moving: tuple[bool, ...]) -> tuple:
    """Split a jaxpr in two: `x -> (y, residuals)` and `(residuals, x_dot) -> y_dot`.

    Returns the first, the second, and the gaps of `y_dot`, which the second fills.
    """
    linear: list[LinearProgram] = []

    def primal(*primals):
        def run(trace, *pair):
            return *trace.run_jaxpr(program, *pair), []

        outs, _, linearized = _record(run, primals, jx.gaps_for(program.in_avals, moving), primal)
        linear.append(linearized)
        return [*outs, *linearized.residuals]

    first = stage(primal, program.in_avals, program.jaxpr.debug_info)
    return first, jx.with_constants(linear[0].jaxpr, []), linear[0].gaps


@jx.cached_by_program
def jvp_jaxpr(program: ClosedJaxpr, moving: tuple[bool, ...]) -> tuple[ClosedJaxpr, list]:
    """The jaxpr of `(x, x_dot) -> (y, y_dot)`, where only what moves has a place.

    Returns it and the gaps of `y_dot`, which it fills.
    """
    gaps: list = []
    count = len(moving)

    def pushforward(*inputs):
        tangents = jx.fill(jx.gaps_for(program.in_avals, moving), inputs[count:])
        with take_current_trace() as parent:
            outs, tangents = ForwardTrace(parent).run_jaxpr(program, inputs[:count], tangents)
        gaps.extend(jx.gaps(tangents))
        return [*outs, *jx.present(tangents)]

    tangent_avals = [a.to_tangent_aval() for a in compress(program.in_avals, moving)]
    avals = [*program.in_avals, *tangent_avals]
    return stage(pushforward, avals, program.jaxpr.debug_info), gaps
