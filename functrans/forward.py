"""The forward interpreter: each value becomes a pair, the value and its tangent.

    forward : (a -> b) -> (a, a_dot) -> (b, b_dot)

`push` says what one equation `y = f(x)` means:

    (x, x_dot)  ->  (f(x), J_f(x) x_dot)

Equations come from a jaxpr (`run_jaxpr`), or from a running Python function (`process_primitive`).
A tangent *moves* if it is not known to be zero.  The interpreter carries only the moving tangents,
and flags that tell which they are.

A *handle* stands for a value, and a *sink* takes equations.  In a first reading assume that `enter`
and `leave` do nothing, and that `templates` returns `None`; `templates.py` explains them.

Read next: `linearize.py`, which records the tangents; or, in a first reading,
`derivatives/elementwise.py`, the rules that `push` asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.core
from jax.extend.core import ClosedJaxpr, set_current_trace
from jax.extend.core.primitives import custom_jvp_call_p

from functrans import appearance, caches, values
from functrans import jaxpr as jx
from functrans.jaxpr import Operation
from functrans.programs.strong import pushing
from functrans.rules import rule_of
from functrans.templates import Sink, Writing, sink_of, templates_of
from functrans.tracer import Derived, Trace, program_of_vectors, stage
from functrans.values import Flags, Zero


def push(operation: Operation, primals: list, tangents: list, ask: Callable = pushing) -> tuple:
    """`(x, x_dot) -> (y, y_dot)`, the meaning of one equation: ask its rule.

    `ask` gives the method of the rule to call: here `forward`, in `linearize.py` `linearize`.
    """
    primitive, params = operation.primitive, operation.params
    ys, y_dots = ask(rule_of(primitive))(primitive, primals, tangents, params)
    # An integer has no tangent, whatever the rule returned for it.
    pairs = zip(ys, y_dots, strict=True)
    return ys, [t if values.is_differentiable(jax.typeof(y)) else Zero.like(y) for y, t in pairs]


def pushed_program(operation: Operation, moving: Flags) -> Derived:
    """`push`, as the program of `(x, the moving x_dot) -> (y, the moving y_dot)`."""
    avals, info = operation.avals, jx.debug_info("rule", operation.primitive.bind)
    return program_of_vectors(lambda *pair: push(operation, *pair), avals, avals, moving, info)


class ForwardTracer(appearance.Tracer):
    """A primal and its tangent; Python sees the primal's type, and its value if there is one."""

    __module__ = appearance.in_jax(__name__)
    __slots__ = ("primal", "tangent")

    def __init__(self, trace: ForwardTrace, aval: Any, primal: Any, tangent: Any):
        super().__init__(trace, aval)
        self.primal, self.tangent = primal, tangent

    def to_concrete_value(self):
        primal = self.primal
        return primal.to_concrete_value() if isinstance(primal, jax.core.Tracer) else primal


class ForwardTrace(Trace):
    """Makes a pair of each operation; `parent` does the work."""

    first_run = False
    """Whether `run_staged` has just staged the function whose equations we read. Then the Python
    functions of its custom rules have lines of their own."""

    def __init__(self, parent: Any):
        super().__init__()
        self.requires_low = False
        self.parent = parent
        self.sink: Sink = sink_of(parent)
        self.dot_sink: Sink = self.sink  # of the tangents

    def apply(self, operation: Operation, xs: list, moving: Flags, x_dots: list) -> tuple:
        """The meaning of one equation, on handles: `(x, x_dot) -> (y, flags, y_dot)`.

        `x_dots` are the moving tangents, and `moving` says where they are.
        """
        if programs := self.templates(operation, moving):
            return self.run(programs, operation, xs, x_dots)
        own_lines = self.first_run and "subfuns" in operation.params
        with jx.in_place_of(operation.equation, own_lines=own_lines):
            x_dots = [*map(self.dot_sink.leave, x_dots)]
            tangents = values.with_zeros(x_dots, moving, operation.avals)
            ys, y_dots = self.ask(operation, [*map(self.sink.leave, xs)], tangents)
        moved = values.moving(y_dots)
        y_dots = map(self.dot_sink.enter, values.pick(y_dots, moved))
        return [*map(self.sink.enter, ys)], moved, [*y_dots]

    def templates(self, operation: Operation, moving: Flags) -> Any:
        return templates_of(pushed_program, operation, moving)

    def run(self, programs: Any, operation: Operation, xs: list, x_dots: list) -> tuple:
        """`apply`, by a template."""
        program, moved = programs
        outs = self.sink.run(program, [*xs, *x_dots], operation.equation)
        return outs[: len(moved)], moved, outs[len(moved) :]

    def ask(self, operation: Operation, primals: list, tangents: list) -> tuple[list, list]:
        """`apply` on values, by the rule."""
        with set_current_trace(self.parent):
            return push(operation, primals, tangents)

    # Driver one: a jaxpr.

    def run_jaxpr(self, program: ClosedJaxpr, primals: Sequence, tangents: Sequence) -> tuple:
        """Walk the equations of a jaxpr from the first to the last."""
        jaxpr = program.jaxpr
        known = {v: self.sink.enter(x) for v, x in jx.environment(program, primals).items()}
        pairs = zip(jaxpr.invars, tangents, strict=True)
        dots: Any = {v: self.dot_sink.enter(t) for v, t in pairs if type(t) is not Zero}

        for equation in jaxpr.eqns:
            xs = self.sink.read(equation.invars, known)
            moving = jx.among(equation.invars, dots)
            if not any(moving):
                ys = self.sink.bind(equation, xs)
            else:
                x_dots = [dots[atom] for atom in values.pick(equation.invars, moving)]
                operation = Operation.of(equation)
                ys, moved, y_dots = self.apply(operation, xs, moving, x_dots)
                dots.update(zip(values.pick(equation.outvars, moved), y_dots, strict=True))
            known.update(zip(equation.outvars, ys, strict=True))
        ys = [*map(self.sink.leave, self.sink.read(jaxpr.outvars, known))]
        moved = jx.among(jaxpr.outvars, dots)
        y_dots = [self.dot_sink.leave(dots[atom]) for atom in values.pick(jaxpr.outvars, moved)]
        return ys, values.with_zeros(y_dots, moved, [*map(jax.typeof, ys)])

    # Driver two: a running Python function.

    def process_primitive(self, primitive, args, params, /):
        moving = tuple([self.owns(x) for x in args])
        primals = [x.primal if moves else x for x, moves in zip(args, moving, strict=True)]
        if not any(moving):
            with set_current_trace(self.parent):
                return primitive.bind(*primals, **params)
        avals = tuple([x.aval if m else jax.typeof(x) for x, m in zip(args, moving, strict=True)])
        operation = Operation(primitive, params, avals)
        x_dots = [self.dot_sink.enter(x.tangent) for x in values.pick(args, moving)]
        xs = [*map(self.sink.enter, primals)]
        ys, moved, y_dots = self.apply(operation, xs, moving, x_dots)
        outs = self.join(map(self.sink.leave, ys), moved, map(self.dot_sink.leave, y_dots))
        return outs if primitive.multiple_results else outs[0]

    def join(self, primals: Any, moving: Sequence[bool], tangents: Any) -> list:
        """A tracer for each pair; where nothing moves, the primal alone."""
        dots, pairs = iter(tangents), zip(primals, moving, strict=True)
        return [ForwardTracer(self, jax.typeof(x), x, next(dots)) if m else x for x, m in pairs]

    def stage_value(self, x, /):
        if not self.owns(x):
            return self.parent.stage_value(x)
        return self.join([self.parent.stage_value(x.primal)], [True], [x.tangent])[0]

    def run_function(self, fun: Callable, primals: Sequence, tangents: Sequence) -> tuple:
        """Run `fun` on pairs; it takes a flat list, and returns two flat lists, outputs and `aux`.

        Returns the outputs, their tangents, and the primals of `aux`.
        """
        moving = values.moving(tangents)
        # If the parent writes a jaxpr and all moving inputs are tracers, no Python code can look at
        # their values. So we stage the function first and then read its equations, with handles for
        # tracers.
        tracers = all(isinstance(x, jax.core.Tracer) for x in values.pick(primals, moving))
        may_stage = tracers and isinstance(self.sink, Writing)
        if may_stage and (result := self.run_staged(fun, primals, tangents)):
            return result
        if type(self.parent) is jx.EvalTrace:  # a Python number becomes an array of its type
            pairs = [zip(xs, moving, strict=True) for xs in (primals, tangents)]
            primals, tangents = ([values.result(x) if m else x for x, m in p] for p in pairs)
        try:
            with set_current_trace(self):
                outs, aux = fun(*self.join(primals, moving, values.pick(tangents, moving)))
            y_dots = [x.tangent if self.owns(x) else Zero.like(x) for x in outs]
            kept = [values.result(x.primal) if self.owns(x) else x for x in aux]
            return [x.primal if self.owns(x) else x for x in outs], y_dots, kept
        finally:
            self.invalidate()

    def run_staged(self, fun: Callable, primals: Sequence, tangents: Sequence) -> tuple | None:
        """`run_function` for tracers: stage the function first, and then read its equations.

        `None` if a custom rule closes over a traced value: it must run while the trace lives.
        """
        traced = [isinstance(x, jax.core.Tracer) for x in primals]
        fixed, inputs = values.part(primals, traced)

        def body(*tracers):
            outs, aux = fun(*values.merge(fixed, tracers, traced))
            kept = [isinstance(x, jax.core.Tracer) for x in aux]
            rest, found = values.part(aux, kept)
            return [*outs, *found], (len(outs), kept, rest)

        avals, info = [jax.typeof(x) for x in inputs], jx.debug_info("forward", fun)
        program, (count, kept, rest) = stage(body, avals, info)
        if any(e.primitive is custom_jvp_call_p and e.params["num_consts"] for e in program.eqns):
            return None
        self.first_run = True
        ys, y_dots = self.run_jaxpr(program, inputs, values.pick(tangents, traced))
        return ys[:count], y_dots[:count], values.merge(rest, map(values.result, ys[count:]), kept)


def forward(fun: Callable, primals: Sequence, tangents: Sequence) -> tuple[list, list, list]:
    """Push tangents, some of which may be `Zero`, through a function of flat lists.

    The function returns two lists, its outputs and `aux`. `forward` returns the outputs, their
    tangents, and `aux`.
    """
    return ForwardTrace(jx.current_trace()).run_function(fun, primals, tangents)


@caches.by_program
def jvp_jaxpr(program: ClosedJaxpr, moving: Flags) -> Derived:
    """The jaxpr of `(x, x_dot) -> (y, y_dot)`, with the moving tangents alone."""

    def walk(primals, tangents):
        return ForwardTrace(jx.current_trace()).run_jaxpr(program, primals, tangents)

    avals = program.in_avals
    return program_of_vectors(walk, avals, avals, moving, program.jaxpr.debug_info)
