"""The special functions: derivatives against closed forms of mpmath's, and what is made of them.

The bounds, the points and the ways to differentiate are those of `accuracy.py`. Where functrans
answers with a primitive of JAX, it is as exact as that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import accuracy
import jax
import jax.numpy as jnp
import jax.scipy.special as special
import jax.scipy.stats as stats
import numpy as np
import pytest
from jax import lax
from mpmath import mp, mpf
from repeated import repeated_after

import functrans as ft
from functrans.testing import JAX, cross_check

pytestmark = pytest.mark.usefixtures("float64")

DTYPES = ("float32", "float64")


# ---- exact derivatives ---------------------------------------------------------------------------


def polynomial_of_cot(m: int) -> list[int]:
    """With c = cot x it is d^m/dx^m c = p(c), as c' = -(1 + c^2); its coefficients."""
    p = [0, 1]
    for _ in range(m):
        slope = [i * c for i, c in enumerate(p)][1:]
        p = [-c for c in [*slope, 0, 0]]
        p = [c - (slope[i - 2] if i >= 2 else 0) for i, c in enumerate(p)]
    return p


def psi(m: int, x: Any) -> Any:
    """The derivative of order `m` of digamma (DLMF 5.15.6), which mpmath has for positive `x`."""
    if x > 0:
        return mp.psi(m, x)
    cot = mp.cot(mp.pi * (x - mp.nint(x)))
    powers = (c * cot**i for i, c in enumerate(polynomial_of_cot(m)))
    periodic = mp.fsum(powers) * mp.pi ** (m + 1)
    return (-1) ** m * mp.psi(m, 1 - x) - periodic


def psi_from(first: int) -> Callable:
    return lambda orders, x: psi(first + orders[0], mpf(float(x)))


def polygamma(orders: tuple, x: float, m: float) -> Any:
    return psi(int(m) + orders[0], mpf(float(x)))


def bell(orders: tuple, x: float) -> Any:
    """Of the integral of `2 e^(-x^2) / sqrt(pi)` (7.10.1)."""
    n, x = orders[0] - 1, mpf(float(x))
    return (-1) ** n * mp.hermite(n, x) * mp.exp(-x * x) * 2 / mp.sqrt(mp.pi)


def erf_inv(orders: tuple, x: float) -> Any:
    with mp.workdps(80):
        y = mp.erfinv(mpf(float(x)))
        slope = mp.sqrt(mp.pi) / 2 * mp.exp(y * y)
        polynomials = [1, 2 * y, 2 + 8 * y**2, 28 * y + 48 * y**3]
        return polynomials[orders[0] - 1] * slope ** orders[0]


def scaled_bessel(m: int) -> Callable:
    """`e^(-|x|) I_m(x)`: where it is not made of the derivatives of I_m, its asymptotic series."""

    def exact(orders: tuple, x: float) -> Any:
        (n,), size = orders, abs(mpf(float(x)))
        sign = 1 if x >= 0 else (-1) ** (n + m)
        return sign * (series if size > 150 else product)(n, size)

    def product(n: int, x: Any) -> Any:
        def of_bessel(j: int) -> Any:
            terms = (mp.binomial(j, k) * mp.besseli(abs(m - j + 2 * k), x) for k in range(j + 1))
            return mp.fsum(terms) / 2**j  # (10.29.5)

        with mp.workdps(70):
            terms = (mp.binomial(n, j) * (-1) ** (n - j) * of_bessel(j) for j in range(n + 1))
            return mp.fsum(terms) * mp.exp(-x)

    def series(n: int, x: Any) -> Any:
        total, a = mpf(0), mpf(1)
        for k in range(40):
            total += a * (-1) ** n * mp.rf(k + mpf(0.5), n) * x ** (-k)
            a *= ((2 * k + 1) ** 2 - 4 * m * m) / (8 * mpf(k + 1))
        return total * x ** (-n - mpf(0.5)) / mp.sqrt(2 * mp.pi)

    return exact


def partitions(names: str) -> Iterator[list[str]]:
    """All ways to divide letters into groups."""
    if not names:
        yield []
        return
    first, rest = names[0], names[1:]
    for each in partitions(rest):
        yield [first, *each]
        for i, group in enumerate(each):
            yield [*each[:i], first + group, *each[i + 1 :]]


def of_exponential(value: Any, slopes: Callable, names: str) -> Any:
    """The derivative of `e^L` by these arguments, from those of `L` (Faa di Bruno)."""
    terms = (mp.fprod(map(slopes, groups)) for groups in partitions(names))
    return value * mp.fsum(terms)


def log_slope(x: Any, n: int) -> Any:
    """The derivative of order `n` of `log x`."""
    return (-1) ** (n - 1) * mp.factorial(n - 1) / x**n if n else mp.log(x)


@cache
def gamma_distribution(orders: tuple, x: float, a: float) -> Any:
    """Of `P(a, x)`: for each order in `x` but the first, of the density."""
    x, a = mpf(float(x)), mpf(float(a))
    with mp.workdps(60):
        density = mp.exp((a - 1) * mp.log(x) - x - mp.loggamma(a))

        def slopes(group: str) -> Any:
            i, j = group.count("x"), group.count("a")
            logarithm = log_slope(x, i) if j == 1 else (a - 1) * log_slope(x, i) if not j else 0
            return logarithm - (group == "x") - (0 if i else mp.psi(j - 1, a))

        return of_exponential(density, slopes, "x" * (orders[0] - 1) + "a" * orders[1])


def beta_distribution(orders: tuple, x: float, a: float, b: float) -> Any:
    x, a, b = mpf(float(x)), mpf(float(a)), mpf(float(b))
    with mp.workdps(80):
        y = 1 - x
        density = mp.exp((a - 1) * mp.log(x) + (b - 1) * mp.log(y)) / mp.beta(a, b)

        def slopes(group: str) -> Any:
            n = len(group)
            return (a - 1) * log_slope(x, n) + (b - 1) * (-1) ** n * log_slope(y, n)

        return of_exponential(density, slopes, "x" * (orders[0] - 1))


def by_differences(function: Callable) -> Callable:
    """With as many digits as they take."""

    @cache
    def exact(orders: tuple, *xs: float) -> Any:
        points = [mpf(float(x)) for x in xs]
        with mp.workdps(70):
            step = min(mpf(1), *points) * mpf(10) ** -15
            return mp.diff(function, tuple(points), orders, h=step)

    return exact


def zeta_at(s: Any, q: Any) -> Any:
    """The formula of Euler and Maclaurin (25.11.28)."""
    a = q + 20
    total = mp.fsum((q + n) ** -s for n in range(20)) + a ** (1 - s) / (s - 1) + a**-s / 2
    term = a**-s
    for j in range(39):
        term *= (s + j) / a
        if j % 2 == 0:
            total += mp.bernoulli(j + 2) / mp.factorial(j + 2) * term
    return total


def zeta(orders: tuple, s: float, q: float) -> Any:
    """In `q` in closed form, in `s` by differences with as many digits as they take."""
    i, j = orders
    with mp.workdps(70):
        s, q = mpf(float(s)), mpf(float(q))
        h = mpf(10) ** -12 * (s - 1)

        def at(k: int) -> Any:
            z = s + (k - mpf(i) / 2) * h
            return (-1) ** (i - k) * mp.binomial(i, k) * (-1) ** j * mp.rf(z, j) * zeta_at(z + j, q)

        return mp.fsum(map(at, range(i + 1))) / h**i


# ---- the functions, and where they are differentiated --------------------------------------------


class Special(NamedTuple):
    """A function, its exact derivatives, the points, and the orders: `(2, 1)` is d3/dx0^2 dx1."""

    name: str
    fun: Callable
    exact: Callable
    points: Callable
    orders: Sequence[tuple] = ((1,), (2,), (3,))


def numbers(*singular: float, also: Sequence[float] = (), **bounds: float) -> Callable:
    def points(dtype: str) -> list[np.ndarray]:
        found = accuracy.numbers(dtype, singular=singular, count=8, **bounds)
        return [np.append(found, np.array(also, dtype))]

    return points


# Where e^(-x^2) is too small for a number and its derivatives are not; where erf_inv is inexact.
TAIL = (9.36, -9.36, 26.63)
NEAR_1 = (0.999, 0.9998, 0.9999, 0.99999, -0.999999, 0.9999999)


def beside_poles(dtype: str) -> list[np.ndarray]:
    [xs] = numbers(0.0, -1.0, -2.0, -10.0, -3.5)(dtype)
    return [xs[(xs > 0) | (xs != np.floor(xs))]]


def with_orders(dtype: str) -> list[np.ndarray]:
    [xs] = beside_poles(dtype)
    ms = np.array([1, 2, 5], dtype)
    return [np.tile(xs[::2], len(ms)), np.repeat(ms, len(xs[::2]))]


def columns(points: Sequence[tuple]) -> Callable:
    return lambda dtype: [np.array(column, dtype) for column in zip(*points, strict=True)]


TINY = (1e-30, 1e-12, 1e-3)
SHAPES = (1e-20, 1e-3, 0.5, 1.0, 1.5, 2.0, 3.0, 10.0, 10.5, 30.0, 1e3, 1e6)
TIMES_SHAPE = (1e-9, 1e-3, 0.3, 0.9, 0.99, 1.0, 1.0007, 1.1, 2.0, 20.0)
GAMMA_POINTS = [
    *((x, a) for a in SHAPES for x in (*TINY, 50.0)),
    *((x * max(a, 1.0), a) for a in SHAPES for x in TIMES_SHAPE),
]
BETA_SHAPES = (
    *((2.0, 3.0), (0.5, 0.2), (1e-3, 5.0), (20.0, 30.0), (1.0, 1.0), (1e3, 30.0), (30.0, 1e3)),
    *((0.5, 1e4), (1e4, 0.5), (1e4, 2e4), (1.0, 1e3), (1e6, 1e5)),
)


def beta_points() -> Iterator[tuple]:
    """At both ends, and around the mean."""
    for a, b in BETA_SHAPES:
        mean = a / (a + b)
        width = (mean * (1 - mean) / (a + b + 1)) ** 0.5
        around = [mean + d * width for d in (-4, -1, -0.1, 0.01, 0.2, 2, 5)]
        for x in (*TINY, 0.3, 0.9, 0.999, *around):
            if 0 < x < 1:
                yield x, a, b


def around_means() -> Iterator[tuple]:
    """For parameters of all sizes: at both ends, and around the mean."""
    for a, b in ((0.02, 0.3), (0.5, 40.0), (1.0, 1.6), (3.0, 0.01), (8.0, 11.0), (500.0, 60.0)):
        mean = a / (a + b)
        width = (mean * (1 - mean) / (a + b + 1)) ** 0.5
        points = (1e-9, *(mean + d * width for d in (-3, -0.1, 0.02, 2)), 0.9999)
        yield from ((x, a, b) for x in points if 0 < x < 1)


SHAPED = [
    (x * max(a, 0.3), a)
    for a in (1e-3, 0.4, 1.0, 2.5, 30.0, 200.0)
    for x in (1e-6, 0.1, 0.9, 0.997, 1.02, 1.3, 4.0)
]
EXPONENTS = (1.001, 1.1, 2.0, 3.5, 10.0, 30.0)
SHIFTS = (1e-30, 1e-3, 0.3, 1.2, 5.0, 50.0, 99.0, 150.0, 9e3, 2e4, 1e10, 1e20)


def smaller_side(x: Any, a: Any, b: Any) -> Any:
    """`I_x(a, b)`, or that less 1."""
    args = (a, b, 0, x) if x < 0.98 else (b, a, 0, 1 - x)
    return (1 if x < 0.98 else -1) * mp.betainc(*args, regularized=True)


by_shape = by_differences(lambda x, a: mp.gammainc(a, 0, x, regularized=True))

FUNCTIONS = [
    Special("erf", lax.erf, bell, numbers(also=TAIL)),
    Special("erfc", lax.erfc, lambda *args: -bell(*args), numbers(also=TAIL)),
    Special("erf_inv", lax.erf_inv, erf_inv, numbers(low=-1.0, high=1.0, also=NEAR_1)),
    Special("lgamma", lax.lgamma, psi_from(-1), beside_poles),
    Special("digamma", lax.digamma, psi_from(0), beside_poles),
    Special(
        "polygamma",
        lambda x, m: lax.polygamma(m, x),
        polygamma,
        with_orders,
        ((1, 0), (2, 0), (3, 0)),
    ),
    Special(
        "zeta",
        lax.zeta,
        zeta,
        columns(list(itertools.product(EXPONENTS, SHIFTS))),
        tuple(accuracy.orders(2)),
    ),
    Special(
        "igamma",
        lambda x, a: lax.igamma(a, x),
        gamma_distribution,
        columns(GAMMA_POINTS),
        ((1, 0), (2, 0), (3, 0), (1, 1), (2, 1)),
    ),
    Special(
        "igammac",
        lambda x, a: lax.igammac(a, x),
        lambda *args: -gamma_distribution(*args),
        columns(GAMMA_POINTS),
        ((1, 0), (2, 0), (1, 1)),
    ),
    # In reverse mode a term is lost where the density itself is too small for floating point.
    Special(
        "igamma_grad_a",
        lambda x, a: lax.igamma_grad_a(a, x),
        lambda orders, *xs: gamma_distribution((orders[0], orders[1] + 1), *xs),
        columns([(x, a) for x, a in GAMMA_POINTS if a <= 1 or (a - 1) * np.log(x) > -70]),
        ((1, 0), (2, 0)),
    ),
    Special(
        "regularized_incomplete_beta",
        lambda x, a, b: lax.regularized_incomplete_beta_p.bind(a, b, x),
        beta_distribution,
        columns(list(beta_points())),
        ((1, 0, 0), (2, 0, 0), (3, 0, 0)),
    ),
    Special(
        "igamma_grad_a in the shape",
        lambda x, a: lax.igamma_grad_a(a, x),
        lambda orders, *xs: by_shape((orders[0], orders[1] + 1), *xs),
        columns(SHAPED),
        ((0, 1), (1, 1)),
    ),
    Special(
        "regularized_incomplete_beta in the shapes",
        lambda x, a, b: lax.regularized_incomplete_beta_p.bind(a, b, x),
        by_differences(smaller_side),
        columns(list(around_means())),
        ((0, 1, 0), (0, 0, 1), (0, 2, 0), (0, 1, 1), (1, 1, 0)),
    ),
    Special("bessel_i0e", lax.bessel_i0e, scaled_bessel(0), numbers()),
    Special("bessel_i1e", lax.bessel_i1e, scaled_bessel(1), numbers()),
]


@pytest.mark.parametrize("dtype", repeated_after(1, DTYPES))
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.name)
def test_against_mpmath(function: Special, dtype: str) -> None:
    """Every derivative at every point, in both modes."""
    points = function.points(dtype)
    accuracy.check(function.fun, function.exact, *points, wanted=function.orders)


NO_RULE = ("zeta", "igamma_grad_a")
"""JAX has none."""


def jax_forward(fun: Callable, argnum: int, has_aux: bool) -> Callable:
    def slope(x, *rest):
        x_dot = jnp.ones_like(x)
        y, y_dot, lower = jax.jvp(lambda x: fun(x, *rest), (x,), (x_dot,), has_aux=True)
        return y_dot, (y, *lower)

    return slope


def jax_reverse(fun: Callable, argnum: int, has_aux: bool) -> Callable:
    def slope(x, *rest):
        y, pull, lower = jax.vjp(lambda x: fun(x, *rest), x, has_aux=True)
        return pull(jnp.ones_like(y))[0], (y, *lower)

    return slope


@pytest.mark.parametrize(
    "function",
    [
        f
        for f in FUNCTIONS
        if (1, *[0] * 9)[: len(f.orders[0])] in f.orders and f.name not in NO_RULE
    ],
    ids=lambda function: function.name,
)
def test_derivatives_of_jax_around(function: Special, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rule writes is right in JAX as well, to first order."""
    slope = accuracy.forward(function.fun, 0)
    monkeypatch.setattr(accuracy, "MODES", {"forward": jax_forward, "reverse": jax_reverse})
    points = function.points("float64")

    def exact(orders: tuple, *xs: float) -> Any:
        return function.exact((orders[0] + 1, *orders[1:]), *xs)

    once = (1, *(0 for _ in points[1:]))
    accuracy.check(slope, exact, *points, wanted=[once])


@pytest.mark.parametrize("dtype", DTYPES)
def test_erf_inv_next_to_1(dtype: str) -> None:
    """A rounding of `x` would matter more there, but `x` is what it is."""
    x = np.array(NEAR_1, dtype)
    want = [float(erf_inv((1,), each)) for each in x]
    for slope in accuracy.MODES.values():
        np.testing.assert_allclose(slope(lax.erf_inv, 0)(x), want, accuracy.BOUND[x.itemsize])


@pytest.mark.parametrize("dtype", DTYPES)
def test_by_shape_is_as_exact_as_the_primitive(dtype: str) -> None:
    a, x = (np.array(column, dtype) for column in zip((3.0, 20.0), (0.5, 0.2), strict=True))
    for sign, fun in ((1, lax.igamma), (-1, lax.igammac)):
        got = accuracy.forward(fun, 0)(a, x)
        np.testing.assert_array_equal(got, sign * lax.igamma_grad_a(a, x))


# At the ends of their domains, where the logarithms in the densities are infinite, and at poles.


def of_shape(fun: Callable, a: float) -> Callable:
    return lambda x: fun(jnp.full_like(x, a), x)


INF = float("inf")
ENDS: dict[str, tuple[Callable, dict[tuple, list[float]]]] = {
    "igamma": (
        lambda x, a: lax.igamma(a, x),
        {
            (0.0, 1.0): [1.0, -1.0, 1.0],  # 1 - e^-x
            (0.0, 2.0): [0.0, 1.0, -2.0],  # 1 - (1 + x) e^-x
            (0.0, 3.0): [0.0, 0.0, 1.0],
            (0.0, 30.0): [0.0, 0.0, 0.0],
        },
    ),
    # The derivative of x^(a-1) / Gamma(a) in a: log(x) x^(a-1) prevails.
    "igamma_grad_a": (
        lambda x, a: lax.igamma_grad_a(a, x),
        {
            (0.0, 1.0): [-INF, INF, -INF],
            (0.0, 2.0): [0.0, -INF, INF],
            (0.0, 3.0): [0.0, 0.0, -INF],
            (0.0, 4.0): [0.0, 0.0, 0.0],
        },
    ),
    "betainc": (
        lambda x, a, b: special.betainc(a, b, x),
        {
            (0.0, 1.0, 3.0): [3.0, -6.0, 6.0],  # 1 - (1-x)^3
            (0.0, 1.0, 3e3): [3e3, -3e3 * 2999, 3e3 * 2999 * 2998],
            (0.0, 3.0, 1.0): [0.0, 0.0, 6.0],  # x^3
            (1.0, 3.0, 1.0): [3.0, 6.0, 6.0],
            (1.0, 2.0, 2.0): [0.0, -6.0, -12.0],  # 3 x^2 - 2 x^3
            (0.0, 30.0, 40.0): [0.0, 0.0, 0.0],
            (1.0, 30.0, 40.0): [0.0, 0.0, 0.0],
        },
    ),
    "erf_inv": (lax.erf_inv, {(1.0,): [INF, INF, INF], (-1.0,): [INF, -INF, INF]}),
}


@pytest.mark.parametrize("name", ENDS)
def test_at_the_ends(name: str) -> None:
    fun, rows = ENDS[name]
    points = [jnp.array(column) for column in zip(*rows, strict=True)]
    orders = [(n, *(0 for _ in points[1:])) for n in (1, 2, 3)]
    found = jax.jit(accuracy.derivatives(fun, orders))(*points)
    for mode, order in found:
        want = [row[order[0] - 1] for row in rows.values()]
        message = f"{mode} {order}"
        np.testing.assert_allclose(found[mode, order], want, 1e-11, 1e-13, err_msg=message)


def test_at_the_poles() -> None:
    """At 0, -1, -2, ... no derivative is a number."""
    orders = [(1,), (2,), (3,)]
    for fun in (lax.lgamma, lax.digamma, of_shape(lax.polygamma, 1.0)):
        found = jax.jit(accuracy.derivatives(fun, orders))(jnp.array([0.0, -1.0, -10.0, -1e20]))
        for key, got in found.items():
            assert not np.isfinite(got).any(), key


def test_where_zeta_has_no_derivative() -> None:
    """For whole exponents XLA has zeta left of zero, and wrong from -6 on."""
    q = jnp.array([-0.5, -3.3, -4.5, -9.5])
    for slope in accuracy.MODES.values():
        got = slope(of_shape(lax.zeta, 2.0), 0)(q)
        np.testing.assert_allclose(got[:2], [float(psi(2, mpf(x))) for x in (-0.5, -3.3)], 1e-12)
        assert np.isnan(got[2:]).all()
        assert np.isnan(slope(lax.zeta, 0)(jnp.full_like(q, 2.0), q)).all()


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


def probability(a: Any, x: Any) -> Any:
    return mp.gammainc(a, 0, x, regularized=True)


@jax.jit
def sample_and_slopes(key: Any, a: Any) -> tuple:
    """The logarithm of a sample, its slope in both modes, and the slope of the sample."""

    def log_sample(a):
        return jax.random.loggamma(key, a)

    y, y_dot = ft.jvp(log_sample, (a,), (jnp.ones_like(a),))
    return y, y_dot, ft.grad(log_sample)(a), ft.grad(lambda a: jax.random.gamma(key, a))(a)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("shape", [1e-3, 0.1, 1.0, 3.0, 100.0])
def test_samples_of_the_gamma_distribution(shape: float, seed: int) -> None:
    """In the logarithmic scale also where the sample itself is 0 in floating point."""

    def quantile(a, x):
        return mp.log(probability(a, x))

    y, *slopes, slope = sample_and_slopes(jax.random.key(seed), shape)
    with mp.workdps(60):
        a, x = mpf(shape), mp.exp(mpf(float(y)))
        by_sample = x ** (a - 1) * mp.exp(-x) / mp.gamma(a) / probability(a, x)
        want = -mp.diff(quantile, (a, x), (1, 0)) / by_sample
    np.testing.assert_allclose(slopes, float(want / x), rtol=1e-9)
    if x > 1e-300:
        np.testing.assert_allclose(slope, float(want), rtol=1e-9)


# What has no derivative says so.


@pytest.mark.parametrize(
    ("fun", "argument"),
    [
        (lambda m: lax.polygamma(m, 1.5), "respect to the order m"),
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
