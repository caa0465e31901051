"""Strong zeros: an exact zero contributes exactly zero.

    0 * inf = 0 * nan = 0          of a tangent, or a cotangent, and a residual

At x = 0 one expects the derivative 0 of `where(x > 0, sqrt(x), 0)`, but the chain rule computes
0 * inf.  So, if the user asks for it, each product of a linear value and a residual in a linear
program becomes one in which a zero absorbs the other factor.  The derivative along a path from an
input to the result is the product of the derivatives of its steps, and a 0 among these makes it 0.
The products are symmetric: forward mode, which meets the infinite factor first, and reverse mode,
which meets the zero first, agree.  If all factors are finite the product does not change.

Forward mode has no linear program.  There a tape of its own records the tangents of each equation,
and we run its program at once.

Enzyme calls this strong zero (Moses and Churavy, 2020, its option `strong-zero`).

Read next: `halves.py`, a program in two.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.programs.live import depends
from functrans.rules import RULES, Rule
from functrans.tracer import RecordingTrace
from functrans.values import Flags


def strong_zeros(on: bool = True) -> Any:
    """Let a tangent or a cotangent that is exactly 0 contribute exactly 0, even times inf or nan.

    It is a context and a decorator, off by default. It changes the derivatives that are taken
    inside it, in all modes and orders: put it around the outermost derivative. If no factor is inf
    or nan, the derivatives stay the same. The derivatives that JAX takes are not changed: in
    `jax.grad(grad(fun))` the outer one is JAX's.

    The answer is right where the zero comes from a mask, such as that of `where`. Where a factor
    goes to 0 while another goes to infinity, their product may have another limit: `sqrt(x) *
    sqrt(x)` has the derivative 1, and at 0 strong zeros give 0 in place of nan.

    Args:
      on: whether to switch strong zeros on or off.

    Returns:
      A context manager, `with strong_zeros():`, which is a decorator too, `strong_zeros()(fun)`.

    See also:
      `functrans.explain.blame`, which finds the equation that made a nan.

    Source: W. S. Moses and V. Churavy, Instead of rewriting foreign code for machine learning,
    automatically synthesize fast gradients (Enzyme), NeurIPS 2020; its option `strong-zero`.

    >>> import jax.numpy as jnp, functrans as ft
    >>> def f(x):
    ...     return jnp.where(x > 0, jnp.sqrt(x), 0.0)
    >>> float(ft.grad(f)(0.0))
    nan
    >>> with ft.strong_zeros():
    ...     float(ft.grad(f)(0.0))
    0.0
    """
    if callable(on):
        raise TypeError("strong_zeros is called before it decorates: strong_zeros()(fun)")
    return _switched(on)


@contextlib.contextmanager
def _switched(on: bool) -> Iterator[None]:
    with caches.STRONG_ZEROS(on):
        yield


class Strong(NamedTuple):
    """A product that a zero absorbs."""

    primitive: Primitive
    factors: Sequence[int]
    """The inputs in which the operation is linear."""
    one_sided: bool
    """Whether only the zeros of some factors absorb, those that the param `zeros` names."""


PRODUCTS: dict[Primitive, Strong] = {}
"""From a product to the strong one."""

INSIDE: dict[type[Rule], Callable[[Any, dict, Flags], dict]] = {}
"""For a kind of call: `(rule, params, which inputs are linear) -> params`, with programs whose
products are strong."""


# ---- linear programs -----------------------------------------------------------------------------


def strengthened(jaxpr: Jaxpr, residuals: Sequence) -> Jaxpr:
    """A linear program, whose first inputs are the residuals; under `strong_zeros`, made strong."""
    if not caches.STRONG_ZEROS.value:
        return jaxpr
    return strong_program(jx.with_constants(jaxpr, []), _after(residuals, jaxpr)).jaxpr


def _after(residuals: Sequence, jaxpr: Jaxpr) -> Flags:
    """The flags of the inputs that are linear."""
    return tuple([i >= len(residuals) for i in range(len(jaxpr.invars))])


@caches.by_program
def strong_program(program: ClosedJaxpr, linear: Flags) -> ClosedJaxpr:
    """A program that is linear in some of its inputs, with strong zeros."""
    jaxpr, equations = program.jaxpr, []
    found = {*values.pick(jaxpr.invars, linear)}
    for equation in jaxpr.eqns:
        flags = jx.among(equation.invars, found)
        if any(flags):
            pairs = zip(equation.outvars, depends(equation, flags), strict=True)
            found.update(variable for variable, flag in pairs if flag)
            equation = _strong(equation, flags)
        equations.append(equation)
    inputs, outputs, info = jaxpr.invars, jaxpr.outvars, jaxpr.debug_info
    return jx.closed(inputs, outputs, equations, info, jaxpr.constvars, program.consts)


def _strong(equation: JaxprEqn, linear: Flags) -> JaxprEqn:
    primitive, params = equation.primitive, equation.params
    rule = RULES.get(primitive)
    inside = [INSIDE[kind] for kind in type(rule).__mro__ if kind in INSIDE]
    if inside:
        params = inside[0](rule, params, linear)
    elif primitive in PRODUCTS and sum(linear) == 1:
        strong, factors, one_sided = PRODUCTS[primitive]
        i, (rest, _) = linear.index(True), values.part(equation.invars, linear)
        if i in factors and not all(map(_is_finite, rest)):
            primitive, params = strong, {**params, "zeros": (i,)} if one_sided else params
    return equation.replace(primitive=primitive, params=params)


def _is_finite(atom: jx.Atom) -> bool:
    return type(atom) is Literal and math.isfinite(abs(atom.val)) and atom.val != 0


# ---- forward mode, and functions that are linear -------------------------------------------------


def pushing(rule: Rule) -> Callable:
    """`rule.forward`, under `strong_zeros` made strong. A call derives its own programs."""
    if caches.STRONG_ZEROS.value and rule.depends_on_types_only:
        return functools.partial(_push, rule.forward)
    return rule.forward


def _push(forward: Callable, primitive: Primitive, primals: list, tangents: list, params: dict):
    return pushed_on_a_tape(lambda dots: forward(primitive, primals, dots, params), tangents)


def pushed_on_a_tape(function: Callable, tangents: Sequence) -> Any:
    """`function(tangents)`, under `strong_zeros` made strong."""
    if not caches.STRONG_ZEROS.value:
        return function(tangents)
    flags, avals = values.moving(tangents), [values.aval_of(t) for t in tangents]
    moving = values.pick(tangents, flags)
    return on_a_tape(lambda *xs: function(values.with_zeros(xs, flags, avals)), *moving)


def on_a_tape(function: Callable, *linear: Any) -> Any:
    """`function(*linear)`, with strong zeros: run it on a tape, and then run the tape's program.

    It may return other things besides linear values; `on_a_tape` returns those too.
    """
    tape = RecordingTrace(jx.current_trace())

    def run(*tracers):
        leaves, structure = jax.tree.flatten(function(*tracers), is_leaf=_is_leaf)
        owned = [tape.owns(x) for x in leaves]
        known, outs = values.part(leaves, owned)
        return outs, (known, owned, structure)

    avals, info = map(jax.typeof, linear), jx.debug_info("strong_zeros", function)
    jaxpr, residuals, (known, owned, structure) = tape.record(run, avals, info)
    program = strong_program(jx.with_constants(jaxpr, []), _after(residuals, jaxpr))
    outs = jx.evaluate(program, *residuals, *linear)
    return jax.tree.unflatten(structure, values.merge(known, outs, owned))


def _is_leaf(x: Any) -> bool:
    return x is None or not isinstance(x, list | tuple)
