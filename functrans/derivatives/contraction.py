"""The derivatives of the contractions: matrix products of any rank, and convolutions.

    y = B(x, w),        y_dot = B(x_dot, w) + B(x, w_dot)

B is linear in each argument, and the transpose in one of them is a contraction again, of the
cotangent with the other argument: for `y = x w` they are `x_bar = y_bar w^T`, `w_bar = x^T y_bar`.

Read next: `indexing.py`, elements at computed indices.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jax import lax

from functrans.derivatives.common import cast_like, unnamed
from functrans.rules import multilinear, sharding_of

# ---- dot_general ---------------------------------------------------------------------------------


class Factor(NamedTuple):
    """A factor of a product, and for each of its dimensions the letter that einsum gives it."""

    array: Any
    letters: tuple


# With a letter for each dimension, y[b,m,n] = sum_c x[b,m,c] w[b,c,n], the transposes read
#
#     x_bar[b,m,c] = sum_n y_bar[b,m,n] w[b,c,n]        w_bar[b,c,n] = sum_m x[b,m,c] y_bar[b,m,n]
#
# `dot_general` puts the letters of its left factor that are kept before those of the right. We take
# the order of the factors that needs no transpose of the result.
def letters_of(x, w, dimension_numbers):
    (x_contracted, w_contracted), (x_batch, w_batch) = dimension_numbers
    x_letters: list = [("m", d) for d in range(x.ndim)]
    w_letters: list = [("n", d) for d in range(w.ndim)]
    for name, xs, ws in (("b", x_batch, w_batch), ("c", x_contracted, w_contracted)):
        for i, (x_dim, w_dim) in enumerate(zip(xs, ws, strict=True)):
            x_letters[x_dim] = w_letters[w_dim] = (name, i)
    batch = [("b", i) for i in range(len(x_batch))]
    free = [a for a in x_letters if a[0] == "m"] + [a for a in w_letters if a[0] == "n"]
    return tuple(x_letters), tuple(w_letters), (*batch, *free)


def product(left: Factor, right: Factor, result: tuple) -> tuple[tuple, tuple]:
    """The dimension numbers of the sum over the letters that the result lacks; and its letters."""
    shared = [a for a in left.letters if a in right.letters]
    batch = [a for a in result if a in shared]
    summed = [a for a in shared if a not in result]
    numbers = tuple(
        tuple(tuple(factor.letters.index(a) for a in group) for factor in (left, right))
        for group in (summed, batch)
    )
    free = [a for a in (*left.letters, *right.letters) if a not in shared]
    return numbers, (*batch, *free)


def pull(y_bar: Factor, other: Factor, x: Any, letters: tuple, swapped: bool, params: dict) -> Any:
    """The cotangent of the factor `x`, whose dimensions have these `letters`."""
    left, right = (y_bar, other) if _is_in_order(y_bar, other, letters) else (other, y_bar)
    # The precisions belong to the factors (x, w); the cotangent stands in for the missing one.
    precision = params["precision"]
    if isinstance(precision, tuple) and swapped != (left is other):
        precision = precision[::-1]
    numbers, found = product(left, right, letters)
    x_bar = lax.dot_general(
        left.array,
        right.array,
        numbers,
        precision,
        params["preferred_element_type"],
        out_sharding=sharding_of(x.aval, [letters.index(a) for a in found]),
    )
    permutation = [found.index(a) for a in letters]
    if permutation != sorted(permutation):
        x_bar = lax.transpose(x_bar, permutation)
    return cast_like(x_bar, x)


def _is_in_order(left: Factor, right: Factor, letters: tuple) -> bool:
    free = [a for factor in (left, right) for a in factor.letters if a in letters]
    unshared = [a for a in free if free.count(a) == 1]
    return unshared == [a for a in letters if a in unshared]


def dot_general_left(y_bar, x, w, *, dimension_numbers, precision, preferred_element_type):
    x_letters, w_letters, y_letters = letters_of(x, w, dimension_numbers)
    params = {"precision": precision, "preferred_element_type": preferred_element_type}
    return pull(Factor(y_bar, y_letters), Factor(w, w_letters), x, x_letters, False, params)


def dot_general_right(y_bar, x, w, *, dimension_numbers, precision, preferred_element_type):
    x_letters, w_letters, y_letters = letters_of(x, w, dimension_numbers)
    params = {"precision": precision, "preferred_element_type": preferred_element_type}
    return pull(Factor(y_bar, y_letters), Factor(x, x_letters), w, w_letters, True, params)


multilinear(lax.dot_general_p, dot_general_left, dot_general_right)

# ---- ragged_dot_general --------------------------------------------------------------------------


# The ragged dimension r of x is divided into groups; with g(r) the group of r, and in the letters
# of einsum, there are three modes:
#
#     y[m=r,n]   = sum_c x[r,c] w[g(r),c,n]        x_bar[r,c]   = sum_n y_bar[r,n] w[g(r),c,n]
#                                                  w_bar[g,c,n] = sum_(r in g) x[r,c] y_bar[r,n]
#
#     y[g,m,n]   = sum_(c=r in g) x[m,r] w[r,n]    x_bar[m,r]   = sum_n w[r,n] y_bar[g(r),m,n]
#                                                  w_bar[r,n]   = sum_m x[m,r] y_bar[g(r),m,n]
#
#     y[b=r,m,n] = sum_c x[r,m,c] w[r,c,n]         as in a product without groups
#
# Each transpose is again of one of these modes. The factor with the letter r must be the left one.
GROUP = ("g", 0)


def ragged_letters(x, w, numbers):
    """The letters of x, w and y, and the ragged one."""
    x_letters, w_letters, _ = letters_of(x, w, numbers.dot_dimension_numbers)
    ragged = x_letters[numbers.lhs_ragged_dimensions[0]]
    w_letters = tuple(
        GROUP if d in numbers.rhs_group_dimensions else a for d, a in enumerate(w_letters)
    )
    batch = sorted(a for a in x_letters if a[0] == "b")
    free = [a for a in x_letters if a[0] == "m"] + [a for a in w_letters if a[0] == "n"]
    groups = [GROUP] if ragged[0] == "c" else []
    return x_letters, w_letters, (*groups, *batch, *free), ragged


def ragged_product(left, right, letters, ragged, group_sizes, params):
    """The sum over all letters but these, with these in their order."""
    # The dimensions of the batch keep their order, in which the sizes of the groups come too.
    numbers, found = product(left, right, tuple(sorted(letters)))
    found = tuple(a for a in found if a != GROUP)
    if GROUP not in right.letters and ragged not in found:
        found = (GROUP, *found)
    groups = [right.letters.index(GROUP)] if GROUP in right.letters else []
    wide = lax.dtype(params["preferred_element_type"] or left.array.dtype)
    answer = lax.ragged_dot_general(
        lax.convert_element_type(left.array, wide),
        lax.convert_element_type(right.array, wide),
        group_sizes,
        lax.RaggedDotDimensionNumbers(numbers, [left.letters.index(ragged)], groups),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
        group_offset=params["group_offset"],
    )
    return lax.transpose(answer, [found.index(a) for a in letters])


def ragged_left(y_bar, x, w, group_sizes, *, ragged_dot_dimension_numbers, **params):
    x_letters, w_letters, y_letters, ragged = ragged_letters(x, w, ragged_dot_dimension_numbers)
    if ragged in y_letters:
        factors = Factor(y_bar, y_letters), Factor(w, w_letters)
    else:
        order = sorted(range(w.ndim), key=lambda d: w_letters[d])
        factors = (
            Factor(lax.transpose(w, order), tuple(sorted(w_letters))),
            Factor(y_bar, y_letters),
        )
        if isinstance(params["precision"], tuple):
            params["precision"] = params["precision"][::-1]
    return cast_like(ragged_product(*factors, x_letters, ragged, group_sizes, params), x)


def ragged_right(y_bar, x, w, group_sizes, *, ragged_dot_dimension_numbers, **params):
    x_letters, w_letters, y_letters, ragged = ragged_letters(x, w, ragged_dot_dimension_numbers)
    factors = Factor(x, x_letters), Factor(y_bar, y_letters)
    return cast_like(ragged_product(*factors, w_letters, ragged, group_sizes, params), w)


def ragged_square(x):
    return lax.ragged_dot(x, lax.expand_dims(x, (0,)), lax.full((1,), 1, np.int32))


ragged_dot_general_p = unnamed("ragged_dot_general", ragged_square, (1, 1))
multilinear(ragged_dot_general_p, ragged_left, ragged_right, None)

# ---- conv_general_dilated ------------------------------------------------------------------------


class Window(NamedTuple):
    """One spatial dimension: x, dilated, is read at `stride i + window_dilation k - low`."""

    size: int
    stride: int
    low: int
    base_dilation: int
    window_dilation: int

    # With e = base_dilation, d = window_dilation, K = size the pairs that meet satisfy
    #
    #     e q = s i + d k - low        <=>        s i = e q + d (K-1-k) - ((K-1) d - low)
    #
    # so x_bar[q] is a convolution of y_bar, dilated by s, with the reversed window, at stride e.
    def transposed_padding(self, x_size: int, y_size: int) -> tuple[int, int]:
        low = (self.size - 1) * self.window_dilation - self.low
        read = (x_size - 1) * self.base_dilation + (self.size - 1) * self.window_dilation + 1
        return low, read - low - dilated(y_size, self.stride)

    # And w_bar[k] = sum_i x[s i + d k - low] y_bar[i] is one of x with y_bar as the window, dilated
    # by s, at stride d.
    def window_padding(self, x_size: int, y_size: int) -> tuple[int, int]:
        read = (self.size - 1) * self.window_dilation + dilated(y_size, self.stride)
        return self.low, read - self.low - dilated(x_size, self.base_dilation)


def dilated(size: int, dilation: int) -> int:
    """The length of a line of elements with `dilation - 1` holes between them."""
    return (size - 1) * dilation + 1 if size else 0


def windows_of(x, w, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers):
    sizes = [w.shape[d] for d in dimension_numbers.rhs_spec[2:]]
    lows = [low for low, _ in padding]
    return list(map(Window, sizes, window_strides, lows, lhs_dilation, rhs_dilation))


def spatial(array: Any, spec: tuple) -> list[int]:
    return [array.shape[d] for d in spec[2:]]


def move_group(x: Any, source: int, target: int, groups: int) -> Any:
    """Split `groups` off the front of dimension `source`, and put it at the front of `target`."""
    if groups == 1:
        return x
    shape = list(x.shape)
    shape[source : source + 1] = [groups, shape[source] // groups]
    x = lax.reshape(x, shape)
    # In the split array `source` is now the group; `target` has moved if it stood behind.
    place = target + 1 if target > source else target
    order = [d for d in range(x.ndim) if d != source]
    order.insert(order.index(place), source)
    x = lax.transpose(x, order)
    merged = list(x.shape)
    merged[target : target + 2] = [merged[target] * merged[target + 1]]
    return lax.reshape(x, merged)


# In the channels (c in, o out) a convolution is a matrix product, y[n,o] = sum_c x[n,c] w[o,c], so
# x_bar[n,c] = sum_o y_bar[n,o] w[o,c]: w with its channels exchanged. With groups of features each
# group has its own product, and the group is a part of o in w, but of c in the exchanged one. With
# groups j of the batch, x_bar[(j,n),c] = sum_(o in j) y_bar[n,o] w[o,c] has groups of features,
# (j,c), of which j then moves to the batch.
def conv_left(y_bar, x, w, *, window_strides, padding, lhs_dilation, rhs_dilation,
              dimension_numbers, feature_group_count, batch_group_count, precision,
              preferred_element_type):  # fmt: skip
    x_spec, w_spec, y_spec = dimension_numbers
    windows = windows_of(
        x, w, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers
    )
    groups = max(feature_group_count, batch_group_count)
    sizes = zip(spatial(x, x_spec), spatial(y_bar, y_spec), strict=True)
    exchanged = move_group(lax.rev(w, w_spec[2:]), w_spec[0], w_spec[1], groups)
    x_bar = conv(
        y_bar, exchanged, lhs_dilation,
        [window.transposed_padding(*size) for window, size in zip(windows, sizes, strict=True)],
        window_strides, rhs_dilation,
        (y_spec, (w_spec[1], w_spec[0], *w_spec[2:]), x_spec),
        feature_group_count=groups, precision=precision,
        preferred_element_type=preferred_element_type,
        out_sharding=sharding_of(x.aval) if batch_group_count == 1 else None,
    )  # fmt: skip
    return cast_like(move_group(x_bar, x_spec[1], x_spec[0], batch_group_count), x)


# w_bar[o,c] = sum_n x[n,c] y_bar[n,o]: a convolution in which n is the feature that is summed and
# c is the batch, so that the two kinds of group change places.
def conv_right(y_bar, x, w, *, window_strides, padding, lhs_dilation, rhs_dilation,
               dimension_numbers, feature_group_count, batch_group_count, precision,
               preferred_element_type):  # fmt: skip
    x_spec, w_spec, y_spec = dimension_numbers
    windows = windows_of(
        x, w, window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers
    )
    sizes = zip(spatial(x, x_spec), spatial(y_bar, y_spec), strict=True)
    w_bar = conv(
        x, y_bar, rhs_dilation,
        [window.window_padding(*size) for window, size in zip(windows, sizes, strict=True)],
        lhs_dilation, window_strides,
        (
            (x_spec[1], x_spec[0], *x_spec[2:]),
            (y_spec[1], y_spec[0], *y_spec[2:]),
            (w_spec[1], w_spec[0], *w_spec[2:]),
        ),
        feature_group_count=batch_group_count, batch_group_count=feature_group_count,
        precision=precision, preferred_element_type=preferred_element_type,
        out_sharding=sharding_of(w.aval),
    )  # fmt: skip
    return cast_like(w_bar, w)


def conv(lhs, rhs, strides, padding, lhs_dilation, rhs_dilation, specs, **params):
    """A convolution of two arrays, the narrower of which takes the type of the other."""
    if params["preferred_element_type"] is not None:
        wide = lax.dtype(params["preferred_element_type"])
        lhs, rhs = (lax.convert_element_type(operand, wide) for operand in (lhs, rhs))
    return lax.conv_general_dilated(
        lhs, rhs, strides, padding, lhs_dilation, rhs_dilation,
        lax.ConvDimensionNumbers(*specs), **params,
    )  # fmt: skip


multilinear(lax.conv_general_dilated_p, conv_left, conv_right)
