"""Kernels of Pallas are differentiated in forward mode: their grids, scratch and branches too."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import pallas
from jax.experimental.pallas import tpu, triton

import functrans as ft

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.arange(1.0, 9.0) / 4
HALF = pallas.BlockSpec((4,), lambda i: (i,))
SAME = pallas.BlockSpec((4,), lambda i: (0,))


def called(body: Callable, size: int = 8, **options: Any) -> Callable:
    out = jax.ShapeDtypeStruct((size,), jnp.float32)
    return pallas.pallas_call(body, out_shape=out, interpret=True, **options)


def one_block_each(x, y):
    y[...] = jnp.exp(x[...]) * (1 + pallas.program_id(0))


def over_the_grid(x, y):
    @pallas.when(pallas.program_id(0) == 0)
    def _():
        y[...] = jnp.zeros_like(y)

    y[...] += jnp.sin(x[...])


def in_a_loop(x, y):
    y[...] = x[...]

    def step(i, c):
        y[i] = y[i] * x[i] * c
        return 2 * c

    lax.fori_loop(0, 4, step, 1.0)


def in_a_while_loop(x, y):
    y[...] = jnp.zeros_like(y)

    def step(i):
        y[i] = jnp.sin(x[i]) + y[i]
        return i + 1

    lax.while_loop(lambda i: y[0] + i < 5.5, step, 0)


def through_scratch(x, y, scratch):
    scratch[...] = x[...] ** 2
    y[...] = scratch[...] * x[...]


def in_place(x, y):
    y[...] = y[...] * jnp.cos(x[...])


def where_it_is_large(x, y):
    large = x[...] > 1
    y[...] = x[...]
    triton.store(y, triton.load(x, mask=large, other=1.0) ** 3, mask=large)


def from_outside(x, y):
    y[...] = jnp.where(x[...] > 1, triton.load(x, mask=x[...] > 5, other=2.0 * x[1]), 0.0)


STEPS = 2.0 ** jnp.arange(4)

# Each kernel, and the function that it computes.
KERNELS: dict[str, tuple[Callable, Callable]] = {
    "grid": (
        called(one_block_each, grid=2, in_specs=[HALF], out_specs=HALF),
        lambda x: jnp.exp(x) * jnp.repeat(jnp.array([1.0, 2.0]), 4),
    ),
    "sum": (
        called(over_the_grid, 4, grid=2, in_specs=[HALF], out_specs=SAME),
        lambda x: jnp.sin(x[:4]) + jnp.sin(x[4:]),
    ),
    "loop": (
        called(in_a_loop),
        lambda x: jnp.concatenate([x[:4] ** 2 * STEPS, x[4:]]),
    ),
    "while": (
        called(in_a_while_loop),
        lambda x: jnp.where(jnp.arange(8) < 6, jnp.sin(x), 0.0),
    ),
    "scratch": (
        called(through_scratch, scratch_shapes=[tpu.VMEM((8,), jnp.float32)]),
        lambda x: x**3,
    ),
    "alias": (called(in_place, input_output_aliases={0: 0}), lambda x: x * jnp.cos(x)),
    "mask": (called(where_it_is_large), lambda x: jnp.where(x > 1, x**3, x)),
    "other": (called(from_outside), lambda x: jnp.where(x > 1, 2 * x[1], 0.0)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_differentiated_as_what_it_computes(name: str) -> None:
    """By closed forms, to the second order: JAX cannot differentiate most of these at all, and none
    of them twice."""

    def derivatives(fun: Callable) -> list:
        def pushed(x):
            return ft.jvp(fun, (x,), (jnp.cos(x),))

        twice = ft.jvp(lambda x: pushed(x)[1], (X,), (X,))
        batch = jax.vmap(pushed)(jnp.stack([X, 2 * X]))
        y, linear = ft.linearize(fun, X)
        return [pushed(X), ft.jvp(ft.jit(fun), (X,), (X,)), twice, batch, y, linear(X)]

    both = jax.jit(lambda: [derivatives(fun) for fun in KERNELS[name]])
    got, want = both()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_a_series_goes_through_a_kernel(name: str) -> None:
    """Along a curve: a kernel has one more reference for each coefficient."""

    def jets() -> list:
        return [ft.jet(fun, (X,), ([jnp.cos(X), X / 2],), order=5) for fun in KERNELS[name]]

    got, want = jax.jit(jets)()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_series_in_a_kernel_is_not_nested() -> None:
    """Each order of a kernel with a grid costs as much as outside of it."""

    def operations(order: int) -> int:
        program = ft.make_jaxpr(lambda x: ft.jet(KERNELS["grid"][0], (x,), ([x],), order=order))(X)
        return len(str(program).splitlines())

    few, some, many = map(operations, (2, 4, 8))
    assert many - some <= 4.5 * (some - few)


def test_an_operand_for_prefetch_must_stay() -> None:
    def scaled(s, x, y):
        y[...] = x[...] * s[0]

    half = pallas.BlockSpec((4,), lambda i, s: (i,))
    grid = tpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=1, grid=(2,), in_specs=[half], out_specs=half
    )
    out = jax.ShapeDtypeStruct((8,), jnp.float32)
    fun = pallas.pallas_call(scaled, out_shape=out, grid_spec=grid, interpret=True)
    s = jnp.full(1, 3.0)
    np.testing.assert_allclose(ft.jvp(lambda x: fun(s, x), (X,), (X,)), (3 * X, 3 * X))
    with pytest.raises(NotImplementedError, match="an operand for scalar prefetch that moves"):
        ft.jvp(lambda s: fun(s, X), (s,), (s,))


def test_as_jax_where_it_can() -> None:
    """Of kernels without a grid that read whole arrays, in which everything moves."""

    def two(x, y, z):
        z[...] = jnp.tanh(x[...]) * y[...]

    for fun, primals in ((called(two), (X, X**2)), (called(where_it_is_large), (X,))):
        got, want = (ad.jvp(fun, primals, primals) for ad in (ft, jax))
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_eager_and_columns() -> None:
    fun, function = KERNELS["sum"]
    np.testing.assert_allclose(ft.jacfwd(fun)(X), jax.jacfwd(function)(X), rtol=1e-6)


def test_a_grid_whose_size_is_traced() -> None:
    """Its size is an input before those that may alias an output."""

    def scaled(x, y, z):
        z[...] = jnp.sin(x[...]) * z[...]

    specs: Any = {"in_specs": [HALF, HALF], "out_specs": HALF}

    @jax.jit
    def fun(n, x, y):
        return called(scaled, grid=(n,), input_output_aliases={1: 0}, **specs)(x, y)

    def both(x):
        return fun(2, x, x**2), jnp.sin(x) * x**2

    (y, z), dots = ft.jvp(both, (X,), (jnp.cos(X),))
    np.testing.assert_allclose((y, dots[0]), (z, dots[1]), rtol=1e-5)
    y, (y_1, y_2) = ft.jet(lambda x: fun(2, X, x), (X,), ([X, X],))
    np.testing.assert_allclose((y, y_1, y_2), [jnp.sin(X) * X] * 3, rtol=1e-5)


def test_an_input_that_stays() -> None:
    """Only what moves has a second reference; an integer has none."""

    def picked(x, n, y):
        y[...] = x[...] * n[...]

    n = jnp.arange(8)
    y, y_dot = ft.jvp(lambda x: called(picked)(x, n), (X,), (X,))
    np.testing.assert_allclose((y, y_dot), (X * n, X * n))

    def scaled(x, y, z):
        z[...] = z[...] * x[...]

    # The output begins as an input that stays, and its tangent as zero.
    fun = called(scaled, input_output_aliases={1: 0})
    y, y_dot = ft.jvp(lambda x: fun(x, 2 * X), (X,), (jnp.cos(X),))
    np.testing.assert_allclose((y, y_dot), (2 * X * X, 2 * X * jnp.cos(X)), rtol=1e-6)


@pytest.mark.parametrize(
    "differentiate",
    [
        ft.grad,
        ft.jacrev,
        lambda fun: ft.grad(ft.jit(fun)),
        lambda fun: ft.jit(ft.grad(fun)),
        lambda fun: ft.grad(lambda x: ft.jvp(fun, (x,), (x,))[1]),
    ],
)
def test_there_is_no_reverse_mode(differentiate: Callable) -> None:
    """Of JAX neither, which does not say of what."""
    here = re.escape(Path(__file__).name)
    with pytest.raises(ValueError, match=f"a pallas_call has no reverse-mode .*{here}:.*jvp"):
        differentiate(lambda x: jnp.sum(KERNELS["grid"][0](x)))(X)
    with pytest.raises(ValueError, match="reverse-mode"):
        jax.grad(lambda x: jnp.sum(called(doubled)(x)))(X)


def doubled(x, y):
    y[...] = 2 * x[...]


def test_the_cost_that_the_user_estimates_doubles() -> None:
    cost = pallas.CostEstimate(flops=8, transcendentals=1, bytes_accessed=64)
    fun = called(doubled, cost_estimate=cost)
    program = ft.make_jaxpr(lambda x: ft.jvp(fun, (x,), (x,)))(X)
    (equation,) = program.eqns
    derived = equation.params["cost_estimate"]
    assert (derived.flops, derived.transcendentals, derived.bytes_accessed) == (16, 2, 128)
