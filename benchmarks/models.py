"""Networks: perceptrons, transformers, an LSTM, a convolutional net, a neural ODE.

Each is `sizes -> Problem(fun, x, data)`, and `fun(x, *data)` a scalar: a mean loss as a user would
write it.  The body of a loop is a new function at each call, so that it is traced each time.

Read next: `numerics.py`.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.problem import Problem

Tree = Any


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def dense(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """A matrix that keeps the variance of what it multiplies."""
    return rng.normal(size=(n, m)) / np.sqrt(n)


# ---- perceptron ----------------------------------------------------------------------------------


def perceptron_loss(params: list, x: Any, y: Any, np: Any = jnp) -> Any:
    for weight, bias in params[:-1]:
        x = np.tanh(x @ weight + bias)
    weight, bias = params[-1]
    return np.mean((x @ weight + bias - y) ** 2)


def perceptron(widths: tuple[int, ...], batch: int) -> Problem:
    rng = random()
    params = [(dense(rng, n, m), np.zeros(m)) for n, m in pairwise(widths)]
    x, y = rng.normal(size=(batch, widths[0])), rng.normal(size=(batch, widths[-1]))
    return Problem(perceptron_loss, params, (x, y))


def network_loss(params: list, x: Any) -> Any:
    for weight, bias in params:
        x = jax.nn.gelu(x @ weight + bias)
    return jnp.mean(x**2)


def network(width: int, layers: int, batch: int) -> Problem:
    """Layers with a `gelu`, of which JAX keeps several arrays each."""
    rng = random()
    params = [(dense(rng, width, width), np.zeros(width)) for _ in range(layers)]
    return Problem(network_loss, params, (rng.normal(size=(batch, width)),))


def three_layers(width: int, batch: int, steps: int) -> Problem:
    """A loop over three residual layers: three products, and much between them."""
    rng = random()

    def loss(weight: Any, x: Any) -> Any:
        def step(c, _):
            for _ in range(3):
                c = jnp.tanh(jnp.sin(c) @ weight + c / 2) * jax.nn.gelu(c) + c
            return jnp.sin(c), None

        return jnp.mean(lax.scan(step, x, None, length=steps)[0] ** 2)

    return Problem(loss, dense(rng, width, width), (rng.normal(size=(batch, width)),))


# ---- transformer ---------------------------------------------------------------------------------


def normalize(scale: Any, x: Any) -> Any:
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.var(x, axis=-1, keepdims=True)
    return scale * (x - mean) * lax.rsqrt(variance + 1e-6)


def transformer_block(layer: dict[str, Any], x: Any, heads: int) -> Any:
    """Self-attention, then a perceptron: each reads `x[batch, time, d]` normalized, and adds."""

    def split(part: Any) -> Any:
        return part.reshape(*part.shape[:2], heads, -1)

    h = normalize(layer["norm1"], x)
    query, key, value = map(split, jnp.split(h @ layer["qkv"], 3, axis=-1))
    scores = jnp.einsum("bthd,bshd->bhts", query, key) / np.sqrt(query.shape[-1])
    attention = jax.nn.softmax(scores, axis=-1)
    x = x + jnp.einsum("bhts,bshd->bthd", attention, value).reshape(x.shape) @ layer["out"]
    h = normalize(layer["norm2"], x)
    return x + jax.nn.gelu(h @ layer["up"] + layer["bias"]) @ layer["down"]


def transformer(layers: int, scanned: bool, d: int, heads: int, batch: int, time: int) -> Problem:
    rng = random()
    params = [
        {
            "norm1": np.ones(d),
            "qkv": dense(rng, d, 3 * d),
            "out": dense(rng, d, d),
            "norm2": np.ones(d),
            "up": dense(rng, d, 4 * d),
            "bias": np.zeros(4 * d),
            "down": dense(rng, 4 * d, d),
        }
        for _ in range(layers)
    ]
    x, y = rng.normal(size=(2, batch, time, d))

    def unrolled_loss(params: Tree, x: Any, y: Any) -> Any:
        for layer in params:
            x = transformer_block(layer, x, heads)
        return jnp.mean((x - y) ** 2)

    def scanned_loss(params: Tree, x: Any, y: Any) -> Any:
        x, _ = lax.scan(lambda x, layer: (transformer_block(layer, x, heads), None), x, params)
        return jnp.mean((x - y) ** 2)

    if scanned:
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *params)
        return Problem(scanned_loss, stacked, (x, y))
    return Problem(unrolled_loss, params, (x, y))


# ---- recurrent, convolutional, continuous --------------------------------------------------------


def lstm_loss(params: dict[str, Any], xs: Any, y: Any) -> Any:
    """A long short-term memory over `xs[time, batch, input]`; its last state is to be `y`."""

    def step(state, x):
        h, c = state
        gates = x @ params["input"] + h @ params["hidden"] + params["bias"]
        take, forget, give, new = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(forget) * c + jax.nn.sigmoid(take) * jnp.tanh(new)
        return (jax.nn.sigmoid(give) * jnp.tanh(c), c), None

    (h, _), _ = lax.scan(step, (jnp.zeros_like(y), jnp.zeros_like(y)), xs)
    return jnp.mean((h - y) ** 2)


def lstm(steps: int, batch: int, hidden: int) -> Problem:
    rng = random()
    params = {
        "input": dense(rng, hidden, 4 * hidden),
        "hidden": dense(rng, hidden, 4 * hidden),
        "bias": np.zeros(4 * hidden),
    }
    xs, y = rng.normal(size=(steps, batch, hidden)), rng.normal(size=(batch, hidden))
    return Problem(lstm_loss, params, (xs, y))


def convnet_loss(params: dict[str, Any], images: Any, labels: Any) -> Any:
    x = images
    for kernel, bias in params["convolutions"]:
        numbers = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers)
        x = jax.nn.relu(x + bias)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    logits = x.reshape(len(x), -1) @ params["dense"]
    return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(logits), axis=-1))


def convnet(batch: int, size: int, channels: tuple[int, ...]) -> Problem:
    rng = random()
    convolutions = [
        (rng.normal(size=(3, 3, n, m)) / np.sqrt(9 * n), np.zeros(m)) for n, m in pairwise(channels)
    ]
    side = size // 2 ** len(convolutions)
    params = {"convolutions": convolutions, "dense": dense(rng, side**2 * channels[-1], 10)}
    images = rng.normal(size=(batch, size, size, channels[0]))
    labels = np.eye(10)[rng.integers(10, size=batch)]
    return Problem(convnet_loss, params, (images, labels))


def neural_ode(steps: int, batch: int, state: int, hidden: int) -> Problem:
    """`dy/dt = W2 tanh(W1 y + b)` from 0 to 1, by the classical Runge-Kutta method of order 4."""
    rng = random()
    params = {
        "W1": dense(rng, state, hidden),
        "b": np.zeros(hidden),
        "W2": dense(rng, hidden, state),
    }

    def loss(params: Tree, start: Any, end: Any) -> Any:
        def field(y):
            return jnp.tanh(y @ params["W1"] + params["b"]) @ params["W2"]

        def step(y, _):
            k1 = field(y)
            k2 = field(y + 0.5 / steps * k1)
            k3 = field(y + 0.5 / steps * k2)
            k4 = field(y + 1.0 / steps * k3)
            return y + (k1 + 2.0 * k2 + 2.0 * k3 + k4) / (6.0 * steps), None

        y, _ = lax.scan(step, start, None, length=steps)
        return jnp.mean((y - end) ** 2)

    start, end = rng.normal(size=(2, batch, state))
    return Problem(loss, params, (start, end))
