"""What calls are given beside arrays to differentiate: `nondiff_argnums`, `prevent_cse`, `aux`."""

from __future__ import annotations

import functools
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

X = jnp.arange(1.0, 4.0)
AT = jnp.array([1])


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def square_at(x, i):
    return x[i] ** 2


@square_at.defjvp
def _square_at_jvp(i, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return square_at(x, i), 2 * x[i] * x_dot[i]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def cube_at(x, i):
    return x[i] ** 3


def _cube_at_bwd(i, x, y_bar):
    return (jnp.zeros_like(x).at[i].add(3 * x[i] ** 2 * y_bar),)


cube_at.defvjp(lambda x, i: (cube_at(x, i), x), _cube_at_bwd)


def squares(x, i):
    return jnp.sum(square_at(x, i))


def computed(x):
    """The index comes from the argument itself."""
    return squares(x, jnp.argmin(x)[None] + 1)


def twice(x, i):
    return jnp.sum(square_at(square_at(x, i)[None], i[:, None] * 0))


GRADIENT = jnp.array([0.0, 4.0, 0.0])

WORKING: dict[str, tuple[Callable[[], Any], Any]] = {
    "eager": (lambda: ft.grad(squares)(X, AT), GRADIENT),
    "jit": (lambda: ft.jit(ft.grad(squares))(X, AT), GRADIENT),
    "jax.jit": (lambda: jax.jit(ft.grad(squares))(X, AT), GRADIENT),
    "jvp in jit": (lambda: ft.jit(lambda x, i: ft.jvp(lambda x: squares(x, i), (x,), (x,)))(X, AT),
                   (jnp.float32(4.0), jnp.float32(8.0))),
    "vmap": (lambda: jax.vmap(ft.grad(squares), (None, 0))(X, jnp.array([[1], [2]])),
             jnp.array([[0.0, 4.0, 0.0], [0.0, 0.0, 6.0]])),
    "hessian in jit": (lambda: ft.jit(ft.hessian(squares))(X, AT), jnp.diag(GRADIENT / 2)),
    "computed": (lambda: ft.grad(computed)(X), GRADIENT),
    "computed in jit": (lambda: ft.jit(ft.grad(computed))(X), GRADIENT),
    "one in another": (lambda: ft.jit(ft.grad(twice))(X, AT), jnp.array([0.0, 32.0, 0.0])),
    "custom_vjp": (lambda: ft.grad(lambda x: jnp.sum(cube_at(x, AT)))(X), 3 * GRADIENT),
    "custom_vjp in jit": (lambda: ft.grad(ft.jit(lambda x: jnp.sum(cube_at(x, AT))))(X),
                          3 * GRADIENT),
}  # fmt: skip


@pytest.mark.parametrize("name", WORKING)
def test_an_array_may_be_a_nondiff_argument(name: str) -> None:
    got, want = WORKING[name]
    chex.assert_trees_all_close(got(), want, rtol=1e-6)


FAILING: dict[str, Callable[[], Any]] = {
    "grad of jit": lambda: ft.grad(ft.jit(squares))(X, AT),
    "grad of jax.jit": lambda: ft.grad(jax.jit(squares))(X, AT),
    "custom_vjp of a tracer": lambda: ft.jit(ft.grad(lambda x, i: jnp.sum(cube_at(x, i))))(X, AT),
    "scan": lambda: ft.grad(
        lambda x: lax.scan(lambda c, i: (c + squares(x, i[None]), None), 0.0, jnp.arange(3))[0]
    )(X),
}


@pytest.mark.parametrize("name", FAILING)
def test_where_its_tracing_has_ended_the_error_names_nondiff_argnums(name: str) -> None:
    with pytest.raises(jax.errors.UnexpectedTracerError) as raised:
        FAILING[name]()
    notes = getattr(raised.value, "__notes__", [])
    assert "nondiff_argnums" in "\n".join([str(raised.value), *notes])


# Checkpoints.

PREVENTED = [True, False, (False, True), [True, False], ({"w": False, "b": True}, True)]


def barriers(ad: Any, fun: Callable, *args: Any) -> list[int]:
    """How many values each barrier of the compiled gradient holds."""
    lines = jax.jit(ad.grad(fun, (0, 1))).lower(*args).as_text().splitlines()
    found = [line.split("optimization_barrier")[1] for line in lines if "_barrier" in line]
    return [len(line.split(":")[0].split(",")) for line in found]


@pytest.mark.parametrize("prevent_cse", PREVENTED, ids=str)
def test_prevent_cse_for_each_argument(prevent_cse: Any) -> None:
    @functools.partial(jax.checkpoint, prevent_cse=prevent_cse)
    def layer(p, x):
        return jnp.sin(p["w"] @ x + p["b"])

    def fun(p, x):
        return jnp.sum(layer(p, layer(p, x)) ** 2)

    p = {"w": jnp.eye(3) / 2 + 0.1, "b": X}
    assert barriers(ft, fun, p, X) == barriers(jax, fun, p, X)

    def everything(ad):
        def stepped(p):
            return jnp.sum(lax.scan(lambda c, _: (layer(p, c), None), X, None, length=2)[0])

        return (
            ad.grad(fun, (0, 1))(p, X),
            ad.jvp(lambda x: fun(p, x), (X,), (X,)),
            ad.hessian(fun, 1)(p, X),
            ad.grad(stepped)(p),
            # A checkpoint of which only a part is read, and one on a tape that owns a part of it.
            ad.grad(lambda x: ad.jvp(lambda y: fun(p, y), (x,), (x,))[1])(X),
        )

    got, want = (jax.jit(functools.partial(everything, ad))() for ad in (ft, jax))
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_tracer_that_was_kept_gets_the_note_once() -> None:
    kept: list = []
    ft.jit(lambda x: kept.append(x) or x)(X)
    with pytest.raises(jax.errors.UnexpectedTracerError) as raised:
        ft.grad(lambda x: ft.grad(lambda y: jnp.sum(y * kept[0]))(x)[0])(X)
    assert sum("nondiff_argnums" in note for note in raised.value.__notes__) == 1


def test_an_integer_in_the_aux_of_custom_root_has_no_tangent() -> None:
    def root(p, aux):
        """`x^2 = p` by Newton's method; `aux` says how many steps that took."""

        def solve(f, x):
            x = lax.fori_loop(0, 20, lambda _, x: (x + p / x) / 2, x)
            return x, aux(x)

        return lax.custom_root(
            lambda x: x * x - p, jnp.ones(()), solve, lambda g, y: y / g(jnp.ones(())), has_aux=True
        )

    for aux in (
        lambda x: 20,
        lambda x: jnp.int32(20),
        lambda x: {"steps": jnp.arange(3), "done": x > 0, "error": x},
        lambda x: (np.int32(3), None),
    ):

        def solution(p, aux=aux):
            x, found = root(p, aux)
            return x, jax.tree.map(jnp.asarray, found)

        try:
            jax.grad(solution, has_aux=True)(4.0)
        except TypeError:  # before JAX 0.11 its own rule, which we call, gives an integer a tangent
            with pytest.raises(TypeError, match="expecting tangent float0"):
                ft.grad(solution, has_aux=True)(4.0)
            continue
        for transform in (lambda f: f, ft.jit):
            gradient, found = ft.grad(transform(solution), has_aux=True)(4.0)
            chex.assert_trees_all_close(gradient, 0.25, rtol=1e-6)
            (x, _), (x_dot, rest) = ft.jvp(transform(solution), (4.0,), (1.0,))
            chex.assert_trees_all_close((x, x_dot), (2.0, 0.25), rtol=1e-6)
            pairs = zip(jax.tree.leaves(found), jax.tree.leaves(rest), strict=True)
            for value, tangent in pairs:
                is_integer = not jnp.issubdtype(value.dtype, jnp.floating)
                assert (tangent.dtype == jax.dtypes.float0) == is_integer
            slope = ft.grad(transform(solution), has_aux=True)
            second = ft.grad(lambda p, slope=slope: slope(p)[0])(4.0)
            chex.assert_trees_all_close(second, -1 / 32, rtol=1e-6)
