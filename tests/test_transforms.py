"""The transforms give what JAX's functions of the same name give.

Each case is written once, as a function of a namespace of transforms, and run twice: with
functrans's and with JAX's. Equal are the structure, the shapes, the dtypes, the weak types and,
up to rounding, the numbers. Where JAX has no such function (`hvp`, `value_and_jacfwd`,
`value_and_jacrev`) the reference is composed from those that it has.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.dtypes import float0

import functrans as ft

NAMES = (
    "jvp vjp linearize linear_transpose grad value_and_grad jacfwd jacrev jacobian hessian jit "
    "make_jaxpr"
).split()


def _with_value(jacobian: Callable) -> Callable:
    def value_and_jacobian(fun, argnums=0, has_aux=False, **options):
        def result(*args, **kwargs):
            out = jacobian(fun, argnums, has_aux, **options)(*args, **kwargs)
            return fun(*args, **kwargs), (out[0] if has_aux else out)

        return result

    return value_and_jacobian


THEIRS = SimpleNamespace(
    **{name: getattr(jax, name) for name in NAMES},
    hvp=lambda fun, x, v: jax.jvp(jax.grad(fun), (x,), (v,))[1],
    value_and_jacfwd=_with_value(jax.jacfwd),
    value_and_jacrev=_with_value(jax.jacrev),
)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """What XLA's optimizer makes of thousands of tiny programs is not what is tested."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()


def assert_same(ours: Any, theirs: Any, rtol: float = 1e-5) -> None:
    """The same structure, and leaves of the same type and (nearly) the same value."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert isinstance(our, jax.Array) == isinstance(their, jax.Array), (our, their)
        if not isinstance(their, (jax.Array, np.ndarray, np.generic)):
            assert our == their
            continue
        assert jax.typeof(our) == jax.typeof(their)
        assert jax.typeof(our).weak_type == jax.typeof(their).weak_type, (our, their)
        if their.dtype != float0:
            if jax.dtypes.issubdtype(their.dtype, jax.dtypes.prng_key):
                our, their = map(jax.random.key_data, (our, their))
            tolerance = rtol if their.dtype.itemsize >= 4 else 2e-2
            chex.assert_trees_all_close(our, their, rtol=tolerance, atol=tolerance)


def same(case: Callable, **options: Any) -> None:
    assert_same(case(ft), case(THEIRS), **options)


# ---- every transform of many functions -----------------------------------------------------------


class Pair(NamedTuple):
    left: Any
    right: Any


V = jnp.array([0.5, -1.5, 2.0])
M = jnp.arange(6.0).reshape(2, 3) / 7
Z = jnp.array([1.0 + 2.0j, -0.5 + 0.25j])
INTS = jnp.array([2, 0, 1])

FUNCTIONS: dict[str, tuple[Callable, tuple]] = {
    "Python scalar": (jnp.sin, (0.5,)),
    "NumPy scalar": (jnp.sin, (np.float32(0.5),)),
    "NumPy array": (lambda x: jnp.tanh(x) * np.ones(3, np.float32), (np.array(V),)),
    "vector": (lambda x: jnp.exp(x) * x[::-1], (V,)),
    "product": (jnp.matmul, (M, V)),
    "weak times strong": (lambda a, x: a * x, (2.0, V)),
    "strong scalar times weak": (lambda a, b: a * b, (jnp.float32(2), 3.0)),
    "weak result": (lambda a, b: a * b + 1, (2.0, 3.0)),
    "half": (lambda x: x * 2.0, (V.astype(jnp.float16),)),
    "bfloat16": (lambda x: x * x, (V.astype(jnp.bfloat16),)),
    "mixed dtypes": (lambda x, y: x * y, (V.astype(jnp.bfloat16), V)),
    "dict of tuples": (
        lambda p: {"b": (p["x"] * p["y"][0], [p["y"][1]]), "a": p["x"]},
        ({"x": V, "y": (2.0, M)},),
    ),
    "None": (lambda p, nothing: (p[0] * 2, None, {"n": nothing}), ((V, None), None)),
    "named tuple": (lambda p: Pair(p.right * 2, [p.left]), (Pair(1.0, V),)),
    "identity": (lambda x: x, (V,)),
    "unused": (lambda x, y: x * x, (V, M)),
    "constant result": (lambda x: (x, 1.0, np.ones(2, np.float32), jnp.ones(2)), (V,)),
    "constant only": (lambda x: 2.0, (V,)),
    "nothing": (lambda: {"a": jnp.ones(2)}, ()),
    "no outputs": (lambda x: (), (V,)),
    "same twice": (lambda x: (x * 2,) * 2, (V,)),
    "integer": (lambda x, n: x * n, (V, INTS)),
    "Python integer": (lambda x, n: x**n, (V, 3)),
    "boolean": (lambda b, x, y: jnp.where(b, x, y), (V > 0, V, 2 * V)),
    "integer result": (lambda x: (x, jnp.argmax(x), x > 0), (V,)),
    "integers only": (lambda n: n + 1, (INTS,)),
    "unsigned": (lambda n, x: n.astype(jnp.float32) * x, (INTS.astype(jnp.uint8), V)),
    "random key": (lambda k, x: (jax.random.normal(k, (3,)) * x, k), (jax.random.key(0), V)),
    "empty": (lambda x: (jnp.sum(x * x), x), (jnp.zeros((0, 3)),)),
    "complex": (lambda z: jnp.sin(z) * z, (Z,)),
    "complex scalar": (lambda z: z * z, (1.0 + 2.0j,)),
    "complex to real": (lambda z: jnp.abs(z) ** 2 + z.imag, (Z,)),
    "real to complex": (lambda x: lax.complex(x, jnp.sin(x)), (V,)),
    "real and complex": (lambda x, z: x[:2] * z, (V, Z)),
    "inner jit": (jax.jit(lambda x, n: {"y": jnp.sin(x) * n}), (V, 2)),
    "astype": (lambda x: x.astype(jnp.bfloat16), (V,)),
    "linear": (lambda x, y: (3 * x + y, jnp.sum(y)), (V, V)),
}


def ones(x: Any) -> Any:
    """A tangent for a value: ones, where there are any."""
    aval = jax.typeof(x).to_tangent_aval()
    if aval.dtype == float0:
        return np.zeros(aval.shape, float0)
    return jnp.ones(aval.shape, aval.dtype) * (1 + 0.5j if aval.dtype.kind == "c" else 1)


def like(tree: Any) -> Any:
    return jax.tree.map(ones, tree)


def to_scalar(out: Any) -> Any:
    """A real number from any output."""
    leaves = [x for x in jax.tree.leaves(out) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return sum((jnp.sum(jnp.abs(x) ** 2) for x in leaves), 0.0)


def dtype_of(x: Any) -> Any:
    return jax.typeof(x).dtype


def positions(args: tuple, kind: Any) -> tuple[int, ...]:
    """The arguments all of whose leaves are of this kind of dtype."""
    return tuple(
        i
        for i, arg in enumerate(args)
        if all(jax.dtypes.issubdtype(dtype_of(x), kind) for x in jax.tree.leaves(arg))
    )


def of_jvp(t, fun, args):
    return t.jvp(fun, args, like(args))


def of_vjp(t, fun, args):
    out, pullback = t.vjp(fun, *args)
    return out, pullback(like(out)), pullback(jax.tree.map(jnp.negative, like(out)))


def of_linearize(t, fun, args):
    out, pushforward = t.linearize(fun, *args)
    return out, pushforward(*like(args))


def of_grad(t, fun, args):
    argnums = positions(args, jnp.inexact)
    scalar = lambda *args: to_scalar(fun(*args))  # noqa: E731
    return t.grad(scalar, argnums)(*args), t.value_and_grad(scalar, argnums)(*args)


def of_integer_grad(t, fun, args):
    scalar = lambda *args: to_scalar(fun(*args))  # noqa: E731
    argnums = [
        i
        for i, arg in enumerate(args)
        if not any(jnp.issubdtype(dtype_of(x), jax.dtypes.extended) for x in jax.tree.leaves(arg))
    ]
    return t.grad(scalar, argnums, allow_int=True)(*args)


def _real_parts(fun):
    """The outputs of a function that have a Jacobian."""

    def real(*args):
        leaves = jax.tree.leaves(fun(*args))
        return [x.real for x in leaves if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]

    return real


def of_jacfwd(t, fun, args):
    argnums = positions(args, jnp.floating)
    real = _real_parts(fun)
    return t.jacfwd(real, argnums)(*args), t.value_and_jacfwd(real, argnums)(*args)


def fun_of(fun):
    return _real_parts(fun)


def of_jacrev(t, fun, args):
    argnums = positions(args, jnp.inexact)
    real = _real_parts(fun)
    both = t.value_and_jacrev(real, argnums)(*args)
    return t.jacrev(real, argnums)(*args), t.jacobian(real, argnums)(*args), both


def of_hessian(t, fun, args):
    scalar = lambda *args: to_scalar(fun(*args))  # noqa: E731
    return t.hessian(scalar, positions(args, jnp.floating))(*args)


def of_jit(t, fun, args):
    return t.jit(fun)(*args)


TRANSFORMS = [of_jvp, of_vjp, of_linearize, of_grad, of_integer_grad, of_jacfwd, of_jacrev]
TRANSFORMS += [of_hessian, of_jit]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda f: f.__name__[3:])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_of_many_functions(name, transform):
    fun, args = FUNCTIONS[name]
    same(lambda t: transform(t, fun, args))
