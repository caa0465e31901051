"""Programs: how jaxprs are built, read and evaluated, and where an equation stands.

A jaxpr is a list of equations `outputs = primitive[params] inputs`; everything in functrans reads
or writes one.

    evaluate : (Jaxpr, [value]) -> [value]

An equation stands in a *place*: the user's line, the named scopes around it, and JAX's context (the
mesh, where it is computed, what it is tagged with).  What is derived from an equation is written in
its place.

Read next: `caches.py`, what is remembered of programs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax.core
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var
from jax.extend.core.primitives import add_jaxvals_p

from functrans import caches

Atom = Var | Literal
"""What an equation reads: a variable, or a number that stands in the equation itself."""

# A user's line is the innermost frame that is neither JAX's nor ours.
source_info_util.register_exclusion(os.path.dirname(__file__) + os.sep)


class Operation(NamedTuple):
    """What is done, apart from the values that it is done to: all that a rule depends on."""

    primitive: Primitive
    params: dict
    avals: tuple
    """The types of the inputs."""
    equation: JaxprEqn | None = None
    """The equation that is being read; `None` if the operation comes from running Python."""
    first_run: bool = True
    """Whether the Python functions of a custom rule run for the first time, on their own lines."""

    @classmethod
    def of(cls, equation: JaxprEqn, first_run: bool = False) -> Operation:
        """The operation of an equation, with the params that `bind` takes."""
        primitive, avals = equation.primitive, tuple([x.aval for x in equation.invars])
        params = primitive.get_bind_params(equation.params)
        return cls(primitive, params, avals, equation, first_run)


# ---- building ------------------------------------------------------------------------------------


def closed(
    inputs: Sequence[Var],
    outputs: Sequence[Any],
    equations: Sequence[JaxprEqn],
    debug_info: Any,
    constvars: Sequence[Var] = (),
    consts: Sequence[Any] = (),
) -> ClosedJaxpr:
    """Assemble a jaxpr; each of `constvars` stands for one of `consts`."""
    effects = frozenset().union(*(equation.effects for equation in equations))
    # Names of arguments and results do not outlive a change of the arguments and results.
    origin = debug_info._replace(arg_names=None, result_paths=None)
    jaxpr = Jaxpr(list(constvars), list(inputs), list(outputs), list(equations), effects, origin)
    return ClosedJaxpr(jaxpr, list(consts))


def constants_first(program: ClosedJaxpr, inputs: Iterable) -> tuple[Jaxpr, list]:
    """The jaxpr whose first inputs are the constants of `program`; and all its inputs."""
    jaxpr = program.jaxpr
    variables = [*jaxpr.constvars, *jaxpr.invars]
    whole = closed(variables, jaxpr.outvars, jaxpr.eqns, jaxpr.debug_info)
    return whole.jaxpr, [*program.consts, *inputs]


def with_constants(jaxpr: Jaxpr, values: Sequence) -> ClosedJaxpr:
    """The program in which the first inputs of `jaxpr` are constants, with these values."""
    variables, count = jaxpr.invars, len(values)
    outputs, equations, info = jaxpr.outvars, jaxpr.eqns, jaxpr.debug_info
    return closed(variables[count:], outputs, equations, info, variables[:count], values)


@caches.by_program
def closed_of(jaxpr: Jaxpr) -> ClosedJaxpr:
    """The open jaxpr of an equation as a program without constants, on which others can hang."""
    return with_constants(jaxpr, [])


def copied(equation: JaxprEqn, inputs: list, outputs: list, source: Any, context: Any) -> JaxprEqn:
    """An equation with other inputs and outputs, written elsewhere."""
    primitive, params, effects = equation.primitive, equation.params, equation.effects
    return JaxprEqn(inputs, outputs, primitive, params, effects, source, context)


def debug_info(purpose: str, fun: Callable) -> jex.DebugInfo:
    """What JAX prints of a jaxpr's origin: the function's name, file and line."""
    code = getattr(fun, "__code__", None)
    line = f" at {code.co_filename}:{code.co_firstlineno}" if code else ""
    return jex.DebugInfo(purpose, name_of(fun) + line, None, None)


def name_of(fun: Callable) -> str:
    return getattr(fun, "__name__", type(fun).__name__)


def named_like(fun: Callable, transformed: Callable) -> Callable:
    """`transformed`, under the name of the function that it comes from."""
    transformed.__name__ = transformed.__qualname__ = name_of(fun)
    return transformed


# ---- places --------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where an equation stands."""

    source: Any
    """The user's line and the named scopes."""
    context: Any
    """JAX's own: mesh, compute type, metadata."""


def place_of(equation: JaxprEqn | None) -> Place:
    """The place of an equation, within the scopes that are open now; `None` means here."""
    if equation is not None:
        return Place(source_of(equation), equation.ctx)
    here = source_info_util.current()
    # JAX puts the context of the moment into a new equation, and shows it nowhere else.
    return Place(here, jex.new_jaxpr_eqn([], [], add_jaxvals_p, {}, frozenset(), here).ctx)


def source_of(equation: JaxprEqn) -> Any:
    """The user's line of an equation, and its scope within the one that runs now."""
    outer, own = source_info_util.current_name_stack(), equation.source_info
    return own.replace(name_stack=outer + own.name_stack) if outer else own


def scoped(source: Any, equation: JaxprEqn) -> Any:
    """A line, and its scope with that of the equation in it."""
    inner = equation.source_info.name_stack
    return source.replace(name_stack=source.name_stack + inner) if inner else source


def within(transform: str, function: Callable) -> Callable:
    """The function, whose operations have names such as `jvp(layer)` in profiles."""

    def named(*args):
        with source_info_util.transform_name_stack(transform):
            return function(*args)

    return named


def scoped_from(outer: Any, equations: list[JaxprEqn]) -> list[JaxprEqn]:
    """The equations, with scopes relative to the one in which they were written."""
    if not outer:
        return equations
    sources = [e.source_info for e in equations]
    inner = [s.replace(name_stack=s.name_stack[len(outer) :]) for s in sources]
    pairs = zip(equations, inner, strict=True)
    return [copied(e, e.invars, e.outvars, source, e.ctx) for e, source in pairs]


@contextmanager
def in_place_of(equation: JaxprEqn | None, source: Any = None, own_lines: bool = False):
    """Run the body as if on the user's line, and in the scope, where the equation was written.

    Args:
      equation: `None` changes nothing.
      source: its line and its scope within the one that runs now, if they are known already.
      own_lines: whether the body runs Python code of the user's, which has lines of its own; then
        the scope alone is the equation's.
    """
    if equation is None:
        yield
        return
    source = source or source_of(equation)
    # What a library has written has no user's line: it keeps that of the call around it.
    keeps_line = own_lines or not source_info_util.summarize(source)
    line = None if keeps_line else source.traceback
    scope = source_info_util.user_context(line, name_stack=source.name_stack)
    with scope, equation.ctx.manager:
        yield


# ---- evaluating ----------------------------------------------------------------------------------


def abstract_eval(primitive: Primitive, avals: tuple, params: dict) -> tuple[list, Any]:
    """The types of an equation's results, and its effects."""
    items = tuple(params.items())
    # Of params that hold programs nothing is remembered, lest dead programs be kept alive; and the
    # types of an equation without inputs come from the context alone.
    may_be_kept = avals and not any(jex.jaxprs_in_params(params))
    key = primitive, avals, jax.sharding.get_abstract_mesh()
    found = _abstract_eval(items, key) if may_be_kept else None
    return found or _abstract_eval.__wrapped__(items, key, None)


@caches.by_types
def _abstract_eval(params: tuple, key: tuple, _: None) -> tuple[list, Any]:
    primitive, avals, _ = key
    out, effects = primitive.abstract_eval(*avals, **dict(params))
    return results(primitive, out), effects


def results(primitive: Primitive, out: Any) -> list:
    """What a primitive gives, as a list also if it is one thing."""
    return list(out) if primitive.multiple_results else [out]


def bind(equation: JaxprEqn, inputs: Sequence[Any]) -> list:
    """Evaluate one equation.

    Args:
      equation: an equation of a program.
      inputs: an array for each of its inputs.

    Returns:
      A list with an array for each output.

    >>> import jax.numpy as jnp
    >>> from functrans import extend
    >>> (equation,) = extend.staged(jnp.sin, 2.0).program.jaxpr.eqns
    >>> [float(y) for y in extend.bind(equation, [0.0])]
    [0.0]
    """
    primitive = equation.primitive
    params = primitive.get_bind_params(equation.params)
    with in_place_of(equation):
        return results(primitive, primitive.bind(*inputs, **params))


def evaluate(program: Any, *inputs: Any, **options: bool) -> list:
    """Evaluate a jaxpr (closed, or without constants)."""
    return jax.core.eval_jaxpr(program.jaxpr, program.consts, *inputs, **options)


def environment(program: ClosedJaxpr, inputs: Sequence[Any]) -> dict[Var, Any]:
    """The values of a program's variables before its first equation."""
    variables = [*program.jaxpr.constvars, *program.jaxpr.invars]
    return dict(zip(variables, [*program.consts, *inputs], strict=True))


def current_trace() -> Any:
    """The trace to which JAX hands operations now."""
    with jex.take_current_trace() as trace:
        return trace


with jax.ensure_compile_time_eval():
    EvalTrace = type(current_trace())
"""What operations on arrays are handed to: they run at once."""
