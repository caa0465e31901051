"""What the reverse pass keeps: peak memory beside JAX, the policies of `checkpoint`, a list of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functrans as ft


def array(*shape: int, scale: float = 0.3) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(list(shape)).normal(size=shape), jnp.float32)


# Programs with loops.


def lstm(params, xs):
    def step(state, x):
        hidden, cell = state
        gates = x @ params["x"] + hidden @ params["h"] + params["b"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    start = jnp.zeros((xs.shape[1], params["h"].shape[0]))
    return jnp.mean(lax.scan(step, (start, start), xs)[1] ** 2)


LSTM = {"x": array(8, 64), "h": array(16, 64), "b": array(64)}


def transformer(layers, x):
    """Twelve layers, scanned: attention and a perceptron, with residual connections."""

    def normalize(x):
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    def layer(x, p):
        q, k, v = jnp.split(normalize(x) @ p["qkv"], 3, axis=-1)
        weights = jax.nn.softmax(q @ k.T / np.sqrt(k.shape[-1]))
        x = x + weights @ v @ p["out"]
        return x + jax.nn.gelu(normalize(x) @ p["up"]) @ p["down"], None

    return jnp.mean(lax.scan(layer, x, layers)[0] ** 2)


LAYERS = {
    "qkv": array(12, 16, 48),
    "out": array(12, 16, 16),
    "up": array(12, 16, 32),
    "down": array(12, 32, 16),
}


def ode(params, y):
    """Runge and Kutta's method with a fixed step, for a field that is a small network."""

    def field(y):
        return jnp.tanh(y @ params["w"] + params["b"]) @ params["v"]

    def step(y, h):
        k1 = field(y)
        k2 = field(y + h / 2 * k1)
        k3 = field(y + h / 2 * k2)
        k4 = field(y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return jnp.mean(lax.scan(step, y, jnp.full(50, 0.1))[0] ** 2)


FIELD = {"w": array(8, 32), "b": array(32), "v": array(32, 8)}

PROGRAMS: dict[str, tuple[Callable, tuple]] = {
    "LSTM": (lstm, (LSTM, array(30, 4, 8))),
    "transformer": (transformer, (LAYERS, array(10, 16))),
    "ODE": (ode, (FIELD, array(4, 8))),
}


def temporary_memory(fun: Callable, *args: Any) -> int:
    return jax.jit(fun).lower(*args).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", PROGRAMS)
def test_peak_memory_is_at_most_that_of_jax(name):
    fun, args = PROGRAMS[name]
    chex.assert_trees_all_close(
        ft.jit(ft.grad(fun))(*args), jax.jit(jax.grad(fun))(*args), rtol=1e-3, atol=1e-6
    )
    ours, theirs = temporary_memory(ft.grad(fun), *args), temporary_memory(jax.grad(fun), *args)
    assert ours <= theirs
