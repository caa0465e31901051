"""What is handed to XLA: programs that do less than the rules, taken one by one, would write.

A weight's gradient leaves the loop, a copy is multiplied before it is copied, and the products of a
matrix with a basis are its columns.  What is counted here is the jaxpr; that the numbers are right
is checked against JAX and finite differences, in both modes and up to second order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from repeated import repeated_after

import functrans as ft
from functrans.programs.broadcasts import broadcast_last
from functrans.programs.loops import BODY
from functrans.testing import cross_check

pytestmark = pytest.mark.usefixtures("float64")


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return 0.5 * np.random.default_rng([seed, *shape]).normal(size=shape)


def inner(equation: Any) -> list:
    """The jaxprs that an equation carries."""
    return [
        leaf for leaf in jax.tree.leaves(list(equation.params.values())) if hasattr(leaf, "eqns")
    ]


def walk(jaxpr: Any, into: Callable = lambda equation: True) -> Iterator[Any]:
    """The equations, those of calls and loops included, unless they are not to be gone into."""
    for equation in jaxpr.eqns:
        yield equation
        if into(equation):
            for program in inner(equation):
                yield from walk(program, into)


def products(program: Any, inside_loops: bool | None = None) -> list[tuple]:
    """The shapes of the factors of each product: of all, of those in loops, or of the others."""
    if inside_loops:
        loops = [e for e in walk(program.jaxpr) if e.primitive.name == "scan"]
        equations = [e for loop in loops for p in inner(loop) for e in walk(p)]
    else:
        into = (lambda e: e.primitive.name != "scan") if inside_loops is False else lambda e: True
        equations = list(walk(program.jaxpr, into))
    found = [e for e in equations if e.primitive.name == "dot_general"]
    return [tuple(v.aval.shape for v in e.invars) for e in found]


def gradient(fun: Callable, *args: Any) -> Any:
    return ft.make_jaxpr(ft.grad(ft.jit(fun), tuple(range(len(args)))))(*args)


# Loops: the sum over the steps of products is one product.


def recurrent(w, v, xs):
    def step(h, x):
        h = jnp.tanh(h @ w + x @ v)
        return h, h

    return jnp.sum(lax.scan(step, jnp.zeros((xs.shape[1], w.shape[0])), xs)[1] ** 3)


def twice_in_a_step(w, xs):
    """The weight is read twice, once transposed; its gradient is a sum of two products."""
    return jnp.sum(lax.scan(lambda h, x: (jnp.sin(h @ w) + x @ w.T, h), xs[0], xs)[1] ** 2)


def with_a_batch(w, xs):
    """A product for each head, whose contracted dimension is not the first."""

    def step(h, x):
        h = jnp.tanh(jnp.einsum("bhi,hij->bhj", h, w) + x)
        return h, jnp.sum(h)

    return jnp.sum(lax.scan(step, xs[0], xs, reverse=True)[1] ** 2)


def by_a_constant(w, a, xs):
    """One factor of the gradient is the same in each step."""
    return jnp.sum(lax.scan(lambda h, x: (jnp.tanh(h + (a @ w) @ x), h), xs[0], xs)[1] ** 2)


def nested(w, xs):
    def outer(h, x):
        return recurrent(w, w, x[:, None] + h), h

    return lax.scan(outer, 0.0, xs)[0]


def of_no_steps(w, xs):
    return jnp.sum(lax.scan(lambda h, x: (jnp.tanh(h @ w) + x, h), xs[0], xs[:0])[0] * xs[0])


LOOPS: dict[str, tuple[Callable, tuple]] = {
    "recurrent": (recurrent, (array(3, 3), array(2, 3), array(4, 2, 2))),
    "twice in a step": (twice_in_a_step, (array(3, 3), array(4, 2, 3))),
    "with a batch": (with_a_batch, (array(2, 3, 3), array(4, 2, 2, 3))),
    "by a constant": (by_a_constant, (array(2, 3), array(3, 2), array(4, 3))),
    "nested": (nested, (array(2, 2), array(3, 4, 2))),
    "of no steps": (of_no_steps, (array(3, 3), array(2, 2, 3))),
}


@pytest.mark.parametrize("name", LOOPS)
def test_the_gradients_of_loops_are_right(name):
    fun, args = LOOPS[name]
    cross_check(fun, *args, jitted=True).check()


def test_the_gradient_of_a_weight_is_one_product_after_the_loop():
    program = gradient(recurrent, array(8, 8), array(8, 8), array(5, 2, 8))
    assert products(program, inside_loops=False) == [((10, 8), (10, 8))] * 2
    # Forwards two, backwards the two that the states and the inputs need.
    assert len(products(program, inside_loops=True)) == 4


def test_a_product_whose_factors_are_larger_than_it_stays_in_the_loop():
    """Of a batch of 20 and a weight of 3 x 3, stacking would move more memory than summing."""
    assert not products(gradient(recurrent, *map(array_of, [(3, 3), (3, 3), (5, 20, 3)])), False)


def array_of(shape: tuple[int, ...]) -> np.ndarray:
    return array(*shape)


def test_what_is_stacked_is_at_most_half_of_what_is_kept():
    """Of a linear recurrence the states are kept, and their cotangents would be as many."""

    def fun(w, xs):
        return jnp.sum(lax.scan(lambda h, x: (h @ w + x, None), xs[0], xs)[0] ** 2)

    assert not products(gradient(fun, array(8, 8), array(5, 2, 8)), inside_loops=False)


def test_what_the_second_half_can_make_is_not_stacked():
    """Of `tanh` the reverse pass wants `1 - y^2`, and has `y`."""
    residuals = ft.saved_residuals(recurrent, array(3, 3), array(2, 3), array(4, 2, 2))
    stacked = sorted(r.shape for r in residuals if r.shape[:1] == (4,) and len(r.shape) == 3)
    # The inputs; the states before each step and after it; and what the loss keeps of the latter.
    assert stacked == [(4, 2, 2), (4, 2, 3), (4, 2, 3), (4, 2, 3)]


TABLE = array(4, 3)


def with_arrays(x):
    """A body that reads arrays of NumPy and JAX, and gives what it got, twice, and a constant."""

    def step(c, x):
        c = jnp.sin(c @ TABLE.T @ jnp.asarray(TABLE)) * x
        return c, (x, x, 1.0, c)

    c, ys = lax.scan(step, x, x)
    return jnp.sum(c) + sum(jnp.sum(y * y) for y in ys)


def of_one_call(x):
    """A body that is a call, which stays one."""
    step = jax.jit(lambda c, x: (jnp.sin(c) * x, c))
    return jnp.sum(lax.scan(step, x[0], x)[1] ** 2)


BODIES = {
    **LOOPS,
    "with arrays": (with_arrays, (array(3),)),
    "of one call": (of_one_call, (array(3),)),
}


@pytest.mark.parametrize("name", BODIES)
@pytest.mark.parametrize("order", [1, 2])
def test_the_bodies_of_loops_are_opened(name, order):
    """A body is handed to `lax.scan` as one call, of which nothing is left in what is emitted."""
    fun, args = BODIES[name]
    derivative = ft.grad(fun) if order == 1 else partial(ft.jvp, ft.grad(fun))
    given = args if order == 1 else (args, args)
    programs = [ft.make_jaxpr(derivative)(*given), jax.make_jaxpr(derivative)(*given)]
    programs.append(jax.make_jaxpr(jax.vmap(derivative))(*jax.tree.map(lambda x: x[None], given)))
    for program in programs:
        names = [e.params.get("name") for e in walk(program.jaxpr)]
        assert "scan" in [e.primitive.name for e in walk(program.jaxpr)]
        assert BODY not in names


@pytest.mark.parametrize("name", ["with arrays", "of one call"])
def test_the_gradients_of_bodies_are_right(name):
    fun, args = BODIES[name]
    cross_check(fun, *args, jitted=True).check()


# What is copied, and sums of products with it.


def of_a_mean(x, w):
    return jnp.mean(jnp.sin(x) @ w)


def of_a_mean_over_rows(x, w):
    return jnp.sum(jnp.mean(jnp.sin(x) @ w, axis=0) ** 3)


def of_a_mean_over_columns(x, w):
    return jnp.sum(jnp.mean(jnp.sin(x) @ w, axis=1) ** 3)


def centered(x, m, w):
    """As in a mixture of Gaussians: every point minus every mean, times a matrix of the mean's."""
    difference = x[:, None, :] - m
    return jnp.sum(jnp.sin(jnp.einsum("kij,nkj->nki", w, difference) + w[:, 0] * difference))


def copied_along_the_batch(x, w):
    """The copied dimension is one of the batch; and the copy is transposed."""
    copies = jnp.broadcast_to(x, (2, *x.shape)).swapaxes(0, 1)
    return jnp.sum(jnp.sin(jnp.einsum("mbc,bcn->bmn", copies, w)))


def copied_along_the_sum(x, w):
    return jnp.sum(jnp.sin(-jnp.broadcast_to(x[:, None], (3, 4)) @ w))


COPIES: dict[str, tuple[Callable, tuple]] = {
    "of a mean": (of_a_mean, (array(3, 4), array(4, 2))),
    "of a mean over rows": (of_a_mean_over_rows, (array(3, 4), array(4, 2))),
    "of a mean over columns": (of_a_mean_over_columns, (array(3, 4), array(4, 2))),
    "centered": (centered, (array(5, 3), array(2, 3), array(2, 3, 3))),
    "along the batch": (copied_along_the_batch, (array(3, 4), array(2, 4, 2))),
    "along the sum": (copied_along_the_sum, (array(3), array(4, 2))),
}


@pytest.mark.parametrize("name", COPIES)
def test_the_gradients_of_copies_are_right(name):
    fun, args = COPIES[name]
    cross_check(ft.jit(fun), *args, jitted=True, against=("differences",)).check()
    both = jax.jit(lambda *xs: (ft.hessian(ft.jit(fun), 0)(*xs), jax.hessian(fun, 0)(*xs)))
    chex.assert_trees_all_close(*both(*args), rtol=1e-10, atol=1e-12)


def over_points(argnums: Any, dtype: Any) -> list:
    """The products over the 7 points in the gradient of `centered`."""
    args = [x.astype(dtype) for x in (array(7, 3), array(2, 3), array(2, 3, 3))]
    program = ft.make_jaxpr(ft.grad(ft.jit(centered), argnums))(*args)
    return [pair for pair in products(program) if any(7 in shape for shape in pair)]


def test_a_copy_is_not_multiplied():
    """Backwards there is one product over the points, that for the cotangent of `w`."""
    assert len(over_points(1, jnp.float32)) == 1
    assert len(over_points((1, 2), jnp.float32)) == 2


def test_a_copy_in_half_precision_is_multiplied():
    """A sum of cotangents may be infinite where the sum of their small multiples is not."""
    assert len(over_points(1, jnp.float16)) == 2


def test_effects_stay_where_copies_are_moved():
    def fun(x):
        jax.debug.callback(lambda _: None, x)
        return -jnp.broadcast_to(x, (5, 3)) * 2.0

    program = ft.make_jaxpr(fun)(array(3)).jaxpr
    moved = broadcast_last(program)
    assert moved.effects == program.effects
    assert [str(e.primitive) for e in moved.eqns] == [
        "debug_callback", "neg", "mul", "broadcast_in_dim"
    ]  # fmt: skip


def test_what_copies_nothing_stays_as_it_is():
    program = ft.make_jaxpr(lambda x, w: jnp.sum(jnp.sin(x) @ w, axis=0))(array(3, 4), array(4, 2))
    assert broadcast_last(program.jaxpr) is program.jaxpr


def test_in_half_precision_nothing_is_summed_before():
    """The sum of 4 numbers of 30,000 is infinite, that of their products with 1/4 is not."""
    x, w = jnp.full((4, 1), 30000, jnp.float16), jnp.ones((1, 1), jnp.float16)
    fun = ft.jit(lambda w: 0.25 * lax.reduce_sum(x @ w, (0, 1)))
    assert float(ft.grad(fun)(w)[0, 0]) == 30000


# Jacobians: the products of a matrix with a basis are its columns.

A, B = array(4, 3), array(3, 3)


def perceptron(x):
    return jnp.tanh(B @ jnp.tanh(B @ x))


def convolution(x):
    """Its result has the shape of `x`, though it is not taken element by element."""
    y = lax.conv_general_dilated(x, jnp.asarray(array(1, 1, 3)), (1,), "SAME")
    return jnp.einsum("abc,abcd->d", y, array(1, 1, 4, 3))


FUNCTIONS: dict[str, tuple[Callable, tuple]] = {
    "a matrix": (lambda x: A @ x, (array(3),)),
    "from the left": (lambda x: x @ A.T, (array(3),)),
    "a square one, scaled": (lambda x: B @ (B @ -jnp.sin(x)), (array(3),)),
    "a perceptron": (perceptron, (array(3),)),
    "two arguments": (lambda x, y: (A @ x + A @ (x * y), y @ B), (array(3), array(3, seed=1))),
    "a matrix of unknowns": (lambda x: jnp.sin(x @ A), (array(2, 4),)),
    "a contraction of two": (lambda x: jnp.einsum("ij,jik->k", x, array(3, 2, 4)), (array(2, 3),)),
    "a convolution": (convolution, (array(1, 1, 4),)),
    "nothing at all": (lambda x: (x, 2.0, x[0]), (array(3),)),
    "scalars": (lambda x, y: x * y, (2.0, array(3))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("jit", repeated_after(1, [True, False]))
def test_jacobians_are_those_of_jax(name, jit):
    fun, args = FUNCTIONS[name]
    argnums = tuple(range(len(args)))

    def both_modes(ad):
        return lambda *xs: [of(fun, argnums)(*xs) for of in (ad.jacfwd, ad.jacrev)]

    ours, theirs = both_modes(ft), jax.jit(both_modes(jax))
    got = (ft.jit(ours) if jit else ours)(*args)
    chex.assert_trees_all_close(got, theirs(*args), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("mode", ["jacfwd", "jacrev"])
def test_derivatives_of_jacobians(mode):
    @jax.jit
    def both(x, xs):
        def derivatives(ad):
            jacobian = getattr(ad, mode)(perceptron)
            return ad.grad(lambda x: jnp.sum(jacobian(x) ** 2))(x), jax.vmap(jacobian)(xs)

        return derivatives(ft), derivatives(jax)

    (slope, batch), (want, wanted) = both(array(3), array(2, 3))
    chex.assert_trees_all_close(slope, want, rtol=1e-10)
    chex.assert_trees_all_close(batch, wanted)


@pytest.mark.parametrize("mode", ["jacfwd", "jacrev"])
def test_the_jacobian_of_a_matrix_is_not_a_product(mode):
    """The one product is that of the function itself; of two layers, each mode does one more."""
    x = array(3)
    assert len(products(ft.make_jaxpr(getattr(ft, mode)(lambda x: A @ x))(x))) == 1
    assert len(products(ft.make_jaxpr(getattr(ft, mode)(perceptron))(x))) == 3
