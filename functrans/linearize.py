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

from jax.extend.core import ClosedJaxpr, Jaxpr, take_current_trace

from functrans import jaxpr as jx
from functrans.forward import ForwardTrace
from functrans.jaxpr import Zero
from functrans.tracer import RecordingTrace, stage


class LinearProgram(NamedTuple):
    """A linear function as a jaxpr of `(*residuals, *tangents_in) -> tangents_out`."""

    jaxpr: Jaxpr
    residuals: list
    zeros: tuple[Any, ...]
    """For each output of the function the `Zero` that it is, or `None` if the jaxpr gives it."""


def linearize(fun: Callable, primals: Sequence, moving: Sequence[bool]) -> tuple:
    """Run a function of a flat list that returns two, its outputs and `aux`.

    Only the inputs that are `moving` have a tangent, and are inputs of the linear program.

    Returns the outputs, `aux`, and the linear program.
    """
    with take_current_trace() as parent:
        tape = RecordingTrace(parent)
        trace = ForwardTrace(parent, tape)
        try:
            tangents = _new_tangents(tape, primals, moving)
            outs, tangents_out, aux = trace.run_function(fun, primals, tangents)
            return outs, aux, _finish(tape, tangents_out, jx.debug_info("linearize", fun))
        finally:
            tape.invalidate()


def _new_tangents(tape: RecordingTrace, primals: Sequence, moving: Sequence[bool]) -> list:
    return [
        tape.new_input(jx.typeof(x).to_tangent_aval()) if moves else Zero.like(x)
        for x, moves in zip(primals, moving, strict=True)
    ]


def _finish(tape: RecordingTrace, tangents_out: Sequence, debug_info: Any) -> LinearProgram:
    zeros = tuple(t if type(t) is Zero else None for t in tangents_out)
    written = [t for t in tangents_out if type(t) is not Zero]
    jaxpr, residuals = tape.finish(written, debug_info)
    return LinearProgram(jaxpr, residuals, zeros)


@jx.cached_by_program
def linearize_jaxpr(program: ClosedJaxpr, moving: tuple[bool, ...]) -> tuple:
    """Split a jaxpr in two: `x -> (y, residuals)` and `(residuals, x_dot) -> y_dot`.

    Returns the first, the second, and for each of `y` the `Zero` that its tangent is, or `None`.
    """
    linear: list[LinearProgram] = []
    debug_info = program.jaxpr.debug_info

    def primal(*primals):
        with take_current_trace() as parent:
            tape = RecordingTrace(parent)
            tangents = _new_tangents(tape, primals, moving)
            outs, tangents_out = ForwardTrace(parent, tape).run_jaxpr(program, primals, tangents)
            linear.append(_finish(tape, tangents_out, debug_info))
        return [*outs, *linear[0].residuals]

    first = stage(primal, program.in_avals, debug_info)
    return first, jx.with_constants(linear[0].jaxpr, []), linear[0].zeros


@jx.cached_by_program
def jvp_jaxpr(program: ClosedJaxpr, moving: tuple[bool, ...]) -> tuple:
    """The jaxpr of `(x, x_dot) -> (y, y_dot)`, where only what is not `Zero` has a place."""
    zeros: list = []

    def pushforward(*inputs):
        split = len(moving)
        primals, rest = inputs[:split], iter(inputs[split:])
        tangents = [
            next(rest) if moves else Zero.like(x) for x, moves in zip(primals, moving, strict=True)
        ]
        with take_current_trace() as parent:
            outs, tangents_out = ForwardTrace(parent).run_jaxpr(program, primals, tangents)
        zeros.extend(t if type(t) is Zero else None for t in tangents_out)
        return [*outs, *(t for t in tangents_out if type(t) is not Zero)]

    tangent_avals = [
        aval.to_tangent_aval()
        for aval, moves in zip(program.in_avals, moving, strict=True)
        if moves
    ]
    staged = stage(pushforward, [*program.in_avals, *tangent_avals], program.jaxpr.debug_info)
    return staged, tuple(zeros)
