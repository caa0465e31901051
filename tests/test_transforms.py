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
    """JAX's way to have the value too: return it as `aux`."""

    def value_and_jacobian(fun, argnums=0, has_aux=False, **options):
        def twice(*args, **kwargs):
            out = fun(*args, **kwargs)
            return (out[0] if has_aux else out), out

        def result(*args, **kwargs):
            return jacobian(twice, argnums, has_aux=True, **options)(*args, **kwargs)[::-1]

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
M = jnp.arange(1, 7).reshape(2, 3) / 7
Z = jnp.array([1.0 + 2.0j, -0.5 + 0.25j])
INTS = jnp.array([2, 0, 1])
KEY = jax.random.key(0)

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
    "mixed dtypes": (lambda x, y: x * y, (V.astype(jnp.bfloat16), V)),
    "dict of tuples": (
        lambda p: {"b": (p["x"] * p["y"][0], [p["y"][1]]), "a": p["x"]},
        ({"x": V, "y": (2.0, M)},),
    ),
    "None": (lambda p, nothing: (p[0] * 2, None, {"n": nothing}), ((V, None), None)),
    "named tuple": (lambda p: Pair(p.right * 2, [p.left]), (Pair(1.0, V),)),
    "identity": (lambda x: x, (V,)),
    "weak identity": (lambda x: x, (2.0,)),
    "NumPy identity": (lambda x: x, (np.float32(2.0),)),
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
    "random key": (lambda k, x: (jax.random.normal(k, (3,)) * x, k), (KEY, V)),
    "empty": (lambda x: (jnp.sum(x * x), x), (jnp.zeros((0, 3)),)),
    "complex": (lambda z: jnp.sin(z) * z, (Z,)),
    "complex to real": (lambda z: jnp.abs(z) ** 2 + z.imag, (Z,)),
    "real to complex": (lambda x: lax.complex(x, jnp.sin(x)), (V,)),
    "real and complex": (lambda x, z: x[:2] * z, (V, Z)),
    "inner jit": (jax.jit(lambda x, n: {"y": jnp.sin(x) * n}), (V, 2)),
}


def ones(x: Any) -> Any:
    """A tangent for a value: of its type, and ones where it has any."""
    aval = jax.typeof(x).to_tangent_aval()
    if aval.dtype == float0:
        return np.zeros(aval.shape, float0)
    if aval.weak_type:
        return 1.0
    return jnp.full(aval.shape, 1 + 0.5j if aval.dtype.kind == "c" else 1, aval.dtype)


def like(tree: Any) -> Any:
    return jax.tree.map(ones, tree)


def is_a(x: Any, *kinds: Any) -> bool:
    return any(jax.dtypes.issubdtype(jax.typeof(x).dtype, kind) for kind in kinds)


def positions(args: tuple, *kinds: Any) -> tuple[int, ...]:
    """The arguments that have leaves, all of them of these kinds of dtype."""
    leaves = [jax.tree.leaves(arg) for arg in args]
    return tuple(i for i, xs in enumerate(leaves) if xs and all(is_a(x, *kinds) for x in xs))


def squared(fun: Callable) -> Callable:
    """The function with its outputs reduced to one real number."""

    def scalar(*args):
        numbers = [x for x in jax.tree.leaves(fun(*args)) if is_a(x, np.inexact)]
        return sum((jnp.sum(jnp.abs(x) ** 2) for x in numbers), 0.0)

    return scalar


def real_parts(fun: Callable) -> Callable:
    """The outputs of the function that have a Jacobian."""

    def real(*args):
        leaves = jax.tree.leaves(fun(*args))
        return [x if is_a(x, np.floating) else jnp.real(x) for x in leaves if is_a(x, np.inexact)]

    return real


def of_jvp(t, fun, args):
    return t.jvp(fun, args, like(args))


def of_vjp(t, fun, args):
    out, pullback = t.vjp(fun, *args)
    return out, pullback(like(out)), pullback(like(out))


def of_linearize(t, fun, args):
    out, pushforward = t.linearize(fun, *args)
    return out, pushforward(*like(args)), pushforward(*like(args))


def of_grad(t, fun, args):
    argnums = positions(args, np.number, np.bool_)
    return t.grad(squared(fun), argnums, allow_int=True)(*args)


def of_value_and_grad(t, fun, args):
    return t.value_and_grad(squared(fun), positions(args, np.inexact))(*args)


def of_jacfwd(t, fun, args):
    return t.jacfwd(real_parts(fun), positions(args, np.floating))(*args)


def of_value_and_jacfwd(t, fun, args):
    return t.value_and_jacfwd(real_parts(fun), positions(args, np.floating))(*args)


def of_jacrev(t, fun, args):
    return t.jacrev(real_parts(fun), positions(args, np.inexact))(*args)


def of_value_and_jacrev(t, fun, args):
    return t.value_and_jacrev(real_parts(fun), positions(args, np.inexact))(*args)


def of_hessian(t, fun, args):
    return t.hessian(squared(fun), positions(args, np.floating))(*args)


def of_jit(t, fun, args):
    return t.jit(fun)(*args)


ANY = [of_jvp, of_vjp, of_linearize, of_jit]
NEED_ARGUMENT = {
    of_grad: (np.number, np.bool_),
    of_value_and_grad: (np.inexact,),
    of_jacfwd: (np.floating,),
    of_value_and_jacfwd: (np.floating,),
    of_jacrev: (np.inexact,),
    of_value_and_jacrev: (np.inexact,),
    of_hessian: (np.floating,),
}
OF_FUNCTIONS = [
    pytest.param(fun, args, transform, id=f"{transform.__name__[3:]}-{name}")
    for name, (fun, args) in FUNCTIONS.items()
    for transform in (*ANY, *NEED_ARGUMENT)
    if transform in ANY or (positions(args, *NEED_ARGUMENT[transform]) and name != "no outputs")
]


@pytest.mark.parametrize(("fun", "args", "transform"), OF_FUNCTIONS)
def test_of_many_functions(fun, args, transform):
    same(lambda t: transform(t, fun, args))
