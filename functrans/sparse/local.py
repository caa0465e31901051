"""The pattern of one linear equation: which elements of the result read which of an input.

    local : equation, which input  ->  [the pattern of dy/dx]

An equation `y = A x` of a tangent program has a pattern that is the same for all tangents, and its
kind says most of it:

    elementwise     y_i reads x_i
    moving          the equation is run on the *numbers* of the elements, and they show where each
                    of them has come from: slices, pads, transposes, gathers, ...
    its transpose   moves elements: sums are transposes of copies, scatter-adds are those of gathers
    by dimensions   a Kronecker product, of a pattern for each dimension: windows, transforms
    contractions    the pairs that meet in the support of the other factor
    any other       what its implementation does, if that is a program of such equations; or else
                    every element of y may read every element of x

An index that is not known may point to any place along the dimensions that it runs over: there the
elements of x are one class, and all of a class are read where one of them is.

Read next: `detection.py`, the loop over equations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from math import prod
from typing import Any

import numpy as np
from jax import lax
from jax.extend.core import jaxprs_in_params
from scipy import sparse

from functrans import extend
from functrans.errors.lines import user_line
from functrans.rules import LinearRule
from functrans.sparse.numbers import Equation, evaluated, moves

Matrix = Any
"""A pattern: SciPy's compressed rows (`csr_array`) of booleans."""

LARGEST = 1 << 27
"""The most nonzeros that a pattern may have."""


# ---- patterns ------------------------------------------------------------------------------------


def matrix(rows: Any, columns: Any, shape: tuple[int, int]) -> Matrix:
    """The pattern with nonzeros at these places."""
    rows, columns = np.broadcast_arrays(rows, columns)
    ones = np.ones(rows.size, bool)
    return sparse.csr_array((ones, (rows.ravel(), columns.ravel())), shape=shape)


def identity(size: int) -> Matrix:
    return sparse.eye_array(size, dtype=bool, format="csr")


def selection(columns: np.ndarray, width: int, is_read: np.ndarray | None = None) -> Matrix:
    """Row i reads `columns[i]`, or nothing if it has no flag."""
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
            f"input in {count:,} pairs of elements: the Jacobian is not sparse there. Give its "
            "pattern (`pattern=`), or use jacfwd or jacrev."
        )


def times(pattern: Matrix, rows: Matrix, equation: Equation) -> Matrix:
    """The product of two patterns, unless it may be too large."""
    found = np.diff(rows.indptr)[pattern.indices].sum(dtype=np.int64)
    check_size(min(int(found), pattern.shape[0] * rows.shape[1]), equation)
    return pattern @ rows


# ---- the kinds -----------------------------------------------------------------------------------


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
    if equation.primitive in RUNS_OVER and any(map(_is_unknown_index, equation.invars, inputs)):
        return [_with_unknown_indices(equation, at, inputs)]
    return _moving(equation, at, inputs) or _transposed(equation, at, inputs)


def _is_unknown_index(atom: Any, x: Any) -> bool:
    return x.known is None and np.issubdtype(atom.aval.dtype, np.integer)


def _coefficients(equation: Equation, at: int, inputs: Sequence) -> list | None:
    """What stands for the other inputs where numbers of elements are moved.

    The support of a number; ones, if it is not known; an index as it is. `None` if an index is not
    known.
    """
    found: list = []
    for i, (atom, x) in enumerate(zip(equation.invars, inputs, strict=True)):
        aval, is_number = atom.aval, np.issubdtype(atom.aval.dtype, np.inexact)
        if i == at:
            found.append(None)
        elif x.known is None and not is_number:
            return None
        elif x.known is None:
            found.append(np.ones(aval.shape, np.int32))
        else:
            found.append((np.asarray(x.now) != 0).astype(np.int32) if is_number else x.now)
    return found


def _moving(equation: Equation, at: int, inputs: Sequence) -> list[Matrix] | None:
    """Run the equation on the numbers of the elements."""
    rule, shape = extend.rule_of(equation.primitive), equation.invars[at].aval.shape
    if not isinstance(rule, LinearRule) and any(jaxprs_in_params(equation.params)):
        return None
    if (given := _coefficients(equation, at, inputs)) is None:
        return None
    found = moves(lambda x: _evaluated_at(equation, at, given, x.reshape(shape)), prod(shape))
    return found and [selection(columns, prod(shape), is_read) for columns, is_read in found]


def _evaluated_at(equation: Equation, at: int, given: list, x: Any) -> list:
    return evaluated(equation, [*given[:at], x, *given[at + 1 :]])


def _transposed(equation: Equation, at: int, inputs: Sequence) -> list[Matrix] | None:
    """Run the transpose on the numbers of the elements of the result."""
    rule, size = extend.rule_of(equation.primitive), equation.outvars[0].aval.size
    if not isinstance(rule, LinearRule) or len(equation.outvars) > 1:
        return None
    if (given := _coefficients(equation, at, inputs)) is None:
        return None
    found = moves(lambda numbers: _pulled(equation, at, given, numbers), size)
    return found and [selection(columns, size, is_read).T.tocsr() for columns, is_read in found]


def _pulled(equation: Equation, at: int, inputs: list, numbers: np.ndarray) -> list:
    """The cotangent of one input, of numbers as the cotangent of the result."""
    primitive, params = equation.primitive, equation.params
    symbol = extend.Linear(equation.invars[at].aval.update(dtype=np.dtype(np.int32)))
    given = [*inputs[:at], symbol, *inputs[at + 1 :]]
    out = numbers.reshape(equation.outvars[0].aval.shape)
    rule, params = extend.rule_of(primitive), primitive.get_bind_params(params)
    staged = extend.staged(lambda y: rule.transpose(primitive, [y], given, params)[at], out)
    return extend.interpret(staged.program, [out], evaluated)


# ---- indices -------------------------------------------------------------------------------------


def _of_starts(first: int) -> Callable:
    def dims(equation, inputs):
        return [d for d, start in enumerate(inputs[first:]) if start.known is None]

    return dims


def _of_gather(equation, inputs):
    return equation.params["dimension_numbers"].start_index_map


def _of_scatter(equation, inputs):
    return equation.params["dimension_numbers"].scatter_dims_to_operand_dims


READS: dict[Any, Callable] = {lax.gather_p: _of_gather}
WRITES: dict[Any, Callable] = {
    lax.dynamic_update_slice_p: _of_starts(2),
    lax.scatter_p: _of_scatter,
    lax.scatter_add_p: _of_scatter,
}
RUNS_OVER = READS | WRITES
"""The dimensions of the operand over which the indices run that are not known."""


def _with_unknown_indices(equation: Equation, at: int, inputs: Sequence) -> Matrix:
    """All elements along these dimensions are one class, of which any may be read or written."""
    operand, primitive = equation.invars[0].aval, equation.primitive
    if at == 0 and primitive in WRITES:  # what is not overwritten stays
        return identity(operand.size)
    first = np.arange(operand.size).reshape(operand.shape)
    for d in RUNS_OVER[primitive](equation, inputs):
        first = np.broadcast_to(first.take([0], d), operand.shape)
    given = _coefficients(equation, at, [*map(_anywhere, equation.invars, inputs)]) or []
    if primitive is lax.scatter_p:  # of several updates to one place any may be the one that stays
        equation = equation.replace(primitive=lax.scatter_add_p)
    run = _pulled if primitive in WRITES else _evaluated_at
    found = moves(lambda numbers: run(equation, at, given, numbers[first]), operand.size)
    if found is None:
        return dense(equation.outvars[0].aval.size, equation.invars[at].aval.size, equation)
    ((columns, is_read),) = found
    classes = selection(first.ravel(), operand.size)  # member -> the first of its class
    read = selection(columns, operand.size, is_read)
    return (classes @ read.T).tocsr() if primitive in WRITES else (read @ classes.T).tocsr()


def _anywhere(atom: Any, x: Any) -> Any:
    """An input, with zeros for indices that are not known."""
    zeros = np.zeros(atom.aval.shape, atom.aval.dtype)
    return x._replace(known=lambda: zeros) if _is_unknown_index(atom, x) else x


# ---- by dimensions -------------------------------------------------------------------------------


def along(dims: Callable) -> Callable:
    """The pattern of an operation that computes along `dims(params, x)`, and nowhere else."""

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


def window(y_size, x_size, offsets, stride=1, low=0, base_dilation=1) -> Matrix:
    """The pattern of `y_i = sum_k x_q`, where `base_dilation q = stride i + offset_k - low`."""
    i, offset = np.meshgrid(np.arange(y_size), np.asarray(offsets), indexing="ij")
    q, rest = np.divmod(stride * i + offset - low, base_dilation)
    inside = (rest == 0) & (q >= 0) & (q < x_size)
    return matrix(i[inside], q[inside], (y_size, x_size))


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


# In each dimension y_i reads x_(start + i), where 0 <= start <= x_size - y_size.
def _dynamic_slice(equation, at, inputs):
    (x, *_), y = equation.invars, equation.outvars[0]
    factors = []
    for start, x_size, y_size in zip(inputs[1:], x.aval.shape, y.aval.shape, strict=True):
        last = x_size - y_size
        starts = range(last + 1)
        if start.known is not None:
            starts = [int(np.clip(start.now, 0, last))]
        check_size(y_size * len(starts), equation)
        factors.append(window(y_size, x_size, starts))
    check_size(prod(factor.nnz for factor in factors), equation)
    return kronecker(factors)


# ---- contractions --------------------------------------------------------------------------------


def _support(atom: Any, x: Any) -> np.ndarray:
    return np.ones(atom.aval.shape, bool) if x.known is None else np.asarray(x.now) != 0


# y[b,m,n] = sum_c x[b,m,c] w[b,c,n]: for each w[b,c,n] that is not zero, y[b,m,n] reads x[b,m,c].
def _dot_general(equation, at, inputs):
    (contracted, batch), (x, w) = equation.params["dimension_numbers"], (at, 1 - at)
    y_aval, x_aval = equation.outvars[0].aval, equation.invars[at].aval

    def ordered(array, factor, free_first):
        c, b = list(contracted[factor]), list(batch[factor])
        free = [d for d in range(array.ndim) if d not in (*c, *b)]
        order = [*b, *free, *c] if free_first else [*b, *c, *free]
        sizes = [prod(array.shape[d] for d in dims) for dims in (b, free, c)]
        return array.transpose(order), (sizes[0], *(sizes[1:] if free_first else sizes[:0:-1]))

    numbers, x_shape = ordered(np.arange(x_aval.size).reshape(x_aval.shape), x, True)
    support, w_shape = ordered(_support(equation.invars[w], inputs[w]), w, False)
    b, c, n = np.nonzero(support.reshape(w_shape))
    check_size(b.size * x_shape[1], equation)
    columns = numbers.reshape(x_shape)[b, :, c]
    y = np.arange(y_aval.size)
    sizes = (x_shape[0], x_shape[1], w_shape[2])
    y = y.reshape(sizes) if at == 0 else y.reshape(sizes[0], *sizes[:0:-1]).swapaxes(1, 2)
    return matrix(y[b, :, n], columns, (y_aval.size, x_aval.size))


# y[m,n] = sum over the elements k that are stored, at (m, c), of data[k] w[c,n].
def _stored_product(equation, at, inputs):
    (contracted, others), batch = equation.params["dimension_numbers"]
    shape, (*at_stored, w) = equation.params["lhs_spinfo"].shape, inputs[1:]
    if any(batch) or any(x.known is None for x in at_stored):
        return None
    places = [np.asarray(x.now) for x in at_stored]
    if len(places) == 2:  # compressed rows
        counts = np.diff(places[1])
        columns = places[0][..., : counts.sum()]
        places = [np.stack([np.repeat(np.arange(counts.size), counts), columns], -1)]
    (places,) = places
    if places.ndim != 2 or places.shape[1] != len(shape):  # there are dense or batch dimensions
        return None
    stored = np.flatnonzero((places < shape).all(1))  # all others are padding
    free = [d for d in range(len(shape)) if d not in contracted]
    m, c = (_raveled(places[stored], shape, dims) for dims in (free, contracted))
    y, w_free = equation.outvars[0].aval, [d for d in range(len(w.shape)) if d not in others]
    size = prod(w.shape[d] for d in w_free)
    rows = np.arange(y.size).reshape(-1, size)[m]
    if at == 0:
        return matrix(rows, stored[:, None], (y.size, equation.invars[0].aval.size))
    read = np.arange(prod(w.shape)).reshape(w.shape).transpose([*others, *w_free])
    return matrix(rows, read.reshape(-1, size)[c], (y.size, read.size))


def _raveled(places: np.ndarray, shape: Sequence[int], dims: Sequence[int]) -> np.ndarray:
    """The numbers of places in these dimensions."""
    number = np.zeros(len(places), np.int64)
    for d in dims:
        number = number * shape[d] + places[:, d]
    return number


# y[n,o,i] = sum over c and k of x[n,c,q] w[o,c,k], where q depends on i and k: for each offset k a
# Kronecker product, of the pairs (n,o), (n,c) that meet and of a shift in each spatial dimension.
def _convolution(equation, at, inputs):
    params, (x, w) = equation.params, (v.aval for v in equation.invars)
    y, spec = equation.outvars[0].aval, params["dimension_numbers"]
    support = _support(equation.invars[1], inputs[1]).transpose(spec.rhs_spec)
    of_batch, of_features = params["batch_group_count"], params["feature_group_count"]
    (batch, channels), (outs, ins) = [x.shape[d] for d in spec.lhs_spec[:2]], support.shape[:2]
    y_batch, sizes = batch // of_batch, support.shape[2:]
    lengths = [(y.shape[i], x.shape[j]) for i, j in
               zip(spec.out_spec[2:], spec.lhs_spec[2:], strict=True)]  # fmt: skip
    lows = [low for low, _ in params["padding"]]
    settings = list(zip(lengths, params["rhs_dilation"], params["window_strides"], lows,
                        params["lhs_dilation"], strict=True))  # fmt: skip
    n = np.arange(y_batch)[:, None]
    total: Any = None
    for k in np.ndindex(*sizes) if at == 0 else [(...,)]:
        o, c = np.nonzero(support[(slice(None), slice(None), *k)] if at == 0 else
                          np.ones((outs, ins), bool))  # fmt: skip
        if at == 0:
            offsets = [[dilation * i] for i, (_, dilation, *_) in zip(k, settings, strict=True)]
            group = c + o // (outs // of_features) * ins
            columns = (n + o // (outs // of_batch) * y_batch) * channels + group
            width = batch * channels
        else:
            columns, width = np.broadcast_to(o * ins + c, (y_batch, o.size)), outs * ins
            offsets = []
        pairs = matrix(n * outs + o, columns, (y_batch * outs, width))
        if at == 0:
            spatial = [window(*length, own, stride, low, base)
                       for own, (length, _, stride, low, base) in
                       zip(offsets, settings, strict=True)]  # fmt: skip
        else:
            spatial = [_positions(size, *setting)
                       for size, setting in zip(sizes, settings, strict=True)]  # fmt: skip
        term = kronecker([pairs, *spatial])
        total = term if total is None else total + term
    x_spec = spec.lhs_spec if at == 0 else spec.rhs_spec
    moved = x if at == 0 else w
    return renumbered(total, _numbers(y, spec.out_spec), _numbers(moved, x_spec))


def _positions(size, length, dilation, stride, low, base) -> Matrix:
    """Whether element i of the result reads x through the element k of the window."""
    y_size, x_size = length
    reads = [np.diff(window(y_size, x_size, [dilation * k], stride, low, base).indptr) > 0
             for k in range(size)]  # fmt: skip
    return sparse.csr_array(np.stack(reads, 1).reshape(y_size, size))


def _numbers(aval: Any, order: Sequence[int]) -> np.ndarray:
    return np.arange(aval.size).reshape(aval.shape).transpose(order).ravel()


def renumbered(pattern: Matrix, rows: np.ndarray, columns: np.ndarray) -> Matrix:
    """The pattern whose row i has the number `rows[i]`, and so for the columns."""
    found = pattern.tocoo()
    return matrix(rows[found.row], columns[found.col], (rows.size, columns.size))


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
    lax.dot_general_p: _dot_general,
    lax.dynamic_slice_p: _dynamic_slice,
    lax.conv_general_dilated_p: _convolution,
}
PATTERNS_BY_NAME = {"bcoo_dot_general": _stored_product, "bcsr_dot_general": _stored_product}
"""A function of the equation, the position of the input and the known values, to the pattern, or
to `None` where it has nothing to say."""
