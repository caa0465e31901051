"""Patterns as matrices of booleans: a product, a sum and a Kronecker product of patterns.

    (A B)_ik  =  or over j  (A_ij and B_jk)

They are matrices of SciPy, which multiplies booleans in this way.  A pattern with too many nonzeros
to be called sparse is an error, which names the user's line.

Read next: `moving.py`, patterns of equations that move elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from scipy import sparse

from functrans.errors.lines import user_line
from functrans.errors.wording import counted
from functrans.sparse.numbers import Equation

Matrix = Any
"""A pattern: SciPy's compressed rows (`csr_array`) of booleans."""

LARGEST = 1 << 27
"""The most nonzeros that a pattern may have."""


def matrix(rows: Any, columns: Any, shape: tuple[int, int]) -> Matrix:
    """The pattern with nonzeros at these places."""
    rows, columns = np.broadcast_arrays(rows, columns)
    ones = np.ones(rows.size, bool)
    return sparse.csr_array((ones, (rows.ravel(), columns.ravel())), shape=shape)


def identity(size: int) -> Matrix:
    return sparse.eye_array(size, dtype=bool, format="csr")


def selection(columns: np.ndarray, width: int, is_read: np.ndarray | None = None) -> Matrix:
    """Row i reads column `columns[i]`; without a flag it reads nothing."""
    kept = columns if is_read is None else columns[is_read]
    counts = np.ones(columns.size, np.int64) if is_read is None else is_read.astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(counts)])
    return sparse.csr_array((np.ones(kept.size, bool), kept, ends), shape=(columns.size, width))


def kronecker(factors: Sequence[Matrix]) -> Matrix:
    """The pattern of an operation that acts on each dimension by itself."""
    return reduce(lambda a, b: sparse.kron(a, b, format="csr"), factors, identity(1)).astype(bool)


def dense(rows: int, columns: int, equation: Equation) -> Matrix:
    check_size(rows * columns, equation)
    return sparse.csr_array(np.ones((rows, columns), bool))


def check_size(count: int, equation: Equation) -> None:
    if count > LARGEST:
        line = user_line(equation.source_info)
        raise ValueError(
            f"functrans.sparse: the result of `{equation.primitive.name}` at {line} depends on its "
            f"input in {counted(count, 'pair')} of elements: the Jacobian is not sparse there. "
            "Give its pattern (`pattern=`), or use jacfwd or jacrev."
        )


def times(pattern: Matrix, rows: Matrix, equation: Equation) -> Matrix:
    """The product of two patterns, unless it may be too large."""
    found = np.diff(rows.indptr)[pattern.indices].sum(dtype=np.int64)
    check_size(min(int(found), pattern.shape[0] * rows.shape[1]), equation)
    return pattern @ rows


def window(y_size, x_size, offsets, stride=1, low=0, base_dilation=1) -> Matrix:
    """The pattern of `y_i = sum_k x_q`, where `base_dilation q = stride i + offset_k - low`."""
    i, offset = np.meshgrid(np.arange(y_size), np.asarray(offsets), indexing="ij")
    q, rest = np.divmod(stride * i + offset - low, base_dilation)
    inside = (rest == 0) & (q >= 0) & (q < x_size)
    return matrix(i[inside], q[inside], (y_size, x_size))
