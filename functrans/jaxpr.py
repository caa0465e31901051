"""The one door to `jax.extend`: values, equations and jaxprs, and how they differ between versions.

A jaxpr is a list of equations `outputs = primitive[params] inputs`; everything in functrans reads
or writes one.  Whatever depends on the version of JAX is in this file and in no other.

    eval : (Jaxpr, [value]) -> [value]

Read next: `rules.py`, what an equation's derivative is; or `tracer.py`, how a jaxpr is written.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import jax.core
import numpy as np
from jax import lax
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Primitive, Var
from jax.extend.core.primitives import add_jaxvals_p, convert_element_type_p

typeof = jax.typeof

# A user's line is the innermost frame that is neither JAX's nor ours.
source_info_util.register_exclusion(os.path.dirname(__file__) + os.sep)


# ---- values: what stands where there is no array -------------------------------------------------


class _Symbol:
    """Has the type of an array, and no value."""

    def __init__(self, aval: Any):
        self.aval = aval

    shape = property(lambda self: self.aval.shape)
    dtype = property(lambda self: self.aval.dtype)
    ndim = property(lambda self: self.aval.ndim)

    def __repr__(self):
        return f"{type(self).__name__}({self.aval.str_short()})"


class Zero(_Symbol):
    """A tangent or cotangent that is known to be zero: never multiplied, never added."""

    @classmethod
    def like(cls, primal: Any) -> Zero:
        return cls(tangent_aval(typeof(primal)))


class Linear(_Symbol):
    """In a transpose: an input in which the equation is linear."""


@functools.lru_cache(maxsize=4096)
def tangent_aval(aval: Any) -> Any:
    """The type of the tangents of values of this type."""
    return aval.to_tangent_aval()


@functools.lru_cache(maxsize=4096)
def cotangent_aval(aval: Any) -> Any:
    """The type of the cotangents of values of this type."""
    return aval.to_ct_aval()


@functools.lru_cache(maxsize=4096)
def is_differentiable(aval: Any) -> bool:
    """Whether values of this type have tangents: floating-point and complex numbers do."""
    return getattr(tangent_aval(aval), "dtype", jax.dtypes.float0) != jax.dtypes.float0


def zeros(aval: Any) -> Any:
    """The array of zeros of a tangent type; for integers that is NumPy's `float0` array."""
    if aval.dtype == jax.dtypes.float0:
        return np.zeros(aval.shape, jax.dtypes.float0)
    array = lax.full(aval.shape, 0, aval.dtype)
    return varying_as(cast(array, aval) if aval.weak_type else array, aval)


def varying_as(x: Any, aval: Any) -> Any:
    """Copy to the devices of the mesh axes over which values of this type vary."""
    kind = getattr(aval, "manual_axis_type", None)  # not every type is that of an array
    if type(x) is Zero or not (kind and kind.varying):
        return x
    missing = kind.varying - typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


def cast(x: Any, aval: Any) -> Any:
    """Convert to the dtype of a type, and to its weak type: that of a Python number."""
    return convert_element_type_p.bind(
        x, new_dtype=aval.dtype, weak_type=aval.weak_type, sharding=None
    )


def instantiate(x: Any) -> Any:
    """An array in place of a `Zero`; anything else as it is."""
    return zeros(x.aval) if type(x) is Zero else x


_ON_PAPER = {Var, jex.Literal}


def aval_of(x: Any) -> Any:
    """The type of an atom, or of a value."""
    return x.aval if type(x) in _ON_PAPER else typeof(x)


def moving(tangents: Iterable) -> tuple[bool, ...]:
    """Which of the tangents are not known to be zero."""
    return tuple(type(t) is not Zero for t in tangents)


def present(tangents: Iterable) -> list:
    """The tangents that are not known to be zero."""
    return [t for t in tangents if type(t) is not Zero]


def gaps(tangents: Iterable) -> list:
    """The tangents without those that `present` gives: `None` stands in their places."""
    return [t if type(t) is Zero else None for t in tangents]


def gaps_for(avals: Sequence, moving: Sequence[bool]) -> list:
    """The gaps for tangents of values of these types."""
    pairs = zip(avals, moving, strict=True)
    return [None if moves else Zero(tangent_aval(aval)) for aval, moves in pairs]


def fill(gaps: Iterable, values: Iterable) -> list:
    """Put the values in the gaps."""
    rest = iter(values)
    return [next(rest) if gap is None else gap for gap in gaps]


def is_value(x: Any) -> bool:
    """Whether JAX takes `x` for an array or a scalar."""
    try:
        typeof(x)
    except TypeError:
        return False
    return True


# ---- the arithmetic of tangents ------------------------------------------------------------------


def add(x: Any, y: Any) -> Any:
    """A sum of tangents, or of cotangents, where a `Zero` costs nothing."""
    if type(x) is Zero:
        return y
    return x if type(y) is Zero else add_jaxvals_p.bind(x, y)


def broadcast_to(x: Any, aval: Any) -> Any:
    """A scalar among arrays takes part in every element; so does an axis of size 1."""
    shape = typeof(x).shape
    if shape == aval.shape:
        return x
    return lax.broadcast_in_dim(x, aval.shape, range(aval.ndim) if shape else ())


def sum_to(x: Any, aval: Any) -> Any:
    """The transpose of `broadcast_to`."""
    shape = typeof(x).shape
    if shape == aval.shape:
        return x
    axes = tuple(i for i in range(len(shape)) if not aval.shape or shape[i] != aval.shape[i])
    return lax.reshape(lax.reduce_sum(x, axes), aval.shape)


# ---- equations and jaxprs ------------------------------------------------------------------------


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


def opened(program: ClosedJaxpr, inputs: Iterable) -> tuple[Jaxpr, list]:
    """The jaxpr whose first inputs are the constants of `program`; and all its inputs."""
    jaxpr = program.jaxpr
    variables = [*jaxpr.constvars, *jaxpr.invars]
    whole = closed(variables, jaxpr.outvars, jaxpr.eqns, jaxpr.debug_info)
    return whole.jaxpr, [*program.consts, *inputs]


def with_constants(jaxpr: Jaxpr, values: Sequence) -> ClosedJaxpr:
    """The program in which the first inputs of `jaxpr` are constants, with these values."""
    variables, split = jaxpr.invars, len(values)
    outputs, equations, info = jaxpr.outvars, jaxpr.eqns, jaxpr.debug_info
    return closed(variables[split:], outputs, equations, info, variables[:split], values)


def number(value: Any, aval: Any) -> Any:
    """A scalar constant of a type, as a literal; that of a weak type is a Python number."""
    constant = aval.dtype.type(value)
    is_plain = aval.weak_type and typeof(constant.item()).dtype == aval.dtype
    return constant.item() if is_plain else constant


def debug_info(purpose: str, fun: Callable) -> jex.DebugInfo:
    """What JAX prints of a jaxpr's origin: the function's name, file and line."""
    code = getattr(fun, "__code__", None)
    place = f" at {code.co_filename}:{code.co_firstlineno}" if code else ""
    return jex.DebugInfo(purpose, name_of(fun) + place, None, None)


def name_of(fun: Callable) -> str:
    return getattr(fun, "__name__", type(fun).__name__)


def named_like(fun: Callable, transformed: Callable) -> Callable:
    """`transformed`, under the name of the function that it comes from."""
    transformed.__name__ = transformed.__qualname__ = name_of(fun)
    return transformed


def cached_by_types(function: Callable) -> Callable:
    """Remember `function(*key)` for keys of types and params, in the modes of JAX that change it.

    The first argument is the equation in whose place the function runs, if it runs. The result is
    `None` if a param holds a function, which is to live no longer than its owner, or is no key.
    """
    memory: dict[Any, Any] = {}
    config: Any = jax.config
    mesh = jax.sharding.get_abstract_mesh

    @functools.wraps(function)
    def cached(origin, *key):
        place = key, config.jax_enable_x64, config.jax_default_matmul_precision, mesh()
        try:
            found = memory.get(place)
        except TypeError:
            return None
        if found is None and not any(callable(value) for _, value in key[0]):
            with context_of(origin):
                found = function(*key)
            if len(memory) >= 8192:
                memory.clear()
            memory[place] = found
        return found

    return cached


def abstract_eval(primitive: Primitive, avals: tuple, params: dict) -> tuple[list, Any]:
    """The types of an equation's results, and its effects."""
    key = tuple(params.items())
    # Of params that hold programs nothing is remembered, lest dead programs be kept alive; and the
    # types of an equation without inputs come from the context alone.
    known = avals and not any(jex.jaxprs_in_params(params))
    found = _abstract_eval(None, key, primitive, avals) if known else None
    return found or _abstract_eval.__wrapped__(key, primitive, avals)


@cached_by_types
def _abstract_eval(params: tuple, primitive: Primitive, avals: tuple) -> tuple[list, Any]:
    out, effects = primitive.abstract_eval(*avals, **dict(params))
    return results(primitive, out), effects


def single(primitive: Primitive, avals: tuple, params: dict) -> ClosedJaxpr:
    """The program of one equation, with inputs of these types."""
    inputs, (types, effects) = [Var(a) for a in avals], abstract_eval(primitive, avals, params)
    outputs = [Var(a) for a in types]
    equation = jex.new_jaxpr_eqn(inputs, outputs, primitive, params, effects)
    return closed(inputs, outputs, [equation], debug_info("rule", primitive.bind))


def copied(equation: JaxprEqn, inputs: list, outputs: list, source: Any, context: Any) -> JaxprEqn:
    """An equation with other inputs and outputs, written elsewhere."""
    primitive, params, effects = equation.primitive, equation.params, equation.effects
    return JaxprEqn(inputs, outputs, primitive, params, effects, source, context)


def results(primitive: Primitive, out: Any) -> list:
    """What a primitive gives, as a list also if it is one thing."""
    return list(out) if primitive.multiple_results else [out]


@contextmanager
def context_of(equation: JaxprEqn | None, source: Any = None, own_lines: bool = False):
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
    line = None if own_lines else source.traceback
    scope = source_info_util.user_context(line, name_stack=source.name_stack)
    with scope, equation.ctx.manager:
        yield


def source_of(equation: JaxprEqn) -> Any:
    """The user's line of an equation, and its scope within the one that runs now."""
    outer, own = source_info_util.current_name_stack(), equation.source_info
    return scoped(own.replace(name_stack=outer), equation) if outer else own


def scoped(source: Any, equation: JaxprEqn) -> Any:
    """A line, and its scope with that of the equation in it."""
    inner = equation.source_info.name_stack
    return source.replace(name_stack=source.name_stack + inner) if inner else source


def bind(equation: JaxprEqn, inputs: Sequence[Any]) -> list:
    """Evaluate one equation."""
    primitive = equation.primitive
    params = primitive.get_bind_params(equation.params)
    with context_of(equation):
        return results(primitive, primitive.bind(*inputs, **params))


def evaluate(program: Any, *inputs: Any, **options: bool) -> list:
    """Evaluate a jaxpr (closed, or without constants)."""
    return jax.core.eval_jaxpr(program.jaxpr, program.consts, *inputs, **options)


def environment(program: ClosedJaxpr, inputs: Sequence[Any]) -> dict:
    """The values of a program's variables before its first equation."""
    variables = [*program.jaxpr.constvars, *program.jaxpr.invars]
    return dict(zip(variables, [*program.consts, *inputs], strict=True))


def giving(program: ClosedJaxpr, outputs: Sequence[Any]) -> ClosedJaxpr:
    """The program with these outputs, and with the equations that they need."""
    jaxpr, equations = program.jaxpr, live(program.jaxpr.eqns, outputs)
    info = jaxpr.debug_info
    return closed(jaxpr.invars, outputs, equations, info, jaxpr.constvars, program.consts)


def live(equations: Sequence[JaxprEqn], outputs: Sequence[Any]) -> list[JaxprEqn]:
    """The equations on which the outputs depend (or that have effects), in their order."""
    return live_and_free(equations, outputs)[0]


def live_and_free(equations: Sequence[JaxprEqn], outputs: Sequence[Any]) -> tuple[list, list]:
    """The same; and the variables that they read and that no equation gives."""
    needed = {atom: None for atom in outputs if isinstance(atom, Var)}
    kept = []
    for equation in reversed(equations):
        if equation.effects or not needed.keys().isdisjoint(equation.outvars):
            kept.append(equation)
            for variable in equation.outvars:
                needed.pop(variable, None)
            for atom in equation.invars:
                if type(atom) is not jex.Literal:
                    needed[atom] = None
    return kept[::-1], list(needed)[::-1]


# ---- caches that die with the program ------------------------------------------------------------


def cached_by_program(function: Callable) -> Callable:
    """Remember `function(program, *key)` for as long as the program lives."""
    memory: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()

    @functools.wraps(function)
    def cached(program, *key):
        entries = memory.setdefault(program, {})
        if key not in entries:  # the first of several threads gives what all of them get
            entries.setdefault(key, function(program, *key))
        return entries[key]

    return cached


# ---- programs that run ---------------------------------------------------------------------------


def current_trace() -> Any:
    """The trace to which JAX hands operations now."""
    with jex.take_current_trace() as trace:
        return trace


with jax.ensure_compile_time_eval():
    EvalTrace = type(current_trace())
"""What operations on arrays are handed to: they run at once."""
