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
from collections import Counter
from collections.abc import Callable
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
from jax.extend.core import Primitive

import functrans as ft

NAMES = ["jvp", "vjp", "linearize", "linear_transpose", "grad", "value_and_grad", "jacfwd"]
NAMES += ["jacrev", "jacobian", "hessian", "jit", "make_jaxpr"]


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
    hvp=lambda fun, x, v, *rest, **more: jax.jvp(
        lambda x: jax.grad(fun)(x, *rest, **more), (x,), (v,)
    )[1],
    value_and_jacfwd=_with_value(jax.jacfwd),
    value_and_jacrev=_with_value(jax.jacrev),
)


pytestmark = pytest.mark.usefixtures("quick_compilation")


def assert_same(ours: Any, theirs: Any, rtol: float = 1e-5) -> None:
    """The same structure, and leaves of the same type and (nearly) the same value."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        if isinstance(our, jax.Array) and np.ndim(their) == 0:
            their = jnp.asarray(their)  # JAX may return the number that it was given
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


def in_one_program(case: Callable) -> tuple:
    """Both results, computed as one compiled program; what is no array is as it was when traced."""
    traced: list = []

    def arrays():
        traced[:] = (case(ft), case(THEIRS))
        leaves = jax.tree.leaves(traced)
        return [x for x in leaves if isinstance(x, jax.Array)]

    computed = iter(jax.jit(arrays)())
    fill = lambda x: next(computed) if isinstance(x, jax.Array) else x  # noqa: E731
    return tuple(jax.tree.map(fill, result) for result in traced)


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


# What a transform needs an argument of. Jacobians take long, and are made of the others.
JACOBIANS: dict[Callable, tuple] = {
    of_value_and_grad: (np.inexact,),
    of_jacfwd: (np.floating,),
    of_jacrev: (np.inexact,),
    of_value_and_jacfwd: (np.floating,),
    of_value_and_jacrev: (np.inexact,),
    of_hessian: (np.floating,),
}
WITH_JACOBIANS = ("strong scalar times weak", "named tuple", "constant result", "empty", "complex")


def transforms_of(name: str, args: tuple) -> list:
    chosen = [of_jvp, of_vjp, of_linearize, of_jit]
    if name != "no outputs" and positions(args, np.number, np.bool_):
        chosen.append(of_grad)
    if name in WITH_JACOBIANS:
        chosen += [transform for transform, kinds in JACOBIANS.items() if positions(args, *kinds)]
    return chosen


OF_FUNCTIONS = [
    pytest.param(fun, args, transform, id=f"{transform.__name__[3:]}-{name}")
    for name, (fun, args) in FUNCTIONS.items()
    for transform in transforms_of(name, args)
]


@pytest.mark.parametrize(("fun", "args", "transform"), OF_FUNCTIONS)
def test_of_many_functions(fun, args, transform):
    case = lambda t: transform(t, fun, args)  # noqa: E731
    # One program is compiled much faster than each of its operations.
    assert_same(*in_one_program(case)) if transform in JACOBIANS else same(case)


# ---- arguments and results -----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_signatures_are_those_of_jax(name):
    """In names, order, kinds and defaults; `jit` forwards its options to `jax.jit`."""
    ours = dict(inspect.signature(getattr(ft, name)).parameters)
    theirs = dict(inspect.signature(getattr(jax, name)).parameters)
    # Since 0.11: which arguments may be saved, and which move. They have no documentation.
    left_out = {"saveable_args", "in_nzs"}
    added = {"chunk_size"} if name in ("jacfwd", "jacrev", "jacobian", "hessian") else set()
    if name == "jit":
        left_out, added = set(theirs) - {"fun"}, {"options"}
    assert set(ours) - set(theirs) == added
    assert set(theirs) - set(ours) <= left_out
    shared = [(p.name, p.kind, p.default) for p in theirs.values() if p.name in ours]
    if name == "jit":
        shared = [("fun", inspect.Parameter.POSITIONAL_ONLY, None)]
    assert [(p.name, p.kind, p.default) for p in ours.values() if p.name not in added] == shared


@pytest.mark.parametrize("name", ["value_and_jacfwd", "value_and_jacrev"])
def test_signatures_of_the_forms_that_jax_lacks(name):
    assert inspect.signature(getattr(ft, name)).parameters.keys() == (
        inspect.signature(getattr(ft, name.removeprefix("value_and_"))).parameters.keys()
    )


def three(x, y, z):
    return jnp.sum(x * y) * z


@pytest.mark.parametrize("argnums", [0, 1, -1, (0,), (2, 0), [1, 2], (-1, 0)])
@pytest.mark.parametrize("name", ["grad", "value_and_grad", "jacfwd", "jacrev", "value_and_jacrev"])
def test_argnums(name, argnums):
    same(lambda t: getattr(t, name)(three, argnums)(V, 2 * V, 3.0))


@pytest.mark.parametrize("argnums", [1, (0, -1)])
def test_argnums_of_a_hessian(argnums):
    case = lambda t: t.hessian(lambda x, y: x[0] * y**3, argnums)(V[:2], 3.0)  # noqa: E731
    assert_same(*in_one_program(case))


@pytest.mark.parametrize("name", ["grad", "value_and_grad", "jacfwd", "jacrev", "value_and_jacfwd"])
def test_keyword_arguments(name):
    fun = lambda x, *, scale, shift=1.0: jnp.sin(x) * scale["a"] + shift  # noqa: E731
    same(lambda t: getattr(t, name)(fun)(0.5, scale={"a": 2.0}, shift=np.float32(3)))


def with_aux(x):
    """Its `aux` holds what depends on the input, what does not, and what is no array at all."""
    return x**3, {"double": 2 * x, "name": "text", "none": None, "key": KEY, "flag": True}


def with_arrays(x):  # `jax.jacfwd` takes no other `aux`
    return x**3, {"double": 2 * x, "none": None}


AUX = {
    "jvp": lambda t: t.jvp(with_aux, (2.0,), (1.0,), has_aux=True),
    "vjp": lambda t: [t.vjp(with_aux, 2.0, has_aux=True)[i] for i in (0, 2)],
    "linearize": lambda t: [t.linearize(with_aux, 2.0, has_aux=True)[i] for i in (0, 2)],
    "grad": lambda t: t.grad(with_aux, has_aux=True)(2.0),
    "value_and_grad": lambda t: t.value_and_grad(with_aux, has_aux=True)(2.0),
    "jacfwd": lambda t: t.jacfwd(with_arrays, has_aux=True)(2.0),
    "jacrev": lambda t: t.jacrev(with_aux, has_aux=True)(2.0),
    "hessian": lambda t: t.hessian(with_arrays, has_aux=True)(2.0),
    "value_and_jacfwd": lambda t: t.value_and_jacfwd(with_arrays, has_aux=True)(2.0),
    "value_and_jacrev": lambda t: t.value_and_jacrev(with_aux, has_aux=True)(2.0),
    "grad of grad": lambda t: t.grad(t.grad(with_aux, has_aux=True), has_aux=True)(2.0),
}


@pytest.mark.parametrize("name", AUX)
def test_aux(name):
    same(AUX[name])


def test_aux_of_a_jitted_function():
    same(lambda t: t.grad(t.jit(with_arrays), has_aux=True)(2.0))
    same(lambda t: t.value_and_grad(t.jit(with_arrays), has_aux=True)(2.0))


def test_jacfwd_takes_any_aux():
    aux = ft.jacfwd(with_aux, has_aux=True)(2.0)[1]
    assert aux["name"] == "text" and aux["double"] == 4.0


def test_aux_is_not_differentiated():
    """Its tangent is cut off: outside, it is a constant of the inner transform only."""

    def outer(t):
        def through_aux(x):
            return t.grad(lambda y: (y * y, x * y), has_aux=True)(x)[1]

        return t.grad(through_aux)(3.0)

    same(outer)


HOLOMORPHIC = [
    lambda t: t.grad(lambda z: z**3, holomorphic=True)(1.0 + 2.0j),
    lambda t: t.value_and_grad(lambda z: jnp.sum(jnp.sin(z)), holomorphic=True)(Z),
    lambda t: t.jacfwd(lambda z: z * z[::-1], holomorphic=True)(Z),
    lambda t: t.jacrev(lambda z: z * z[::-1], holomorphic=True)(Z),
    lambda t: t.hessian(lambda z: z[0] * jnp.exp(z[1]), holomorphic=True)(Z),
    lambda t: t.value_and_jacfwd(jnp.sin, holomorphic=True)(Z),
    lambda t: t.value_and_jacrev(jnp.sin, holomorphic=True)(Z),
    lambda t: t.grad(lambda z: jnp.abs(z) ** 2)(np.complex64(1 + 2j)),  # complex to real
    lambda t: t.jacrev(lambda z: z.real * z.imag)(Z),
    lambda t: t.jvp(lambda z: z * z, (1.0 + 2.0j,), (1.0 + 0.0j,)),
    lambda t: t.vjp(lambda x: x * (1.0 + 2.0j), 3.0)[1](1.0 + 0.0j),  # real to complex
    lambda t: t.jacfwd(lambda x: x * (1.0 + 2.0j))(V),
]


@pytest.mark.parametrize("case", HOLOMORPHIC)
def test_complex(case):
    assert_same(*in_one_program(case))


INTEGERS = [
    lambda t: t.grad(lambda n, x: n * x, (0, 1), allow_int=True)(3, 2.0),
    lambda t: t.grad(lambda b: jnp.where(b, 1.0, 2.0), allow_int=True)(True),
    lambda t: t.value_and_grad(lambda p: p["n"] * p["x"], allow_int=True)({"n": 3, "x": 2.0}),
    lambda t: t.vjp(lambda n: n * 2, INTS)[1](np.zeros(3, float0)),
    lambda t: t.jvp(lambda n, x: (n, n * x), (3, 2.0), (np.zeros((), float0), 1.0)),
    lambda t: t.jvp(lambda b: jnp.logical_not(b), (True,), (np.zeros((), float0),)),
    lambda t: t.linearize(lambda n, x: n * x, 3, 2.0)[1](np.zeros((), float0), 1.0),
    lambda t: t.vjp(lambda x: (x, jnp.argmax(x)), V)[1]((V, 1.0)),  # the second is not looked at
    lambda t: t.jacfwd(lambda x: (x, jnp.argmax(x)))(V),
    lambda t: t.jacrev(lambda n, x: n * x, (0, 1), allow_int=True)(INTS, V),
    lambda t: t.jacrev(lambda n, x: n * x, allow_int=True)(3, V),
]


@pytest.mark.parametrize("case", INTEGERS)
def test_integers_have_float0_tangents(case):
    same(case)


WIDE = ["Python scalar", "weak times strong", "integer", "integer result", "complex", "None"]


@pytest.mark.parametrize("name", WIDE)
def test_float64(name):
    fun, args = FUNCTIONS[name]
    with jax.enable_x64(True):
        is_wide = lambda x: is_a(x, np.inexact) and not isinstance(x, float)  # noqa: E731
        wide = jax.tree.map(lambda x: x + jnp.zeros((), "float64") if is_wide(x) else x, args)
        for transform in (of_jvp, of_vjp):
            same(lambda t, transform=transform: transform(t, fun, wide), rtol=1e-12)


LINEAR = {
    "scale": (lambda x: 3 * x, (V,), V),
    "sum": (lambda x: jnp.sum(x), (V,), 2.0),
    "matrix": (lambda x: M @ x, (V,), V[:2]),
    "pytree": (lambda p: {"s": p["a"] + p["b"][0]}, ({"a": V, "b": (V, 1.0)},), {"s": V}),
    "two arguments": (lambda x, y: (x - y, 2.0 * y), (V, V), (V, V)),
    "types only": (lambda x: x[::-1], (jax.ShapeDtypeStruct((3,), jnp.float32),), V),
    "complex": (lambda z: z * (1.0 + 2.0j), (Z,), Z),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_transpose(name):
    fun, args, y_bar = LINEAR[name]
    same(lambda t: t.linear_transpose(fun, *args)(y_bar))
    same(lambda t: jax.jit(t.linear_transpose(fun, *args))(y_bar))


def test_hvp_takes_pytrees():
    fun = lambda p: jnp.sum(jnp.sin(p["x"]) * p["a"] ** 2)  # noqa: E731
    point, vector = {"x": V, "a": 2.0}, {"x": V[::-1], "a": 1.0}
    same(lambda t: t.hvp(fun, point, vector))
    same(lambda t: t.hvp(t.jit(fun), point, vector))


def test_hvp_takes_further_arguments():
    """They do not move; they may be integers, static, or given by name."""

    def fun(x, index, power=2, *, scale=1.0):
        return scale * x[index] ** power * x[0]

    jitted = lambda t, **options: t.jit(fun, **options)  # noqa: E731
    vector = V[::-1] + 1.0
    for static in ({}, {"static_argnums": 2}, {"static_argnames": "power"}):
        same(lambda t, static=static: t.hvp(jitted(t, **static), V + 1.0, vector, 2))
        same(lambda t, static=static: t.hvp(jitted(t, **static), V + 1.0, vector, 1, 3, scale=2.0))
    same(lambda t: t.hvp(fun, V + 1.0, vector, jnp.array(1), power=4))
    batch = lambda t: jax.vmap(lambda s: t.hvp(fun, V + 1.0, vector, 1, scale=s))(V)  # noqa: E731
    same(batch)
    same(lambda t: t.grad(lambda s: jnp.sum(t.hvp(fun, V + 1.0, vector, 1, scale=s)))(2.0))


@pytest.mark.parametrize("name", ["grad", "value_and_grad", "jacfwd", "jacrev", "hessian"])
def test_metadata(name):
    """The function made has the name of the one that was given."""

    def loss(x):
        return jnp.sum(x**2)

    assert getattr(ft, name)(loss).__name__ == loss.__name__
    assert callable(getattr(ft, name)(partial(loss)))


# ---- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])  # of 4
@pytest.mark.parametrize("name", ["jacfwd", "jacrev", "hessian"])
def test_chunks_change_nothing(name, chunk_size):
    fun = lambda p: jnp.sum(p["x"] ** 3) * p["a"] + jnp.sin(p["a"])  # noqa: E731
    if name != "hessian":
        scalar, fun = fun, lambda p: {"y": scalar(p) * p["x"], "z": scalar(p)}
    point = {"x": V, "a": 2.0}
    transform = getattr(ft, name)
    whole = transform(ft.jit(fun))(point)
    assert_same(transform(ft.jit(fun), chunk_size=chunk_size)(point), whole)


@pytest.mark.parametrize("name", ["jacfwd", "jacrev", "value_and_jacrev"])
def test_chunks_without_jit(name):
    fun = lambda x: jnp.sin(x) * x[::-1]  # noqa: E731
    assert_same(getattr(ft, name)(fun, chunk_size=2)(V), getattr(ft, name)(fun)(V))


@pytest.mark.parametrize("name", ["jacfwd", "jacrev", "hessian"])
def test_chunks_lower_the_peak_of_memory(name):
    matrix = jnp.ones((64, 64))

    def fun(x):
        for _ in range(4):
            x = jnp.sin(matrix @ x)
        return jnp.sum(x) if name == "hessian" else x

    def peak(chunk_size):
        compiled = jax.jit(getattr(ft, name)(fun, chunk_size=chunk_size)).lower(jnp.ones(64))
        return compiled.compile().memory_analysis().temp_size_in_bytes

    jax.config.update("jax_disable_most_optimizations", False)  # what is measured is XLA's plan
    try:
        assert peak(4) < 0.8 * peak(None)
    finally:
        jax.config.update("jax_disable_most_optimizations", True)


# ---- pushforward and pullback --------------------------------------------------------------------


def program(x, p):
    return {"y": jnp.sin(x) * p["a"], "n": jnp.argmax(x)}


def linear_functions(wrap: Callable = lambda f: f) -> list:
    _, pushforward = ft.linearize(wrap(program), V, {"a": 2.0})
    _, pullback = ft.vjp(wrap(program), V, {"a": 2.0})
    tangent = (jnp.ones(3), {"a": 1.0})
    cotangent = ({"y": jnp.ones(3), "n": np.zeros((), float0)},)
    return [(pushforward, tangent), (pullback, cotangent)]


WRAPPERS = [lambda f: f, jax.jit, ft.jit]
wrapped = pytest.mark.parametrize("wrap", WRAPPERS, ids=["eager", "jax.jit", "ft.jit"])
linear_function = pytest.mark.parametrize("which", [0, 1], ids=["pushforward", "pullback"])


@wrapped
@linear_function
def test_linear_functions_are_pytrees_of_residuals(wrap, which):
    linear, args = linear_functions(wrap)[which]
    leaves, tree = jax.tree.flatten(linear)
    assert leaves
    chex.assert_trees_all_equal(leaves, linear.residuals)
    again = jax.tree.unflatten(tree, leaves)
    assert type(again) is type(linear)
    chex.assert_trees_all_equal(again(*args), linear(*args))
    chex.assert_trees_all_equal(linear(*args), linear(*args))


@wrapped
@linear_function
def test_linear_functions_pass_into_and_out_of_jit(wrap, which):
    linear, args = linear_functions()[which]
    numbers = lambda tree: [x for x in jax.tree.leaves(tree) if x.dtype != float0]  # noqa: E731
    inside = wrap(lambda linear: numbers(linear(*args)))(linear)
    chex.assert_trees_all_close(inside, numbers(linear(*args)), rtol=1e-6)
    out = wrap(lambda x: linear_functions_at(x)[which])(V)
    chex.assert_trees_all_close(numbers(out(*args)), numbers(linear(*args)), rtol=1e-6)


def linear_functions_at(x):
    return ft.linearize(program, x, {"a": 2.0})[1], ft.vjp(program, x, {"a": 2.0})[1]


@wrapped
@linear_function
def test_linear_functions_print_their_jaxpr(wrap, which):
    linear, _ = linear_functions(wrap)[which]
    assert "mul" in str(linear.jaxpr) and str(linear.jaxpr) in repr(linear)
    pushed = jax.core.eval_jaxpr(linear.jaxpr.jaxpr, linear.jaxpr.consts, jnp.ones(3), 1.0)
    chex.assert_trees_all_close(pushed[0], 2 * jnp.cos(V) + jnp.sin(V), rtol=1e-6)


@pytest.mark.parametrize(
    ("fun", "operations"),
    [
        (jnp.sin, ["mul"]),
        (lambda x: jnp.log(x) + jnp.sqrt(x), ["mul", "mul", "add_any"]),
        (lambda x: jnp.sin(x) - jnp.exp(x), ["mul", "mul", "sub"]),
    ],
    ids=["a function", "a sum", "a difference"],
)
def test_a_pushforward_shows_operations_not_the_small_calls_of_numpy(fun, operations):
    program = ft.linearize(fun, 2.0)[1].jaxpr
    assert [e.primitive.name for e in program.jaxpr.eqns] == operations
    # What the user jits is a call, which computes again what it is not given.
    (call,) = ft.linearize(jax.jit(fun), 2.0)[1].jaxpr.jaxpr.eqns
    names = [e.primitive.name for e in call.params["jaxpr"].eqns]
    assert Counter(operations) <= Counter(names) and "jit" not in names


def test_linear_functions_are_vmapped():
    _, pullback = ft.vjp(lambda x: M @ jnp.sin(x), V)
    (rows,) = jax.vmap(pullback)(jnp.eye(2))
    chex.assert_trees_all_close(rows, M * jnp.cos(V), rtol=1e-6)
    pullbacks = jax.vmap(lambda x: ft.vjp(jnp.sin, x)[1])(V)
    chex.assert_trees_all_close(jax.vmap(lambda f: f(1.0)[0])(pullbacks), jnp.cos(V), rtol=1e-6)


# ---- Python control flow -------------------------------------------------------------------------


def branches(x):
    if x > 0:
        x = x * 2
    while x < 10:
        x = x * x + 1
    return x * x if bool(x > 3) else -x


def indexes(x):
    table = [1.0, 2.0, 3.0]
    total = x
    for i in range(int(x)):
        total = total * table[i] + x
    return total * round(x) + jnp.arange(4.0)[int(x)]


def concrete_integer(x, n=3):
    count = jnp.asarray(n)
    return x ** range(5)[count] * [1.0, 2.0, 3.0, 4.0][count]


FLOWS = [branches, indexes, concrete_integer]
ORDERS = {
    "jvp": lambda t, f: t.jvp(f, (2.5,), (1.0,)),
    "vjp": lambda t, f: t.vjp(f, 2.5)[1](1.0),
    "linearize": lambda t, f: t.linearize(f, 2.5)[1](1.0),
    "value_and_grad": lambda t, f: t.value_and_grad(f)(2.5),
    "forward over reverse": lambda t, f: t.jacfwd(t.grad(f))(2.5),
    "grad of grad": lambda t, f: t.grad(t.grad(f))(2.5),
}


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("fun", FLOWS)
def test_python_control_flow_on_concrete_values(fun, name):
    same(lambda t: ORDERS[name](t, fun))


# ---- nesting -------------------------------------------------------------------------------------


def nest(operators, fun):
    for operator in reversed(operators):
        fun = operator(fun)
    return fun


@pytest.mark.parametrize("name", ["grad", "jacfwd", "jacrev"])
def test_fifth_derivative(name):
    """Of x^7: 7*6*5*4*3 x^2."""
    fifth = nest([getattr(ft, name)] * 5, lambda x: x**7)
    chex.assert_trees_all_close(fifth(2.0), 2520 * 2.0**2, rtol=1e-6)
    fifth = nest([getattr(ft, name)] * 5, ft.jit(lambda x: x**7))
    chex.assert_trees_all_close(fifth(2.0), 2520 * 2.0**2, rtol=1e-6)


def D(t, f):  # the derivative of a scalar function, forward
    return lambda x: t.jvp(f, (x,), (1.0,))[1]


def R(t, f):  # and in reverse
    return lambda x: t.vjp(f, x)[1](1.0)[0]


def L(t, f):  # and linearized
    return lambda x: t.linearize(f, x)[1](1.0)


# Each with what it is by hand. `d` and `e` are any two derivatives, each of any mode.
CONFUSIONS: dict[str, tuple[Callable, float]] = {
    # d/dx x * d/dy (x + y)
    "classic": (lambda d, e: d(lambda x: x * e(lambda y: x + y)(1.0))(1.0), 1.0),
    # d/dx x * d/dy (x * y)
    "product": (lambda d, e: d(lambda x: x * e(lambda y: x * y)(2.0))(3.0), 6.0),
    # d/dx (x * d/dy (x * y * y))
    "closure": (lambda d, e: d(lambda x: x * e(lambda y: x * y * y)(x))(2.0), 24.0),
    # D (fn x => (D (fn y => y * x) at x)) squares nothing away
    "inner at outer": (lambda d, e: d(lambda x: e(lambda y: y * y * x)(x))(3.0), 12.0),
    # the inner function does not depend on its argument
    "constant inner": (lambda d, e: d(lambda x: e(lambda y: x * x)(1.0) + x)(3.0), 1.0),
    # the outer variable in the outer point only
    "shadowed": (lambda d, e: d(lambda x: e(lambda x: x**3)(x * x))(2.0), 96.0),
}


@pytest.mark.parametrize("modes", [(D, D), (D, R), (R, D), (R, R), (L, R), (D, L)])
@pytest.mark.parametrize("name", CONFUSIONS)
def test_no_perturbation_confusion(name, modes):
    case, expected = CONFUSIONS[name]
    d, e = (partial(mode, ft) for mode in modes)
    chex.assert_trees_all_close(case(d, e), expected, rtol=1e-6)
    chex.assert_trees_all_close(case(d, partial(modes[1], jax)), expected, rtol=1e-6)
    chex.assert_trees_all_close(case(partial(modes[0], jax), e), expected, rtol=1e-6)


@pytest.mark.parametrize("mode", (D, R, L))
def test_amazing_bug(mode):
    """Higher-order functions whose derivative is taken: Manzyuk, Pearlmutter, Radul, Rush and
    Siskind, Perturbation confusion in forward automatic differentiation of higher-order functions,
    Journal of Functional Programming 29 (2019)."""
    d = partial(mode, ft)

    def shift(u):
        return lambda f: lambda x: f(x + u)

    def shift_derivative(f):  # D s at 0, where s returns functions: for each x by itself
        return lambda x: d(lambda u: shift(u)(f)(x))(0.0)

    twice = shift_derivative(shift_derivative(jnp.exp))
    chex.assert_trees_all_close(twice(1.0), math.e, rtol=1e-6)


def test_three_levels_with_closures():
    def outermost(t):
        def outer(x):
            def middle(y):
                def inner(z):
                    return jnp.sin(x * z) * y**2 + z * y * x

                return t.jvp(inner, (y * x,), (y,))[1] * x

            return t.grad(middle)(x * 2) + t.vjp(middle, x)[1](1.0)[0]

        return t.grad(outer)(0.7)

    same(outermost)


# ---- composition with JAX's transforms -----------------------------------------------------------

DERIVATIVES: dict[str, Callable] = {
    "ft.grad": ft.grad,
    "ft.jvp": partial(D, ft),
    "ft.linearize": partial(L, ft),
    "jax.grad": jax.grad,
}
NEUTRAL: dict[str, Callable] = {
    "ft.jit": ft.jit,
    "jax.jit": jax.jit,
    "jax.vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, x]))[1],
    "jax.checkpoint": jax.checkpoint,
}
ALL = DERIVATIVES | NEUTRAL
PAIRS = [pair for pair in itertools.product(ALL, repeat=2) if "ft" in "".join(pair)]
X = jnp.float32(0.7)


def smooth(x):
    return jnp.sin(x) * jax.jit(lambda y: y**3)(x)


@pytest.fixture(scope="module")
def expected() -> list:
    return [nest([jax.grad] * order, smooth)(X) for order in range(5)]


def check(names, expected):
    order = sum(name in DERIVATIVES for name in names)
    result = nest([ALL[name] for name in names], smooth)(X)
    chex.assert_trees_all_close(result, expected[order], rtol=1e-4)


@pytest.mark.parametrize("names", PAIRS, ids="-".join)
def test_pairs(names, expected):
    check(names, expected)


OURS = ("ft.grad", "ft.jvp", "ft.jit", "jax.grad", "jax.vmap")


@pytest.mark.parametrize("names", [*itertools.product(OURS, ("ft.grad",), OURS)], ids="-".join)
def test_triples(names, expected):
    check(names, expected)


DEEP = [
    "ft.jit ft.grad jax.vmap ft.jvp jax.jit",
    "jax.jit ft.linearize jax.checkpoint ft.jit ft.grad",
    "jax.vmap ft.linearize jax.jit jax.vmap ft.grad ft.jit",
    "jax.grad ft.jit ft.grad jax.checkpoint jax.grad",
    "ft.grad jax.checkpoint jax.grad ft.jit jax.vmap",
    "ft.jvp jax.jit jax.grad ft.jit ft.jvp jax.jit",
]


@pytest.mark.parametrize("names", DEEP)
def test_deep_nests(names, expected):
    check(names.split(), expected)


# ---- functions with rules of their own -----------------------------------------------------------


@jax.custom_jvp
def tripled(x, y):
    return {"a": jnp.sin(x) * y, "b": x}


@tripled.defjvp
def _(primals, tangents):
    (x, y), (x_dot, y_dot) = primals, tangents
    out = tripled(x, y)  # not the derivative, so that one sees that it was asked
    return out, {"a": 3 * x_dot * y + y_dot, "b": x_dot * 5}


@partial(jax.custom_jvp, nondiff_argnums=(0, 2))
def applied(f, x, n):
    return f(x) * n


@applied.defjvp
def _(f, n, primals, tangents):
    return applied(f, *primals, n), 2 * tangents[0] * n


@jax.custom_jvp
def with_symbols(x, y):
    return x * y


def _symbolic_rule(primals, tangents):
    (x, y), (x_dot, y_dot) = primals, tangents
    is_zero = [type(t) is jax.custom_derivatives.SymbolicZero for t in (x_dot, y_dot)]
    total = 0.0 * x
    for zero, tangent, other in zip(is_zero, (x_dot, y_dot), (y, x), strict=True):
        total = total + (100.0 if zero else tangent * other)
    return x * y, total


with_symbols.defjvp(_symbolic_rule, symbolic_zeros=True)


@jax.custom_jvp
def separately(x, y):
    return x * y


separately.defjvps(lambda x_dot, out, x, y: 7 * x_dot * y, None)


@jax.custom_jvp
def by_jvp(x):
    return jax.jit(jnp.sin)(x)


by_jvp.defjvp(lambda xs, dots: jax.jvp(jax.jit(lambda x: jnp.sin(x) * 2), xs, dots))


@jax.custom_jvp
def by_our_jvp(x):
    return jax.jit(jnp.sin)(x)


by_our_jvp.defjvp(lambda xs, dots: ft.jvp(jax.jit(lambda x: jnp.sin(x) * 2), xs, dots))


@jax.custom_vjp
def clipped(x, p):
    return x * p["a"], jnp.sum(x)


clipped.defvjp(
    lambda x, p: (clipped(x, p), (x, p["a"])),
    lambda saved, bars: (
        jnp.clip(bars[0] * saved[1], -1, 1) + bars[1],
        {"a": 2 * jnp.sum(bars[0] * saved[0])},
    ),
)


@jax.custom_vjp
def doubled(x):
    return jnp.sin(x)


doubled.defvjp(lambda x: (jnp.sin(x), x), lambda x, y_bar: (2 * y_bar * jnp.cos(x),))


@partial(jax.custom_vjp, nondiff_argnums=(0, 2))
def applied_vjp(f, x, n):
    return f(x) * n


applied_vjp.defvjp(lambda f, x, n: (f(x) * n, x), lambda f, n, x, y_bar: (y_bar * n * f(x),))


@jax.custom_vjp
def none_for_some(x, y, n):
    return x * y * n


none_for_some.defvjp(
    lambda x, y, n: (x * y * n, (y, n)), lambda saved, bar: (bar * saved[0] * saved[1], None, None)
)


@jax.custom_vjp
def symbolic_vjp(x, y):
    return x * y, x + y


def _symbolic_fwd(x, y):
    scale = 10.0 if y.perturbed else 1.0
    return (x.value * y.value, x.value + y.value), (x.value, y.value, scale)


def _symbolic_bwd(saved, bars):
    x, y, scale = saved
    is_zero = [type(bar) is jax.custom_derivatives.SymbolicZero for bar in bars]
    first, second = (100.0 if zero else bar for zero, bar in zip(is_zero, bars, strict=True))
    return first * y * scale + second, first * x + second


symbolic_vjp.defvjp(_symbolic_fwd, _symbolic_bwd, symbolic_zeros=True)


def closing_over(x):
    @jax.custom_vjp
    def inner(y):
        return x * y

    inner.defvjp(lambda y: (x * y, (x, y)), lambda saved, bar: (3 * bar * saved[0],))
    return inner(x) + inner(2.0)


def closing_over_jvp(x):
    @jax.custom_jvp
    def inner(y):
        return jnp.sin(y)

    inner.defjvp(lambda ys, dots: (jnp.sin(ys[0]), 3 * dots[0] * ys[0]))
    return inner(x) * x


CUSTOM: dict[str, Callable] = {
    "jvp, pytree": lambda x: tripled(x, 2.0)["a"] * tripled(x, x)["b"],
    "jvp, nondiff_argnums": lambda x: applied(jnp.sin, x, 3),
    "jvp, symbolic zeros": lambda x: with_symbols(x, 2.0) + with_symbols(2.0, x),
    "jvp, both move": lambda x: with_symbols(x, x * 2),
    "jvp, defjvps": lambda x: separately(x, x),
    "jvp, closure": closing_over_jvp,
    "jvp, twice": lambda x: separately(tripled(x, x)["a"], x),
    "jvp, the rule takes a jvp": lambda x: by_jvp(x) * x,
    "jvp, the rule takes ours": lambda x: by_our_jvp(x) * x,
    "relu": lambda x: jax.nn.relu(x) * x,
    "vjp, pytree": lambda x: clipped(x, {"a": x * 2})[0] + clipped(x, {"a": 2.0})[1],
    "vjp, nondiff_argnums": lambda x: applied_vjp(jnp.exp, x, 3),
    "vjp, None": lambda x: none_for_some(x, x, 3),
    "vjp, symbolic zeros": lambda x: symbolic_vjp(x, 2.0)[0] + symbolic_vjp(x, x)[1],
    "vjp, symbolic zero of an output": lambda x: symbolic_vjp(x, x * x)[0],
    "vjp, in a sequence": lambda x: doubled(doubled(x) * x),
}
# Only JAX's own closure conversion lets a rule close over what is being differentiated.
REVERSE = CUSTOM | {"vjp, closure": lambda x: closing_over(jnp.float32(2.0)) * x}
AROUND: dict[str, Callable] = {
    "eager": lambda t, f: f,
    "jit": lambda t, f: t.jit(f),
    "jax.jit": lambda t, f: jax.jit(f),
    "vmap": lambda t, f: lambda x: jnp.sum(jax.vmap(f)(jnp.stack([x, x]))),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", REVERSE)
def test_custom_rules_in_reverse(name, around):
    same(lambda t: t.value_and_grad(AROUND[around](t, REVERSE[name]))(X))


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", [name for name in CUSTOM if "vjp" not in name])
def test_custom_rules_forward(name, around):
    same(lambda t: t.jvp(AROUND[around](t, CUSTOM[name]), (X,), (jnp.float32(1),)))
    if around == "eager":
        same(lambda t: t.grad(D(t, CUSTOM[name]))(X))


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("name", ["vjp, in a sequence", "vjp, None", "vjp, nondiff_argnums"])
def test_custom_vjp_forward_is_the_transpose_of_its_backward_rule(name, around):
    """JAX has no forward derivative of these; the derivative of a scalar function is one number."""
    fun = AROUND[around](ft, REVERSE[name])
    expected = ft.grad(fun)(X)
    for derivative in (D, L):
        chex.assert_trees_all_close(derivative(ft, fun)(X), expected, rtol=1e-5)
    chex.assert_trees_all_close(jax.jit(ft.jacfwd(fun))(X), expected, rtol=1e-5)


@pytest.mark.parametrize("around", ["eager", "jit"])
def test_second_derivatives_of_custom_vjp(around):
    """Reverse over reverse is JAX's; all other orders are the same number."""
    fun = AROUND[around](ft, doubled)
    expected = jax.grad(jax.grad(AROUND[around](jax, doubled)))(X)
    derivatives = [partial(mode, ft) for mode in (D, L, R)]
    for outer, inner in itertools.product(derivatives, repeat=2):
        # Forward over reverse differentiates the rule, reverse over forward transposes it first.
        chex.assert_trees_all_close(outer(inner(fun))(X), expected, rtol=1e-5)


def test_integer_arguments_of_custom_rules():
    @jax.custom_vjp
    def power(x, n):
        return x**n

    power.defvjp(lambda x, n: (x**n, (x, n)), lambda saved, bar: (bar * saved[1], None))
    same(lambda t: t.grad(power, (0, 1), allow_int=True)(X, 3))
    same(lambda t: t.vjp(power, V, INTS)[1](jnp.ones(3)))


@pytest.mark.parametrize("jit", [ft.jit, jax.jit])
def test_linear_transpose_of_what_does_other_work_as_well(jit):
    """The jaxpr of a pushforward through a call computes its values, too, in the same call."""
    fun = lambda x: jit(jnp.sin)(x) * jnp.cumsum(x)  # noqa: E731
    pushforward = lambda x_dot: ft.jvp(fun, (V,), (x_dot,))[1]  # noqa: E731
    ours = ft.linear_transpose(pushforward, V)(V)
    chex.assert_trees_all_close(ours, jax.vjp(fun, V)[1](V), rtol=1e-5)


# ---- rules of one's own --------------------------------------------------------------------------


def rule_of_a_value(calls: list) -> Primitive:
    """`|x|`, by a rule that asks for the value, and remembers each time that it is asked."""
    primitive = Primitive("magnitude")
    primitive.def_impl(lambda x: abs(x))
    primitive.def_abstract_eval(lambda x: x)

    def jvp(primals, tangents):
        calls.append(primals[0])
        (x,), (x_dot,) = primals, tangents
        return primitive.bind(x), x_dot if x > 0 else -x_dot

    ft.rules.general(primitive, jvp)
    return primitive


def test_a_rule_may_ask_for_values_where_there_are_values():
    primitive = rule_of_a_value([])
    for x in (2.0, -3.0):
        assert float(ft.grad(primitive.bind)(x)) == math.copysign(1, x)
    with pytest.raises(jax.errors.TracerBoolConversionError):
        ft.jit(ft.grad(primitive.bind))(2.0)


def test_a_rule_is_asked_once_for_each_type():
    calls = []
    primitive = Primitive("cube")
    primitive.def_impl(lambda x: x * x * x)
    primitive.def_abstract_eval(lambda x: x)
    ft.rules.elementwise(primitive, lambda y, x: calls.append(x) or 3 * x * x)
    for x in (1.0, 2.0, np.float32(3), np.float32(4)):
        assert float(ft.grad(primitive.bind)(x)) == 3 * x * x
    assert len(calls) == 2  # a Python number, and a float32
