"""A function, evaluated equation by equation: `Run, Start -> the values and derivatives in Run`.

    v_k = f(v_i, v_j)      forward:    v_k_dot = df/dv_i v_i_dot + df/dv_j v_j_dot
                           reverse:    v_i_bar += v_k_bar df/dv_i,    the last equation first

functrans's own interpreters compute the numbers, one equation at a time: `forward` the tangents,
`linearize` and `transpose` the adjoints.

Read next: `formulas.py`, which writes the derivative of a step as a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.core
from jax.core import AbstractValue
from jax.extend.core import JaxprEqn

from functrans import jaxpr as jx
from functrans import values
from functrans.explain.records import (
    Contribution,
    Number,
    Run,
    Step,
    Variable,
    is_abstract,
    moving_variables,
)
from functrans.explain.starts import Start
from functrans.forward import forward
from functrans.linearize import LinearProgram, linearize
from functrans.reverse import transpose
from functrans.tracer import stage
from functrans.values import Linear, Zero


def evaluate(run: Run, start: Start) -> None:
    """Give each variable its value, and its tangent or its adjoint."""

    def walk(*xs):
        _begin(run, start, xs)
        linear_programs = [evaluate_step(step, start.mode) for step in run.steps]
        if start.mode == "rev":
            _pull_back(run, start.cotangents, linear_programs)
        return [], None

    if run.is_abstract or any(map(is_abstract, [*start.tangents, *start.cotangents])):
        # On tracers of its own, so that it leaves nothing in the program that is being traced.
        stage(walk, [v.aval for v in run.given], jx.debug_info("evaluate", run.function.fun))
        _forget_values(run)
    else:
        with jax.core.eval_context():
            walk(*(v.value for v in run.given))


def _begin(run: Run, start: Start, xs: Sequence) -> None:
    for variable, x in zip(run.given, xs, strict=True):
        variable.value = x
    for variable, moves in zip(run.inputs, start.moving, strict=True):
        variable.moves = moves
    if start.mode == "fwd":
        for variable, x_dot in zip(moving_variables(run.inputs), start.tangents, strict=True):
            variable.tangent = x_dot


# ---- one equation --------------------------------------------------------------------------------


def push(equation: JaxprEqn, xs: Sequence, x_dots: Sequence) -> tuple[list, list]:
    """`(x, x_dot) -> (y, y_dot)`, some tangents `Zero`."""
    ys, y_dots, _ = forward(lambda *args: (jx.bind(equation, args), []), xs, x_dots)
    return ys, y_dots


def linearized(
    equation: JaxprEqn, xs: Sequence, moving: Sequence[bool]
) -> tuple[list, LinearProgram]:
    """`x -> (y, x_dot -> y_dot)`, for the inputs that move."""
    ys, _, linear = linearize(lambda *args: (jx.bind(equation, args), []), xs, moving)
    return ys, linear


def pull(linear: LinearProgram, y_bars: Sequence) -> list:
    """`y_bar -> x_bar`, for the inputs that move; some cotangents are `Zero`."""
    tangents = linear.jaxpr.invars[len(linear.residuals) :]
    inputs = [*linear.residuals, *(Linear(var.aval) for var in tangents)]
    return transpose(linear.jaxpr, inputs, values.pick(y_bars, linear.moved))


# ---- all of them ---------------------------------------------------------------------------------


def evaluate_step(step: Step, mode: str | None) -> LinearProgram | None:
    """Evaluate one equation, and push its tangents; in reverse mode return its linear part."""
    equation, xs, linear = step.equation, [x.value for x in step.inputs], None
    y_dots: list = [y.tangent for y in step.outputs]
    if not any(step.moving):
        ys, moved = jx.bind(equation, xs), values.moving(y_dots)
    elif mode == "fwd":
        ys, y_dots = push(equation, xs, [x.tangent for x in step.inputs])
        moved = values.moving(y_dots)
    else:
        ys, linear = linearized(equation, xs, step.moving)
        moved = linear.moved
    for output, y, moves, y_dot in zip(step.outputs, ys, moved, y_dots, strict=True):
        output.value, output.moves, output.tangent = y, moves, y_dot
    return linear


def _pull_back(run: Run, cotangents: Sequence, linear: Sequence[LinearProgram | None]) -> None:
    """Pull the cotangents of the results back, the last equation first."""
    for result, y_bar in zip(run.results, cotangents, strict=True):
        source = result.source
        if source.moves:
            result.seed = contribute(source, values.varying_as(y_bar, source.aval))
    for step, program in reversed([*zip(run.steps, linear, strict=True)]):
        y_bars = [y.adjoint for y in step.outputs]
        if program is not None and True in values.moving(y_bars):
            positions = values.pick(range(len(step.inputs)), step.moving)
            for position, x_bar in zip(positions, pull(program, y_bars), strict=True):
                if type(x_bar) is not Zero:
                    step.contributions[position] = contribute(step.inputs[position], x_bar)


def contribute(x: Variable | Number, amount: Any) -> Contribution:
    """`x_bar += amount`."""
    assert isinstance(x, Variable), "a number does not move"
    is_first, x.adjoint = type(x.adjoint) is Zero, values.add(x.adjoint, amount)
    return Contribution(amount, is_first, x.adjoint)


# ---- where values are not known ------------------------------------------------------------------


def _forget_values(run: Run) -> None:
    """Put types in the places of tracers, whose trace has ended."""
    for v in run.variables:
        v.value, v.tangent, v.adjoint = map(_type_of, (v.value, v.tangent, v.adjoint))
    for result in run.results:
        result.seed = result.seed and _typed(result.seed)
    for step in run.steps:
        step.contributions = {i: _typed(use) for i, use in step.contributions.items()}


def _typed(use: Contribution) -> Contribution:
    return use._replace(amount=_type_of(use.amount), total=_type_of(use.total))


def _type_of(x: Any) -> Any:
    return x if isinstance(x, Zero | AbstractValue) else jax.typeof(x)
