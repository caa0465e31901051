"""The reverse interpreter: transpose a linear jaxpr, last equation first.

    transpose : Linear (a_dot -> b_dot) -> b_bar -> a_bar

A linear equation `y_dot = A x_dot` pulls the cotangent of its output back to its input, and what
is read by several equations sums what comes from each:

    x_bar += A^T y_bar

Read next: `jit.py`, where all of this is compiled; or `transforms.py`, where it gets its names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, set_current_trace, take_current_trace

from functrans import jaxpr as jx
from functrans.jaxpr import Linear, Zero
from functrans.rules import rule_of
from functrans.tracer import RecordingTrace, stage


def transpose(jaxpr: Jaxpr, inputs: Sequence, cotangents: Sequence) -> list:
    """Pull the cotangents of a jaxpr's outputs back to those of its inputs that are `Linear`.

    Args:
      jaxpr: linear in those inputs; the others have their values.
      inputs: a value or a `Linear` for each input.
      cotangents: an array or a `Zero` for each output.

    Returns:
      For each input that is `Linear` its cotangent, or a `Zero` if there is none.
    """
    known = {v: x for v, x in zip(jaxpr.invars, inputs, strict=True) if type(x) is not Linear}
    accumulated: dict[Var, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known.get(atom, Linear(atom.aval))

    def accumulate(atom: Any, cotangent: Any) -> None:
        if cotangent is None or type(cotangent) is Zero:
            return
        if isinstance(atom, Var) and atom not in known:
            accumulated[atom] = jx.add(accumulated.get(atom, Zero(atom.aval)), cotangent)

    linear = _evaluate_known(jaxpr, known, read)
    for atom, cotangent in zip(jaxpr.outvars, cotangents, strict=True):
        accumulate(atom, jx.varying_as(cotangent, atom.aval))
    for equation in reversed(linear):
        y_bars = [accumulated.pop(v, Zero(v.aval)) for v in equation.outvars]
        if not jx.present(y_bars):
            continue
        rule, values = rule_of(equation.primitive), [read(atom) for atom in equation.invars]
        with jx.context_of(equation):
            x_bars = rule.transpose(equation.primitive, y_bars, values, equation.params)
            for atom, x_bar in zip(equation.invars, x_bars, strict=True):
                accumulate(atom, x_bar)
    return [accumulated.get(v, Zero(v.aval)) for v in jaxpr.invars if v not in known]


def transpose_function(fun: Callable, avals: Sequence, cotangents: Sequence) -> list:
    """Pull cotangents back through a linear function of flat lists with inputs of these types."""
    with take_current_trace() as parent:
        tape = RecordingTrace(parent)
        inputs = [tape.new_input(aval) for aval in avals]
        try:
            with set_current_trace(tape):
                outs = fun(*inputs)
            jaxpr, residuals = tape.finish(outs, jx.debug_info("linear_transpose", fun))
        finally:
            tape.invalidate()
    return transpose(jaxpr, [*residuals, *map(Linear, avals)], cotangents)


def _evaluate_known(jaxpr: Jaxpr, known: dict, read: Any) -> list:
    """Evaluate the equations that read no linear value, into `known`; return the others."""
    linear = []
    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        if any(type(value) is Linear for value in values):
            linear.append(equation)
        else:
            known.update(zip(equation.outvars, jx.bind(equation, values), strict=True))
    return linear


@jx.cached_by_program
def transpose_jaxpr(
    program: ClosedJaxpr, linear: tuple[bool, ...], moving: tuple[bool, ...]
) -> tuple[ClosedJaxpr, list]:
    """The jaxpr of `(known inputs, y_bar) -> x_bar`, where only what moves has a place.

    Args:
      linear: which inputs are to be transposed.
      moving: which outputs have a cotangent that is not zero.

    Returns:
      The jaxpr, and the gaps of `x_bar`, which it fills.
    """
    gaps: list = []

    def pullback(*args):
        rest = iter(args)
        pairs = zip(program.in_avals, linear, strict=True)
        inputs = [Linear(aval) if is_linear else next(rest) for aval, is_linear in pairs]
        y_bars = jx.fill(jx.gaps_for(program.out_avals, moving), rest)
        x_bars = transpose(*jx.opened(program, inputs), y_bars)
        gaps.extend(jx.gaps(x_bars))
        return jx.present(x_bars)

    known = [not is_linear for is_linear in linear]
    avals = [*compress(program.in_avals, known), *compress(program.out_avals, moving)]
    return stage(pullback, avals, program.jaxpr.debug_info), gaps
