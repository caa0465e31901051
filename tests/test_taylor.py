"""Taylor mode: series pushed through programs, against closed forms and against first derivatives.

Along a line `x + t v` the coefficients of the next order are a first derivative of those before:

    y_k = 1/k  d/dt y_(k-1)(x + t v)

where `y_(k-1)` is a function of the point.  So one `jvp` of a jet tells whether all of its orders
are right, to the last digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from jax import lax
from jax.experimental import jet as jax_jet
from jax.experimental.ode import odeint
from jax.extend.core import jaxprs_in_params

import functrans as ft

pytestmark = pytest.mark.usefixtures("float64")

X, V = np.array([0.3, 0.7, 1.2]), np.array([1.0, -0.5, 2.0])


def jet_along(fun: Callable, order: int) -> Callable:
    """`x, v -> [y_0, ..., y_order]`, for each leaf of the result."""

    def at(x, v):
        out, series = ft.jet(fun, (x,), (jax.tree.map(lambda dot: [dot], v),), order=order)
        leaves, tree = jax.tree.flatten(out)
        return [[y, *rest] for y, rest in zip(leaves, tree.flatten_up_to(series), strict=True)]

    return at


def assert_consistent(fun: Callable, x: Any, v: Any, order: int = 8, rtol: float = 1e-12) -> None:
    """Each order is the derivative of the one before it, and the first is the function itself."""
    jet = jet_along(fun, order)

    @jax.jit
    def both(x, v):
        columns, dots = ft.jvp(lambda x: jet(x, v), (x,), (v,))
        return columns, dots, jax.tree.leaves(fun(x))

    for (y, *rest), dots, value in zip(*both(x, v), strict=True):
        np.testing.assert_allclose(y, value, rtol=rtol)
        scale = np.max(np.abs(y), initial=0.0)
        for k, (got, dot) in enumerate(zip(rest, dots[:-1], strict=True), 1):
            scale = np.max(np.abs(got), initial=scale)
            np.testing.assert_allclose(got, dot / k, rtol=rtol, atol=rtol * scale)


# ---- closed forms --------------------------------------------------------------------------------

N = 8
ORDERS = np.arange(N + 1)
FACTORIALS = np.array([math.factorial(k) for k in ORDERS])
CLOSED_FORMS = {
    "exp": (jnp.exp, lambda x: np.exp(x) / FACTORIALS),
    "sin": (jnp.sin, lambda x: np.sin(x + ORDERS * np.pi / 2) / FACTORIALS),
    "cos": (jnp.cos, lambda x: np.cos(x + ORDERS * np.pi / 2) / FACTORIALS),
    "log": (jnp.log, lambda x: [np.log(x), *(-((-1 / x) ** ORDERS[1:]) / ORDERS[1:])]),
    "reciprocal": (lambda x: 1 / x, lambda x: (-1.0) ** ORDERS / x ** (ORDERS + 1)),
    "power": (
        lambda x: x**2.5,
        lambda x: [
            np.prod(2.5 - np.arange(k)) / math.factorial(k) * x ** (2.5 - k) for k in ORDERS
        ],
    ),
    "fifth": (lambda x: x**5, lambda x: [math.comb(5, k) * x ** max(5.0 - k, 0) for k in ORDERS]),
    "inverse_cube": (
        lambda x: x**-3,
        lambda x: [(-1) ** k * math.comb(k + 2, 2) * x ** (-3.0 - k) for k in ORDERS],
    ),
}


def test_closed_forms() -> None:
    """Along the line `x + t`, to order 8."""
    x = 0.7
    run = jax.jit(
        lambda x: {
            name: ft.jet(f, (x,), ([1.0],), order=N) for name, (f, _) in CLOSED_FORMS.items()
        }
    )
    for name, (y, rest) in run(x).items():
        want = CLOSED_FORMS[name][1](x)
        np.testing.assert_allclose([y, *rest], want, rtol=1e-13, atol=1e-15, err_msg=name)


def test_a_curve() -> None:
    """All coefficients of the input count: `exp` of the series of `log(1 + t)` has two."""
    series = [(-1.0) ** (k + 1) / k for k in range(1, 9)]
    y, rest = ft.jet(jnp.exp, (0.0,), (series,))
    np.testing.assert_allclose([y, *rest], [1, 1, 0, 0, 0, 0, 0, 0, 0], atol=1e-15)


def test_a_symmetric_product_and_an_even_start() -> None:
    """`x(t) = 2 + t^2`: the derivative of `x` begins with a zero."""
    for fun, want in (
        (lambda x: x * x, [4, 0, 4, 0, 1]),
        (lambda x: x**3, [8, 0, 12, 0, 6]),
        (lambda x: 1 / x, [1 / 2, 0, -1 / 4, 0, 1 / 8]),
        (lambda x: jnp.log(x / 2), [0, 0, 1 / 2, 0, -1 / 8]),
        (lambda x: lax.cond(x > 0, jnp.square, jnp.negative, x), [4, 0, 4, 0, 1]),
    ):
        y, rest = ft.jet(fun, (2.0,), ([0.0, 1.0],), order=4)
        np.testing.assert_allclose([y, *rest], want, atol=1e-15)


# ---- programs ------------------------------------------------------------------------------------


@jax.custom_jvp
def soft(x):
    return jnp.log1p(jnp.exp(x))


@soft.defjvp
def soft_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return soft(x), slope(x) * x_dot


@jax.custom_jvp
def slope(x):
    return 1 / (1 + jnp.exp(-x))


@slope.defjvp
def slope_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    s = slope(x)
    return s, s * (1 - s) * x_dot


@jax.custom_vjp
def clipped(x):
    return jnp.sin(x) * x


clipped.defvjp(lambda x: (clipped(x), x), lambda x, y: ((jnp.cos(x) * x + jnp.sin(x)) * y,))

M = np.array([[2.0, 0.3, 0.1], [0.2, 3.0, 0.4], [0.3, 0.5, 4.0]])


def matrix(x):
    return jnp.outer(x, x) + M


def solved(matvec, b):
    """By the function alone, which closes over what its matrix depends on."""

    def solve(matvec, b):
        return jnp.linalg.solve(jax.vmap(matvec, out_axes=1)(jnp.eye(b.size)), b)

    return lax.custom_linear_solve(matvec, b, solve, transpose_solve=solve)


PROGRAMS = {
    "scan": lambda x: lax.scan(lambda c, y: (c * jnp.sin(y) + c, c * y), 1.0, x),
    "scan_of_constants": lambda x: lax.scan(lambda c, _: (jnp.tanh(c) @ x * c, c), x, length=3),
    "late": lambda x: lax.fori_loop(0, 3, lambda i, c: (c[1], c[2], x * x), (x, 1.0 * X, 2.0 * X)),
    "while": lambda x: lax.while_loop(
        lambda c: c[0] < 3.0, lambda c: (c[0] + 1.0, c[1] * c[1] * 0.3 + x), (0.0, x)
    ),
    "cond": lambda x: lax.cond(x[0] > 0, lambda x: (x * x, X), lambda x: (1.0 * X, jnp.exp(x)), x),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
    "jit": ft.jit(lambda x: jnp.exp(x) / x),
    "custom_jvp": soft,
    "custom_vjp": clipped,
    "grad": ft.grad(lambda x: jnp.sum(jnp.sin(x) * x[0])),
    "vmap": jax.vmap(lambda x: jnp.arctan2(x, x * x + 1)),
    "hvp": lambda x: ft.hvp(lambda x: jnp.sum(jnp.tanh(x) ** 3), x, V),
    "jet": lambda x: ft.jet(jnp.sin, (x,), ([x, x * x],), order=2),
    "solve": lambda x: jnp.linalg.solve(matrix(x), x),
    "matrix_free": lambda x: solved(lambda y: matrix(x) @ y + jnp.exp(x) * y, x),
    "cholesky": lambda x: jnp.linalg.cholesky(matrix(x) @ matrix(x).T),
    "eigh": lambda x: jnp.linalg.eigh(matrix(x) + matrix(x).T)[0],
    "sqrtm": lambda x: jax.scipy.linalg.sqrtm(matrix(x) @ matrix(x).T).real,
    "gather": lambda x: x.at[jnp.array([0, 5])].get(mode="fill", fill_value=7.0) ** 2,
    "roll": lambda x: jnp.roll(x, 1) * jnp.sort(x) - jnp.cumprod(x),
    "softmax": jax.nn.softmax,
    "fft": lambda x: jnp.abs(jnp.fft.fft(x) * x) ** 2,
    "convolve": lambda x: jnp.convolve(x, jnp.exp(x)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str) -> None:
    order = {"sqrtm": 4, "eigh": 5, "hvp": 5}.get(name, 6)
    assert_consistent(PROGRAMS[name], X, V, order)


# ---- with other transforms -----------------------------------------------------------------------


def third(x):
    """`y_3` of the sine along `x + t`."""
    return ft.jet(jnp.sin, (x,), ([jnp.ones_like(x)],), order=3)[1][2]


@pytest.mark.parametrize("ad", [ft, jax])
def test_transforms_of_a_jet(ad: Any) -> None:
    want = np.sin(X) / 6  # of -cos(x) / 6
    for f in (third, ad.jit(third)):
        np.testing.assert_allclose(ad.jvp(f, (X,), (V,))[1], want * V)
        np.testing.assert_allclose(jax.vmap(ad.grad(f))(X), want)
        np.testing.assert_allclose(ad.vjp(f, X)[1](V)[0], want * V)


def test_a_jitted_function_has_jitted_jets() -> None:
    f = ft.jit(lambda x: jnp.exp(x) * x)
    derivatives = ft.derivatives(f, 3)
    assert hasattr(derivatives, "lower")
    np.testing.assert_allclose(
        derivatives(0.5, 2.0), [np.exp(0.5) * (0.5 + k) * 2.0**k for k in range(4)]
    )
    y, (y_1,) = ft.jet(f, [0.5], [[2.0]])
    np.testing.assert_allclose((y, y_1), ft.jvp(f, (0.5,), (2.0,)))


def test_pytrees_integers_and_complex_numbers() -> None:
    def f(p, z):
        return {"product": p["x"] ** p["n"] * z, "n": p["n"] + 1, "half": (p["x"] / 2,)}

    x, z = jnp.array([1.0, 2.0]), 1.0 + 2.0j
    args = {"x": x, "n": 2}, z
    out, series = jax.jit(lambda *args: ft.jet(f, args, ({"x": [x], "n": []}, [1j, 0j]), order=3))(
        *args
    )
    np.testing.assert_allclose(out["product"], x**2 * z)
    want = [2 * x**2 * z + 1j * x**2, x**2 * z + 2j * x**2, 1j * x**2]
    np.testing.assert_allclose(series["product"], want)
    np.testing.assert_allclose(series["half"][0], [x / 2, 0 * x, 0 * x])
    assert out["n"] == 3
    assert [y.dtype for y in series["n"]] == [jax.dtypes.float0] * 3


def test_how_many_coefficients() -> None:
    def count(series, **options):
        return len(ft.jet(lambda x, y: x * y, (1.0, 2.0), series, **options)[1])

    assert count(([1.0], [1.0, 2.0, 3.0])) == 3
    assert count(([], [])) == 0
    assert count(([1.0, 2.0], []), order=1) == 1
    assert count(((1.0, 2.0), ()), order=5) == 5
    assert len(ft.derivatives(jnp.sin, 0)(1.0, 1.0)) == 1


def test_types() -> None:
    """Those of first derivatives: of a Python number, of half precision, of a boolean."""
    for fun, x in (
        (lambda x: 2 * x / 3, 1.5),
        (jnp.sqrt, jnp.bfloat16(2)),
        (lambda x: x > 0, 1.0),
        (lambda x: lax.scan(lambda c, _: (c * 0.5, c), x, length=2), 1.5),
        (lambda x: lax.while_loop(lambda c: c < 3, lambda c: c * 2, x), 1.5),
        (jax.jit(lambda x: x**3), np.float32(2)),
    ):
        dot = 1.0 if type(x) is float else np.ones_like(x)
        (value, series), (y, y_dot) = ft.jet(fun, (x,), ([dot, dot],)), ft.jvp(fun, (x,), (dot,))
        assert jax.tree.map(jax.typeof, value) == jax.tree.map(jax.typeof, y)
        firsts = [rest[0] for rest in jax.tree.structure(y).flatten_up_to(series)]
        for of_second in jax.tree.structure(y).flatten_up_to(series):
            assert jax.typeof(of_second[0]) == jax.typeof(of_second[1])
        assert [*map(jax.typeof, firsts)] == [*map(jax.typeof, jax.tree.leaves(y_dot))]


@jax.custom_jvp
def halved(x):
    return x / 2


halved.defjvps(lambda x_dot, y, x: x_dot * np.float64(0.5))


def test_weak_types_in_loops_and_branches() -> None:
    """A rule of the user's gives a tangent that has not the weak type of the value."""

    def loop(x):
        return lax.while_loop(lambda c: c > 1, halved, x)

    def branch(x):
        return lax.cond(x > 0, halved, lambda x: x / 2, x)

    for fun, want in ((loop, [0.75, 0.25]), (branch, [1.5, 0.5])):
        y, rest = ft.jet(fun, (3.0,), ([1.0],))
        np.testing.assert_allclose([y, *rest], want)
        assert jax.typeof(y) == jax.typeof(rest[0])


def test_the_convention_of_jax() -> None:
    """`jax.experimental.jet.jet`, with `factorial=True`."""

    def f(x, y):
        return {"a": jnp.sin(x) * y, "b": jnp.tanh(x @ y) / jnp.exp(y)}

    args, series = (X, V), ([V, X, V], [X, X, X])
    got = ft.jet(f, args, series, factorial=True)
    chex.assert_trees_all_close(got, jax_jet.jet(f, args, series), rtol=1e-12)


# ---- what is written -----------------------------------------------------------------------------


def operations(fun: Callable, order: int, x: Any = 0.5, curved: bool = False) -> int:
    """How many there are, but for zeros that are written out."""

    def count(program):
        kept = [e for e in program.eqns if e.primitive is not lax.broadcast_in_dim_p]
        inner = [p for e in kept for p in jaxprs_in_params(e.params)]
        return len(kept) + sum(count(getattr(p, "jaxpr", p)) for p in inner)

    def all_move(x):
        series = [jnp.ones_like(x)] * (order if curved else 1)
        return ft.jet(fun, (x,), (series,), order=order)

    return count(ft.make_jaxpr(all_move)(x).jaxpr)


def test_what_is_linear_costs_nothing() -> None:
    """Coefficients that are known to be zero are not computed."""
    assert operations(lambda x: 3.0 * jnp.reshape(x, (1,)), 8) == 4
    assert operations(lambda x: x * x, 8) == operations(lambda x: x * x, 2) < 6


@pytest.mark.parametrize(
    "fun",
    [
        *(jnp.exp, jnp.tanh, jnp.sin, jnp.log, jnp.sqrt, jax.nn.sigmoid, jax.nn.gelu, lax.erf_inv),
        *(lambda x: 1 / (1 + jnp.exp(x)), lambda x: x**-3, lambda x: jnp.arctan(x) ** 5),
        lambda x: x**2.5,
    ],
)
def test_growth_is_quadratic(fun: Callable) -> None:
    few, some, many = (operations(fun, order, curved=True) for order in (4, 8, 16))
    assert many - some <= 4.5 * (some - few)
    assert many < 3000


def test_functions_that_need_each_other() -> None:
    """Sine and cosine: each is computed once."""
    assert operations(jnp.sin, 8) < 60
    assert operations(lambda x: jnp.sin(x) * jnp.cos(x), 8) < 200


def test_a_perceptron() -> None:
    """The slope of tanh has the integral of `-2 y y'`, half a square; and no coefficient is
    multiplied by its index to be divided by it again, also not behind a linear layer."""

    def network(x):
        for _ in range(3):
            x = jnp.tanh(M @ x)
        return x

    assert operations(network, 6, X) <= 213
    assert operations(network, 10, X) <= 493


def test_a_user_rule_is_kept_and_its_answer_is_found() -> None:
    """The custom rules above call themselves."""
    assert operations(soft, 8) < 300
    y, rest = ft.jet(wrong_sine, (0.0,), ([1.0],), order=3)
    np.testing.assert_allclose([y, *rest], [0, 7, 0, 0])


@jax.custom_jvp
def wrong_sine(x):
    return jnp.sin(x)


wrong_sine.defjvps(lambda x_dot, y, x: 7 * x_dot)


def test_an_effect_happens_once() -> None:
    seen: list = []

    def f(x):
        jax.debug.callback(lambda x: seen.append(float(x)), x)
        return jnp.sin(x)

    jax.block_until_ready(ft.jet(f, (0.5,), ([1.0],), order=4))
    jax.effects_barrier()
    assert seen == [0.5]


def test_a_long_program_is_no_deep_recursion() -> None:
    def f(x):
        for _ in range(400):
            x = 2 * jnp.sin(x) + 1
        return x

    y, rest = ft.make_jaxpr(lambda x: ft.jet(f, (x,), ([1.0],), order=2), return_shape=True)(1.0)[1]
    assert [y.shape, *(x.shape for x in rest)] == [(), (), ()]


# ---- differential equations ----------------------------------------------------------------------


def solution(field: Callable, x: Any, order: int) -> list:
    """The Taylor coefficients of the solution of `x' = f(x)`: `x_(k+1) = f(x)_k / (k + 1)`."""
    series = [field(x)]
    for k in range(1, order):
        series.append(ft.jet(field, (x,), (series,))[1][-1] / (k + 1))
    return [x, *series]


def integrate(field: Callable, x: Any, time: float, steps: int, order: int) -> Any:
    h = time / steps

    def step(x, _):
        return sum(c * h**k for k, c in enumerate(solution(field, x, order))), None

    return jax.jit(lambda x: lax.scan(step, x, length=steps)[0])(x)


def test_a_pendulum_comes_back() -> None:
    """After one period, which is `2 pi / M(1, cos(a / 2))` with the mean of Gauss."""
    start = np.array([2.0, 0.0])
    a, b = 1.0, math.cos(start[0] / 2)
    for _ in range(6):
        a, b = (a + b) / 2, math.sqrt(a * b)
    period = 2 * math.pi / a
    end = integrate(lambda x: jnp.stack([x[1], -jnp.sin(x[0])]), start, period, 60, 14)
    np.testing.assert_allclose(end, start, atol=1e-12)


def test_an_initial_value_problem() -> None:
    """`odeint` goes through its steps, whose sizes stay: y' = -a y^2 has a known solution."""

    def final(y, a, t):
        return odeint(lambda y, t, a: -a * y**2, y, jnp.array([0.0, 0.4, 1.0]) * t, a)[-1]

    def solution(y, a, t):
        return y / (1 + a * y * t)

    at, bent = (2.0, 0.5, 1.5), ([1.0, 0.5], [0.3, -0.2], [])

    def along(f):
        return lambda s: f(*[x + s for x in at])

    def nested(f, count):
        return nested(lambda s: ft.jvp(f, (s,), (1.0,))[1], count - 1) if count else f(0.0)

    def all_of(f):
        curve, straight = ft.jet(f, at, bent, order=3), ft.derivatives(lambda y: f(y, *at[1:]), 2)
        return curve, straight(2.0, 1.0), ft.laplacian(lambda x: f(*x, at[2]))(at[:2])

    got, want = ft.jit(lambda: (all_of(final), all_of(solution)))()
    chex.assert_trees_all_close(got, want, rtol=1e-5, atol=1e-6)
    # Between two steps the solver interpolates by a polynomial; it is what moves with the time.
    got, want = ft.jit(
        lambda: (
            ft.derivatives(along(final), 2)(0.0, 1.0),
            [nested(along(final), k) for k in range(3)],
        )
    )()
    chex.assert_trees_all_close(got, want, rtol=1e-9)


def test_lorenz_96() -> None:
    """A chaotic system in which neighbours meet."""

    def field(x):
        return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + 8.0

    start = 8.0 + 0.01 * np.arange(12.0)
    got = integrate(field, start, 0.5, 25, 14)
    options = {"method": "DOP853", "rtol": 3e-14, "atol": 1e-14}
    want = scipy.integrate.solve_ivp(lambda _, x: np.asarray(lorenz(x)), (0, 0.5), start, **options)
    np.testing.assert_allclose(got, want.y[:, -1], rtol=1e-12)


def lorenz(x: np.ndarray) -> np.ndarray:
    return (np.roll(x, -1) - np.roll(x, 2)) * np.roll(x, 1) - x + 8.0


# ---- mistakes ------------------------------------------------------------------------------------


# fmt: off
ONE = ((1.0,), ([1.0],))
MISTAKES: list[tuple[tuple, tuple, dict, type, str]] = [
    ((1.0,), ([1.0], [1.0]), {}, TypeError, "one entry for each argument, .* 1 and 2"),
    (({"a": 1.0},), ({"b": [1.0]},), {}, TypeError, "structure of the primals, with a list of"),
    ((1.0,), (1.0,), {}, TypeError, r"series\[0\] must be a list of coefficients, .* is 1.0"),
    ((1.0,), (np.ones(3),), {}, TypeError, r"list of coefficients, .* an array, float64\[3\]"),
    ((1.0,), ([np.ones(2)],), {}, ValueError, r"series\[0\]\[0\] must have the type float64\[\]"),
    ((1.0,), ([1.0, 1j],), {}, TypeError, r"series\[0\]\[1\] must have the type"),
    ((1.0,), ([None],), {}, TypeError, r"series\[0\]: None is not an array or a number"),
    (({"n": 1},), ({"n": [1]},), {}, TypeError, r"series\[0\]\['n'\]\[0\].*integer has no deriv"),
    (("text",), ([],), {}, TypeError, r"jet: primals\[0\] is 'text' of type str"),
    (*ONE, {"order": -1}, ValueError, "jet: order must not be negative, but it is -1"),
    (*ONE, {"order": 2.0}, TypeError, "jet: order must be an integer, but it is 2.0"),
    ((1.0,), np.ones(3), {}, TypeError, r"series must be a tuple .* an array, float64\[3\]"),
    (1.0, ([1.0],), {}, TypeError, "jet: primals must be a tuple or a list .* got 1.0 of type"),  # type: ignore
]
# fmt: on


@pytest.mark.parametrize(("primals", "series", "options", "error", "text"), MISTAKES)
def test_mistakes(primals: Any, series: Any, options: dict, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        ft.jet(lambda x: x, primals, series, **options)


def forgotten(x):
    jnp.sin(x)


WRONG: Any = None
# fmt: off
OTHER_MISTAKES: list[tuple[Callable, type, str]] = [
    (lambda: ft.derivatives(jnp.sin, -1), ValueError, "derivatives: order must not be negative"),
    (lambda: ft.derivatives(jnp.sin, WRONG), TypeError, "order must be an integer, but it is None"),
    (lambda: ft.derivatives(WRONG, 1), TypeError, "derivatives expects a function"),
    (lambda: ft.derivatives(jnp.sin, 1)(1.0, {"v": 1.0}), TypeError, "the direction must have"),
    (lambda: ft.derivatives(jnp.sin, 1)(X, 1.0), ValueError, "the direction must have the type"),
    (lambda: ft.derivatives(jnp.sin, 1)(1, 1), TypeError, "integer has no derivative"),
    (lambda: ft.derivatives(jnp.sin, 1)(*[1.0]), TypeError, "^derivatives_at.* argument: 'v'"),
    (lambda: ft.derivatives(forgotten, 1)(1.0, 1.0), ValueError, "is a `return` missing?"),
    (lambda: ft.jet(forgotten, *ONE), ValueError, "^jet needs .* is a `return` missing?"),
    (lambda: ft.jet(ft.jit(forgotten), *ONE), ValueError, "is a `return` missing?"),
]
# fmt: on


@pytest.mark.parametrize(("make", "error", "text"), OTHER_MISTAKES)
def test_other_mistakes(make: Callable, error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        make()
