"""What a user may pass, and what to say when it was something else.

Each check returns the value in the form that the transforms use, or raises the type of exception
that JAX raises for the same mistake.

Read next: `tracebacks.py`, which frames of an error are shown.
"""

from __future__ import annotations

import operator
import os
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import tree
from jax.dtypes import float0, issubdtype
from jax.extend import source_info_util
from jax.extend.core import Primitive

from functrans import jaxpr as jx
from functrans import values
from functrans.values import Zero


def user_line() -> str:
    """File and line of the user's code that runs now, or that wrote the equation being read."""
    if line := source_info_util.summarize(source_info_util.current()):
        return line
    # An equation that a library wrote has no user's line; the program that runs it has.
    libraries = (os.path.dirname(jax.__file__), os.path.dirname(jx.__file__))
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(libraries)]
    return f"{frames[-1].filename}:{frames[-1].lineno} ({frames[-1].name})"


class NotLinear(TypeError):
    """An equation is not linear in an input with respect to which it was to be transposed."""

    @classmethod
    def at(cls, primitive: Primitive) -> NotLinear:
        return cls(
            f"cannot transpose '{primitive}' at {user_line()}: it is not linear in its input. "
            "For the derivative of a nonlinear function use functrans.vjp or functrans.grad"
        )


def no_rule(primitive: Primitive) -> NotImplementedError:
    return NotImplementedError(
        f"functrans has no derivative rule for the primitive '{primitive}', used at "
        f"{user_line()}. Declare one, such as functrans.rules.elementwise({primitive}_p, "
        "lambda y, x: ...) if it acts on each element by itself; see help(functrans.rules)"
    )


def no_reverse(what: str, advice: str) -> ValueError:
    return ValueError(f"{what} has no reverse-mode derivative, at {user_line()}. {advice}")


def not_offloaded() -> str:
    return (
        f"the checkpoint policy at {user_line()} offloads values to the host's memory; functrans "
        "saves them on the device instead"
    )


def no_derivative(primitive: Any) -> ValueError:
    return ValueError(
        f"'{primitive}' at {user_line()} calls a function outside of JAX, whose derivative is not "
        "known. Give the function around it a jax.custom_jvp or jax.custom_vjp rule, or stop the "
        "derivative with jax.lax.stop_gradient."
    )


def no_transpose_solve() -> TypeError:
    return TypeError(
        f"custom_linear_solve at {user_line()} has no transpose_solve, which its reverse-mode "
        "derivative calls. Pass transpose_solve, or symmetric=True if the operator is; or use "
        "forward mode (jvp, jacfwd)."
    )


def traced_value(source: Any) -> str:
    """What JAX's errors say of a tracer's origin, when a value was needed."""
    line = source_info_util.summarize(source or source_info_util.current())
    return (
        f"\nThe value was traced, not computed, at {line}. To branch on it use jax.lax.cond or "
        "jax.numpy.where, make the argument it comes from static (static_argnums), or do not "
        "jit: the other transforms of functrans run Python control flow on concrete values."
    )


def is_function(fun: Any) -> None:
    if not callable(fun):
        raise TypeError(f"expected a function, but got {fun!r} of type {type(fun).__name__}")


def type_of(name: str, x: Any) -> Any:
    """The abstract value of an argument, which may also have a `shape` and a `dtype` alone."""
    try:
        return jax.typeof(x)
    except TypeError:
        if hasattr(x, "shape") and hasattr(x, "dtype"):
            return jax.make_jaxpr(lambda y: y)(x).in_avals[0]
        raise TypeError(
            f"{name}: {x!r} of type {type(x).__name__} is not an array or a number. If it is not "
            "to be differentiated, close over it, or leave it out of argnums."
        ) from None


def are_values(fun: Callable, outs: Iterable) -> None:
    for out in outs:
        if not values.is_value(out):
            raise TypeError(
                f"the function {jx.name_of(fun)} returned {out!r} of type {type(out).__name__}, "
                "which is not an array or a number. Return arrays or pytrees of arrays; with "
                "has_aux=True anything may be returned beside them."
            )


def pair(out: Any) -> tuple:
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(
            f"with has_aux=True the function must return a pair (output, aux), but got {out!r}"
        )
    return tuple(out)


def are_hashable(static: dict) -> dict:
    for i, x in static.items():
        try:
            hash(x)
        except TypeError:
            raise ValueError(
                f"the static argument {i} must be hashable, but it is {x!r} of type "
                f"{type(x).__name__}. Pass a tuple for a list, or do not make it static."
            ) from None
    return static


def no_reduce_axes(reduce_axes: Sequence) -> None:
    if reduce_axes:
        raise NotImplementedError("reduce_axes is not supported; it must be empty, as in JAX")


def chunk_size(size: int) -> int:
    if size < 1:
        raise ValueError(f"chunk_size must be at least 1, but it is {size}")
    return size


def argnums(given: Any) -> int | tuple[int, ...]:
    try:
        several = isinstance(given, Sequence)
        if several and not given:
            raise ValueError("argnums is empty: there is nothing to differentiate with respect to")
        return tuple(map(operator.index, given)) if several else operator.index(given)
    except TypeError:
        raise TypeError(f"argnums must be an integer or several, but it is {given!r}") from None


def positions(name: str, argnums: int | tuple[int, ...], count: int) -> list[int]:
    wanted = [argnums] if isinstance(argnums, int) else list(argnums)
    for i in wanted:
        if not -count <= i < count:
            raise (TypeError if name == "grad" and i >= 0 else ValueError)(
                f"{name}: argnums={i} is out of range: the function was called with {count} "
                "positional argument(s). What is to be differentiated must be passed by position."
            )
    chosen = [i % count for i in wanted]
    if len(set(chosen)) != len(chosen):
        raise TypeError(f"{name}: argnums={argnums} names the same argument more than once")
    return chosen


def sequences(name: str, primals: Any, tangents: Any) -> None:
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)):
        raise TypeError(
            f"{name}: primals and tangents must be tuples or lists with one entry for each argument"
            f", but they are {type(primals).__name__} and {type(tangents).__name__}"
        )


def tangents(primals: Sequence, in_tree: Any, given: Any) -> list:
    """The leaves of the tangents; a `Zero` where the primal is an integer."""
    leaves, given_tree = tree.flatten(given)
    if given_tree != in_tree:
        raise TypeError(
            f"jvp: primals and tangents have different structures, {in_tree} and {given_tree}"
        )
    avals = [type_of("jvp", x).to_tangent_aval() for x in primals]
    return [
        _same_type("jvp: the tangent", aval, x, TypeError, ValueError)
        for aval, x in zip(avals, leaves, strict=True)
    ]


class LinearCall(NamedTuple):
    """What is said, and raised, when a linear function is called with a wrong argument."""

    name: str
    structure_error: type[Exception]
    type_error: type[Exception]


PUSHFORWARD = LinearCall("the pushforward", TypeError, ValueError)
PULLBACK = LinearCall("the pullback", ValueError, ValueError)
TRANSPOSE = LinearCall("the transpose", TypeError, TypeError)


def linear_input(call: LinearCall, in_tree: Any, avals: Sequence, given: Any) -> list:
    """The leaves of what a linear function is called with; a `Zero` where it is a `float0`."""
    leaves, given_tree = tree.flatten(given)
    if given_tree != in_tree:
        raise call.structure_error(
            f"{call.name} expects an argument of structure {in_tree}, but got {given_tree}"
        )
    what, error = f"the argument of {call.name}", call.type_error
    # As in JAX, a pullback does not look at what is given for an integer output.
    ignored = [call is PULLBACK and aval.dtype == float0 for aval in avals]
    return [
        Zero(aval) if ignore else _same_type(what, aval, x, error, error)
        for aval, x, ignore in zip(avals, leaves, ignored, strict=True)
    ]


def _same_type(what: str, aval: Any, x: Any, dtype_error: type, shape_error: type) -> Any:
    got = type_of(what, x)
    if got.dtype != aval.dtype or got.shape != aval.shape:
        raise (dtype_error if got.dtype != aval.dtype else shape_error)(
            f"{what} must have the type {aval.str_short()}, but got {got.str_short()}. Shapes and "
            "dtypes must be equal; float0 is the dtype of the tangents of integers and booleans."
        )
    return Zero(aval) if aval.dtype == float0 else x


def linear_types(avals: Sequence) -> None:
    for kind in (np.inexact, np.integer):
        if all(issubdtype(aval.dtype, kind) for aval in avals):
            return
    got = ", ".join(aval.str_short() for aval in avals)
    raise TypeError(
        "linear_transpose needs inputs and outputs that are all of a floating-point or complex "
        f"dtype, or all integers, but got {got}"
    )


def rule_result(primitive: Any, returned: Any) -> tuple[list, list]:
    """What a rule that is a jvp returns: results and tangents of their types."""
    name = f"the rule of '{primitive}'"
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise TypeError(f"{name} must return a pair (results, tangents), but got {returned!r}")
    outs, tangents_out = (jx.results(primitive, part) for part in returned)
    if len(outs) != len(tangents_out):
        raise TypeError(
            f"{name} returned {len(outs)} results and {len(tangents_out)} tangents; there must be "
            "one tangent for each result, a Zero where it is zero"
        )
    for out, tangent in zip(outs, tangents_out, strict=True):
        aval = jax.typeof(out).to_tangent_aval()
        if type(tangent) is not Zero and aval.dtype != float0:
            _same_type(f"{name}: the tangent", aval, tangent, TypeError, TypeError)
    return outs, tangents_out


def numbers(
    name: str,
    what: str,
    given: Any,
    holomorphic: bool,
    complex_too: bool = False,
    allow_int: bool = False,
) -> None:
    """Check that inputs or outputs have a dtype for which the derivative is defined."""
    for aval in dict.fromkeys(type_of(name, x) for x in tree.leaves(given)):
        is_complex = issubdtype(aval.dtype, np.complexfloating)
        if holomorphic and not is_complex:
            raise TypeError(
                f"{name} with holomorphic=True needs complex {what}, but got {aval.str_short()}"
            )
        fits = (is_complex and (complex_too or holomorphic)) or issubdtype(aval.dtype, np.floating)
        if not fits and not (allow_int and not values.is_differentiable(aval)):
            raise TypeError(
                f"{name} needs {what} of a real floating-point dtype, but got {aval.str_short()}. "
                "Convert it (x.astype(float)), choose other arguments with argnums, pass "
                "holomorphic=True for a holomorphic function, or use functrans.vjp."
            )


def scalar(out: Any, holomorphic: bool) -> None:
    if not values.is_value(out) or jax.typeof(out).shape != ():
        got = f"the shape {jax.typeof(out).shape}" if values.is_value(out) else tree.structure(out)
        raise TypeError(
            f"grad needs a function with a scalar output, but it returned {got}. Reduce it to one "
            "number (a sum, a mean), or use functrans.jacrev or functrans.vjp; with has_aux=True "
            "the function returns (number, aux)."
        )
    numbers("grad", "outputs", out, holomorphic)
