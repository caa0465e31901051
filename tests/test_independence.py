"""Independence: with JAX's own derivative rules gone, functrans gives the same derivatives.

Each program below is a function of the library that differentiates. The test evaluates it with JAX;
a child process, which is this file run as a script, empties every rule table of JAX, sees
that JAX fails on the program, and evaluates it with functrans.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn
from jax.experimental import pallas, sparse
from jax.extend.core import Primitive
from jax.interpreters import ad as jax_ad

import functrans as ft

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROGRAMS: dict[str, Callable[[Any], Any]] = {}
PLACES = np.array([[0, 1], [0, 2], [1, 0], [3, 1], [3, 1]])


def program(evaluate: Callable) -> Callable:
    PROGRAMS[evaluate.__name__] = evaluate
    return evaluate


def array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(list(shape)).normal(size=shape), jnp.float32)


@program
def elementwise(ad):
    def fun(x):
        y = jnp.tanh(x) * jnp.exp(-(x**2)) + jnp.log1p(jnp.abs(x)) / jnp.sqrt(2 + jnp.cos(x))
        return jnp.sum(jnp.where(x > 0, y, jnp.arctan2(x, 1 + y**2)))

    return ad.grad(fun)(array(5)), ad.jvp(fun, (array(5),), (array(5) ** 2,))


def conv_net(params, images):
    x = images
    for kernel in params["kernels"]:
        x = lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = nn.relu(x)
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return x.reshape(len(x), -1) @ params["dense"] + params["bias"]


# Small enough that the softmax is not all on one class.
PARAMS = {
    "kernels": [0.3 * array(3, 3, 1, 2), 0.3 * array(3, 3, 2, 3)],
    "dense": 0.3 * array(12, 4),
    "bias": array(4),
}


def cross_entropy(params, images, labels):
    picked = jnp.take_along_axis(nn.log_softmax(conv_net(params, images)), labels[:, None], axis=1)
    return -jnp.mean(picked)


DATA = array(3, 8, 8, 1), jnp.array([2, 0, 3])


@program
def a_convolutional_network(ad):
    return ad.value_and_grad(cross_entropy)(PARAMS, *DATA)


@program
def a_jitted_network(ad):
    return ad.grad(ad.jit(cross_entropy))(PARAMS, *DATA), ad.jit(ad.grad(cross_entropy))(
        PARAMS, *DATA
    )


@program
def gradients_for_each_example(ad):
    def loss(params, image, label):
        return cross_entropy(params, image[None], label[None])

    return jax.vmap(ad.grad(loss), (None, 0, 0))(PARAMS, *DATA)


@program
def curvature(ad):
    def loss(params):
        return cross_entropy(params, *DATA)

    return ad.jvp(ad.grad(loss), (PARAMS,), (PARAMS,))[1]


@program
def eigenvalues_and_singular_values(ad):
    def loss(a):
        (w, v), (u, s, vt) = jnp.linalg.eigh(a + a.T), jnp.linalg.svd(a)
        return jnp.sum(w * v[0] ** 2) + jnp.sum(s * u[0] * vt[:, 1])

    return ad.grad(loss)(array(3, 3))


@program
def a_linear_function(ad):
    y, push = ad.linearize(cross_entropy, PARAMS, DATA[0], DATA[1])
    zeros = np.zeros(DATA[1].shape, jax.dtypes.float0)
    return y, push(PARAMS, DATA[0], zeros)


@program
def a_transpose(ad):
    return ad.linear_transpose(lambda x: jnp.cumsum(x[::-1]) @ array(4, 3), array(4))(array(3))


@program
def a_hessian(ad):
    return ad.hessian(lambda x: jnp.sum(jnp.sin(x) * jnp.cumprod(x)) ** 2)(array(4))


@program
def jacobians(ad):
    def fun(x, y):
        return {"a": jnp.outer(jnp.sin(x), y), "b": x.at[jnp.array([0, 0])].add(y)}

    args = array(3), array(2)
    return ad.jacfwd(fun, (0, 1))(*args), ad.jacrev(fun, (0, 1))(*args)


@program
def an_order_of_five(ad):
    def fun(x):
        return jnp.sin(x) * x**2

    derivative = fun
    for _ in range(5):
        derivative = ad.grad(derivative)
    return derivative(0.7)


@program
def custom_rules_of_the_library(ad):
    return ad.grad(lambda x: jnp.sum(nn.silu(x) * nn.relu6(x) + nn.logsumexp(x)))(array(6))


@jax.custom_jvp
def halved(x, y):
    return jnp.sin(x) * y


@halved.defjvp
def _halved_jvp(primals, tangents):
    (x, y), (x_dot, y_dot) = primals, tangents
    return halved(x, y), 0.5 * (jnp.cos(x) * y * x_dot + jnp.sin(x) * y_dot)


@jax.custom_vjp
def clipped(x):
    return x**2


clipped.defvjp(lambda x: (x**2, x), lambda x, y_bar: (jnp.clip(2 * x * y_bar, -0.5, 0.5),))


@program
def custom_rules_of_the_user(ad):
    def fun(x):
        return jnp.sum(clipped(x) + halved(x, x[::-1]))

    x = array(5)
    return ad.grad(fun)(x), ad.grad(jax.jit(fun))(x), ad.hessian(lambda x: halved(x, x))(0.3)


@program
def indices_and_order(ad):
    def fun(x):
        top, where = lax.top_k(x, 3)
        y = jnp.sort(x)[::2] * x[where] + top
        return lax.dynamic_update_slice(x, y**2, (1,)).at[where].mul(x[0], unique_indices=True)

    y, pull = ad.vjp(fun, array(6))
    return y, pull(y)


@program
def a_sparse_network(ad):
    def loss(values, x):
        matrix = sparse.BCOO((values, PLACES), shape=(4, 3))
        return jnp.sum(jnp.tanh(matrix @ x) ** 2) + jnp.sum((x @ matrix.T).sum() * values)

    args = array(5), array(3)
    return ad.grad(loss, (0, 1))(*args), ad.jvp(ad.grad(loss), args, args)


@program
def a_kernel(ad):
    def kernel(x, y):
        y[...] = jnp.sin(x[...]) * x[0]

    out = jax.ShapeDtypeStruct((4,), jnp.float32)
    fun = pallas.pallas_call(kernel, out_shape=out, interpret=True)
    return ad.jvp(fun, (array(4),), (array(4) ** 2,))


@program
def complex_numbers(ad):
    z = array(3) + 1j * array(3)[::-1]
    return (
        ad.grad(lambda z: jnp.sum(jnp.abs(jnp.exp(1j * z)) ** 2))(z),
        ad.grad(lambda z: jnp.sum(jnp.sin(z) * z), holomorphic=True)(z),
    )


def rule_tables() -> list:
    """Every table with a primitive for a key in the module where JAX's own AD is."""
    variables = vars(sys.modules[jax_ad.defjvp.__module__])
    return [
        table
        for table in variables.values()
        if isinstance(table, dict | set) and any(isinstance(p, Primitive) for p in table)
    ]


def values(evaluate: Callable, ad: ModuleType) -> Any:
    """In one compiled program, which is quicker than operation by operation."""
    return jax.tree.map(np.asarray, jax.jit(lambda: evaluate(ad))())


def outcome(evaluate: Callable, ad: ModuleType) -> tuple[str, Any]:
    try:
        return "value", values(evaluate, ad)
    except Exception as error:
        return type(error).__name__, str(error)


def child(folder: Path) -> None:
    """Empty JAX's tables; evaluate every program with JAX, which fails, and with functrans."""
    tables = rule_tables()
    assert any(table is jax_ad.primitive_jvps for table in tables)
    assert any(table is jax_ad.primitive_transposes for table in tables)
    for table in tables:
        table.clear()
    with_jax = {name: outcome(evaluate, jax) for name, evaluate in PROGRAMS.items()}
    # What is not there cannot be called by functrans either.
    for name in ("jvp", "vjp", "linearize", "linear_transpose", "grad", "value_and_grad"):
        setattr(jax, name, None)
    with_functrans = {name: outcome(evaluate, ft) for name, evaluate in PROGRAMS.items()}
    sizes = [len(table) for table in tables]
    (folder / "results").write_bytes(pickle.dumps((with_jax, with_functrans, sizes)))


@pytest.fixture(scope="module")
def without_tables(run_once: Callable[[str], Path]) -> tuple:
    return pickle.loads((run_once(__file__) / "results").read_bytes())


def test_the_tables_were_and_stayed_empty(without_tables: tuple) -> None:
    _, _, sizes = without_tables
    assert len(sizes) >= 3
    assert not any(sizes)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_derivatives_without_the_rules_of_jax(name: str, without_tables: tuple) -> None:
    with_jax, with_functrans, _ = without_tables
    kind, message = with_jax[name]
    assert kind == "NotImplementedError" and "rule" in message, (kind, message)
    kind, value = with_functrans[name]
    assert kind == "value", (kind, value)
    want = values(PROGRAMS[name], jax)
    chex.assert_trees_all_equal_shapes_and_dtypes(value, want)
    chex.assert_trees_all_close(value, want, rtol=1e-4, atol=1e-5)


def test_closed_forms(without_tables: tuple) -> None:
    """So that not all is relative to JAX."""
    x = 0.7
    fifth = x**2 * np.cos(x) + 10 * x * np.sin(x) - 20 * np.cos(x)
    _, value = without_tables[1]["an_order_of_five"]
    np.testing.assert_allclose(value, fifth, rtol=1e-4)
    z = array(3) + 1j * array(3)[::-1]
    _, (_, holomorphic) = without_tables[1]["complex_numbers"]
    np.testing.assert_allclose(holomorphic, np.cos(z) * z + np.sin(z), rtol=1e-5)
    _, (transposed,) = without_tables[1]["a_transpose"]
    matrix = np.tri(4)[:, ::-1].T @ array(4, 3)
    np.testing.assert_allclose(transposed, matrix @ array(3), rtol=1e-5)


if __name__ == "__main__":
    child(Path(sys.argv[1]))
