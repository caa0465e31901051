"""Loops: what the table of rules does not say of `scan`, and what is built on it."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functrans as ft

pytestmark = pytest.mark.usefixtures("quick_compilation")


def lstm(w: jax.Array, xs: jax.Array) -> jax.Array:
    def step(c: jax.Array, x: jax.Array) -> tuple:
        c = jnp.tanh(w @ c + x)
        return c, c

    return jnp.sum(lax.scan(step, jnp.zeros(w.shape[0]), xs)[1] ** 2)


W = jnp.asarray(np.random.default_rng(0).standard_normal((3, 3)), jnp.float32)
XS = jnp.asarray(np.random.default_rng(1).standard_normal((5, 3)), jnp.float32)


def residuals_of(fun, *args):
    return [r.shape for r in jax.tree.leaves(ft.vjp(fun, *args)[1])]


def test_a_residual_that_is_the_same_in_each_step_is_kept_once():
    stacked = [shape for shape in residuals_of(lstm, W, XS) if shape[:1] == (5,)]
    assert residuals_of(lstm, W, XS).count((3, 3)) == 1
    assert stacked and all(shape == (5, 3) for shape in stacked)


@pytest.mark.parametrize("chunk_size", [1, 2, 100])
def test_chunked_jacobians_compose(chunk_size):
    def fun(x):
        return jnp.stack([jnp.sin(x).sum() * x[0], (x**3).prod(), x @ x])

    x = jnp.arange(1.0, 5.0)
    hessian = ft.jit(ft.hessian(fun, chunk_size=chunk_size))
    chex.assert_trees_all_close(hessian(x), jax.jit(jax.hessian(fun))(x), rtol=1e-5)

    def total(jacobian):
        return lambda x: jnp.sum(jacobian(x) ** 2)

    for ours, theirs in ((ft.jacfwd, jax.jacfwd), (ft.jacrev, jax.jacrev)):
        chunked = ft.jit(ft.grad(total(ours(fun, chunk_size=chunk_size))))(x)
        whole = jax.jit(jax.grad(total(theirs(fun))))(x)
        chex.assert_trees_all_close(chunked, whole, rtol=1e-5)


def test_loops_inside_loops():
    def inner(c, x):
        return lax.fori_loop(0, 3, lambda i, c: jnp.sin(c) * x + i, c), c

    def fun(c, xs):
        return lax.scan(inner, c, xs)[0]

    for ours, theirs in (
        (ft.jit(ft.jacrev(fun, (0, 1))), jax.jit(jax.jacrev(fun, (0, 1)))),
        (ft.jacfwd(ft.jit(fun), (0, 1)), jax.jit(jax.jacfwd(fun, (0, 1)))),
    ):
        chex.assert_trees_all_close(ours(0.5, XS[:, 0]), theirs(0.5, XS[:, 0]), rtol=1e-5)


def test_vmap_of_the_gradient_of_a_loop():
    ours = jax.vmap(ft.grad(ft.jit(lstm)), (None, 0))(W, jnp.stack([XS, XS + 1]))
    theirs = jax.vmap(jax.grad(lstm), (None, 0))(W, jnp.stack([XS, XS + 1]))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_loop_that_is_not_linear_has_no_transpose():
    def counted(x):
        return lax.fori_loop(0, 3, lambda i, c: c * x, 1.0)

    with pytest.raises(TypeError, match="not linear"):
        ft.linear_transpose(counted, 2.0)(1.0)


def test_the_derivative_of_a_loop_takes_a_time_that_grows_with_the_body() -> None:
    """And not with the number of paths through it: sixty steps that fork would not end."""

    @jax.custom_jvp
    def fun(x):
        return jnp.sin(x)

    @fun.defjvp
    def fun_jvp(primals, tangents):
        (x,), (x_dot,) = primals, tangents
        slope = x
        for _ in range(60):
            slope = slope * (1 - slope)
        return fun(x), x_dot * slope + x_dot * x

    def loss(w, xs):
        def step(c, x):
            h = w
            for _ in range(60):
                h = (h + h) / 2
            return jnp.tanh(h @ c) + fun(x), None

        return jnp.sum(jax.lax.scan(step, xs[0], xs)[0])

    args = jnp.eye(3), jnp.full((2, 3), 0.3)
    got, want = (ad.grad(loss, argnums=(0, 1))(*args) for ad in (ft, jax))
    chex.assert_trees_all_close(got, want, rtol=1e-6)
