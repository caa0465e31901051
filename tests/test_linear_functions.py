"""What `vjp`, `linearize` and `linear_transpose` return is a pytree; and results are arrays."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functrans as ft

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.array([0.5, 1.0, 2.0])
W = jnp.array([1.0, -2.0, 3.0])


def fun(x):
    return {"y": jnp.sin(x) * x}


def linear(w, x):
    return {"y": jnp.cumsum(x * jnp.exp(w))}


# At (x, w): the linear function, and the vector to which it is applied.
LINEAR: dict[str, Callable[[Any, Any], Any]] = {
    "pushforward": lambda x, w: ft.linearize(fun, x)[1],
    "pushforward of a jitted function": lambda x, w: ft.linearize(ft.jit(fun), x)[1],
    "pullback": lambda x, w: ft.vjp(fun, x)[1],
    "pullback of a jitted function": lambda x, w: ft.vjp(ft.jit(fun), x)[1],
    "transpose": lambda x, w: ft.linear_transpose(functools.partial(linear, w), x),
    "transpose of a call": lambda x, w: ft.linear_transpose(
        lambda x: jax.jit(linear)(jnp.cos(w), x), x
    ),
}


def vector(name: str) -> Any:
    return W if name.startswith("push") else {"y": W}


@pytest.mark.parametrize("name", LINEAR)
def test_they_pass_into_and_out_of_jit(name: str) -> None:
    at, v = LINEAR[name], vector(name)
    want = at(X, W)(v)
    for jit in (jax.jit, ft.jit):
        made = jit(at)(X, W)  # out
        chex.assert_trees_all_close(jit(made)(v), want, rtol=1e-6)  # itself compiled
        chex.assert_trees_all_close(made(v), want, rtol=1e-6)
        applied = jit(lambda f, v: f(v))
        chex.assert_trees_all_close(applied(at(X, W), v), want, rtol=1e-6)  # in
        chex.assert_trees_all_close(applied(made, v), want, rtol=1e-6)  # out and in again
        # Through: what is returned is what was given.
        chex.assert_trees_all_close(jit(lambda f: f)(made)(v), want, rtol=1e-6)
        # The residuals are leaves: what maps leaves maps them, and keeps the function.
        same = jax.tree.map(lambda leaf: leaf, made)
        chex.assert_trees_all_close(same(v), want, rtol=1e-6)
        assert jax.tree.structure(same) == jax.tree.structure(made)


@pytest.mark.parametrize("name", LINEAR)
def test_a_batch_of_them_leaves_vmap_and_scan(name: str) -> None:
    at, v = LINEAR[name], vector(name)
    xs = jnp.stack([X, X + 1.0])
    want = [at(x, W)(v) for x in xs]
    batched = jax.vmap(lambda x: at(x, W))(xs)
    got = jax.vmap(lambda f: f(v))(batched)
    chex.assert_trees_all_close(jax.tree.map(lambda *ys: jnp.stack(ys), *want), got, rtol=1e-6)
    # A carry of a loop, of one structure in each step.
    start = at(X, W)
    _, outs = lax.scan(lambda f, _: (f, f(v)), start, None, length=2)
    chex.assert_trees_all_close(jax.tree.map(lambda y: y[1], outs), want[0], rtol=1e-6)


def test_the_derivative_of_a_transpose_that_came_out_of_jit() -> None:
    """It depends on what it closes over: `w -> A(w)^T y_bar`."""

    def outer(ad, w):
        transposed = ad.jit(
            lambda w: (
                ad.linear_transpose(functools.partial(linear, w), X)
                if ad is ft
                else jax.tree_util.Partial(
                    lambda w, y: jax.linear_transpose(functools.partial(linear, w), X)(y), w
                )
            )
        )(w)
        return jnp.sum(transposed({"y": W})[0] ** 2)

    for transform in (ft.grad, lambda f: ft.jit(ft.grad(f)), lambda f: ft.jacfwd(ft.jit(f))):
        got = transform(functools.partial(outer, ft))(W)
        chex.assert_trees_all_close(got, jax.grad(functools.partial(outer, jax))(W), rtol=1e-5)


def test_a_transpose_shows_its_jaxpr_and_keeps_its_constants_no_longer_than_itself() -> None:
    big = jnp.ones(3)
    reference = weakref.ref(big)
    transposed = ft.linear_transpose(lambda x, big=big: x * big, X)
    assert [e.primitive.name for e in transposed.jaxpr.eqns] == ["mul"]
    assert "mul" in repr(transposed)
    del big
    assert reference() is not None
    del transposed
    gc.collect()
    assert reference() is None


class Typed:
    """Has a shape and a dtype, and nothing else."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype


@pytest.mark.parametrize(
    "like",
    [
        *(Typed((3,), np.dtype("float32")), Typed([3], "float32"), Typed((3,), np.int32)),
        *(jax.ShapeDtypeStruct((3,), np.float32), jax.typeof(X), np.ones(3, np.float32)),
    ],
    ids=lambda like: f"{type(like).__name__}-{like.dtype}",
)
def test_what_has_a_shape_and_a_dtype_is_an_abstract_argument(like: Any) -> None:
    y_bar = np.arange(3).astype(like.dtype)
    (got,) = ft.linear_transpose(lambda x: jnp.cumsum(3 * x), like)(y_bar)
    np.testing.assert_array_equal(got, 3 * np.cumsum(y_bar[::-1])[::-1])
    assert got.dtype == like.dtype
    (aval,) = ft.make_jaxpr(lambda x: 2 * x)(like).in_avals
    assert (aval.shape, aval.dtype) == ((3,), like.dtype)


# Results are arrays.

NUMBERS = [1.5, 1.5 + 1j, np.float32(1.5), np.complex64(1.5j)]

# Functions whose results are, or may be, what they are given.
IDENTITIES: dict[str, Callable] = {
    "identity": lambda x: x,
    "asarray": jnp.asarray,
    "constant": lambda x: 2.5,
    "reduce_window": lambda x: lax.reduce_window(
        x, np.zeros((), jnp.asarray(x).dtype)[()], lax.add, (), (), ()
    ),
    "jit": jax.jit(lambda x: x),
    "copy": lambda x: {"a": x, "b": [x, 3.0]},
}


@pytest.mark.parametrize("name", IDENTITIES)
@pytest.mark.parametrize("x", NUMBERS, ids=repr)
def test_results_are_arrays_of_the_type_of_their_number(name: str, x: Any) -> None:
    f, xd = IDENTITIES[name], x * 2
    for jit in (lambda f: f, ft.jit):
        out = jit(f)(x)
        y, y_dot = ft.jvp(jit(f), (x,), (xd,))
        z, pushforward = ft.linearize(jit(f), x)
        value, pullback = ft.vjp(jit(f), x)
        y_bar = jax.tree.map(lambda y: y * 1, y)
        same = [y, z, value]
        results = [same, y_dot, pushforward(xd), pullback(y_bar)]
        if name not in ("constant", "copy"):  # `2.5` is not linear in `x`
            results.append(ft.linear_transpose(f, x)(y_bar))
        for leaf in jax.tree.leaves(results):
            assert isinstance(leaf, jax.Array), (type(leaf), leaf)
        want = jax.jvp(f, (x,), (xd,))
        chex.assert_trees_all_close((y, y_dot), want)
        for got in same:
            chex.assert_trees_all_equal_dtypes(got, jax.tree.map(jnp.asarray, out))
        for got, expected in zip(jax.tree.leaves(y_dot), jax.tree.leaves(want[1]), strict=True):
            assert jax.typeof(got) == jax.typeof(jnp.asarray(expected))


def test_gradients_and_what_is_traced_of_aux_are_arrays() -> None:
    def loss(x):
        return x, {"x": x, "array": jnp.asarray(x), "number": 3, "text": "as it is"}

    for x in (1.5, np.float32(1.5)):
        (value, aux), gradient = ft.value_and_grad(loss, has_aux=True)(x)
        _, _, again = ft.jvp(loss, (x,), (x,), has_aux=True)
        _, _, once_more = ft.vjp(loss, x, has_aux=True)
        assert all(isinstance(leaf, jax.Array) for leaf in (value, gradient))
        for found in (aux, again, once_more):
            assert isinstance(found["x"], jax.Array) and isinstance(found["array"], jax.Array)
            assert type(found["number"]) is int and found["text"] == "as it is"
        assert float(gradient) == 1.0 and float(aux["x"]) == 1.5
