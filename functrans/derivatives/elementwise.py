"""The derivatives of the operations that act on each element by itself.

    z = f(x_1, ..., x_n),        z_dot = sum_i x_i_dot * dz/dx_i

A line declares `dz/dx_i` for each argument: a function of the result and the arguments; or `1`,
`-1`, or `LINEAR` (the operation itself, as for each factor of a product); or `None`, for an
argument without one.  For a holomorphic function the complex derivative has the same formula; the
few that are not holomorphic (abs, sign, conj, real, imag) are linear or have a jvp over the real
numbers.

Read next: `shape.py`, operations that move elements; or, in a first reading, `../linearize.py`.
"""

from functools import partial, reduce
from itertools import combinations
from math import comb, factorial, inf
from math import log as log_of
from typing import Any

import jax.numpy as jnp
from jax import custom_jvp, lax
from jax.lax import cos, cosh, exp, log, neg, rsqrt, select_n, sin, sinh, square

from functrans.derivatives.common import (
    add,
    along,
    aval_of,
    cast_like,
    div,
    eq,
    gt,
    indicator,
    is_complex,
    mul,
    named,
    number,
    sub,
    zeros_like,
)
from functrans.rules import (
    LINEAR,
    Elementwise,
    Linear,
    Zero,
    broadcast_to,
    call,
    elementwise,
    general,
    instantiate,
    linear,
    zero,
)

# ---- how a derivative stays exact ----------------------------------------------------------------
#
# A formula may have the right value and a derivative that cancels: (1 - x)(1 + x) is exact next to
# 1, but its derivative (1 - x) - (1 + x) is lost near 0.  Then one formula gives the value, as a
# constant, and we add another one, which is zero except for its derivative.  And where a square
# would leave the range of numbers, a constant scale brings everything near 1.


def rise_of_square(x):
    """`x^2 - c^2` at `c = x`: zero, in spite of rounding, with the derivatives of the square."""
    c = lax.stop_gradient(x)
    return mul(sub(x, c), add(x, c))


def size_of(*xs):
    """The largest of the numbers in absolute value, or of their parts, as a constant."""
    parts = [part for x in xs for part in ((lax.real(x), lax.imag(x)) if is_complex(x) else (x,))]
    return reduce(lax.max, (lax.abs(lax.stop_gradient(part)) for part in parts))


def times_i(x):
    return lax.complex(neg(lax.imag(x)), lax.real(x))


# ---- arithmetic ----------------------------------------------------------------------------------

elementwise(lax.neg_p, -1)
elementwise(lax.add_p, 1, 1)
elementwise(lax.sub_p, 1, -1)
# x = n y + z with a whole number n that is constant nearby, so dz = dx - n dy.
elementwise(lax.rem_p, 1, lambda z, x, y: neg(lax.round(div(sub(x, z), y))))
elementwise(lax.square_p, lambda y, x: mul(2, x))
elementwise(lax.sqrt_p, lambda y, x: div(0.5, y))
elementwise(lax.rsqrt_p, lambda y, x: mul(-0.5, div(y, x)))
elementwise(lax.cbrt_p, lambda y, x: mul(1 / 3, lax.integer_pow(y, -2)))
elementwise(
    lax.integer_pow_p,
    lambda z, x, *, y: mul(y, x if y == 2 else lax.integer_pow(x, y - 1)) if y else zeros_like(x),
)


# z y = x  =>  z_dot = x_dot / y - z (y_dot / y), which keeps only the quotient and the divisor.
# (x_dot - z y_dot) / y looks simpler, but its transpose divides once for both cotangents, and XLA
# then writes out y if it is a broadcast, such as the sum in a softmax. A transformer's gradient
# takes 8% less memory and time this way.
def quotient_jvp(primals, tangents):
    (x, y), (x_dot, y_dot) = primals, tangents
    z = lax.div_p.bind(x, y)
    if type(y_dot) is Zero:
        return z, div(x_dot, y)
    slope = mul(z, div(y_dot, y))
    return z, neg(slope) if type(x_dot) is Zero else sub(div(x_dot, y), slope)


elementwise(lax.div_p, LINEAR, lambda z, x, y: neg(div(z, y)), jvp=quotient_jvp)

add_any_p = named("add_jaxvals")
elementwise(add_any_p, 1, 1)
one_minus_square_p = named("one_minus_square")
elementwise(one_minus_square_p, lambda y, x: mul(-2, x))


class Product(Elementwise):
    """A product may have another type, `out_dtype`, than its factors."""

    def transpose(self, primitive, cotangents, inputs, params):
        factor = next(x for x in inputs if type(x) is Linear)
        if params.get("out_dtype") is not None:
            params = {**params, "out_dtype": factor.dtype}
        return super().transpose(primitive, cotangents, inputs, params)


call(lax.mul_p, Product([LINEAR, LINEAR]))


# The derivatives of x^y are a family that is closed under differentiation. With the product
# (y)_n = y (y-1) ... (y-n+1),
#
#     d^n/dx^n d^k/dy^k x^y  =  x^(y-n) sum_j  binomial(k, j) log(x)^(k-j) d^j/dy^j (y)_n
#
# At x = 0 each is its limit from the right. A guard against 0 * inf in each of them would have a
# wrong derivative, so the family declares its own derivatives.
@partial(custom_jvp, nondiff_argnums=(0, 1))
def power_derivative(n, k, x, y):
    power, log_x, zeros = lax.pow(x, sub(y, n)), log(x), zeros_like(x)
    terms = [mul(comb(k, j), falling_factorial(y, n, j)) for j in range(min(n, k) + 1)]
    factor = reduce(add, [times_power(t, log_x, k - j) for j, t in enumerate(terms)])
    # For x -> 0 the highest power of the logarithm with a nonzero factor prevails.
    limit, log_0 = zeros, lax.full_like(x, -inf)
    for j, term in reversed(list(enumerate(terms))):
        limit = select_n(eq(term, 0), times_power(term, log_0, k - j), limit)
    if n == 0 and k > 0:  # 0^y is 1 at y = 0 and then 0: it has no derivative there, and gets 0
        limit = select_n(eq(y, 0), limit, zeros)
    factor = select_n(eq(x, 0), factor, limit)
    return select_n(lax.bitwise_or(eq(factor, 0), eq(power, 0)), mul(factor, power), zeros)


@partial(power_derivative.defjvp, symbolic_zeros=True)
def power_derivative_jvp(n, k, primals, tangents):
    by_base = partial(power_derivative, n + 1, k, *primals)
    by_exponent = partial(power_derivative, n, k + 1, *primals)
    return power_derivative(n, k, *primals), along(tangents, by_base, by_exponent)


def falling_factorial(y, n, j):
    """The derivative of order `j` of `y (y-1) ... (y-n+1)`: each factor has the derivative 1."""
    products = [
        reduce(mul, (sub(y, i) for i in chosen), lax.full_like(y, 1))
        for chosen in combinations(range(n), n - j)
    ]
    return mul(factorial(j), reduce(add, products))


def times_power(x, y, n):
    """`x y^n`"""
    return mul(x, lax.integer_pow(y, n)) if n else x


# `lowered` avoids 0^-1 at y = 0. It needs no derivative, since an integer exponent has none.
def pow_by_base(z, x, y):
    if aval_of(y).dtype.kind in "iu":
        lowered = select_n(eq(y, 0), sub(y, 1), lax.full_like(y, 1))
        return mul(lax.convert_element_type(y, z.dtype), lax.pow(x, lowered))
    return power_derivative(1, 0, *(broadcast_to(v, aval_of(z)) for v in (x, y)))


def pow_by_exponent(z, x, y):
    return power_derivative(0, 1, *(broadcast_to(v, aval_of(z)) for v in (x, y)))


elementwise(lax.pow_p, pow_by_base, pow_by_exponent)


# y = sum_i c_i x^i
def polynomial_jvp(primals, tangents):
    (x, *coefficients), (x_dot, *c_dots) = primals, tangents
    y = polynomial_p.bind(x, *coefficients)
    terms = [
        mul(c_dot, lax.integer_pow(x, i))
        for i, c_dot in enumerate(c_dots)
        if type(c_dot) is not Zero
    ]
    slopes = [mul(i, c) for i, c in enumerate(coefficients)][1:]
    if type(x_dot) is not Zero and slopes:
        terms.append(mul(x_dot, polynomial_p.bind(x, *slopes) if slopes[1:] else slopes[0]))
    return y, reduce(add, terms) if terms else Zero.like(y)


polynomial_p = named("polynomial")
general(polynomial_p, polynomial_jvp)

# ---- exponentials and logarithms -----------------------------------------------------------------

elementwise(lax.exp_p, lambda y, x: y)
elementwise(lax.exp2_p, lambda y, x: mul(log_of(2), y))
# Not y + 1, which is lost for x << 0, where y = -1.
elementwise(lax.expm1_p, lambda y, x: lax.exp(x))
elementwise(lax.log_p, lambda y, x: div(1, x))
elementwise(lax.log1p_p, lambda y, x: div(1, add(x, 1)))

log2_p = named("log2")
elementwise(log2_p, lambda y, x: div(1 / log_of(2), x))

# ---- trigonometric and hyperbolic functions, and their inverses ----------------------------------

elementwise(lax.sin_p, lambda y, x: cos(x))
elementwise(lax.cos_p, lambda y, x: neg(sin(x)))
elementwise(lax.sinh_p, lambda y, x: cosh(x))
# i sinh(x) = sin(i x), the more exact of the two for complex numbers.
elementwise(lax.cosh_p, lambda y, x: neg(times_i(sin(times_i(x)))) if is_complex(x) else sinh(x))


# (1 + tanh x) e^-x = 1 / cosh x, which is exact for x > 0, also where y rounds to 1 and 1 - y^2 to
# 0; and by symmetry for x < 0. It is a function of x, with the derivative -2 y / cosh(x)^2.
@custom_jvp
def sech_squared(y, x):
    """`1 / cosh(x)^2`, of `y = tanh(x)`"""
    y, x = rightwards(y, x)
    return square(mul(add(1, y), exp(neg(x))))


# We multiply by the tangent first: this product is the tangent of y, which is known already, and y
# times it is half of the tangent of a square.
@partial(sech_squared.defjvp, symbolic_zeros=True)
def sech_squared_jvp(primals, tangents):
    slope = sech_squared(*primals)
    return slope, mul(-2, mul(primals[0], along(tangents[1:], lambda: slope)))


def rightwards(y, x):
    """`-y, -x` where `x` is to the left of 0."""
    if not is_complex(x):
        return lax.abs(y), lax.abs(x)
    is_left = lax.lt(lax.real(x), zeros_like(lax.real(x)))
    return select_n(is_left, y, neg(y)), select_n(is_left, x, neg(x))


# y (1 - y) = y^2 e^-x, also where y is 1. The derivative is (1 - 2 y) = -tanh(x/2) times it.
@custom_jvp
def logistic_slope(y, x):
    """`y (1 - y)`, of `y = 1 / (1 + e^-x)`"""
    if is_complex(x):
        half = mul(0.5, x)
        return mul(0.25, sech_squared(lax.tanh(half), half))
    limits: Any = jnp.finfo(aval_of(x).dtype)
    return mul(y, mul(y, lax.min(exp(neg(x)), number(limits.max, x))))


@partial(logistic_slope.defjvp, symbolic_zeros=True)
def logistic_slope_jvp(primals, tangents):
    slope = logistic_slope(*primals)
    tilt = neg(lax.tanh(mul(0.5, primals[1])))
    return slope, mul(tilt, along(tangents[1:], lambda: slope))


# i tan(x) = tanh(i x)
def tan_slope(y, x):
    if is_complex(x):
        return sech_squared(times_i(y), times_i(x))
    return add(1, square(y))


elementwise(lax.tan_p, tan_slope)
elementwise(lax.tanh_p, sech_squared)
elementwise(lax.logistic_p, logistic_slope)


# 1 - x^2 = s^2 (r^2 - (x/s)^2) with r = 1/s, which does not cancel near 1, nor its derivative near
# 0. The scale s is 1, or the size of a complex number far out.
def one_minus_square(x):
    """`r, r^2 - (x/s)^2`"""
    r: Any = 1
    if is_complex(x):
        size = size_of(x)
        inverse = select_n(gt(size, 2), lax.full_like(size, 1), div(1, size))
        r = lax.complex(inverse, zeros_like(size))
        x = mul(x, r)
    c = lax.stop_gradient(x)
    return r, sub(mul(sub(r, c), add(r, c)), rise_of_square(x))


def asin_slope(y, x):
    r, w = one_minus_square(x)
    return mul(r, rsqrt(w))


def atanh_slope(y, x):
    r, w = one_minus_square(x)
    return mul(r, div(r, w))


# The product of two roots, not the root of the product, has the branch cuts of acosh. The sum of
# their derivatives cancels near 0, where the function takes complex numbers only.
def acosh_slope(y, x):
    slope = mul(rsqrt(sub(x, 1)), rsqrt(add(x, 1)))
    if not is_complex(x):
        return slope
    _, w = one_minus_square(x)
    slope, w_here = map(lax.stop_gradient, (slope, w))
    return mul(slope, rsqrt(div(w, w_here)))


# 1 + x^2 = s^2 (r^2 + (x/s)^2) with r = 1/s, for the scale s = max(1, |x|) of a real number.
def one_plus_square(x):
    """`r, r^2 + (x/s)^2`"""
    limits: Any = jnp.finfo(aval_of(x).dtype)
    scale = lax.clamp(number(1, x), size_of(x), number(limits.max, x))
    r = div(1, scale)
    return r, add(square(r), square(div(x, scale)))


# i atan(x) = atanh(i x)
def atan_slope(y, x):
    if is_complex(x):
        return atanh_slope(y, times_i(x))
    r, w = one_plus_square(x)
    return mul(r, div(r, w))


# i asinh(x) = asin(i x)
def asinh_slope(y, x):
    if is_complex(x):
        return asin_slope(y, times_i(x))
    r, w = one_plus_square(x)
    return mul(r, rsqrt(w))


elementwise(lax.asin_p, asin_slope)
elementwise(lax.acos_p, lambda y, x: neg(asin_slope(y, x)))
elementwise(lax.atan_p, atan_slope)
elementwise(lax.asinh_p, asinh_slope)
elementwise(lax.acosh_p, acosh_slope)
elementwise(lax.atanh_p, atanh_slope)


# The scale is the larger argument, or near it, so that its inverse is a normal number too. (We
# cannot divide by the scale: XLA turns a quotient of quotients into one, by the product of the
# divisors, which is as large as a square.)
def angle_slope(x, y):
    """`y / (x^2 + y^2)`"""
    limits: Any = jnp.finfo(aval_of(x).dtype)
    r = div(1, lax.clamp(number(limits.tiny, x), size_of(x, y), number(limits.max / 4, x)))
    x, y = mul(x, r), mul(y, r)
    return mul(div(y, add(square(x), square(y))), r)


elementwise(lax.atan2_p, lambda z, x, y: angle_slope(x, y), lambda z, x, y: neg(angle_slope(y, x)))

# ---- extrema and selection -----------------------------------------------------------------------


# 1 where x is the result, 0 where the other argument is, and 1/2 where both are.
def is_the_answer(z, x, other):
    return select_n(eq(x, other), indicator(eq(x, z), z), lax.full_like(z, 0.5))


for extremum_p in (lax.max_p, lax.min_p):
    elementwise(
        extremum_p,
        lambda z, x, y: is_the_answer(z, x, y),
        lambda z, x, y: is_the_answer(z, y, x),
    )

elementwise(
    lax.clamp_p,
    # min(max(x, low), high), also where the bounds are exchanged.
    lambda z, low, x, high: indicator(lax.bitwise_and(gt(low, x), lax.ge(high, low)), z),
    lambda z, low, x, high: indicator(lax.bitwise_and(gt(x, low), gt(high, x)), z),
    lambda z, low, x, high: indicator(lax.bitwise_or(gt(x, high), gt(low, high)), z),
)


def select_jvp(primals, tangents):
    which, *cases = primals
    moved = [instantiate(tangent) for tangent in tangents[1:]]
    return lax.select_n(which, *cases), lax.select_n(which, *moved)


def select_transpose(y_bar, which, *cases):
    rest = zeros_like(y_bar)
    return [
        select_n(which, *(y_bar if i == k else rest for k in range(len(cases))))
        if type(case) is Linear
        else None
        for i, case in enumerate(cases)
    ]


linear(lax.select_n_p, select_transpose, jvp=select_jvp, argnums=slice(1, None))

# ---- complex numbers -----------------------------------------------------------------------------
# The transpose has no conjugate: Re(y_bar Im(x)) = Re(-i y_bar x), so x_bar = -i y_bar.

linear(lax.real_p, lambda y_bar, x: lax.complex(y_bar, zeros_like(y_bar)))
linear(lax.imag_p, lambda y_bar, x: lax.complex(zeros_like(y_bar), neg(y_bar)))
linear(lax.conj_p, lambda y_bar, x: lax.conj(y_bar) if is_complex(x) else lax.real(y_bar))
linear(lax.complex_p, lambda z_bar, x, y: (lax.real(z_bar), neg(lax.imag(z_bar))), argnums=(0, 1))


# |z|^2 = z conj(z)  =>  d|z| = Re(conj(z) dz) / |z| = Re(conj(s) dz) with s = z / |z|. On the real
# line the derivative at 0 is taken from the right, as JAX does.
def abs_jvp(primals, tangents):
    (x,), x_dot = primals, instantiate(tangents[0])
    y = lax.abs(x)
    if is_complex(x):
        return y, lax.real(mul(lax.conj(unit(x, nonzero(y))), x_dot))
    return y, select_n(lax.lt(x, zeros_like(x)), x_dot, neg(x_dot))


# ds = (dz - s d|z|) / |z|: the part of dz that is orthogonal to s, and 0 at z = 0.
def sign_jvp(primals, tangents):
    (x,), x_dot = primals, tangents[0]
    y = lax.sign(x)
    if type(x_dot) is Zero or not is_complex(x):
        return y, Zero.like(y)
    size = nonzero(lax.abs(x))
    s = unit(x, size)
    rotation = div(lax.imag(mul(lax.conj(s), x_dot)), size)
    return y, mul(s, lax.complex(zeros_like(rotation), rotation))


def nonzero(size):
    return select_n(eq(size, 0), size, lax.full_like(size, 1))


# The sign of z, written out, since JAX 0.10 takes the derivative of a sign for zero.
def unit(z, size):
    return lax.complex(div(lax.real(z), size), div(lax.imag(z), size))


general(lax.abs_p, abs_jvp)
general(lax.sign_p, sign_jvp)

# ---- changes of type -----------------------------------------------------------------------------

linear(lax.convert_element_type_p, lambda y_bar, x: cast_like(y_bar, x))
linear(
    lax.reduce_precision_p, lambda y_bar, x, **params: lax.reduce_precision_p.bind(y_bar, **params)
)
elementwise(lax.copy_p, 1)
elementwise(lax.nextafter_p, 1, None)
name_p = named("name")
elementwise(name_p, 1)

# ---- piecewise constant, or not about real numbers at all ----------------------------------------

zero(lax.floor_p, lax.ceil_p, lax.round_p, lax.is_finite_p, lax.stop_gradient_p)
zero(lax.eq_p, lax.ne_p, lax.lt_p, lax.le_p, lax.gt_p, lax.ge_p)
zero(lax.eq_to_p, lax.lt_to_p, lax.le_to_p)
zero(lax.and_p, lax.or_p, lax.xor_p, lax.not_p, lax.population_count_p, lax.clz_p)
zero(lax.shift_left_p, lax.shift_right_logical_p, lax.shift_right_arithmetic_p)
zero(lax.bitcast_convert_type_p, lax.mulhi_p)
