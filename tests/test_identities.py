"""The identities that derivatives obey, whatever the function.

    <y_bar, J v> = <J^T y_bar, v>        jacfwd = jacrev       jvp . grad = grad . jvp
    grad . jit = jit . grad = grad       vmap . grad = stack   hvp f x v = hessian f x @ v

JAX's derivatives are not asked here: both sides of each equation are functrans's own.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn, tree

import functrans as ft

pytestmark = pytest.mark.usefixtures("float64")


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def mlp(params: dict, x):
    hidden = jnp.tanh(x @ params["w"][0] + params["b"])
    return {"out": hidden @ params["w"][1], "size": jnp.sum(hidden**2)}


def conv(image, kernel):
    out = lax.conv_general_dilated(
        image,
        kernel,
        window_strides=(2, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return lax.reduce_window(nn.softplus(out), 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "VALID")


def gather(x, y):
    return x[jnp.array([3, 0, 3])] * y[1:4] + jnp.take(x, jnp.array([1, 1, 2]))


def scatter(x, y):
    return x.at[jnp.array([0, 2, 2])].add(jnp.sin(y)).at[1].set(y[0] * x[3]).at[3].multiply(y[2])


def cumulative(x):
    return jnp.cumsum(x[::-1] ** 2), jnp.cumprod(x)


def spectrum(x, y):
    """Complex inside, real outside."""
    z = jnp.exp(lax.complex(x, y))
    return jnp.abs(z * z + 1j * z), jnp.angle(z[0] + 2.0), (z * jnp.conj(z[::-1])).imag


def attention(q, k, v):
    return jnp.einsum("hqk,khd->qhd", nn.softmax(jnp.einsum("qhd,khd->hqk", q, k)), v)


def ordered(x):
    values, where = lax.top_k(x, 3)
    return jnp.sort(jnp.sin(x))[::2], values * x[where][::-1], jnp.max(x)


def branches(x):
    """Python control flow on the shape, `where` on the values."""
    y = x
    for i in range(x.ndim + 1):
        y = jnp.where(y > 0.1 * i, jnp.sin(y) * y, y - 0.5 * y**3)
    return jnp.clip(y, -0.7, 0.7), lax.select(x > 0, y, jnp.exp(x))


def inner_jit(x, y):
    cube = jax.jit(lambda a, b: (a**3 * b, a))
    first, again = cube(x, jnp.sin(y))
    return jax.jit(jnp.outer)(first, again), jax.vmap(jnp.dot)(first[:, None], y[:, None])


def custom(x):
    """Functions whose derivative JAX's own library gives by custom rules."""
    return nn.relu(x) + nn.silu(x), nn.logsumexp(x), jnp.linalg.norm(x)


@jax.custom_vjp
def scaled(x, factor):
    return jnp.sin(x) * factor


scaled.defvjp(
    lambda x, factor: (jnp.sin(x) * factor, (x, factor)),
    lambda saved, y_bar: (
        jnp.cos(saved[0]) * saved[1] * y_bar,
        jnp.sum(jnp.sin(saved[0]) * y_bar),
    ),
)


def user_rule(x, factor):
    return scaled(x, factor) * x, scaled(x[:2] * factor, 2.0)


def dynamic(x, i):
    y = lax.dynamic_slice(x, (i, 0), (2, 3)) ** 2
    return lax.dynamic_update_slice(x, y, (0, i)), jnp.prod(x, axis=1), jnp.var(y), jnp.min(x)


PROGRAMS: dict[str, tuple[Callable, tuple]] = {
    "mlp": (mlp, ({"w": [array(3, 4), array(4, 2)], "b": array(4)}, array(2, 3))),
    "conv": (conv, (array(1, 5, 4, 2), array(2, 3, 2, 2))),
    "gather": (gather, (array(4), array(5))),
    "scatter": (scatter, (array(4), array(3))),
    "cumulative": (cumulative, (array(4),)),
    "spectrum": (spectrum, (array(3), array(3, seed=1))),
    "attention": (attention, (array(2, 1, 3), array(3, 1, 3), array(3, 1, 2))),
    "ordered": (ordered, (array(5),)),
    "branches": (branches, (array(2, 3),)),
    "inner_jit": (inner_jit, (array(3), array(3, seed=1))),
    "custom": (custom, (array(4),)),
    "user_rule": (user_rule, (array(3), array())),
    "dynamic": (lambda x: dynamic(x, 1), (array(4, 4),)),
    "broadcast": (
        lambda x, y: jnp.hypot(x[:, None], y) / (1 + x[:, None] ** 2 + y),
        (array(2), 1.5),
    ),
}
every_program = pytest.mark.parametrize("name", PROGRAMS)


def direction(values, seed: int):
    leaves, structure = tree.flatten(values)
    return structure.unflatten(array(*np.shape(x), seed=seed + i) for i, x in enumerate(leaves))


def pairs(xs, ys):
    return zip(tree.leaves(xs), tree.leaves(ys), strict=True)


def inner(xs, ys):
    return sum(jnp.sum(x * y).real for x, y in pairs(xs, ys))


def scalar(fun: Callable) -> Callable:
    """One number that depends on every result of `fun`, and not linearly; of one argument."""
    return lambda args: sum(jnp.sum(jnp.sin(y) + y**2) for y in tree.leaves(fun(*args)))


def close(got, want) -> None:
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-9)
    assert any(np.any(x) for x in tree.leaves(want)), "zeros agree with too much"


@every_program
def test_reverse_is_the_transpose_of_forward(name: str) -> None:
    fun, args = PROGRAMS[name]
    v = direction(args, seed=10)

    @ft.jit
    def both(args, v):
        y, pushed = ft.jvp(fun, args, v)
        y_bar = direction(y, seed=20)
        return inner(y_bar, pushed), inner(ft.vjp(fun, *args)[1](y_bar), v)

    close(*both(args, v))


@pytest.mark.parametrize(
    "fun", [lambda z: jnp.exp(1j * z) * z, jnp.conj, lambda z: z.real * z.imag, jnp.abs]
)
def test_the_inner_product_of_complex_numbers_has_no_conjugate(fun: Callable) -> None:
    z, v = array(3) + 1j * array(3, seed=1), array(3, seed=2) + 1j * array(3, seed=3)
    y, pushed = ft.jvp(fun, (z,), (v,))
    y_bar = jnp.asarray(array(3, seed=4), y.dtype)
    if jnp.iscomplexobj(y):
        y_bar *= 1 - 2j
    close(inner(y_bar, pushed), inner(ft.vjp(fun, z)[1](y_bar), v))


@every_program
def test_jacobians_by_column_and_by_row(name: str) -> None:
    fun, args = PROGRAMS[name]
    argnums = tuple(range(len(args)))
    close(ft.jacfwd(ft.jit(fun), argnums)(*args), ft.jit(ft.jacrev(fun, argnums))(*args))


@every_program
def test_second_derivatives_by_every_way(name: str) -> None:
    """Forward over reverse (`hvp`), the Hessian times the vector, and the two other orders."""
    fun, args = PROGRAMS[name]
    energy = scalar(fun)

    @ft.jit
    def products(args, v):
        rows = tree.structure(args).flatten_up_to(ft.hessian(energy)(args))
        # A block has the axes of the row's argument first, and those that `v` contracts last.
        by_hessian = [
            sum(jnp.tensordot(h, x, np.ndim(x)) for h, x in pairs(row, v)) for row in rows
        ]
        return [
            ft.hvp(energy, args, v),
            tree.unflatten(tree.structure(args), by_hessian),
            ft.grad(lambda args: ft.jvp(energy, (args,), (v,))[1])(args),
            ft.grad(lambda args: inner(ft.grad(energy)(args), v))(args),
        ]

    want, *others = products(args, direction(args, seed=10))
    for got in others:
        close(got, want)


@every_program
def test_jit_commutes_with_grad(name: str) -> None:
    fun, args = PROGRAMS[name]
    energy = scalar(fun)
    eager = ft.grad(energy)(args)
    close(ft.grad(ft.jit(energy))(args), eager)
    close(ft.jit(ft.grad(energy))(args), eager)


@every_program
def test_nested_jit_changes_nothing(name: str) -> None:
    fun, args = PROGRAMS[name]

    def derivatives(fun, args, v):
        y, pushed = ft.jvp(fun, args, v)
        return y, pushed, ft.vjp(fun, *args)[1](direction(y, seed=20))

    def nested(*args):
        return jax.jit(ft.jit(ft.jit(fun)))(*args)

    once, thrice = (ft.jit(lambda *xs, fun=f: derivatives(fun, *xs)) for f in (fun, nested))
    v = direction(args, seed=10)
    close(thrice(args, v), once(args, v))


@every_program
def test_vmap_commutes_with_grad(name: str) -> None:
    fun, args = PROGRAMS[name]
    energy = scalar(fun)
    gradient = ft.grad(ft.jit(energy))
    batch = tree.map(lambda x: np.stack([x, x + 0.3]), args)
    one_by_one = [gradient(tree.map(lambda x, i=i: x[i], batch)) for i in range(2)]
    want = tree.map(lambda *xs: np.stack(xs), *one_by_one)

    @ft.jit
    def both(batch):
        return jax.vmap(gradient)(batch), ft.grad(lambda b: jnp.sum(jax.vmap(energy)(b)))(batch)

    inside, outside = both(batch)
    close(inside, want)
    close(outside, want)


@every_program
def test_linearize_is_jvp(name: str) -> None:
    fun, args = PROGRAMS[name]
    jitted = ft.jit(fun)
    y, pushforward = ft.linearize(jitted, *args)
    for seed in (10, 30):  # the pushforward is called more than once
        v = direction(args, seed)
        close((y, pushforward(*v)), ft.jvp(jitted, args, v))


@every_program
def test_transposing_twice_is_the_identity(name: str) -> None:
    fun, args = PROGRAMS[name]

    @ft.jit
    def both(args, v):
        y, pushforward = ft.linearize(fun, *args)
        # The transpose takes what `pushforward` returns and returns a tuple of its arguments.
        transposed = ft.linear_transpose(pushforward, *args)
        return ft.linear_transpose(transposed, y)(v)[0], pushforward(*v)

    close(*both(args, direction(args, seed=10)))
