"""A program of each of several packages, as published: the loss, its gradient, and its Hessian
times a vector, compiled, beside JAX's.

Each package is imported by its own program, as some take seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import (
    answering_jax,
    check_derivatives,
    check_gradient,
    close,
    forward_over_reverse,
    wide,
)

import functrans as ft

pytestmark = [
    pytest.mark.usefixtures("float64"),
    # JAXopt says so when it is imported, by ott-jax too.
    pytest.mark.filterwarnings("ignore:.*JAXopt is no longer maintained:DeprecationWarning"),
]

RNG = np.random.default_rng(0)
POINTS, FEATURES = RNG.normal(size=(5, 2)), RNG.normal(size=(6, 3))
Program = tuple[Callable, Any]


def haiku() -> Program:
    """dm-haiku: a perceptron, a normalization and a recurrent cell, unrolled over time."""
    import haiku as hk

    def model(x):
        hidden = hk.LayerNorm(-1, True, True)(hk.nets.MLP([5, 4])(x))
        core = hk.LSTM(3)
        outs, _ = hk.dynamic_unroll(core, hidden, core.initial_state(2))
        return jnp.mean(hk.Linear(1)(outs) ** 2)

    pure, x = hk.without_apply_rng(hk.transform(model)), RNG.normal(size=(3, 2, 3))
    return lambda params: pure.apply(params, x), wide(pure.init(jax.random.key(0), x))


def tinygp() -> Program:
    """The likelihood of a Gaussian process."""
    from tinygp import GaussianProcess, kernels

    x = np.linspace(0.0, 3.0, 5)

    def loss(params):
        kernel = jnp.exp(params["amplitude"]) * kernels.Matern32(jnp.exp(params["scale"]))
        process = GaussianProcess(kernel, x, diag=0.1, mean=params["mean"])
        return -process.log_probability(np.sin(x))

    return loss, {name: jnp.array(0.1) for name in ("amplitude", "scale", "mean")}


def flowjax() -> Program:
    """The likelihood of a masked autoregressive flow."""
    import paramax
    from flowjax.distributions import Normal
    from flowjax.flows import masked_autoregressive_flow

    options: dict = {"flow_layers": 2, "nn_width": 4, "nn_depth": 1}
    flow = masked_autoregressive_flow(jax.random.key(0), base_dist=Normal(jnp.zeros(2)), **options)
    params, static = eqx.partition(flow, eqx.is_inexact_array)

    def loss(params):
        return -paramax.unwrap(eqx.combine(params, static)).log_prob(POINTS).mean()

    return loss, wide(params)


def quax() -> Program:
    """A layer with a low-rank correction, as an array that is never materialised."""
    import quax
    from quax.examples import lora

    layer = eqx.nn.Linear(3, 2, key=jax.random.key(0))
    corrected = lora.loraify(layer, rank=1, key=jax.random.key(1), scale=0.5)
    params, static = eqx.partition(corrected, eqx.is_inexact_array)

    def loss(params):
        layer = quax.quaxify(eqx.combine(params, static))
        return jnp.sum(jnp.tanh(layer(FEATURES[0])) ** 2)

    return loss, jax.tree.map(lambda x: x + 0.1, wide(params))


def jaxopt() -> Program:
    """Ridge regression: how the minimum depends on the penalty, by the implicit function."""
    import jaxopt

    def objective(weights, penalty):
        fit = FEATURES @ weights - np.sin(FEATURES[:, 0])
        return jnp.mean(fit**2) + jnp.exp(penalty) * jnp.sum(weights**2)

    solver = jaxopt.GradientDescent(objective, maxiter=300, tol=1e-10)

    def loss(penalty):
        return jnp.sum(solver.run(jnp.zeros(3), penalty).params ** 2)

    return loss, jnp.array(-1.0)


def ott() -> Program:
    """ott-jax: the cost of a transport between two clouds of points, by Sinkhorn's iterations."""
    from ott.geometry.pointcloud import PointCloud
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.sinkhorn import Sinkhorn

    def loss(x):
        geometry = PointCloud(x, FEATURES[:, :2], epsilon=0.5)
        return Sinkhorn(threshold=1e-9)(LinearProblem(geometry)).reg_ot_cost

    return loss, jnp.asarray(POINTS)


def autoray() -> Program:
    """Which chooses a library by the module of its arguments."""
    import autoray

    def loss(x):
        q, r = autoray.do("linalg.qr", x)
        size = autoray.do("log", autoray.do("abs", r) + 1.0)
        return autoray.do("sum", autoray.do("tanh", x) @ q * size)

    return loss, jnp.array([[3.0, 1.0], [2.0, 5.0]])


@pytest.mark.parametrize("make", [haiku, tinygp, flowjax, quax, ott, autoray])
def test_a_loss(make: Callable[[], Program]) -> None:
    check_derivatives(*make(), second=[forward_over_reverse])


def test_the_minimum_of_a_loss() -> None:
    """JAX has no forward derivative of it: it is a custom_vjp."""
    check_gradient(*jaxopt())


def test_chains_of_a_sampler_side_by_side() -> None:
    """BlackJAX: chains under `jax.vmap`, each of which ends its trajectories for itself."""
    import blackjax

    def log_density(x):
        return -0.5 * jnp.sum(jnp.square(x) * jnp.array([1.0, 4.0])) - jnp.sum(x**4)

    def chains(density, starts):
        kernel = blackjax.nuts(density, step_size=0.4, inverse_mass_matrix=jnp.ones(2))

        def chain(start, key):
            def sample(state, key):
                state, info = kernel.step(key, state)
                return state, (state.position, info.num_integration_steps)

            return jax.lax.scan(sample, kernel.init(start), jax.random.split(key, 3))[1]

        return jax.vmap(chain)(starts, jax.random.split(jax.random.key(0), 3))

    got = jax.jit(lambda x: chains(answering_jax(log_density), x))(POINTS[:3])

    def moved(ad: ModuleType):
        def run(x, v):
            (samples, steps), (velocities, _) = ad.jvp(lambda x: chains(log_density, x), (x,), (v,))
            return samples, steps, velocities

        return ad.jit(run)(POINTS[:3], POINTS[2:])

    want = moved(jax)
    samples, steps, velocities = want
    assert len(np.unique(steps)) > 1
    assert np.all(np.isfinite(velocities)) and np.any(velocities)
    close(got, (samples, steps))
    close(moved(ft), want)
