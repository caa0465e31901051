"""The forward interpreter: each value becomes a pair, the value and its tangent.

    forward : (a -> b) -> (a, a_dot) -> (b, b_dot)

What one equation `y = f(x)` means is said once, in `equation`,

    (x, x_dot)  ->  (f(x), J_f(x) x_dot)

and there are two ways to be given equations: live, from a running Python function
(`process_primitive`), and from a jaxpr (`run_jaxpr`).  What a rule makes of an equation depends on
types alone, so the rule is asked once, by a program of this one equation; what it answers is a
program too, which is written down, or runs compiled, as often as such an equation occurs.

Read next: `derivatives/elementwise.py`, the rules; then `linearize.py`, which records the tangents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress
from typing import Any

import jax.core
from jax.extend.core import ClosedJaxpr, Literal, set_current_trace

from functrans import jaxpr as jx
from functrans.jaxpr import Zero
from functrans.rules import Rule, rule_of
from functrans.tracer import StagingTrace, Trace, derived, place, stage, worker


class ForwardTracer(jax.core.Tracer):
    """A primal and its tangent; Python sees the primal's type, and its value if there is one."""

    __slots__ = ("primal", "tangent")

    def __init__(self, trace: ForwardTrace, aval: Any, primal: Any, tangent: Any):
        super().__init__(trace, aval)
        self.primal, self.tangent = primal, tangent

    def to_concrete_value(self):
        primal = self.primal
        return primal.to_concrete_value() if isinstance(primal, jax.core.Tracer) else primal


class ForwardTrace(Trace):
    """Gives each operation its pair; `parent` does the work."""

    def __init__(self, parent: Any):
        super().__init__()
        self.requires_low = False
        # `alone`: the equation of a program that has no other asks its rule.
        self.parent, self.is_live, self.alone = parent, False, False
        self.work = self.tangents = worker(parent)

    def equation(
        self, primitive: Any, params: dict, avals: tuple, xs: list, x_dots: list, origin: Any = None
    ) -> tuple:
        """`(x, x_dot) -> ([type of y], [y], [y_dot])`, the meaning of one equation, on handles.

        A tangent that is zero is `None`; `origin` is the equation, if it stands in a jaxpr.
        """
        moving = tuple([t is not None for t in x_dots])
        if found := derived(origin, primitive, params, self.alone, self.derive, avals, moving):
            return self.push(origin, found, xs, [t for t in x_dots if t is not None])
        # Python functions that run now have lines of their own.
        with jx.context_of(origin, own_lines=self.is_live and "subfuns" in params):
            primals = [*map(self.work.value, xs)]
            pairs = zip(primals, x_dots, strict=True)
            tangents = [Zero.like(x) if t is None else self.tangents.value(t) for x, t in pairs]
            ys, y_dots = self.ask(rule_of(primitive), primitive, primals, tangents, params)
        # An integer has no tangent, whatever a rule has made of it.
        pairs = zip(ys, y_dots, strict=True)
        moving = [type(t) is not Zero and jx.is_differentiable(jx.typeof(y)) for y, t in pairs]
        pairs = zip(y_dots, moving, strict=True)
        y_dots = [self.tangents.atom(t) if moves else None for t, moves in pairs]
        return [*map(jx.typeof, ys)], [*map(self.work.atom, ys)], y_dots

    def ask(self, rule: Rule, *equation: Any) -> tuple:
        with set_current_trace(self.parent):
            return rule.forward(*equation)

    derive = property(lambda self: jvp_jaxpr)

    def push(self, origin: Any, found: tuple, xs: list, x_dots: list) -> tuple:
        """Run what `derive` has made of the equation."""
        program, gaps = found
        outs, count = self.work.run(program, [*xs, *x_dots], origin), len(gaps)
        return program.out_avals[:count], outs[:count], place(outs[count:], gaps)

    # Driver one: a running Python function.

    def owns(self, x: Any) -> bool:
        return isinstance(x, ForwardTracer) and x._trace is self

    def primal(self, x: Any) -> Any:
        return x.primal if self.owns(x) else x

    def join(self, aval: Any, primal: Any, tangent: Any) -> Any:
        return primal if tangent is None else ForwardTracer(self, aval, primal, tangent)

    def process_primitive(self, primitive, args, params, /):
        primals, moves = [*map(self.primal, args)], [*map(self.owns, args)]
        if not any(moves):
            with set_current_trace(self.parent):
                return primitive.bind(*primals, **params)
        pairs = zip(args, moves, strict=True)
        x_dots = [self.tangents.atom(x.tangent) if moving else None for x, moving in pairs]
        xs, avals = [*map(self.work.atom, primals)], tuple(map(jx.typeof, args))
        avals, ys, y_dots = self.equation(primitive, params, avals, xs, x_dots)
        primals = [*map(self.work.value, ys)]
        tangents = [None if t is None else self.tangents.value(t) for t in y_dots]
        outs = [*map(self.join, avals, primals, tangents)]
        return outs if primitive.multiple_results else outs[0]

    def stage_value(self, x, /):
        staged = self.parent.stage_value(self.primal(x))
        return self.join(jx.typeof(x), staged, x.tangent) if self.owns(x) else staged

    def run_function(self, fun: Callable, primals: Sequence, tangents: Sequence) -> tuple:
        """Run `fun` on pairs; it takes a flat list and returns two, its outputs and `aux`.

        Returns the outputs, their tangents, and `aux`, of which only the primals count.
        """
        self.is_live, pairs = True, list(zip(primals, tangents, strict=True))
        moving = [x for x, t in pairs if type(t) is not Zero]
        is_written = type(self.parent) is StagingTrace
        if is_written and all(isinstance(x, jax.core.Tracer) for x in moving):
            return self.run_staged(fun, primals, tangents)
        try:
            with set_current_trace(self):
                inputs = ((x, None if type(t) is Zero else t) for x, t in pairs)
                outs, aux = fun(*(self.join(jx.typeof(x), x, t) for x, t in inputs))
            y_dots = [x.tangent if self.owns(x) else Zero.like(x) for x in outs]
            return [*map(self.primal, outs)], y_dots, [*map(self.primal, aux)]
        finally:
            self.invalidate()

    def run_staged(self, fun: Callable, primals: Sequence, tangents: Sequence) -> tuple:
        """The same where no value is at hand: the function is staged first, then read."""
        traced = [i for i, x in enumerate(primals) if isinstance(x, jax.core.Tracer)]
        outs, aux = [], []

        def body(*tracers):
            given = dict(zip(traced, tracers, strict=True))
            outs[:], aux[:] = fun(*(given.get(i, x) for i, x in enumerate(primals)))
            return [*outs, *filter(jx.is_value, aux)]

        avals = [jx.typeof(primals[i]) for i in traced]
        program = stage(body, avals, jx.debug_info("forward", fun))
        chosen = [[values[i] for i in traced] for values in (primals, tangents)]
        values, y_dots = self.run_jaxpr(program, *chosen)
        rest = iter(values[len(outs) :])
        aux = [next(rest) if jx.is_value(x) else x for x in aux]
        return values[: len(outs)], y_dots[: len(outs)], aux

    # Driver two: a jaxpr.

    def run_jaxpr(self, program: ClosedJaxpr, primals: Sequence, tangents: Sequence) -> tuple:
        """Walk the equations of a jaxpr from the first to the last."""
        jaxpr, self.alone = program.jaxpr, len(program.jaxpr.eqns) == 1
        known = jx.environment(program, primals)
        known = {v: self.work.atom(x) for v, x in known.items()}
        pairs = zip(jaxpr.invars, tangents, strict=True)
        moving = {v: self.tangents.atom(t) for v, t in pairs if type(t) is not Zero}

        def primal(atom: Any) -> Any:
            return self.work.atom(atom) if type(atom) is Literal else known[atom]

        def tangent(atom: Any) -> Any:
            return None if type(atom) is Literal else moving.get(atom)

        for equation in jaxpr.eqns:
            xs = [primal(atom) for atom in equation.invars]
            x_dots = [tangent(atom) for atom in equation.invars]
            if all(t is None for t in x_dots):
                ys = self.work.run_equation(equation, xs)
            else:
                primitive, avals = equation.primitive, tuple([x.aval for x in equation.invars])
                params = primitive.get_bind_params(equation.params)
                _, ys, y_dots = self.equation(primitive, params, avals, xs, x_dots, equation)
                moving.update(zip(equation.outvars, y_dots, strict=True))
            known.update(zip(equation.outvars, ys, strict=True))
        outs = [self.work.value(primal(atom)) for atom in jaxpr.outvars]
        y_dots = map(tangent, jaxpr.outvars)
        pairs = zip(outs, y_dots, strict=True)
        return outs, [Zero.like(x) if t is None else self.tangents.value(t) for x, t in pairs]


def forward(fun: Callable, primals: Sequence, tangents: Sequence) -> tuple[list, list, list]:
    """Push tangents, some of which may be `Zero`, through a function of flat lists.

    The function returns two lists, its outputs and `aux`. The result is the outputs, their
    tangents, and `aux`.
    """
    return ForwardTrace(jx.current_trace()).run_function(fun, primals, tangents)


@jx.cached_by_program
def jvp_jaxpr(program: ClosedJaxpr, moving: tuple[bool, ...]) -> tuple[ClosedJaxpr, list]:
    """The jaxpr of `(x, x_dot) -> (y, y_dot)`, where only what moves has a place.

    Returns it and the gaps of `y_dot`, which it fills.
    """
    gaps: list = []
    count = len(moving)

    def pushforward(*inputs):
        tangents = jx.fill(jx.gaps_for(program.in_avals, moving), inputs[count:])
        trace = ForwardTrace(jx.current_trace())
        outs, tangents = trace.run_jaxpr(program, inputs[:count], tangents)
        gaps.extend(jx.gaps(tangents))
        return [*outs, *jx.present(tangents)]

    tangent_avals = map(jx.tangent_aval, compress(program.in_avals, moving))
    return stage(pushforward, [*program.in_avals, *tangent_avals], program.jaxpr.debug_info), gaps
