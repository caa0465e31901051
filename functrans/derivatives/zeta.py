"""The derivatives of the zeta function, and of the gamma function's logarithm.

    zeta(s, q) = sum_(n >= 0) (n + q)^(-s),        psi_m(x) = (-1)^(m+1) m! zeta(m+1, x)

`lgamma`, `digamma` and `polygamma` are a chain, `psi_m' = psi_(m+1)`.

Read next: `densities.py`, the gamma and the beta density.
"""

from functools import partial
from math import comb, factorial, nan, pi

import jax
import numpy as np
from jax import custom_jvp, lax
from jax.lax import exp, log, neg, select_n, square

from functrans.derivatives.common import (
    add,
    along,
    div,
    gt,
    indicator,
    mul,
    sub,
    where,
    with_full_operands,
)
from functrans.rules import checks, elementwise

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


# Between the whole orders psi_m has no value, since (-1)^m has none, and so no derivative in m at
# them: functions that agree there differ in it. At m = 1, x = 1 the derivative of -cos(pi m) m!
# zeta(m+1, x) is -0.242, that of the balanced function of Espinosa and Moll (2004) is 0.465.
def by_order(*_):
    raise NotImplementedError(
        "the derivative of 'polygamma' with respect to the order m, asked for at "
        f"{checks.user_line()}: polygamma is a number for whole orders alone, and functions that "
        "agree with it there have different derivatives. Hold m constant with "
        "jax.lax.stop_gradient, or give your function a jax.custom_jvp rule."
    )


elementwise(lax.polygamma_p, by_order, with_full_operands(lambda y, m, x: polygamma(add(m, 1), x)))
