"""The derivatives of the special functions: gamma, beta, zeta, Bessel and error functions.

    f(x) = integral of g up to x   =>   f'(x) = g(x)

where the function is an integral, and a recurrence where it is not: `psi_m' = psi_(m+1)`,
`I_0' = I_1`.  The formulas are those of the NIST Digital Library of Mathematical Functions, and
the numbers of its sections stand beside them.  Each formula is made of primitives that have rules
themselves, so that the next derivative follows from it.

Read next: `linalg.py`, the solvers and the factorizations.
"""

from collections.abc import Callable
from math import factorial, pi
from math import sqrt as sqrt_of
from typing import Any

import numpy as np
from jax import lax
from jax.lax import exp, log, neg, select_n, square

from functrans.derivatives.common import add, div, eq, gt, indicator, mul, named, number, sub
from functrans.rules import checks, elementwise, general

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


# ---- the error function (DLMF 7.2) ---------------------------------------------------------------

elementwise(lax.erf_p, lambda y, x: mul(2 / sqrt_of(pi), exp(neg(square(x)))))
elementwise(lax.erfc_p, lambda y, x: mul(-2 / sqrt_of(pi), exp(neg(square(x)))))
elementwise(lax.erf_inv_p, lambda y, x: mul(sqrt_of(pi) / 2, exp(square(y))))

# ---- the gamma function and its logarithmic derivatives (5.2, 5.15) ------------------------------

elementwise(lax.lgamma_p, lambda y, x: lax.digamma(x))
elementwise(lax.digamma_p, lambda y, x: lax.polygamma(lax.full_like(x, 1), x))
elementwise(
    lax.polygamma_p,
    no_formula(lax.polygamma_p, "the order m", "the order is a whole number"),
    lambda y, m, x: lax.polygamma(add(m, 1), x),
)

# ---- the Hurwitz zeta function, zeta(s, q) = sum_(n >= 0) (n + q)^(-s) (25.11) -------------------


def bernoulli_numbers(count: int) -> list[float]:
    """B_0, B_1, ..., from sum_(j <= n) binomial(n + 1, j) B_j = 0."""
    numbers = [1.0]
    for n in range(1, count):
        row = [factorial(n + 1) / (factorial(j) * factorial(n + 1 - j)) for j in range(n)]
        numbers.append(-sum(b * c for b, c in zip(numbers, row, strict=True)) / (n + 1))
    return numbers


# The formula of Euler and Maclaurin (25.11.28), differentiated in s: with a = q + N,
#
#     zeta(s, q) = sum_(n < N) (n + q)^(-s)  +  a^(1-s) / (s-1)  +  a^(-s) / 2
#                  +  sum_k B_2k / (2k)!  s (s+1) ... (s+2k-2)  a^(1-s-2k)
#
# and the logarithm of each term but the first has the derivative -log a + sum_j 1 / (s+j).
# With N = K = 10 the rest is below the rounding errors of double precision.
STEPS = 10
BERNOULLI = [b / factorial(i) for i, b in enumerate(bernoulli_numbers(2 * STEPS + 1))]


def zeta_by_exponent(y, s, q):
    a = add(q, STEPS)
    minus_s, log_a = neg(s), log(a)
    total = zeros = lax.full_like(y, 0)
    for n in range(STEPS):
        base = add(q, n)
        total = sub(total, mul(log(base), lax.pow(base, minus_s)))
    power = lax.pow(a, minus_s)
    pole = sub(s, 1)
    integral = div(mul(power, a), pole)
    total = sub(total, mul(integral, add(log_a, div(1, pole))))
    total = sub(total, mul(mul(0.5, power), log_a))
    slope, term = sub(zeros, log_a), power
    for j in range(2 * STEPS - 1):  # s (s+1) ... (s+j) a^(-s-j-1)
        term = div(mul(term, add(s, j)), a)
        slope = add(slope, div(1, add(s, j)))
        if j % 2 == 0:
            total = add(total, mul(mul(BERNOULLI[j + 2], term), slope))
    return total


elementwise(
    lax.zeta_p,
    zeta_by_exponent,
    lambda y, s, q: neg(mul(s, lax.zeta(add(s, 1), q))),
)

# ---- incomplete gamma and beta functions: the distributions of two densities (8.2, 8.17) ---------


# x^p = e^(p log x), which does not overflow among other factors. Only at x = 0 it is the power that
# knows the value and the derivatives.
def power(x, p):
    """The logarithm of a first factor of `x^p`, and a second factor; one of the two is constant."""
    is_zero = eq(x, 0)
    one = lax.full_like(x, 1)
    return mul(p, log(select_n(is_zero, x, one))), lax.pow(select_n(is_zero, one, x), p)


def gamma_density(a, x):
    """`x^(a-1) e^(-x) / Gamma(a)`"""
    logarithm, factor = power(x, sub(a, 1))
    return mul(factor, exp(sub(sub(logarithm, x), lax.lgamma(a))))


def beta_density(a, b, x):
    """`x^(a-1) (1-x)^(b-1) Gamma(a+b) / (Gamma(a) Gamma(b))`"""
    left, left_factor = power(x, sub(a, 1))
    right, right_factor = power(sub(1, x), sub(b, 1))
    scale = sub(lax.lgamma(add(a, b)), add(lax.lgamma(a), lax.lgamma(b)))
    return mul(mul(left_factor, right_factor), exp(add(add(left, right), scale)))


# The density in x, differentiated in a: where it is 0, so is this, though log 0 is infinite.
def gamma_density_by_shape(y, a, x):
    density = gamma_density(a, x)
    logarithm = log(select_n(eq(density, 0), x, lax.full_like(x, 1)))
    return mul(density, sub(logarithm, lax.digamma(a)))


elementwise(
    lax.igamma_p, lambda y, a, x: lax.igamma_grad_a(a, x), lambda y, a, x: gamma_density(a, x)
)
elementwise(
    lax.igammac_p,
    lambda y, a, x: neg(lax.igamma_grad_a(a, x)),
    lambda y, a, x: neg(gamma_density(a, x)),
)
elementwise(
    lax.igamma_grad_a_p,
    no_formula(
        lax.igamma_grad_a_p,
        "the shape a",
        "JAX has no primitive for it (it is a second derivative)",
    ),
    gamma_density_by_shape,
)
elementwise(
    lax.regularized_incomplete_beta_p,
    no_formula(lax.regularized_incomplete_beta_p, "a", "JAX has no primitive for it"),
    no_formula(lax.regularized_incomplete_beta_p, "b", "JAX has no primitive for it"),
    lambda y, a, b, x: beta_density(a, b, x),
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

# ---- the modified Bessel functions, scaled: e^(-|x|) I_0(x) and e^(-|x|) I_1(x) (10.29) ----------


# At 0 from the right, as for `abs`, so that e^|x| times them has the derivative of I_0 and I_1.
def slope_of_abs(x):
    return sub(1, mul(2, indicator(lax.lt(x, lax.full_like(x, 0)), x)))


# I_1(x) / x = sum_k (x/2)^(2k) / (2 k! (k+1)!) (10.25.2). Within |x| < 1 ten terms are exact, and
# so are their derivatives, in which the difference of I_1' and I_1 / x would cancel.
def bessel_ratio(x):
    """`e^(-|x|) I_1(x) / x`"""
    is_small = gt(1, lax.abs(x))
    small = select_n(is_small, lax.full_like(x, 0), x)
    large = select_n(is_small, x, lax.full_like(x, 1))
    series = lax.full_like(x, 0)
    for k in reversed(range(10)):
        term = 0.5 / (4**k * factorial(k) * factorial(k + 1))
        series = add(mul(series, square(small)), term)
    return select_n(
        is_small, div(lax.bessel_i1e(large), large), mul(exp(neg(lax.abs(small))), series)
    )


elementwise(lax.bessel_i0e_p, lambda y, x: sub(lax.bessel_i1e(x), mul(slope_of_abs(x), y)))
elementwise(
    lax.bessel_i1e_p,
    lambda y, x: sub(sub(lax.bessel_i0e(x), bessel_ratio(x)), mul(slope_of_abs(x), y)),
)
