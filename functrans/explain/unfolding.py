"""A program with the calls, loops and branches in it opened, written as one list of equations.

    scan f, c, [x₀ … xₙ]      c₁, y₀ = f(c, x₀);   c₂, y₁ = f(c₁, x₁);   …      each f its equations

    cond p, f, g, x           the equations of f, or of g: those of the branch that is taken

Which branch is taken, and how often a `while` goes round, depends on the values; where these are
not known (inside `jit`), such an equation stays as it is.  We open some rounds of a loop, and put
the rounds between them into one call.

Read next: `indices.py`, where the arithmetic of indices is folded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import numpy as np
from jax import lax
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, DebugInfo, JaxprEqn, Literal, Var
from jax.extend.core.primitives import (
    closed_call_p,
    cond_p,
    convert_element_type_p,
    remat_p,
    scan_p,
)

from functrans import jaxpr as jx
from functrans.control_flow.base import CallRule
from functrans.control_flow.calls import InlinedRule
from functrans.control_flow.scan import Loop as Scan
from functrans.control_flow.while_loop import Loop as While
from functrans.explain import notation
from functrans.explain.records import Place, Places, is_abstract
from functrans.programs.loops import scan
from functrans.rules import RULES
from functrans.tracer import stage


class Unfolded(NamedTuple):
    """A program, and for each of its equations the places in which it was."""

    program: ClosedJaxpr
    places: list[Places]


def unfold(
    program: ClosedJaxpr, inputs: Sequence, opens: Callable, rounds: Callable[[int], Sequence[int]]
) -> Unfolded:
    """Open what `opens(equation, its places)` says, and the rounds `rounds(n)` of a loop of `n`."""
    writer = _Writer(opens, rounds)
    variables = [Var(aval) for aval in program.in_avals]
    pairs = zip(variables, inputs, strict=True)
    writer.known.update({var: x for var, x in pairs if not is_abstract(x)})
    outputs = writer.program(program, variables, (), None)
    constants = writer.constants.values()
    constvars, consts = [var for var, _ in constants], [x for _, x in constants]
    info = program.jaxpr.debug_info
    whole = jx.closed(variables, outputs, writer.equations, info, constvars, consts)
    return Unfolded(whole, writer.places)


def kind_of(equation: JaxprEqn) -> str:
    """The kind, in `CLOSED`, of an equation that stands for several."""
    if equation.primitive in (scan_p, *While.primitives):
        return "loops"
    return "branches" if equation.primitive is cond_p else "calls"


def every_round(count: int) -> Sequence[int]:
    return range(count)


def some_rounds(count: int) -> Sequence[int]:
    """The first, one in the middle, and the last."""
    return sorted({0, count // 2, count - 1}) if count else []


def named(name: str, function: Callable, avals: Sequence, purpose: str = "") -> ClosedJaxpr:
    """A function of flat lists as a program, under the name that a call of it shows."""
    # JAX takes the name of a function to end at a space.
    info = DebugInfo(purpose, name.replace(" ", "\u00a0"), None, None)
    return stage(lambda *xs: (function(*xs), None), avals, info)[0]


def called(
    program: ClosedJaxpr, inputs: Sequence, origin: JaxprEqn, source: Any, outputs: Sequence = ()
) -> JaxprEqn:
    """A call of a program, in the place of another equation."""
    outputs, params = outputs or [*map(Var, program.out_avals)], {"call_jaxpr": program}
    effects, context = program.jaxpr.effects, origin.ctx
    return JaxprEqn([*inputs], [*outputs], closed_call_p, params, effects, source, context)


class _Writer:
    """Writes equations; its methods take and return atoms of the new program."""

    def __init__(self, opens: Callable, rounds: Callable[[int], Sequence[int]]):
        self.opens, self.rounds = opens, rounds
        self.equations: list[JaxprEqn] = []
        self.places: list[Places] = []
        self.constants: dict[int, tuple[Var, Any]] = {}
        self.known: dict[Var, Any] = {}
        self.evaluated = 0

    def program(
        self, program: ClosedJaxpr, inputs: Sequence, places: Places, source: Any
    ) -> list[jx.Atom]:
        """Write a program; an equation without a user's line gets the line of `source`."""
        jaxpr = program.jaxpr
        found: dict[Var, jx.Atom] = dict(zip(jaxpr.invars, inputs, strict=True))
        found |= zip(jaxpr.constvars, map(self.constant, program.consts), strict=True)

        def read(atom: jx.Atom) -> jx.Atom:
            return atom if isinstance(atom, Literal) else found[atom]

        for equation in jaxpr.eqns:
            xs = [*map(read, equation.invars)]
            has_line = bool(source_info_util.summarize(equation.source_info))
            here = equation.source_info if has_line or source is None else source
            outs = _retyped(equation, xs)
            if outs is None and self.opens(equation, places):
                outs = self.opened(equation, xs, places, here)
            if outs is None:
                outputs = [Var(var.aval) for var in equation.outvars]
                written = equation.replace(invars=xs, outvars=outputs, source_info=here)
                outs = self.write(written, places)
            found.update(zip(equation.outvars, outs, strict=True))
        return [*map(read, jaxpr.outvars)]

    def write(self, equation: JaxprEqn, places: Places) -> list:
        self.equations.append(equation)
        self.places.append(places)
        return [*equation.outvars]

    def constant(self, value: Any) -> Var:
        if id(value) not in self.constants:
            variable = Var(jax.typeof(value))
            self.constants[id(value)] = variable, value
            self.known[variable] = value
        return self.constants[id(value)][0]

    def values(self, atoms: Sequence) -> list | None:
        """The values of atoms; `None` if one of them is not known."""
        with jax.core.eval_context():
            for equation in self.equations[self.evaluated :]:
                xs = self.values_now(equation.invars)
                if equation.outvars and xs is not None:
                    self.known.update(zip(equation.outvars, jx.bind(equation, xs), strict=True))
        self.evaluated = len(self.equations)
        return self.values_now(atoms)

    def values_now(self, atoms: Sequence) -> list | None:
        are_known = all(isinstance(a, Literal) or a in self.known for a in atoms)
        values = (a.val if isinstance(a, Literal) else self.known[a] for a in atoms)
        return [*values] if are_known else None

    # Each of these returns `None` where the equation must stay as it is.

    def opened(self, equation: JaxprEqn, xs: list, places: Places, source: Any) -> list | None:
        primitive, params, rule = equation.primitive, equation.params, RULES.get(equation.primitive)
        if primitive is scan_p:
            return self.scan(equation, Scan.of(params), xs, places, source)
        if primitive in While.primitives:
            return self.loop(equation, While.of(params), xs, places, source)
        if primitive is cond_p:
            if (index := self.values(xs[:1])) is None:
                return None
            i = int(np.clip(index[0], 0, len(params["branches"]) - 1))
            within = (*places, Place(f"branch {i} of cond"))
            return self.program(params["branches"][i], xs[1:], within, source)
        if isinstance(rule, InlinedRule) and type(rule) is InlinedRule:
            return self.program(rule.program(params), xs, places, source)
        if isinstance(rule, CallRule) and (primitive is remat_p or "jaxpr" in params):
            bodies = rule.bodies(params)
            if len(bodies) == 1 and len(bodies[0].in_avals) == len(xs) and "mesh" not in params:
                text = f"{primitive.name} of {notation.called(equation)}"
                place = Place("checkpoint" if primitive is remat_p else text, is_call=True)
                return self.program(bodies[0], xs, (*places, place), source)
        return None

    def scan(
        self, equation: JaxprEqn, loop: Scan, xs: list, places: Places, source: Any
    ) -> list | None:
        consts, carry, columns = loop.parts(xs)
        order = range(loop.options["length"])[:: -1 if loop.options["reverse"] else 1]
        if not order:
            return None

        def call(program: ClosedJaxpr, inputs: list, places: Places) -> list:
            return self.write(called(program, inputs, equation, source), places)

        # One program for all rounds, which is compiled once.
        rows = [named("[]", _row, [x.aval, INDEX], notation.UNFOLDED) for x in columns]
        pieces: list[tuple[list, bool]] = []
        for part in self.parted(order):
            if isinstance(part, int):
                within, i = (*places, Place(f"step {part} of scan")), Literal(np.int32(part), INDEX)
                pairs = zip(rows, columns, strict=True)
                row = [call(program, [x, i], within)[0] for program, x in pairs]
                outs = self.program(loop.program, [*consts, *carry, *row], within, source)
            else:
                given = [*consts, *carry, *columns]
                name, avals = f"{_steps(part)} of scan", [x.aval for x in given]
                outs = call(named(name, _some_of(loop, part), avals), given, places)
            carry = outs[: loop.carry]
            pieces.append((outs[loop.carry :], isinstance(part, int)))
        columns, are_rows = zip(*pieces[:: -1 if loop.options["reverse"] else 1], strict=True)
        results = [*carry]
        for ys in zip(*columns, strict=True):
            avals = [y.aval for y in ys]
            stack = named("stack", _stack(are_rows), avals, notation.UNFOLDED)
            results += call(stack, [*ys], places)
        return results

    def loop(
        self, equation: JaxprEqn, loop: While, xs: list, places: Places, source: Any
    ) -> list | None:
        if (values := self.values(xs)) is None:
            return None
        with jax.core.eval_context():
            count = int(np.max(loop.counted(loop.body, *loop.parts(values))[0]))
        asked, consts, carry = loop.parts(xs)
        avals = [*loop.condition.out_avals, *loop.body.out_avals, *loop.body.out_avals]
        several = _has_several(loop)
        where = named("where", _where, avals, notation.UNFOLDED) if several else None
        for part in self.parted(range(count)):
            if isinstance(part, int):
                within = (*places, Place(f"step {part} of while"))
                goes_on = self.program(loop.condition, [*asked, *carry], within, source)
                new = self.program(loop.body, [*consts, *carry], within, source)
                if where:
                    inputs = [*goes_on, *new, *carry]
                    new = self.write(called(where, inputs, equation, source), within)
                carry = new
            else:
                given = [*asked, *consts, *carry]
                name, run = f"{_steps(part)} of while", _rounds_of(loop, len(part))
                program = named(name, run, [x.aval for x in given])
                carry = self.write(called(program, given, equation, source), places)
        self.program(loop.condition, [*asked, *carry], places, source)
        return carry

    def parted(self, order: range) -> list[int | range]:
        """The opened rounds, and between them ranges of the others."""
        opened = [*self.rounds(len(order))]
        parts: list[int | range] = []
        for at, following in zip(opened, [*opened, len(order)][1:], strict=True):
            parts.append(order[at])
            if between := order[at + 1 : following]:
                parts.append(between)
        return parts


def _retyped(equation: JaxprEqn, xs: list) -> list | None:
    """The input of an equation that changes only whether a type is weak."""
    if equation.primitive is not convert_element_type_p:
        return None
    (x,), aval = xs, equation.outvars[0].aval
    if x.aval.dtype != equation.params["new_dtype"]:
        return None
    return [Literal(x.val, aval)] if isinstance(x, Literal) else xs


def _steps(part: range) -> str:
    return f"steps {part[0]}…{part[-1]}" if len(part) > 1 else f"step {part[0]}"


# ---- the functions that are written as calls -----------------------------------------------------


INDEX: Any = jax.typeof(np.int32(0))


def _row(x: Any, i: Any) -> list:
    return [lax.dynamic_index_in_dim(x, i, keepdims=False)]


def _stack(are_rows: Sequence[bool]) -> Callable:
    def stack(*ys: Any) -> list:
        pairs = zip(ys, are_rows, strict=True)
        return [lax.concatenate([lax.expand_dims(y, [0]) if flag else y for y, flag in pairs], 0)]

    return stack


def _where(goes_on: Any, *carries: Any) -> list:
    """An example that has ended stays as it is, while others go on."""
    axes, half = range(goes_on.ndim), len(carries) // 2
    return [
        lax.select(lax.broadcast_in_dim(goes_on, new.shape, axes), new, old)
        for new, old in zip(carries[:half], carries[half:], strict=True)
    ]


def _some_of(loop: Scan, part: range) -> Callable:
    """The rounds `part` of a scan, as a function of all inputs of the scan."""
    first, last = min(part), max(part)

    def run(*xs: Any) -> list:
        consts, carry, columns = loop.parts(xs)

        def body(c: Any, x: Any) -> tuple:
            outs = jx.evaluate(loop.program, *consts, *c, *x)
            return outs[: loop.carry], outs[loop.carry :]

        rows = [lax.slice_in_dim(x, first, last + 1) for x in columns]
        new_carry, ys = scan(body, carry, rows, **loop.options | {"length": len(part)})
        return [*new_carry, *ys]

    return run


def _has_several(loop: While) -> bool:
    """Whether the condition is that of several examples."""
    aval: Any = loop.condition.out_avals[0]
    return aval.shape != ()


def _rounds_of(loop: While, count: int) -> Callable:
    """So many rounds of a `while`, as a function of all inputs of the loop."""

    def run(*xs: Any) -> list:
        asked, consts, carry = loop.parts(xs)

        def body(c: Any, _: Any) -> tuple:
            new = jx.evaluate(loop.body, *consts, *c)
            if _has_several(loop):
                new = _where(*jx.evaluate(loop.condition, *asked, *c), *new, *c)
            return new, []

        return [*scan(body, carry, None, length=count)[0]]

    return run
