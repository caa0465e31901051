"""The derivatives of the functions of each element, to third order, against mpmath.

What is compared is relative to the exact value, at tiny and at extreme arguments and next to
singularities, where JAX's own derivatives are not always right.
"""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from accuracy import check, mistakes, numbers, orders, pairs, reference
from jax import lax
from mpmath import mp

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


@pytest.mark.parametrize("width", WIDTHS)
def test_sine(width: type) -> None:
    check(lax.sin, reference(mpmath.sin), numbers(width))


@pytest.mark.parametrize("width", WIDTHS)
def test_product(width: type) -> None:
    xs = numbers(width)
    check(lax.mul, reference(lambda x, y: x * y), *pairs(xs, xs))
