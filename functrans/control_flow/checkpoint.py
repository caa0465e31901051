"""`jax.checkpoint`: keep what the policy says of a function, and compute the rest again.

    linearize f at x:    (y, s) = f(x) now,    and later  (x, s, x_dot) -> y_dot,  which evaluates f
                         again, but for what was saved in s

The linear half is one equation of the same primitive.  It reads no residuals but `x` and `s`; its
transpose evaluates what is not linear in it first, and that is the recomputation.

Read next: `custom.py`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import compress
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, Var
from jax.extend.core.primitives import cond_p, jit_p, remat_p, scan_p

from functrans import jaxpr as jx
from functrans.control_flow.halves import closed_of
from functrans.control_flow.scan import Loop
from functrans.errors import checks
from functrans.forward import jvp_jaxpr
from functrans.jaxpr import Linear
from functrans.linearize import linearize_jaxpr
from functrans.reverse import transpose_jaxpr
from functrans.rules import Rule, call
from functrans.tracer import stage


def bind(program: ClosedJaxpr, args: list, params: dict, differentiated: bool = True) -> list:
    """Evaluate a derived jaxpr in place of the one that the equation with these params carries."""
    jaxpr, inputs = jx.opened(program, args)
    return remat_p.bind(*inputs, **params | {"jaxpr": jaxpr, "differentiated": differentiated})


# ---- what is saved -------------------------------------------------------------------------------


def saves(policy: Callable | None, equation: Any) -> bool:
    """Whether the results of an equation are kept; the policy answers, by a bool or a symbol."""
    if policy is None:
        return False
    avals = [atom.aval for atom in equation.invars]
    answer = policy(equation.primitive, *avals, **equation.params)
    kind = type(answer).__name__
    if kind == "Offloadable":
        warnings.warn(checks.not_offloaded(), stacklevel=2)
    return bool(answer) and kind != "RecomputeType"


def walk(program: ClosedJaxpr, inputs: Sequence, meet: Callable) -> list:
    """Evaluate a program and what it calls; `meet(equation, inputs)` gives the results of each."""
    values = jx.environment(program, inputs)

    def read(atom):
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in program.jaxpr.eqns:
        given = list(map(read, equation.invars))
        if equation.primitive is jit_p:
            with jx.context_of(equation):
                outs = walk(equation.params["jaxpr"], given, meet)
        else:
            outs = meet(equation, given)
        values.update(zip(equation.outvars, outs, strict=True))
    return list(map(read, program.jaxpr.outvars))


@jx.cached_by_program
def inlined(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program with the equations of the functions that it calls."""
    return stage(lambda *xs: walk(program, xs, jx.bind), program.in_avals, program.jaxpr.debug_info)


def scan_again(equation: Any, inputs: Sequence, xs: list, run: Callable) -> tuple[list, list]:
    """Evaluate a `scan` whose step is `run(body, inputs, x) -> (outs, y)`; return outs and ys."""
    loop = Loop.of(equation.params)
    consts, carry, given = loop.split(inputs)

    def body(c, step):
        x, more = step
        outs, y = run(loop.program, [*consts, *c, *x], more)
        return outs[: loop.carry], (outs[loop.carry :], y)

    with jx.context_of(equation):
        carry, (ys, more) = lax.scan(body, carry, (given, xs), **loop.options)
    return [*carry, *ys], more


def choose_again(equation: Any, inputs: Sequence, kept: list | None, run: Callable) -> Any:
    """Evaluate a `cond` whose branches are `run(branch, inputs, kept by it)`."""
    branches, (index, *operands) = equation.params["branches"], inputs

    def branch(i):
        return lambda *xs: run(i, branches[i], xs, kept and kept[i])

    with jx.context_of(equation):
        return lax.switch(index, [branch(i) for i in range(len(branches))], *operands)


def saving(policy: Callable | None, program: ClosedJaxpr, inputs: Sequence) -> tuple[list, list]:
    """Evaluate a program; return its results, and what the policy keeps."""
    saved: list = []

    def meet(equation, given):
        if equation.primitive is scan_p:

            def step(body, given, _):
                return saving(policy, body, given)

            outs, kept = scan_again(equation, given, [], step)
            saved.append(kept)
            return outs
        if equation.primitive is cond_p:
            # Each branch gives what it keeps, and zeros in the places of what the others do.
            kinds = [
                jax.eval_shape(lambda *xs, b=branch: saving(policy, b, xs)[1], *given[1:])
                for branch in equation.params["branches"]
            ]

            def chosen(i, branch, given, _):
                outs, mine = saving(policy, branch, given)
                zeros = jax.tree.map(lambda s: lax.full(s.shape, 0, s.dtype), kinds)
                return outs, [*zeros[:i], mine, *zeros[i + 1 :]]

            outs, kept = choose_again(equation, given, None, chosen)
            saved.append(kept)
            return outs
        outs = jx.bind(equation, given)
        if saves(policy, equation):
            saved.append(outs)
        return outs

    return walk(program, inputs, meet), saved


def using(policy: Callable | None, program: ClosedJaxpr, inputs: Sequence, saved: Iterator) -> list:
    """Evaluate a program, but for what `saving` has kept."""

    def meet(equation, given):
        if equation.primitive is scan_p:

            def step(body, given, kept):
                return using(policy, body, given, iter(kept)), []

            return scan_again(equation, given, next(saved), step)[0]
        if equation.primitive is cond_p:

            def chosen(_, branch, given, kept):
                return using(policy, branch, given, iter(kept))

            return choose_again(equation, given, next(saved), chosen)
        return next(saved) if saves(policy, equation) else jx.bind(equation, given)

    return walk(program, inputs, meet)


# ---- the derived programs ------------------------------------------------------------------------


@jx.cached_by_program
def checkpointed(program: ClosedJaxpr, moving: tuple[bool, ...], policy: Callable | None) -> tuple:
    """The jaxprs of `x -> (y, s)` and of `(x, s, x_dot) -> y_dot`; and the gaps of `y_dot`.

    The equations of the second are linear in `x_dot` or do not read it, so that they can be
    transposed. Of what the policy keeps, `s` is what they read.
    """
    first, second, gaps = linearize_jaxpr(program, moving)
    count, structure = len(gaps), None

    def primal(*inputs):
        nonlocal structure
        outs, saved = saving(policy, first, inputs)
        leaves, structure = jax.tree.flatten(saved)
        return [*outs[:count], *leaves]

    info = program.jaxpr.debug_info
    whole = stage(primal, program.in_avals, info)
    saved_avals = whole.out_avals[count:]

    def recomputed(*inputs):
        given, leaves = inputs[: len(moving)], inputs[len(moving) :]
        saved = jax.tree.unflatten(structure, leaves)
        return using(policy, first, given, iter(saved))[count:]

    again = stage(recomputed, [*program.in_avals, *saved_avals], info)
    again = jx.giving(again, again.jaxpr.outvars)
    atoms = [*again.jaxpr.outvars, *(a for eqn in again.jaxpr.eqns for a in eqn.invars)]
    read = {atom for atom in atoms if isinstance(atom, Var)}
    is_read = [var in read for var in again.jaxpr.invars[len(moving) :]]
    kept = compress(whole.jaxpr.outvars[count:], is_read)
    primal_program = jx.giving(whole, [*whole.jaxpr.outvars[:count], *kept])
    kept_avals = list(compress(saved_avals, is_read))

    def pushforward(*inputs):
        given, rest = inputs[: len(moving)], inputs[len(moving) :]
        kept, tangents = iter(rest[: len(kept_avals)]), rest[len(kept_avals) :]
        pairs = zip(saved_avals, is_read, strict=True)
        saved = [next(kept) if flag else jx.zeros(aval) for aval, flag in pairs]
        return jx.evaluate(second, *jx.evaluate(again, *given, *saved), *tangents)

    tangent_avals = [a.to_tangent_aval() for a in compress(program.in_avals, moving)]
    avals = [*program.in_avals, *kept_avals, *tangent_avals]
    return primal_program, stage(pushforward, avals, info), gaps


class CheckpointRule(Rule):
    """Derive the jaxpr that is inside, and bind the result as a checkpoint again."""

    def forward(self, primitive, primals, tangents, params):
        program, gaps = jvp_jaxpr(closed_of(params["jaxpr"]), jx.moving(tangents))
        outs = bind(program, [*primals, *jx.present(tangents)], params)
        return outs[: len(gaps)], jx.fill(gaps, outs[len(gaps) :])

    def linearize(self, primitive, primals, tangents, params):
        program, moving = closed_of(params["jaxpr"]), jx.moving(tangents)
        first, second, gaps = checkpointed(program, moving, params["policy"])
        outs = bind(first, primals, params, params["differentiated"])
        outs, saved = outs[: len(gaps)], outs[len(gaps) :]
        pushed = bind(second, [*primals, *saved, *jx.present(tangents)], params)
        return outs, jx.fill(gaps, pushed)

    def transpose(self, primitive, cotangents, inputs, params):
        linear = tuple(type(x) is Linear for x in inputs)
        moving = jx.moving(cotangents)
        program, gaps = transpose_jaxpr(closed_of(params["jaxpr"]), linear, moving)
        known = compress(inputs, [not is_linear for is_linear in linear])
        x_bars: Any = bind(program, [*known, *jx.present(cotangents)], params)
        x_bars = iter(jx.fill(gaps, x_bars))
        return [next(x_bars) if is_linear else None for is_linear in linear]


call(remat_p, CheckpointRule())
