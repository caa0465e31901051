"""Loops, branches, and functions inside functions."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import linear_call
from jax.experimental import io_callback
from jax.extend.core.primitives import closed_call_p

from rule_cases.table import F, apart, case, integers

# Branches.


def branches(x, y):
    return lax.cond(jnp.sum(x) > 0, lambda: jnp.sin(x) * y, lambda: x * jnp.exp(-y))


case("cond", lambda x, y: lax.cond(x[0].real > 0, jnp.multiply, jnp.add, x, y), F(2), F(2))
case("cond", branches, F(3, low=0.1), F(3))
case("cond", branches, F(3, high=-0.1), F(3))
# What moves in one branch is constant, an input, or absent in the other.
case("cond", lambda x: lax.cond(x[0] > 9, jnp.ones_like, jnp.square, x), F(2))
case("cond", lambda x: lax.cond(x[0] > -9, jnp.ones_like, jnp.square, x), F(2))


def constant_or_square(n, x):
    return lax.cond(n > 0, lambda x: (n, x), lambda x: (2 * n, x * x), x)


case("cond", constant_or_square, integers(0, 2), F(2), complex=True)
# Residuals of different types and numbers, shared places, a residual that is an output.
CHOICES = (
    lambda x, y: (jnp.exp(x), y.sum()),
    lambda x, y: (jnp.sin(x) * jnp.cos(y), jnp.sum(x > 0) * y[0]),
    lambda x, y: (x, x[0] ** 3 / y[1]),
)


def choose(i, x, y):
    return lax.switch(i, CHOICES, x, y)


def choose_each(x, y):
    """Under `vmap` over the choice all branches are taken."""
    return jax.vmap(choose, (0, None, None))(jnp.arange(3), x, y)


def nested(x):
    return lax.cond(x > 0, lambda: lax.cond(x > 9, lambda: x, lambda: x**2), lambda: x)


for choice in range(3):
    case("cond", partial(choose, choice), F(2), apart(2))
case("select_n", choose_each, F(2), apart(2))
case("cond", nested, F(low=0.1))

# Loops that end when a condition is met: JAX has no reverse mode.


def newton(a):
    """The square root of `a`."""

    def unfinished(state):
        return state[0] < 6

    return lax.while_loop(unfinished, lambda s: (s[0] + 1, (s[1] + a / s[1]) / 2), (0, a))[1]


def powers(n, x, y):
    """An integer in the carry, one that grows, and one that takes what it was."""

    def body(state):
        i, product, (last, total) = state
        return i + 1, product * x, (product, total + last * y)

    start = (0, jnp.ones_like(x), (jnp.zeros_like(y), y))
    return lax.while_loop(lambda state: state[0] < n, body, start)


def repeated(n, x):
    return lax.fori_loop(0, n, lambda i, c: jnp.sin(c) + i * x, x)


case("while", newton, F(low=0.5), jax_modes=("fwd",))
case("while", powers, integers(3, 4), F(2), F(2), jax_modes=("fwd",), complex=True)
case("while", repeated, integers(2, 5), F(2), jax_modes=("fwd",))
# Nothing that moves enters the loop, or leaves it.
case("while", lambda n, x: x * lax.fori_loop(0, n, lambda i, c: c + i, 0), integers(2, 5), F(2))

# Loops of a known number of steps, in all their forms.

case("scan", partial(repeated, 3), F(2))
case("scan", lambda x: lax.scan(lambda c, t: (None, jnp.sin(t)), None, x), F(3))
case("scan", lambda x: lax.scan(lambda c, t: (c * jnp.sin(c), None), x, None, length=3)[0], F(2))
case("scan", lambda n, x: lax.scan(lambda i, t: (i + 1, t * i), n, x), integers(0, 3), F(3))
case("mul", lambda x: lax.associative_scan(jnp.multiply, x, reverse=True), F(4), complex=True)


def with_branches(x):
    def body(c, t):
        return lax.cond(t > 0, lambda: jnp.sin(c) * t, lambda: c * c), c

    return lax.scan(body, x[0], x)


def with_loops(x, ts):
    def body(c, t):
        steps = lax.convert_element_type(0 * t, int) + 2
        return lax.fori_loop(0, steps, lambda i, u: u * t, c), c

    return lax.scan(body, x, ts)


def recurrent(w, xs):
    """`cos(w)` is the same in each step; `x` and `h` are an input and an output of each."""

    def step(c, x):
        h = jnp.tanh(jnp.cos(w) * c + x * jnp.exp(x))
        return h, h

    return lax.scan(step, jnp.zeros_like(w), xs)


case("scan cond", with_branches, apart(4))
case("scan while", with_loops, F(), F(3), jax_modes=("fwd",))
case("scan", recurrent, F(2), F(3, 2), half=False)

# Solutions of linear systems and of equations.


def by_cholesky(a, b):
    """A symmetric system whose solver tells more than the solution."""
    a = a @ a.T + 3 * jnp.eye(len(a), dtype=a.dtype)

    def solve(_, b):
        factor = jnp.linalg.cholesky(a)
        return jax.scipy.linalg.cho_solve((factor, True), b), {"factor": factor}

    return lax.custom_linear_solve(lambda x: a @ x, b, solve, symmetric=True, has_aux=True)[0]


def dominant(n):
    """A matrix that is far from singular."""
    return lambda rng, dtype: F(n, n)(rng, dtype) + 5 * jnp.eye(n, dtype=dtype)


case("custom_linear_solve", jnp.linalg.solve, dominant(2), F(2), complex=True, half=False)
case("custom_linear_solve", jnp.linalg.solve, dominant(2), F(2, 3), half=False)
case("custom_linear_solve", by_cholesky, F(2, 2), F(2), half=False)

# Calls.


def closed(x, y):
    jaxpr = jax.make_jaxpr(lambda x, y: [jnp.sin(x) * y])(x, y)
    params = closed_call_p.get_bind_params({"call_jaxpr": jaxpr})
    # JAX 0.10 does not take NumPy arrays for the tangents and cotangents of the call.
    outs = closed_call_p.bind(jnp.exp(x), jnp.exp(y), **params)
    return jnp.sin(outs[0])


@custom_vmap
def batched_by_rule(x, y):
    return jnp.sin(x) * y, x


@batched_by_rule.def_vmap
def _(size, batched, x, y):
    return (jnp.sin(x) * y, x), (any(batched), batched[0])


def twice(nothing, x):
    return 2 * x


def scaled(x):
    """The factor is a residual."""
    return linear_call(lambda r, x: r * x, lambda r, y: r * y, jnp.sin(x), x * x)


# Since JAX 0.11 it is the same as `eval_jaxpr`.
case(closed_call_p.name, closed, F(2), F(2), complex=True)
case("composite", lax.composite(lambda x: jnp.sin(x) ** 2, name="tests.square"), F(2), jax_modes=())
# JAX has neither a linearization nor a reverse mode for `custom_vmap`.
case("custom_vmap_call", batched_by_rule, F(2), F(2), jax_modes=())
case("sin", lambda x, y: jax.vmap(batched_by_rule, (0, None))(x, y[0]), F(2), F(2))
# JAX takes the residuals of a `linear_call` for constants.
case("linear_call", lambda x: linear_call(twice, twice, (), x * x), F(2), complex=True, vmap=False)
case("linear_call", scaled, F(2), complex=True, jax_modes=(), vmap=False)

# The root of an equation: one primitive since JAX 0.11, a function with a rule before.


def cube_root(a):
    def solve(f, guess):
        return lax.fori_loop(0, 20, lambda i, y: y - f(y) / (3 * y**2), guess)

    return lax.custom_root(lambda y: y**3 - a, a, solve, lambda g, y: y / g(jnp.ones_like(y)))


root_primitive = "custom_jvp_call" if jax.__version_info__ < (0, 11) else "call_hi_primitive"
case(root_primitive, cube_root, F(3, low=0.5, high=2.0), half=False)


@jax.custom_vjp
def optimized(x):
    return jnp.sin(x)


optimized.defvjp(
    lambda x: (jnp.sin(x), x), lambda x, y_bar: (jnp.cos(x) * y_bar,), optimize_remat=True
)
# What JAX's reverse mode makes of it; JAX has no transpose for that.
case("remat_opt", lambda x: jax.vjp(optimized, x)[0] * x, F(3), jax_modes=())

# What is done for its effect. A callback takes and gives what has no derivative.


def called_back(callback, **options):
    def fun(n, x):
        result = jax.ShapeDtypeStruct(n.shape, n.dtype)
        return x * callback(lambda n: np.asarray(n) + 1, result, n, **options)

    return fun


case("debug_print", lambda n: (jax.debug.print("{}", n), n)[1], integers(0, 9))
case("debug_callback", lambda n: (jax.debug.callback(lambda n: None, n), n)[1], integers(0, 9))
case("dce_sink", lambda n: (lax.dce_sink(n), n)[1], integers(0, 9))
case("pure_callback", called_back(jax.pure_callback, vmap_method="sequential"), integers(0, 9), F())
case("io_callback", called_back(io_callback), integers(0, 9), F())
