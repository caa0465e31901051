"""Taylor mode: series pushed through programs, against closed forms and against first derivatives.

Along a line `x + t v` the coefficients of the next order are a first derivative of those before:

    y_k = 1/k  d/dt y_(k-1)(x + t v)

where `y_(k-1)` is a function of the point.  So one `jvp` of a jet tells whether all of its orders
are right, to the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functrans as ft

pytestmark = pytest.mark.usefixtures("float64")

X, V = np.array([0.3, 0.7, 1.2]), np.array([1.0, -0.5, 2.0])


def jet_along(fun: Callable, order: int) -> Callable:
    """`x, v -> [y_0, ..., y_order]`, for each leaf of the result."""

    def at(x, v):
        out, series = ft.jet(fun, (x,), (jax.tree.map(lambda dot: [dot], v),), order=order)
        leaves, tree = jax.tree.flatten(out)
        return [[y, *rest] for y, rest in zip(leaves, tree.flatten_up_to(series), strict=True)]

    return at


def assert_consistent(fun: Callable, x: Any, v: Any, order: int = 8, rtol: float = 1e-12) -> None:
    """Each order is the derivative of the one before it, and the first is the function itself."""
    jet = jet_along(fun, order)

    @jax.jit
    def both(x, v):
        columns, dots = ft.jvp(lambda x: jet(x, v), (x,), (v,))
        return columns, dots, jax.tree.leaves(fun(x))

    for (y, *rest), dots, value in zip(*both(x, v), strict=True):
        np.testing.assert_allclose(y, value, rtol=rtol)
        scale = np.max(np.abs(y), initial=0.0)
        for k, (got, dot) in enumerate(zip(rest, dots[:-1], strict=True), 1):
            scale = np.max(np.abs(got), initial=scale)
            np.testing.assert_allclose(got, dot / k, rtol=rtol, atol=rtol * scale)


# ---- closed forms --------------------------------------------------------------------------------

N = 8
ORDERS = np.arange(N + 1)
FACTORIALS = np.array([math.factorial(k) for k in ORDERS])
CLOSED_FORMS = {
    "exp": (jnp.exp, lambda x: np.exp(x) / FACTORIALS),
    "sin": (jnp.sin, lambda x: np.sin(x + ORDERS * np.pi / 2) / FACTORIALS),
    "cos": (jnp.cos, lambda x: np.cos(x + ORDERS * np.pi / 2) / FACTORIALS),
    "log": (jnp.log, lambda x: [np.log(x), *(-((-1 / x) ** ORDERS[1:]) / ORDERS[1:])]),
    "reciprocal": (lambda x: 1 / x, lambda x: (-1.0) ** ORDERS / x ** (ORDERS + 1)),
    "power": (
        lambda x: x**2.5,
        lambda x: [
            np.prod(2.5 - np.arange(k)) / math.factorial(k) * x ** (2.5 - k) for k in ORDERS
        ],
    ),
    "fifth": (lambda x: x**5, lambda x: [math.comb(5, k) * x ** max(5.0 - k, 0) for k in ORDERS]),
    "inverse_cube": (
        lambda x: x**-3,
        lambda x: [(-1) ** k * math.comb(k + 2, 2) * x ** (-3.0 - k) for k in ORDERS],
    ),
}


def test_closed_forms() -> None:
    """Along the line `x + t`, to order 8."""
    x = 0.7
    run = jax.jit(
        lambda x: {
            name: ft.jet(f, (x,), ([1.0],), order=N) for name, (f, _) in CLOSED_FORMS.items()
        }
    )
    for name, (y, rest) in run(x).items():
        want = CLOSED_FORMS[name][1](x)
        np.testing.assert_allclose([y, *rest], want, rtol=1e-13, atol=1e-15, err_msg=name)


def test_a_curve() -> None:
    """All coefficients of the input count: `exp` of the series of `log(1 + t)` has two."""
    series = [(-1.0) ** (k + 1) / k for k in range(1, 9)]
    y, rest = ft.jet(jnp.exp, (0.0,), (series,))
    np.testing.assert_allclose([y, *rest], [1, 1, 0, 0, 0, 0, 0, 0, 0], atol=1e-15)


def test_a_symmetric_product_and_an_even_start() -> None:
    """`x(t) = 2 + t^2`: the derivative of `x` begins with a zero."""
    for fun, want in (
        (lambda x: x * x, [4, 0, 4, 0, 1]),
        (lambda x: x**3, [8, 0, 12, 0, 6]),
        (lambda x: 1 / x, [1 / 2, 0, -1 / 4, 0, 1 / 8]),
        (lambda x: jnp.log(x / 2), [0, 0, 1 / 2, 0, -1 / 8]),
        (lambda x: lax.cond(x > 0, jnp.square, jnp.negative, x), [4, 0, 4, 0, 1]),
    ):
        y, rest = ft.jet(fun, (2.0,), ([0.0, 1.0],), order=4)
        np.testing.assert_allclose([y, *rest], want, atol=1e-15)


# ---- programs ------------------------------------------------------------------------------------


@jax.custom_jvp
def soft(x):
    return jnp.log1p(jnp.exp(x))


@soft.defjvp
def soft_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return soft(x), slope(x) * x_dot


@jax.custom_jvp
def slope(x):
    return 1 / (1 + jnp.exp(-x))


@slope.defjvp
def slope_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    s = slope(x)
    return s, s * (1 - s) * x_dot


@jax.custom_vjp
def clipped(x):
    return jnp.sin(x) * x


clipped.defvjp(lambda x: (clipped(x), x), lambda x, y: ((jnp.cos(x) * x + jnp.sin(x)) * y,))

M = np.array([[2.0, 0.3, 0.1], [0.2, 3.0, 0.4], [0.3, 0.5, 4.0]])


def matrix(x):
    return jnp.outer(x, x) + M


PROGRAMS = {
    "scan": lambda x: lax.scan(lambda c, y: (c * jnp.sin(y) + c, c * y), 1.0, x),
    "scan_of_constants": lambda x: lax.scan(lambda c, _: (jnp.tanh(c) @ x * c, c), x, length=3),
    "late": lambda x: lax.fori_loop(0, 3, lambda i, c: (c[1], c[2], x * x), (x, 1.0 * X, 2.0 * X)),
    "while": lambda x: lax.while_loop(
        lambda c: c[0] < 3.0, lambda c: (c[0] + 1.0, c[1] * c[1] * 0.3 + x), (0.0, x)
    ),
    "cond": lambda x: lax.cond(x[0] > 0, lambda x: (x * x, X), lambda x: (1.0 * X, jnp.exp(x)), x),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
    "jit": ft.jit(lambda x: jnp.exp(x) / x),
    "custom_jvp": soft,
    "custom_vjp": clipped,
    "grad": ft.grad(lambda x: jnp.sum(jnp.sin(x) * x[0])),
    "vmap": jax.vmap(lambda x: jnp.arctan2(x, x * x + 1)),
    "hvp": lambda x: ft.hvp(lambda x: jnp.sum(jnp.tanh(x) ** 3), x, V),
    "jet": lambda x: ft.jet(jnp.sin, (x,), ([x, x * x],), order=2),
    "solve": lambda x: jnp.linalg.solve(matrix(x), x),
    "cholesky": lambda x: jnp.linalg.cholesky(matrix(x) @ matrix(x).T),
    "eigh": lambda x: jnp.linalg.eigh(matrix(x) + matrix(x).T)[0],
    "sqrtm": lambda x: jax.scipy.linalg.sqrtm(matrix(x) @ matrix(x).T).real,
    "gather": lambda x: x.at[jnp.array([0, 5])].get(mode="fill", fill_value=7.0) ** 2,
    "roll": lambda x: jnp.roll(x, 1) * jnp.sort(x) - jnp.cumprod(x),
    "softmax": jax.nn.softmax,
    "fft": lambda x: jnp.abs(jnp.fft.fft(x) * x) ** 2,
    "convolve": lambda x: jnp.convolve(x, jnp.exp(x)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str) -> None:
    order = {"sqrtm": 4, "eigh": 5, "hvp": 5}.get(name, 6)
    assert_consistent(PROGRAMS[name], X, V, order)
