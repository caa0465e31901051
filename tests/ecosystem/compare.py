"""What the tests of this folder ask of a loss: its derivatives, and a step of training, beside JAX.

Everything is in float64, where two correct programs for the same number agree to many digits.  All
that is asked of a loss is one program, since compiling takes most of the time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

import functrans as ft

Tree = Any
RTOL = 1e-8


def close(got: Tree, want: Tree, rtol: float = RTOL) -> None:
    """The same structure and dtypes; arrays that agree relative to the largest entry of all."""
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    got, want = jax.tree.map(_without_keys, (got, want))
    numbers = [x for x in jax.tree.leaves(want) if jnp.issubdtype(x.dtype, jnp.number)]
    largest = max(float(jnp.max(jnp.abs(x))) for x in numbers)
    chex.assert_trees_all_close(got, want, rtol=rtol, atol=rtol * max(1.0, largest))


def _without_keys(x: Any) -> Any:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


def wide(tree: Tree) -> Tree:
    """The same tree in float64: packages make their parameters in float32."""

    def widen(x):
        is_float = hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.asarray(x, jnp.float64) if is_float else x

    return jax.tree.map(widen, tree)


def direction(tree: Tree, seed: int = 0) -> Tree:
    """A random tangent."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=jnp.shape(x)), x.dtype), tree)


def inner(left: Tree, right: Tree) -> jax.Array:
    """The inner product of two trees."""
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return sum((jnp.vdot(a, b) for a, b in pairs), jnp.array(0.0))


def answering_jax(fun: Callable) -> Callable:
    """`fun`, with functrans's gradient for whoever asks JAX: some packages call `jax.grad` inside.

    All that is left for JAX is the derivative of the inner product of that gradient and a tangent.
    """
    answering = jax.custom_jvp(fun)

    @answering.defjvp
    def jvp(primals, tangents):
        value, gradient = ft.value_and_grad(fun, argnums=range(len(primals)))(*primals)
        return value, inner(gradient, tangents)

    return answering


def forward_over_reverse(ad: ModuleType, loss: Callable, params: Tree, v: Tree) -> Tree:
    """The value, the gradient, and how both change: the last is the Hessian times `v`."""
    return ad.jvp(ad.value_and_grad(loss), (params,), (v,))


def reverse_over_reverse(ad: ModuleType, loss: Callable, params: Tree, v: Tree) -> Tree:
    return ad.grad(lambda params: inner(ad.grad(loss)(params), v))(params)


BOTH = (forward_over_reverse, reverse_over_reverse)


def ours_and_theirs(make: Callable[[ModuleType], Callable], *args: Tree) -> tuple[Tree, Tree]:
    """In one program: XLA compiles once what both of them write."""
    ours, theirs = make(ft), make(jax)
    return jax.jit(lambda *args: (ours(*args), theirs(*args)))(*args)


def check_derivatives(loss: Callable, params: Tree, second: Sequence[Callable] = BOTH) -> None:
    """The value of a loss, its gradient, and its Hessian times a vector, are those of JAX.

    They are compiled as a whole, around a call that is jitted by itself.
    """

    def derivatives(ad):
        def run(params, v):
            return [derivative(ad, ad.jit(loss), params, v) for derivative in second]

        return ad.jit(run)

    got, want = ours_and_theirs(derivatives, params, direction(params))
    assert any(float(jnp.max(jnp.abs(g))) > 1e-6 for g in jax.tree.leaves(want))
    close(got, want)


def check_gradient(loss: Callable, params: Tree) -> None:
    """Where nothing else is defined: the value, and the gradient of a compiled function."""
    want = jax.jit(jax.value_and_grad(loss))(params)
    assert any(float(jnp.max(jnp.abs(g))) > 1e-6 for g in jax.tree.leaves(want[1]))
    close(ft.value_and_grad(ft.jit(loss))(params), want)


def check_training(loss: Callable, params: Tree, *batch: Tree) -> None:
    """One compiled step of training, and the Hessian times a vector.

    The loss returns its value and what else the model updates.
    """
    # Adam divides by the size of a gradient: without `eps` the rounding of a zero would be seen.
    optimizer = optax.adam(1e-2, eps=1e-3)

    def step(ad):
        def run(params, v, *batch):
            def both(params):
                value_and_grad = ad.value_and_grad(ad.jit(loss), has_aux=True)
                (value, aux), gradient = value_and_grad(params, *batch)
                return (value, gradient), aux

            (value, gradient), second, aux = ad.jvp(both, (params,), (v,), has_aux=True)
            updates, _ = optimizer.update(gradient, optimizer.init(params), params)
            return value, aux, gradient, second, optax.apply_updates(params, updates)

        return ad.jit(run)

    got, want = ours_and_theirs(step, params, direction(params), *batch)
    close(got, want)
    moved = zip(jax.tree.leaves(want[-1]), jax.tree.leaves(params), strict=True)
    assert any(bool(jnp.any(new != old)) for new, old in moved)
