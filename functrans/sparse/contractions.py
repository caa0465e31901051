"""Contractions: an element of a product reads those that meet what is not zero in the other factor.

    y_i = sum_j w_ij x_j        y_i reads x_j   where w_ij may differ from zero

They are products of arrays (`dot_general`), products with a stored matrix, and convolutions.  A
factor that is known says where it is zero; we take one that is not known to be zero nowhere.

Read next: `local.py`, the pattern of any equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from scipy import sparse

from functrans.sparse.algebra import Matrix, check_size, kronecker, matrix, window


def _support(atom: Any, x: Any) -> np.ndarray:
    return np.ones(atom.aval.shape, bool) if x.nonzero is None else x.nonzero


# y[b,m,n] = sum_c x[b,m,c] w[b,c,n]: for each w[b,c,n] that is not zero, y[b,m,n] reads x[b,m,c].
def dot_general(equation, at, inputs):
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
def stored_product(equation, at, inputs):
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
    """The number of each place in these dimensions."""
    number = np.zeros(len(places), np.int64)
    for d in dims:
        number = number * shape[d] + places[:, d]
    return number


# y[n,o,i] = sum over c and k of x[n,c,q] w[o,c,k], where q depends on i and k: for each offset k a
# Kronecker product, of the pairs (n,o), (n,c) that meet and of a shift in each spatial dimension.
def convolution(equation, at, inputs):
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
