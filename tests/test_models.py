"""Real programs: unmodified models and losses of Flax and Optax, and a network written by hand.

functrans's gradients are those of `jax.grad`, and train the same network.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from repeated import repeated_after

import functrans as ft

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 8, 8, 1)).astype(np.float32)
LABELS = RNG.integers(0, 4, size=6)
KEY = jax.random.key(0)


class Model(NamedTuple):
    """A loss of parameters and a batch."""

    loss: Callable[[Any, jax.Array, jax.Array], jax.Array]
    params: Any


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        x = nn.LayerNorm()(nn.gelu(nn.Dense(8)(x)))
        x = nn.Dropout(0.2, deterministic=False)(x, rng=jax.random.key(1))
        return nn.Dense(4)(x)


class CNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        x = nn.silu(nn.GroupNorm(num_groups=2)(nn.Conv(4, (3, 3), strides=2)(x)))
        return nn.Dense(4)(nn.max_pool(x, (2, 2)).reshape(x.shape[0], -1))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        tokens = nn.Embed(5, 6)(jnp.argmax(x[:, :5, :5, 0], axis=-1))
        x = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(tokens)) + tokens
        return nn.Dense(4)(jnp.mean(x, axis=1))


def of_linen(module: nn.Module) -> Model:
    def loss(params, images, labels):
        logits = module.apply(params, images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return Model(loss, module.init(KEY, IMAGES))


def by_hand() -> Model:
    """As the demo's: convolution, ReLU, pooling, a dense layer, cross-entropy."""

    def loss(params, images, labels):
        x = lax.conv_general_dilated(
            images, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x + params["bias"])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        scores = jax.nn.log_softmax(x.reshape(x.shape[0], -1) @ params["dense"])
        return -jnp.mean(jnp.take_along_axis(scores, labels[:, None], axis=1))

    kernel, dense = (jax.random.normal(KEY, shape) for shape in [(3, 3, 1, 3), (48, 4)])
    return Model(loss, {"kernel": 0.3 * kernel, "bias": jnp.zeros(3), "dense": 0.3 * dense})


def of_nnx() -> Model:
    """Flax NNX through its functional interface: `split` and `merge`."""

    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
            self.dense = nnx.Linear(128, 4, rngs=rngs)

        def __call__(self, x):
            return self.dense(nnx.relu(self.conv(x)).reshape(x.shape[0], -1))

    graph, params = nnx.split(Net(nnx.Rngs(0)))

    def loss(params, images, labels):
        logits = nnx.merge(graph, params)(images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    return Model(loss, params)


def of_optax() -> Model:
    """Losses of Optax on a linear model."""

    def loss(params, images, labels):
        logits = images.reshape(images.shape[0], -1) @ params
        targets = optax.smooth_labels(jax.nn.one_hot(labels, 4), 0.1)
        terms = [
            optax.huber_loss(logits, targets, delta=0.5),
            optax.sigmoid_focal_loss(logits, targets),
            optax.log_cosh(logits, targets),
            optax.cosine_distance(logits, targets, epsilon=1e-6),
        ]
        return sum(jnp.mean(term) for term in terms) + 1e-2 * optax.tree.norm(params)

    return Model(loss, 0.1 * jax.random.normal(KEY, (64, 4)))


MODELS: dict[str, Callable[[], Model]] = {
    "linen MLP": cache(lambda: of_linen(MLP())),
    "linen CNN": cache(lambda: of_linen(CNN())),
    "linen attention": cache(lambda: of_linen(Attention())),
    "by hand": cache(by_hand),
    "NNX": cache(of_nnx),
    "Optax losses": cache(of_optax),
}
every_model = pytest.mark.parametrize("name", MODELS)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def close(got: Any, want: Any) -> None:
    chex.assert_trees_all_equal_structs(got, want)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=2e-6)


@every_model
def test_the_gradient_is_that_of_jax(name: str) -> None:
    loss, params = MODELS[name]()
    ours, theirs = ft.value_and_grad(ft.jit(loss)), jax.value_and_grad(loss)
    # In one program: XLA compiles once what both of them write.
    got, want = jax.jit(lambda *args: (ours(*args), theirs(*args)))(params, IMAGES, LABELS)
    assert sum(float(np.sum(np.square(g))) for g in jax.tree.leaves(want[1])) > 1e-4
    close(got, want)


def test_eager_and_compiled_by_jax() -> None:
    loss, params = MODELS["by hand"]()
    want = jax.grad(loss)(params, IMAGES, LABELS)
    close(ft.grad(loss)(params, IMAGES, LABELS), want)
    close(ft.jit(ft.grad(loss))(params, IMAGES, LABELS), want)
    close(jax.jit(ft.grad(jax.jit(loss)))(params, IMAGES, LABELS), want)


@pytest.mark.parametrize(
    "name", repeated_after(1, ["linen MLP", "linen CNN", "linen attention", "by hand"])
)
def test_three_steps_of_training(name: str) -> None:
    loss, params = MODELS[name]()
    # Adam divides by the size of a gradient: without `eps` the rounding of a zero would be seen.
    optimizer = optax.adam(1e-2, eps=1e-3)

    def trained(value_and_grad: Callable, jit: Callable) -> tuple:
        @jit
        def step(params, state):
            value, gradient = value_and_grad(loss)(params, IMAGES, LABELS)
            updates, state = optimizer.update(gradient, state, params)
            return optax.apply_updates(params, updates), state, value

        now, state, losses = params, optimizer.init(params), []
        for _ in range(3):
            now, state, value = step(now, state)
            losses.append(value)
        return now, losses

    params_ours, losses_ours = trained(ft.value_and_grad, ft.jit)
    params_jax, losses_jax = trained(jax.value_and_grad, jax.jit)
    assert losses_ours[-1] < losses_ours[0]
    chex.assert_trees_all_close(losses_ours, losses_jax, rtol=1e-4)
    chex.assert_trees_all_close(params_ours, params_jax, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", repeated_after(1, ["linen CNN", "by hand", "Optax losses"]))
def test_gradients_for_each_example(name: str) -> None:
    loss, params = MODELS[name]()

    def each(grad: Callable) -> Any:
        one = grad(lambda params, image, label: loss(params, image[None], label[None]))
        return jax.vmap(one, (None, 0, 0))(params, IMAGES, LABELS)

    close(*jax.jit(lambda: (each(ft.grad), each(jax.grad)))())


@pytest.mark.parametrize(
    "name", repeated_after(1, ["NNX", "linen MLP", "linen attention", "by hand"])
)
def test_the_hessian_times_a_vector(name: str) -> None:
    loss, params = MODELS[name]()
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(1)
    v = structure.unflatten(jnp.asarray(rng.normal(size=x.shape), x.dtype) for x in leaves)

    def objective(params):
        return loss(params, IMAGES, LABELS)

    def both(params, v):
        want = jax.jvp(jax.grad(objective), (params,), (v,))[1]
        return ft.hvp(ft.jit(objective), params, v), want

    close_at_scale(*jax.jit(both)(params, v))


def close_at_scale(got: Any, want: Any) -> None:
    """Second derivatives in float32: the largest entry says how exact the others can be."""
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    largest = max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(want))
    assert largest > 1e-3
    chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-5 * max(1.0, largest))
