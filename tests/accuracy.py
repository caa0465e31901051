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
from mpmath import isnan, mp, mpf

import functrans as ft

BOUND = {4: 1e-5, 8: 1e-12}
"""The relative error, by the bytes of a real number."""

MARGIN = 64.0
"""A factor of a product may leave the range of numbers so much earlier than the product does."""

Orders = tuple[int, ...]
Exact = Callable[..., Any]
"""`exact(orders, *xs)`: the partial derivative of these orders at a point."""


# ---- points --------------------------------------------------------------------------------------


def numbers(
    dtype: Any,
    low: float = -np.inf,
    high: float = np.inf,
    singular: Sequence[float] = (),
    least: float = 0.0,
    power: int = 1,
    count: int = 12,
    seed: int = 0,
) -> np.ndarray:
    """Numbers between two bounds: tiny, small, moderate, large, extreme, next to singularities.

    The powers of the type's smallest and largest number give the extremes, and `count` more are
    drawn from all magnitudes.  `least` is the smallest of all, and the `power` of each is a normal
    number.  A bound that is finite counts as singular, which is no point itself.
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
    xs = xs[(abs(xs) >= max(least, tiny ** (1 / power))) & (abs(xs) <= large ** (1 / power))]
    return xs[(xs > low) & (xs < high) & ~np.isin(xs, np.float64(singular))]


def complex_numbers(dtype: Any, count: int = 40, seed: int = 0) -> np.ndarray:
    """Numbers of many magnitudes and all directions, and some next to 1, -1, i and -i.

    Those far out are not so large that the sixth power of one, or of its square, leaves the range.
    """
    info, rng = np.finfo(dtype), np.random.default_rng(seed)
    bounds = [np.log(float(info.tiny)) / 3, np.log(float(info.max)) / 3]
    logs = [rng.uniform(*bounds, count // 2), rng.uniform(-6, 4, count // 2)]
    zs = np.exp(np.concatenate(logs) + 1j * rng.uniform(-np.pi, np.pi, 2 * (count // 2)))
    steps = np.array([1e-3, 4 * float(info.eps) ** 0.5])[:, None] * np.exp(
        1j * rng.uniform(-3, 3, 4)
    )
    return np.concatenate([zs, *(1j**k + steps.ravel() for k in range(4))]).astype(dtype)


def pairs(*lists: np.ndarray, count: int = 60, seed: int = 0) -> list[np.ndarray]:
    """Points with several coordinates: each number of each list occurs, beside some others."""
    rng = np.random.default_rng(seed)
    count = max(count, *map(len, lists))
    return [rng.permutation(np.resize(rng.permutation(xs), count)) for xs in lists]


# ---- exact values --------------------------------------------------------------------------------


def reference(function: Callable) -> Exact:
    """The derivatives of a function of mpmath's, by differences with as many digits as they take.

    With a step of `h = 2^-120` of the argument's size, or of 1 if that is smaller, the difference
    is exact to 2^-60 even next to a singularity.  It cancels `h^n` of the function, beside what
    lies between the function and its derivative: a power of the argument, or of `e^x`.
    """

    def exact(orders: Orders, *xs: float) -> Any:
        size, decay = max(_bits(x) for x in xs), max(min(4 * abs(x), 3000) for x in xs)
        with mp.workprec(int(1500 + 4 * size + decay) if all(xs) else 9000):
            points = tuple(mp.mpmathify(x.item()) for x in map(np.asarray, xs))
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
    return abs(np.log2(float(abs(x)))) if x else 0.0


# ---- comparison ----------------------------------------------------------------------------------


def orders(arguments: int, highest: int = 3) -> Iterator[Orders]:
    """All partial derivatives to an order: (1, 0), (0, 1), (2, 0), ..."""
    for each in itertools.product(range(highest + 1), repeat=arguments):
        if 1 <= sum(each) <= highest:
            yield each


def forward(fun: Callable, argnum: int, has_aux: bool = False) -> Callable:
    """One argument moves; to the others no tangent is given, not even zero.

    With `has_aux`, `fun` also returns a tuple, and so does its slope: `fun`'s value, and that.
    """

    def slope(*xs):
        def of_one(x):
            return fun(*xs[:argnum], x, *xs[argnum + 1 :])

        x_dot = jnp.ones_like(xs[argnum])
        y, y_dot, *aux = ft.jvp(of_one, (xs[argnum],), (x_dot,), has_aux=has_aux)
        return (y_dot, (y, *aux[0])) if has_aux else y_dot

    return slope


def reverse(fun: Callable, argnum: int, has_aux: bool = False) -> Callable:
    def slope(*xs):
        def of_one(x):
            return fun(*xs[:argnum], x, *xs[argnum + 1 :])

        y, pull, *aux = ft.vjp(of_one, xs[argnum], has_aux=has_aux)
        [x_bar] = pull(jnp.ones_like(y))
        return (x_bar, (y, *aux[0])) if has_aux else x_bar

    return slope


MODES = {"forward": forward, "reverse": reverse}


def derivatives(fun: Callable, wanted: Sequence[Orders]) -> Callable:
    """One function for all of them: `xs -> {(mode, orders): values}`.

    The slope of a derivative comes with its value, so that the highest orders bring the others.
    """

    def all_of_them(*xs):
        found = {}
        for mode, each in itertools.product(MODES, sorted(wanted, key=sum, reverse=True)):
            if (mode, each) not in found:
                found |= {(mode, lower): y for lower, y in chain(mode, each, xs)}
        return {(mode, each): found[mode, each] for mode in MODES for each in wanted}

    def chain(mode: str, each: Orders, xs: tuple) -> Iterator[tuple[Orders, Any]]:
        """This derivative, and those on the way to it, which takes one argument after another."""
        derived, way = lambda *xs: (fun(*xs), ()), [(0,) * len(each)]
        for argnum, order in enumerate(each):
            for _ in range(order):
                derived = MODES[mode](derived, argnum, has_aux=True)
                way.append((*way[-1][:argnum], way[-1][argnum] + 1, *way[-1][argnum + 1 :]))
        y, lower = derived(*xs)
        return zip(reversed(way), (y, *lower), strict=True)

    return all_of_them


def mistakes(
    fun: Callable,
    exact: Exact,
    *points: np.ndarray,
    wanted: Sequence[Orders] | None = None,
    margin: float = MARGIN,
) -> list[str]:
    """Where a derivative of `fun`, which acts on each element by itself, is not exact enough."""
    dtype = points[0].dtype
    wanted = list(orders(len(points))) if wanted is None else wanted
    with jax.enable_x64(True):
        found = jax.device_get(ft.jit(derivatives(fun, wanted))(*points))
    wrong = []
    for each, (i, xs) in itertools.product(wanted, enumerate(zip(*points, strict=True))):
        want = exact(each, *xs)
        for mode in MODES:
            got = found[mode, each][i]
            if not right(got, want, dtype, margin) and not is_near_zero(got, want, exact, each, xs):
                where = ", ".join(f"{x.item():.9g}" for x in xs)
                text = mp.nstr(want, 8)
                wrong.append(f"{mode} {each} at {where}: {got.item():.8g}, not {text}")
    return wrong


def right(got: Any, want: Any, dtype: Any, margin: float = MARGIN) -> bool:
    info = np.finfo(dtype)
    if isnan(want):
        return bool(np.isnan(got))
    if abs(want) > float(info.max) / margin and not np.isfinite(got):
        return bool(np.isnan(got)) or np.iscomplexobj(got) or (got > 0) == (want > 0)
    if abs(want) < margin * float(info.tiny):
        return abs(got) < 2 * margin * float(info.tiny)
    if abs(want) > float(info.max):
        return False
    # A term of a sum is 0 where it is smaller than the smallest number.
    allowed = BOUND[info.dtype.itemsize] * abs(want) + margin * float(info.tiny)
    return bool(np.isfinite(got)) and abs(mp.mpmathify(got.item()) - want) <= allowed


def is_near_zero(got: Any, want: Any, exact: Exact, each: Orders, xs: tuple) -> bool:
    """Whether a rounding of the arguments, or of 1, makes a difference as large as the mistake.

    Next to a zero of a derivative nothing else can be asked of it.
    """
    slopes = 0
    for i, x in enumerate(xs):
        further = (*each[:i], each[i] + 1, *each[i + 1 :])
        slopes += min(float(abs(x)), 1.0) * abs(exact(further, *xs))
    info = np.finfo(xs[0].dtype)
    allowed = 4 * float(info.eps) * slopes
    if allowed > float(info.max):
        return True
    return bool(np.isfinite(got)) and abs(mp.mpmathify(got.item()) - want) <= allowed


def check(fun: Callable, exact: Exact, *points: np.ndarray, **options: Any) -> None:
    """Fail if a derivative is not exact, and say where."""
    wrong = mistakes(fun, exact, *points, **options)
    if wrong:
        raise AssertionError("\n".join([f"{len(wrong)} derivatives are not exact:", *wrong[:20]]))
