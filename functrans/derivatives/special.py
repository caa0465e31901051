"""The derivatives of the special functions: gamma, beta, zeta, Bessel and error functions.

    f(x) = integral of g up to x   =>   f'(x) = g(x)

where the function is an integral, and a recurrence where it is not: `psi_m' = psi_(m+1)`,
`I_0' = I_1`.  The formulas are those of the NIST Digital Library of Mathematical Functions, and
the numbers of its sections stand beside them.  Each formula is made of primitives that have rules
themselves, so that the next derivative follows from it.

Read next: `linalg.py`, the solvers and the factorizations.
"""

from collections.abc import Callable
from functools import partial, reduce
from math import comb, factorial, nan, pi
from math import log as log_of
from math import sin as sin_of
from math import sqrt as sqrt_of
from typing import Any

import jax
import numpy as np
from jax import custom_jvp, lax
from jax.lax import exp, log, neg, select_n, square

from functrans.derivatives.common import add, along, div, eq, gt, indicator, mul, named, number, sub
from functrans.rules import broadcast_to, checks, elementwise, general

# ---- what has no derivative in terms of primitives -----------------------------------------------


def no_formula(primitive: Any, argument: str, reason: str) -> Callable:
    """A partial derivative that is an error, on the line where it is asked for."""

    def partial(*_):
        raise NotImplementedError(
            f"the derivative of '{primitive}' with respect to {argument}, asked for at "
            f"{checks.user_line()}: {reason}. Hold {argument} constant with "
            "jax.lax.stop_gradient, or give your function a jax.custom_jvp rule."
        )

    return partial


def where(mask, value, x):
    """A number where the mask is true, and `x` elsewhere."""
    return select_n(mask, x, lax.full_like(x, value))


def with_full_operands(partial: Callable) -> Callable:
    """A partial derivative whose arguments all have the shape of the answer."""
    return lambda y, *xs: partial(y, *(broadcast_to(x, jax.typeof(y)) for x in xs))


# ---- the error function (DLMF 7.2) ---------------------------------------------------------------


# As a square it becomes too small for floating point only where its derivatives are that, too.
def bell(x):
    """`e^(-x^2)`"""
    return square(exp(mul(-0.5, square(x))))


# y' = sqrt(pi)/2 e^(y^2), in which a relative error of y counts 2 y^2 times, up to 70 times at the
# ends. A step of Newton's method finds by how much y is off. It contributes a factor near 1, which
# mends errors of rounding, and so has no derivative.
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

# ---- the Hurwitz zeta function, zeta(s, q) = sum_(n >= 0) (n + q)^(-s) (25.11) -------------------


def bernoulli_numbers(count: int) -> list[float]:
    """B_0, B_1, ..., from sum_(j <= n) binomial(n + 1, j) B_j = 0."""
    numbers = [1.0]
    for n in range(1, count):
        numbers.append(-sum(comb(n + 1, j) * b for j, b in enumerate(numbers)) / (n + 1))
    return numbers


# The formula of Euler and Maclaurin (25.11.28): with a = q + N,
#
#     zeta(s, q) = sum_(n < N) (n + q)^(-s)  +  a^(1-s) / (s-1)  +  a^(-s) / 2
#                  +  sum_k B_2k / (2k)!  s (s+1) ... (s+2k-2)  a^(1-s-2k)
#
# With N = K = 10 the rest is below the rounding errors of double precision; with N = 0 and K = 3 it
# is that for large q.
STEPS = 10
BERNOULLI = bernoulli_numbers(2 * STEPS + 1)
FACTORS = [b / factorial(i) for i, b in enumerate(BERNOULLI)]


# There the primitive is 0 where a^(-s) is, though a^(1-s) is not.
def is_far_out(q):
    return gt(q, 1e4 if jax.typeof(q).dtype == np.float64 else 100)


@custom_jvp
def zeta(s, q):
    """`zeta(s, q)`, whose derivatives JAX knows as well; nan where that of XLA is wrong."""
    is_large = is_far_out(q)
    large = where(lax.bitwise_not(is_large), 1, q)
    term = div(1, large)
    total = add(div(1, sub(s, 1)), mul(0.5, term))
    for j in range(5):  # s (s+1) ... (s+j) / q^(j+2)
        term = mul(term, div(add(s, j), large))
        if j % 2 == 0:
            total = add(total, mul(FACTORS[j + 2], term))
    total = mul(lax.pow(large, sub(1, s)), total)
    usual = lax.zeta(s, where(is_large, 1, q))
    return where(gt(-4, q), nan, select_n(is_large, usual, total))


@partial(zeta.defjvp, symbolic_zeros=True)
def zeta_jvp(primals, tangents):
    y = zeta(*primals)
    slopes = (partial(slope, y, *primals) for slope in (zeta_by_exponent, zeta_by_shift))
    return y, along(tangents, *slopes)


def zeta_by_shift(y, s, q):
    return neg(mul(s, zeta(add(s, 1), q)))


# Differentiated in s: with s = 1 + p, the terms after the first sum are a^(-p) times 1/p + 1/(2a) +
# ..., whose parts have the logarithmic derivatives sum_j 1 / (s+j). Near the pole, a^(-p) / p is
# 1/p - log(a) (e^z - 1) / z with z = -p log a: of these only the second depends on q.
def zeta_by_exponent(y, s, q):
    is_large, p, minus_s = is_far_out(q), sub(s, 1), neg(s)
    a = select_n(is_large, add(q, STEPS), q)
    total = zeros = lax.full_like(y, 0)
    for n in range(STEPS):
        log_base = log(where(is_large, 1, add(q, n)))
        total = sub(total, mul(log_base, exp(mul(minus_s, log_base))))
    log_a, term = log(a), div(1, a)
    slope = sub(zeros, log_a)
    rest = mul(mul(0.5, term), slope)
    for j in range(2 * STEPS - 1):  # s (s+1) ... (s+j) / a^(j+2)
        term = div(mul(term, add(s, j)), a)
        slope = add(slope, div(1, add(s, j)))
        if j % 2 == 0:
            rest = add(rest, mul(mul(FACTORS[j + 2], term), slope))
    z = neg(mul(p, log_a))
    power = exp(z)
    is_near, series = gt(1, lax.abs(z)), zeros
    z = where(lax.bitwise_not(is_near), 0, z)
    for k in reversed(range(18)):
        series = add(mul(series, z), (k + 1) / factorial(k + 2))
    near = add(sub(mul(square(log_a), series), square(div(1, p))), mul(power, rest))
    far = mul(power, sub(rest, div(add(log_a, div(1, p)), p)))
    return add(total, select_n(is_near, far, near))


elementwise(lax.zeta_p, with_full_operands(zeta_by_exponent), with_full_operands(zeta_by_shift))

# ---- the gamma function and its logarithmic derivatives (5.2, 5.15) ------------------------------
# psi_m(x) = (-1)^(m+1) m! zeta(m+1, x), from which follow the next derivatives.


# Left of zero, psi_1(x) = (pi / sin(pi x))^2 - psi_1(1-x) (5.15.6). The square is the sum of all
# (r + n)^(-2), where r is the distance to the nearest integer. Next to an integer, (5.7.3) gives it
# as r^(-2) + 2 zeta(2) + 6 zeta(4) r^2 + 10 zeta(6) r^4 + ..., whose derivatives are infinite with
# one sign where they are; elsewhere it is made of the distance to the nearest half, which is exact.
def trigamma(x):
    """`psi_1(x)`"""
    is_left = lax.lt(x, lax.full_like(x, 0))
    side = sub(1, mul(2, indicator(is_left, x)))
    regular = mul(side, zeta(lax.full_like(x, 2), select_n(is_left, x, sub(1, x))))
    r = where(lax.bitwise_not(is_left), 0.5, sub(x, lax.round(x)))
    is_near = gt(0.125, lax.abs(r))
    to_half = where(is_near, 0, sub(mul(0.5, lax.sign(r)), r))
    r = where(lax.bitwise_not(is_near), 1, r)
    series = lax.full_like(x, 0)
    for n in range(9, 0, -1):  # zeta(2n) = (2 pi)^(2n) |B_2n| / (2 (2n)!) (25.6.2)
        series = add(
            mul(series, square(r)), (2 * n - 1) * (2 * pi) ** (2 * n) * abs(FACTORS[2 * n])
        )
    near = add(lax.integer_pow(r, -2), series)
    periodic = select_n(is_near, div(pi**2, square(lax.cos(mul(pi, to_half)))), near)
    return add(regular, mul(indicator(is_left, x), periodic))


# In JAX the derivative of digamma is wrong left of zero.
@custom_jvp
def digamma(x):
    return lax.digamma(x)


digamma.defjvps(lambda x_dot, y, x: mul(trigamma(x), x_dot))


# The terms (n + x)^(-m-1) with n + x < 0 are those of zeta at 1-x without the later ones, up to
# a sign; all others are those of zeta between 0 and 1.
def polygamma(m, x):
    """`psi_m(x)`"""
    s, is_left = add(m, 1), lax.lt(x, lax.full_like(x, 0))
    one = lax.full_like(x, 1)
    sign = sub(1, mul(4, sub(mul(0.5, m), lax.floor(mul(0.5, m)))))  # (-1)^m
    right = zeta(s, select_n(is_left, x, sub(x, lax.floor(x))))
    nearer = zeta(s, select_n(is_left, one, sub(lax.ceil(x), x)))
    left = sub(nearer, zeta(s, select_n(is_left, one, sub(1, x))))
    total = sub(right, mul(sign, mul(indicator(is_left, x), left)))
    scale = div(lax.polygamma(m, one), zeta(s, one))  # (-1)^(m+1) m!
    return mul(scale, total)


elementwise(lax.lgamma_p, lambda y, x: digamma(x))
elementwise(lax.digamma_p, lambda y, x: trigamma(x))
elementwise(
    lax.polygamma_p,
    no_formula(lax.polygamma_p, "the order m", "the order is a whole number"),
    with_full_operands(lambda y, m, x: polygamma(add(m, 1), x)),
)

# ---- incomplete gamma and beta functions: the distributions of two densities (8.2, 8.17) ---------
# In the logarithm of a density with large parameters, huge terms cancel. What is left of them is
# known in closed form:
#
#     log Gamma(a) = (a - 1/2) log a - a + log sqrt(2 pi) + R(a)              (5.11.1)
#     a log x - x = a log a - a - D,    D = a (t - 1 - log t),    t = x/a
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


# psi(a) = psi(a+1) - 1/a, and psi(a) = log a - 1/(2a) + R'(a), which serves where x is near a large
# a. At x = 0 the limits of x^p log x and of all its derivatives are those of -x^(p-e), e small.
def gamma_density_by_shape(y, a, x):
    """The derivative of the density in `a`: `(log x - psi(a)) x^(a-1) e^(-x) / Gamma(a)`"""
    is_zero = eq(x, 0)
    is_near = lax.bitwise_and(gt(a, LARGE), gt(mul(0.5, a), lax.abs(sub(x, a))))
    is_far, is_other = lax.bitwise_not(is_near), lax.bitwise_not(is_zero)
    large_a, large_x = where(is_far, LARGE, a), where(is_far, LARGE, x)
    inverse, slope = div(1, large_a), lax.full_like(a, 0)
    for k in range(8, 0, -1):
        slope = add(mul(slope, square(inverse)), BERNOULLI[2 * k] / (2 * k))
    slope = mul(inverse, add(0.5, mul(inverse, slope)))
    near = mul(a, add(lax.log1p(mul(inverse, sub(large_x, large_a))), slope))
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


elementwise(
    lax.igamma_p,
    lambda y, a, x: lax.igamma_grad_a(a, x),
    with_full_operands(lambda y, a, x: gamma_density(a, x)),
)
elementwise(
    lax.igammac_p,
    lambda y, a, x: neg(lax.igamma_grad_a(a, x)),
    with_full_operands(lambda y, a, x: neg(gamma_density(a, x))),
)
elementwise(
    lax.igamma_grad_a_p,
    no_formula(
        lax.igamma_grad_a_p,
        "the shape a",
        "JAX has no primitive for it (it is a second derivative)",
    ),
    with_full_operands(gamma_density_by_shape),
)
elementwise(
    lax.regularized_incomplete_beta_p,
    no_formula(lax.regularized_incomplete_beta_p, "a", "JAX has no primitive for it"),
    no_formula(lax.regularized_incomplete_beta_p, "b", "JAX has no primitive for it"),
    with_full_operands(lambda y, a, b, x: beta_density(a, b, x)),
)


# A sample x of the gamma distribution is a function of its shape a: u = P(a, x) stays as it was
# drawn. That derivative, -P_a / P_x, is `random_gamma_grad` (Figurnov, Mohamed, Mnih 2018). For
# x -> 0 it is P = x^a / Gamma(a+1), hence a log x = log u + log Gamma(a+1), whose derivative is
# log x + a d(log x) = psi(a+1): that serves where x itself is 0 in floating point, and its
# logarithm is not.
def random_gamma_jvp(primals, tangents, *, log_space):
    (key, a), a_dot = primals, tangents[1]
    y = random_gamma_p.bind(key, a, log_space=log_space)
    grad: Any = lax.random_gamma_grad
    if not log_space:
        return y, mul(a_dot, grad(a, y))
    x = exp(y)
    is_tiny = lax.lt(x, number(float(np.finfo(np.float32).eps) ** 2, x))
    x = select_n(is_tiny, x, lax.full_like(x, 1))
    limit = div(sub(lax.digamma(add(a, 1)), y), a)
    return y, mul(a_dot, select_n(is_tiny, div(grad(a, x), x), limit))


random_gamma_p = named("random_gamma")
general(random_gamma_p, random_gamma_jvp)

# ---- the modified Bessel functions, scaled: e^(-|x|) I_0(x) and e^(-|x|) I_1(x) (10.32, 10.40) ---


# At 0 from the right, as for `abs`, so that e^|x| times them has the derivative of I_0 and I_1.
def slope_of_abs(x):
    return sub(1, mul(2, indicator(lax.lt(x, lax.full_like(x, 0)), x)))


# For x >= 0 it is e^(-x) I_m(x) = 1/pi int_0^pi cos(m t) e^(-c x) dt with c = 1 - cos t. The
# derivative has another factor -c, and so have the next ones: differences of I_0 and I_1 would
# cancel more and more. The midpoint rule of N points is exact up to I_(2N)(x), and for large x
# there is the asymptotic series
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
