"""Flax NNX and Linen: batch norm, dropout, attention; adjoints of what a module names.

`nnx.grad` calls `jax.grad` itself.  A model is differentiated by functrans through NNX's functional
interface: `nnx.split` gives its parameters, `nnx.merge` puts them back inside the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import check_training, close, wide
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

import functrans as ft

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 6, 6, 1))
TOKENS = RNG.integers(0, 5, size=(2, 4))
LABELS = np.array([0, 2, 1, 2])

pytestmark = pytest.mark.usefixtures("float64")


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


class NNXConvolutions(nnx.Module):
    """Convolution, batch norm in training, dropout."""

    def __init__(self, rngs: nnx.Rngs):
        self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(2, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.dense = nnx.Linear(18, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = nnx.avg_pool(x, (2, 2), strides=(2, 2)).reshape(x.shape[0], -1)
        return self.dense(self.dropout(x))


class NNXTransformer(nnx.Module):
    """One encoder block, before which come embeddings of tokens and of positions."""

    def __init__(self, rngs: nnx.Rngs):
        self.tokens = nnx.Embed(5, 4, rngs=rngs)
        self.places = nnx.Param(0.1 * jax.random.normal(rngs.params(), (4, 4)))
        self.attention = nnx.MultiHeadAttention(
            2, 4, dropout_rate=0.1, decode=False, deterministic=False, rngs=rngs
        )
        self.norm1, self.norm2 = nnx.LayerNorm(4, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.up, self.down = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.tokens(tokens) + self.places[...]
        x = x + self.dropout(self.attention(self.norm1(x)))
        x = x + self.down(nnx.gelu(self.up(self.norm2(x))))
        return self.head(jnp.mean(x, axis=1))


class LinenConvolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=False)(nn.Conv(2, (3, 3))(x)))
        x = nn.max_pool(x, (2, 2), strides=(2, 2)).reshape(x.shape[0], -1)
        return nn.Dense(3)(nn.Dropout(0.3, deterministic=False)(x))


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        places = self.param("places", nn.initializers.normal(0.1), (4, 4))
        x = nn.Embed(5, 4)(tokens) + places
        attention = nn.MultiHeadDotProductAttention(2, dropout_rate=0.1, deterministic=False)
        x = x + nn.Dropout(0.2, deterministic=False)(attention(nn.LayerNorm()(x)))
        x = x + nn.Dense(4)(nn.gelu(nn.Dense(8)(nn.LayerNorm()(x))))
        return nn.Dense(3)(jnp.mean(x, axis=1))


def of_nnx(module: Callable, inputs: np.ndarray, labels: np.ndarray) -> tuple[Callable, tuple]:
    """A loss that also returns the model's other state: running means, and keys for dropout."""
    model = nnx.jit(lambda: module(nnx.Rngs(0)))()
    graph, params, others = nnx.split(model, nnx.Param, ...)

    def loss(params, others, inputs, labels):
        model = nnx.merge(graph, params, others)
        value = cross_entropy(model(inputs), labels)
        return value, nnx.split(model, nnx.Param, ...)[2]

    return loss, (wide(params), wide(others), inputs, labels)


def of_linen(module: nn.Module, inputs: np.ndarray, labels: np.ndarray) -> tuple[Callable, tuple]:
    """A loss that also returns the running means."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.jit(module.init)(keys, inputs)
    params = variables.pop("params")

    def loss(params, others, inputs, labels):
        rngs = {"dropout": keys["dropout"]}
        logits, others = module.apply(
            {"params": params, **others}, inputs, rngs=rngs, mutable=list(others)
        )
        return cross_entropy(logits, labels), others

    return loss, (wide(params), wide(variables), inputs, labels)


MODELS: dict[str, Callable[[], tuple[Callable, tuple]]] = {
    "NNX convolutions": lambda: of_nnx(NNXConvolutions, IMAGES, LABELS),
    "NNX transformer": lambda: of_nnx(NNXTransformer, TOKENS, LABELS[:2]),
    "Linen convolutions": lambda: of_linen(LinenConvolutions(), IMAGES, LABELS),
    "Linen transformer": lambda: of_linen(LinenTransformer(), TOKENS, LABELS[:2]),
}


@pytest.mark.parametrize("name", MODELS)
def test_training_and_the_hessian_times_a_vector(name: str) -> None:
    loss, args = MODELS[name]()
    check_training(loss, *args)


# ---- the adjoints of what a module names ---------------------------------------------------------


class LinenNamed(nn.Module):
    """The same value by a name, and by Flax's way, to which an array of zeros is added."""

    @nn.compact
    def __call__(self, x):
        h = checkpoint_name(nn.LayerNorm()(nn.gelu(nn.Dense(4)(x))), "h")
        return nn.Dense(3)(self.perturb("h", h))


class NNXNamed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up, self.down = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.down(checkpoint_name(nnx.gelu(self.up(x)), "h"))


def test_adjoints_in_a_linen_module_are_those_of_its_perturbations() -> None:
    x = RNG.normal(size=(4, 2))
    variables = wide(LinenNamed().init(jax.random.key(0), x))
    params, zeros = variables["params"], variables["perturbations"]

    def loss(params, zeros, labels):
        given = {"params": params, "perturbations": zeros}
        logits: Any = LinenNamed().apply(given, x)
        return cross_entropy(logits, labels)

    value, bars, gradient = jax.jit(
        lambda *args: ft.value_and_adjoints(lambda p: loss(p, *args[1:]), argnums=0)(args[0])
    )(params, zeros, LABELS)
    want = jax.jit(jax.value_and_grad(loss, (0, 1)))(params, zeros, LABELS)
    close((value, (gradient, bars)), want)


def test_adjoints_in_an_nnx_module() -> None:
    model, x, labels = (
        NNXNamed(nnx.Rngs(0)),
        jnp.asarray(RNG.normal(size=(4, 2))),
        jnp.asarray(LABELS),
    )
    graph, params = nnx.split(model, nnx.Param)
    params = wide(params)

    def loss(params):
        return cross_entropy(nnx.merge(graph, params)(x), labels)

    def after(h):
        return cross_entropy(nnx.merge(graph, params).down(h), labels)

    h = nnx.gelu(nnx.merge(graph, params).up(x))
    value, bars, gradient = ft.value_and_adjoints(ft.jit(loss), "h", argnums=0)(params)
    close((value, bars["h"]), jax.jit(jax.value_and_grad(after))(h))
    close(gradient, jax.jit(jax.grad(loss))(params))
