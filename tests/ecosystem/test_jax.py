"""What JAX ships beside its core: `jax.scipy`, `jax.image`, `jax.example_libraries`.

`jax.scipy.optimize.minimize` calls `jax.value_and_grad` itself: the search is given a function
whose derivative, for JAX too, is functrans's, and functrans differentiates around the search.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compare import answering_jax, check_derivatives, close, forward_over_reverse, wide
from jax.example_libraries import optimizers, stax
from jax.scipy import ndimage, optimize, signal, special, stats
from jax.scipy.sparse import linalg

import functrans as ft

RNG = np.random.default_rng(0)

pytestmark = pytest.mark.usefixtures("float64")


def test_minimize() -> None:
    """By BFGS; how the minimum moves with the data, in forward mode: the search is a while loop."""
    data = jnp.array([0.5, 1.2])

    def rosenbrock(x, data):
        return jnp.sum((x - data) ** 2) + 5.0 * (x[1] - x[0] ** 2) ** 2

    def derivatives(ad: ModuleType, fun: Callable):
        def minimum(data):
            found = optimize.minimize(fun, jnp.zeros(2), (data,), method="BFGS", tol=1e-8)
            return found.x, found.nfev

        pushforward = ad.jit(lambda data: ad.jvp(minimum, (data,), (jnp.ones(2),), has_aux=True))
        return pushforward(data)

    want = derivatives(jax, rosenbrock)
    close(derivatives(ft, answering_jax(rosenbrock)), want)
    assert float(jnp.max(jnp.abs(ft.grad(rosenbrock)(want[0], data)))) < 1e-6


@pytest.mark.parametrize("solve", [linalg.cg, linalg.gmres, linalg.bicgstab])
def test_iterative_solvers(solve: Callable) -> None:
    """Derivatives of the solution with respect to the matrix and to the right hand side."""
    matrix, vector = RNG.normal(size=(3, 3)), RNG.normal(size=3)

    def loss(inputs):
        matrix, vector = inputs
        positive = matrix @ matrix.T + 2.0 * jnp.eye(3)
        return jnp.sum(jnp.sin(solve(positive, vector, tol=1e-13, atol=0.0)[0]))

    check_derivatives(loss, (jnp.asarray(matrix), jnp.asarray(vector)), (forward_over_reverse,))


def test_special_functions_and_densities_in_a_model() -> None:
    """Counts whose rates have a gamma prior, and heavy-tailed noise."""
    counts, values = np.array([3.0, 0.0, 5.0]), RNG.normal(size=4)

    def loss(params):
        shape, rate = jnp.exp(params["shape"]), jnp.exp(params["rate"])
        # The rates are integrated out: a negative binomial distribution.
        chance = special.expit(params["rate"])
        log_counts = (
            special.gammaln(counts + shape)
            - special.gammaln(shape)
            + special.xlogy(counts, 1.0 - chance)
            + shape * jnp.log(chance)
        )
        noise = stats.cauchy.logpdf(values, params["mean"], rate)
        tail = special.log_ndtr(params["mean"]) + special.logsumexp(values * params["mean"])
        return tail + special.erf(rate) - jnp.sum(log_counts) - jnp.sum(noise)

    params = {"shape": jnp.array(0.4), "rate": jnp.array(-0.3), "mean": jnp.array(0.2)}
    check_derivatives(loss, params, (forward_over_reverse,))


@pytest.mark.parametrize("mode", ["constant", "wrap", "reflect"])
def test_map_coordinates(mode: str) -> None:
    image = RNG.normal(size=(4, 4))
    coordinates = [RNG.uniform(-1.5, 4.5, size=5) for _ in range(2)]

    def loss(inputs):
        return jnp.sum(jnp.sin(ndimage.map_coordinates(*inputs, order=1, mode=mode)))

    check_derivatives(loss, wide((image, coordinates)), (forward_over_reverse,))


@pytest.mark.parametrize("method", ["direct", "fft"])
def test_convolve(method: str) -> None:
    def loss(inputs):
        return jnp.sum(jnp.sin(signal.convolve(*inputs, mode="same", method=method)))

    inputs = RNG.normal(size=(5, 4)), RNG.normal(size=(3, 2))
    check_derivatives(loss, wide(inputs), (forward_over_reverse,))


@pytest.mark.parametrize("method", ["nearest", "linear", "cubic", "lanczos3", "lanczos5"])
def test_resize(method: str) -> None:
    image = RNG.normal(size=(3, 5))

    def loss(image):
        larger = jax.image.resize(image, (5, 7), method)
        return jnp.sum(jnp.sin(larger)) + jnp.sum(jax.image.resize(image, (2, 3), method) ** 3)

    check_derivatives(loss, jnp.asarray(image), (forward_over_reverse,))


@pytest.mark.parametrize("method", ["linear", "cubic", "lanczos3"])
def test_scale_and_translate(method: str) -> None:
    """Of the image, and of where it is put."""
    inputs = RNG.normal(size=(4, 4)), np.array([1.3, 0.8]), np.array([0.2, -0.4])

    def loss(inputs):
        image, scale, translation = inputs
        moved = jax.image.scale_and_translate(
            image, (5, 5), (0, 1), scale, translation, method, antialias=False
        )
        return jnp.sum(jnp.sin(moved))

    check_derivatives(loss, wide(inputs), (forward_over_reverse,))


def test_a_network_of_stax() -> None:
    """Batch norm, pooling, dropout; and three steps of one of its optimizers."""
    init, apply = stax.serial(
        stax.Conv(2, (3, 3)),
        stax.BatchNorm(),
        stax.Relu,
        stax.MaxPool((2, 2)),
        stax.Flatten,
        stax.Dropout(0.7),
        stax.Dense(3),
        stax.LogSoftmax,
    )
    images, targets = RNG.normal(size=(4, 6, 6, 1)), np.eye(3)[[0, 2, 1, 2]]
    params = wide(init(jax.random.key(0), images.shape)[1])
    start, update, get = optimizers.adam(1e-2, eps=1e-3)

    def loss(params):
        return -jnp.mean(jnp.sum(apply(params, images, rng=jax.random.key(1)) * targets, axis=1))

    def trained(ad: ModuleType):
        def step(i, state):
            return update(i, ad.grad(loss)(get(state)), state)

        return get(ad.jit(lambda params: jax.lax.fori_loop(0, 3, step, start(params)))(params))

    want = trained(jax)
    close(trained(ft), want)
    assert float(loss(want)) < float(loss(params))
    check_derivatives(loss, params, (forward_over_reverse,))
