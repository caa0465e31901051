"""The nodes of an evaluation: each equation of a program, with the streams that it computes.

    node : equation, streams of its inputs  ->  streams of its results

A node computes coefficient `k` of all its results at once, by the function that `equations.py`
chooses for it.  An equation of a derivative program that repeats one on the same streams is the
same node: the sine needs the cosine, and the cosine needs the sine.

Read next: `equations.py`, how a coefficient follows from those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax.core
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn

from functrans import extend
from functrans.extend import Zero, pick
from functrans.rules import LINEAR
from functrans.taylor.streams import Stream

Later = Callable[[int], list]
"""From `k > 0` to the coefficient `k` of each result, all earlier ones being there."""


class Run:
    """The memory of one evaluation: its nodes, its constants and its derivative programs.

    `evaluate` evaluates a program inside an equation. A case takes a node to its `Later`, or to
    `None` if it does not fit.
    """

    def __init__(self, order: int, evaluate: Callable, cases: Sequence[Callable]):
        self.order, self.evaluate, self.cases = order, evaluate, cases
        self.nodes: dict[Any, Node] = {}
        self.constants: dict[Any, tuple] = {}
        self.derivatives: dict[Any, tuple] = {}

    def constant(self, value: Any) -> Stream:
        """The stream of a constant of a program: one for each number, and for each array."""
        is_array = isinstance(value, jax.Array | jax.core.Tracer) or np.ndim(value)
        key = id(value) if is_array else (type(value), repr(value))
        if key not in self.constants:
            self.constants[key] = Stream(jax.typeof(value), [value]), value
        return self.constants[key][0]

    def node(self, equation: JaxprEqn, inputs: list[Stream]) -> Node:
        """The node of an equation on these streams: the one that there is, if there is one."""
        key = key_of(equation, inputs)
        found = None if key is None else self.nodes.get(key)
        return found or Node(self, equation, inputs)

    def expanded(self, program: ClosedJaxpr, inputs: Sequence[Stream]) -> tuple[list, list]:
        """The nodes of a program in their order, and the streams that it gives."""
        nodes: list[Node] = []

        def meaning(equation, xs):
            nodes.append(self.node(equation, xs))
            return nodes[-1].outputs

        outs = extend.interpret(program, inputs, meaning, self.constant, own_rules=True)
        return nodes, outs

    def derivative(self, equation: JaxprEqn, flags: Sequence[bool]) -> Any:
        """`extend.derivative_program`, kept here too: no cache keeps that of a user's own rule.

        The entry holds the equation, so that no other one gets its id.
        """
        key = id(equation), tuple(flags)
        if key not in self.derivatives:
            self.derivatives[key] = extend.derivative_program(equation, flags), equation
        return self.derivatives[key][0]


def key_of(equation: JaxprEqn, inputs: list[Stream]) -> Any:
    """A key that equations have in common if they compute the same; `None` if there is none."""
    params = tuple([(name, type(p), p) for name, p in equation.params.items()])
    ids = [*map(id, inputs)]
    order_matters = equation.primitive not in (lax.mul_p, lax.add_p)
    key = equation.primitive, params, tuple(ids if order_matters else sorted(ids))
    try:
        hash(key)
    except TypeError:
        return None
    return None if equation.effects else key


class Node:
    """One equation, and the streams that it computes."""

    def __init__(self, run: Run, equation: JaxprEqn, inputs: list[Stream]):
        self.run, self.equation, self.inputs = run, equation, inputs
        self.flags = tuple([x.moves for x in inputs])
        self.is_call = any(self.flags) and extend.carries_programs(equation)
        self.outputs = [Stream(v.aval, source=self.reach) for v in equation.outvars]
        for y, moves in zip(self.outputs, self.moved(), strict=True):
            y.moves = moves
        self.count = 0  # how many coefficients are known
        run.nodes[key_of(equation, inputs) or id(self)] = self

    def moved(self) -> Sequence[bool]:
        """Which outputs move."""
        if not any(self.flags):
            return [False] * len(self.outputs)
        if self.is_call:
            return [y.zero.dtype != jax.dtypes.float0 for y in self.outputs]
        return self.run.derivative(self.equation, self.flags).moved

    def reach(self, k: int) -> None:
        """Compute all coefficients up to this one.

        Call this for the equations of a program in their order. Then each finds the coefficients of
        its inputs, and Python's recursion grows with the order and not with the program.
        """
        writes = any(self.flags) and not self.outputs  # to a reference
        k = k if writes or any(y.moves for y in self.outputs) else 0
        while self.count <= k:
            rows = self.of_call(k) if self.is_call else [self.coefficient(self.count)]
            self.count += len(rows)
            for row in rows:
                for y, coefficient in zip(self.outputs, row, strict=True):
                    y.known.append(coefficient)

    def coefficient(self, k: int) -> list:
        return self.later(k) if k else self.at_zero()

    @cached_property
    def later(self) -> Later:
        """The other coefficients, by the first case that fits."""
        return next(later for case in self.run.cases if (later := case(self)))

    def at_zero(self) -> list:
        """The results at `t = 0`."""
        zero = [type(x[0]) is Zero for x in self.inputs]
        if any(zero):  # the first coefficient of a derivative may be
            rule = extend.rule_of(self.equation.primitive)
            is_zero = LINEAR in pick(partials_of(rule), zero)
            if is_zero or (all(zero) and rule.is_linear(len(zero))):
                return [y.zero for y in self.outputs]
        return extend.bind(self.equation, [x.value for x in self.inputs])

    def streams(self, later: Later) -> list[Stream]:
        """New streams, one for each result, with the coefficients that `later` gives."""
        made = [Stream(y.zero.aval, source=lambda k: reach(k)) for y in self.outputs]

        def reach(k: int) -> None:
            while len(made[0].known) <= k:
                row = later(len(made[0].known))
                for stream, coefficient in zip(made, row, strict=True):
                    stream.known.append(coefficient)

        return made

    def pushed(self, results: Sequence, dots: Sequence) -> list:
        """`J_f(x_0) x_dot`; the derivative program reads these results, and a `Zero` stays."""
        moving = extend.moving(dots)
        if not any(moving):
            return [y.zero for y in self.outputs]
        program, moved = self.run.derivative(self.equation, moving)
        given = [*(x.value for x in self.inputs), *map(extend.instantiate, results)]
        outs = extend.evaluate(program, [*given, *pick(dots, moving)], self.equation)
        return extend.with_zeros(outs, moved, [y.aval for y in self.outputs])

    def of_call(self, k: int) -> list:
        """The missing coefficients, up to `k`, or as far as those of the inputs go.

        A call computes all of its coefficients whenever we bind it, from the first.
        """
        available = min(x.available() for x in pick(self.inputs, self.flags))
        k = max(k, min(self.run.order, available - 1))
        columns = [[x.value, *x.column(k)[1:]] for x in self.inputs]
        outs: Any = extend.through(self.equation, columns, self.run.evaluate, k)
        given = [Stream(y.aval, c) for y, c in zip(self.outputs, outs, strict=True)]
        return [[y[i] for y in given] for i in range(self.count, k + 1)]


def partials_of(rule: Any) -> Sequence:
    """For each input of an elementwise or multilinear rule its partial derivative, or `LINEAR`."""
    return getattr(rule, "partials", ())
