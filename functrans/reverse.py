"""The reverse interpreter: transpose a linear jaxpr, last equation first.

    transpose : Linear (a_dot -> b_dot) -> b_bar -> a_bar

A linear equation `y_dot = A x_dot` pulls the cotangent of its output back to its input, and what
is read by several equations sums what comes from each:

    x_bar += A^T y_bar

Read next: `jit.py`, where all of this is compiled; or `transforms.py`, where it gets its names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, set_current_trace
from jax.extend.core.primitives import add_jaxvals_p

from functrans import jaxpr as jx
from functrans.jaxpr import Linear, Zero
from functrans.rules import rule_of
from functrans.tracer import RecordingTrace, derived, itself, place, stage, worker


def transpose(jaxpr: Jaxpr, inputs: Sequence, cotangents: Sequence) -> list:
    """Pull the cotangents of a jaxpr's outputs back to those of its inputs that are `Linear`.

    Args:
      jaxpr: linear in those inputs; the others have their values.
      inputs: a value or a `Linear` for each input.
      cotangents: an array or a `Zero` for each output.

    Returns:
      For each input that is `Linear` its cotangent, or a `Zero` if there is none.
    """
    work, alone = worker(jx.current_trace()), len(jaxpr.eqns) == 1
    pairs = zip(jaxpr.invars, inputs, strict=True)
    known = {v: work.atom(x) for v, x in pairs if type(x) is not Linear}
    bars: dict[Var, Any] = {}

    def accumulate(origin: Any, atoms: Iterable, x_bars: Iterable) -> None:
        for atom, x_bar in zip(atoms, x_bars, strict=True):
            if x_bar is not None:
                bars[atom] = _sum(work, origin, bars[atom], x_bar) if atom in bars else x_bar

    linear = _evaluate_known(work, jaxpr, known)
    for atom, cotangent in zip(jaxpr.outvars, cotangents, strict=True):
        y_bar = jx.varying_as(cotangent, jx.cotangent_aval(atom.aval))
        if type(y_bar) is not Zero and type(atom) is not Literal and atom not in known:
            accumulate(None, [atom], [work.atom(y_bar)])
    for equation, values, flags in reversed(linear):
        y_bars = [bars.pop(v, None) for v in equation.outvars]
        moving = tuple([y_bar is not None for y_bar in y_bars])
        if True in moving:
            x_bars = pull(work, equation, values, flags, y_bars, moving, alone)
            accumulate(equation, compress(equation.invars, flags), x_bars)
    x_bars = [(v, bars.get(v)) for v in jaxpr.invars if v not in known]
    return [Zero(v.aval) if x is None else work.value(x) for v, x in x_bars]


def pull(
    work: Any, equation: JaxprEqn, xs: list, linear: tuple, y_bars: list, moving: tuple, alone: bool
) -> list:
    """`y_bar -> x_bar` for one equation, on handles, for the inputs that are linear.

    `None` stands for an input that is linear, and for a cotangent that is zero; `linear` and
    `moving` say which.
    """
    primitive, params = equation.primitive, equation.params
    avals = tuple([x.aval for x in equation.invars])
    if found := derived(equation, primitive, params, alone, transpose_jaxpr, avals, linear, moving):
        program, gaps = found
        known = [x for x in (*xs, *y_bars) if x is not None]
        return place(work.run(program, known, equation), gaps)
    pairs = zip(equation.outvars, y_bars, strict=True)
    cotangents = [Zero(v.aval) if y is None else work.value(y) for v, y in pairs]
    inputs = [Linear(a) if x is None else work.value(x) for a, x in zip(avals, xs, strict=True)]
    with jx.context_of(equation):
        x_bars = rule_of(primitive).transpose(primitive, cotangents, inputs, params)
    x_bars = compress(x_bars, linear)
    return [None if x is None or type(x) is Zero else work.atom(x) for x in x_bars]


def _sum(work: Any, origin: Any, *terms: Any) -> Any:
    (program,) = derived(origin, add_jaxvals_p, {}, False, itself, tuple(map(jx.aval_of, terms)))
    return work.run(program, terms, origin)[0]


def transpose_function(fun: Callable, avals: Sequence, cotangents: Sequence) -> list:
    """Pull cotangents back through a linear function of flat lists with inputs of these types."""
    tape = RecordingTrace(jx.current_trace())
    inputs = [tape.new_input(aval) for aval in avals]
    try:
        with set_current_trace(tape):
            outs = fun(*inputs)
        jaxpr, residuals = tape.finish(outs, jx.debug_info("linear_transpose", fun))
    finally:
        tape.invalidate()
    return transpose(jaxpr, [*residuals, *map(Linear, avals)], cotangents)


def _evaluate_known(work: Any, jaxpr: Jaxpr, known: dict) -> list:
    """Evaluate the equations that read no linear value.

    Returns the others, what they read, and which of it is linear.
    """
    linear = []
    for equation in jaxpr.eqns:
        values = [work.atom(a) if type(a) is Literal else known.get(a) for a in equation.invars]
        flags = tuple([x is None for x in values])
        if True in flags:
            linear.append((equation, values, flags))
        else:
            known.update(zip(equation.outvars, work.run_equation(equation, values), strict=True))
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
    cotangents = map(jx.cotangent_aval, compress(program.out_avals, moving))
    avals = [*compress(program.in_avals, known), *cotangents]
    return stage(pullback, avals, program.jaxpr.debug_info), gaps
