"""Where a program is cut in two so that the least passes: on five lines, and on large programs.

The cut itself, what may be done again and what not, and the bytes that are kept in loops, and
between `vjp(jit(f))` and its pullback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import io_callback
from jax.extend.core import ClosedJaxpr, jaxprs_in_params

import functrans as ft
from functrans import jaxpr as jx
from functrans.programs import cuts
from functrans.programs.cuts import FIXED, STACKED, THERE, Prices, cut, sink_side, size, work
from functrans.rules import RULES
from functrans.tracer import stage

# ---- the network ---------------------------------------------------------------------------------


def test_a_minimum_cut() -> None:
    """Three ways from the source (0) to the sink (1): their narrowest edges are cut."""
    edges = {(0, 2): None, (2, 3): 5, (3, 1): 3, (0, 4): 2, (4, 1): 7, (0, 5): None, (5, 1): 4}
    side = sink_side(edges)
    assert side == {1, 4}
    assert sum(c or 0 for (a, b), c in edges.items() if a not in side and b in side) == 3 + 2 + 4


def test_of_equal_cuts_the_one_nearest_to_the_sink() -> None:
    """So that the least is made again; and the same one however the edges are listed."""
    edges = {(0, 2): 4, (2, 3): 4, (3, 4): 4, (4, 1): None}
    backwards = dict(reversed(edges.items()))
    assert sink_side(edges) == sink_side(backwards) == {1, 4}


def test_capacities_may_be_large() -> None:
    """Those of SciPy have 32 bits: a sum of many gigabytes is counted in larger units."""
    big = 3 * 2**33
    edges = {(0, 2): None, (2, 3): big, (3, 1): big + 2**30, (0, 4): 1, (4, 1): None}
    assert sink_side(edges) == {1, 3, 4}


def test_nothing_may_flow() -> None:
    assert sink_side({(2, 1): None}) == {1, 2}


# ---- what may be done again ----------------------------------------------------------------------


def only_equation(fun: Callable, *args: Any) -> Any:
    (equation,) = staged(fun, *args).jaxpr.eqns
    return equation


def staged(fun: Callable, *args: Any) -> ClosedJaxpr:
    """The program of a function that returns a list or a tuple."""
    avals = [jax.typeof(x) for x in args]
    return stage(lambda *xs: (list(fun(*xs)), None), avals, jx.debug_info("test", fun))[0]


X = np.linspace(0.1, 1.0, 128, dtype=np.float32).reshape(32, 4)
W = np.linspace(-1.0, 1.0, 16, dtype=np.float32).reshape(4, 4)


@jax.custom_jvp
def slope(x):
    return lax.exp(-lax.abs(x)) * x


slope.defjvp(lambda xs, dots: (slope(*xs), dots[0]))


def test_what_it_costs_to_do_an_equation_again() -> None:
    """In eighths of a byte that is kept."""
    table = [
        (lambda x: [lax.mul(x, x)], 0),
        (lambda x: [lax.broadcast_in_dim(x, (3, 32, 4), (1, 2))], 0),
        (lambda x: [lax.exp(x)], 4 * 512),  # half of what it costs to keep 512 bytes
        (lambda x: [lax.cos(x)], 16 * 512),
        (lambda x: [lax.exp(x[0])], None),  # few numbers
        (lambda x: [lax.reduce_sum(x, (0,))], 512),
        (lambda x: [slope(x)], 4 * 512),
        (lambda x: [slope(x[0])], None),
        (lambda x: jax.jit(lambda x: [lax.tanh(x) * lax.exp(x)])(x), 8 * 512),
        (lambda x: [lax.cond(True, lax.exp, lax.neg, x)], 4 * 512),
        (lambda x: [lax.dot(x, W)], None),
        (lambda x: jax.jit(lambda x: [lax.sin(x) @ W])(x), None),
        (lambda x: [lax.sort(x)], None),
        (lambda x: [lax.cumsum(x)], None),
        (lambda x: [lax.fori_loop(0, 3, lambda _, x: lax.sin(x), x)], None),
        (lambda x: [jax.checkpoint(lax.sin)(x)], None),
        (lambda x: [lax.lgamma(x)], None),
        (lambda x: [io_callback(lambda x: x, jax.typeof(x), x)], None),
        (lambda x: [lax.optimization_barrier(x)], None),
        (lambda x: [lax.rng_bit_generator(np.zeros(4, np.uint32), (2,))[1]], None),
    ]
    for fun, cost in table:
        equation = staged(fun, X).jaxpr.eqns[-1]
        assert work(equation) == cost, equation
    with jax.enable_x64(True):  # a function of wide numbers costs as much as to keep them
        assert work(only_equation(lambda x: [lax.exp(x)], X.astype(float))) == 8 * 1024


def test_the_names_are_those_of_primitives() -> None:
    """Which this version of JAX has; `call` and `closed_call` are found where they are met."""
    listed = cuts.IN_PASSING | cuts.FUNCTIONS | cuts.SINES | cuts.REDUCTIONS | cuts.CALLS
    assert listed - {primitive.name for primitive in RULES} <= {"call", "closed_call"}


# ---- programs of five lines ----------------------------------------------------------------------


def residuals_of(first: ClosedJaxpr, count: int) -> list[str]:
    """What makes each of the residuals, or `input`."""
    makers: dict[Any, str] = {v: e.primitive.name for e in first.jaxpr.eqns for v in e.outvars}
    return [makers.get(v, "input") for v in first.jaxpr.outvars[count:]]


def doubling(avals: Any) -> ClosedJaxpr:
    """A second half of these residuals."""
    info = jx.debug_info("test", doubling)
    return stage(lambda *xs: ([2.0 * x for x in xs], None), avals, info)[0]


def check(fun: Callable, count: int, prices: Prices, *args: Any, want: list[str]) -> int:
    """Cut `fun`, whose first `count` results are its own, before a second half that reads the rest.

    What is kept is to be made by the operations in `want`. Returns how many bytes that is.
    """
    first = staged(fun, *args)
    second = doubling(first.out_avals[count:])
    shorter, longer = cut(first, second, prices)
    assert residuals_of(shorter, count) == want
    whole = jx.evaluate(first, *args)
    outs = jx.evaluate(shorter, *args)
    made = jx.evaluate(longer, *outs[count:])
    chex.assert_trees_all_close(outs[:count], whole[:count], rtol=1e-6)
    chex.assert_trees_all_close(made, [2 * x for x in whole[count:]], rtol=1e-6)
    assert cut(first, second, prices)[0] is shorter  # it is derived once
    return sum(map(size, shorter.jaxpr.outvars[count:]))


CARRY = Prices((STACKED,), (STACKED,))


def test_what_arithmetic_makes_of_others_is_made_again() -> None:
    def fun(c):
        s = lax.tanh(c)
        slope = lax.mul(s, lax.sub(1.0, s))
        return lax.dot(s, W), s, slope, lax.mul(slope, 3.0)

    assert check(fun, 1, CARRY, X, want=["tanh"]) == 512


def test_a_sine_is_made_again_if_its_loop_needs_it_and_else_kept() -> None:
    """Each kernel that reads a sine computes it: to keep one that the loop needs saves nothing."""

    def fun(c):
        z = lax.dot(c, W)
        s = lax.sin(z)
        return lax.dot(s, W), z, s, lax.cos(z)

    check(fun, 1, CARRY, X, want=["dot_general", "cos"])


def test_a_function_of_few_numbers_is_kept() -> None:
    def fun(c):
        z = lax.dot(c, W)
        y = lax.tanh(z)
        return lax.dot(y, W), z, y, lax.exp(z)

    check(fun, 1, CARRY, X, want=["dot_general"])
    check(fun, 1, CARRY, X[:2], want=["dot_general", "tanh", "exp"])


def test_of_several_functions_of_one_value_the_value_is_kept() -> None:
    def fun(c):
        z = lax.dot(c, W)
        y = lax.tanh(z)
        return y, y, lax.exp(lax.neg(lax.abs(z)))

    check(fun, 1, CARRY, X, want=["dot_general"])


def test_one_function_is_kept_and_not_its_origin() -> None:
    """Which costs the same, and less work."""

    def fun(c):
        y = lax.tanh(lax.dot(c, W))
        return lax.mul(y, y), y

    check(fun, 1, CARRY, X, want=["tanh"])


def test_products_are_not_made_again() -> None:
    """Though there is one array from which all three could be."""

    def fun(c):
        p = lax.dot(c, W)
        q = lax.dot(lax.tanh(p), W)
        return q, lax.exp(p), lax.tanh(p), lax.exp(q), lax.tanh(q)

    check(fun, 1, CARRY, X, want=["dot_general", "dot_general"])


def test_of_a_softmax_the_sums_are_kept() -> None:
    """They are small, and to make them again one would have to read much."""
    wide = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(2, 32)

    def fun(c):
        z = lax.rem(lax.dot(c, wide.T @ wide), 2.0)
        p = lax.exp(z)
        total = lax.reduce_sum(p, (1,))[:, None]
        p = lax.div(p, total)
        return lax.dot(p, wide.T), p, lax.mul(p, z), lax.div(z, total)

    kept = check(fun, 1, CARRY, wide, want=["rem", "broadcast_in_dim"])
    assert kept == 4 * (2 * 32 + 2)


def test_what_is_the_same_in_each_step_costs_nothing() -> None:
    """And what is at hand in each step costs little: both serve to make others."""

    def fun(k, c, x):
        s = lax.tanh(k)
        z = lax.dot(c, W)
        return z, lax.mul(x, s), lax.mul(lax.exp(x), z), lax.mul(lax.mul(z, x), s)

    prices = Prices((FIXED, STACKED, THERE), (STACKED,))
    check(fun, 1, prices, X, X + 1, X + 2, want=["tanh", "dot_general", "input"])


def test_a_result_that_is_there_serves() -> None:
    def fun(c):
        y = lax.tanh(c)
        return c, y, lax.mul(y, y), lax.sub(1.0, y)

    check(fun, 2, Prices((STACKED,), (STACKED, THERE)), X, want=["tanh"])


def test_a_broadcast_is_made_again() -> None:
    """Of what is the same in each step, too: what is larger than its origin is not kept."""

    def fun(k, c):
        wide = lax.broadcast_in_dim(k, c.shape, (1,))
        return lax.dot(lax.add(c, wide), W), lax.add(c, wide), lax.mul(c, wide)

    prices = Prices((FIXED, STACKED), (STACKED,))
    check(fun, 1, prices, X[0], X, want=["input", "input"])


def test_a_call_of_what_is_cheap_is_made_again_as_a_call() -> None:
    def fun(c):
        z = lax.dot(c, W)
        return z, jax.jit(lambda z: lax.tanh(z) * lax.exp(z))(z), slope(z), lax.exp(z)

    check(fun, 1, CARRY, X, want=["dot_general"])


def test_a_call_of_what_is_not_is_looked_into() -> None:
    @jax.jit
    def layer(c):
        z = lax.dot(lax.tanh(c), W)
        return lax.tanh(z), lax.exp(z), lax.exp(c)

    check(lambda c: layer(c)[:1] + layer(c), 1, CARRY, X, want=["exp", "dot_general"])


def test_of_an_equation_one_result_may_be_kept_and_another_made_again() -> None:
    """The small one, since to make it would take a function of the large one."""
    both = jax.jit(lambda z: (lax.tanh(z), lax.reduce_sum(lax.mul(z, z), (0, 1))))

    def fun(c):
        z = lax.dot(c, W)
        large, small = both(z)
        return lax.dot(large, W) * small, lax.exp(z), large, small, lax.cosh(z)

    kept = check(fun, 1, CARRY, X, want=["jit", "dot_general"])
    assert kept == 512 + 4


def test_what_has_an_effect_is_done_once() -> None:
    asked = []

    def fun(c):
        z = io_callback(lambda c: (asked.append(1), c)[1], jax.typeof(c), c)
        return c, lax.tanh(z), lax.exp(z), lax.mul(z, 2.0)

    first = staged(fun, X)
    second = doubling(first.out_avals[1:])
    shorter, longer = cut(first, second, CARRY)
    assert residuals_of(shorter, 1) == ["io_callback"]
    assert not longer.jaxpr.effects


# ---- loops and compiled functions ----------------------------------------------------------------


def array(*shape: int) -> jax.Array:
    rng = np.random.default_rng(list(shape))
    return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[-1]), jnp.float32)


def loop(wrap: Callable, w: Any, x: Any, layers: int = 3, steps: int = 40) -> Any:
    """A loop that is bound by memory: of three products a step, and much between them."""

    @wrap
    def layer(c):
        return jnp.tanh(jnp.sin(c) @ w + c / 2) * jax.nn.gelu(c) + c

    def step(c, _):
        for _ in range(layers):
            c = layer(c)
        return jnp.sin(c), None

    return jnp.mean(lax.scan(step, x, None, length=steps)[0] ** 2)


def numbers(fun: Callable, *args: Any) -> Any:
    """Of a program whose numbers alone are looked at: XLA need not optimize it."""
    options = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}
    return jax.jit(fun, compiler_options=options)(*args)


def temporary_memory(fun: Callable, *args: Any) -> int:
    memory: Any = jax.jit(fun).lower(*args).compile().memory_analysis()
    return memory.temp_size_in_bytes


WRAPS: dict[str, Callable] = {"plain": lambda f: f, "jit": jax.jit}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_loop_keeps_the_products_and_its_carry(wrap: str) -> None:
    """And the slopes of the sines: eight arrays a step, also where the layers are calls."""

    def fun(w, x):
        return loop(WRAPS[wrap], w, x)

    args = array(16, 16), array(32, 16)
    sizes = [r.shape for r in ft.saved_residuals(fun, *args) if r.shape[:1] == (40,)]
    assert sizes == [(40, 32, 16)] * 8
    assert temporary_memory(ft.grad(fun), *args) <= 0.35 * temporary_memory(jax.grad(fun), *args)


def along(f: Callable, w: Any) -> list:
    """The second derivative along one direction: mode after mode, ours and JAX's."""
    v = jnp.cos(w)
    reverse = [
        outer.grad(lambda w, inner=inner: jnp.vdot(inner.grad(f)(w), v))(w)
        for outer, inner in ((ft, ft), (ft, jax), (jax, ft))
    ]
    return [ft.hvp(f, w, v), jax.jvp(ft.grad(f), (w,), (v,))[1], *reverse]


def test_a_loop_that_keeps_less_is_differentiated_again_and_batched() -> None:
    w, xs = array(8, 8), array(2, 4, 8)

    def f(w, x=xs[0]):
        return loop(jax.jit, w, x, 1, 4)

    def all_of(w, xs):
        want = jax.jvp(jax.grad(f), (w,), (jnp.cos(w),))[1]
        return along(f, w), want, [jax.vmap(ad.grad(f), (None, 0))(w, xs) for ad in (ft, jax)]

    found, want, batches = numbers(all_of, w, xs)
    for got in found:
        chex.assert_trees_all_close(got, want, rtol=2e-3, atol=2e-5)
    chex.assert_trees_all_close(*batches, rtol=1e-3, atol=1e-6)


def network(layers: Any, x: Any) -> Any:
    for w, b in layers:
        x = jax.nn.gelu(x @ w + b)
    return jnp.mean(x**2)


LAYERS = [(array(16, 16), array(16)) for _ in range(3)]
BATCH = array(64, 16)


def bytes_kept(linear: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(linear))


@pytest.mark.parametrize("jit", [ft.jit, jax.jit])
def test_a_pullback_keeps_at_most_half_of_what_that_of_jax_keeps(jit: Callable) -> None:
    """The input of each product and of each gelu; and what is listed is what is kept."""
    y, pullback = ft.vjp(jit(network), LAYERS, BATCH)
    want, theirs = jax.vjp(jax.jit(network), LAYERS, BATCH)
    assert bytes_kept(pullback) <= 0.5 * bytes_kept(theirs)
    per_layer = 2 * BATCH.nbytes + LAYERS[0][0].nbytes
    assert bytes_kept(pullback) <= 3 * per_layer + 64
    listed = ft.saved_residuals(jit(network), LAYERS, BATCH)
    assert bytes_kept(pullback) == sum(residual.size for residual in listed)
    chex.assert_trees_all_close(y, want, rtol=1e-6)
    chex.assert_trees_all_close(pullback(y), theirs(y), rtol=1e-4, atol=1e-6)
    _, pushforward = ft.linearize(jit(network), LAYERS, BATCH)
    assert bytes_kept(pushforward) == bytes_kept(pullback)
    x_dots = jax.tree.map(jnp.cos, (LAYERS, BATCH))
    _, y_dot = jax.jvp(network, (LAYERS, BATCH), x_dots)
    chex.assert_trees_all_close(pushforward(*x_dots), y_dot, rtol=1e-4)


def test_what_is_computed_again_is_differentiated_again() -> None:
    def f(x):
        return network(LAYERS, x)

    x, v = BATCH[:2], BATCH[2:4]
    want = numbers(lambda x: jax.jvp(jax.grad(f), (x,), (v,))[1], x)
    of_gradient = ft.vjp(ft.grad(ft.jit(f)), x)[1](v)[0]
    of_pullback = ft.jvp(lambda x: ft.vjp(jax.jit(f), x)[1](jnp.float32(1.0))[0], (x,), (v,))[1]
    for got in (of_gradient, of_pullback):
        chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-6)


def test_inside_one_compiled_program_nothing_is_cut() -> None:
    """XLA sees both halves: the equations of the gradient are computed once."""
    gradient = jax.make_jaxpr(ft.grad(ft.jit(lambda x: jnp.sum(jnp.sinh(x) * jnp.exp(x)))))(BATCH)
    assert str(gradient).count("exp ") == str(gradient).count("sinh ") == 1


CHECKPOINTS: dict[str, Callable] = {
    "checkpoint": jax.checkpoint,
    "jit in checkpoint": lambda f: jax.checkpoint(jax.jit(f)),
    "checkpoint in jit": lambda f: jax.jit(jax.checkpoint(f)),
    "checkpoint in checkpoint": lambda f: jax.checkpoint(lambda *xs: jax.checkpoint(f)(*xs)),
    "dots": lambda f: jax.checkpoint(f, policy=jax.checkpoint_policies.dots_saveable),
}


@pytest.mark.parametrize(
    ("wrap", "wide"), [("checkpoint", 1), *((name, 4) for name in CHECKPOINTS)]
)
def test_sums_of_products_leave_a_checkpointed_body(wrap: str, wide: int) -> None:
    """The gradient of the weight is one product after the loop; of wide layers one a block."""

    def fun(w, xs):
        def layer(h, x):
            return jnp.tanh(h @ w).reshape(wide, 16).sum(0) + x

        step = CHECKPOINTS[wrap](layer)
        return jnp.sum(lax.scan(lambda h, x: (step(h, x), None), xs[0], xs)[0] ** 2)

    w, xs = array(16, wide * 16), array(32, 16)
    places = [
        loops
        for equation, loops in everywhere(jax.make_jaxpr(ft.grad(fun))(w, xs).jaxpr)
        if equation.primitive is lax.dot_general_p and equation.outvars[0].aval.shape == w.shape
    ]
    assert places == [int(wide > 1)]
    both = numbers(lambda w, xs: [ad.grad(fun)(w, xs) for ad in (ft, jax)], w, xs)
    chex.assert_trees_all_close(*both, rtol=1e-4, atol=1e-6)


def everywhere(jaxpr: Any, loops: int = 0) -> Iterator[tuple[Any, int]]:
    """The equations, and in how many loops each of them is."""
    for equation in jaxpr.eqns:
        yield equation, loops
        for inner in jaxprs_in_params(equation.params):
            is_loop = equation.primitive.name == "scan"
            yield from everywhere(getattr(inner, "jaxpr", inner), loops + is_loop)
