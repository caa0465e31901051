"""NumPyro and BlackJAX: log densities, and chains of samples that follow their gradients.

Both call `jax.grad` themselves in their samplers.  A NumPyro potential is differentiated here by
functrans, in leapfrog steps written out below; around NumPyro's own steps it differentiates what
JAX's gradient has made of them.  A BlackJAX sampler is given a log density whose derivative, for
JAX too, is functrans's.
"""

from __future__ import annotations

from types import ModuleType

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from compare import answering_jax, check_derivatives, close, direction
from numpyro.infer import HMC
from numpyro.infer.reparam import TransformReparam
from numpyro.infer.util import initialize_model

import functrans as ft

pytestmark = pytest.mark.usefixtures("float64")

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools() -> None:
    """The effect of coaching in each school, around a mean that they share."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8), numpyro.handlers.reparam(config={"of": TransformReparam()}):
        affine = dist.transforms.AffineTransform(mean, spread)
        effect = numpyro.sample("of", dist.TransformedDistribution(dist.Normal(0.0, 1.0), affine))
        numpyro.sample("measured", dist.Normal(effect, ERRORS), obs=EFFECTS)


@pytest.fixture(scope="module")
def schools(float64: None) -> tuple:
    """The potential energy of the model on unconstrained numbers, and where to start."""
    model = initialize_model(jax.random.key(0), eight_schools, validate_grad=False)
    return model.potential_fn, model.param_info.z


def test_the_potential_of_a_hierarchical_model(schools: tuple) -> None:
    check_derivatives(*schools)


def test_ten_steps_of_hamiltonian_dynamics(schools: tuple) -> None:
    """And how the end moves with the start: the derivative of a loop over gradients."""
    potential, start = schools

    def trajectory(ad: ModuleType):
        def leapfrog(state, _):
            q, p = state
            p = jax.tree.map(lambda p, g: p - 0.05 * g, p, ad.grad(potential)(q))
            q = jax.tree.map(lambda q, p: q + 0.1 * p, q, p)
            p = jax.tree.map(lambda p, g: p - 0.05 * g, p, ad.grad(potential)(q))
            return (q, p), potential(q)

        def end(q):
            return jax.lax.scan(leapfrog, (q, direction(start, 1)), length=10)

        return ad.jit(lambda q, v: ad.jvp(end, (q,), (v,)))(start, direction(start, 2))

    close(trajectory(ft), trajectory(jax))


def test_ten_steps_of_hamiltonian_monte_carlo(schools: tuple) -> None:
    """NumPyro's own, five leapfrogs each: how the samples that it accepts move with the start."""
    potential, start = schools
    options = {"adapt_step_size": False, "adapt_mass_matrix": False}
    kernel = HMC(potential_fn=potential, step_size=0.1, trajectory_length=0.5, **options)
    first = kernel.init(jax.random.key(1), 0, start, (), {})

    def chain(q):
        energy, force = jax.value_and_grad(potential)(q)
        state = first._replace(z=q, potential_energy=energy, z_grad=force)

        def step(state, _):
            state = kernel.sample(state, (), {})
            return state, (state.z, state.accept_prob)

        return jax.lax.scan(step, state, length=10)[1]

    def moved(ad: ModuleType):
        return ad.jit(lambda q, v: ad.jvp(chain, (q,), (v,)))(start, direction(start, 2))

    got, want = moved(ft), moved(jax)
    close(got, want)
    (samples, _), (velocities, _) = want
    assert len(np.unique(samples["mean"])) > 5
    assert np.all(np.isfinite(velocities["mean"])) and np.any(velocities["mean"])


def log_density(position: dict) -> jax.Array:
    """A funnel."""
    scale, x = position["scale"], position["x"]
    return jax.scipy.stats.norm.logpdf(scale, 0.0, 1.5) + jnp.sum(
        jax.scipy.stats.norm.logpdf(x, 1.0, jnp.exp(scale / 2))
    )


def test_a_chain_of_the_no_u_turn_sampler() -> None:
    """With the adaptation of step size and metric in one window."""
    start = {"scale": jnp.array(0.3), "x": jnp.array([0.1, -0.2])}

    def chain(density):
        warmup = blackjax.window_adaptation(blackjax.nuts, density)

        @jax.jit
        def run(key):
            first, second = jax.random.split(key)
            (state, tuned), _ = warmup.run(first, start, num_steps=20)
            step = blackjax.nuts.build_kernel()

            def sample(state, key):
                state, info = step(key, state, density, **tuned)
                return state, (state.position, info.num_integration_steps)

            return jax.lax.scan(sample, state, jax.random.split(second, 5))[1]

        return run(jax.random.key(0))

    got, want = chain(answering_jax(log_density)), chain(log_density)
    assert len(np.unique(want[0]["x"])) > 2
    close(got, want, rtol=1e-6)  # the rounding of 25 trajectories, each of which adds to the last
