"""The derivatives of the functions of each element, to third order, against mpmath.

What is compared is relative to the exact value, at tiny and at extreme arguments and next to
singularities, where JAX's own derivatives are not always right.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from accuracy import (
    MARGIN,
    MODES,
    check,
    complex_numbers,
    derivatives,
    mistakes,
    numbers,
    orders,
    pairs,
    reference,
)
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core.primitives import add_jaxvals_p
from mpmath import mp
from repeated import repeated_after

import functrans as ft
from functrans.rules import RULES, Elementwise

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTHS = [np.float32, np.float64]


@pytest.mark.parametrize("x", [1e-300, 1e-5, 0.7, 1 - 2.0**-52])
def test_the_reference_itself(x: float) -> None:
    """Against closed forms, for the arc sine."""
    got = [reference(mpmath.asin)((n,), x) for n in (1, 2, 3)]
    with mp.workdps(400):
        w = 1 - mpmath.mpf(x) ** 2
        closed = [w**-0.5, x * w**-1.5, (1 + 2 * mpmath.mpf(x) ** 2) * w**-2.5]
        assert all(abs(a / b - 1) < 1e-16 for a, b in zip(got, closed, strict=True))


def test_the_reference_of_two_arguments() -> None:
    x, y = 3e-5, -2e6
    exact = reference(lambda x, y: x**2 * mpmath.exp(y * 1e-6))
    assert exact((1, 1), x, y) == pytest.approx(2 * x * 1e-6 * np.exp(-2), rel=1e-12)
    assert exact((2, 1), x, y) == pytest.approx(2e-6 * np.exp(-2), rel=1e-12)


def test_a_mistake_is_found() -> None:
    xs = np.asarray([0.5, 1e-20], np.float32)
    wrong = mistakes(lambda x: lax.log(lax.add(x, np.float32(1))), reference(mpmath.sin), xs)
    assert len(wrong) == 2 * (3 + 2)  # at 1e-20 the first derivatives agree


def test_points() -> None:
    for width in WIDTHS:
        info = np.finfo(width)
        xs = numbers(width, -1, 1)
        assert xs.dtype == width and np.all(abs(xs) < 1)
        assert np.min(abs(xs)) < 8 * info.tiny and np.max(xs) > 1 - 3 * info.eps
        assert np.max(numbers(width)) > info.max / 8
    assert list(orders(2, 2)) == [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]


# ---- the table -----------------------------------------------------------------------------------


class Row(NamedTuple):
    """A function, the same of mpmath's, and where each of its arguments may be."""

    fun: Callable
    exact: Callable
    where: tuple[dict[str, Any], ...] = ({},)
    margin: float = MARGIN


def row(fun: Callable, exact: Callable, **where: Any) -> Row:
    return Row(fun, exact, (where,))


def logistic(x):
    return 1 / (1 + mp.exp(-x))


def remainder(x, y):
    """As of C: with the sign of `x`."""
    return mp.sign(x) * mp.fmod(abs(x), abs(y))


RULE_OF = {primitive.name: rule for primitive, rule in RULES.items()}
sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
ELEMENTWISE = importlib.import_module("formulas").ELEMENTWISE

POSITIVE, ANYWHERE = {"low": 0}, {}
DIVISOR = {"power": 3}
EXPONENTS = {"low": -9.0, "high": 40.0, "least": 1e-3}
BETWEEN = ({"low": -3.0, "high": -1.0}, ANYWHERE, {"low": 1.0, "high": 3.0})
ROWS = {
    "neg": row(lax.neg, lambda x: -x),
    "abs": row(lax.abs, abs),
    "square": row(lax.square, lambda x: x * x),
    "sqrt": row(lax.sqrt, mp.sqrt, low=0),
    "rsqrt": row(lax.rsqrt, lambda x: 1 / mp.sqrt(x), low=0),
    "cbrt": row(lax.cbrt, lambda x: mp.sign(x) * mp.cbrt(abs(x))),
    "integer_pow": row(partial(lax.integer_pow_p.bind, y=3), lambda x: x**3),
    "integer_pow -2": row(partial(lax.integer_pow_p.bind, y=-2), lambda x: x**-2),
    "integer_pow 1": row(partial(lax.integer_pow_p.bind, y=1), lambda x: x),
    "exp": row(lax.exp, mp.exp),
    "exp2": row(lax.exp2, lambda x: mp.mpf(2) ** x),
    "expm1": row(lax.expm1, mp.expm1),
    "log": row(lax.log, mp.log, low=0),
    "log1p": row(lax.log1p, lambda x: mp.log(1 + x), low=-1),
    "logistic": row(lax.logistic, logistic),
    "sin": row(lax.sin, mp.sin),
    "cos": row(lax.cos, mp.cos),
    "tan": row(lax.tan, mp.tan),
    "sinh": row(lax.sinh, mp.sinh),
    "cosh": row(lax.cosh, mp.cosh),
    "tanh": row(lax.tanh, mp.tanh),
    "asin": row(lax.asin, mp.asin, low=-1, high=1),
    "acos": row(lax.acos, mp.acos, low=-1, high=1),
    "atan": row(lax.atan, mp.atan),
    "asinh": row(lax.asinh, mp.asinh),
    "acosh": row(lax.acosh, mp.acosh, low=1),
    "atanh": row(lax.atanh, mp.atanh, low=-1, high=1),
    "add": Row(lax.add, lambda x, y: x + y, (ANYWHERE, ANYWHERE)),
    "add_any": Row(add_jaxvals_p.bind, lambda x, y: x + y, (ANYWHERE, ANYWHERE)),
    "sub": Row(lax.sub, lambda x, y: x - y, (ANYWHERE, ANYWHERE)),
    "mul": Row(lax.mul, lambda x, y: x * y, (ANYWHERE, ANYWHERE)),
    "div": Row(lax.div, lambda x, y: x / y, (ANYWHERE, DIVISOR)),
    "rem": Row(lax.rem, remainder, ({"low": 1e-3, "high": 90.0}, {"low": 0.02, "high": 7.0})),
    "atan2": Row(lax.atan2, mp.atan2, (ANYWHERE, ANYWHERE)),
    # Powers of the logarithm are among the factors, and x^-3 beside the exponent.
    "pow": Row(lax.pow, lambda x, y: x**y, (POSITIVE, EXPONENTS), 1e6),
    "max": Row(lax.max, max, (ANYWHERE, ANYWHERE)),
    "min": Row(lax.min, min, (ANYWHERE, ANYWHERE)),
    "nextafter": Row(lax.nextafter, lambda x, y: x, (ANYWHERE, ANYWHERE)),
    "copy": row(jnp.copy, lambda x: x),
    "name": row(partial(checkpoint_name, name="x"), lambda x: x),
    "clamp": Row(lax.clamp, lambda low, x, high: min(max(x, low), high), BETWEEN),
}
if hasattr(lax, "log2_p"):
    ROWS["log2"] = row(jnp.log2, lambda x: mp.log(x) / mp.log(2), low=0)
    ROWS["one_minus_square"] = row(lax.one_minus_square, lambda x: 1 - x * x)


@pytest.mark.parametrize("width", repeated_after(1, WIDTHS))
@pytest.mark.parametrize("name", ROWS)
def test_every_order_at_every_magnitude(name: str, width: type) -> None:
    fun, exact, where, margin = ROWS[name]
    lists = [numbers(width, **bounds) for bounds in where]
    points = lists if len(lists) == 1 else pairs(*lists)
    check(fun, reference(exact), *points, margin=margin)


def test_every_rule_has_a_row() -> None:
    tested = {name.split()[0] for name in ROWS}
    assert {name for name in ELEMENTWISE if type(RULE_OF.get(name)) is Elementwise} <= tested


# ---- complex numbers -----------------------------------------------------------------------------

# JAX's own `sinh` and `exp2` lose digits, of small complex numbers and of those with large parts.
REAL = {"neg", "abs", "cbrt", "integer_pow", "nextafter", "copy", "name", "log2", "sinh", "exp2"}
HOLOMORPHIC = [name for name in ROWS if name in ELEMENTWISE and len(ROWS[name].where) == 1]
HOLOMORPHIC = sorted({*HOLOMORPHIC} - REAL)


@pytest.mark.parametrize("width", repeated_after(1, [np.complex64, np.complex128]))
@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_complex_numbers(name: str, width: type) -> None:
    check(ROWS[name].fun, reference(ROWS[name].exact), complex_numbers(width), margin=1e6)


# ---- points where a value is replaced by another one ---------------------------------------------


def limit_at_zero(exact: Callable, orders: tuple[int, int], y: float) -> float:
    """The limit for `x -> 0` from the right, from the values at two tiny `x`."""
    near, nearer = (exact(orders, x, y) for x in (1e-20, 1e-80))
    if abs(nearer) > 2 * abs(near):
        return float(mp.sign(nearer) * mp.inf)
    return 0.0 if abs(nearer) < abs(near) / 2 or abs(nearer) < 1e-30 else float(nearer)


def test_powers_of_zero() -> None:
    """All derivatives to third order. At `x = 0` the value jumps in `y`, from 1 at `y = 0` to 0:
    there is no derivative in `y` alone, and it is 0 as in JAX, so that one may mask it."""
    wanted, ys = list(orders(2)), np.asarray([-1, 0, 0.5, 1, 1.5, 2, 2.5, 3, 4])
    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(derivatives(lax.pow, wanted))(np.zeros_like(ys), ys))
    exact = reference(lambda x, y: x**y)
    for each, mode in itertools.product(wanted, MODES):
        jumps = (ys == 0) & (each[0] == 0) & (each[1] > 0)
        limits = np.where(jumps, 0.0, [limit_at_zero(exact, each, y) for y in ys])
        np.testing.assert_array_equal(found[mode, each], limits, f"{mode} {each}")


def test_powers_of_zero_that_are_masked() -> None:
    z = jnp.asarray([0.0, 0.0, 1.0])
    models: list[Callable] = [
        lambda p: jnp.sum(jnp.where(z > 0, z**p, 0.0)),
        lambda p: jnp.sum(z ** (p * jnp.arange(3.0))),
        lambda p: jnp.sum(jnp.arange(3.0) ** p),
    ]
    both = jax.jit(lambda p: [[ad.grad(model)(p) for model in models] for ad in (ft, jax)])
    for p in (0.0, 1.0):
        np.testing.assert_allclose(*both(p), rtol=1e-6)
    np.testing.assert_allclose(ft.hessian(models[2])(0.0), np.log(2.0) ** 2, rtol=1e-6)


def test_bounds_that_are_exchanged() -> None:
    """`clamp` is `min(max(x, low), high)`; JAX says that nothing is followed in the third."""
    for point, slopes in {
        (0.8, 0.5, 0.4): (0, 0, 1),
        (0.8, 0.6, 0.4): (0, 0, 1),
        (0.8, 0.3, 0.4): (0, 0, 1),
        (0.1, 0.3, 0.4): (0, 1, 0),
        (0.3, 0.1, 0.4): (1, 0, 0),
    }.items():
        assert ft.grad(jax.lax.clamp, (0, 1, 2))(*point) == slopes


@pytest.mark.parametrize("width", WIDTHS)
def test_whole_exponents(width: type) -> None:
    """`y (y-1) (y-2) x^(y-3)` and the like, where a factor is 0 and has a derivative."""
    ys = np.repeat(np.arange(-2, 5), 5).astype(width)
    xs = np.tile(np.asarray([1e-3, 0.3, 1.0, 4.0, 50.0], width), 7)
    check(lax.pow, reference(lambda x, y: x**y), xs, ys)
