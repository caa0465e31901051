"""The pattern of one linear equation: which elements of the result read which of an input.

    local : equation, which input  ->  [the pattern of dy/dx]

An equation `y = A x` of a tangent program has the same pattern for all tangents, and the kind of
the equation says most of it:

    elementwise     y_i reads x_i
    moving          the equation is run on the *numbers* of the elements, and they show where each
                    of them has come from: slices, pads, transposes, gathers, ...
    its transpose   moves elements: sums are transposes of copies, scatter-adds are those of gathers
    by dimensions   a Kronecker product, of a pattern for each dimension: windows, transforms
    contractions    the pairs that meet in the support of the other factor
    any other       what its implementation does, if that is a program of such equations; or else
                    every element of y may read every element of x

Read next: `detection.py`, the loop over equations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from jax import lax
from scipy import sparse

from functrans.sparse.algebra import Matrix, check_size, identity, kronecker, window
from functrans.sparse.contractions import convolution, dot_general, stored_product
from functrans.sparse.moving import (
    RUNS_OVER,
    is_unknown_index,
    moving,
    transposed,
    with_unknown_indices,
)
from functrans.sparse.numbers import Equation


def local(equation: Equation, at: int, inputs: Sequence) -> list[Matrix] | None:
    """The pattern of each output in the input `at`; `None` if the kind does not tell.

    Args:
      equation: an equation that is linear in this input.
      at: the position of the input.
      inputs: a `Value` for each input; `now` is computed only if the pattern depends on it.
    """
    primitive = equation.primitive
    if declared := PATTERNS.get(primitive) or PATTERNS_BY_NAME.get(primitive.name):
        found = declared(equation, at, inputs)
        if found is not None:
            return [found]
    if equation.primitive in RUNS_OVER and any(map(is_unknown_index, equation.invars, inputs)):
        return [with_unknown_indices(equation, at, inputs)]
    return moving(equation, at, inputs) or transposed(equation, at, inputs)


# ---- by dimensions -------------------------------------------------------------------------------


def along(dims: Callable) -> Callable:
    """The pattern of an operation that computes along the dimensions `dims(params, x)` alone."""

    def pattern(equation, at, inputs):
        x, y = equation.invars[at].aval, equation.outvars[0].aval
        mixed = dims(equation.params, x)
        check_size(y.size * prod(x.shape[d] for d in mixed), equation)
        pairs = enumerate(zip(y.shape, x.shape, strict=True))
        ones = (np.ones((m, n), bool) if d in mixed else identity(n) for d, (m, n) in pairs)
        return kronecker([sparse.csr_array(one) for one in ones])

    return pattern


def _cumulative(equation, at, inputs):
    axis, reverse = equation.params["axis"], equation.params["reverse"]
    shape = equation.invars[at].aval.shape
    check_size(prod(shape) * shape[axis] // 2, equation)
    lower = np.tri(shape[axis], dtype=bool)
    triangle = sparse.csr_array(lower.T if reverse else lower)
    return kronecker([triangle if d == axis else identity(n) for d, n in enumerate(shape)])


def _windows(y: Any, x: Any, params: dict) -> Matrix:
    ones = (1,) * x.ndim
    dilation, base = params.get("window_dilation", ones), params.get("base_dilation", ones)
    sizes, strides = params["window_dimensions"], params["window_strides"]
    lows = [low for low, _ in params["padding"]]
    columns = zip(y.shape, x.shape, sizes, strides, lows, base, dilation, strict=True)
    return kronecker(
        [window(m, n, np.arange(size) * d, s, low, b) for m, n, size, s, low, b, d in columns]
    )


def _reduce_window(equation, at, inputs):
    return _windows(equation.outvars[0].aval, equation.invars[at].aval, equation.params)


def _select_and_scatter(equation, at, inputs):
    of_reading = _windows(equation.invars[at].aval, equation.outvars[0].aval, equation.params)
    return of_reading.T.tocsr()


def _dynamic_slice(equation, at, inputs):
    return _at_starts(equation, inputs[1:], equation.invars[0].aval, equation.outvars[0].aval)


def _dynamic_update_slice(equation, at, inputs):
    """An element of the array that is written over stays, or not."""
    (x, update, *_), starts = (v.aval for v in equation.invars), inputs[2:]
    if any(start.known is None for start in starts):
        return _at_starts(equation, starts, x, update).T.tocsr() if at == 1 else identity(x.size)
    return None


# In each dimension y_i reads x_(start + i), where 0 <= start <= x_size - y_size.
def _at_starts(equation, starts, x, y) -> Matrix:
    factors = []
    for start, x_size, y_size in zip(starts, x.shape, y.shape, strict=True):
        last = x_size - y_size
        places = range(last + 1)
        if start.known is not None:
            places = [int(np.clip(start.now, 0, last))]
        check_size(y_size * len(places), equation)
        factors.append(window(y_size, x_size, places))
    check_size(prod(factor.nnz for factor in factors), equation)
    return kronecker(factors)


# ---- what each primitive does --------------------------------------------------------------------


def _solved(params, b):
    return (b.ndim - 2,) if params.get("left_side", True) else (b.ndim - 1,)


def _transformed(params, x):
    return range(x.ndim - len(params["fft_lengths"]), x.ndim)


def _solve(equation, at, inputs):
    """Linear in the right-hand side, which comes last."""
    return along(_solved)(equation, at, inputs) if at == len(inputs) - 1 else None


def _product_with_updates(equation, at, inputs):
    return identity(equation.invars[0].aval.size) if at == 0 else None


PATTERNS: dict[Any, Callable] = {
    lax.cumsum_p: _cumulative,
    lax.fft_p: along(_transformed),
    lax.linalg.triangular_solve_p: _solve,
    lax.linalg.tridiagonal_solve_p: _solve,
    lax.reduce_window_sum_p: _reduce_window,
    lax.scatter_mul_p: _product_with_updates,
    lax.select_and_gather_add_p: _reduce_window,
    lax.select_and_scatter_add_p: _select_and_scatter,
    lax.dot_general_p: dot_general,
    lax.dynamic_slice_p: _dynamic_slice,
    lax.dynamic_update_slice_p: _dynamic_update_slice,
    lax.conv_general_dilated_p: convolution,
}
PATTERNS_BY_NAME = {"bcoo_dot_general": stored_product, "bcsr_dot_general": stored_product}
"""A function of the equation, the position of the input and the known values for each primitive. It
returns the pattern, or `None` where it has nothing to say."""
