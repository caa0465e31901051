"""`jax.experimental.ode.odeint`: forward and Taylor mode through its steps, whose sizes stay.

    y_(n+1) = y_n + h_n phi(y_n, h_n)        =>        y_dot_(n+1) = (1 + h_n d phi) y_dot_n

In reverse mode `odeint` has a rule of its own, which solves the adjoint equation.  Its steps
depend on the cotangent, so the rule is not linear in it, and has no transpose.  But the loops of
the solver have a forward derivative if the size of a step counts as a constant.  It should: the
solver chooses it by the error, whose root has no derivative where the error is zero, and it changes
the solution no more than the tolerance allows (Bock 1981; Hairer, Norsett and Wanner 1993, II.6).
So a linearization of the solver has two programs: one for tangents, and one for cotangents.
Taylor mode takes the former, too: `../extend.py` enters the solver with fixed steps.

Read next: `library.py`, functions of JAX with a derivative of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.extend.core.primitives import custom_vjp_call_p, scan_p, while_p

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.custom import transposed_p
from functrans.control_flow.scan import Loop
from functrans.control_flow.while_loop import Loop as WhileLoop
from functrans.forward import jvp_jaxpr
from functrans.linearize import linearize_jaxpr
from functrans.programs.jitted import bind_jit
from functrans.programs.loops import evaluate, scan
from functrans.programs.replay import walk
from functrans.reverse import transpose
from functrans.tracer import stage
from functrans.values import Flags, Linear

# The state of the solver is y, its derivative, the time, the size of the step, the last time, and a
# polynomial; a loop of steps counts them before all of these.
STATE, SIZE = 6, 3


def is_solver(params: dict) -> bool:
    """Whether a compiled function is `odeint`, as it was called."""
    program = params["jaxpr"]
    calls = (e for e in program.jaxpr.eqns if e.primitive is custom_vjp_call_p)
    is_named = params["name"] == "_odeint_wrapper"
    return is_named and any(
        _of_solver(e) for call in calls for e in call.params["call_jaxpr"].jaxpr.eqns
    )


def _of_solver(equation: JaxprEqn) -> bool:
    """Whether an equation loops over the times at which the solution is wanted."""
    if equation.primitive is not scan_p or Loop.of(equation.params).carry != STATE:
        return False
    return any(map(_of_steps, equation.params["jaxpr"].jaxpr.eqns))


def _of_steps(equation: JaxprEqn) -> bool:
    return equation.primitive is while_p and len(equation.outvars) == STATE + 1


@caches.by_program
def with_fixed_steps(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program of the solver itself, in which the size of a step has no derivative."""
    info = program.jaxpr.debug_info
    return stage(lambda *xs: (_evaluate(program, xs), None), program.in_avals, info)[0]


def _evaluate(program: ClosedJaxpr, inputs: Sequence) -> list:
    return walk(program, inputs, _meet)


def _meet(equation: JaxprEqn, xs: list) -> list:
    if equation.primitive is custom_vjp_call_p:
        return _evaluate(equation.params["call_jaxpr"], xs)
    if _of_solver(equation):
        times = Loop.of(equation.params)
        consts, state, steps = times.parts(xs)

        def until(c, x):
            outs = _evaluate(times.program, [*consts, *c, *x])
            return outs[:STATE], outs[STATE:]

        state, ys = scan(until, _fixed(state, SIZE), steps, **times.options)
        return [*state, *ys]
    if _of_steps(equation):
        loop = WhileLoop.of(equation.params)
        asked, consts, state = loop.parts(xs)

        def step(consts, c):
            return _fixed(jx.evaluate(loop.body, *consts, *c), SIZE + 1)

        def goes_on(asked, c):
            return jx.evaluate(loop.condition, *asked, *c)

        return loop.bind(goes_on, step, asked, consts, state)
    return jx.bind(equation, xs)


# ---- the derivative at a point -------------------------------------------------------------------


class Linearized:
    """The derivative of a solver, as `BackwardRule` in `custom.py` is that of a user's function.

    It pushes tangents through the fixed steps, and pulls cotangents back by the rule of `odeint`.
    The residuals are the inputs, and after them those of the rule.
    """

    def __init__(self, program: ClosedJaxpr, moving: Flags):
        self.program, self.moving = program, moving
        self.first, self.second, self.moved = linearize_jaxpr(program, moving)
        self.out_avals = [*map(values.tangent_aval, program.out_avals)]

    def push(self, residuals: Sequence, tangents: Sequence) -> list:
        count = len(self.program.in_avals)
        pushed, moved = jvp_jaxpr(with_fixed_steps(self.program), self.moving)
        outs = evaluate(pushed, *residuals[:count], *tangents)
        return values.with_zeros(outs[len(moved) :], moved, self.program.out_avals)

    def __call__(self, residuals: Sequence, cotangents: Sequence) -> list:
        own = residuals[len(self.program.in_avals) :]
        symbols = map(Linear, self.second.in_avals[len(own) :])
        jaxpr, inputs = jx.constants_first(self.second, [*own, *symbols])
        return transpose(jaxpr, inputs, values.pick(cotangents, self.moved))


def linearized(params: dict, primals: Sequence, tangents: Sequence) -> tuple[list, list]:
    """The solution, and its tangents as one equation of a tape."""
    rule = Linearized(params["jaxpr"], values.moving(tangents))
    count, outs = len(rule.out_avals), bind_jit(rule.first, primals, params["name"])
    residuals, moving = [*primals, *outs[count:]], values.pick(tangents, rule.moving)
    return outs[:count], transposed_p.bind(*residuals, *moving, rule=rule)


def _fixed(state: list, at: int) -> list:
    return [lax.stop_gradient(x) if i == at else x for i, x in enumerate(state)]
