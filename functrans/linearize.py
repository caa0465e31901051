"""Linearization: the forward interpreter with its tangents recorded.

    linearize : (a -> b) -> a -> (b, Linear (a_dot -> b_dot))

The primal work runs now.  The tangent work is linear, and becomes a jaxpr:

    f(x + x_dot) = f(x) + L x_dot + O(x_dot^2),        L = (c1, c2, ...; x_dot) -> y_dot

The first inputs of this jaxpr are the *residuals*: the values of the primal run that the tangent
equations read.

The derivative of a call is a call: `linearize_jaxpr` makes two programs from the one inside, and
the rule of the call (`control_flow/base.py`) binds each of them as the original was bound.
`jvp_jaxpr` and `transpose_jaxpr` serve the other modes in the same way.

Read next: `reverse.py`, which reads the linear jaxpr backwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Jaxpr, set_current_trace

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.forward import ForwardTrace, push
from functrans.jaxpr import Operation
from functrans.programs.broadcasts import broadcast_last
from functrans.programs.strong import strengthened
from functrans.rules import rule_of
from functrans.templates import Writing, templates_of
from functrans.tracer import RecordingTrace, stage
from functrans.values import Flags


class LinearProgram(NamedTuple):
    """A linear function as a jaxpr of `(*residuals, *tangents_in) -> tangents_out`."""

    jaxpr: Jaxpr
    residuals: list
    moved: Flags
    """For each output of the function, whether the jaxpr gives its tangent; the others are zero."""


class Linearized(NamedTuple):
    """Two programs: `x -> (y, residuals)`, and `(residuals, moving x_dot) -> moving y_dot`."""

    primal: Any
    linear: Any
    moved: Flags


def linearized_program(operation: Operation, moving: Flags, apart: bool = False) -> Linearized:
    """The meaning of one equation, in two programs."""
    info, avals = jx.debug_info("rule", operation.primitive.bind), operation.avals
    return _staged(lambda trace, *pair: trace.ask(operation, *pair), avals, moving, info, apart)


class LinearizeTrace(ForwardTrace):
    """Makes a pair of each operation; a tape writes down the work on tangents."""

    def __init__(self, tape: RecordingTrace):
        super().__init__(tape.parent)
        self.tape, self.dot_sink = tape, Writing(tape)

    def templates(self, operation, moving):
        # Only the rule of a call asks whether its tape is apart.
        is_apart = self.tape.apart and rule_of(operation.primitive).carried is not None
        return templates_of(linearized_program, operation, moving, is_apart)

    def ask(self, operation, primals, tangents):
        # The tape hands all work on primals to the parent. Most rules do the same here as in
        # `forward`; the rule of a call binds two calls instead, one for primals, one for tangents.
        with set_current_trace(self.tape):
            return push(operation, primals, tangents, lambda rule: rule.linearize)

    def run(self, programs, operation, xs, x_dots):
        primal, linear, moved = programs
        outs, count = self.sink.run(primal, xs, operation.equation), len(moved)
        residuals = outs[count:]
        if not isinstance(self.sink, Writing):  # the tape makes constants of values
            residuals = map(self.tape.atom, residuals, primal.out_avals[count:])
        y_dots = self.dot_sink.run(linear, [*residuals, *x_dots], operation.equation)
        return outs[:count], moved, y_dots


def linearize(
    fun: Callable, primals: Sequence, moving: Sequence[bool], apart: bool = False
) -> tuple[list, list, LinearProgram]:
    """Run a function of a flat list that returns two lists, its outputs and `aux`.

    Each input with the flag `moving` gets a tangent, an input of the linear program. `apart` says
    that the linear program is compiled by itself.

    Returns the outputs, `aux`, and the linear program.
    """
    run = jx.within("jvp", lambda trace, *pair: trace.run_function(fun, *pair))
    return _record(run, primals, moving, jx.debug_info("linearize", fun), apart)


def _record(run: Callable, primals: Sequence, moving: Sequence[bool], info: Any, apart: bool):
    """Run `run(trace, primals, tangents) -> (ys, y_dots, aux)`, and record the work on tangents."""
    tape, avals = RecordingTrace(jx.current_trace(), apart), [*map(values.typeof, primals)]

    def linear(*tracers):
        tangents = values.with_zeros(tracers, moving, avals)
        ys, y_dots, aux = run(LinearizeTrace(tape), primals, tangents)
        moved = values.moving(y_dots)
        return values.pick(y_dots, moved), (ys, moved, aux)

    dot_avals = map(values.tangent_aval, values.pick(avals, moving))
    jaxpr, residuals, (ys, moved, aux) = tape.record(linear, dot_avals, info)
    # If the program multiplies before it broadcasts, its transpose sums before it multiplies.
    return ys, aux, LinearProgram(strengthened(broadcast_last(jaxpr), residuals), residuals, moved)


@caches.by_program
def linearize_jaxpr(program: ClosedJaxpr, moving: Flags, apart: bool = False) -> Linearized:
    """Split a jaxpr in two: `x -> (y, residuals)` and `(residuals, x_dot) -> y_dot`."""
    info, avals = program.jaxpr.debug_info, program.in_avals
    return _staged(lambda trace, *pair: trace.run_jaxpr(program, *pair), avals, moving, info, apart)


def _staged(run: Callable, avals: Sequence, moving: Flags, info: Any, apart: bool) -> Linearized:
    """The two programs of a function of a trace, primals and tangents."""

    def primal(*primals):
        ys, _, linear = _record(lambda *args: (*run(*args), []), primals, moving, info, apart)
        return [*ys, *linear.residuals], linear

    primal_program, linear = stage(primal, avals, info)
    return Linearized(primal_program, jx.with_constants(linear.jaxpr, []), linear.moved)
