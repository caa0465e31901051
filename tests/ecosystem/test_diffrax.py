"""Diffrax: neural and other differential equations, through each of its adjoints.

The adjoints differ in what they allow, in JAX as in functrans:

    DirectAdjoint                  any order of forward and reverse
    ForwardMode                    forward, and forward over forward
    RecursiveCheckpointAdjoint     reverse, once: a loop that saves some of its steps
    BacksolveAdjoint               reverse, once: the adjoint equation, solved backwards
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import check_derivatives, check_gradient, check_training, close, direction, wide

import functrans as ft

pytestmark = pytest.mark.usefixtures("float64")

STEPS: dict[str, Any] = {"t0": 0.0, "t1": 1.0, "dt0": 0.25, "max_steps": 8}


EULER = diffrax.Euler()


def lotka_volterra(adjoint: Any, solver: Any = EULER, **options: Any) -> Callable:
    """A loss of where the populations are, as a function of the start and the coefficients."""

    def field(t, y, args):
        growth, predation, death, birth = args
        prey, predators = y
        return growth * prey - predation * prey * predators, birth * prey * predators - (
            death * predators
        )

    def loss(inputs):
        start, coefficients = inputs
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver,
            y0=start,
            args=coefficients,
            adjoint=adjoint,
            **STEPS,
            **options,
        )
        return sum(jnp.sum(jnp.sin(y)) for y in solution.ys)

    return loss


INPUTS = (jnp.float32(1.0), jnp.float32(2.0)), tuple(map(jnp.float32, (1.0, 0.5, 0.7, 0.3)))


@pytest.mark.parametrize("name", ["RecursiveCheckpointAdjoint", "BacksolveAdjoint"])
def test_reverse(name: str) -> None:
    loss = lotka_volterra(getattr(diffrax, name)())
    check_gradient(loss, wide(INPUTS))


def test_steps_of_adapted_size() -> None:
    """Each step is accepted or not: the number of steps depends on the values."""
    loss = lotka_volterra(
        diffrax.RecursiveCheckpointAdjoint(),
        diffrax.Heun(),
        stepsize_controller=diffrax.PIDController(rtol=1e-1, atol=1e-1),
        saveat=diffrax.SaveAt(ts=[0.3, 1.0]),
    )
    check_gradient(loss, wide(INPUTS))


def test_direct_in_any_order() -> None:
    check_derivatives(lotka_volterra(diffrax.DirectAdjoint()), wide(INPUTS))


def test_forward_and_forward_over_forward() -> None:
    inputs = wide(INPUTS)
    v = direction(inputs)
    loss = lotka_volterra(diffrax.ForwardMode())

    def derivatives(ad: ModuleType):
        def slope(inputs):
            return ad.jvp(loss, (inputs,), (v,))[1]

        return ad.jit(lambda inputs: ad.jvp(slope, (inputs,), (v,)))(inputs)

    close(derivatives(ft), derivatives(jax))


def test_a_neural_differential_equation() -> None:
    """A field that is an Equinox MLP, trained to follow a spiral."""
    model = eqx.nn.MLP(2, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    times = jnp.linspace(0.0, 1.0, 3)
    spiral = jnp.stack([jnp.cos(times), jnp.sin(times)], axis=1) * jnp.exp(-times)[:, None]

    def loss(params, spiral):
        field = eqx.combine(params, static)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda t, y, args: field(y)),
            diffrax.Heun(),
            y0=spiral[0],
            saveat=diffrax.SaveAt(ts=times),
            adjoint=diffrax.DirectAdjoint(),
            **STEPS | {"max_steps": 6},
        )
        return jnp.mean((solution.ys - spiral) ** 2), solution.stats["num_steps"]

    check_training(loss, wide(params), np.asarray(spiral))
