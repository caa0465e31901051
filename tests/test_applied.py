"""`x.at[i].apply(f)`: f as often as an index occurs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import functrans as ft

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.array([0.3, 0.7, 1.1, 1.9])
WEIGHTS = jnp.arange(1.0, 5.0)


def bent(a: Any) -> Any:
    return jnp.sin(a) * a + 0.2


def applied(x: jax.Array, i: jax.Array) -> jax.Array:
    return WEIGHTS @ jnp.exp(x.at[i].apply(bent))


def in_turn(x: jax.Array, i: list[int]) -> jax.Array:
    """The same, one index after the other."""
    for k in i:
        x = x.at[k].set(bent(x[k]))
    return WEIGHTS @ jnp.exp(x)


@pytest.mark.parametrize("i", [[0, 1, 1, 1, -1], [2], []], ids=str)
def test_derivatives_are_those_of_one_application_after_the_other(i: list[int]) -> None:
    """To third order, in all modes."""

    def derivatives(f):
        hessian = ft.jacfwd(ft.grad(f))
        every = ft.grad(f), ft.jacfwd(f), hessian, ft.jacrev(ft.grad(f)), ft.jacfwd(hessian)
        return jax.jit(lambda x: [of(x) for of in every])

    ours = derivatives(lambda x: applied(x, jnp.array(i, int)))(X)
    for got, want in zip(ours, derivatives(lambda x: in_turn(x, i))(X), strict=True):
        assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_examples_may_have_different_numbers_of_applications() -> None:
    indices = [[0, 0, 1], [1, 2, 3], [2, 2, 2]]
    x = jnp.stack([X, X + 0.1, X + 0.2])
    expected = jnp.stack([ft.grad(in_turn)(a, i) for a, i in zip(x, indices, strict=True)])

    def total(x):
        return jax.vmap(applied)(x, jnp.array(indices)).sum()

    assert_allclose(jax.vmap(ft.grad(applied))(x, jnp.array(indices)), expected, rtol=1e-5)
    assert_allclose(ft.grad(total)(x), expected, rtol=1e-5)


def test_a_place_that_has_had_its_own_makes_no_nan() -> None:
    """Of `log(1) = 0`, once more would be infinite; and what is read out of bounds is 0."""

    def f(x):
        return x.at[jnp.array([0, 1, 1, 9])].apply(lambda a: jnp.log(a)).sum()

    x = jnp.array([1.0, 7.0, 2.0])
    expected = [1.0, 1 / (7 * np.log(7)), 1.0]
    assert_allclose(ft.grad(f)(x), expected, rtol=1e-6)
    assert_allclose(ft.jacfwd(f)(x), expected, rtol=1e-6)


def test_a_function_that_is_linear_is_transposed() -> None:
    def f(x):
        return x.at[jnp.array([1, 1, 2])].apply(lambda a: 3 * a)

    (x_bar,) = ft.linear_transpose(f, X)(WEIGHTS)
    assert_allclose(x_bar, [1.0, 18.0, 9.0, 4.0])
