"""Programs: build, read and evaluate jaxprs, and keep the place of each equation.

A jaxpr is a list of equations `outputs = primitive[params] inputs`; every part of functrans reads
or writes one.

    evaluate : (Jaxpr, [value]) -> [value]

An equation has a *place*: the user's line, the named scopes around it, and JAX's context (the mesh,
the kind of memory, tags).  Equations derived from it get the same place.

Read next: `caches.py`, the memory of what was derived.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax.core
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var
from jax.extend.core.primitives import add_jaxvals_p

from functrans import caches

Atom = Var | Literal
"""An input of an equation: a variable, or a number that stands in the equation itself."""

# A user's line is the innermost frame that is neither JAX's nor ours.
source_info_util.register_exclusion(os.path.dirname(__file__) + os.sep)


class Operation(NamedTuple):
    """An equation without its values: everything on which a rule depends."""

    primitive: Primitive
    params: dict
    avals: tuple
    """The types of the inputs."""
    equation: JaxprEqn | None = None
    """The equation in a jaxpr; `None` if the operation comes from a running Python function."""

    @classmethod
    def of(cls, equation: JaxprEqn) -> Operation:
        """The operation of an equation, with the params that `bind` takes."""
        primitive, avals = equation.primitive, tuple([x.aval for x in equation.invars])
        return cls(primitive, primitive.get_bind_params(equation.params), avals, equation)


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
    # The names of arguments and results no longer fit.
    origin = debug_info._replace(arg_names=None, result_paths=None)
    jaxpr = Jaxpr(list(constvars), list(inputs), list(outputs), list(equations), effects, origin)
    return ClosedJaxpr(jaxpr, list(consts))


def constants_first(program: ClosedJaxpr, inputs: Iterable) -> tuple[Jaxpr, list]:
    """The jaxpr whose first inputs are the constants of `program`, and all of its inputs."""
    jaxpr = program.jaxpr
    whole = jaxpr.replace(constvars=[], invars=[*jaxpr.constvars, *jaxpr.invars])
    return whole, [*program.consts, *inputs]


def with_constants(jaxpr: Jaxpr, values: Sequence) -> ClosedJaxpr:
    """The program in which the first inputs of `jaxpr` are constants with these values."""
    variables, count = jaxpr.invars, len(values)
    inner = jaxpr.replace(constvars=variables[:count], invars=variables[count:])
    return ClosedJaxpr(inner, list(values))


@caches.by_program
def closed_of(jaxpr: Jaxpr) -> ClosedJaxpr:
    """An open jaxpr as a program without constants, which a cache can use as a key."""
    return with_constants(jaxpr, [])


def debug_info(purpose: str, fun: Callable) -> jex.DebugInfo:
    """The origin of a jaxpr, as JAX prints it: the function's name, file and line."""
    code = getattr(fun, "__code__", None)
    line = f" at {code.co_filename}:{code.co_firstlineno}" if code else ""
    return jex.DebugInfo(purpose, name_of(fun) + line, None, None)


def name_of(fun: Callable) -> str:
    return getattr(fun, "__name__", type(fun).__name__)


def named_like(fun: Callable, transformed: Callable) -> Callable:
    """`transformed`, under the name of its function."""
    transformed.__name__ = transformed.__qualname__ = name_of(fun)
    return transformed


# ---- places --------------------------------------------------------------------------------------


class Place(NamedTuple):
    """The place of an equation."""

    source: Any
    """The user's line and the named scopes."""
    context: Any
    """JAX's context: mesh, compute type, metadata."""


def place_of(equation: JaxprEqn | None) -> Place:
    """The place of an equation, within the scopes that are open now; for `None`, the place here."""
    if equation is not None:
        return Place(source_of(equation), equation.ctx)
    here = source_info_util.current()
    # JAX shows its current context nowhere but in a new equation.
    return Place(here, jex.new_jaxpr_eqn([], [], add_jaxvals_p, {}, frozenset(), here).ctx)


def source_of(equation: JaxprEqn) -> Any:
    """The user's line of an equation, and its scope within the current one."""
    outer, own = source_info_util.current_name_stack(), equation.source_info
    return own.replace(name_stack=outer + own.name_stack) if outer else own


def scoped(source: Any, equation: JaxprEqn) -> Any:
    """The same line, with the scope of the equation inside its own."""
    inner = equation.source_info.name_stack
    return source.replace(name_stack=source.name_stack + inner) if inner else source


def within(transform: str, function: Callable) -> Callable:
    """The function; in profiles its operations have names such as `jvp(layer)`."""

    def named(*args):
        with source_info_util.transform_name_stack(transform):
            return function(*args)

    return named


def scoped_from(outer: Any, equations: list[JaxprEqn]) -> list[JaxprEqn]:
    """The equations, with scopes relative to the outer one."""

    def inner(source):
        return source.replace(name_stack=source.name_stack[len(outer) :])

    return [e.replace(source_info=inner(e.source_info)) for e in equations] if outer else equations


@contextmanager
def in_place_of(equation: JaxprEqn | None, source: Any = None, own_lines: bool = False):
    """Run the body as if on the user's line and in the scope of the equation.

    Args:
      equation: the equation; `None` changes nothing.
      source: its line, and its scope within the current one, if the caller knows them.
      own_lines: whether the body runs the user's Python code, which has lines of its own; then only
        the scope is the equation's.
    """
    if equation is None:
        yield
        return
    source = source or source_of(equation)
    # An equation of a library has no user's line; it keeps the line of the call around it.
    keeps_line = own_lines or not source_info_util.summarize(source)
    line = None if keeps_line else source.traceback
    scope = source_info_util.user_context(line, name_stack=source.name_stack)
    with scope, equation.ctx.manager:
        yield


# ---- evaluating ----------------------------------------------------------------------------------


def abstract_eval(primitive: Primitive, avals: tuple, params: dict) -> tuple[list, Any]:
    """The types of an equation's results, and its effects."""
    items = tuple(params.items())
    # Do not remember params that hold programs, for the cache would keep dead programs alive. And
    # the types of an equation without inputs depend on JAX's context; the key has only the mesh.
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
    """The outputs of a primitive as a list, also if there is only one."""
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


def evaluate(program: Any, *inputs: Any) -> list:
    """Evaluate a jaxpr (closed, or without constants)."""
    return jax.core.eval_jaxpr(program.jaxpr, program.consts, *inputs)


def environment(program: ClosedJaxpr, inputs: Sequence[Any]) -> dict[Var, Any]:
    """The values of a program's variables before its first equation."""
    variables = [*program.jaxpr.constvars, *program.jaxpr.invars]
    return dict(zip(variables, [*program.consts, *inputs], strict=True))


def among(atoms: Iterable[Atom], variables: Collection[Var]) -> tuple[bool, ...]:
    """Which of the atoms are among these variables."""
    return tuple([type(a) is not Literal and a in variables for a in atoms])


def current_trace() -> Any:
    """The trace to which JAX hands operations now."""
    with jex.take_current_trace() as trace:
        return trace


with jax.ensure_compile_time_eval():
    EvalTrace = type(current_trace())
"""The trace that runs operations on arrays at once."""
