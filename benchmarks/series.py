"""Series: programs whose derivatives of order 6 are taken, by a jet and by `jvp`s of `jvp`s.

    jet          beside `jax.experimental.jet`
    derivatives  beside nested `jax.jvp`s

Read next: `workloads.py`, whose table names the sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import jet as jax_jet

import functrans as ft
from benchmarks.models import dense, random
from benchmarks.problem import Problem

ORDER = 6


def perceptron(width: int, layers: int, batch: int) -> Problem:
    rng = random()

    def f(x: Any, weights: Any) -> Any:
        for weight in weights:
            x = jnp.tanh(x @ weight)
        return x

    return Problem(f, rng.normal(size=(batch, width)), ([dense(rng, width, width)] * layers,))


def recurrent(width: int, steps: int, batch: int) -> Problem:
    """The same layer again and again, in a loop."""
    rng = random()

    def f(x: Any, weight: Any) -> Any:
        return lax.scan(lambda x, _: (jnp.tanh(x @ weight), None), x, length=steps)[0]

    return Problem(f, rng.normal(size=(batch, width)), (dense(rng, width, width),))


def jet(ad: Any, fun: Callable) -> Callable:
    """The coefficients along a line."""

    def at(x, v, *data):
        def f(x):
            return fun(x, *data)

        if ad is ft:
            return ft.jet(f, (x,), ([v],), order=ORDER)
        series = [v, *[jnp.zeros_like(v)] * (ORDER - 1)]
        return jax_jet.jet(f, (x,), (series,), factorial_scaled=False)

    return at


def derivatives(ad: Any, fun: Callable) -> Callable:
    """The value and all derivatives in a direction."""

    def at(x, v, *data):
        def f(x):
            return [fun(x, *data)]

        def one_more(g):
            def pushed(x):
                values, dots = jax.jvp(g, (x,), (v,))
                return [*values, dots[-1]]

            return pushed

        if ad is ft:
            return ft.derivatives(lambda x: fun(x, *data), ORDER)(x, v)
        for _ in range(ORDER):
            f = one_more(f)
        return f(x)

    return at
