"""The checks of a user's arguments, and the messages for those that fail.

A check raises the type of exception that JAX raises for the same mistake.  Some return the value in
the form that the transforms use.

Read next: `wording.py`, the message about an argument that has no derivative.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import tree
from jax.dtypes import float0, issubdtype
from jax.ref import AbstractRef

from functrans import jaxpr as jx
from functrans import values
from functrans.errors import structures, wording
from functrans.errors.lines import user_line as user_line
from functrans.errors.structures import compared, described
from functrans.errors.wording import counted
from functrans.values import Zero

Named = Callable[[], Iterator[tuple[str, Any]]]
"""Lists leaves with the names by which a user knows them, if a message needs it."""


def is_function(name: str, fun: Any) -> None:
    if not callable(fun):
        leaves = tree.leaves(fun)
        is_result = bool(leaves) and all(map(values.is_value, leaves))
        hint = ". Pass the function f, and not its value f(x)" if is_result else ""
        raise TypeError(f"{name} expects a function, but got {described(fun)}{hint}")


def type_of(name: str, x: Any) -> Any:
    """The abstract value of an argument, which may have just a `shape` and a `dtype`."""
    if not values.is_value(x) and hasattr(x, "shape") and hasattr(x, "dtype"):
        return jax.make_jaxpr(lambda y: y)(x).in_avals[0]
    if not values.is_value(x):
        raise wording.not_a_value(name, x)
    return jax.typeof(x)


def types(name: str, leaves: Sequence, named: Named) -> list:
    """The types of some leaves of arguments."""
    try:
        return [type_of(name, x) for x in leaves]
    except TypeError:
        label, x = next(pair for pair in named() if not values.is_value(pair[1]))
        raise wording.not_a_value(name, x, label) from None


def are_values(fun: Callable, outs: Iterable) -> None:
    for out in outs:
        if not values.is_value(out):
            raise TypeError(
                f"the function {jx.name_of(fun)} returned {described(out)}, which is not an array "
                "or a number. Return arrays or pytrees of arrays; with has_aux=True anything may "
                "be returned beside them."
            )


def pair(
    out: Any, name: str = "with has_aux=True the function", what: str = "(output, aux)"
) -> tuple:
    """The two entries of what a function, the user's or that of a rule, must return."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        got = described(out) + (wording.NO_RETURN if out is None else "")
        raise TypeError(f"{name} must return a pair {what}, but it returned {got}")
    return tuple(out)


def are_hashable(static: dict) -> None:
    for i, x in static.items():
        try:
            hash(x)
        except TypeError:
            raise ValueError(
                f"the static argument {i} must be hashable, but it is {described(x)}. Pass a tuple "
                "for a list, or do not make it static."
            ) from None


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


def positions(
    name: str, argnums: int | Sequence[int], count: int, word: str = "argnums"
) -> list[int]:
    wanted = [argnums] if isinstance(argnums, int) else list(argnums)
    for i in wanted:
        if not -count <= i < count:
            raise (TypeError if name in ("grad", "value_and_grad") and i >= 0 else ValueError)(
                f"{name}: {word}={i} is out of range for {counted(count, 'positional argument')}"
                ". The argument that it names must be passed by position."
            )
    chosen = [i % count for i in wanted]
    if len(set(chosen)) != len(chosen):
        raise TypeError(f"{name}: {word}={argnums} names the same argument more than once")
    return chosen


# ---- tangents and cotangents ---------------------------------------------------------------------


def sequences(name: str, primals: Any, tangents: Any, word: str = "tangents") -> None:
    for what, given in (("primals", primals), (word, tangents)):
        if not isinstance(given, (tuple, list)):
            raise TypeError(
                f"{name}: {what} must be a tuple or a list with one entry for each argument, but "
                f"got {described(given)}"
            )


def tangents(primals: Any, given: Any, name: str = "jvp", word: str = "tangents") -> list:
    """The leaves of the tangents, with a `Zero` for that of an integer."""
    leaves, in_tree = tree.flatten(primals)
    of_primals = types(name, leaves, lambda: structures.leaves("primals", primals))
    avals = [aval.to_tangent_aval() for aval in of_primals]
    return vectors(Expected(f"{name}: {word}"), in_tree, avals, given)


class Expected(NamedTuple):
    """The name of tangents, or of cotangents, in messages, and the errors for wrong ones."""

    what: str
    structure_error: type[Exception] = TypeError
    dtype_error: type[Exception] = TypeError
    shape_error: type[Exception] = ValueError
    integers_too: bool = True
    """Whether to check the vectors of integers too."""


PUSHFORWARD = Expected("the pushforward: tangents", dtype_error=ValueError)
# As in JAX, a pullback does not look at the cotangent of an integer output.
PULLBACK = Expected("the pullback: cotangent", ValueError, ValueError, integers_too=False)
TRANSPOSE = Expected("the transpose: cotangent", shape_error=TypeError)


def vectors(expected: Expected, in_tree: Any, avals: Sequence, given: Any) -> list:
    """The leaves of tangents or cotangents, with a `Zero` for that of an integer."""
    leaves, given_tree = tree.flatten(given)
    if given_tree != in_tree:
        is_nothing = expected in (PULLBACK, TRANSPOSE) and in_tree == tree.structure(None)
        hint = f". The function returned None{wording.NO_RETURN}" if is_nothing else ""
        both = compared(in_tree, given_tree)
        raise expected.structure_error(f"{expected.what} must have the structure {both}{hint}")
    return typed(expected, avals, leaves, given)


def typed(expected: Expected, avals: Sequence, leaves: Sequence, given: Any) -> list:
    """The leaves, which must have these types, with a `Zero` for that of an integer."""
    for i, (aval, x) in enumerate(zip(avals, leaves, strict=True)):
        if type(x) is Zero or (aval.dtype == float0 and not expected.integers_too):
            continue
        got = type_of(expected.what, x)
        if (got.dtype, got.shape) != (aval.dtype, aval.shape):
            label = [label for label, _ in structures.leaves(expected.what, given)][i]
            is_shape = got.dtype == aval.dtype
            error = expected.shape_error if is_shape else expected.dtype_error
            raise error(wording.wrong_type(label, aval, got))
    return [Zero(a) if a.dtype == float0 else x for a, x in zip(avals, leaves, strict=True)]


def linear_types(avals: Sequence) -> None:
    if any(all(issubdtype(a.dtype, kind) for a in avals) for kind in (np.inexact, np.integer)):
        return
    got = ", ".join(aval.str_short() for aval in avals)
    raise TypeError(
        "linear_transpose needs inputs and outputs that are all of a floating-point or complex "
        f"dtype, or all integers, but got {got}"
    )


def rule_result(primitive: Any, returned: Any) -> tuple[list, list]:
    """The results of a jvp rule, and tangents of their types."""
    name = f"the rule of '{primitive}'"
    both = pair(returned, name, "(results, tangents)")
    outs, dots = (jx.results(primitive, part) for part in both)
    if len(outs) != len(dots):
        raise TypeError(
            f"{name} must return one tangent for each result, a Zero where it is zero, but it "
            f"returned {len(dots)} for {len(outs)}"
        )
    avals = [jax.typeof(out).to_tangent_aval() for out in outs]
    # A label such as `[0]` follows the name.
    expected = Expected(f"{name}: the tangent ", shape_error=TypeError, integers_too=False)
    typed(expected, avals, dots, dots)
    return outs, dots


# ---- differentiable arguments --------------------------------------------------------------------


def numbers(
    name: str, what: str, given: Any, named: Named, holomorphic: bool = False, **allowed: bool
) -> None:
    """Check that inputs or outputs have a dtype with a derivative; `allowed` goes to `_fits`."""

    def wrong(x: Any) -> bool:
        return not (values.is_value(x) and _fits(jax.typeof(x), holomorphic, **allowed))

    if any(map(wrong, tree.leaves(given))):
        label, x = next(pair for pair in named() if wrong(pair[1]))
        raise wording.wrong_number(name, what, label, x, holomorphic)


@functools.lru_cache(maxsize=4096)
def _fits(aval: Any, holomorphic: bool, complex_too: bool = False, allow_int: bool = False) -> bool:
    if isinstance(aval, AbstractRef):
        return False
    if holomorphic or issubdtype(aval.dtype, np.complexfloating):
        return (holomorphic or complex_too) and issubdtype(aval.dtype, np.complexfloating)
    is_real = issubdtype(aval.dtype, np.floating)
    return is_real or (allow_int and not values.is_differentiable(aval))


def inputs(name: str, fun: Callable, argnums: Any, args: tuple, **allowed: bool) -> None:
    """Check the arguments with respect to which to differentiate; `allowed` goes to `_fits`."""
    chosen = [(i, args[i]) for i in positions(name, argnums, len(args))]
    given = [x for _, x in chosen]
    numbers(name, "inputs", given, lambda: structures.arguments(fun, chosen), **allowed)


def outputs(name: str, out: Any, holomorphic: bool) -> None:
    """Check the outputs that reverse mode differentiates."""
    if not tree.leaves(out):
        raise wording.no_array(name, out)
    numbers(name, "outputs", out, lambda: structures.leaves("the output", out), holomorphic)


def scalar(name: str, out: Any, holomorphic: bool) -> None:
    if not values.is_value(out) or jax.typeof(out).shape != ():
        raise wording.not_a_scalar(name, out)
    outputs(name, out, holomorphic)
