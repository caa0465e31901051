"""Reverse mode of loops that end when a condition is met, and of loops that keep a few carries.

A loop is compared with JAX's derivatives of a `scan` of 1,000 steps that stays as it is after the
last one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params
from repeated import repeated_after

import functrans as ft
from functrans.jaxpr import evaluate
from functrans.programs import revolve
from functrans.testing import DIFFERENCES, cross_check

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

LENGTHS = (0, 1, 2, 7, 31, 32, 33, 1000)
W = np.asarray([[0.3, -0.8], [0.9, 0.4]])
X = np.asarray([0.7, -0.4])


def scalar(x: Any, c: Any) -> Any:
    return x * jnp.sin(c)


def layer(args: Any, c: Any) -> Any:
    w, x = args
    return jnp.tanh(c @ w) + 0.1 * x * c


def until(step: Callable, args: Any, c: Any, n: Any) -> Any:
    return lax.while_loop(lambda s: s[0] < n, lambda s: (s[0] + 1, step(args, s[1])), (0, c))[1]


def scanned(step: Callable, args: Any, c: Any, n: Any) -> Any:
    def body(c, t):
        return jnp.where(t < n, step(args, c), c), None

    return lax.scan(body, c, jnp.arange(1000))[0]


def tower(ad: Any, modes: str, fun: Callable) -> Callable:
    """`RF` is the gradient of the forward derivative."""
    for mode in reversed(modes):
        fun = {"R": ad.jacrev, "F": ad.jacfwd}[mode](fun)
    return fun


def kept_in(jaxpr: Any) -> list[int]:
    """How many carries each loop of a program keeps."""
    found = [e.params["kept"] for e in jaxpr.eqns if "kept" in e.params]
    inner = [getattr(p, "jaxpr", p) for e in jaxpr.eqns for p in jaxprs_in_params(e.params)]
    return found + [kept for each in inner for kept in kept_in(each)]


# ---- every order, and every number of steps ------------------------------------------------------


@pytest.mark.parametrize(
    "modes", repeated_after(4, ["R", "RR", "FR", "RF", "RRR", "FFR", "FRR", "RFR", "RRF"])
)
def test_equal_to_a_scan(modes: str) -> None:
    """Compiled once for all numbers of steps."""
    ours = jax.jit(lambda x, n: tower(ft, modes, lambda x: until(scalar, x, x, n))(x))
    theirs = jax.jit(lambda x, n: tower(jax, modes, lambda x: scanned(scalar, x, x, n))(x))
    for n in LENGTHS:
        chex.assert_trees_all_close(ours(1.3, n), theirs(1.3, n), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("modes", ["R", "RR", "FR"])
def test_arrays_and_constants(modes: str) -> None:
    def loss(loop, args, n):
        return jnp.sum(loop(layer, args, args[1], n) ** 2)

    ours = jax.jit(lambda args, n: tower(ft, modes, lambda args: loss(until, args, n))(args))
    theirs = jax.jit(lambda args, n: tower(jax, modes, lambda args: loss(scanned, args, n))(args))
    for n in (0, 2, 33):
        got, want = ours((W, X), n), theirs((W, X), n)
        chex.assert_trees_all_close(got, want, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("kept", [2, 3, 9])
def test_any_number_of_carries(kept: int) -> None:
    with ft.carries_kept(kept):
        ours = jax.jit(ft.grad(lambda x, n: until(scalar, x, x, n)))
        theirs = jax.jit(jax.grad(lambda x, n: scanned(scalar, x, x, n)))
        for n in (0, 1, 3, 50, 200):
            chex.assert_trees_all_close(ours(1.3, n), theirs(1.3, n), rtol=1e-12)


WAYS: dict[str, Callable] = {
    "eager": lambda f: f,
    "ft.jit": ft.jit,
    "jax.jit": jax.jit,
    "checkpoint": jax.checkpoint,
}


@pytest.mark.parametrize("way", WAYS)
def test_in_every_call(way: str) -> None:
    """Through `grad`, `vjp`, `linearize` and its transpose."""

    def fun(x):
        return jnp.sum(until(layer, (W, x), x, 40) * X)

    want = jax.jit(jax.grad(lambda x: jnp.sum(scanned(layer, (W, x), x, 40) * X)))(X)
    wrapped = WAYS[way](fun)
    chex.assert_trees_all_close(ft.grad(wrapped)(X), want, rtol=1e-12)
    _, pushforward = ft.linearize(wrapped, X)
    chex.assert_trees_all_close(pushforward(X), want @ X, rtol=1e-12)
    chex.assert_trees_all_close(ft.linear_transpose(pushforward, X)(1.0)[0], want, rtol=1e-12)


def test_with_the_transforms_of_jax() -> None:
    """JAX pushes forward through ours, and ours pull back through what JAX has pushed."""

    def fun(x):
        return jnp.sum(until(layer, (W, x), x, 9) ** 2)

    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(scanned(layer, (W, x), x, 9) ** 2)))(X)
    for mixed in (jax.jacfwd(ft.grad(fun)), ft.jacrev(jax.jacfwd(fun))):
        chex.assert_trees_all_close(jax.jit(mixed)(X), hessian, rtol=1e-11)
    cross_check(fun, X, against=(DIFFERENCES,), order=1, jitted=True).check()
    # An hvp is a linear function, whose transpose is itself.
    pull = ft.linear_transpose(lambda v: ft.jvp(ft.grad(fun), (X,), (v,))[1], X)
    chex.assert_trees_all_close(pull(X)[0], hessian @ X, rtol=1e-11)


def test_high_level_primitives_in_the_body() -> None:
    """In JAX 0.12 `searchsorted` is one; JAX replaces it by its function in its own primitives."""

    def fun(x, loop):
        def nearest(_, c):
            return x[jnp.searchsorted(c, c[1:-1])].sum() * c**2

        return jnp.sum(loop(nearest, x, jnp.sin(x), 2))

    x = np.linspace(0.1, 0.9, 6)
    want = jax.jit(jax.grad(lambda x: fun(x, scanned)))(x)
    for transform in (ft.grad, lambda f: ft.grad(ft.jit(f)), lambda f: ft.jit(ft.grad(f))):
        chex.assert_trees_all_close(transform(lambda x: fun(x, until))(x), want, rtol=1e-12)
    many = jax.jit(jax.vmap(ft.grad(lambda x: fun(x, until))))(np.stack([x, x]))
    chex.assert_trees_all_close(many, np.stack([want, want]), rtol=1e-12)


AROUND: dict[str, Callable] = {
    "value and gradient": lambda ad, f: lambda x: sum(ad.value_and_grad(f)(x)),
    "pushforward": lambda ad, f: lambda x: ad.jvp(f, (x,), (x,))[1],
    "second derivative": lambda ad, f: lambda x: ad.jvp(ad.grad(f), (x,), (x,))[1],
    "jitted": lambda ad, f: ad.grad(jax.jit(f)),
}


@pytest.mark.parametrize("name", AROUND)
def test_reverse_mode_of_jax_around_ours(name: str) -> None:
    """What comes after the loop reads its result, so the loop itself is pulled back through."""

    def gradients(ad, loop):
        def fun(x, n):
            return jnp.exp(loop(scalar, x, x, n)) ** 2

        def batch(xs):
            return jnp.sum(jax.vmap(lambda x, n: AROUND[name](ad, lambda x: fun(x, n))(x))(xs, ns))

        def twice(xs):
            slope = jax.grad(batch)(xs)
            return slope, slope

        ns = jnp.asarray([3, 0, 5])
        return jax.jit(jax.jacfwd(twice, has_aux=True))

    xs = np.asarray([0.4, 0.9, 0.2])
    got, want = (gradients(*way)(xs) for way in ((ft, until), (jax, scanned)))
    chex.assert_trees_all_close(got, want, rtol=1e-11, atol=1e-12)


def test_jax_transposes_ours() -> None:
    def pushed(x, n):
        return ft.linearize(lambda x: until(scalar, x, x, n), x)[1]

    (got,) = jax.linear_transpose(pushed(1.3, 5), 1.0)(1.0)
    want = jax.jit(jax.grad(lambda x: scanned(scalar, x, x, 5)))(1.3)
    chex.assert_trees_all_close(got, want, rtol=1e-12)
    # The derivative of a pullback, by JAX's reverse mode.
    jaxpr = ft.make_jaxpr(ft.grad(lambda x: until(scalar, x, 0.7, 5)))(1.3)
    (loop,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "reversed_loop"]
    n, c, *bars = jnp.int32(5), 0.7, 0.0, 1.0

    def pulled(x):
        return loop.primitive.bind(n, x, c, *bars, **loop.params)[0]

    want = jax.jit(jax.grad(jax.grad(lambda x: scanned(scalar, x, 0.7, 5))))(1.3)
    chex.assert_trees_all_close(jax.grad(pulled)(1.3), want, rtol=1e-12)


# ---- many at once --------------------------------------------------------------------------------

NS = np.asarray([0, 3, 40, 1])
XS = np.random.default_rng(0).normal(size=(4, 2))


def each(x: Any, n: Any, w: Any = W) -> Any:
    return jnp.sum(until(layer, (w, x), x, n) ** 2)


def each_by_jax(x: Any, n: Any, w: Any = W) -> Any:
    return jnp.sum(scanned(layer, (w, x), x, n) ** 2)


def total(fun: Callable) -> Callable:
    return lambda w, xs: jnp.sum(jax.vmap(fun, (0, 0, None))(xs, NS, w))


def test_batches_of_gradients() -> None:
    """Each with a number of steps of its own, and a batch of such batches."""
    got = jax.jit(jax.vmap(ft.grad(each, (0, 2)), (0, 0, None)))(XS, NS, W)
    want = jax.jit(jax.vmap(jax.grad(each_by_jax, (0, 2)), (0, 0, None)))(XS, NS, W)
    chex.assert_trees_all_close(got, want, rtol=1e-11, atol=1e-12)
    many = jax.jit(jax.vmap(jax.vmap(ft.grad(each)), (0, None)))(np.stack([XS, XS]), NS)
    chex.assert_trees_all_close(many, np.stack([want[0]] * 2), rtol=1e-11, atol=1e-12)
    two = jax.vmap(ft.grad(lambda w, xs: total(each)(w, xs), 1), (None, 0))(W, np.stack([XS, XS]))
    chex.assert_trees_all_close(two, np.stack([want[0]] * 2), rtol=1e-11, atol=1e-12)


def test_gradients_of_batches() -> None:
    """The constants belong to all examples."""
    want = jax.jit(jax.grad(total(each_by_jax), (0, 1)))(W, XS)
    got = ft.grad(ft.jit(total(each)), (0, 1))(W, XS)
    chex.assert_trees_all_close(got, want, rtol=1e-11, atol=1e-12)
    want = jax.jit(jax.hessian(total(each_by_jax)))(W, XS)
    gradient = ft.grad(total(each))
    both = jax.jit(lambda *args: [around(gradient)(*args) for around in (ft.jacfwd, ft.jacrev)])
    for got in both(W, XS):
        chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("order", [1, 2])
def test_no_nan_from_beyond_the_end(order: int) -> None:
    """Where a loop ends, its step takes the logarithm of zero, and another one goes on."""

    def run(k, x):
        def step(c):
            return c - 1.0 + 0.0 * k * jnp.log(c)

        return lax.while_loop(lambda c: c > 0.0, step, x)

    xs = np.asarray([1.0, 3.0])
    each_one = {1: ft.grad(run, (0, 1)), 2: ft.jacfwd(ft.grad(run, (0, 1)), (0, 1))}[order]
    batch = jax.vmap(each_one, (None, 0))(2.0, xs)
    together = (
        each_one
        if order == 2
        else ft.grad(lambda k, xs: jax.vmap(run, (None, 0))(k, xs).sum(), (0, 1))
    )
    chex.assert_tree_all_finite(batch)
    if order == 1:
        chex.assert_trees_all_close(batch, (np.zeros(2), np.ones(2)))
        chex.assert_trees_all_close(together(2.0, xs), (0.0, np.ones(2)))


def test_one_schedule_for_a_batch() -> None:
    """No counter of the schedule has an axis of examples, and the tangents alone are batched where
    the values are not."""
    grads = jax.vmap(ft.grad(lambda x, n: until(scalar, x, x, n)))
    (loop,) = [
        e
        for e in jax.make_jaxpr(grads)(np.ones(4), NS).jaxpr.eqns
        if e.primitive.name == "reversed_loop"
    ]
    count: Any = loop.invars[0].aval
    assert count.shape == (4,)
    _, pull = ft.vjp(lambda x: until(layer, (W, x), x, 7), X)
    text = jax.make_jaxpr(jax.vmap(pull))(np.eye(2)).jaxpr
    (loop,) = [e for e in text.eqns if e.primitive.name == "reversed_loop"]
    assert [v.aval.shape for v in loop.params["step"].jaxpr.outvars] == [(2,)]


# ---- what a loop may hold ------------------------------------------------------------------------


@jax.custom_vjp
def cube(x: Any) -> Any:
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, y_bar: (3 * x**2 * y_bar,))


@jax.custom_jvp
def square(x: Any) -> Any:
    return x**2


square.defjvp(lambda x, x_dot: (square(x[0]), 2 * x[0] * x_dot[0]))


def of_rules(run: Callable, x: Any) -> Any:
    return run(3, lambda i, c: jnp.sin(cube(c)) + square(x), x)


def of_types(run: Callable, x: Any) -> Any:
    """A key, an integer, a number of Python, a bool, a buffer that is written, and an array."""

    def step(i, state):
        key, c, count, flag, buffer, table = state
        key, now = jax.random.split(key)
        c = c * jax.random.normal(now) + x * table[count % 2] * jnp.where(flag, 1.0, 2.0)
        return key, c, count + i, ~flag, buffer.at[i].set(c), table

    start = jax.random.key(0), 1.0, 0, True, jnp.zeros(9), jnp.stack([x, x**2])
    return sum(map(jnp.sum, (run(9, step, start)[i] for i in (1, 4))))


def of_loops(run: Callable, x: Any) -> Any:
    def step(i, c):
        return run(i + 1, lambda j, d: jnp.sin(d) * x + 0.1 * j, c)

    return run(4, step, x)


def in_a_scan(run: Callable, x: Any) -> Any:
    def step(c, n):
        return run(n, lambda i, d: jnp.cos(d) * x, c), c

    c, cs = lax.scan(step, x, jnp.arange(4))
    return (
        lax.cond(c > 9, lambda c: c, lambda c: run(2, lambda i, d: d * jnp.exp(x), c), c) + cs.sum()
    )


def of_indices(run: Callable, x: Any) -> Any:
    table = jnp.linspace(0.0, 1.0, 12) * x
    return run(9, lambda i, c: c * table[i] + jnp.sum(lax.dynamic_slice(table, (i,), (3,))), x)


def of_complex_numbers(run: Callable, x: Any) -> Any:
    return jnp.abs(run(5, lambda i, z: z * (x + 2j), x + 0j))


def traced(n: Any, step: Callable, start: Any) -> Any:
    """A loop whose end is not known when it is written."""
    return lax.fori_loop(0, n + jax.jit(lambda: 0)(), step, start)


def unrolled(n: Any, step: Callable, start: Any) -> Any:
    """The same, of 9 steps at most, as a scan that JAX differentiates."""

    def body(state, i):
        new = step(i, state)
        return jax.tree.map(
            lambda a, b: lax.select(jnp.full(a.shape, i < n), a, b), new, state
        ), None

    start = jax.tree.map(jnp.asarray, start)
    return lax.scan(body, start, jnp.arange(9))[0]


PROGRAMS = (of_rules, of_types, of_loops, in_a_scan, of_indices, of_complex_numbers)


def value_and_slopes(ad: Any, fun: Callable) -> Callable:
    """The value and two derivatives, in reverse over reverse mode."""

    def first(x):
        y, slope = ad.value_and_grad(fun)(x)
        return slope, (y, slope)

    def all_of(x):
        (_, (y, slope)), second = ad.value_and_grad(first, has_aux=True)(x)
        return y, slope, second

    return all_of


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda f: f.__name__)
def test_what_a_loop_may_hold(program: Callable) -> None:
    ours, theirs = (functools.partial(program, run) for run in (traced, unrolled))

    @jax.jit
    def derivatives(x):
        return value_and_slopes(ft, ours)(x), value_and_slopes(jax, theirs)(x)

    points = np.asarray([0.7, 0.4])
    found = [derivatives(x) for x in points]
    for got, want in found:
        chex.assert_trees_all_close(got[0], want[0], rtol=1e-12)
        chex.assert_trees_all_close(got[1:], want[1:], rtol=1e-11, atol=1e-12)
    many = jax.jit(jax.vmap(ft.grad(ours)))(points)
    chex.assert_trees_all_close(many, np.asarray([want[1] for _, want in found]), rtol=1e-11)


def test_effects() -> None:
    """One without an order comes again with its step; one with an order is refused."""
    seen = []

    def run(x, ordered):
        def step(c):
            jax.debug.callback(lambda c: seen.append(float(c)), c, ordered=ordered)
            return c * x

        return lax.while_loop(lambda c: c < 9.0, step, x)

    assert float(ft.grad(run)(2.0, False)) == 32.0
    jax.effects_barrier()
    assert set(seen) == {2.0, 4.0, 8.0} and len(seen) > 3
    for wrap in (lambda f: f, ft.jit):
        with pytest.raises(ValueError, match=r"ordered effect .*test_counted_loops.*forward mode"):
            ft.grad(wrap(lambda x: run(x, True)))(2.0)
    assert float(ft.jvp(lambda x: run(x, True), (2.0,), (1.0,))[1]) == 32.0


# ---- real programs -------------------------------------------------------------------------------


def root(a: Any) -> Any:
    """Newton's method, with a tolerance."""

    def unfinished(state):
        return jnp.abs(state[0] - state[1]) > 1e-12 * state[0]

    def step(state):
        y, _ = state
        return 0.5 * (y + a / y), y

    return lax.while_loop(unfinished, step, (a, jnp.zeros(())))[0]


def bisected(a: Any) -> Any:
    """The root of x^3 + x = a, and a step of Newton's, which has its derivative."""

    def step(ends):
        low, high = ends
        middle = (low + high) / 2
        is_above = middle**3 + middle > a
        return jnp.where(is_above, low, middle), jnp.where(is_above, middle, high)

    ends = jnp.zeros(()), jnp.full((), 9.0)
    x = lax.stop_gradient(sum(lax.while_loop(lambda s: s[1] - s[0] > 1e-13, step, ends)) / 2)
    return x - (x**3 + x - a) / (3 * x**2 + 1)


def pendulum(k: Any, y: Any) -> Any:
    """y' = -k sin(y) until t = 1, in steps of the size that their errors allow."""

    def slope(y):
        return -k * jnp.sin(y)

    def step(state):
        t, y, h = state
        h = jnp.minimum(h, 1.0 - t)
        a = slope(y)
        b = slope(y + h * a / 2)
        c = slope(y - h * a + 2 * h * b)
        error = jnp.abs(h * (a - 2 * b + c) / 6) / 1e-7
        accepted = error <= 1.0
        factor = jnp.clip(0.9 * jnp.maximum(error, 1e-9) ** (-1 / 3), 0.2, 5.0)
        y = jnp.where(accepted, y + h * (a + 4 * b + c) / 6, y)
        return jnp.where(accepted, t + h, t), y, lax.stop_gradient(h * factor)

    start = jnp.zeros(()), y, jnp.full((), 0.1)
    return lax.while_loop(lambda state: state[0] < 1.0, step, start)[1]


def swung(k: Any, y: Any) -> Any:
    return 2 * jnp.arctan(jnp.tan(y / 2) * jnp.exp(-k))


def marched(radius: Any, x: Any) -> Any:
    """The length of a ray to a ball, or to where it has passed it."""
    ray = jnp.stack([x, jnp.ones(())]) / jnp.sqrt(1 + x**2)
    center = jnp.asarray([0.1, 3.0])

    def distance(length):
        return jnp.sqrt(jnp.sum((length * ray - center) ** 2)) - radius

    def is_between(length):
        return (distance(length) > 1e-13) & (length < 10.0)

    length = lax.while_loop(is_between, lambda s: s + distance(s), jnp.full((), 0.01))
    return jnp.where(length < 10.0, length, 0.0)


def met(radius: Any, x: Any) -> Any:
    ray = jnp.stack([x, jnp.ones(())]) / jnp.sqrt(1 + x**2)
    center = jnp.asarray([0.1, 3.0])
    near = ray @ center
    inside = radius**2 - center @ center + near**2
    return jnp.where(inside > 0, near - jnp.sqrt(jnp.maximum(inside, 1e-9)), 0.0)


REAL: dict[str, tuple] = {
    "Newton": (root, jnp.sqrt, (np.asarray([2.0, 900.0, 0.04]),), 1e-12),
    "pendulum": (pendulum, swung, (np.asarray([0.1, 1.3, 5.0]), np.asarray([1.0, 0.2, 2.0])), 1e-5),
    "rays": (marched, met, (np.full(3, 0.5), np.asarray([0.0, 0.1, 0.9])), 1e-5),
}


@pytest.mark.parametrize("name", REAL)
def test_real_programs(name: str) -> None:
    """To second order, one by one and together, against the formula."""
    fun, formula, args, rtol = REAL[name]
    argnums = tuple(range(len(args)))
    want, second = jax.jit(
        lambda *args: [jax.vmap(d(formula, argnums))(*args) for d in (jax.grad, jax.hessian)]
    )(*args)
    total = ft.grad(lambda *args: jnp.sum(jax.vmap(fun)(*args)), argnums)
    each, hessians = (jax.vmap(d(fun, argnums)) for d in (ft.grad, ft.hessian))
    *gradients, got = jax.jit(lambda *args: [d(*args) for d in (each, total, hessians)])(*args)
    for gradient in gradients:
        chex.assert_trees_all_close(gradient, want, rtol=rtol, atol=1e-9)
    chex.assert_trees_all_close(got, second, rtol=30 * rtol, atol=1e-7)
    one = jax.tree.map(lambda x: x[1], args)
    got = ft.grad(fun, argnums)(*one)
    chex.assert_trees_all_close(got, tuple(w[1] for w in want), rtol=rtol, atol=1e-9)


def test_bisection() -> None:
    x = bisected(2.0)
    slope = 1 / (3 * x**2 + 1)
    chex.assert_trees_all_close(ft.grad(bisected)(2.0), slope, rtol=1e-12)
    chex.assert_trees_all_close(jax.vmap(ft.grad(bisected))(np.full(2, 2.0))[1], slope, rtol=1e-12)


def test_gamma_to_second_order() -> None:
    """The sample moves so that its distribution function stays; its derivative is r(a, x)."""
    key, a = jax.random.key(3), jnp.asarray(2.5)
    second = ft.grad(ft.grad(lambda a: jax.random.gamma(key, a)))(a)
    x = jax.random.gamma(key, a)
    slope: Any = lax.random_gamma_grad
    r, h = slope(a, x), 1e-4
    ahead, behind = (slope(a + s, x + s * r) for s in (h, -h))
    chex.assert_trees_all_close(second, (ahead - behind) / (2 * h), rtol=1e-6)


# ---- memory, and work ----------------------------------------------------------------------------

SIZE = 64


def long(x: Any, n: Any) -> Any:
    """Beside the carry it fills a buffer that no derivative reads."""

    def step(state):
        i, c, buffer = state
        return i + 1, jnp.sin(c) * x, buffer.at[:].set(c)

    return lax.while_loop(lambda s: s[0] < n, step, (0, x, jnp.zeros_like(x)))[1].sum()


def carries(compiled: Any) -> float:
    return compiled.memory_analysis().temp_size_in_bytes / (8 * SIZE * SIZE)


def test_memory_does_not_grow() -> None:
    """The number of steps is no part of the compiled program; the buffer is not stacked."""
    x = np.ones((SIZE, SIZE))
    compiled = jax.jit(ft.grad(long)).lower(x, 5).compile()
    assert 64 < carries(compiled) < 70
    with ft.carries_kept(16):
        assert 16 < carries(jax.jit(ft.grad(long)).lower(x, 5).compile()) < 22


@functools.cache
def counting(kept: int) -> tuple[Callable, list]:
    """Loops of any number of steps, and a list that grows with each step on the way back."""
    seen: list[int] = []

    def back(c, bars):
        return [bars[0] + (c[0] == bars[1]), bars[1] - 1]

    def forwards(c):
        jax.debug.callback(lambda: seen.append(1))
        return [c[0] + 1]

    @jax.jit
    def right(n):
        ends, bars = ((True,), (True, True)), (jnp.int32(0), n - 1)
        start = [jnp.int32(0)]
        return revolve.there_and_back(n, forwards, list, back, start, bars, ends, kept)[0]

    return right, seen


def counted_again(n: int, kept: int) -> int:
    """How many steps are computed again on the way back, counted in the loops themselves."""
    right, seen = counting(kept)
    before = len(seen)
    assert int(right(jnp.int32(n))) == n, "a step back has met another carry"
    jax.effects_barrier()
    return len(seen) - before


@functools.cache
def divisions(kept: int) -> Callable:
    """How many steps the divisions of the schedule compute again, by blocks."""
    size = revolve._block(kept)
    longest = revolve._longest_ranges(kept - size, size)
    divide = jax.jit(lambda length, free: revolve._split(longest, length, free))

    @functools.cache
    def between_blocks(length, free):
        if free == 0 or length == 1:
            return length * (length - 1) // 2
        ahead = int(divide(length, free))
        rest = between_blocks(length - ahead, free - 1)
        return ahead + rest + between_blocks(ahead, free)

    return between_blocks


def scheduled_again(n: int, kept: int) -> int:
    """The same by the divisions that the schedule makes, for loops that are long."""
    size = revolve._block(kept)
    blocks = -(-n // size)
    return size * divisions(kept)(blocks, kept - size - 1) + n - blocks


def least_again(n: int, checkpoints: int) -> int:
    """The theorem of Griewank and Walther: `r n - binomial(c + r, r - 1)`."""
    r = next(r for r in range(n) if math.comb(checkpoints + r, r) >= n)
    return r * n - math.comb(checkpoints + r, r - 1) if r else 0


KEPT = (2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize("kept", repeated_after(2, KEPT))
def test_how_often_a_step_is_computed(kept: int) -> None:
    """Beside the least that is possible, with one carry for the step that is taken back."""
    for n in (1, 10, 33, 300):
        assert counted_again(n, kept) == scheduled_again(n, kept)
    for n in (10, 1000, 10_000, 100_000):
        again, least = scheduled_again(n, kept), least_again(n, kept - 1)
        if kept < 16:
            assert again == least
        else:
            assert least <= again <= max(1.1 * least, 2 * n)


@pytest.mark.parametrize("places, length", [(31, 2), (31, 500), (3, 40), (2, 9), (1, 5)])
def test_a_range_is_divided_where_it_is_least_work(places: int, length: int) -> None:
    """Beside the best division, found by trying all."""

    @functools.cache
    def least(length, places):
        if length == 1:
            return 0
        if places == 1:
            return length * (length - 1) // 2
        ways = range(1, length)
        return min(m + least(length - m, places - 1) + least(m, places) for m in ways)

    table = revolve._longest_ranges(33, 32)

    @functools.cache
    def split(length, places):
        return int(revolve._split(table, length, places - 1))

    def ours(length, places):
        if length == 1:
            return 0
        m = split(length, places)
        after = ours(length - m, max(places - 1, 1))
        return m + after + (ours(m, places) if places > 1 else (length - 1) * (length - 2) // 2)

    if length <= 40:
        assert ours(length, places) == least(length, places)
    assert 0 < split(length, places) < length


def test_elements_of_an_array_are_summed_in_place() -> None:
    """No step makes an array of zeros as large as the one that it reads an element of."""

    def read(x, n):
        return lax.fori_loop(0, n, lambda i, c: c + jnp.sin(x[i] * c) + x[2 * i], 1.0)

    def scanned(x, _):
        return read(x, 5)

    x = np.linspace(0.0, 1.0, 20)
    for fun in (read, scanned):
        program = ft.make_jaxpr(ft.grad(fun))(x, 5)
        bodies = [p for e in program.jaxpr.eqns for p in jaxprs_in_params(e.params)]
        made = [e for body in bodies for e in getattr(body, "jaxpr", body).eqns]
        shapes: Any = [(e.primitive.name, e.outvars[0].aval) for e in made]
        wide = [name for name, aval in shapes if aval.shape == (20,)]
        assert set(wide) <= {"dynamic_update_slice", "scatter-add"}
        want = jax.jit(jax.grad(scanned))(x, 5)
        chex.assert_trees_all_close(ft.grad(fun)(x, 5), want, rtol=1e-12)


def test_zeros_absorb_in_a_loop_too() -> None:
    """The root is taken where `where` does not choose it, in the first step and in others."""

    def run(x):
        def step(s):
            i, c = s
            return i + 1, jnp.where(c > 0, jnp.sqrt(c), 0.0) + 0.5 * c

        return lax.while_loop(lambda s: s[0] < 3, step, (0, x))[1]

    assert np.isnan(ft.grad(run)(0.0))
    with ft.strong_zeros():
        assert float(ft.grad(run)(0.0)) == 0.125
        assert float(ft.grad(ft.jit(run))(0.0)) == 0.125


# ---- the option ----------------------------------------------------------------------------------


def recurrent(w: Any, x: Any, us: Any) -> Any:
    def step(c, u):
        c = jnp.tanh(c @ w) + 0.1 * u * c
        return c, jnp.sin(c) * u[0]

    c, ys = lax.scan(step, x, us, reverse=True)
    return jnp.sum(c**2) + jnp.sum(ys**3)


US = np.random.default_rng(1).normal(size=(30, 2))


def test_a_scan_that_keeps_a_few_carries() -> None:
    argnums = (0, 1, 2)
    want = jax.jit(jax.grad(recurrent, argnums))(W, X, US)
    with ft.carries_kept(8):
        assert kept_in(ft.make_jaxpr(ft.grad(recurrent))(W, X, US).jaxpr) == [8]
        for fun in (recurrent, ft.jit(recurrent)):
            chex.assert_trees_all_close(ft.grad(fun, argnums)(W, X, US), want, rtol=1e-11)
        short = US[:9]
        hessian = jax.jit(jax.hessian(recurrent, argnums))(W, X, short)
        got = jax.jit(ft.jacrev(ft.grad(recurrent, argnums), argnums))(W, X, short)
        chex.assert_trees_all_close(got, hessian, rtol=1e-10, atol=1e-12)
        assert kept_in(ft.make_jaxpr(ft.grad(recurrent))(W, X, US[:8]).jaxpr) == []


def test_the_option_belongs_to_a_derivative_or_to_a_loop() -> None:
    """It is in the key of what is remembered, also of JAX."""

    def fun(x):
        return until(scalar, x, x, 5)

    said = ft.carries_kept(16)(fun)
    for wrap in (lambda f: f, ft.jit, jax.jit, jax.vmap):
        x = np.ones(1) if wrap is jax.vmap else 1.0

        def kept(f, wrap=wrap, x=x):
            return kept_in(ft.make_jaxpr(ft.grad(lambda x: jnp.sum(wrap(f)(x))))(x).jaxpr)

        with ft.carries_kept(8):
            assert kept(fun) == [8]
        assert kept(fun) == [64]
        assert kept(said) == kept(lambda x: said(x)) == [16]
        with ft.carries_kept(8):
            assert kept(said) == [16]
    program = ft.make_jaxpr(jax.jit(fun))(1.0)  # written where nothing is said

    def again(x):
        return evaluate(program, x)[0]

    assert kept_in(ft.make_jaxpr(ft.grad(again))(1.0).jaxpr) == [64]
    with ft.carries_kept(8):
        assert kept_in(ft.make_jaxpr(ft.grad(again))(1.0).jaxpr) == [8]


def test_what_it_refuses() -> None:
    refused: Any = ((1, ValueError), (2.5, TypeError), (jnp.sin, TypeError))
    for count, error in refused:
        with pytest.raises(error), ft.carries_kept(count):
            pass
    with pytest.raises(TypeError, match="not linear"):
        ft.linear_transpose(lambda x: lax.while_loop(lambda c: c < 9.0, lambda c: 2 * c, x), 1.0)(
            1.0
        )
