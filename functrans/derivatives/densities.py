"""The densities of the gamma and of the beta distribution, exact in relative terms.

    g(x) = x^(a-1) e^(-x) / Gamma(a),        g(x) = x^(a-1) (1-x)^(b-1) / B(a, b)

In the logarithm of a density with large parameters, huge terms cancel.  They leave a rest that is
known in closed form:

    log Gamma(a) = (a - 1/2) log a - a + log sqrt(2 pi) + R(a)              (5.11.1)
    a log x - x = a log a - a - D,    D = a (t - 1 - log t),    t = x/a

Read next: `incomplete.py`, their integrals up to a point.
"""

from functools import reduce
from math import log as log_of
from math import pi

import jax
import numpy as np
from jax import custom_jvp, lax
from jax.lax import exp, log, neg, select_n, square

from functrans.derivatives.common import add, div, eq, gt, indicator, mul, sub, where
from functrans.derivatives.zeta import BERNOULLI

LARGE = 10.0


def stirling_rest(a):
    """`R(a)` for `a >= 10`: the sum of `B_2k / (2k (2k-1) a^(2k-1))`"""
    inverse, total = div(1, a), lax.full_like(a, 0)
    for k in range(8, 0, -1):
        total = add(mul(total, square(inverse)), BERNOULLI[2 * k] / (2 * k * (2 * k - 1)))
    return mul(inverse, total)


def log_gamma_rest(a):
    """`R(a)` for all `a > 0`"""
    is_large, bound = gt(a, LARGE), lax.full_like(a, LARGE)
    small, large = select_n(is_large, a, bound), select_n(is_large, bound, a)
    power = sub(mul(sub(small, 0.5), log(small)), small)
    direct = sub(sub(lax.lgamma(small), power), log_of(2 * pi) / 2)
    return select_n(is_large, direct, stirling_rest(large))


# With v = (x - a) / (x + a): t - 1 = 2 v / (1 - v) and log t = 2 (v + v^3/3 + v^5/5 + ...), hence
# D = (x - a) v - 2 a v^3 (1/3 + v^2/5 + ...), which nothing cancels in where v is small.
def deviance(a, x, difference):
    """`D = a (t - 1 - log t)`, where `t = x / a`; the difference is `x - a`."""
    is_near = gt(1 / 3, lax.abs(div(difference, add(x, a))))
    v = div(select_n(is_near, lax.full_like(x, 0), difference), add(x, a))
    v2, series = square(v), lax.full_like(x, 0)
    for k in reversed(range(17 if jax.typeof(x).dtype == np.float64 else 8)):
        series = add(mul(series, v2), 2 / (2 * k + 3))
    near = mul(v, sub(difference, mul(mul(a, v2), series)))
    return select_n(is_near, sub(difference, mul(a, log(div(x, a)))), near)


# x^p = e^(p log x), which does not overflow among other factors. But where it grows from zero, its
# derivatives are larger than it is: there it is the power that knows them.
def grows_from_zero(x, p):
    return lax.bitwise_or(eq(x, 0), lax.bitwise_and(gt(1, x), lax.ge(p, lax.full_like(p, 0))))


def gamma_density_over_shape(a, x):
    """`x^(a-1) e^(-x) / Gamma(a+1)`, and its square root, which does not become 0 so early."""
    p = sub(a, 1)
    is_power, is_large = grows_from_zero(x, p), lax.bitwise_and(gt(a, LARGE), gt(x, 1))
    is_direct = lax.bitwise_not(is_large)
    large_a, large_x = where(is_direct, LARGE, a), where(is_direct, LARGE, x)
    rest = add(deviance(large_a, large_x, sub(large_x, large_a)), stirling_rest(large_a))
    large = sub(mul(-0.5, log(mul(2 * pi, large_a))), add(log(large_x), rest))
    rest = neg(add(x, lax.lgamma(add(a, 1))))
    direct = add(mul(p, log(where(is_power, 1, x))), rest)
    root = exp(mul(0.5, select_n(is_large, direct, large)))
    base = where(lax.bitwise_not(is_power), 1, x)
    growing = mul(lax.pow(base, p), exp(rest))
    growing_root = mul(lax.pow(base, mul(0.5, p)), exp(mul(0.5, rest)))
    return select_n(is_power, square(root), growing), select_n(is_power, root, growing_root)


def gamma_density(a, x):
    """`x^(a-1) e^(-x) / Gamma(a)`"""
    return mul(a, gamma_density_over_shape(a, x)[0])


# psi(a) = log a - 1/(2a) + R'(a), and psi(a) = psi(a+10) - sum_(k<10) 1 / (a+k) (5.5.2)
@custom_jvp
def log_less_digamma(a):
    """`log a - psi(a)`, for `a >= 1`"""
    further, power, inverse = shifted_up(a)
    series = lax.full_like(a, 0)
    for k in range(8, 0, -1):
        series = add(mul(series, power), BERNOULLI[2 * k] / (2 * k))
    between = sub(sum_of_inverses(a), lax.log1p(div(SHIFT, a)))
    return add(mul(inverse, add(0.5, mul(inverse, series))), mul(further, between))


def log_less_digamma_slope(a):
    """`1/a - psi_1(a)`"""
    further, power, inverse = shifted_up(a)
    series = lax.full_like(a, 0)
    for k in range(8, 0, -1):
        series = add(mul(series, power), BERNOULLI[2 * k])
    between = sub(sub(div(1, a), inverse), sum_of_inverses(a, 0.0))
    slope = mul(neg(power), add(0.5, mul(inverse, series)))
    return add(slope, mul(further, between))


log_less_digamma.defjvps(lambda a_dot, y, a: mul(log_less_digamma_slope(a), a_dot))


# Each term of the sum is a difference, of which we take the factor b out: 1/(a+k) - 1/(a+b+k) is
# b / ((a+k) (a+b+k)). For a polynomial p at two places, p(x) - p(y) = (x - y) q, and Horner's rule
# finds q as well.
def log_less_digamma_between(a, b):
    """`(log a - psi(a)) - (log(a+b) - psi(a+b))`, for `a >= 1` and `b > 0`"""
    further, power, inverse = shifted_up(a)
    inverse_sum = div(1, add(div(1, inverse), b))
    power_sum, difference = square(inverse_sum), mul(b, mul(inverse, inverse_sum))
    series = quotient = lax.full_like(a, 0)
    for k in range(8, -1, -1):  # the coefficient of degree 0 is that of neither
        quotient = add(mul(quotient, power_sum), series)
        series = add(mul(series, power), BERNOULLI[2 * k] / (2 * k) if k else 0)
    slope = add(0.5, mul(add(inverse, inverse_sum), quotient))
    shifted = div(mul(SHIFT, b), mul(add(a, SHIFT), add(a, b)))
    between = add(mul(b, sum_of_inverses(a, b)), lax.log1p(neg(shifted)))
    return add(mul(difference, slope), mul(further, between))


SHIFT = 10


def shifted_up(a):
    """1 if a is small, and else 0; and `m^-2` and `m^-1`, where m is a, or a + 10 if a is small."""
    further = indicator(gt(LARGE, a), a)
    inverse = div(1, add(a, mul(SHIFT, further)))
    return further, square(inverse), inverse


def sum_of_inverses(a, *shifts):
    """`sum_(k < 10) 1 / (a + k)`, divided by `a + k + b` as well for each shift b"""
    last, shape = jax.typeof(a).ndim, (*jax.typeof(a).shape, SHIFT)
    steps = lax.broadcasted_iota(jax.typeof(a).dtype, shape, last)

    def inverses(a):
        return div(1, add(lax.broadcast_in_dim(a, shape, range(last)), steps))

    factors = [inverses(a), *(inverses(add(a, b)) for b in shifts)]
    return lax.reduce_sum(reduce(mul, factors), (last,))


# psi(a) = psi(a+1) - 1/a, and log a - psi(a) serves where x is near a large a. At x = 0 the limits
# of x^p log x and of all its derivatives are those of -x^(p-e), e small.
def gamma_density_by_shape(y, a, x):
    """The derivative of the density in `a`: `(log x - psi(a)) x^(a-1) e^(-x) / Gamma(a)`"""
    is_zero = eq(x, 0)
    is_near = lax.bitwise_and(gt(a, LARGE), gt(mul(0.5, a), lax.abs(sub(x, a))))
    is_far, is_other = lax.bitwise_not(is_near), lax.bitwise_not(is_zero)
    large_a, large_x = where(is_far, LARGE, a), where(is_far, LARGE, x)
    excess = div(sub(large_x, large_a), large_a)
    near = mul(a, add(lax.log1p(excess), log_less_digamma(large_a)))
    positive = where(is_zero, 1, x)
    far = add(1, mul(a, sub(log(positive), lax.digamma(add(a, 1)))))
    root = gamma_density_over_shape(a, positive)[1]
    inside = mul(root, mul(root, select_n(is_near, far, near)))
    limit = neg(lax.pow(where(is_other, 1, x), sub(a, 1 + 2**-10)))
    return select_n(is_zero, inside, limit)


# What the products and 1-x have lost by rounding is known exactly (Dekker 1971).
def beta_excess(a, b, x):
    """`(a + b) x - a = b x - a (1 - x)`"""
    rest = sub(1, x)
    loss = mul(a, sub(sub(1, rest), x))
    loss = sub(sub(product_loss(b, x), product_loss(a, rest)), loss)
    return add(sub(mul(b, x), mul(a, rest)), lax.stop_gradient(loss))


def product_loss(x, y):
    """The exact product of two numbers, less the rounded one."""
    (x_high, x_low), (y_high, y_low) = in_halves(x), in_halves(y)
    high = add(sub(mul(x_high, y_high), mul(x, y)), add(mul(x_high, y_low), mul(x_low, y_high)))
    return add(high, mul(x_low, y_low))


def in_halves(x):
    scaled = mul(2**27 + 1 if jax.typeof(x).dtype == np.float64 else 2**12 + 1, x)
    high = sub(scaled, sub(scaled, x))
    return high, sub(x, high)


# In units in which the means are a and b, x and 1-x are u = n x and w = n (1-x) for n = a + b, and
#
#     log (Gamma(n) / (Gamma(a) Gamma(b))) = a log(n/a) + b log(n/b) + log(a b / (2 pi n)) / 2
#                                            + R(n) - R(a) - R(b)
def beta_density(a, b, x):
    """`x^(a-1) (1-x)^(b-1) Gamma(a+b) / (Gamma(a) Gamma(b))`"""
    n = add(a, b)
    u, w = mul(n, x), mul(n, sub(1, x))
    is_large = reduce(lax.bitwise_and, [gt(a, LARGE), gt(b, LARGE), gt(u, 1), gt(w, 1)])
    is_other = lax.bitwise_not(is_large)
    large_a, large_b = where(is_other, LARGE, a), where(is_other, LARGE, b)
    inside, large_n = where(is_other, 0.5, x), add(large_a, large_b)
    mean, other_mean = mul(large_n, inside), mul(large_n, sub(1, inside))
    excess = beta_excess(large_a, large_b, inside)
    deviances = add(deviance(large_a, mean, excess), deviance(large_b, other_mean, neg(excess)))
    large = neg(add(deviances, add(log(inside), lax.log1p(neg(inside)))))
    left, left_factor = beta_side(a, b, u, lambda mask: log(where(mask, 1, x)))
    right, right_factor = beta_side(b, a, w, lambda mask: lax.log1p(neg(where(mask, 0, x))))
    scale = mul(0.5, sub(add(log(a), log(b)), log(mul(2 * pi, n))))
    rest = sub(log_gamma_rest(n), add(log_gamma_rest(a), log_gamma_rest(b)))
    logarithm = add(select_n(is_large, add(left, right), large), add(scale, rest))
    return mul(mul(left_factor, right_factor), square(exp(mul(0.5, logarithm))))


def beta_side(a, b, u, log_x):
    """The logarithm of a first factor of `x^(a-1) (n/a)^a`, and a second one."""
    p, is_power, is_large = sub(a, 1), grows_from_zero(u, sub(a, 1)), gt(a, LARGE)
    factor = lax.pow(where(lax.bitwise_not(is_power), 1, u), p)
    scale = sub(log(add(a, b)), mul(a, log(a)))
    small = add(mul(p, log(where(is_power, 1, u))), scale)
    large_a = where(lax.bitwise_not(is_large), LARGE, a)
    large = add(mul(p, log_x(is_power)), mul(a, lax.log1p(div(b, large_a))))
    is_direct = lax.bitwise_and(is_large, lax.bitwise_not(is_power))
    return select_n(is_direct, small, large), factor
