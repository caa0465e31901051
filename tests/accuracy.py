"""How exact derivatives are: orders 1 to 3, in both widths, against mpmath.

    check(lax.sin, reference(mpmath.sin), numbers(np.float32))

compares every partial derivative to third order, in forward and in reverse mode, at every point.
The relative error may be `BOUND`; where the exact value has no normal number near it, the answer
must be as small, or as large, as what it stands for, and never NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from math import comb, prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import isfinite, isnan, mp, mpf

import functrans as ft

BOUND = {np.dtype("float32"): 1e-5, np.dtype("float64"): 1e-12}

Orders = tuple[int, ...]
Exact = Callable[..., Any]
"""`exact(orders, *xs)`: the partial derivative of these orders at a point."""


# ---- points --------------------------------------------------------------------------------------


def numbers(
    dtype: Any,
    low: float = -np.inf,
    high: float = np.inf,
    singular: Sequence[float] = (),
    count: int = 24,
    seed: int = 0,
) -> np.ndarray:
    """Numbers between two bounds: tiny, small, moderate, large, extreme, next to singularities.

    The powers of the type's smallest and largest number give the extremes, and `count` more are
    drawn from all magnitudes.  A bound that is finite counts as singular, which is no point itself.
    """
    info, rng = np.finfo(dtype), np.random.default_rng(seed)
    tiny, large, eps = float(info.tiny), float(info.max), float(info.eps)
    log_max = np.log(large)
    sizes = [4 * tiny, tiny**0.75, tiny**0.5, tiny**0.25, eps**2, eps, eps**0.5, 1e-3, 0.1]
    sizes += [0.3, 0.7, 1.3, 3.0, 10.0, log_max / 4, log_max / 2 - 1, log_max - 2]
    sizes += [1 / eps, large**0.3, large**0.5, large**0.75, large / 4]
    sizes += list(np.exp(rng.uniform(np.log(4 * tiny), np.log(large / 4), count // 2)))
    sizes += list(np.exp(rng.uniform(np.log(1e-4), np.log(log_max), count // 2)))
    found = [sign * size for size in sizes for sign in (1, -1)]
    for point in {*singular, *(b for b in (low, high) if np.isfinite(b))}:
        near = [2 * eps, 37 * eps, eps**0.5, 1e-3, 0.04]
        found += [point + sign * step * (abs(point) or 1) for step in near for sign in (1, -1)]
    xs = np.unique(np.asarray(found).astype(dtype))
    return xs[(xs > low) & (xs < high) & ~np.isin(xs, np.asarray(singular, dtype))]


def pairs(xs: np.ndarray, ys: np.ndarray, count: int = 120, seed: int = 0) -> list[np.ndarray]:
    """Some pairs of two lists of numbers, each of which occurs."""
    rng = np.random.default_rng(seed)
    count = max(count, len(xs), len(ys))
    return [rng.permutation(np.resize(rng.permutation(x), count)) for x in (xs, ys)]


# ---- exact values --------------------------------------------------------------------------------


def reference(function: Callable) -> Exact:
    """The derivatives of a function of mpmath's, by differences with as many digits as they take.

    With a step of `h = 2^-120` of the argument's size, or of 1 if that is smaller, the difference
    is exact to 2^-60 even next to a singularity.  It cancels `h^n` of the function, beside what
    lies between the function and its derivative: a power of the argument, or of `e^x`.
    """

    def exact(orders: Orders, *xs: float) -> Any:
        size = max(_bits(x) for x in xs) + max(min(4 * abs(x), 4000) for x in xs)
        with mp.workprec(int(700 + 4 * size) if all(xs) else 9000):
            points = tuple(mpf(float(x)) for x in xs)
            steps = [min(abs(x), mpf(1)) * mpf(2) ** -120 or mpf(2) ** -1200 for x in points]
            total, scale = mpf(0), mpf(1)
            for step, order in zip(steps, orders, strict=True):
                scale *= step**order
            for ks in itertools.product(*(range(order + 1) for order in orders)):
                total += weight(orders, ks) * value(points, tuple(steps), ks, mp.prec)
            return total / scale

    @cache
    def value(points: tuple, steps: tuple, ks: Orders, prec: int) -> Any:
        return function(*(x + k * h for x, k, h in zip(points, ks, steps, strict=True)))

    return exact


def weight(orders: Orders, ks: Orders) -> int:
    """Of the function at `x + k h`, in the difference of these orders."""
    return prod((-1) ** (n - k) * comb(n, k) for n, k in zip(orders, ks, strict=True))


def _bits(x: float) -> float:
    return abs(np.log2(abs(float(x)))) if x else 0.0


# ---- comparison ----------------------------------------------------------------------------------


def orders(arguments: int, highest: int = 3) -> Iterator[Orders]:
    """All partial derivatives to an order: (1, 0), (0, 1), (2, 0), ..."""
    for each in itertools.product(range(highest + 1), repeat=arguments):
        if 1 <= sum(each) <= highest:
            yield each


def forward(fun: Callable, argnum: int) -> Callable:
    def slope(*xs):
        dots = [jnp.ones_like(x) if i == argnum else jnp.zeros_like(x) for i, x in enumerate(xs)]
        return ft.jvp(fun, xs, tuple(dots))[1]

    return slope


def reverse(fun: Callable, argnum: int) -> Callable:
    def slope(*xs):
        y, pull = ft.vjp(fun, *xs)
        return pull(jnp.ones_like(y))[argnum]

    return slope


MODES = {"forward": forward, "reverse": reverse}


def derivatives(fun: Callable, wanted: Sequence[Orders]) -> Callable:
    """One function for all of them: `xs -> {(mode, orders): values}`."""

    def all_of_them(*xs):
        found = {}
        for (mode, slope), each in itertools.product(MODES.items(), wanted):
            derived = fun
            for argnum, order in enumerate(each):
                for _ in range(order):
                    derived = slope(derived, argnum)
            found[mode, each] = derived(*xs)
        return found

    return all_of_them


def mistakes(
    fun: Callable, exact: Exact, *points: np.ndarray, wanted: Sequence[Orders] | None = None
) -> list[str]:
    """Where a derivative of `fun`, which acts on each element by itself, is not exact enough."""
    dtype = points[0].dtype
    wanted = list(orders(len(points))) if wanted is None else wanted
    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(derivatives(fun, wanted))(*points))
    wrong = []
    for each, (i, xs) in itertools.product(wanted, enumerate(zip(*points, strict=True))):
        want = exact(each, *xs)
        for mode in MODES:
            got = found[mode, each][i]
            if not right(got, want, dtype):
                where = ", ".join(f"{x:.9g}" for x in xs)
                text = mp.nstr(want, 8) if isfinite(want) else want
                wrong.append(f"{mode} {each} at {where}: {got:.8g}, not {text}")
    return wrong


def right(got: Any, want: Any, dtype: Any) -> bool:
    info = np.finfo(dtype)
    if isnan(want):
        return bool(np.isnan(got))
    if np.isnan(got):
        return False
    if abs(want) < float(info.tiny):
        return abs(got) <= 1.01 * float(info.tiny)
    if abs(want) > float(info.max):
        return abs(got) >= 0.99 * float(info.max) and (got > 0) == (want > 0)
    return bool(np.isfinite(got)) and abs(mpf(float(got)) / want - 1) <= BOUND[np.dtype(dtype)]


def check(
    fun: Callable, exact: Exact, *points: np.ndarray, wanted: Sequence[Orders] | None = None
) -> None:
    """Fail if a derivative is not exact, and say where."""
    wrong = mistakes(fun, exact, *points, wanted=wanted)
    if wrong:
        raise AssertionError("\n".join([f"{len(wrong)} derivatives are not exact:", *wrong[:20]]))
