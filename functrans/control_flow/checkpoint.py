"""`jax.checkpoint`: keep the values that the policy chooses, and compute the rest again.

    linearize f at x:    (y, s) = f(x) now,    and later  (x, s, x_dot) -> y_dot,  which evaluates f
                         again, except for the values saved in s

The linear half is one equation of the same primitive.  It reads no residuals but `x` and `s`; its
transpose first evaluates the equations that are not linear: the recomputation.

Read next: `calls.py`, functions for other transforms.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Var
from jax.extend.core.primitives import cond_p, jit_p, remat_p, scan_p

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.base import CallRule, Roles
from functrans.control_flow.scan import Loop
from functrans.errors import operations
from functrans.linearize import linearize_jaxpr
from functrans.programs import replay
from functrans.programs.halves import divided
from functrans.programs.jitted import roles
from functrans.programs.live import giving
from functrans.rules import call
from functrans.tracer import stage
from functrans.values import Flags


def bind(
    program: ClosedJaxpr, args: Sequence, params: dict, ins: Roles, differentiated: bool = True
) -> list:
    """Evaluate a derived jaxpr in place of the one that an equation with these params carries.

    `ins` are the roles of the inputs; a derived input has its role's flag of `prevent_cse`.
    """
    jaxpr, inputs = jx.constants_first(program, args)
    prevented = params["prevent_cse"]
    if not isinstance(prevented, bool):
        own = [prevented[r.index] if r and r.side == "in" else True for r in ins]
        prevented = (*[False] * len(program.consts), *own)
    derived = {"jaxpr": jaxpr, "differentiated": differentiated, "prevent_cse": prevented}
    return remat_p.bind(*inputs, **params | derived)


# ---- the values to save --------------------------------------------------------------------------


class Policy:
    """Says whether to keep the results of an equation.

    It asks the user's policy once, and saves and recomputes by the same answer.
    """

    def __init__(self, of_user: Callable | None):
        self.of_user, self.answers = of_user, {}

    def saves(self, equation: Any) -> bool:
        if self.of_user is None:
            return False
        if id(equation) not in self.answers:
            self.answers[id(equation)] = _is_saved(self.of_user, equation)
        return self.answers[id(equation)]


def _is_saved(policy: Callable, equation: Any) -> bool:
    """The policy answers by a bool or a symbol."""
    avals = [atom.aval for atom in equation.invars]
    answer = policy(equation.primitive, *avals, **equation.params)
    kind = type(answer).__name__
    if kind == "Offloadable":
        warnings.warn(operations.not_offloaded(), stacklevel=2)
    return bool(answer) and kind != "RecomputeType"


def walk(program: ClosedJaxpr, inputs: Sequence, meet: Callable) -> list:
    """Evaluate a program and what it calls; `meet(equation, inputs)` gives the results of each."""

    def enter(equation, given):
        if equation.primitive is not jit_p:
            return meet(equation, given)
        with jx.in_place_of(equation):
            return walk(equation.params["jaxpr"], given, meet)

    return replay.walk(program, inputs, enter)


@caches.by_program
def inlined(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program with the equations of the functions that it calls."""

    def opened(*xs):
        return walk(program, xs, jx.bind), None

    return stage(opened, program.in_avals, program.jaxpr.debug_info)[0]


def scan_again(equation: Any, inputs: Sequence, xs: list, run: Callable) -> tuple[list, list]:
    """Evaluate a `scan` whose step is `run(body, inputs, x) -> (outs, y)`; return outs and ys."""
    loop = Loop.of(equation.params)
    consts, carry, given = loop.parts(inputs)

    def body(c, step):
        x, more = step
        outs, y = run(loop.program, [*consts, *c, *x], more)
        return outs[: loop.carry], (outs[loop.carry :], y)

    with jx.in_place_of(equation):
        carry, (ys, more) = lax.scan(body, carry, (given, xs), **loop.options)
    return [*carry, *ys], more


def choose_again(equation: Any, inputs: Sequence, kept: list | None, run: Callable) -> Any:
    """Evaluate a `cond` whose branches are `run(branch, inputs, kept by it)`."""
    branches, (index, *operands) = equation.params["branches"], inputs

    def branch(i):
        return lambda *xs: run(i, branches[i], xs, kept and kept[i])

    with jx.in_place_of(equation):
        return lax.switch(index, [branch(i) for i in range(len(branches))], *operands)


def saving(policy: Policy, program: ClosedJaxpr, inputs: Sequence) -> tuple[list, list]:
    """Evaluate a program; return its results, and the values that the policy keeps."""
    saved: list = []

    def meet(equation, given):
        if equation.primitive is scan_p:

            def step(body, given, _):
                return saving(policy, body, given)

            outs, kept = scan_again(equation, given, [], step)
            saved.append(kept)
            return outs
        if equation.primitive is cond_p:
            # Each branch gives the values that it keeps, and zeros for those of the others.
            kinds = [
                jax.eval_shape(lambda *xs, b=branch: saving(policy, b, xs)[1], *given[1:])
                for branch in equation.params["branches"]
            ]

            def chosen(i, branch, given, _):
                outs, mine = saving(policy, branch, given)
                zeros = jax.tree.map(lambda s: values.full(0, s), kinds)
                return outs, [*zeros[:i], mine, *zeros[i + 1 :]]

            outs, kept = choose_again(equation, given, None, chosen)
            saved.append(kept)
            return outs
        outs = jx.bind(equation, given)
        if policy.saves(equation):
            saved.append(outs)
        return outs

    return walk(program, inputs, meet), saved


def using(policy: Policy, program: ClosedJaxpr, inputs: Sequence, saved: Iterator) -> list:
    """Evaluate a program, except for the values that `saving` kept."""

    def meet(equation, given):
        if equation.primitive is scan_p:

            def step(body, given, kept):
                return using(policy, body, given, iter(kept)), []

            return scan_again(equation, given, next(saved), step)[0]
        if equation.primitive is cond_p:

            def chosen(_, branch, given, kept):
                return using(policy, branch, given, iter(kept))

            return choose_again(equation, given, next(saved), chosen)
        return next(saved) if policy.saves(equation) else jx.bind(equation, given)

    return walk(program, inputs, meet)


# ---- the derived programs ------------------------------------------------------------------------


class Checkpointed(NamedTuple):
    """The jaxprs of `x -> (y, s)` and of `(x, s, x_dot) -> y_dot`."""

    primal: ClosedJaxpr
    linear: ClosedJaxpr
    moved: Flags


@caches.by_program
def checkpointed(program: ClosedJaxpr, moving: Flags, policy: Callable | None) -> Checkpointed:
    """Linearize a program; save the values that the policy keeps and the linear half needs."""
    first, second, moved = linearize_jaxpr(program, moving)
    dot_avals = [values.tangent_aval(aval) for aval in values.pick(program.in_avals, moving)]
    return Checkpointed(*_saved_between(first, second, len(moved), dot_avals, policy), moved)


@caches.by_program
def separated(program: ClosedJaxpr, owned: Flags, policy: Callable | None) -> Checkpointed:
    """The same for a program that is linear in inputs that a tape owns: here `x` are the
    other inputs, and `y` the outputs that do not depend on the tape."""
    first, second, linear = divided(program, owned)
    count, owned_avals = len(linear) - sum(linear), values.pick(program.in_avals, owned)
    return Checkpointed(*_saved_between(first, second, count, owned_avals, policy), linear)


def _saved_between(
    first: ClosedJaxpr,
    second: ClosedJaxpr,
    count: int,
    dot_avals: Sequence,
    of_user: Callable | None,
) -> tuple[ClosedJaxpr, ClosedJaxpr]:
    """Let the second half compute the residuals again, except for those that the policy keeps.

    `first` gives `count` results, and then the residuals. The equations of the second program are
    linear in `x_dot` or do not read it, so that they can be transposed.
    """
    info, inputs, policy = first.jaxpr.debug_info, len(first.in_avals), Policy(of_user)

    def primal(*xs):
        outs, saved = saving(policy, first, xs)
        leaves, structure = jax.tree.flatten(saved)
        return [*outs[:count], *leaves], structure

    whole, structure = stage(primal, first.in_avals, info)
    saved_avals = whole.out_avals[count:]

    def recomputed(*args):
        saved = jax.tree.unflatten(structure, args[inputs:])
        return using(policy, first, args[:inputs], iter(saved))[count:], None

    again, _ = stage(recomputed, [*first.in_avals, *saved_avals], info)
    again = giving(again, again.jaxpr.outvars)
    atoms = [*again.jaxpr.outvars, *(a for eqn in again.jaxpr.eqns for a in eqn.invars)]
    read = {atom for atom in atoms if isinstance(atom, Var)}
    is_read = jx.among(again.jaxpr.invars[inputs:], read)
    kept = values.pick(whole.jaxpr.outvars[count:], is_read)
    kept_avals = values.pick(saved_avals, is_read)
    end = inputs + len(kept)

    def linear(*args):
        rest = [values.zeros(a) for a, flag in zip(saved_avals, is_read, strict=True) if not flag]
        saved = values.merge(rest, args[inputs:end], is_read)
        with jax.named_scope("rematted_computation"):  # JAX's name, by which profilers group
            residuals = jx.evaluate(again, *args[:inputs], *saved)
        return jx.evaluate(second, *residuals, *args[end:]), None

    avals = [*first.in_avals, *kept_avals, *dot_avals]
    primal_program = giving(whole, [*whole.jaxpr.outvars[:count], *kept])
    return primal_program, stage(linear, avals, info)[0]


class CheckpointRule(CallRule):
    """Derives the jaxpr inside, and binds the result as a checkpoint again."""

    def bodies(self, params):
        return (jx.closed_of(params["jaxpr"]),)

    def with_bodies(self, params, bodies, ins, outs):
        prevented = params["prevent_cse"]
        if not isinstance(prevented, bool):
            prevented = tuple(values.pick(prevented, ins))
        return params | {"jaxpr": bodies[0].jaxpr, "prevent_cse": prevented}

    def again(self, primitive, params, bodies, inputs, ins, outs):
        return bind(bodies[0], inputs, params, ins, params["differentiated"])

    def linearize(self, primitive, primals, tangents, params):
        (program,), moving = self.bodies(params), values.moving(tangents)
        primal, pushforward, moved = checkpointed(program, moving, params["policy"])
        ins = roles("in", [True] * len(primals))
        outs = bind(primal, primals, params, ins, params["differentiated"])
        outs, saved = outs[: len(moved)], outs[len(moved) :]
        ins = [*ins, *[None] * len(saved), *roles("in", moving)]
        y_dots = bind(pushforward, [*primals, *saved, *values.pick(tangents, moving)], params, ins)
        return outs, values.with_zeros(y_dots, moved, [values.typeof(out) for out in outs])

    def split(self, primitive, inputs, owned, params):
        (program,), owned = self.bodies(params), tuple(owned)
        first, second, moved = separated(program, owned, params["policy"])
        (known, rest), count = values.part(inputs, owned), len(moved) - sum(moved)
        ins, ins_rest = values.part(roles("in", [True] * len(inputs)), owned)
        outs = bind(first, known, params, ins, params["differentiated"])
        linear = [*known, *outs[count:], *rest]
        ins = [*ins, *[None] * len(outs[count:]), *ins_rest]
        y_dots = bind(second, linear, params, ins, params["differentiated"])
        return values.merge(outs[:count], y_dots, moved)


call(remat_p, CheckpointRule())
