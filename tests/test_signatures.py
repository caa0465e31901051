"""A transformed function says what it is, and takes the arguments of the function it comes from."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import functrans as ft

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.arange(1.0, 4.0)


def power(x, n: int = 2, *, scale: float = 1.0):
    """The sum of the powers.

    At length.
    """
    return scale * jnp.sum(x**n)


DERIVATIVES: dict[Callable, str] = {
    ft.grad: "gradient",
    ft.value_and_grad: "value and the gradient",
    ft.jacfwd: "Jacobian",
    ft.jacrev: "Jacobian",
    ft.jacobian: "Jacobian",
    ft.value_and_jacfwd: "value and the Jacobian",
    ft.value_and_jacrev: "value and the Jacobian",
    ft.hessian: "Jacobian of the Jacobian",
}


@pytest.mark.parametrize("transform", DERIVATIVES, ids=lambda t: t.__name__)
@pytest.mark.parametrize("jit", [lambda f: f, ft.jit, jax.jit], ids=["eager", "ft.jit", "jax.jit"])
def test_a_derivative_says_what_it_returns_and_what_it_takes(
    transform: Callable, jit: Callable
) -> None:
    derived = transform(jit(power))
    assert inspect.signature(derived) == inspect.signature(power)
    assert (derived.__name__, derived.__module__) == ("power", __name__)
    assert inspect.unwrap(derived) is power
    first, own = derived.__doc__.split("\n\n", 1)
    what = DERIVATIVES[transform]
    assert first == f"The {what} of `power`, as a function of the same arguments."
    assert own == power.__doc__
    assert jit(power).__doc__ == power.__doc__


def test_what_wraps_directly_is_unwrapped_at_once() -> None:
    for transform in (ft.grad, ft.value_and_grad, ft.jacfwd, ft.jacrev, ft.make_jaxpr, ft.jit):
        assert transform(power).__wrapped__ is power
    assert ft.grad(ft.jit(power)).__wrapped__ is power


def test_sentences_compose() -> None:
    text = ft.grad(ft.value_and_grad(power)).__doc__
    assert text and text.startswith("The gradient of the value and the gradient of `power`,")
    assert ft.value_and_grad(lambda x: x).__doc__ == (
        "The value and the gradient of `<lambda>`, as a function of the same arguments."
    )


def test_attributes_of_a_function_are_copied() -> None:
    def own(x):
        return x * x

    own.unit = "metre"
    assert ft.grad(own).unit == ft.hessian(own).unit == "metre"


class Powers(eqx.Module):
    """A callable object with a method."""

    scale: float = eqx.field(static=True)

    def __call__(self, x, n):
        return self.scale * jnp.sum(x**n)

    def method(self, x, n):
        return self(x, n)


class Decorated:
    """Its methods are compiled in its class."""

    @ft.jit(static_argnames=("self", "n"))
    def by_name(self, x, n):
        """The documentation."""
        return jnp.sum(x**n)

    @functools.partial(ft.jit, static_argnums=(0, 2))
    def by_number(self, x, n):
        """The documentation."""
        return jnp.sum(x**n)


def plain(x, n):
    return jnp.sum(x**n)


FUNCTIONS: dict[str, Callable] = {
    "function": plain,
    "method": Powers(1.0).method,
    "callable object": Powers(1.0),
    "partial": functools.partial(lambda s, x, n: s * plain(x, n), 1.0),
    "partial with a name": functools.partial(lambda x, n, s: s * plain(x, n), s=1.0),
    "custom_jvp": jax.custom_jvp(plain, nondiff_argnums=(1,)),
    "wrapper": functools.wraps(plain)(lambda *args, **kwargs: plain(*args, **kwargs)),
}
FUNCTIONS["custom_jvp"].defjvp(  # type: ignore[attr-defined]
    lambda n, x, t: (plain(x[0], n), jnp.sum(n * x[0] ** (n - 1) * t[0]))
)

COMPILED: dict[str, Callable[[Callable, dict], Callable]] = {
    "grad jit": lambda f, static: ft.grad(ft.jit(f, **static)),
    "jit grad": lambda f, static: ft.jit(ft.grad(f), **static),
    "jax.jit grad": lambda f, static: jax.jit(ft.grad(f), **static),
    "grad jax.jit": lambda f, static: ft.grad(jax.jit(f, **static)),
    "grad jit jit": lambda f, static: ft.grad(ft.jit(ft.jit(f, **static), **static)),
    "jit grad jit": lambda f, static: ft.jit(ft.grad(ft.jit(f, **static)), **static),
    "jacfwd jit": lambda f, static: ft.jacfwd(ft.jit(f, **static)),
    "jit jacrev": lambda f, static: ft.jit(ft.jacrev(f), **static),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("compiled", COMPILED)
def test_static_arguments_by_name_and_by_number(kind: str, compiled: str) -> None:
    """However they are declared, and however they are given."""
    options: list[dict] = [{"static_argnums": 1}, {"static_argnames": "n"}]
    calls: list[tuple[tuple, dict[str, Any]]] = [((X, 3), {}), ((X,), {"n": 3})]
    for static, (args, kwargs) in itertools.product(options, calls):
        got = COMPILED[compiled](FUNCTIONS[kind], static)(*args, **kwargs)
        chex.assert_trees_all_close(got, 3 * X**2, rtol=1e-6)


@pytest.mark.parametrize("name", ["by_name", "by_number"])
def test_static_arguments_of_methods_that_are_compiled_in_their_class(name: str) -> None:
    model = Decorated()
    method = getattr(model, name)
    assert list(inspect.signature(method).parameters) == ["x", "n"]
    assert (method.__name__, method.__doc__) == (name, "The documentation.")
    assert getattr(Decorated, name)(model, X, 2) == plain(X, 2)
    for args, kwargs in (((X, 3), {}), ((X,), {"n": 3})):
        chex.assert_trees_all_close(method(*args, **kwargs), plain(X, 3))
        for derived in (
            ft.grad(method),
            ft.jit(ft.grad(method), static_argnames="n"),
            jax.jit(ft.grad(method), static_argnums=1),
            ft.grad(ft.jit(method, static_argnums=1)),
        ):
            chex.assert_trees_all_close(derived(*args, **kwargs), 3 * X**2, rtol=1e-6)


def test_what_has_no_signature_is_differentiated_and_compiled() -> None:
    for f in (jnp.sin, jnp.add.reduce, functools.partial(jnp.power, 2.0)):
        derived = ft.grad(lambda x, f=f: jnp.sum(f(x)))
        chex.assert_trees_all_close(ft.jit(derived)(X), derived(X), rtol=1e-6)
        assert ft.grad(f).__doc__

    class Opaque:
        """Neither a name nor a signature that can be found."""

        __signature__ = "none"

        def __call__(self, x):
            return jnp.sum(x**3)

    chex.assert_trees_all_close(ft.grad(Opaque())(X), 3 * X**2)
    chex.assert_trees_all_close(ft.jit(ft.grad(Opaque()))(X), 3 * X**2, rtol=1e-6)
    assert ft.grad(Opaque()).__name__ == "Opaque"
