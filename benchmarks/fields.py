"""Fields: perceptrons of points, as they stand for solutions of equations, and their Laplacians.

    by_hand : the same as functrans's, written out for one activation
    folx    : the package, where it is installed

Read next: `sparsity.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.models import dense, random
from benchmarks.problem import Problem


class Field:
    """`x -> f(x)` of one point, or of several."""

    def __init__(self, activation: str):
        self.activation = getattr(jax.nn, activation)
        self.derivatives = DERIVATIVES[activation]
        self.__name__ = f"{activation}_field"

    def __call__(self, x: Any, params: list) -> Any:
        for weight, bias in params[:-1]:
            x = self.activation(x @ weight + bias)
        weight, bias = params[-1]
        return (x @ weight + bias)[..., 0]

    def by_hand(self, x: Any, params: list) -> Any:
        """The Laplacian at one point: all first derivatives, and the sum of the second ones."""
        firsts, laplacian = jnp.eye(len(x)), jnp.zeros_like(x)
        for i, (weight, bias) in enumerate(params[:-1]):
            firsts, u = firsts @ weight, x @ weight + bias
            x, slope, bend = self.derivatives(u)
            below = slope * (laplacian @ weight) if i else 0.0
            laplacian = below + bend * jnp.sum(firsts**2, axis=0)
            firsts = slope * firsts
        return (laplacian @ params[-1][0])[0]


def of_tanh(x: Any) -> tuple:
    y = jnp.tanh(x)
    slope = 1 - y * y
    return y, slope, -2 * y * slope


def of_softplus(x: Any) -> tuple:
    s = jax.nn.sigmoid(x)
    return jnp.logaddexp(x, 0.0), s, s * (1 - s)


def of_gelu(x: Any) -> tuple:
    """`x (1 + t) / 2` with `t = tanh(a (x + b x^3))`."""
    a, b = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)
    inner, inner_bend = a * (1 + 3 * b * x * x), 6 * a * b * x
    t, slope, bend = of_tanh(a * (x + b * x**3))
    slope, bend = slope * inner, bend * inner * inner + slope * inner_bend
    return 0.5 * x * (1 + t), 0.5 * (1 + t + x * slope), slope + 0.5 * x * bend


DERIVATIVES = {"tanh": of_tanh, "softplus": of_softplus, "gelu": of_gelu}


def field(activation: str, dimensions: int, width: int, layers: int, batch: int) -> Problem:
    rng = random()
    widths = [dimensions, *[width] * layers, 1]
    params = [(dense(rng, n, m), 0.1 * rng.normal(size=m)) for n, m in pairwise(widths)]
    x = rng.normal(size=(batch, dimensions))
    single = jax.tree.map(np.float32, (x, params))
    return Problem(Field(activation), single[0], (single[1],))


def nested(fun: Callable) -> Callable:
    """The Laplacian as one has it of JAX: a second derivative in each direction, summed."""

    def at(x):
        def second(v):
            return jax.jvp(lambda x: jax.jvp(fun, (x,), (v,))[1], (x,), (v,))[1]

        return jnp.sum(jax.vmap(second)(jnp.eye(len(x), dtype=x.dtype)))

    return at


def at_each(laplacian: Callable, fun: Callable) -> Callable:
    """Of each point of a batch, where `laplacian` is a transform of functions of one."""
    return lambda xs, *data: jax.vmap(laplacian(lambda x: fun(x, *data)))(xs)


def others(problem: Problem) -> dict[str, Callable]:
    """The same by others, as functions of `x, *data`."""
    by_hand = problem.fun.by_hand  # type: ignore
    found = {"by hand": lambda xs, params: jax.vmap(lambda x: by_hand(x, params))(xs)}
    if find_spec("folx"):
        folx = import_module("folx")
        found["folx"] = at_each(
            lambda fun: lambda x: folx.forward_laplacian(fun)(x).laplacian, problem.fun
        )
    return found
