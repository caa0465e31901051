"""The derivative of one step as a formula: `Step -> text`, what the interpreters write for it.

    v₂ = v₀ × v₁      forward:    v̇₂ = v̇₀ × v₁ + v₀ × v̇₁
                      reverse:    v̄₀ += v̄₂ × v₁,    v̄₁ += v₀ × v̄₂

We push the step, or pull it back, on tracers, and write the resulting jaxpr as mathematics.

Read next: `notation.py`, which writes one equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from functrans import jaxpr as jx
from functrans import values
from functrans.explain import notation
from functrans.explain.notation import ATOM, BAR, DOT, PRODUCT, SUM, Text, marked
from functrans.explain.records import Step, Variable, moving_variables
from functrans.explain.steps import linearized, pull, push
from functrans.tracer import stage
from functrans.values import Zero

LONGEST = 48
"""We write a longer formula in general terms."""

SLOPES: dict[str, Callable] = {
    "sech_squared": lambda y, x: Text(f"1 − {y.inside(ATOM)}²", SUM),
    "logistic_slope": lambda y, x: Text(f"{y.inside(PRODUCT)} × (1 − {y.inside(ATOM)})", PRODUCT),
}
"""The formulas of the functions that rules call so as to be exact in the tails."""


def tangent_formulas(step: Step) -> dict[Variable, str]:
    """The tangent of each output that moves, as the forward interpreter computes it."""
    moved = moving_variables(step.outputs)
    if not moved:
        return {}
    avals, moving = [x.aval for x in step.inputs], moving_variables(step.inputs)

    def derive(xs: list, x_dots: Sequence) -> tuple[list, list[int]]:
        tangents = values.with_zeros(x_dots, step.moving, avals)
        return _nonzero(push(step.equation, xs, tangents)[1])

    x_dots = [marked(x.name, DOT) for x in moving]
    written = _written(step, derive, [values.tangent_aval(x.aval) for x in moving], x_dots)
    pairs = zip(moving, x_dots, strict=True)
    general = _sum([f"∂{{0}}/∂{x.name} · {x_dot}" for x, x_dot in pairs])
    return {
        y: written.get(i) or general.format(y.name) for i, y in enumerate(step.outputs) if y.moves
    }


def adjoint_formulas(step: Step) -> dict[int, str]:
    """The term that the reverse interpreter adds to the adjoint of each input, by its position."""
    pulled, moving = values.moving(y.adjoint for y in step.outputs), step.moving
    positions, avals = values.pick(range(len(moving)), moving), [y.aval for y in step.outputs]

    def derive(xs: list, y_bars: Sequence) -> tuple[list, list[int]]:
        _, linear = linearized(step.equation, xs, moving)
        x_bars, found = _nonzero(pull(linear, values.with_zeros(y_bars, pulled, avals)))
        return x_bars, [positions[i] for i in found]

    ys = values.pick(step.outputs, pulled)
    y_bars = [marked(y.name, BAR) for y in ys]
    written = _written(step, derive, [values.cotangent_aval(y.aval) for y in ys], y_bars)
    pairs = zip(ys, y_bars, strict=True)
    general = _sum([f"{y_bar} · ∂{y.name}/∂{{0}}" for y, y_bar in pairs])
    return {i: written.get(i) or general.format(step.inputs[i].text.text) for i in positions}


def _nonzero(derivatives: Sequence) -> tuple[list, list[int]]:
    """Those that are not known to be zero, and their positions."""
    found = {i: x for i, x in enumerate(derivatives) if type(x) is not Zero}
    return [*found.values()], [*found]


def _sum(terms: Sequence[str]) -> str:
    return " + ".join(terms if len(terms) <= 2 else [terms[0], "…", terms[-1]])


def _written(step: Step, derive: Callable, avals: Sequence, names: Sequence[str]) -> dict[int, str]:
    """The formulas of those derivatives that have a short one, by position.

    `derive(inputs of the step, given) -> (derivatives, their positions)`, where the tangents or
    cotangents given have these types and names.
    """
    if notation.is_call(step.equation):
        return {}
    are_variables = [isinstance(x, Variable) for x in step.inputs]
    numbers, variables = values.part(step.inputs, are_variables)

    def run(*args):
        xs = values.merge([x.value for x in numbers], args[: len(variables)], are_variables)
        return derive(xs, args[len(variables) :])

    types = [*(x.aval for x in variables), *avals]
    program, positions = stage(run, types, jx.debug_info("formula", derive))
    texts = _texts(step, program, [*(x.text for x in variables), *map(Text, names)])
    return {i: text.text for i, text in zip(positions, texts, strict=True) if text}


def _texts(step: Step, program: ClosedJaxpr, inputs: Sequence[Text]) -> list[Text | None]:
    """The texts of the results of a program; `None` for one that is too long, or has no name.

    The equation of the step takes the names of its outputs.
    """
    texts: dict[Any, Text] = dict(zip(program.jaxpr.invars, inputs, strict=True))

    def find(atom: jx.Atom) -> Text | None:
        return Text(notation.value(atom.val)) if isinstance(atom, Literal) else texts.get(atom)

    for equation in program.jaxpr.eqns:
        given = [find(atom) for atom in equation.invars]
        if given == [x.text for x in step.inputs] and _is_same(equation, step.equation):
            texts.update(zip(equation.outvars, [y.text for y in step.outputs], strict=True))
        elif None not in given and len(equation.outvars) == 1:
            is_call = notation.is_call(equation)
            slope = SLOPES.get(notation.called(equation)) if is_call else None
            if is_call and not slope:
                continue
            known = [text for text in given if text]
            text = slope(*known) if slope else notation.expression(equation, known)
            if len(text.text) <= LONGEST:
                texts[equation.outvars[0]] = text
    return [*map(find, program.jaxpr.outvars)]


def _is_same(one: JaxprEqn, other: JaxprEqn) -> bool:
    return one.primitive is other.primitive and str(one.params) == str(other.params)
