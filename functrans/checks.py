"""What a user may pass, and what to say when it was something else.

Each check returns the value in the form that the transforms use, or raises the type of exception
that JAX raises for the same mistake.

Read next: `transforms.py`, which asks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax import tree
from jax.extend.core import primal_dtype_to_tangent_dtype

from functrans import jaxpr as jx
from functrans.jaxpr import Zero


def is_function(name: str, fun: Any) -> None:
    if not callable(fun):
        raise TypeError(f"{name} expects a function, but got {fun!r} of type {type(fun).__name__}")


def type_of(name: str, x: Any) -> Any:
    """The abstract value of an argument, which may also be a `jax.ShapeDtypeStruct`."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.make_jaxpr(lambda y: y)(x).in_avals[0]
    try:
        return jx.typeof(x)
    except TypeError:
        raise TypeError(
            f"{name}: the argument {x!r} of type {type(x).__name__} is not an array or a number. "
            "If it is not to be differentiated, close over it, or leave it out of argnums."
        ) from None


def are_values(fun: Callable, outs: Iterable) -> None:
    for out in outs:
        if not jx.is_value(out):
            raise TypeError(
                f"the function {getattr(fun, '__name__', fun)} returned {out!r} of type "
                f"{type(out).__name__}, which is not an array or a number. Return arrays or "
                "pytrees of arrays; with has_aux=True anything may be returned beside them."
            )


def pair(out: Any) -> tuple:
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(
            "with has_aux=True the function must return a pair (output, aux), but it returned "
            f"{out!r}" + (f", of length {len(out)}" if isinstance(out, (tuple, list)) else "")
        )
    return tuple(out)


def are_hashable(static: dict) -> None:
    for i, x in static.items():
        try:
            hash(x)
        except TypeError:
            raise ValueError(
                f"the static argument {i} must be hashable, because results are remembered by its "
                f"value, but it is {x!r} of type {type(x).__name__}. Pass a tuple for a list, or "
                "do not make it static."
            ) from None


def no_reduce_axes(reduce_axes: Sequence) -> None:
    if reduce_axes:
        raise NotImplementedError("reduce_axes is not supported; it must be empty, as in JAX")


# ---- argnums ---------------------------------------------------------------------------------------


def argnums(given: Any) -> int | tuple[int, ...]:
    try:
        if isinstance(given, Sequence):
            return tuple(map(operator.index, given))
        return operator.index(given)
    except TypeError:
        raise TypeError(
            f"argnums must be an integer or a sequence of integers, but it is {given!r}"
        ) from None


def positions(name: str, argnums: int | tuple[int, ...], count: int) -> list[int]:
    wanted = [argnums] if isinstance(argnums, int) else list(argnums)
    for i in wanted:
        if not -count <= i < count:
            raise ValueError(
                f"{name}: argnums={i} asks for the derivative with respect to an argument that is "
                f"not there: the function was called with {count} positional argument(s). "
                "Arguments to differentiate with respect to must be passed by position."
            )
    return [i % count for i in wanted]


# ---- tangents and cotangents -----------------------------------------------------------------------


def sequences(name: str, primals: Any, tangents: Any) -> tuple[tuple, tuple]:
    if not isinstance(primals, (tuple, list)) or not isinstance(tangents, (tuple, list)):
        raise TypeError(
            f"{name}: primals and tangents must be tuples or lists with one entry for each "
            f"argument of the function, but they are {type(primals).__name__} and "
            f"{type(tangents).__name__}"
        )
    return tuple(primals), tuple(tangents)


def tangents(name: str, primals: Sequence, in_tree: Any, given: Any) -> list:
    """The leaves of the tangents; a `Zero` where the primal is an integer."""
    leaves, tangent_tree = tree.flatten(given)
    if tangent_tree != in_tree:
        raise TypeError(
            f"{name}: primals and tangents must have the same structure, but they have "
            f"{in_tree} and {tangent_tree}"
        )
    return [
        _same_type(name, "tangent", type_of(name, x).to_tangent_aval(), t, TypeError, ValueError)
        for x, t in zip(primals, leaves, strict=True)
    ]


def linear_input(name: str, in_tree: Any, avals: Sequence, given: Any) -> list:
    """The leaves of what a linear function is called with; a `Zero` where it is a `float0`."""
    leaves, given_tree = tree.flatten(given)
    error = TypeError if name == "the transpose" else ValueError
    if given_tree != in_tree:
        raise error(
            f"{name} must be called with the structure {in_tree}, but was called with {given_tree}"
        )
    return [
        _same_type(name, "argument", aval, x, error, error)
        for aval, x in zip(avals, leaves, strict=True)
    ]


def _same_type(
    name: str, what: str, aval: Any, x: Any, dtype_error: type, shape_error: type
) -> Any:
    if isinstance(x, jax.custom_derivatives.SymbolicZero):
        return Zero(aval)
    got = type_of(name, x)
    if got.dtype != aval.dtype:
        raise dtype_error(
            f"{name}: expected the {what} {aval.str_short()}, but got {got.str_short()}. The "
            f"dtypes must be equal: {aval.dtype} and {got.dtype}; float0 is the dtype of the "
            "tangents of integers and booleans."
        )
    if got.shape != aval.shape:
        raise shape_error(
            f"{name}: expected the {what} {aval.str_short()}, but got {got.str_short()}: "
            "the shapes must be equal"
        )
    return Zero(aval) if aval.dtype == jax.dtypes.float0 else x


def have_tangents(name: str, avals: Sequence) -> None:
    for aval in avals:
        if not jx.is_differentiable(aval):
            raise TypeError(
                f"{name} needs inputs and outputs of floating-point or complex dtype, "
                f"but got {aval.str_short()}"
            )


# ---- gradients and Jacobians -----------------------------------------------------------------------


def _is(aval: Any, kind: Any) -> bool:
    return jax.dtypes.issubdtype(aval.dtype, kind)


def grad_input(name: str, x: Any, holomorphic: bool, allow_int: bool) -> None:
    aval = type_of(name, x)
    if holomorphic:
        if not _is(aval, np.complexfloating):
            raise TypeError(
                f"{name} with holomorphic=True needs complex inputs, but got {aval.str_short()}"
            )
    elif not _is(aval, np.floating) and not _is(aval, np.complexfloating):
        if not allow_int or primal_dtype_to_tangent_dtype(aval.dtype) != jax.dtypes.float0:
            raise TypeError(
                f"{name} needs inputs of a real or complex floating-point dtype, but got "
                f"{aval.str_short()}. Convert it (x.astype(float)), choose other arguments with "
                "argnums, or pass allow_int=True for a float0 result."
            )


def forward_input(name: str, x: Any, holomorphic: bool) -> None:
    aval = type_of(name, x)
    if holomorphic and not _is(aval, np.complexfloating):
        raise TypeError(
            f"{name} with holomorphic=True needs complex inputs, but got {aval.str_short()}"
        )
    if not holomorphic and not _is(aval, np.floating):
        raise TypeError(
            f"{name} needs inputs of a real floating-point dtype, but got {aval.str_short()}. "
            "For a holomorphic function of complex numbers pass holomorphic=True; for integers "
            "there is no forward derivative."
        )


def output(name: str, out: Any, holomorphic: bool) -> None:
    aval = type_of(name, out)
    if holomorphic and not _is(aval, np.complexfloating):
        raise TypeError(
            f"{name} with holomorphic=True needs complex outputs, but got {aval.str_short()}"
        )
    if not holomorphic and not _is(aval, np.floating):
        raise TypeError(
            f"{name} needs outputs of a real floating-point dtype, but got {aval.str_short()}. "
            "For a holomorphic function pass holomorphic=True; of a complex output take "
            "the real and the imaginary part, or use functrans.vjp."
        )


def grad_output(out: Any, holomorphic: bool) -> None:
    if not jx.is_value(out):
        raise TypeError(
            f"grad needs a function with a scalar output, but it returned {tree.structure(out)}. "
            "Return one number; with has_aux=True a pair (number, aux); or use functrans.jacrev."
        )
    aval = jx.typeof(out)
    if aval.shape != ():
        raise TypeError(
            f"grad needs a function with a scalar output, but it returned the shape {aval.shape}. "
            "Reduce it to one number (a sum, a mean), or use functrans.jacrev or functrans.vjp."
        )
    output("grad", out, holomorphic)
