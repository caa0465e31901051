"""Strong zeros: a derivative is 0 where a zero meets what is not finite, and else what it was.

The reference is the same derivative of a function that never computes what the mask throws away.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functrans as ft
from functrans.programs.strong import PRODUCTS

pytestmark = pytest.mark.usefixtures("quick_compilation")

GRADIENTS: dict[str, Callable] = {"reverse": ft.grad, "forward": ft.jacfwd}
HESSIANS: dict[str, Callable] = {
    "reverse over reverse": lambda f: ft.jacrev(ft.grad(f)),
    "forward over reverse": lambda f: ft.jacfwd(ft.grad(f)),
    "reverse over forward": lambda f: ft.jacrev(ft.jacfwd(f)),
    "forward over forward": lambda f: ft.jacfwd(ft.jacfwd(f)),
    "JAX forward over reverse": lambda f: jax.jacfwd(ft.grad(f)),
}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def derivatives(fun: Callable, kinds: dict, *args: Any) -> dict:
    """All derivatives of these kinds in one compiled program, with strong zeros."""
    with ft.strong_zeros():
        return jax.jit(lambda *args: {k: kind(fun)(*args) for k, kind in kinds.items()})(*args)


def assert_close(found: Any, expected: Any) -> None:
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)

    jax.tree.map(close, found, expected)


# ---- functions of a number, behind a mask --------------------------------------------------------

MASKED: list[Callable] = [
    jnp.sqrt,
    lambda x: x**1.5,
    lambda x: jnp.linalg.norm(jnp.stack([x, 2 * x])),
    lambda x: 1 / x,
    jnp.log,
    lambda x: x**0.5,
    lambda x: jnp.arccos(x + 1),
    lambda x: jnp.arctan2(x, x * x),
    lambda x: jnp.log(jnp.sin(x)) / x,
    lambda x: jnp.linalg.solve(jnp.diag(jnp.stack([x, x * x])), jnp.ones(2)).sum(),
]


def masked(x: Any) -> Any:
    """Each function where its number is negative, and 0 elsewhere; or the first of them."""
    numbers = zip(MASKED[: len(x)], x, strict=True)
    return jnp.stack([jnp.where(v < 0, f(v * v - 1), 0.0) for f, v in numbers])


def unmasked(x: Any) -> Any:
    return jnp.stack([f(v * v - 1) for f, v in zip(MASKED[: len(x)], x, strict=True)])


def within_scan(f: Callable) -> Callable:
    """Two steps, of which the first gives what is summed."""

    def run(x):
        def step(c, i):
            y = f(x + c * 0)
            return c + y, jnp.where(i < 1, y, 0.0)

        return lax.scan(step, jnp.zeros_like(x), jnp.arange(2))[1][0]

    return run


NESTED: dict[str, Callable] = {
    "plain": lambda f: f,
    "jit": lambda f: jax.jit(f),
    "our jit": lambda f: ft.jit(f),
    "checkpoint": lambda f: jax.checkpoint(f),
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([x, x]))[1],
    "scan": within_scan,
    "cond": lambda f: lambda x: lax.cond(x[0] < 9, f, jnp.sin, x),
    "loop": lambda f: lambda x: lax.fori_loop(0, 1, lambda _, c: f(c), x),
}


# The functions have a number each, so that a sum of them has their derivatives.
def pulled(f: Callable) -> Callable:
    return ft.grad(lambda x: jnp.sum(f(x)))


@jax.jit
def slopes_of_unmasked(x: Any) -> Any:
    return pulled(unmasked)(x), pulled(pulled(unmasked))(x)


@pytest.mark.parametrize("name", NESTED)
def test_masked_functions(name: str) -> None:
    """At 1, which the mask excludes, each function meets its singularity."""
    fun = NESTED[name](masked)
    count = len(MASKED) if name == "plain" else 4
    x, bad = jnp.full(count, -1.4), jnp.full(count, 1.0)
    ones = jnp.ones_like(x)

    def pushed(f):
        return lambda x: ft.jvp(f, (x,), (ones,))[1]

    orders: dict[str, Callable] = {"r": pulled, "f": pushed}
    names = ["r", "f", "rr", "rf", "fr", "ff"]

    @jax.jit
    def every(x):
        found = {}
        for name in names:
            g = fun
            for order in name:
                g = orders[order](g)
            found[name] = g(x)
        return found

    with ft.strong_zeros():
        at_bad, at_x = every(bad), every(x)
    for name in names:
        np.testing.assert_array_equal(at_bad[name], 0)
    first, second = slopes_of_unmasked(x)
    assert_close(at_x, {name: first if len(name) == 1 else second for name in names})


def test_without_the_option_they_are_nan() -> None:
    first = ft.grad(lambda x: jnp.sum(masked(x)))
    second = jax.jit(ft.grad(lambda x: jnp.sum(first(x))))
    assert np.isnan(second(jnp.full(len(MASKED), 1.0))).all()


# ---- batches, of which a part is padding ---------------------------------------------------------

RNG = np.random.default_rng(0)


def rows(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


KEPT = jnp.array([0, 2])
MASK = np.array([True, False, True])


def check_batch(fun: Callable, args: tuple, kinds: dict = GRADIENTS | HESSIANS) -> None:
    """`fun(w, batch, mask)` has the derivatives in `w` that it has without the padding."""
    w, batch = args
    found = derivatives(fun, kinds, w, batch, MASK)
    short = jax.tree.map(lambda x: x[KEPT], batch)
    orders = {jax.hessian if kind in HESSIANS else jax.grad for kind in kinds}
    args = w, short, MASK[np.array(KEPT)]
    expected = {order: jax.jit(order(fun))(*args) for order in orders}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves([*expected.values()]))
    for kind, value in found.items():
        assert_close(value, expected[jax.hessian if kind in HESSIANS else jax.grad])
    plain = jax.jit(ft.grad(fun))(w, batch, MASK)
    assert np.isnan(np.concatenate([np.ravel(x) for x in jax.tree.leaves(plain)])).any()


def perceptron(w, x, mask):
    y = jnp.tanh(jnp.log(x) @ w["a"] / x[:, :1]) @ w["b"]
    return jnp.sum(jnp.where(mask[:, None], y, 0.0) ** 2)


def test_a_padded_batch() -> None:
    w = {"a": rows(2, 3), "b": rows(3, 2)}
    check_batch(perceptron, (w, np.array([[1.0, 2.0], [0.0, np.nan], [3.0, 0.5]])))


def test_a_padded_batch_of_images() -> None:
    def fun(w, x, mask):
        y = lax.conv(x, w, (1, 1), "SAME")
        return jnp.sum(jnp.where(mask[:, None, None, None], y, 0.0) ** 3)

    images = rows(3, 1, 4, 4)
    images[1, 0, 2, 2] = np.inf
    check_batch(fun, (rows(2, 1, 3, 3), images))


def test_a_padded_batch_in_groups() -> None:
    def fun(w, x, mask):
        sizes = jnp.array([1, x.shape[0] - 1], np.int32)
        y = lax.ragged_dot(x, w, sizes)
        return jnp.sum(jnp.where(mask[:, None], y, 0.0) ** 3)

    x = rows(3, 2)
    x[1] = np.nan
    check_batch(fun, (rows(2, 2, 2), x), {"reverse": ft.grad})  # JAX batches no other


def test_a_masked_softmax_and_likelihood() -> None:
    def fun(w, x, mask):
        scores = jnp.exp(x * w[0])
        weights = jnp.where(mask, scores, 0.0)
        p = weights / jnp.sum(weights)
        density = jnp.log(p) - jnp.log(w[1] * x) ** 2
        return jnp.sum(jnp.where(mask, density, 0.0))

    check_batch(fun, (np.array([0.7, 1.3]), np.array([1.0, 2000.0, 0.5])))
    check_batch(fun, (np.array([0.7, 1.3]), np.array([1.0, -np.inf, 0.5])))


SOLVERS: dict[str, Callable] = {
    "solve": lambda a: jnp.linalg.solve(a, jnp.ones((*a.shape[:-1], 1))),
    "cholesky": jnp.linalg.cholesky,
    "vectors": lambda a: jnp.linalg.eigh(a)[1],
    "qr": lambda a: jnp.linalg.qr(a)[0],
    "tridiagonal": lambda a: lax.linalg.tridiagonal_solve(
        a[..., 0], a[..., 1], a[..., 0] * jnp.array([1.0, 0.0]), a
    ),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_a_padded_batch_of_matrices(name: str) -> None:
    def fun(w, x, mask):
        y = SOLVERS[name](w * x)
        return jnp.sum(jnp.where(mask[:, None, None], jnp.sin(y), 0.0))

    x = rows(3, 2, 2)
    x = x @ np.swapaxes(x, 1, 2) + 0.5 * np.eye(2)
    x[1] = np.nan if name in ("solve", "tridiagonal") else 0
    check_batch(fun, (np.array([[1.2, 0.9], [0.9, 0.7]]) + np.eye(2), x))


# ---- what people have asked ----------------------------------------------------------------------


def expanded_norm(x):  # jax#347
    size = jnp.sqrt(jnp.sum(x**2, axis=1))
    return jnp.sum(jnp.where(size > 0.5, size, 1.0))


def angle(x):  # jax#1052
    return jnp.sum(jnp.where(jnp.array([0.0, 1.0, 0.0]) > 0.5, 0.0, jnp.arctan2(x, x)))


def times_infinity(x):  # jax#2630
    return jnp.where(x > 0, 0.0, x * jnp.inf)


def distances(x):  # jax#3407
    d = jnp.sqrt(jnp.sum((x[:, None] - x) ** 2, axis=-1))
    keep = ~jnp.eye(len(x), dtype=bool)
    d = jnp.where(keep, d, 0.0)
    return jnp.sum(jnp.where(keep, 1 / d, 0.0))


def softmax(x, log=False):  # jax#17117, as jax.nn.softmax was written then
    mask = jnp.array([True, True, False])
    shifted = x - jnp.max(x, where=mask, initial=-jnp.inf)
    total = jnp.sum(jnp.exp(shifted), where=mask)
    y = shifted - jnp.log(total) if log else jnp.exp(shifted) / total
    return jnp.sum(jnp.where(mask, jnp.sin(y), 0.0))


def indexed(x):  # jax#19089
    delta = jnp.array([0.0, 1.0]) * x
    return jnp.sum(jnp.where(delta > 0, delta**0.5, 0.0))


POINTS = np.array([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
THIRD = np.array([1.0, 1.2, 1000.0])
# The function, where, and the same function without what its mask throws away.
ASKED: dict[str, tuple] = {
    "#347": (expanded_norm, POINTS, lambda x: jnp.sum(jnp.linalg.norm(x[:2], axis=1))),
    "#1052": (angle, np.array([3.0, 0.0, -5.0]), lambda x: jnp.arctan2(x[::2], x[::2]).sum()),
    "#2630": (times_infinity, 1.0, lambda x: 0.0 * x),
    "#3058": (jnp.linalg.norm, np.zeros(2), lambda x: 0.0 * jnp.sum(x)),
    "#3407": (
        distances,
        POINTS,
        lambda x: 2 * jnp.sum(1 / jnp.linalg.norm(x - jnp.roll(x, 1, 0), axis=1)),
    ),
    "#17117": (softmax, THIRD, lambda x: jnp.sum(jnp.sin(jax.nn.softmax(x[:2])))),
    "#17117 log": (
        lambda x: softmax(x, log=True),
        THIRD,
        lambda x: jnp.sum(jnp.sin(jax.nn.log_softmax(x[:2]))),
    ),
    "#19089": (indexed, 4.0, jnp.sqrt),
}


@pytest.mark.parametrize("name", ASKED)
def test_programs_of_issues(name: str) -> None:
    fun, x, reference = ASKED[name]
    slopes = ft.grad(fun), jax.grad(reference), jax.hessian(reference)
    weak, gradient, hessian = jax.jit(lambda x: [slope(x) for slope in slopes])(x)
    assert np.isnan(weak).any()
    # At 0 a norm has a kink, and no second derivative.
    kinds = GRADIENTS | ({} if name == "#3058" else HESSIANS)
    found = derivatives(fun, {k: v for k, v in kinds.items() if (k, name) not in INFINITE}, x)
    for kind, value in found.items():
        assert_close(value, hessian if kind in HESSIANS else gradient)


# In forward mode no zero comes before the infinite slope: it is 1 * inf, which stays.
INFINITE = {("forward", "#3058")}


# ---- where it is, and where it is not ------------------------------------------------------------


def root(x):
    return jnp.where(x > 0, jnp.sqrt(x), 0.0)


def test_it_is_part_of_every_key() -> None:
    ft.clear_caches()  # what is made with strong zeros first is not used without
    assert ft.strong_zeros()(ft.grad(root))(0.0) == 0
    assert np.isnan(ft.grad(root)(0.0))
    for grad in (ft.grad(ft.jit(root)), jax.jit(ft.grad(root)), ft.grad(root)):
        assert np.isnan(grad(0.0))
        with ft.strong_zeros():
            assert grad(0.0) == 0
            with ft.strong_zeros(False):
                assert np.isnan(grad(0.0))
        assert np.isnan(grad(0.0))
        assert ft.strong_zeros()(grad)(0.0) == 0


def test_a_pullback_keeps_what_it_was_made_with() -> None:
    with ft.strong_zeros():
        strong, pushed = ft.vjp(root, 0.0)[1], ft.linearize(lambda x: jnp.sqrt(x * x), 0.0)[1]
    assert strong(1.0) == (0,)
    assert pushed(1.0) == 0
    assert np.isnan(ft.vjp(root, 0.0)[1](1.0)[0])


def test_without_it_programs_are_as_they_were() -> None:
    program = str(ft.make_jaxpr(ft.grad(root))(1.0))
    assert "strong" not in program
    with ft.strong_zeros():
        assert "strong_mul" in str(ft.make_jaxpr(ft.grad(root))(1.0))
    assert str(ft.make_jaxpr(ft.grad(root))(1.0)) == program


def test_what_is_infinite_stays_so() -> None:
    with ft.strong_zeros():
        assert ft.grad(jnp.sqrt)(0.0) == np.inf
        x = np.array([[np.inf, 1.0]])
        assert not np.isfinite(ft.grad(lambda w: jnp.sum(x @ w))(np.ones((2, 1)))).all()


def test_a_limit_is_not_taken() -> None:
    """The page says so: the derivative of `sqrt(x) * sqrt(x)` is 1."""
    with ft.strong_zeros():
        assert ft.grad(lambda x: jnp.sqrt(x) * jnp.sqrt(x))(0.0) == 0
        assert ft.jacfwd(lambda x: jnp.sqrt(x) * jnp.sqrt(x))(0.0) == 0


def test_linear_functions_of_a_user() -> None:
    matrix = np.array([[np.nan, np.nan], [1.0, 2.0]])
    with ft.strong_zeros():
        (x_bar,) = ft.linear_transpose(lambda x: matrix @ x, np.ones(2))(np.array([0.0, 3.0]))
    np.testing.assert_array_equal(x_bar, [3, 6])


@jax.custom_jvp
def own_root(x):
    return jnp.sqrt(x)


@own_root.defjvp
def own_root_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents

    def step(c, r):  # a loop, a branch and a call whose results are all tangents
        c = lax.cond(True, lambda t: t * r, jnp.negative, c)
        return jax.jit(jnp.multiply)(c, r), None

    def mixed(c, r):  # values beside tangents, which a tape takes apart
        return (c[0] + r, c[1] * r), None

    slope = (0.5 / jnp.sqrt(x)) ** (1 / 3)
    x_dot = lax.scan(step, x_dot, slope[None])[0]
    return own_root(x), lax.scan(mixed, (x, x_dot), slope[None])[0][1]


@jax.custom_vjp
def other_root(x):
    return jnp.sqrt(x)


other_root.defvjp(lambda x: (jnp.sqrt(x), x), lambda x, y_bar: (y_bar * 0.5 / jnp.sqrt(x),))


@pytest.mark.parametrize("fun", [own_root, other_root, jnp.sqrt, lambda x: x / jnp.sqrt(x)])
def test_rules_of_a_user(fun: Callable) -> None:
    def masked(x):
        return jnp.where(x > 0, fun(x), 0.0)

    def later(x):  # where forward mode meets the zero first
        return fun(jnp.where(x > 9, x, 0.0))

    with ft.strong_zeros():
        for f in (masked, ft.jit(masked)):
            assert ft.grad(f)(0.0) == 0
            np.testing.assert_allclose(ft.grad(f)(4.0), 0.25)
        for f in (later, ft.jit(later)):
            assert ft.jacfwd(f)(1.0) == ft.jvp(f, (1.0,), (1.0,))[1] == 0
            np.testing.assert_allclose(ft.jvp(f, (16.0,), (1.0,))[1], 0.125)
    assert np.isnan(ft.grad(masked)(0.0))


def test_systems() -> None:
    """What a solver makes of nan and a right-hand side that is zero depends on the solver."""
    matrix, right = np.full((2, 2), np.nan), np.array([[0.0, 0.0], [0.0, 1.0]])
    for transpose_a in (False, True):
        equation = jax.make_jaxpr(
            partial(lax.linalg.triangular_solve, left_side=True, transpose_a=transpose_a)
        )(matrix, right).eqns[-1]
        strong = PRODUCTS[equation.primitive].primitive
        x = jax.jit(partial(strong.bind, **equation.params))(matrix, right)
        np.testing.assert_array_equal(x[:, 0], 0)
        assert np.isnan(x[:, 1]).any()


def test_the_products_are_those_of_jax_where_all_is_finite() -> None:
    """To third order, in both modes, ours, JAX's, and batched."""
    x, y = rows(3, 2, 2), rows(3, 2, 2)
    numbers = (((2,), (1,)), ((0,), (0,)))
    operations: dict[Callable, dict] = {
        lax.mul: {},
        lax.div: {},
        lambda x, y: lax.dot_general(x, y, numbers): {"zeros": (0, 1)},
    }

    def every(f):
        def g(t):
            return jnp.sum(jnp.sin(f(x * t, y / t)))

        ours = ft.grad(ft.grad(ft.jacfwd(g))), ft.jacfwd(ft.jacfwd(ft.grad(g)))
        theirs = jax.grad(jax.grad(ft.grad(g))), jax.jacfwd(jax.grad(g)), ft.grad(jax.grad(g))
        return lambda t: [jax.vmap(d)(t) for d in (*ours, *theirs)]

    for plain, more in operations.items():
        (equation,) = jax.make_jaxpr(plain)(x, y).eqns
        strong, params = PRODUCTS[equation.primitive].primitive, equation.params | more
        t = np.array([1.1, 0.8])
        found = jax.jit(every(partial(strong.bind, **params)))(t)
        assert_close(found, jax.jit(every(plain))(t))


def test_it_decorates_with_parentheses() -> None:
    with pytest.raises(TypeError, match=r"strong_zeros\(\)\(fun\)"):
        ft.strong_zeros(cast(Any, ft.grad(jnp.sin)))
