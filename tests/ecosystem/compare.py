"""What the tests of this folder ask of a loss: its derivatives, and a step of training, beside JAX.

Everything is in float64, where two correct programs for the same number agree to many digits.
"""

from __future__ import annotations

from collections.abc import Callable
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


def hessian_times(ad: ModuleType, loss: Callable, params: Tree, v: Tree) -> Tree:
    """Forward over reverse; `ad` is functrans or JAX."""
    return ad.jvp(ad.grad(loss), (params,), (v,))[1]


def hessian_times_by_reverse(ad: ModuleType, loss: Callable, params: Tree, v: Tree) -> Tree:
    """Reverse over reverse."""

    def slope(params):
        pairs = zip(jax.tree.leaves(ad.grad(loss)(params)), jax.tree.leaves(v), strict=True)
        return sum(jnp.vdot(g, w) for g, w in pairs)

    return ad.grad(slope)(params)


SECOND = {"fwd over rev": hessian_times, "rev over rev": hessian_times_by_reverse}


def answering_jax(fun: Callable) -> Callable:
    """`fun`, with functrans's gradient for whoever asks JAX: some packages call `jax.grad` inside.

    All that is left for JAX is the derivative of the inner product of that gradient and a tangent.
    """
    answering = jax.custom_jvp(fun)

    @answering.defjvp
    def jvp(primals, tangents):
        value, gradient = ft.value_and_grad(fun)(*primals)
        pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(tangents), strict=True)
        return value, sum(jnp.vdot(g, t) for g, t in pairs)

    return answering


def check_derivatives(
    loss: Callable, params: Tree, second: tuple[str, ...] = tuple(SECOND), rtol: float = RTOL
) -> None:
    """The gradient of a compiled loss, and its Hessian times a vector, are those of JAX.

    functrans's gradient is taken of the compiled function, `ft.grad(ft.jit(loss))`, and its second
    derivatives are compiled as a whole, `ft.jit(... ft.grad(loss))`.
    """
    v = direction(params)

    def compiled(ad, transforms):
        return ad.jit(lambda p, v: {name: f(ad, loss, p, v) for name, f in transforms.items()})

    firsts = {"first": lambda ad, loss, p, v: ad.value_and_grad(loss)(p)}
    seconds = {name: SECOND[name] for name in second}
    want = compiled(jax, firsts | seconds)(params, v)
    first = want.pop("first")
    assert any(float(jnp.max(jnp.abs(g))) > 1e-6 for g in jax.tree.leaves(first[1]))
    close(ft.value_and_grad(ft.jit(loss))(params), first, rtol)
    if second:
        close(compiled(ft, seconds)(params, v), want, rtol)


def check_training(loss: Callable, params: Tree, *batch: Tree, rtol: float = RTOL) -> None:
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

        return ad.jit(run)(params, direction(params), *batch)

    got, want = step(ft), step(jax)
    close(got, want, rtol)
    moved = zip(jax.tree.leaves(want[-1]), jax.tree.leaves(params), strict=True)
    assert any(bool(jnp.any(new != old)) for new, old in moved)
