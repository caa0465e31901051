"""Dependence in a program, and the program without unread work.

    live : (equations, outputs) -> the equations that the outputs need

An equation that carries programs may give more than anybody reads: a loop that carries a counter
beside the result, a branch with a spare output.  Then its rule `trim`s it: the programs inside
lose the work for unread outputs, and the equation loses the inputs that nothing reads any more.

Read next: `broadcasts.py`, sums before products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from functrans import jaxpr as jx
from functrans import values
from functrans.rules import RULES
from functrans.values import Flags


def live(equations: Sequence[JaxprEqn], outputs: Sequence[Any]) -> list[JaxprEqn]:
    """The equations on which the outputs depend (or that have effects), in their order."""
    return live_and_free(equations, outputs)[0]


def live_and_free(equations: Sequence[JaxprEqn], outputs: Sequence[Any]) -> tuple[list, list]:
    """The same, and the variables that they read and no equation gives."""
    needed = {atom: None for atom in outputs if isinstance(atom, Var)}
    kept = []
    for equation in reversed(equations):
        if equation.effects or not needed.keys().isdisjoint(equation.outvars):
            if len(equation.outvars) > 1 and not equation.effects:
                wanted = jx.among(equation.outvars, needed)
                equation = equation if all(wanted) else trimmed(equation, wanted)
            kept.append(equation)
            for variable in equation.outvars:
                needed.pop(variable, None)
            for atom in equation.invars:
                if type(atom) is not Literal:
                    needed[atom] = None
    return kept[::-1], list(needed)[::-1]


def trimmed(equation: JaxprEqn, wanted: Flags) -> JaxprEqn:
    """The equation without the work that only its other outputs need."""
    rule = RULES[equation.primitive]
    found = rule and rule.trim(equation.params, wanted)
    if not found:
        return equation
    params, read, given = found
    inputs, outputs = values.pick(equation.invars, read), values.pick(equation.outvars, given)
    return equation.replace(inputs, outputs, params=params)


def giving(program: ClosedJaxpr, outputs: Sequence[Any]) -> ClosedJaxpr:
    """The program with these outputs, and with the equations that they need."""
    jaxpr, equations = program.jaxpr, live(program.jaxpr.eqns, outputs)
    info = jaxpr.debug_info
    return jx.closed(jaxpr.invars, outputs, equations, info, jaxpr.constvars, program.consts)


def reading(program: ClosedJaxpr, outputs: Flags) -> tuple[ClosedJaxpr, Flags]:
    """The program with some of its outputs, and which of its inputs it still reads."""
    shorter = giving(program, values.pick(program.jaxpr.outvars, outputs))
    equations, outs = shorter.jaxpr.eqns, shorter.jaxpr.outvars
    read = {a for e in equations for a in e.invars if type(a) is not Literal}
    read.update(a for a in outs if type(a) is not Literal)
    return shorter, jx.among(shorter.jaxpr.invars, read)


def taking(program: ClosedJaxpr, inputs: Flags) -> ClosedJaxpr:
    """The program with some of its inputs; it reads no others."""
    jaxpr, variables = program.jaxpr, values.pick(program.jaxpr.invars, inputs)
    outputs, info = jaxpr.outvars, jaxpr.debug_info
    return jx.closed(variables, outputs, jaxpr.eqns, info, jaxpr.constvars, program.consts)


def trimmed_step(body: ClosedJaxpr, consts: int, carry: Flags, ys: Flags) -> tuple:
    """The body of a loop that gives the carry and the ys with the flags, and the carry that its
    next step reads.

    Returns the body, the flags of its inputs `consts, carry, xs`, and those of the carry.
    """
    end = consts + len(carry)

    def feedback(carry, read):
        return either([carry, read[consts:end]])

    carry, (program, read) = settle(lambda carry: reading(body, (*carry, *ys)), carry, feedback)
    inputs = (*read[:consts], *carry, *read[end:])
    return taking(program, inputs), inputs, carry


# ---- dependence ----------------------------------------------------------------------------------


def any_input(equation: JaxprEqn, inputs: Sequence[bool]) -> list[bool]:
    """Let every output depend on every input."""
    return [any(inputs)] * len(equation.outvars)


def depends(equation: JaxprEqn, inputs: Sequence[bool]) -> Sequence[bool]:
    """Which outputs of an equation depend on these inputs, as far as its rule knows."""
    rule = RULES[equation.primitive]
    if rule is not None and rule.may_split:
        return rule.depends(equation.params, inputs)
    return any_input(equation, inputs)


def reached(
    equations: Sequence[JaxprEqn], seeds: Iterable[Var], depends: Callable = any_input
) -> set[Var]:
    """The variables that depend on one of `seeds`.

    `depends(equation, flags of its inputs)` gives flags of its outputs.
    """
    found = set(seeds)
    for equation in equations:
        flags = jx.among(equation.invars, found)
        if any(flags):
            pairs = zip(equation.outvars, depends(equation, flags), strict=True)
            found.update(variable for variable, flag in pairs if flag)
    return found


def each_depends(equations: Sequence[JaxprEqn], seeds: Iterable[Var]) -> bool:
    """Whether each equation depends on one of `seeds`; only tested with `jax_enable_checks`."""
    config: Any = jax.config
    if not config.jax_enable_checks:
        return True
    found = reached(equations, seeds)
    return all(found.issuperset(equation.outvars) for equation in equations)


def either(flags: Sequence[Sequence[bool]]) -> Flags:
    """The flags that are set in one of the lists."""
    return tuple(map(any, zip(*flags, strict=True)))


def settle(derive: Callable, moving: Flags, feedback: Callable) -> tuple[Flags, Any]:
    """Derive for everything that moves in some step, where a step's outputs enter the next step.

    `derive(moving)` gives a named tuple that ends with the flags of the moving outputs;
    `feedback(moving, moved)` the flags with which the next step begins. Returns the fixed point.
    """
    while True:
        derived = derive(moving)
        after = feedback(moving, derived[-1])
        if after == moving:
            return moving, derived
        moving = after
