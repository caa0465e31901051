"""Control flow as programs have it: nested, with empty carries, closures, and rules of a user's.

The rows of `rule_cases/control_flow.py` test each primitive by itself; here they meet.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.ode import odeint

import functrans as ft
from functrans.forward import jvp_jaxpr
from functrans.linearize import linearize_jaxpr
from functrans.testing import cross_check

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

X = np.asarray([0.3, -0.7, 1.1])


def nothing_in_the_carry(x):
    def step(carry, x):
        assert carry is None
        return None, (jnp.sin(x), None)

    return lax.scan(step, None, x)


def a_carry_of_integers(x):
    def step(i, x):
        return (i + 1) % 3, x * i

    return lax.scan(step, 1, x)


def a_dictionary_in_the_carry(x):
    def step(carry, t):
        carry = {"a": carry["b"], "b": carry["a"] * t, "n": carry["n"] + 1, "none": None}
        return carry, carry["a"]

    return lax.scan(step, {"a": x, "b": x**2, "n": 0, "none": None}, X)


def no_steps(x):
    return lax.scan(lambda c, t: (c * jnp.sin(t), c), x[0], jnp.zeros((0,)))


def backwards_and_unrolled(x):
    def step(c, t):
        return jnp.sin(c) * t, c * t

    return lax.scan(step, x[0], x, reverse=True, unroll=2)


def a_value_from_outside(x):
    """The body and the branches close over `x`, and over what is computed from it."""
    y = jnp.exp(x)

    def step(c, t):
        return lax.cond(t > 0, lambda: c * y, lambda: c + x * t), lax.map(lambda s: s * y, c)

    return lax.scan(step, x, x)


def loops_in_branches_in_loops(x):
    def outer(c, t):
        def inner(i, u):
            return lax.switch(i % 3, [jnp.sin, lambda v: v * t, lambda v: v * v], u)

        return lax.cond(t > 0, lambda: lax.fori_loop(0, 3, inner, c), lambda: c * t), c

    return lax.scan(outer, x, x)


def a_checkpoint_in_a_loop(x):
    @jax.checkpoint
    def step(c, t):
        return jnp.sin(c * t) * jnp.exp(c), c

    return lax.scan(step, x, x)


def a_loop_in_a_checkpoint(x):
    def loop(x):
        return lax.scan(lambda c, t: (jnp.sin(c) * (t @ t), c), x, x[:, None])

    # JAX 0.10 does not take NumPy arrays for the tangents and cotangents of a checkpoint.
    outs = jax.checkpoint(loop, policy=jax.checkpoint_policies.dots_saveable)(jnp.exp(x))
    return jax.tree.map(jnp.sin, outs)


def calls_in_loops(x):
    @jax.jit
    def call(c, t):
        return jax.jit(jnp.sin)(c) * t

    return lax.scan(lambda c, t: (call(c, t), call(t, c)), x, x)


def two_levels_of_derivatives(x):
    """The derivative of a loop inside of a loop."""

    def energy(y):
        return jnp.sum(lax.scan(lambda c, t: (jnp.sin(c) * t, c), y, y)[1])

    return lax.scan(lambda c, t: (c - 0.1 * t * jax.grad(energy)(c), None), x, x)[0]


def a_prefix_of_products(x):
    return lax.associative_scan(lambda a, b: a * b + jnp.sin(b), x)


def an_equation_solved(x):
    def solve(f, guess):
        def step(state):
            i, y = state
            return i + 1, y - f(y) / (3 * y**2 + 1)

        return lax.while_loop(lambda state: state[0] < 30, step, (0, guess))[1]

    def tangent_solve(g, y):
        return y / g(jnp.ones_like(y))

    def root(a):
        return lax.custom_root(lambda y: y**3 + y - a, jnp.ones_like(a), solve, tangent_solve)

    return root(x) * jax.jit(root)(2 * x)


def a_system_solved_in_a_loop(x):
    a = jnp.outer(x, x) + 2 * jnp.eye(3)
    return lax.scan(lambda c, t: (jnp.linalg.solve(a, c) + t, c), x, x)


PROGRAMS = [
    nothing_in_the_carry,
    a_carry_of_integers,
    a_dictionary_in_the_carry,
    no_steps,
    backwards_and_unrolled,
    a_value_from_outside,
    loops_in_branches_in_loops,
    a_checkpoint_in_a_loop,
    a_loop_in_a_checkpoint,
    calls_in_loops,
    two_levels_of_derivatives,
    a_prefix_of_products,
    an_equation_solved,
    a_system_solved_in_a_loop,
]


@pytest.mark.parametrize("fun", PROGRAMS)
def test_programs(fun):
    """Both modes and each of each; compiled, as eagerly every loop is compiled by itself."""
    cross_check(fun, X, jitted=True).check()


@pytest.mark.parametrize("fun", PROGRAMS)
def test_programs_vmapped(fun):
    batch = jnp.stack([X, X + 0.1])

    def gradient(ad):
        def total(x):
            leaves = jax.tree.leaves(fun(x))
            return sum(jnp.sum(jnp.cos(leaf)) for leaf in leaves if leaf.dtype == x.dtype)

        return jax.vmap(ad.grad(total))(batch)

    got, want = jax.jit(lambda: (gradient(ft), gradient(jax)))()
    chex.assert_trees_all_close(got, want, rtol=1e-9)


def test_an_initial_value_problem():
    """`odeint` brings an adjoint of its own: to the second order, in reverse over reverse.

    Its backward rule chooses its steps by the size of what it integrates, the cotangent; so it is
    not linear, and has no transpose. In forward mode its steps are differentiated, and a
    linearization has both.
    """

    def final(y, a):
        return odeint(lambda y, t, a: -a * y + jnp.sin(t), y, jnp.linspace(0, 1.0, 3), a)[-1, 0]

    def solution(y, a):
        # y' + a y = sin t
        c = y + 1 / (1 + a**2)
        return (c * jnp.exp(-a) + (a * jnp.sin(1.0) - jnp.cos(1.0)) / (1 + a**2))[0]

    args = np.asarray([1.0, 2.0]), np.asarray(0.5)
    first, second = ft.grad(final, (0, 1)), ft.grad(ft.grad(final, 1), 1)
    chex.assert_trees_all_close(first(*args), ft.grad(solution, (0, 1))(*args), rtol=1e-5)
    want = ft.grad(ft.grad(solution, 1), 1)(*args)
    chex.assert_trees_all_close(ft.jit(second)(*args), want, rtol=1e-4)

    def along(f):
        return lambda y, a: ft.jvp(f, (y, a), (args[0] + 1, np.asarray(1.0)))[1]

    def linearized(f):
        push = ft.linearize(f, *args)[1]
        pull = ft.linear_transpose(push, *args)
        return push(args[0], 1.0), pull(2.0), ft.hessian(f, 1)(*args), ft.hessian(f)(*args)

    def forward(f):
        batch = jax.vmap(along(f), (None, 0))(args[0], np.asarray([0.5, 2.0]))
        return along(f)(*args), along(along(f))(*args), along(ft.grad(f, 1))(*args), batch

    def all_of(f):
        return forward(f), linearized(f), ft.jacfwd(f)(*args), ft.jacfwd(ft.jit(f), 1)(*args)

    got, want = jax.jit(lambda: (all_of(final), all_of(solution)))()
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-6)


def test_an_initial_value_problem_without_errors():
    """The size of a step, which the error decides, is constant to derivatives: the root of an
    error that is zero has none, and neither has the norm of a state that is zero."""

    def final(y, t):
        return odeint(lambda y, t: jnp.full_like(y, 2.0), y, t)[-1]

    y, times = np.zeros(2), np.asarray([0.0, 0.5, 1.5])
    y_dot, times_dot = np.asarray([1.0, 3.0]), np.asarray([0.1, 5.0, 0.4])
    got = ft.jvp(final, (y, times), (y_dot, times_dot))
    chex.assert_trees_all_close(got, (np.full(2, 3.0), y_dot + 2 * (0.4 - 0.1)), rtol=1e-9)


# A rule of a user's may carry values and tangents through one loop; on a tape that is split.


def by_jvp(fun: Callable) -> Callable:
    """The function, with the rule that JAX's jvp of it is."""
    wrapped = jax.custom_jvp(fun)
    wrapped.defjvp(lambda primals, tangents: jax.jvp(fun, primals, tangents))
    return wrapped


def chosen(x):
    def first():
        return x * x, jnp.exp(x), 1.0

    return lax.cond(x[0] > 0, first, lambda: (x, x * jnp.sin(x), x[1]))


def grown(x):
    return lax.scan(lambda c, t: ((c[1] * x, jnp.sin(c[0]) * t), c), (x, x), x)


def repeated(x):
    return lax.fori_loop(0, lax.convert_element_type(x[0] + 3, int), lambda i, c: c * x, x)


@pytest.mark.parametrize("fun", [chosen, grown, a_dictionary_in_the_carry, a_value_from_outside])
@pytest.mark.parametrize("x", [X, -X])
def test_values_and_tangents_in_one_loop(fun, x):
    cross_check(by_jvp(fun), x, jitted=True).check()


def test_values_and_tangents_in_one_endless_loop():
    cross_check(by_jvp(repeated), X, modes=("fwd",)).check()


def test_a_pullback_of_jax_inside():
    def pulled(x, y_bar):
        return jax.vjp(lambda x: grown(x)[1], x)[1]((y_bar, y_bar))[0]

    cross_check(pulled, X, jnp.stack([X, 2 * X, X**2]), jitted=True).check()


# The transposed backward rule, wherever a function may be.


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, y_bar: (3 * x**2 * y_bar,))


def in_a_while_loop(x):
    return lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, cube(c[1])), (0, x))[1]


AROUND: dict[str, tuple[Callable, Callable]] = {
    "scan": (
        lambda x: lax.scan(lambda c, t: (cube(c) * t, cube(t)), x, x),
        lambda x: lax.scan(lambda c, t: (c**3 * t, t**3), x, x),
    ),
    "cond": (
        lambda x: lax.cond(x[0] > 0, cube, jnp.sin, x),
        lambda x: lax.cond(x[0] > 0, lambda x: x**3, jnp.sin, x),
    ),
    "vmap": (
        lambda x: jax.vmap(lambda t: jnp.sum(cube(t * x)))(x),
        lambda x: jax.vmap(lambda t: jnp.sum((t * x) ** 3))(x),
    ),
    "jit": (lambda x: jax.jit(cube)(x) * x, lambda x: x**4),
    "checkpoint": (
        lambda x: jax.checkpoint(lambda x: jnp.sin(cube(x)))(x),
        lambda x: jnp.sin(x**3),
    ),
    "while": (in_a_while_loop, lambda x: x**9),
}


@pytest.mark.parametrize("name", AROUND)
def test_forward_mode_of_a_backward_rule(name):
    """To the second order, against the same function without the rule."""
    fun, plain = AROUND[name]
    for transform in (ft.jacfwd, lambda f: ft.jacfwd(ft.jacfwd(f))):
        got, want = ft.jit(transform(fun))(X), ft.jit(transform(plain))(X)
        chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-12)


def test_a_staged_value():
    """`lax.stage` gives what it is given."""
    np.testing.assert_allclose(
        ft.grad(lambda x: jnp.sin(lax.stage(x)) * x)(1.0), np.sin(1) + np.cos(1)
    )


# Nothing is done twice, and nothing is kept too long.


@pytest.mark.parametrize("transform", [ft.grad, lambda f: ft.hessian(f), lambda f: ft.hvp(f, X, X)])
def test_a_body_is_run_once(transform):
    """However often it is derived."""
    calls = []

    def total(x):
        def step(c, t):
            calls.append("body")
            return lax.cond(t > 0, true, false, c), c

        def true(c):
            calls.append("true")
            return jnp.sin(c)

        def false(c):
            calls.append("false")
            return c * c

        return jnp.sum(lax.scan(step, x, x)[1])

    derived = transform(ft.jit(total))
    if callable(derived):
        derived(X)
    assert sorted(calls) == ["body", "false", "true"]


def test_a_program_is_linearized_once_and_dies():
    program = ft.make_jaxpr(calls_in_loops)(X)
    assert linearize_jaxpr(program, (True,)) is linearize_jaxpr(program, (True,))
    assert jvp_jaxpr(program, (True,)) is jvp_jaxpr(program, (True,))
    alive = weakref.ref(program)
    del program
    gc.collect()
    assert alive() is None


def test_many_programs_leave_nothing_behind():
    """Each function is new, so that nothing of it may be kept once it is gone."""

    def once(i):
        def fun(x):
            return jnp.sum(lax.scan(lambda c, t: (jnp.sin(c * i) * t, c), x, x)[1])

        ft.jit(ft.grad(fun))(X)

    def programs():
        jax.clear_caches()
        gc.collect()
        return sum(type(x).__name__ in ("Jaxpr", "ClosedJaxpr") for x in gc.get_objects())

    once(0)
    before = programs()
    for i in range(1, 4):
        once(i)
    assert programs() <= before + 5
    np.testing.assert_(before > 0)


def loop_until(x):
    return lax.while_loop(lambda c: c < 3.0, lambda c: c * x, x)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, ft.jit, jax.checkpoint])
def test_a_loop_without_end_has_a_reverse_mode(wrap):
    """Which JAX refuses."""
    with pytest.raises(ValueError, match="Reverse-mode"):
        jax.grad(loop_until)(1.5)
    slope = ft.jvp(wrap(loop_until), (1.5,), (1.0,))[1]
    np.testing.assert_allclose(slope, 3 * 1.5**2)
    np.testing.assert_allclose(ft.grad(wrap(loop_until))(1.5), slope)


# What cannot be done is said.


def test_a_carry_that_changes_its_type():
    def changing(x):
        return lax.scan(lambda c, t: (jnp.stack([c, t]), None), x[0], x)[0].sum()

    errors = []
    for ad in (ft, jax):
        with pytest.raises(TypeError, match="carry") as caught:
            ad.grad(changing)(X)
        errors.append(caught.value)
    assert "float64[2]" in str(errors[0])


def test_a_solver_without_a_transpose():
    def solved(a, b):
        return lax.custom_linear_solve(lambda x: a * x, b, lambda _, b: b / a).sum()

    with pytest.raises(TypeError, match=r"transpose_solve.*solved|solved.*transpose_solve"):
        ft.grad(solved)(2.0 + X, X)
    with pytest.raises(TypeError, match="transpose_solve"):
        jax.grad(solved)(2.0 + X, X)
    cross_check(solved, 2.0 + X, X, modes=("fwd",)).check()


@pytest.mark.parametrize(
    ("residual", "slope"),
    [(lambda x: x, jnp.cos), (jnp.cos, lambda cosine: cosine)],
    ids=["an argument", "computed"],
)
def test_a_forward_rule_with_optimize_remat(residual: Callable, slope: Callable) -> None:
    """Where nothing reads its residuals the function runs in its place, as in JAX; to tell the two
    apart, the rule adds 100."""

    @jax.custom_vjp
    def sine(x):
        return jnp.sin(x)

    sine.defvjp(
        lambda x: (jnp.sin(x) + 100, residual(x)),
        lambda saved, y_bar: (y_bar * slope(saved),),
        optimize_remat=True,
    )
    again = jax.checkpoint(lambda x: sine(sine(x)))
    everything = jax.checkpoint_policies.everything_saveable
    loop = lambda x: lax.scan(lambda c, _: (again(c), c), x, None, length=2)  # noqa: E731

    def results(ad, jit):
        return [
            ad.value_and_grad(lambda x: jnp.sum(sine(x)))(X),
            ad.value_and_grad(lambda x: jnp.sum(again(x)))(X),
            ad.value_and_grad(lambda x: jnp.sum(again(x) * again(X)))(X),
            ad.value_and_grad(lambda x: jnp.sum(jax.checkpoint(sine, policy=everything)(x)))(X),
            ad.linearize(loop, X)[0],
            ad.vjp(jax.vmap(again), X)[0],
            jit(ad.value_and_grad(lambda x: jnp.sum(sine(x))))(X),
            jit(ad.value_and_grad(lambda x: jnp.sum(again(x))))(X),
        ]

    got, want = results(ft, ft.jit), results(jax, jax.jit)
    chex.assert_trees_all_close(got, want, rtol=1e-6)
    values = [y[0] if isinstance(y, tuple) else y for y in got]
    assert [bool(np.max(y) > 50) for y in values[:3]] == [True, False, False]


def reducing(axes: tuple, count: int) -> Callable:
    """By `2 a - b`; of two operands, by one that mixes them."""

    def reduce(*inputs):
        xs, starts = inputs[:count], inputs[count:]
        return lax.reduce(xs, starts, mixed if count == 2 else doubled, axes)

    return reduce


def sliding(count: int, **window) -> Callable:
    """The same for windows."""
    window = {"window_strides": None, "padding": "VALID"} | window

    def reduce(*inputs):
        xs, starts = inputs[:count], inputs[count:]
        return lax.reduce_window(xs, starts, mixed if count == 2 else doubled, **window)

    return reduce


def doubled(a, b):
    return (2 * a[0] - b[0],)


def mixed(a, b):
    return 2 * a[0] - b[1], a[1] + b[0]


FOLDS = [
    (shape, reducing(axes, count), count)
    for count in (1, 2)
    for shape, axes in [((5,), (0,)), ((2, 3, 2), (0, 2)), ((3, 1), (1,)), ((40, 2), (0,))]
] + [
    (shape, sliding(count, window_dimensions=size, **window), count)
    for count in (1, 2)
    for shape, size, window in [
        ((6,), (3,), {}),
        ((6,), (3,), {"padding": ((2, 1),)}),
        ((6,), (2,), {"base_dilation": (2,), "window_dilation": (3,), "window_strides": (2,)}),
        ((4, 5), (2, 3), {"window_strides": (1, 2)}),
        ((40, 2), (40, 1), {}),
        ((), (), {}),
    ]
]


def test_a_reduction_is_the_fold_of_xla():
    """Whole numbers tell in which order XLA takes the elements, of a function that is neither
    associative nor commutative. It is linear: the tangent is the same fold, of the tangents."""
    rng = np.random.default_rng(0)
    draw = [
        [rng.integers(-9, 9, shape).astype(float) for _ in range(count)]
        + [rng.integers(-9, 9, ()).astype(float) for _ in range(count)]
        for shape, _, count in FOLDS * 2
    ]
    xs, x_dots = draw[: len(FOLDS)], draw[len(FOLDS) :]

    def evaluate(xs, x_dots):
        pairs = zip(FOLDS, xs, x_dots, strict=True)
        pushed = [ft.jvp(fun, tuple(x), tuple(x_dot)) for (_, fun, _), x, x_dot in pairs]
        pulled = [ft.vjp(fun, *x)[1] for (_, fun, _), x in zip(FOLDS, xs, strict=True)]
        return pushed, [pull(y) for pull, (y, _) in zip(pulled, pushed, strict=True)]

    pushed, pulled = jax.jit(evaluate)(xs, x_dots)
    folds = zip(FOLDS, xs, x_dots, pushed, pulled, strict=True)
    for (_, fun, _), x, x_dot, (y, y_dot), x_bar in folds:
        chex.assert_trees_all_equal(y, fun(*x))
        chex.assert_trees_all_equal(y_dot, fun(*x_dot))
        left, right = (
            sum(np.vdot(a, b) for a, b in zip(*pair, strict=True))
            for pair in ((y, y_dot), (x_bar, x_dot))
        )
        np.testing.assert_allclose(left, right, rtol=1e-12)  # beyond 2^53
