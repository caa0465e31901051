"""Linearization: the forward interpreter with its tangents recorded.

    linearize : (a -> b) -> a -> (b, Linear (a_dot -> b_dot))

The primal work is done; the tangent work, which is linear, is a jaxpr:

    f(x + x_dot) = f(x) + L x_dot + O(x_dot^2),        L = (c1, c2, ...; x_dot) -> y_dot

whose first inputs are the *residuals*, what the tangent equations read from the primal run.

Read next: `reverse.py`, which reads the linear jaxpr backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, set_current_trace

from functrans import jaxpr as jx
from functrans.forward import ForwardTrace
from functrans.rules import SIMPLIFIED
from functrans.tracer import RecordingTrace, place, stage


class LinearProgram(NamedTuple):
    """A linear function as a jaxpr of `(*residuals, *tangents_in) -> tangents_out`."""

    jaxpr: Jaxpr
    residuals: list
    gaps: list
    """For each output of the function the `Zero` that it is, or `None` if the jaxpr gives it."""


class LinearizeTrace(ForwardTrace):
    """Gives each operation its pair; the work on tangents is written down on a tape."""

    def __init__(self, tape: RecordingTrace):
        super().__init__(tape.parent)
        self.tape = self.tangents = tape

    def ask(self, rule, *equation):
        with set_current_trace(self.tape):  # which hands all work on primals to the parent
            return rule.linearize(*equation)

    derive = property(lambda self: linearize_jaxpr)

    def push(self, origin, found, xs, x_dots):
        first, second, gaps = found
        outs, avals, count = self.work.run(first, xs, origin), first.out_avals, len(gaps)
        residuals = map(self.tape.atom, outs[count:], avals[count:])
        y_dots = self.tape.run(second, [*residuals, *x_dots], origin)
        return avals[:count], outs[:count], place(y_dots, gaps)


def linearize(fun: Callable, primals: Sequence, gaps: Sequence) -> tuple[list, list, LinearProgram]:
    """Run a function of a flat list that returns two, its outputs and `aux`.

    Only inputs that are gaps have a tangent, and are inputs of the linear program.

    Returns the outputs, `aux`, and the linear program.
    """
    return _record(lambda trace, *pair: trace.run_function(fun, *pair), primals, gaps, fun)


def _record(push: Callable, primals: Sequence, gaps: Sequence, fun: Any) -> tuple:
    tape = RecordingTrace(jx.current_trace())
    moving = [jx.typeof(x) for x, gap in zip(primals, gaps, strict=True) if gap is None]
    new = [tape.new_input(jx.tangent_aval(aval)) for aval in moving]
    try:
        trace = LinearizeTrace(tape)
        outs, tangents, aux = push(trace, primals, jx.fill(gaps, new))
        jaxpr, residuals = tape.finish(jx.present(tangents), jx.debug_info("linearize", fun))
        for rewrite in SIMPLIFIED:
            jaxpr = rewrite(jaxpr)
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
        def push(trace, *pair):
            return *trace.run_jaxpr(program, *pair), []

        outs, _, linearized = _record(push, primals, jx.gaps_for(program.in_avals, moving), primal)
        linear.append(linearized)
        return [*outs, *linearized.residuals]

    first = stage(primal, program.in_avals, program.jaxpr.debug_info)
    return first, jx.with_constants(linear[0].jaxpr, []), linear[0].gaps
