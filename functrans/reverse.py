"""The reverse interpreter: transpose a linear jaxpr, last equation first.

    transpose : Linear (a_dot -> b_dot) -> b_bar -> a_bar

A linear equation `y_dot = A x_dot` pulls the cotangent of its output back to its input.  If several
equations read a value, its cotangent is the sum of their contributions:

    x_bar += A^T y_bar

The class `Linear` marks an input that has a type and no value; `transpose` returns the cotangents
of these inputs.

Read next: `jit.py`, which compiles all of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.jaxpr import Operation
from functrans.programs.strong import strengthened
from functrans.rules import rule_of
from functrans.templates import Handle, Sink, Template, sink_of, templates_of
from functrans.tracer import Derived, RecordingTrace, program_of_vectors, stage
from functrans.values import Flags, Linear, Zero


def pull(operation: Operation, inputs: list, cotangents: list) -> list:
    """`y_bar -> x_bar` for the inputs that are `Linear`, the meaning of one equation."""
    primitive, params = operation.primitive, operation.params
    x_bars = rule_of(primitive).transpose(primitive, cotangents, inputs, params)
    pairs = values.pick(zip(inputs, x_bars, strict=True), values.linear(inputs))
    return [Zero(x.aval) if x_bar is None else values.sum_to(x_bar, x.aval) for x, x_bar in pairs]


def pulled_program(operation: Operation, linear: Flags, moving: Flags) -> Derived:
    """`pull`, as the program of `(known inputs, the moving y_bar) -> the moving x_bar`."""
    primitive, params, avals, _ = operation
    out_avals, _ = jx.abstract_eval(primitive, avals, params)
    info = jx.debug_info("rule", primitive.bind)
    return _staged(lambda *pair: pull(operation, *pair), avals, out_avals, linear, moving, info)


class Cotangents:
    """The cotangents that the variables of a jaxpr have received so far; handles of a sink."""

    def __init__(self, sink: Sink):
        self.sink = sink
        self.bars: dict[Var, Handle] = {}

    def add(self, variables: Iterable[Var], x_bars: Iterable, equation: JaxprEqn | None) -> None:
        """`x_bar += ...`, in the place of an equation."""
        for variable, x_bar in zip(variables, x_bars, strict=True):
            if variable in self.bars:  # one `add_any`, as a template, which needs no tracer
                both = [self.bars[variable], x_bar]
                adding = _sum((), (*map(values.aval_of, both),))
                (x_bar,) = self.sink.run(adding, both, equation)
            self.bars[variable] = x_bar

    def take(self, variables: Sequence[Var]) -> tuple[Flags, list]:
        """Which of the variables have a cotangent, and these cotangents; they are forgotten."""
        moving = jx.among(variables, self.bars)
        return moving, [self.bars.pop(v) for v in values.pick(variables, moving)]


@caches.by_types
def _sum(params: tuple, avals: tuple, _: None) -> Template:
    info = jx.debug_info("sum", values.add)
    return Template(stage(lambda x, y: ([values.add(x, y)], None), avals, info)[0])


def transpose(jaxpr: Jaxpr, inputs: Sequence, cotangents: Sequence) -> list:
    """Pull the cotangents of a jaxpr's outputs back to the inputs that are `Linear`.

    Args:
      jaxpr: linear in these inputs.
      inputs: a value or a `Linear` for each input.
      cotangents: an array or a `Zero` for each output.

    Returns:
      For each input that is `Linear`, its cotangent, or a `Zero` if there is none.
    """
    sink, flags = sink_of(jx.current_trace()), values.linear(inputs)
    rest, variables = values.part(jaxpr.invars, flags)
    fixed, _ = values.part(inputs, flags)
    known = {v: sink.enter(x) for v, x in zip(rest, fixed, strict=True)}
    equations = _run_nonlinear_part(sink, jaxpr, known)
    bars = Cotangents(sink)
    for atom, cotangent in zip(jaxpr.outvars, cotangents, strict=True):
        # Inside `shard_map` the cotangent may need copies on more devices.
        y_bar = values.varying_as(cotangent, values.cotangent_aval(atom.aval))
        if type(y_bar) is not Zero and type(atom) is not Literal and atom not in known:
            bars.add([atom], [sink.enter(y_bar)], None)
    for equation, xs, linear in reversed(equations):
        moving, y_bars = bars.take(equation.outvars)
        if any(moving):
            moved, x_bars = _apply(sink, equation, xs, linear, moving, y_bars)
            targets = values.pick(values.pick(equation.invars, linear), moved)
            bars.add(targets, x_bars, equation)
    moved, x_bars = bars.take(variables)
    return values.with_zeros(map(sink.leave, x_bars), moved, [v.aval for v in variables])


def _run_nonlinear_part(sink: Sink, jaxpr: Jaxpr, known: dict[Var, Handle]) -> list:
    """Evaluate the equations that read no linear value: so a checkpoint computes its values again.

    Returns the others, each with the values that it reads and the flags of its linear inputs.
    """
    linear_part = []
    for equation in jaxpr.eqns:
        flags = tuple([type(a) is not Literal and a not in known for a in equation.invars])
        xs = sink.read(values.part(equation.invars, flags)[0], known)
        if any(flags):
            linear_part.append((equation, xs, flags))
        else:
            known.update(zip(equation.outvars, sink.bind(equation, xs), strict=True))
    return linear_part


def _apply(
    sink: Sink, equation: JaxprEqn, xs: list, linear: Flags, moving: Flags, y_bars: list
) -> tuple[Flags, list]:
    """`pull` on handles: which of the linear inputs have a cotangent, and these cotangents.

    `xs` are the known inputs, `y_bars` the moving cotangents.
    """
    avals = tuple([x.aval for x in equation.invars])
    operation = Operation(equation.primitive, equation.params, avals, equation)
    if kept := templates_of(pulled_program, operation, linear, moving):
        return kept.moved, sink.run(kept.program, [*xs, *y_bars], equation)
    given, symbols = map(sink.leave, xs), map(Linear, values.pick(avals, linear))
    y_avals = [v.aval for v in equation.outvars]
    cotangents = values.with_zeros(map(sink.leave, y_bars), moving, y_avals)
    with jx.in_place_of(equation):
        x_bars = pull(operation, values.merge(given, symbols, linear), cotangents)
    moved = values.moving(x_bars)
    return moved, [*map(sink.enter, values.pick(x_bars, moved))]


def recorded(fun: Callable, avals: Sequence) -> tuple[Jaxpr, list]:
    """A linear function of flat lists, as a jaxpr of `(*residuals, *inputs)`, and its residuals."""
    tape, info = RecordingTrace(jx.current_trace()), jx.debug_info("linear_transpose", fun)
    jaxpr, residuals, _ = tape.record(lambda *xs: (fun(*xs), None), avals, info)
    return strengthened(jaxpr, residuals), residuals


def transpose_function(fun: Callable, avals: Sequence, cotangents: Sequence) -> list:
    """Pull cotangents back through a linear function of flat lists with inputs of these types."""
    jaxpr, residuals = recorded(fun, avals)
    inputs = [*residuals, *map(Linear, avals)]
    return jx.within("transpose", transpose)(jaxpr, inputs, cotangents)


@caches.by_program
def transpose_jaxpr(program: ClosedJaxpr, linear: Flags, moving: Flags) -> Derived:
    """The jaxpr of `(known inputs, y_bar) -> x_bar`, with the moving cotangents alone.

    `linear` says which inputs to transpose, `moving` which outputs have a cotangent.
    """

    def walk(inputs, cotangents):
        return transpose(*jx.constants_first(program, inputs), cotangents)

    info = program.jaxpr.debug_info
    return _staged(walk, program.in_avals, program.out_avals, linear, moving, info)


def _staged(
    pull: Callable, avals: Sequence, out_avals: Sequence, linear: Flags, moving: Flags, info: Any
) -> Derived:
    """The program of a function of inputs and cotangents."""
    known_avals, linear_avals = values.part(avals, linear)

    def pullback(known, y_bars):
        return [], pull(values.merge(known, map(Linear, linear_avals), linear), y_bars)

    return program_of_vectors(pullback, known_avals, out_avals, moving, info, values.cotangent_aval)
