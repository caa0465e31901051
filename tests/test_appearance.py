"""What JAX and other packages make of a tracer: which library it is of, and whether it may move."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import opt_einsum
import pytest
from jax import lax
from jax.experimental.ode import odeint

import functrans as ft
from functrans.testing import JAX, cross_check

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

A, Y = np.asarray(1.3), np.asarray([1.0, -0.5])

# jax.closure_convert


def decayed(a: Any, y: Any) -> Any:
    """y' = -a y, with an `a` and a factor that the right-hand side closes over."""
    factor = jnp.sin(a)

    def slope(y, t):
        return -a * y * factor

    return odeint(slope, y, jnp.linspace(0.0, 1.0, 3))[-1]


def decayed_in_closed_form(a: Any, y: Any) -> Any:
    return y * jnp.exp(-a * jnp.sin(a))


def test_closed_over_parameters_of_an_initial_value_problem() -> None:
    """As they are, and in a compiled program: vmapped, and to the second order (reverse over
    reverse, as in JAX: the backward rule solves an initial value problem, too)."""

    def gradients(fun: Callable) -> Any:
        def loss(a, y):
            return jnp.sum(jnp.sin(ft.jit(fun)(a, y)))

        slope = ft.grad(loss)
        batched = jax.vmap(ft.grad(loss, (0, 1)))(jnp.stack([A, 2 * A]), jnp.stack([Y, Y + 1]))
        return batched, ft.grad(lambda a: slope(a, Y) * a)(A)

    def slope(ad: ModuleType) -> Any:
        return ad.grad(lambda a: jnp.sum(decayed(a, Y)))(A)

    np.testing.assert_allclose(slope(ft), slope(jax), rtol=1e-9)
    compiled = ft.jit(gradients, static_argnums=0)
    got, want = compiled(decayed), compiled(decayed_in_closed_form)
    chex.assert_trees_all_close(got, want, rtol=1e-4)


def twice(function: Callable, x: Any) -> Any:
    """A solver as in JAX's documentation, made short: a rule for what a function closes over."""
    converted, hoisted = jax.closure_convert(function, x)
    counts.append(len(hoisted))

    @jax.custom_vjp
    def run(x, hoisted):
        return converted(converted(x, *hoisted), *hoisted)

    def backward(residuals, y_bar):
        # A factor that shows whose derivative it is.
        return jax.tree.map(lambda x: 10 * x, jax.vjp(run.fun, *residuals)[1](y_bar))

    run.defvjp(lambda *args: (run(*args), args), backward)
    return run(x, hoisted)


counts: list[int] = []


def closing_over(w: Any, x: Any, n: Any) -> Any:
    u = jnp.cos(w)
    return twice(lambda x: jnp.sin(w * x) + n * u, x)


@pytest.mark.parametrize("mode", ["rev", "fwd"])
def test_what_may_move_is_hoisted_and_what_may_not_is_not(mode: str) -> None:
    """Two arrays move; an integer does not."""

    def derivative(ad: ModuleType) -> Any:
        counts.clear()
        if mode == "rev":
            gradient = ad.grad(lambda w, x, n: jnp.sum(closing_over(w, x, n)), (0, 1))
            return gradient(Y, Y + 2, 3), list(counts)
        return ad.jvp(lambda w: closing_over(w, Y + 2, jnp.arange(2)), (Y,), (Y,)), list(counts)

    got, hoisted = derivative(ft)
    assert hoisted == [2]
    if mode == "rev":  # JAX has no forward derivative of a custom_vjp
        chex.assert_trees_all_close(got, derivative(jax)[0], rtol=1e-12)
    else:
        _, plain = ft.jvp(lambda w: twice_plainly(w, Y + 2), (Y,), (Y,))
        np.testing.assert_allclose(got[1], 10 * plain, rtol=1e-12)


def twice_plainly(w: Any, x: Any) -> Any:
    def step(x):
        return jnp.sin(w * x) + jnp.arange(2) * jnp.cos(w)

    return step(step(x))


def test_in_a_compiled_function() -> None:
    counts.clear()
    gradient = ft.jit(ft.grad(ft.jit(lambda w, x: jnp.sum(closing_over(w, x, 3))), (0, 1)))
    want = jax.grad(lambda w, x: jnp.sum(closing_over(w, x, 3)), (0, 1))(Y, Y + 2)
    chex.assert_trees_all_close(gradient(Y, Y + 2), want, rtol=1e-12)
    assert counts[0] == 2


def root_of(w: Any) -> Any:
    """A root, and a linear system, whose functions close over what moves."""

    def solve(f, guess):
        return lax.fori_loop(0, 40, lambda _, y: y - f(y) / (3 * y**2 + 2), guess)

    root = lax.custom_root(
        lambda y: y**3 + y - w, jnp.ones_like(w), solve, lambda g, y: y / g(jnp.ones_like(y))
    )
    matrix = jnp.outer(w, w) + 3 * jnp.eye(2)
    solution = lax.custom_linear_solve(
        lambda x: matrix @ x, root, lambda _, b: jnp.linalg.solve(matrix, b), symmetric=True
    )
    return jnp.sin(solution)


def test_other_functions_that_close_over_what_moves() -> None:
    cross_check(root_of, Y, order=1, jitted=True).check()


# The library that an array is of


def test_the_module_of_a_tracer_is_of_jax() -> None:
    seen = []

    def look(x):
        seen.append(type(x))
        return jnp.sum(x)

    ft.jvp(look, (Y,), (Y,))
    ft.grad(look)(Y)
    ft.linear_transpose(look, Y)(1.0)
    ft.jit(look)(Y)
    assert len(set(seen)) == 2
    assert {kind.__module__.partition(".")[0] for kind in seen} == {"jax"}


def test_opt_einsum() -> None:
    """Which asks for the module of its arguments, and takes what it does not know to NumPy."""

    def contracted(x, y):
        return opt_einsum.contract("ij,jk,kl,i->l", x, y, x, y[0])

    args = np.arange(4.0).reshape(2, 2) / 3, np.arange(4.0).reshape(2, 2) - 1.2
    cross_check(contracted, *args, jitted=True, against=(JAX,)).check()
    pullback = ft.vjp(contracted, *args)[1]
    chex.assert_trees_all_close(pullback(np.ones(2)), jax.vjp(contracted, *args)[1](np.ones(2)))
