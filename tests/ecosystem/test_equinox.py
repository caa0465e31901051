"""Equinox: a recurrent network, and a continuous normalizing flow.

`eqx.filter_grad` and its like call `jax.grad` themselves.  A model is differentiated by functrans
as a pytree of arrays: `eqx.partition` takes them out, `eqx.combine` puts them back in the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import check_derivatives, check_training, close, wide
from jax.ad_checkpoint import checkpoint_name

import functrans as ft

RNG = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("float64")


class Recurrent(eqx.Module):
    """A cell under `lax.scan`; the last state says yes or no."""

    cell: Any
    norm: eqx.nn.LayerNorm
    dropout: eqx.nn.Dropout
    head: eqx.nn.Linear

    def __init__(self, cell: Callable, key: jax.Array):
        first, second = jax.random.split(key)
        self.cell = cell(2, 3, key=first)
        self.norm = eqx.nn.LayerNorm(3)
        self.dropout = eqx.nn.Dropout(0.3)
        self.head = eqx.nn.Linear(3, 1, key=second)

    def __call__(self, xs, key):
        zero = jnp.zeros(3)
        start = (zero, zero) if isinstance(self.cell, eqx.nn.LSTMCell) else zero
        last, _ = jax.lax.scan(lambda state, x: (self.cell(x, state), None), start, xs)
        hidden = last[0] if isinstance(last, tuple) else last
        return self.head(self.dropout(self.norm(hidden), key=key))[0]


@pytest.mark.parametrize("cell", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_recurrent_networks(cell: Callable) -> None:
    params, static = eqx.partition(Recurrent(cell, jax.random.key(0)), eqx.is_inexact_array)

    def loss(params, sequences, labels):
        model = eqx.combine(params, static)
        keys = jax.random.split(jax.random.key(1), len(labels))
        scores = jax.vmap(model)(sequences, keys)
        return jnp.mean(jax.nn.softplus(scores) - labels * scores), scores

    sequences, labels = RNG.normal(size=(3, 4, 2)), np.array([0.0, 1.0, 1.0])
    check_training(loss, wide(params), sequences, labels)


def test_a_convolutional_network_with_state() -> None:
    """Batch norm keeps its means in a state, which goes through the model beside the values."""

    class Convolutions(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear

        def __init__(self, key):
            first, second = jax.random.split(key)
            self.conv = eqx.nn.Conv2d(1, 2, 3, key=first)
            self.norm = eqx.nn.BatchNorm(2, "batch", mode="batch")
            self.head = eqx.nn.Linear(8, 1, key=second)

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            x = eqx.nn.MaxPool2d(2, 2)(jax.nn.gelu(x))
            return self.head(x.reshape(-1))[0], state

    model, state = eqx.nn.make_with_state(Convolutions)(jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def loss(params, state, images):
        model = eqx.combine(params, static)
        batched = jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
        scores, state = batched(images, state)
        return jnp.mean(jnp.square(scores - 1.0)), state

    check_training(loss, wide(params), wide(state), RNG.normal(size=(3, 1, 6, 6)))


def test_a_continuous_normalizing_flow() -> None:
    """The flow moves a point and its log density, `d/dt log p = -trace(df/dy)`, by Euler's steps.

    The trace is taken with `jax.jacfwd`, inside what functrans differentiates.
    """
    field = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(field, eqx.is_inexact_array)
    points = RNG.normal(size=(3, 2))

    def log_density(params, point):
        field = eqx.combine(params, static)

        def step(state, time):
            y, change = state

            def velocity(y):
                return field(jnp.append(y, time))

            trace = jnp.trace(jax.jacfwd(velocity)(y))
            return (y + 0.25 * velocity(y), change - 0.25 * trace), None

        (y, change), _ = jax.lax.scan(step, (point, 0.0), jnp.arange(4) / 4)
        return jax.scipy.stats.norm.logpdf(y).sum() - change

    def loss(params):
        return -jnp.mean(jax.vmap(log_density, (None, 0))(params, points))

    check_derivatives(loss, wide(params))


class Named(eqx.Module):
    """A cell whose state has a name in each step."""

    cell: eqx.nn.GRUCell

    def __call__(self, xs, changes):
        def step(state, given):
            x, change = given
            return checkpoint_name(self.cell(x, state), "state") + change, None

        return jax.lax.scan(step, jnp.zeros(3), (xs, changes))[0]


def test_the_adjoint_of_the_state_in_each_step() -> None:
    params, static = eqx.partition(Named(eqx.nn.GRUCell(2, 3, key=jax.random.key(0))), eqx.is_array)
    xs, zeros = RNG.normal(size=(2, 5, 2)), np.zeros((2, 5, 3))

    def loss(params, zeros):
        return jnp.sum(jax.vmap(eqx.combine(params, static))(xs, zeros) ** 2)

    @jax.jit
    def both(params):
        ours = ft.value_and_adjoints(lambda p: loss(p, zeros), "state", argnums=0)(params)
        return ours, jax.value_and_grad(loss, (0, 1))(params, zeros)

    (value, bars, gradient), (want, (of_params, of_changes)) = both(wide(params))
    # The batch is inside the loop: steps come first.
    close((value, jnp.swapaxes(bars["state"], 0, 1), gradient), (want, of_changes, of_params))
