"""The derivatives of the reductions over axes, and of the cumulative reductions along one.

    y = sum_i x_i,        y_dot = sum_i x_i_dot,        x_i_bar = y_bar

The tangent of an extremum is the mean over the elements that attain it.  A product is taken in
pairs.  The tangents of a cumulative operation, `y_k = f(y_(k-1), x_k)`, follow a linear recurrence.

Read next: `contraction.py`, products of matrices and convolutions.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from functrans.derivatives.common import (
    add,
    aval_of,
    div,
    eq,
    indicator,
    mul,
    number,
    sub,
)
from functrans.rules import general, instantiate, linear, sharding_of, zero

# ---- sums ----------------------------------------------------------------------------------------


def repeat(y: Any, x: Any, axes: tuple[int, ...]) -> Any:
    """Repeat along `axes`, to the shape of `x`: the transpose of the sum."""
    kept = [d for d in range(x.ndim) if d not in axes]
    return lax.broadcast_in_dim(y, x.shape, kept, out_sharding=sharding_of(aval_of(x)))


linear(lax.reduce_sum_p, lambda y_bar, x, *, axes: repeat(y_bar, x, axes))


def cumsum_transpose(y_bar, x, *, axis, reverse):
    return lax.cumsum(y_bar, axis, not reverse)


linear(lax.cumsum_p, cumsum_transpose)

# ---- extrema: the tangent is shared evenly among the elements that attain it ---------------------


def extremum(primitive: Any) -> Callable:
    def jvp(primals, tangents, **params):
        (x,), x_dot, axes = primals, instantiate(tangents[0]), params["axes"]
        y = primitive.bind(x, **params)
        attains = indicator(eq(x, repeat(y, x, axes)), x)
        count = lax.reduce_sum(attains, axes)
        return y, div(lax.reduce_sum(mul(x_dot, attains), axes), count)

    return jvp


general(lax.reduce_max_p, extremum(lax.reduce_max_p))
general(lax.reduce_min_p, extremum(lax.reduce_min_p))

# ---- products ------------------------------------------------------------------------------------


# With the product of pairs, (a, a_dot)(b, b_dot) = (a b, a_dot b + a b_dot), one half of an axis is
# multiplied with the other until one element is left.  There is no division, so zeros do no harm.
def reduce_prod_jvp(primals, tangents, *, axes, **_):
    (x,), x_dot = primals, instantiate(tangents[0])
    for axis in sorted(axes, reverse=True):
        x, x_dot = product_of_pairs(x, x_dot, axis)
    return x, x_dot


def product_of_pairs(x, x_dot, axis):
    if x.shape[axis] == 0:
        shape = x.shape[:axis] + x.shape[axis + 1 :]
        return lax.full(shape, 1, x.dtype), lax.full(shape, 0, x.dtype)
    while (size := x.shape[axis]) > 1:
        if size % 2:
            x, x_dot = extend(x, 1, axis), extend(x_dot, 0, axis)
        (a, b), (a_dot, b_dot) = halves(x, axis), halves(x_dot, axis)
        x, x_dot = mul(a, b), add(mul(a_dot, b), mul(b_dot, a))
    return lax.squeeze(x, (axis,)), lax.squeeze(x_dot, (axis,))


def extend(x, value, axis):
    return lax.pad(x, number(value, x), [(0, int(d == axis), 0) for d in range(x.ndim)])


def halves(x, axis):
    half = x.shape[axis] // 2
    return lax.slice_in_dim(x, 0, half, axis=axis), lax.slice_in_dim(x, half, 2 * half, axis=axis)


general(lax.reduce_prod_p, reduce_prod_jvp)

# ---- cumulative reductions -----------------------------------------------------------------------


# y_k = f(y_(k-1), x_k)  =>  y_k_dot = w_k y_(k-1)_dot + v_k x_k_dot   with   w, v = df/dy, df/dx.
#
# Two such steps compose to one, w2 (w1 y + u1) + u2 = (w2 w1) y + (w2 u1 + u2), and composition is
# associative, so log n rounds are enough for n steps.
def cumulative(primitive: Any, first: float, partials: Callable) -> Callable:
    def jvp(primals, tangents, *, axis, reverse):
        (x,), x_dot = primals, instantiate(tangents[0])
        y = primitive.bind(x, axis=axis, reverse=reverse)
        w, v = partials(y, before(y, first, axis, reverse), x)
        steps = (w, mul(x_dot, v))
        return y, lax.associative_scan(compose, steps, reverse=reverse, axis=axis)[1]

    return jvp


def compose(first, second):
    (w1, u1), (w2, u2) = first, second
    return mul(w2, w1), add(mul(u1, w2), u2)


def before(y, first, axis, reverse):
    """The answer one step earlier, `y_(k-1)`."""
    shift = (-1, 1, 0) if reverse else (1, -1, 0)
    padding = [shift if d == axis else (0, 0, 0) for d in range(y.ndim)]
    return lax.pad(y, number(first, y), padding)


def cumprod_partials(y, y_before, x):
    return x, y_before


# y_k = max(y_(k-1), x_k), and a tie is shared by halves.
def extremum_partials(y, y_before, x):
    kept = lax.select_n(eq(y_before, x), indicator(eq(y_before, y), y), lax.full_like(y, 0.5))
    return kept, sub(1, kept)


# exp(y_k) = exp(y_(k-1)) + exp(x_k), so each partial derivative is its share of the sum.
def cumlogsumexp_partials(y, y_before, x):
    return share(y_before, y), share(x, y)


def share(part, whole):
    """`exp(part - whole)`, and 1 where the two are equal, even if they are infinite."""
    return lax.select_n(eq(part, whole), lax.exp(sub(part, whole)), lax.full_like(whole, 1))


general(lax.cumprod_p, cumulative(lax.cumprod_p, 1.0, cumprod_partials))
general(lax.cummax_p, cumulative(lax.cummax_p, -np.inf, extremum_partials))
general(lax.cummin_p, cumulative(lax.cummin_p, np.inf, extremum_partials))
general(lax.cumlogsumexp_p, cumulative(lax.cumlogsumexp_p, -np.inf, cumlogsumexp_partials))

# ---- piecewise constant --------------------------------------------------------------------------

zero(lax.argmax_p, lax.argmin_p, lax.reduce_and_p, lax.reduce_or_p, lax.reduce_xor_p)
