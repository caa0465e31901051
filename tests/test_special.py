"""The special functions: derivatives against mpmath's to 30 digits, and what is made of them.

mpmath differentiates its own functions numerically with as many digits as it takes, so that what
is compared is functrans's formula, at the accuracy with which JAX has the functions in it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.special as special
import jax.scipy.stats as stats
import numpy as np
import pytest
from jax import lax
from mpmath import mp, mpf

import functrans as ft
from functrans.testing import JAX, cross_check

pytestmark = pytest.mark.usefixtures("float64")

MODES: dict[str, Callable] = {
    "forward": lambda f, x, one: ft.jvp(f, (x,), (one,))[1],
    "reverse": lambda f, x, one: ft.vjp(f, x)[1](one)[0],
}


def derivative(fun: Callable, argnum: int, mode: str) -> Callable:
    """The partial derivative of a function of each element by itself."""

    def slope(*xs):
        def of_one(x):
            return fun(*xs[:argnum], x, *xs[argnum + 1 :])

        return MODES[mode](of_one, xs[argnum], jnp.ones_like(xs[argnum]))

    return slope


class Special(NamedTuple):
    """A function, mpmath's, the points, and the derivatives: `(0, 1)` is d2/dx0 dx1."""

    name: str
    fun: Callable
    reference: Callable
    points: Sequence[tuple]
    derivatives: Sequence[tuple]
    rtol: float = 1e-10


def points(*xs: float) -> list[tuple]:
    return [(x,) for x in xs]


def scaled_bessel(order: int, sign: int) -> Callable:
    """From one side of 0, continued to the other: the function has a kink there."""
    return lambda x: mp.besseli(order, x) * mp.exp(-sign * x)


def gamma_distribution(a: Any, x: Any) -> Any:
    return mp.gammainc(a, 0, x, regularized=True)


def gamma_complement(a: Any, x: Any) -> Any:
    return 1 - gamma_distribution(a, x)


def gamma_by_shape(a: Any, x: Any) -> Any:
    return mp.diff(lambda b: gamma_distribution(b, x), a)


def polygamma(m: int) -> Callable:
    return lambda x: lax.polygamma(jnp.full_like(x, m), x)


def logistic(x: Any) -> Any:
    return 1 / (1 + mp.exp(-x))


def beta_distribution(a: Any, b: Any, x: Any) -> Any:
    return mp.betainc(a, b, 0, x, regularized=True)


TWICE = [(0,), (0, 0)]
GAMMA_POINTS = [(0.5, 0.2), (1e-3, 0.1), (2.0, 1e-6), (3.0, 20.0), (10.0, 30.0), (100.0, 90.0)]
FROM_ZERO = points(0.0, 1e-9, 1e-3, 0.5, 0.999, 1.001, 5.0, 8.0, 100.0)
TO_ZERO = points(-1e-9, -0.5, -0.999, -1.001, -5.0, -100.0)

SHAPE_ONCE = [(0,), (1,), (0, 1), (1, 0), (1, 1)]
ZETA_POINTS = [
    (1.001, 2.0),
    (1.1, 0.3),
    (2.0, 1e-3),
    (3.5, 50.0),
    (40.0, 1.2),
    (2.0, 1e4),
    (30.0, 90.0),
]
BETA_POINTS = [
    (2.0, 3.0, 1e-6),
    (0.5, 0.2, 0.3),
    (20.0, 30.0, 0.4),
    (1.0, 1.0, 0.9),
    (0.3, 2.0, 0.999),
]
POLES = points(1e-5, 0.3, 1.4, 7.0, 1e4, -0.5, -3.3)

FUNCTIONS = [
    Special("erf", lax.erf, mp.erf, points(-0.3, 0.0, 1e-6, 0.5, 3.0), TWICE),
    Special("erfc", lax.erfc, mp.erfc, points(-0.3, 0.0, 0.5, 3.0, 10.0), TWICE),
    Special("erf_inv", lax.erf_inv, mp.erfinv, points(-0.3, 0.0, 1e-6, 0.5, 0.999999), TWICE),
    # The derivative is y (1 - y): where y is near 1, it has lost digits, at x = 10 four of them.
    Special("logistic", lax.logistic, logistic, points(-30.0, 1.0, 10.0), TWICE),
    Special("lgamma", lax.lgamma, lambda x: mp.log(abs(mp.gamma(x))), POLES, TWICE),
    Special("digamma", lax.digamma, mp.digamma, POLES, TWICE),
    Special("polygamma 1", polygamma(1), partial(mp.psi, 1), POLES, TWICE),
    Special("polygamma 2", polygamma(2), partial(mp.psi, 2), POLES, TWICE),
    Special("zeta", lax.zeta, mp.zeta, ZETA_POINTS, [*SHAPE_ONCE, (0, 0)]),
    Special("igamma", lax.igamma, gamma_distribution, GAMMA_POINTS, SHAPE_ONCE),
    Special("igammac", lax.igammac, gamma_complement, GAMMA_POINTS, SHAPE_ONCE),
    # In the logarithm of the density thousands cancel.
    Special("igamma, large", lax.igamma, gamma_distribution, [(1000.0, 1010.0)], SHAPE_ONCE),
    Special("igamma_grad_a", lax.igamma_grad_a, gamma_by_shape, GAMMA_POINTS[:4], [(1,), (1, 1)]),
    Special("betainc", special.betainc, beta_distribution, BETA_POINTS, [(2,), (2, 2)]),
    Special("bessel_i0e", lax.bessel_i0e, scaled_bessel(0, 1), FROM_ZERO, TWICE),
    Special("bessel_i1e", lax.bessel_i1e, scaled_bessel(1, 1), FROM_ZERO, TWICE),
    Special("bessel_i0e, left", lax.bessel_i0e, scaled_bessel(0, -1), TO_ZERO, TWICE),
    Special("bessel_i1e, left", lax.bessel_i1e, scaled_bessel(1, -1), TO_ZERO, TWICE),
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_against_mpmath(function: Special) -> None:
    """Every derivative at every point, by each mode of each mode."""
    columns = [jnp.array(column) for column in zip(*function.points, strict=True)]
    for argnums in function.derivatives:
        orders = tuple(argnums.count(i) for i in range(len(columns)))
        with mp.workdps(60):
            want = [
                float(mp.diff(function.reference, tuple(map(mpf, point)), orders))
                for point in function.points
            ]
        ways = {}
        for modes in itertools.product(MODES, repeat=len(argnums)):
            fun = function.fun
            for argnum, mode in zip(argnums, modes, strict=True):
                fun = derivative(fun, argnum, mode)
            ways[modes] = fun
        # In one program: XLA compiles once what several of them write.
        both = jax.jit(lambda *xs, ways=ways: [fun(*xs) for fun in ways.values()])
        for modes, got in zip(ways, both(*columns), strict=True):
            message = f"{function.name}, {argnums}, {modes}"
            np.testing.assert_allclose(got, want, function.rtol, 1e-15, err_msg=message)


# At the ends of their domains, where the logarithms in the densities are infinite.


def igamma_of_order(a: float) -> Callable:
    return lambda x: lax.igamma(jnp.full_like(x, a), x)


def betainc_of_orders(a: float, b: float) -> Callable:
    return lambda x: special.betainc(a, b, x)


@pytest.mark.parametrize(
    ("fun", "x", "first", "second"),
    [
        (igamma_of_order(1.0), 0.0, 1.0, -1.0),  # 1 - e^-x
        (igamma_of_order(2.0), 0.0, 0.0, 1.0),  # 1 - (1 + x) e^-x
        (igamma_of_order(3.0), 0.0, 0.0, 0.0),
        (betainc_of_orders(1.0, 3.0), 0.0, 3.0, -6.0),  # 1 - (1-x)^3
        (betainc_of_orders(3.0, 1.0), 0.0, 0.0, 0.0),  # x^3
        (betainc_of_orders(3.0, 1.0), 1.0, 3.0, 6.0),
        (betainc_of_orders(2.0, 2.0), 1.0, 0.0, -6.0),  # 3 x^2 - 2 x^3
    ],
)
def test_at_the_ends(fun: Callable, x: float, first: float, second: float) -> None:
    for modes in itertools.product(MODES, repeat=2):
        once = derivative(fun, 0, modes[0])
        np.testing.assert_allclose(once(jnp.array(x)), first, atol=1e-14)
        np.testing.assert_allclose(derivative(once, 0, modes[1])(jnp.array(x)), second, atol=1e-13)


def test_scaled_bessel_functions_at_zero_fit_abs() -> None:
    """e^|x| I0e(x) and e^|x| I1e(x) are smooth; JAX 0.10 has I_0'(0) = I_1''(0) = 1."""
    for fun, derivatives in (
        (lambda x: jnp.exp(jnp.abs(x)) * lax.bessel_i0e(x), [0.0, 0.5, 0.0]),
        (lambda x: jnp.exp(jnp.abs(x)) * lax.bessel_i1e(x), [0.5, 0.0, 0.375]),
    ):
        for want in derivatives:
            fun = ft.grad(fun)
            np.testing.assert_allclose(fun(0.0), want, atol=1e-14)


# Samples: dx/da at a fixed quantile is -P_a / P_x.


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", [1e-3, 0.1, 1.0, 3.0, 100.0])
def test_samples_of_the_gamma_distribution(shape: float, seed: int) -> None:
    """In the logarithmic scale also where the sample itself is 0 in floating point."""
    key = jax.random.key(seed)

    def log_sample(a):
        return jax.random.loggamma(key, a)

    def quantile(a, x):
        return mp.log(gamma_distribution(a, x))

    y, y_dot = ft.jvp(log_sample, (shape,), (1.0,))
    with mp.workdps(60):
        a, x = mpf(shape), mp.exp(mpf(float(y)))
        by_sample = x ** (a - 1) * mp.exp(-x) / mp.gamma(a) / gamma_distribution(a, x)
        want = -mp.diff(quantile, (a, x), (1, 0)) / by_sample
    slopes = [y_dot, ft.grad(log_sample)(shape)]
    np.testing.assert_allclose(slopes, float(want / x), rtol=1e-9)
    if x > 1e-300:
        slope = ft.grad(lambda a: jax.random.gamma(key, a))(shape)
        np.testing.assert_allclose(slope, float(want), rtol=1e-9)


# What has no derivative says so.


@pytest.mark.parametrize(
    ("fun", "argument"),
    [
        (lambda a: special.betainc(a, 1.0, 0.5), "respect to a"),
        (lambda b: special.betainc(1.0, b, 0.5), "respect to b"),
        (lambda m: lax.polygamma(m, 1.5), "respect to the order m"),
        (ft.grad(lambda a: lax.igamma(a, 1.5)), "respect to the shape a"),
    ],
)
def test_errors(fun: Callable, argument: str) -> None:
    for transform in (ft.grad, ft.jacfwd):
        with pytest.raises(NotImplementedError, match=f"{argument}, asked for at .*test_special"):
            transform(fun)(2.0)


# Functions that JAX builds on these.

X = np.array([0.3, 0.9, 1.7])
UNIT = np.array([0.2, 0.5, 0.8])
COMPOSED: dict[str, tuple] = {
    "beta": (special.beta, X, X + 1),
    "betainc": (lambda x: special.betainc(0.5, 2.0, x), UNIT),
    "betaln": (special.betaln, X, X + 1),
    "boxcox": (special.boxcox, X, X),
    "dawsn": (special.dawsn, X),
    "digamma": (special.digamma, X),
    "entr": (special.entr, X),
    "erfcx": (special.erfcx, X),
    "erfinv": (special.erfinv, UNIT),
    "exp1": (special.exp1, X),
    "expi": (special.expi, X),
    "expit": (special.expit, X),
    "expn": (lambda x: special.expn(2, x), X),
    "factorial": (special.factorial, X),
    "fresnel": (special.fresnel, X),
    "gamma": (special.gamma, X),
    "gammainc": (special.gammainc, X, X + 1),
    "gammaincc": (special.gammaincc, X, X + 1),
    "gammaln": (special.gammaln, X),
    "hyp1f1": (special.hyp1f1, X, X + 1, UNIT),
    "i0": (special.i0, X),
    "i0e": (special.i0e, X),
    "i1": (special.i1, X),
    "i1e": (special.i1e, X),
    "kl_div": (special.kl_div, X, X + 1),
    "log_ndtr": (special.log_ndtr, np.array([-20.0, -1.0, 2.0])),
    "log_softmax": (special.log_softmax, X),
    "logit": (special.logit, UNIT),
    "logsumexp": (special.logsumexp, X),
    "multigammaln": (lambda x: special.multigammaln(x, 2), X + 2),
    "ndtr": (special.ndtr, X),
    "ndtri": (special.ndtri, UNIT),
    "owens_t": (special.owens_t, X, X + 1),
    "poch": (special.poch, X, X + 1),
    "polygamma": (lambda x: special.polygamma(2, x), X),
    "rel_entr": (special.rel_entr, X, X + 1),
    "sici": (special.sici, X),
    "softmax": (special.softmax, X),
    "spence": (special.spence, X),
    "xlog1py": (special.xlog1py, X, X),
    "xlogy": (special.xlogy, X, X),
    "zeta": (special.zeta, X + 1.1, X),
    "beta.logpdf": (stats.beta.logpdf, UNIT, X, X + 1),
    "binom.logpmf": (lambda p: stats.binom.logpmf(3, 5, p), UNIT),
    "chi2.cdf": (lambda x: stats.chi2.cdf(x, 3.0), X),
    "dirichlet.logpdf": (lambda a: stats.dirichlet.logpdf(np.array([0.2, 0.3, 0.5]), a), X),
    "gamma.cdf": (stats.gamma.cdf, X, X + 1),
    "gamma.logpdf": (stats.gamma.logpdf, X, X + 1),
    "gennorm.logpdf": (stats.gennorm.logpdf, X, X + 1),
    "nbinom.logpmf": (lambda n, p: stats.nbinom.logpmf(3, n, p), X, UNIT),
    "norm.logcdf": (stats.norm.logcdf, X),
    "norm.ppf": (stats.norm.ppf, UNIT),
    "poisson.logpmf": (lambda mu: stats.poisson.logpmf(3, mu), X),
    "t.logpdf": (stats.t.logpdf, X, X + 1),
    "truncnorm.logpdf": (lambda x: stats.truncnorm.logpdf(x, -1.0, 2.0), X),
    "vonmises.logpdf": (stats.vonmises.logpdf, X, X + 1),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_functions_of_jax(name: str) -> None:
    """Forward and reverse, as in JAX; most have been compared to second order by their parts."""
    fun, *args = COMPOSED[name]
    cross_check(fun, *args, order=1, against=(JAX,), jitted=True).check()
