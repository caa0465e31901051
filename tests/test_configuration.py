"""JAX's options: each changes what it is for, nothing else, and nothing that is remembered.

One model goes through all transforms under each option, then without it, in one process; and in a
process that begins with the option.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functrans as ft

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.array([0.1, 0.2, 0.3])
W = jnp.arange(9.0).reshape(3, 3) / 10


@jax.custom_vjp
def squared_sine(x):
    return jnp.sin(x) ** 2


squared_sine.defvjp(lambda x: (squared_sine(x), x), lambda x, y_bar: (y_bar * jnp.sin(2 * x),))


@jax.custom_jvp
def cosine(x):
    return jnp.cos(x)


@cosine.defjvp
def _cosine_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return cosine(x), -jnp.sin(x) * x_dot


def model(ad: Any, reverse: bool, x: Any) -> Any:
    """A scan, a cond, a call, custom rules and products; JAX has no jvp of a custom_vjp."""
    w = W.astype(x.dtype)

    def step(c, i):
        return jnp.tanh(w @ c) + cosine(c) * i, jnp.sum(c)

    c, ys = lax.scan(step, x, jnp.arange(2.0, dtype=x.dtype))
    c = lax.cond(jnp.sum(c) > 0, lambda c: c * c, jnp.exp, c)
    c = ad.jit(lambda c: jax.nn.relu(c) + jnp.where(c > 0, c, 0.0))(c)
    c = squared_sine(c) if reverse else c
    return jnp.sum(jnp.cumsum(c) / jnp.sum(c * c)) + jnp.sum(ys)


def results(ad: Any, x: Any) -> dict[str, Any]:
    """Transforms of the model, eager, and compiled inside and outside."""
    both, forward = functools.partial(model, ad, True), functools.partial(model, ad, False)
    return {
        "grad": ad.grad(both)(x),
        "jvp": ad.jvp(forward, (x,), (x,)),
        "hessian": ad.jit(ad.hessian(forward))(x),
        "grad of jit": ad.grad(ad.jit(both))(x),
    }


def option(name: str, value: Any) -> Callable[[], contextlib.AbstractContextManager]:
    @contextlib.contextmanager
    def changed() -> Iterator[None]:
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            yield
        finally:
            jax.config.update(name, before)

    return changed


OPTIONS: dict[str, Callable[[], contextlib.AbstractContextManager]] = {
    "disable_jit": jax.disable_jit,
    "enable_x64": lambda: jax.enable_x64(True),
    "rank_promotion": lambda: jax.numpy_rank_promotion("raise"),
    "dtype_promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "debug_nans": lambda: jax.debug_nans(True),
    "checking_leaks": jax.checking_leaks,
    "matmul_precision": lambda: jax.default_matmul_precision("highest"),
    "enable_checks": option("jax_enable_checks", True),
}


@pytest.fixture(scope="module")
def without() -> dict[str, Any]:
    return results(jax, X)


def agree(got: dict, want: dict) -> None:
    for name, expected in want.items():
        chex.assert_trees_all_equal_dtypes(got[name], expected)
        chex.assert_trees_all_close(got[name], expected, rtol=3e-5, atol=1e-5)


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("name", OPTIONS)
def test_under_each_option_and_afterwards(name: str, without: dict[str, Any]) -> None:
    """Under it, without it, and under it again: what is remembered serves each time."""
    with OPTIONS[name]():
        # Without x64 JAX's results are the same under each of them, which JAX's own tests say.
        want = results(jax, X.astype(float)) if name == "enable_x64" else without
        agree(results(ft, X.astype(float)), want)
    agree(results(ft, X), without)
    with OPTIONS[name]():
        agree(results(ft, X.astype(float)), want)


def test_a_process_in_which_jit_is_disabled_from_the_beginning() -> None:
    """Rules are found by tracing when functrans is imported; values are there to be looked at."""
    code = """
import jax, jax.numpy as jnp, functrans as ft
from functrans.rules import FAILURES
assert not FAILURES
f = lambda x: jnp.sum(jnp.sin(x) * jax.nn.relu(x)) if x[0] < 1 else None
x = jnp.arange(3.0)
for g in (ft.grad(f), ft.grad(ft.jit(f)), ft.jit(ft.grad(f))):
    assert jnp.allclose(g(x), jax.grad(f)(x))
with jax.disable_jit(False):
    assert jnp.allclose(ft.grad(ft.jit(jnp.sum))(x), 1.0)
"""
    disabled = os.environ | {"JAX_DISABLE_JIT": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=disabled, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def wide(x):
    """It computes in 64 bits, whatever is around it."""
    with jax.enable_x64(True):
        y = x.astype("float64") if hasattr(x, "astype") else x
        y = lax.scan(lambda c, t: (jnp.sin(1.5 * c * t), None), y, jnp.arange(1.0, 3.0))[0]
        return jnp.sum(jax.nn.softmax(jnp.stack([y, y * y + 0.3])) ** 2)


def wide_of_a_number(x):
    with jax.enable_x64(True):
        return jnp.sin(x) * 2.5


@pytest.mark.parametrize("fun", [wide, lambda x: wide(x).astype("float32"), wide_of_a_number])
def test_64_bits_switched_on_inside_a_function(fun: Callable) -> None:
    x = 0.5 if fun is wide_of_a_number else X
    chex.assert_trees_all_equal_dtypes(ft.value_and_grad(fun)(x), jax.value_and_grad(fun)(x))
    chex.assert_trees_all_close(ft.value_and_grad(fun)(x), jax.value_and_grad(fun)(x), rtol=1e-6)
    (y, y_dot), (_, pushforward) = ft.jvp(fun, (x,), (x,)), ft.linearize(fun, x)
    slope = jnp.sum(jax.grad(fun)(x) * x)
    assert y.dtype == y_dot.dtype == fun(jnp.asarray(x)).dtype
    chex.assert_trees_all_close((y_dot, pushforward(x)), (slope, slope), rtol=1e-5)


@pytest.mark.parametrize("transform", [ft.jacfwd, ft.jacrev])
@pytest.mark.parametrize("chunk_size", [None, 2])
def test_jacobians_where_64_bits_are_switched_on_inside(transform, chunk_size) -> None:
    def wide_sines(x):
        with jax.enable_x64(True):
            return 2 * jnp.sin(x.astype("float64"))

    for fun in (wide_sines, ft.jit(wide_sines)):
        jacobian = transform(fun, chunk_size=chunk_size)(X)
        np.testing.assert_allclose(jacobian, np.diag(2 * np.cos(X)), rtol=1e-6)
    curvature = transform(ft.jacrev(wide_sines))(X).sum(0)
    np.testing.assert_allclose(curvature, np.diag(-2 * np.sin(X)), rtol=1e-6)
