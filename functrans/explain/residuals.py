"""The arrays that reverse mode keeps: `(a -> b), a -> [residual]`.

    f(x + x_dot) = f(x) + L(c1, c2, ...) x_dot + ...        the residuals are c1, c2, ...

`../linearize.py` finds them.

Read next: `exclusions.py`, the primitives without a derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from functrans import jaxpr as jx
from functrans import values
from functrans.control_flow.checkpoint import inlined
from functrans.errors import checks
from functrans.errors.lines import user_line
from functrans.explain import notation
from functrans.explain.formulas import SLOPES
from functrans.explain.notation import Text
from functrans.explain.planning import staged
from functrans.explain.records import Residual, Residuals, Run, Step, Variable
from functrans.linearize import linearize_jaxpr
from functrans.programs.replay import walk
from functrans.tracer import stage
from functrans.values import Flags


def saved_residuals(fun: Callable, *args: Any, **kwargs: Any) -> Residuals:
    """List the arrays that reverse mode keeps from the forward pass of a function.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *args: its arguments, or `jax.ShapeDtypeStruct`; functrans computes nothing.
      **kwargs: its keyword arguments.

    Returns:
      A list with a `Residual` for each array: its `shape`, its `dtype`, its `size` in bytes and its
      `origin`. It counts no literal numbers. The list prints with the share of each array in the
      `total`.

    Raises:
      TypeError: if an argument or a result is not an array.

    See also:
      `jax.checkpoint`, which computes residuals again instead of keeping them.

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.saved_residuals(lambda x: jnp.sum(jnp.sin(x) ** 2), jnp.ones(3))  # doctest: +ELLIPSIS
     50%  float32[3] (12 bytes): cos at ...
     50%  float32[3] (12 bytes): ... at ...
    24 bytes in 2 arrays
    """
    checks.is_function("saved_residuals", fun)
    whole = jx.named_like(fun, lambda args, kwargs: fun(*args, **kwargs))
    _, paths, _, program = staged("saved_residuals", whole, (args, kwargs))
    moving = tuple(map(values.is_differentiable, program.in_avals))
    half, kept = primal_half(program, moving)
    jaxpr = half.jaxpr
    origins = {
        var: f"the argument {jax.tree_util.keystr(path[1:])} of {jx.name_of(fun)}"
        for var, path in zip(jaxpr.invars, paths, strict=True)
    }
    origins.update((var, "a constant") for var in jaxpr.constvars)
    for equation in jaxpr.eqns:
        origin = f"{notation.called(equation)} at {user_line(equation.source_info)}"
        origins.update((var, origin) for var in equation.outvars)
    return Residuals(_residual(var.aval, origins[var]) for var in kept)


def _residual(aval: Any, origin: str, what: str = "") -> Residual:
    return Residual(aval.shape, aval.dtype, aval.size * aval.dtype.itemsize, origin, what)


def primal_half(program: ClosedJaxpr, moving: Flags) -> tuple[ClosedJaxpr, list[Var]]:
    """The program that makes the residuals, and their variables in it."""
    first, _, moved = linearize_jaxpr(program, moving, True)
    half = inlined(first)
    kept = [v for v in half.jaxpr.outvars[len(moved) :] if not isinstance(v, Literal)]
    return half, [*dict.fromkeys(kept)]


# ---- in a graph ----------------------------------------------------------------------------------


def mark(run: Run, moving: Flags) -> None:
    """Add to each input and to each step of a run the arrays that the reverse pass keeps of it."""
    half, kept = primal_half(_numbered(run), moving)
    makers = {var: equation for equation in half.jaxpr.eqns for var in equation.outvars}
    given = _given(run, half)
    names = {var: v.name for var, v in given.items()} | _own_names(run, half, makers)
    for var in kept:
        of: Variable | Step | None
        of, what = given.get(var), names.get(var, "a constant")
        if var in makers:
            of, what = _step_of(makers[var], run), names.get(var) or _written(makers[var], names)
        residual = _residual(var.aval, "", what)
        run.residuals.append(residual)
        if of:
            of.residuals.append(residual)


def _numbered(run: Run) -> ClosedJaxpr:
    """The program, each equation in a scope named by its number, which derived equations inherit.

    We jit it as often as the function is: the reverse pass of a compiled function keeps less.
    """
    program = run.program
    numbers = {id(equation): str(i) for i, equation in enumerate(program.jaxpr.eqns)}

    def numbered(*xs):
        def meet(equation, xs):
            with jax.named_scope(numbers[id(equation)]), jx.in_place_of(equation):
                return jx.bind(equation, xs)

        return walk(program, xs, meet)

    for _ in range(run.jits):
        numbered = jax.jit(numbered)
    return stage(lambda *xs: (numbered(*xs), None), program.in_avals, program.jaxpr.debug_info)[0]


def _step_of(equation: JaxprEqn, run: Run) -> Step | None:
    scopes = str(equation.source_info.name_stack).split("/")
    return next((run.steps[int(scope)] for scope in scopes if scope.isdigit()), None)


def _given(run: Run, half: ClosedJaxpr) -> dict[Var, Variable]:
    """The inputs and constants of the run, by their variables in the primal half."""
    constants = {id(v.value): v for v in run.constants}
    found = dict(zip(half.jaxpr.invars, run.inputs, strict=True))
    pairs = zip(half.jaxpr.constvars, half.consts, strict=True)
    return found | {var: constants[id(x)] for var, x in pairs if id(x) in constants}


def _own_names(run: Run, half: ClosedJaxpr, makers: dict[Var, JaxprEqn]) -> dict[Var, str]:
    """The names of the variables of the primal half that are outputs of steps."""
    jaxpr = half.jaxpr
    outside = {*jaxpr.outvars[: len(run.results)]}  # what another step reads, or what is a result
    for equation in jaxpr.eqns:
        own = _step_of(equation, run)
        read = {x for x in equation.invars if not isinstance(x, Literal) and x in makers}
        outside |= {var for var in read if _step_of(makers[var], run) is not own}
    names = {}
    for equation in jaxpr.eqns:
        step = _step_of(equation, run)
        if step and equation.primitive is step.equation.primitive:
            pairs = zip(equation.outvars, step.outputs, strict=False)
            names.update((var, y.name) for var, y in pairs if y.name)
        elif step and len(step.shown) == 1:
            names.update((var, step.name) for var in equation.outvars if var in outside)
    return names


def _written(equation: JaxprEqn, names: dict[Var, str]) -> str:
    """The text of an equation, if it is short; or its name."""
    given = [names.get(atom, "") for atom in equation.invars if not isinstance(atom, Literal)]
    name, texts = notation.called(equation), [*map(Text, given)]
    if not all(given) or len(given) < len(equation.invars):
        return name
    if notation.is_call(equation):
        return SLOPES[name](*texts).text if name in SLOPES else name
    return notation.expression(equation, texts).text
