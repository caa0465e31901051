"""The derivatives of the operations that act on each element by itself.

    z = f(x_1, ..., x_n),        z_dot = sum_i x_i_dot * dz/dx_i

A line declares `dz/dx_i` for each argument: a function of the answer and the arguments; or `1`,
`-1`, or `LINEAR` (the operation itself, as for each factor of a product); or `None`, where there is
none.  For a holomorphic function the complex derivative is the same formula; the few functions that
are not holomorphic (abs, sign, conj, real, imag) are linear or have a jvp over the real numbers.

Read next: `shape.py`, operations that move elements; or, in a first reading, `../linearize.py`.
"""

from functools import reduce
from math import log as log_of

from jax import lax
from jax.lax import cos, cosh, log, neg, rsqrt, select_n, sin, sinh, square

from functrans.derivatives.common import (
    add,
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
    call,
    elementwise,
    general,
    instantiate,
    linear,
    zero,
)

# ---- arithmetic ----------------------------------------------------------------------------------

elementwise(lax.neg_p, -1)
elementwise(lax.add_p, 1, 1)
elementwise(lax.sub_p, 1, -1)
# x = n y + z with n a whole number that does not change nearby, so dz = dx - n dy.
elementwise(lax.rem_p, 1, lambda z, x, y: neg(lax.round(div(sub(x, z), y))))
elementwise(lax.square_p, lambda y, x: mul(2, x))
elementwise(lax.sqrt_p, lambda y, x: div(0.5, y))
elementwise(lax.rsqrt_p, lambda y, x: mul(-0.5, div(y, x)))
elementwise(lax.cbrt_p, lambda y, x: div(1 / 3, square(y)))
elementwise(
    lax.integer_pow_p,
    lambda z, x, *, y: mul(y, x if y == 2 else lax.integer_pow(x, y - 1)) if y else zeros_like(x),
)


# z y = x  =>  z_dot = x_dot / y - z (y_dot / y), which keeps the quotient and the divisor alone.
# (x_dot - z y_dot) / y looks simpler, but its transpose divides once for both cotangents, and XLA
# then writes out y where it is broadcast, as the sum in a softmax is. A transformer's gradient
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
    """A product may be asked for in another type, `out_dtype`, than that of its factors."""

    def transpose(self, primitive, cotangents, inputs, params):
        factor = next(x for x in inputs if type(x) is Linear)
        if params.get("out_dtype") is not None:
            params = {**params, "out_dtype": factor.dtype}
        return super().transpose(primitive, cotangents, inputs, params)


call(lax.mul_p, Product([LINEAR, LINEAR]))


# d(x^y)/dx = y x^(y-1), which is 0 for y = 0 also where x^(-1) is infinite.
def pow_by_base(z, x, y):
    y = number(y, z) if type(y) in (int, float) else y
    lowered = select_n(eq(y, 0), sub(y, 1), lax.full_like(y, 1))
    return mul(lax.convert_element_type(y, z.dtype), lax.pow(x, lowered))


# d(x^y)/dy = log(x) x^y, whose limit for x -> 0 is 0 where y > 0.
def pow_by_exponent(z, x, y):
    return mul(log(select_n(eq(x, 0), x, lax.full_like(x, 1))), z)


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
elementwise(lax.expm1_p, lambda y, x: add(y, 1))
elementwise(lax.log_p, lambda y, x: div(1, x))
elementwise(lax.log1p_p, lambda y, x: div(1, add(x, 1)))
elementwise(lax.logistic_p, lambda y, x: mul(y, sub(1, y)))

log2_p = named("log2")
elementwise(log2_p, lambda y, x: div(1 / log_of(2), x))

# ---- trigonometric and hyperbolic functions, and their inverses ----------------------------------

elementwise(lax.sin_p, lambda y, x: cos(x))
elementwise(lax.cos_p, lambda y, x: neg(sin(x)))
elementwise(lax.tan_p, lambda y, x: add(1, square(y)))
elementwise(lax.sinh_p, lambda y, x: cosh(x))
elementwise(lax.cosh_p, lambda y, x: sinh(x))
elementwise(lax.tanh_p, lambda y, x: sub(1, square(y)))


# 1 - x^2 without the cancellation near 1.
def one_minus_square(x):
    return mul(sub(1, x), add(1, x))


elementwise(lax.asin_p, lambda y, x: rsqrt(one_minus_square(x)))
elementwise(lax.acos_p, lambda y, x: neg(rsqrt(one_minus_square(x))))
elementwise(lax.atan_p, lambda y, x: div(1, add(1, square(x))))
elementwise(lax.asinh_p, lambda y, x: rsqrt(add(1, square(x))))
# Two roots, not the root of the product: their branch cuts are those of acosh.
elementwise(lax.acosh_p, lambda y, x: mul(rsqrt(sub(x, 1)), rsqrt(add(x, 1))))
elementwise(lax.atanh_p, lambda y, x: div(1, one_minus_square(x)))
elementwise(
    lax.atan2_p,
    lambda z, x, y: div(y, add(square(x), square(y))),
    lambda z, x, y: neg(div(x, add(square(x), square(y)))),
)

# ---- extrema and selection -----------------------------------------------------------------------


# 1 where x is the answer, 0 where the other argument is, and 1/2 where both are.
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
    lambda z, low, x, high: indicator(gt(low, x), z),
    lambda z, low, x, high: indicator(lax.bitwise_and(gt(x, low), gt(high, x)), z),
    lambda z, low, x, high: indicator(gt(x, high), z),
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


# |z|^2 = z conj(z)  =>  d|z| = Re(conj(z) dz) / |z| = Re(conj(sign z) dz). On the real line the
# derivative at 0 is taken from the right, as JAX does.
def abs_jvp(primals, tangents):
    (x,), x_dot = primals, instantiate(tangents[0])
    if is_complex(x):
        return lax.abs(x), lax.real(mul(lax.conj(lax.sign(x)), x_dot))
    return lax.abs(x), select_n(lax.lt(x, zeros_like(x)), x_dot, neg(x_dot))


# s = z / |z|  =>  ds = (dz - s d|z|) / |z|: the part of dz that is orthogonal to s, and 0 at z = 0.
def sign_jvp(primals, tangents):
    (x,), x_dot = primals, tangents[0]
    s = lax.sign(x)
    if type(x_dot) is Zero or not is_complex(x):
        return s, Zero.like(s)
    size = lax.abs(x)
    size = select_n(eq(size, 0), size, lax.full_like(size, 1))
    rotation = div(lax.imag(mul(lax.conj(s), x_dot)), size)
    return s, mul(s, lax.complex(zeros_like(rotation), rotation))


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
