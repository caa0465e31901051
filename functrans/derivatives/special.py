"""The derivatives of the error functions and of the Bessel functions.

    erf(x) = 2/sqrt(pi) int_0^x e^(-t^2) dt        =>        erf'(x) = 2/sqrt(pi) e^(-x^2)

The formulas here, and in the two files that follow, are those of the NIST Digital Library of
Mathematical Functions, with the numbers of its sections.  Each formula consists of primitives that
have rules themselves, so the next derivative follows from it.

Read next: `zeta.py`, the zeta function and those that follow from it.
"""

from math import pi
from math import sin as sin_of
from math import sqrt as sqrt_of

import jax
import numpy as np
from jax import lax
from jax.lax import exp, select_n, square

from functrans.derivatives.common import add, div, gt, indicator, mul, sub, where
from functrans.rules import elementwise

# ---- the error function (DLMF 7.2) ---------------------------------------------------------------


# Written as a square, it underflows only where its derivatives do.
def bell(x):
    """`e^(-x^2)`"""
    return square(exp(mul(-0.5, square(x))))


# y' = sqrt(pi)/2 e^(y^2), which multiplies a relative error of y by 2 y^2, up to 70 at the ends. A
# step of Newton's method finds the error of y. It contributes a factor near 1, which corrects the
# rounding, and so has no derivative.
def erf_inv_slope(y, x):
    z = lax.abs(y)
    slope = mul(sqrt_of(pi) / 2, exp(square(z)))
    step = mul(sub(lax.erfc(z), sub(1, lax.abs(x))), slope)
    factor = exp(mul(2, mul(z, step)))
    is_near_1 = gt(0.5, lax.abs(sub(factor, 1)))  # not at the ends, where y is infinite
    factor = lax.stop_gradient(select_n(is_near_1, lax.full_like(y, 1), factor))
    return mul(factor, mul(sqrt_of(pi) / 2, exp(square(y))))


elementwise(lax.erf_p, lambda y, x: mul(2 / sqrt_of(pi), bell(x)))
elementwise(lax.erfc_p, lambda y, x: mul(-2 / sqrt_of(pi), bell(x)))
elementwise(lax.erf_inv_p, erf_inv_slope)

# ---- the modified Bessel functions, scaled: e^(-|x|) I_0(x) and e^(-|x|) I_1(x) (10.32, 10.40) ---


# At 0 we take it from the right, as for `abs`: so e^|x| times these functions has the derivatives
# of I_0 and I_1.
def slope_of_abs(x):
    return sub(1, mul(2, indicator(lax.lt(x, lax.full_like(x, 0)), x)))


# For x >= 0, e^(-x) I_m(x) = 1/pi int_0^pi cos(m t) e^(-c x) dt with c = 1 - cos t. Each derivative
# brings another factor -c. (Differences of I_0 and I_1 would cancel more with each order.) The
# midpoint rule of N points is exact up to I_(2N)(x), and for large x there is the asymptotic series
#
#     e^(-x) I_m(x) = (2 pi x)^(-1/2) sum_k (-1)^k a_k x^(-k),
#     a_k = (4 m^2 - 1) (4 m^2 - 9) ... (4 m^2 - (2k-1)^2) / (k! 8^k)
def bessel_slope(m, x):
    """The derivative of `e^(-x) I_m(x)`, for `x >= 0`"""
    is_double = jax.typeof(x).dtype == np.float64
    bound, points, terms = (22.0, 25, 26) if is_double else (12.0, 14, 12)
    is_large = gt(x, bound)
    small, large = where(is_large, 1, x), where(lax.bitwise_not(is_large), bound, x)
    integral = series = lax.full_like(x, 0)
    for k in range(points):
        c = 2 * sin_of(pi * (k + 0.5) / (2 * points)) ** 2
        integral = add(integral, mul(-c * (1 - c if m else 1) / points, exp(mul(-c, small))))
    inverse, coefficients = div(1, large), [1.0]
    for k in range(1, terms):
        coefficients.append(coefficients[-1] * ((2 * k - 1) ** 2 - 4 * m**2) / (8 * k))
    for k in reversed(range(terms)):
        series = add(mul(series, inverse), -coefficients[k] * (k + 0.5) / sqrt_of(2 * pi))
    return select_n(is_large, integral, mul(mul(inverse, series), lax.rsqrt(large)))


def bessel_i0e_slope(y, x):
    side = slope_of_abs(x)
    return mul(side, bessel_slope(0, mul(side, x)))


elementwise(lax.bessel_i0e_p, bessel_i0e_slope)
elementwise(lax.bessel_i1e_p, lambda y, x: bessel_slope(1, mul(slope_of_abs(x), x)))
