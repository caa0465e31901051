"""The checks of the arguments of `ft.sparse`, and the messages for those that fail.

    a function of real numbers to real numbers,    and a matrix as large as its Jacobian

Read next: `patterns.py`, the pattern as a value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax import tree
from scipy import sparse

from functrans.errors import structures, wording


def position(argnum: Any, count: int) -> int:
    """The position of the argument with respect to which to differentiate."""
    try:
        at = operator.index(argnum)
    except TypeError:
        raise TypeError(
            f"functrans.sparse: argnum must be an integer, but it is {argnum!r}. Put several "
            "arguments into one, as a tuple: lambda xs: fun(*xs)"
        ) from None
    if not -count <= at < count:
        raise TypeError(
            f"functrans.sparse: argnum={at}, but {wording.counted(count, 'argument')} "
            f"{'is' if count == 1 else 'are'} given: pass one for each argument of the function, "
            "jacobian(fun, x_like)"
        )
    return at % count


def real_input(fun: Callable, args: Sequence, at: int, option: str = "argnum") -> None:
    """Check the argument that the user chose by an option of this name."""
    otherwise = f", or choose another with {option}"
    if not tree.leaves(args[at]):
        name = structures.parameter(fun, at)
        raise TypeError(
            f"functrans.sparse: {name} must be an array, or a pytree of arrays, but it is "
            f"{structures.described(args[at])}: pass one like it{otherwise}"
        )
    _real(structures.arguments(fun, [(at, args[at])]), otherwise)


def has_arrays(out: Any) -> None:
    if not tree.leaves(out):
        raise ValueError(
            "functrans.sparse needs a function that returns arrays, but it returned "
            f"{wording.returned(out)}"
        )


def real_output(out: Any) -> None:
    has_arrays(out)
    _real(structures.leaves("the result", out), "")


def _real(named: Iterable, otherwise: str) -> None:
    for label, x in named:
        if not hasattr(x, "dtype") and not isinstance(x, int | float | complex):
            raise wording.not_a_value("functrans.sparse", x, label)
        dtype: Any = getattr(x, "dtype", np.result_type(type(x)))
        if jax.dtypes.issubdtype(dtype, np.floating):
            continue
        is_complex = jax.dtypes.issubdtype(dtype, np.complexfloating)
        advice = "Give its real and its imaginary part" if is_complex else "Use .astype(float)"
        raise TypeError(
            f"functrans.sparse: {label} must be of real numbers, and is of type {dtype}. "
            f"{advice}{otherwise}."
        )


def scalar(out: Any) -> None:
    if tree.structure(out) == tree.structure(0.0) and np.shape(out) == ():
        return
    is_array = hasattr(out, "shape")
    got = f"the shape {out.shape}" if is_array else wording.returned(out)
    hint = ". Reduce it to one number (a sum, a mean), or use functrans.sparse.jacobian"
    raise TypeError(
        "functrans.sparse.hessian needs a function with a scalar output, but it returned "
        f"{got}{'' if out is None else hint}"
    )


def shape(pattern: tuple[int, int], out: Any, x: Any, what: str = "pattern") -> None:
    m, n = (sum(np.size(leaf) for leaf in tree.leaves(part)) for part in (out, x))
    if (m, n) != pattern:
        raise ValueError(
            f"functrans.sparse: the {what} is {pattern}, and the matrix {(m, n)}: the function "
            f"takes {wording.counted(n, 'number')} to {m:,}. Its pattern has a row for each of "
            "those that it returns, and a column for each of those that it takes."
        )


def matrix(given: Any) -> Any:
    """A value from which SciPy makes a matrix of compressed rows."""
    found = given if hasattr(given, "shape") else np.asarray(given)
    if len(found.shape) != 2 or (not sparse.issparse(found) and found.dtype == object):
        raise ValueError(
            "functrans.sparse: a pattern is made of a matrix (an array of two dimensions, a matrix "
            f"of SciPy, a BCOO), but got {structures.described(given)}"
        )
    return found


def symmetric(found: Any) -> None:
    m, n = found.shape
    if m != n:
        raise ValueError(f"functrans.sparse: a pattern of {m} x {n} cannot be symmetric")
    lacking = sparse.coo_array(found > found.T)
    if lacking.nnz:
        i, j = int(lacking.row[0]), int(lacking.col[0])
        raise ValueError(
            f"functrans.sparse: the pattern of a Hessian must be symmetric, and has ({i}, {j}) but "
            f"not ({j}, {i}): give the union with its transpose, pattern + pattern.T"
        )


def colors(given: Any, count: int, what: str) -> np.ndarray:
    found = np.asarray(given)
    if found.size and not np.issubdtype(found.dtype, np.integer):
        raise TypeError(
            f"Coloring: the colors of {what} must be integers, from 0, or -1 for none; they are of "
            f"type {found.dtype}"
        )
    if found.shape != (count,) or found.min(initial=0) < -1:
        raise ValueError(
            f"Coloring: this pattern needs {wording.counted(count, 'color')} of {what}, each from "
            f"0, or -1 for none; got {found.size}, the least of which is {found.min(initial=0)}"
        )
    return found.astype(np.int32)


def all_read(places: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> None:
    if (places < 0).any():
        at = int(np.argmax(places < 0))
        raise ValueError(
            f"Coloring: element ({rows[at]}, {columns[at]}) of the pattern cannot be read: others "
            "of its row are in columns of its color. Give these columns other colors, or let "
            "functrans.sparse.color(pattern) find them."
        )
