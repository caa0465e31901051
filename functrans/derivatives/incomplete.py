"""The derivatives of the incomplete gamma and beta functions: distributions of two densities.

    P(a, x) = int_0^x g(t) dt        =>        P_x = g(x),        P_a = int_0^x g_a(t) dt

Read next: `linalg.py`, the solvers and the factorizations.
"""

from functools import partial
from math import factorial
from typing import Any

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
    named,
    number,
    sub,
    where,
    with_full_operands,
)
from functrans.derivatives.densities import (
    beta_density,
    beta_excess,
    gamma_density,
    gamma_density_by_shape,
    log_less_digamma,
    log_less_digamma_between,
    log_less_digamma_slope,
)
from functrans.rules import elementwise, general

# ---- integrals -----------------------------------------------------------------------------------
# On the side of x that is smaller, the distribution is D int_0^oo e^E(s) ds for D = x g(x), where
# s = |log(t/x)|, or that of the odds t/(1-t), and D = x (1-x) g(x). E is concave and falls from
# E(0) = 0, and the derivatives of log g in the parameters are known functions of s: no two numbers
# of opposite sign cancel. Where E = -CUT the integral ends, by Newton's method, which comes from
# the right and does not pass. Up to there the rule of Gauss and Legendre (3.5.v) serves, of so many
# points that its error, rho^(-2 POINTS) for the largest ellipse with foci at both ends in which E
# is regular and Re E below 0 (Trefethen 2013, Theorem 19.3), is that of rounding. The cut is no
# function of the parameters: the integral does not depend on it.
#
# A parameter below 1 would let e^E fall slowly. It becomes larger by 1 (8.8.5, 8.17.20, 8.17.21):
#
#     P(a, x) = P(a+1, x) + D / a,        I(a, b) = I(a+1, b) + D / a = I(a, b+1) - D / b
#
# of which the second is not made worse by cancellation where it is needed, for (a+b) (1-x) < 1.
CUT, POINTS, STEPS = {4: 25.0, 8: 80.0}, {4: 32, 8: 80}, 6


def integrals(exponent, start, *parameters):
    """`int_0^oo e^E w ds` for each weight w; `exponent(s, ...)` gives E, dE/ds and the weights."""
    dtype = jax.typeof(start).dtype
    width, end = max(dtype.itemsize, 4), lax.stop_gradient(start)
    frozen = [lax.stop_gradient(p) for p in parameters]

    def newton(_, end):
        value, slope, *_ = exponent(end, *frozen)
        return sub(end, div(add(value, CUT[width]), slope))

    end = lax.fori_loop(0, STEPS, newton, end)
    points, weights = np.polynomial.legendre.leggauss(POINTS[width])
    shape, last = (*jax.typeof(start).shape, POINTS[width]), jax.typeof(start).ndim

    def along_points(x):
        return lax.broadcast_in_dim(x, shape, range(last))

    def of_each(numbers):
        return lax.broadcast_in_dim(numbers.astype(dtype), shape, (last,))

    end, parameters = along_points(end), map(along_points, parameters)
    value, _, *factors = exponent(mul(end, of_each((points + 1) / 2)), *parameters)
    mass = mul(mul(exp(value), end), of_each(weights / 2))
    return [lax.reduce_sum(mass if w is None else mul(mass, w), (last,)) for w in (None, *factors)]


def log_ratio(x, a, excess):
    """`log(x / a)`; the excess is `x - a`."""
    is_near = gt(0.5, lax.abs(div(excess, a)))
    near = lax.log1p(where(lax.bitwise_not(is_near), 0, div(excess, a)))
    return select_n(is_near, sub(log(x), log(a)), near)


# t = x e^-s on the left: log g(t) t = a log t - t - log Gamma(a) falls by E = -a s - x (e^-s - 1);
# on the right the same with -s. In E the terms a s and x s would cancel.
def gamma_exponent(s, a, x, side):
    moved = neg(mul(side, s))
    grown, excess = mul(x, lax.expm1(moved)), sub(x, a)
    slope = mul(side, add(grown, excess))
    return neg(add(mul(excess, moved), mul(x, exp_rest(moved)))), slope, s, square(s)


def exp_rest(x):
    """`e^x - 1 - x`"""
    is_near = gt(0.5, lax.abs(x))
    near, series = where(lax.bitwise_not(is_near), 0, x), lax.full_like(x, 0)
    for k in reversed(range(2, 16 if jax.typeof(x).dtype == np.float64 else 10)):
        series = add(mul(series, near), 1 / factorial(k))
    return select_n(is_near, sub(lax.expm1(x), x), mul(square(near), series))


# D = x^a e^-x / Gamma(a), and its logarithm has the derivatives log x - psi(a) and a/x - 1.
@custom_jvp
def gamma_scale(a, x):
    return mul(x, gamma_density(a, x))


@partial(gamma_scale.defjvp, symbolic_zeros=True)
def gamma_scale_jvp(primals, tangents):
    a, x = primals
    scale = gamma_scale(a, x)

    def by_shape():
        return mul(scale, add(gamma_mean(a, x), div(1, a)))

    return scale, along(tangents, by_shape, lambda: mul(scale, sub(div(a, x), 1)))


def gamma_mean(a, x):
    """`log x - psi(a+1)`"""
    above = add(a, 1)
    return add(log_ratio(x, above, sub(sub(x, a), 1)), log_less_digamma(above))


def gamma_by_shape_twice(y, a, x):
    """The second derivative of `P(a, x)` in a: `int g ((log t - psi(a))^2 - psi_1(a)) dt`"""
    is_inside = lax.bitwise_and(lax.bitwise_and(gt(x, 0), gt(a, 0)), gt(np.inf, x))
    is_outside = lax.bitwise_not(is_inside)
    a, x = where(is_outside, 1, a), where(is_outside, 1, x)
    is_left = lax.le(x, a)
    rises = lax.bitwise_and(gt(1, a), lax.bitwise_or(is_left, gt(1, x)))
    scale, step = gamma_scale(a, x), indicator(rises, a)
    mean, above = gamma_mean(a, x), add(a, 1)
    variance = sub(div(1, above), log_less_digamma_slope(above))  # psi_1(a+1)
    total = mul(mul(step, div(scale, a)), sub(square(mean), variance))
    # psi(a) = psi(a+1) - rest and psi_1(a) = psi_1(a+1) + rest^2, where a stays
    rest = div(sub(1, step), a)
    spread = sub(mul(mean, add(mean, mul(2, rest))), variance)
    mean = add(mean, rest)
    scale = select_n(rises, scale, mul(scale, div(x, a)))
    a = add(a, step)
    is_left = lax.le(x, a)
    side = sub(mul(2, indicator(is_left, x)), 1)
    cut = CUT[max(jax.typeof(x).dtype.itemsize, 4)]
    by_curve = select_n(is_left, lax.sqrt(div(2 * cut, x)), div(add(x, cut), a))
    start = lax.min(by_curve, div(cut, lax.abs(sub(x, a))))
    zeroth, first, second = integrals(gamma_exponent, start, a, x, side)
    middle = mul(mul(2, mul(side, mean)), first)
    found = add(sub(mul(zeroth, spread), middle), second)
    total = add(total, mul(mul(side, scale), found))
    return select_n(is_inside, mul(0, lax.stop_gradient(y)), total)


# t = x e^-s / (1 - x + x e^-s): with L = log(1 - x + x e^-s) it is log(t/x) = -s - L, and
# log((1-t)/(1-x)) = -L.
def beta_exponent(s, a, b, x):
    n, change = add(a, b), mul(x, lax.expm1(neg(s)))
    log_sum = lax.log1p(change)
    share = div(add(x, change), add(1, change))  # t
    value = neg(add(mul(a, s), mul(n, log_sum)))
    return value, sub(mul(n, share), a), add(s, log_sum), neg(log_sum)


# D = x^a (1-x)^b / B(a, b)
@custom_jvp
def beta_scale(a, b, x):
    return mul(mul(x, sub(1, x)), beta_density(a, b, x))


@partial(beta_scale.defjvp, symbolic_zeros=True)
def beta_scale_jvp(primals, tangents):
    a, b, x = primals
    scale = beta_scale(a, b, x)
    of_a, of_b = beta_means(a, b, x)
    inverse = div(1, add(a, b))

    def by_x():
        return neg(mul(scale, div(beta_excess(a, b, x), mul(x, sub(1, x)))))

    slopes = (
        lambda: mul(scale, add(of_a, sub(div(1, a), inverse))),
        lambda: mul(scale, add(of_b, sub(div(1, b), inverse))),
        by_x,
    )
    return scale, along(tangents, *slopes)


def beta_means(a, b, x):
    """`log x - psi(a+1) + psi(a+b+1)`, and the same of b and 1-x."""
    rest, excess, above = sub(1, x), beta_excess(a, b, x), add(add(a, b), 1)

    def mean(shape, other, x, excess):
        ratio = log_ratio(mul(above, x), add(shape, 1), excess)
        return add(ratio, log_less_digamma_between(add(shape, 1), other))

    return mean(a, b, x, sub(excess, rest)), mean(b, a, rest, neg(add(excess, x)))


def beta_by_shapes(y, a, b, x):
    """The derivatives of `I_x(a, b)` in a, and in b."""
    is_valid = lax.bitwise_and(gt(a, 0), gt(b, 0))
    is_inside = lax.bitwise_and(is_valid, lax.bitwise_and(gt(x, 0), gt(1, x)))
    is_outside = lax.bitwise_not(is_inside)
    a, b, x = where(is_outside, 1, a), where(is_outside, 1, b), where(is_outside, 0.5, x)
    n, rest, excess = add(a, b), sub(1, x), beta_excess(a, b, x)
    is_left = lax.le(excess, lax.full_like(x, 0))
    a_rises = lax.bitwise_or(is_left, gt(1, mul(n, x)))
    b_rises = lax.bitwise_or(lax.bitwise_not(is_left), gt(1, mul(n, rest)))
    a_rises = lax.bitwise_and(gt(1, a), a_rises)
    b_rises = lax.bitwise_and(gt(1, b), b_rises)
    a_step, b_step = indicator(a_rises, x), indicator(b_rises, x)
    a_stays, b_stays = sub(1, a_step), sub(1, b_step)
    scale, inverse = beta_scale(a, b, x), div(1, n)
    of_a, of_b = beta_means(a, b, x)
    # the density where a becomes larger
    part = mul(a_step, div(scale, a))
    by_a = mul(part, sub(of_a, inverse))
    by_b = mul(part, add(of_b, sub(div(1, b), inverse)))
    scale = select_n(a_rises, scale, mul(scale, div(mul(n, x), a)))
    # and where b does
    part = mul(b_step, div(scale, b))
    by_a = sub(by_a, mul(part, add(of_a, mul(a_stays, sub(div(1, a), inverse)))))
    by_b = sub(by_b, mul(part, sub(of_b, mul(a_stays, inverse))))
    scale = select_n(b_rises, scale, mul(scale, div(mul(add(n, a_step), rest), b)))
    # what is left is the smaller side of the distribution of the larger parameters
    neither, both = mul(a_stays, b_stays), mul(a_step, b_step)
    correction = sub(div(both, add(n, 1)), mul(neither, inverse))
    of_a = add(of_a, add(div(a_stays, a), correction))
    of_b = add(of_b, add(div(b_stays, b), correction))
    a, b = add(a, a_step), add(b, b_step)
    slope = sub(mul(a, rest), mul(b, x))
    is_left = lax.ge(slope, lax.full_like(x, 0))

    def sides(left, right):
        return select_n(is_left, right, left), select_n(is_left, left, right)

    (a, b), (x, rest), (of_a, of_b) = sides(a, b), sides(x, rest), sides(of_a, of_b)
    cut = CUT[max(jax.typeof(x).dtype.itemsize, 4)]
    furthest = div(sub(cut, mul(add(a, b), log(rest))), a)
    start = lax.min(furthest, div(cut, lax.abs(slope)))
    zeroth, of_t, of_rest = integrals(beta_exponent, start, a, b, x)
    first = mul(scale, sub(mul(zeroth, of_a), of_t))
    second = mul(scale, add(mul(zeroth, of_b), of_rest))
    by_a = add(by_a, select_n(is_left, neg(second), first))
    by_b = add(by_b, select_n(is_left, neg(first), second))
    nothing = mul(0, lax.stop_gradient(y))
    return [select_n(is_inside, nothing, found) for found in (by_a, by_b)]


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
    with_full_operands(gamma_by_shape_twice),
    with_full_operands(gamma_density_by_shape),
)
elementwise(
    lax.regularized_incomplete_beta_p,
    with_full_operands(lambda *args: beta_by_shapes(*args)[0]),
    with_full_operands(lambda *args: beta_by_shapes(*args)[1]),
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
    if not log_space:
        return y, mul(a_dot, sample_slope(a, y))
    x = exp(y)
    is_tiny = lax.lt(x, number(float(np.finfo(np.float32).eps) ** 2, x))
    x = select_n(is_tiny, x, lax.full_like(x, 1))
    limit = div(sub(lax.digamma(add(a, 1)), y), a)
    return y, mul(a_dot, select_n(is_tiny, div(sample_slope(a, x), x), limit))


# JAX computes -P_a / g in a loop until it has converged, and the derivatives of what a loop has
# summed converge later. They are known: g_a / g = log x - psi(a) and g_x / g = (a-1) / x - 1.
@custom_jvp
def sample_slope(a, x):
    """`-P_a / g`, the derivative of a sample in the shape"""
    grad: Any = lax.random_gamma_grad
    return grad(a, x)


@partial(sample_slope.defjvp, symbolic_zeros=True)
def sample_slope_jvp(primals, tangents):
    a, x = primals
    slope = sample_slope(a, x)
    by_shape = add(gamma_mean(a, x), div(1, a))  # g_a / g

    def of_shape():
        bend = div(gamma_by_shape_twice(slope, a, x), gamma_density(a, x))
        return neg(add(bend, mul(slope, by_shape)))

    def of_place():
        return neg(add(by_shape, mul(slope, sub(div(sub(a, 1), x), 1))))

    return slope, along(tangents, of_shape, of_place)


random_gamma_p = named("random_gamma")
general(random_gamma_p, random_gamma_jvp)
