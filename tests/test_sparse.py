"""Sparse arrays of `jax.experimental.sparse`, beyond the rows of the table of rules; and calls and
conversions that few programs have."""

from __future__ import annotations

import importlib
import itertools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import fused, multihost_utils, sparse
from jax.experimental.sparse.linalg import spsolve
from jax.interpreters import ad
from rule_cases.table import IS_12

import functrans as ft
from functrans import extend
from functrans.rules import RULES

pytestmark = pytest.mark.usefixtures("float64", "quick_compilation")

M = np.array([[4.0, 0.0, 1.0, 0.0], [0.0, 3.0, 0.0, 0.0], [1.0, 0.0, 2.0, 5.0]])
STORED = np.nonzero(M)
V = np.array([1.0, -2.0, 0.5, 3.0])

FORMATS: dict[str, Any] = {
    kind.__name__: kind for kind in (sparse.BCOO, sparse.BCSR, sparse.COO, sparse.CSR)
}


def with_values(m: Any, d: Any) -> Any:
    _, *structure = jax.tree.leaves(m)
    return jax.tree.unflatten(jax.tree.structure(m), [d, *structure])


def dense(d: Any) -> jax.Array:
    return jnp.zeros(M.shape).at[STORED].set(d)


def model(multiply: Callable) -> Callable:
    """Three derivatives of it are not zero."""
    return lambda d, v: jnp.sum(jnp.sin(multiply(d, v)) * multiply(d, v**2))


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_to_third_order(name: str) -> None:
    """As of a dense matrix with these entries."""
    m, v = FORMATS[name].fromdense(jnp.asarray(M)), jnp.asarray(V)

    def derivatives(fun: Callable) -> list:
        def twice(d, v):
            return ft.jvp(ft.grad(fun, (0, 1)), (d, v), (jnp.cos(d), v))[1]

        def thrice(d, v):
            return ft.grad(lambda d, v: sum(map(jnp.sum, twice(d, v))), (0, 1))(d, v)

        jitted = ft.grad(ft.jit(fun), (0, 1))
        return [f(m.data, v) for f in (ft.grad(fun, (0, 1)), jitted, twice, thrice)]

    products = (lambda d, v: with_values(m, d) @ v), (lambda d, v: dense(d) @ v)
    got, want = jax.jit(lambda: [derivatives(model(product)) for product in products])()
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", FORMATS)
def test_room_for_more_values_than_there_are(name: str) -> None:
    """COO lets what is left stand inside of the array; JAX counts that to its derivative."""
    m = jnp.asarray(M)

    def stored(m):
        return FORMATS[name].fromdense(m, nse=9).data

    d_dot = ft.jvp(stored, (m,), (jnp.cos(m),))[1]
    np.testing.assert_allclose(d_dot, np.append(np.cos(M[STORED]), [0, 0, 0]))
    (m_bar,) = ft.vjp(stored, m)[1](jnp.arange(1.0, 10.0))
    want = np.zeros(M.shape)
    want[STORED] = np.arange(1, 7)
    np.testing.assert_allclose(m_bar, want)


def test_a_sum_of_duplicates_counts_them_where_it_can() -> None:
    places = jnp.array([[0, 1], [2, 2], [0, 1], [9, 9]])
    d = jnp.arange(1.0, 5.0)

    def summed(d, nse=None):
        return sparse.BCOO((d, places), shape=(3, 4)).sum_duplicates(nse=nse).data

    assert summed(d).shape == (2,)
    for fun in (summed, lambda d: summed(d, 2)):
        np.testing.assert_allclose(ft.jacrev(fun)(d), [[1, 0, 1, 0], [0, 1, 0, 0]])
        np.testing.assert_allclose(ft.jacfwd(fun)(d), [[1, 0, 1, 0], [0, 1, 0, 0]])
    with pytest.raises(ValueError, match="nse must be specified"):
        ft.jit(ft.jacrev(summed))(d)


DIAGONAL = np.stack([np.arange(4, dtype=np.int32)] * 2, -1)
REARRANGED: dict[str, Callable] = {
    "transposed": lambda m: m.T,
    "sorted": lambda m: m.T.sort_indices().T,
    "summed": lambda m: m.sum_duplicates(nse=6, remove_zeros=False),
    "multiplied": lambda m: m @ sparse.BCOO((jnp.asarray(V), jnp.asarray(DIAGONAL)), shape=(4, 4)),
}


@pytest.mark.parametrize("name", REARRANGED)
def test_places_do_not_depend_on_what_is_linear(name: str) -> None:
    """On a tape they are known, and so can index what comes after."""
    m, rearranged = sparse.BCOO.fromdense(jnp.asarray(M)), REARRANGED[name]

    def linear(d):
        return rearranged(with_values(m, d)).todense()

    d_bar = ft.linear_transpose(linear, m.data)(linear(m.data))[0]
    _, pull = ft.vjp(linear, m.data)
    np.testing.assert_allclose(d_bar, pull(linear(m.data))[0])
    np.testing.assert_allclose(jnp.vdot(d_bar, V[0] * m.data), jnp.sum(linear(m.data) ** 2))


def test_a_sparse_system_in_both_arguments() -> None:
    """`x = A^-1 b`: as with a dense solver, and twice."""
    a = sparse.CSR.fromdense(jnp.asarray(M[:, :3]))

    def solve(d, b):
        return jnp.sum(spsolve(d, a.indices, a.indptr, b) ** 3)

    def solve_dense(d, b):
        return jnp.sum(jnp.linalg.solve(with_values(a, d).todense(), b) ** 3)

    def derivatives(d, b):
        gradients = (ft.grad(fun, (0, 1)) for fun in (solve, solve_dense))
        return [(slope(d, b), ft.jvp(slope, (d, b), (b[0] * d, b))) for slope in gradients]

    got, want = jax.jit(derivatives)(a.data, jnp.asarray(V[:3]))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9)


def test_products_with_values_that_matrices_share() -> None:
    """One array of values for a batch of matrices with places of their own."""
    places = jnp.array([[[0, 3], [1, 1]], [[2, 0], [0, 0]]])
    d, x = jnp.array([[2.0, -1.0]]), jnp.arange(8.0).reshape(2, 4)

    def product(d, x):
        m = sparse.BCOO((d, places), shape=(2, 3, 4))
        numbers = (((2,), (1,)), ((0,), (0,)))
        y: Any = sparse.bcoo_dot_general(m, x, dimension_numbers=numbers)
        return jnp.sum(y**2)

    def by_hand(d, x):
        numbers = jnp.arange(2)[:, None]
        m = jnp.zeros((2, 3, 4)).at[numbers, places[..., 0], places[..., 1]].add(d)
        return jnp.sum(jnp.einsum("bij,bj->bi", m, x) ** 2)

    gradients = [ft.grad(fun, (0, 1)) for fun in (product, by_hand)]
    got, want = jax.jit(lambda d, x: [gradient(d, x) for gradient in gradients])(d, x)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b)


# ---- calls ---------------------------------------------------------------------------------------


if IS_12:  # JAX 0.10 has one kind of metadata for both halves

    def test_metadata_of_the_backward_pass() -> None:
        from jax.experimental import xla_metadata

        tagged: Any = xla_metadata.xla_metadata_call2
        call = tagged({"name": "there"}, ad_metadata={"name": "back"})
        fun = call(lambda x: jnp.sin(x) ** 2)
        program = ft.make_jaxpr(ft.grad(fun))(0.5)
        tags = [e.params["xla_metadata"] for e in program.eqns if "xla_metadata" in e.params]
        assert tags == [(("name", "there"),), (("name", "back"),)]
        np.testing.assert_allclose(ft.grad(ft.grad(fun))(0.5), 2 * np.cos(1.0))


def test_a_fused_call_is_derived_into_fused_calls() -> None:
    """It is compiled for GPUs alone; here the programs of its halves are evaluated."""
    spaces = jax.memory.Space.Device, jax.memory.Space.Host
    fun = fused.fused(out_spaces=spaces)(lambda x, y: (jnp.sin(x) * y, jnp.cos(x)))
    x, y = jnp.asarray(V), jnp.asarray(V**2)

    def derivative(x, y):
        (z, w), pull = ft.vjp(fun, x, y)
        return ft.jvp(fun, (x, y), (y, x)), pull((z, w))

    program = extend.staged(derivative, x, y).program
    calls = [e for e in program.eqns if e.primitive.name == "fused_call"]
    first, pushed, back = calls
    assert first.params["out_spaces"][:2] == spaces
    assert pushed.params["out_spaces"] == spaces * 2
    assert back.params["out_spaces"] == spaces[:1] * 2

    def evaluated(equation, inputs):
        if equation.primitive.name != "fused_call":
            return extend.bind(equation, inputs)
        inner = equation.params["jaxpr"]
        return jax.core.eval_jaxpr(inner.jaxpr, inner.consts, *inputs)

    z, w, z_dot, w_dot, x_bar, y_bar = extend.interpret(program, [x, y], evaluated)
    np.testing.assert_allclose(z_dot, np.cos(x) * y * y + np.sin(x) * x)
    np.testing.assert_allclose(w_dot, -np.sin(x) * y)
    np.testing.assert_allclose(x_bar, np.cos(x) * y * z - np.sin(x) * w)
    np.testing.assert_allclose(y_bar, np.sin(x) * z)


if not IS_12:  # such a step is a call since JAX 0.11

    def test_steps_of_a_loop_that_is_not_compiled() -> None:
        def fun(x):
            return lax.scan(lambda c, x: (jnp.sin(c) * x, c), x[0], x)[0]

        v = jnp.asarray(V)
        want = ft.grad(fun)(v)
        with jax.disable_jit():
            np.testing.assert_allclose(ft.jvp(fun, (v,), (v,))[1], jnp.vdot(want, v), rtol=1e-12)


# ---- conversions ---------------------------------------------------------------------------------


def primitive(name: str) -> Any:
    """One that JAX gives no public name, by the table of its derivatives."""
    return next(p for p in ad.primitive_jvps if p.name == name)


def test_a_value_that_waits_for_another() -> None:
    tie_p = primitive("tie")
    y, (x_bar, y_bar) = ft.value_and_grad(lambda x, y: jnp.sin(tie_p.bind(x, y)), (0, 1))(1.0, 2.0)
    np.testing.assert_allclose((y, x_bar, y_bar), (np.sin(2.0), 0.0, np.cos(2.0)))


class minutes(jax.dtypes.extended):
    """A unit, as the type of an extended dtype."""


class UnitRules:
    """What JAX asks of an extended dtype whose elements are numbers."""

    allow_conversion = True

    @staticmethod
    def physical_element_aval(dtype):
        return jax.core.ShapedArray((), np.dtype("float64"))

    @staticmethod
    def tangent_dtype(dtype):
        return dtype.tangent_dtype or dtype


# JAX has no public name for the class of extended dtypes.
ExtendedDType: Any = next(
    kind for kind in type(jax.random.key(0).dtype).__mro__ if kind.__name__ == "ExtendedDType"
)


class Unit(ExtendedDType):
    """Numbers with a unit; their tangents are plain numbers, or of the same dtype."""

    _rules, type, itemsize = UnitRules, minutes, 8

    def __init__(self, tangent_dtype: Any):
        self.tangent_dtype, self.name = tangent_dtype, f"unit_{tangent_dtype}"

    def __hash__(self):
        return hash(self.name)

    def __eq__(self, other):
        return isinstance(other, Unit) and other.name == self.name


@pytest.mark.parametrize("tangents", [np.dtype("float64"), np.dtype("float32"), None])
def test_numbers_of_an_extended_dtype(tangents: Any) -> None:
    """To it and back, where its tangents are numbers of either width, or of the dtype itself."""

    def there_and_back(x):
        y = lax.convert_element_type(jnp.sin(x), Unit(tangents))
        return lax.convert_element_type(y, jnp.float64) * x

    x = 0.5
    want = np.cos(x) * x + np.sin(x)
    rtol = 1e-6 if tangents == np.dtype("float32") else 1e-12
    got = jax.jit(
        lambda x: (
            ft.grad(there_and_back)(x),
            ft.jvp(there_and_back, (x,), (1.0,))[1],
            ft.grad(ft.jit(there_and_back))(x),
        )
    )(x)
    np.testing.assert_allclose(got, [want] * 3, rtol=rtol)
    np.testing.assert_allclose(
        ft.jit(ft.grad(ft.grad(there_and_back)))(x), 2 * np.cos(x) - np.sin(x) * x, rtol=rtol
    )


def test_arrays_of_a_host_and_of_all_hosts() -> None:
    mesh, spec = jax.make_mesh((1,), ("d",)), jax.sharding.PartitionSpec("d")

    def there_and_back(x):
        y = multihost_utils.host_local_array_to_global_array(jnp.sin(x), mesh, spec)
        return jnp.sum(multihost_utils.global_array_to_host_local_array(y * y, mesh, spec))

    np.testing.assert_allclose(ft.grad(there_and_back)(jnp.asarray(V)), np.sin(2 * V), rtol=1e-12)
    assert RULES[multihost_utils.host_local_array_to_global_array_p] is not None


if not IS_12:  # JAX 0.12 has no shard_alike

    def test_two_arrays_in_one_sharding() -> None:
        shard_alike: Any = importlib.import_module("jax.experimental.shard_alike").shard_alike

        def fun(x, y):
            x, y = shard_alike(jnp.sin(x), y)
            return jnp.sum(x * y)

        for argnums in (0, 1, (0, 1)):
            got, want = (
                ft.grad(f, argnums)(V, 2 * V) for f in (fun, lambda x, y: jnp.sum(jnp.sin(x) * y))
            )
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_allclose(a, b)
        (t_bar,) = ft.linear_transpose(lambda t: operator.mul(*shard_alike(t, V)), V)(V)
        np.testing.assert_allclose(t_bar, V * V)


def test_every_pair_of_formats_agrees_under_vmap() -> None:
    """The cotangents of a batch are those of each; of the formats that JAX can batch."""
    batch = jnp.asarray([V, 2 * V])
    for name, mode in itertools.product(("BCOO", "BCSR"), ("fwd", "rev")):
        m = FORMATS[name].fromdense(jnp.asarray(M))

        def fun(v, m=m):
            return jnp.sum(jnp.sin(with_values(m, v[0] * m.data) @ v))

        derivative = jax.jit(ft.grad(fun) if mode == "rev" else ft.jacfwd(fun))
        got = jax.vmap(derivative)(batch)
        np.testing.assert_allclose(got, [derivative(v) for v in batch], rtol=1e-12)
