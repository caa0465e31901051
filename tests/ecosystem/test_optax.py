"""Optax: every optimizer, and derivatives through several of its steps.

An optimizer is a function of gradients, and seldom asks for more.  Those with a line search, and
Sophia, call `jax.grad` or `jax.value_and_grad` of the loss themselves: they are given a loss whose
derivative, for JAX too, is functrans's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compare import answering_jax, close
from optax import contrib
from repeated import repeated_after

import functrans as ft

RNG = np.random.default_rng(0)
INPUTS, TARGETS = RNG.normal(size=(5, 2)), RNG.normal(size=(5, 3))
PARAMS = {"matrix": RNG.normal(size=(2, 3)), "bias": RNG.normal(size=3)}

pytestmark = pytest.mark.usefixtures("float64")


def loss(params: Any) -> jax.Array:
    """Regression with a term that has a curved valley, as Rosenbrock's function does."""
    matrix, bias = params["matrix"], params["bias"]
    fit = jnp.mean((jnp.tanh(INPUTS @ matrix + bias) - TARGETS) ** 2)
    return fit + 0.1 * jnp.sum((bias[1:] - bias[:-1] ** 2) ** 2)


REQUIRED = {
    "learning_rate": 0.05,
    "base_optimizer": optax.sgd(0.05),
    "l2_norm_clip": 1.0,
    "noise_multiplier": 0.1,
    "seed": 0,
}
"""Values for the arguments without a default."""

OPTIONS = {"noisy_sgd": {"key": 0}}
"""What else an optimizer is to be made with."""


def optimizers() -> Iterator[tuple[str, Callable]]:
    """Whatever in Optax makes an optimizer from a learning rate; a new one is found by itself.

    The parts of which they are made, `scale_by_...`, are tested with them.
    """
    for module in (optax, contrib):
        for name, make in vars(module).items():
            if inspect.isfunction(make) and not name.startswith(("_", "scale_by_")):
                names = inspect.signature(make).parameters
                if {"learning_rate", "max_learning_rate"} & names.keys():
                    yield name, make
    yield (
        "backtracking",
        lambda: optax.chain(
            optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
        ),
    )
    yield "sam", lambda: contrib.sam(optax.sgd(0.05), optax.sgd(0.02))
    yield "mechanize", lambda: contrib.mechanize(optax.adam(0.05))


OPTIMIZERS = dict(optimizers())


def test_the_optimizers_are_found() -> None:
    """Those below would pass if there were none."""
    assert {"adam", "lbfgs", "muon", "adafactor", "sophia", "dog", "sam"} <= OPTIMIZERS.keys()
    assert len(OPTIMIZERS) > 45


def made(name: str) -> optax.GradientTransformationExtraArgs:
    parameters = inspect.signature(OPTIMIZERS[name]).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty]
    options = {name: REQUIRED[name] for name in missing} | OPTIONS.get(name, {})
    return optax.with_extra_args_support(OPTIMIZERS[name](**options))


def extra(name: str, ad: ModuleType, value: jax.Array, gradient: Any) -> dict:
    """What an optimizer may ask for beside the gradient."""
    if name == "sam":  # accepts nothing else
        return {}
    if name == "sophia":
        return {"obj_fn": LOSS[ad]}
    return {"value": value, "grad": gradient, "value_fn": LOSS[ad]}


VALUE_AND_GRAD = {ft: ft.jit(ft.value_and_grad(loss)), jax: jax.jit(jax.value_and_grad(loss))}
LOSS = {ft: answering_jax(loss), jax: loss}


# Optax's own: `optimistic_adam` has a successor, and `dpsgd` calls what has a newer signature.
@pytest.mark.filterwarnings("ignore:`optimistic_adam` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings('ignore:"seed" is deprecated:DeprecationWarning')
@pytest.mark.parametrize("name", repeated_after(12, OPTIMIZERS))
def test_three_steps(name: str) -> None:
    def trained(ad: ModuleType) -> list:
        optimizer = made(name)
        params, visited = PARAMS, []
        state = optimizer.init(params)
        update: Callable = optimizer.update
        if name in ("backtracking", "lbfgs", "sophia"):
            # What calls the loss would compile its loops in each step anew.
            update = jax.jit(update, static_argnames=("value_fn", "obj_fn"))
        for _ in range(3):
            value, gradient = VALUE_AND_GRAD[ad](params)
            more = extra(name, ad, value, gradient)
            if name == "dpsgd":  # wants the gradient of each example
                gradient = jax.tree.map(lambda g: jnp.stack([g, g]), gradient)
            updates, state = update(gradient, state, params, **more)
            params = optax.apply_updates(params, updates)
            visited.append(params)
        return visited

    got, want = trained(ft), trained(jax)
    moved = zip(jax.tree.leaves(want[-1]), jax.tree.leaves(PARAMS), strict=True)
    assert any(bool(jnp.any(new != old)) for new, old in moved)
    close(got, want)


TUNED: dict[str, Callable] = {
    "adam": optax.adam,
    "clip, decay, momentum": lambda rate: optax.chain(
        optax.clip_by_global_norm(0.5),
        optax.add_decayed_weights(0.1),
        optax.sgd(rate, momentum=0.9, nesterov=True),
    ),
}


@pytest.mark.parametrize("name", TUNED)
def test_derivatives_through_training_by_the_learning_rate(name: str) -> None:
    """The loss after three steps as a function of the learning rate, and its derivatives.

    The gradient inside is that of the library whose derivative is taken outside.
    """

    def derivatives(ad: ModuleType):
        def trained(rate):
            optimizer = TUNED[name](rate)

            def step(carry, _):
                params, state = carry
                updates, state = optimizer.update(ad.grad(loss)(params), state, params)
                return (optax.apply_updates(params, updates), state), None

            (params, _), _ = jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), length=3)
            return loss(params)

        first = ad.value_and_grad(trained)
        return ad.jit(lambda rate: ad.jvp(first, (rate,), (jnp.ones_like(rate),)))(0.05)

    got, want = derivatives(ft), derivatives(jax)
    assert all(abs(float(x)) > 1e-3 for x in jax.tree.leaves(want))
    close(got, want)
