"""Loops inside `jax.vmap` whose condition differs between examples: each ends for itself.

JAX batches such a condition, so that the equation that functrans sees has an array for it.
"""

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
from functrans.testing import JAX, cross_check

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

AREAS = np.asarray([2.0, 900.0, 0.04])
CENTER = np.asarray([0.1, -0.2, 3.0])


def root(area: Any) -> Any:
    """Newton's method, until it is good enough: `y^2 = area`."""

    def unfinished(state):
        y, before = state
        return jnp.abs(y - before) > 1e-10 * y

    def step(state):
        y, _ = state
        return 0.5 * (y + area / y), y

    return lax.while_loop(unfinished, step, (area, jnp.zeros(())))[0]


def steps(area: Any) -> Any:
    """Another carry: one that counts, and one that no step changes and the condition reads."""

    def step(state):
        y, count, limit = state
        return y * jnp.sqrt(area), count + 1, limit

    return lax.while_loop(
        lambda state: (state[1] < 6) & (jnp.abs(state[0]) < state[2]), step, (area, 0, 5 * area)
    )


def marched(center: Any, radius: Any, ray: Any) -> Any:
    """The length of a ray that ends where it meets a ball, or far away."""

    def distance(length):
        return jnp.sqrt(jnp.sum((length * ray - center) ** 2)) - radius

    def is_between(length):
        return (distance(length) > 1e-9) & (length < 10.0)

    return lax.while_loop(is_between, lambda length: length + distance(length), jnp.array(0.01))


def picture(march: Callable, center: Any, radius: Any) -> Any:
    """Rays in rows and columns: the condition is batched twice."""
    ends = jnp.linspace(-0.4, 0.4, 3)

    def pixel(x, y):
        ray = jnp.stack([x, y, jnp.ones(())])
        return march(center, radius, ray / jnp.linalg.norm(ray))

    return jax.vmap(jax.vmap(pixel, (0, None)), (None, 0))(ends, ends)


def rendered(center: Any, radius: Any) -> Any:
    """The derivative is that of the last step, taken once more: it passes through no loop."""

    def march(center, radius, ray):
        length = lax.stop_gradient(marched(center, radius, ray))
        offset = length * ray - center
        slope = ray @ offset / jnp.sqrt(offset @ offset)
        length = length - (jnp.sqrt(offset @ offset) - radius) / lax.stop_gradient(slope)
        return jnp.exp(-length)

    return picture(march, center, radius)


def accepted(scale: Any, key: Any) -> Any:
    """Draw until a draw is accepted: which one that is depends on the scale."""

    def rejected(state):
        draw, _ = state
        return jnp.abs(draw) * scale > 1.0

    def again(state):
        _, key = state
        key, now = jax.random.split(key)
        return jax.random.normal(now), key

    return scale * lax.while_loop(rejected, again, (jnp.array(3.0), key))[0]


def samples(scales: Any) -> Any:
    keys = jax.random.split(jax.random.key(0), 6)
    drawn = jax.vmap(jax.vmap(accepted, (None, 0)), (0, None))(scales, keys)
    return drawn, jax.vmap(jax.random.poisson)(keys[:3], lax.stop_gradient(10 * scales)) * scales


BOTH = ("fwd", "rev")
PROGRAMS: dict[str, tuple] = {
    "Newton's method": (jax.vmap(root), (AREAS,), ("fwd",)),
    "in a loop": (
        lambda a: lax.scan(lambda c, a: (jax.vmap(root)(c + a), None), a, a[:2])[0],
        (AREAS,),
        ("fwd",),
    ),
    "counters and limits": (jax.vmap(steps), (AREAS,), ("fwd",)),
    "a picture": (lambda *args: picture(marched, *args), (CENTER, 1.0), ("fwd",)),
    "a picture, without the loop": (rendered, (CENTER, 1.0), BOTH),
    "samples": (samples, (np.asarray([0.3, 1.0, 2.5]),), BOTH),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_to_the_second_order(name: str) -> None:
    fun, args, modes = PROGRAMS[name]
    cross_check(fun, *args, modes=modes, against=(JAX,), jitted=True).check()


def test_one_operation_after_another() -> None:
    """Not compiled as a whole; and a batch of such batches."""
    cross_check(jax.vmap(root), AREAS, modes=("fwd",), order=1).check()
    batch = jnp.stack([AREAS, 2 * AREAS])
    slopes = jax.vmap(ft.jacfwd(jax.vmap(root)))(batch)
    want = jax.vmap(jnp.diag)(0.5 / jnp.sqrt(batch))
    chex.assert_trees_all_close(slopes, want, rtol=1e-9)


def test_an_example_that_has_ended_stays() -> None:
    """One example would be infinite, and its tangent nan, were it to go on with the others."""

    def doubled(x):
        return lax.while_loop(lambda c: c < 4.0, lambda c: 2.0 * c / (c < 4.0), x)

    x = np.asarray([1e-3, 3.0, 5.0])
    y, y_dot = ft.jvp(jax.vmap(doubled), (x,), (np.ones(3),))
    np.testing.assert_array_equal(y, x * [2.0**12, 2.0, 1.0])
    np.testing.assert_array_equal(y_dot, [2.0**12, 2.0, 1.0])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, ft.jit])
def test_reverse_mode_through_the_loop(wrap: Callable) -> None:
    """Each example goes back as many steps as it has taken; JAX has no such derivative."""
    slopes = ft.grad(lambda a: jnp.sum(wrap(jax.vmap(root))(a)))(AREAS)
    np.testing.assert_allclose(slopes, 0.5 / np.sqrt(AREAS), rtol=1e-12)


def test_a_tape_splits_it() -> None:
    """A rule that carries values and tangents through one loop, each batched."""

    @jax.custom_jvp
    def power(x):
        return jax.vmap(lambda x: lax.while_loop(lambda c: c < 9.0, lambda c: c * x, x))(x)

    power.defjvp(lambda primals, tangents: jax.jvp(power.fun, primals, tangents))
    x = np.asarray([1.5, 9.5, 3.0])
    for fun in (power, ft.jit(power)):
        y, y_dot = ft.jvp(fun, (x,), (np.ones(3),))
        _, linear = ft.linearize(fun, x)
        np.testing.assert_allclose(y, x ** [6, 1, 2], rtol=1e-12)
        np.testing.assert_allclose(y_dot, [6 * 1.5**5, 1.0, 6.0], rtol=1e-12)
        np.testing.assert_allclose(linear(np.ones(3)), y_dot, rtol=1e-12)
        slopes = ft.grad(lambda x, fun=fun: jnp.sum(fun(x)))(x)
        np.testing.assert_allclose(slopes, y_dot, rtol=1e-12)
