"""A call that does two things at once: values, and work that is linear in tangents.

A rule of the user's gets `(x, x_dot)`, and may hand both to one call: a jitted function, a loop, a
branch.  On a tape such a call is split: what depends on no tangent is done now, and what is written
down is linear.  Here each kind of call is in such a rule, which then multiplies the results,

    (a, a_dot) = call(x, x_dot),        y = a^2,        y_dot = 2 a a_dot

so that `a` must be known when the product is transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import jaxprs_in_params
from jax.extend.core.primitives import closed_call_p
from jax.sharding import AxisType, PartitionSpec

import functrans as ft
from functrans import jaxpr as jx
from functrans.linearize import linearize_jaxpr
from functrans.programs.live import reached

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

X = np.asarray([0.3, 0.7, 1.1])
Pair = tuple[Any, Any]


def step(x: Any, x_dot: Any) -> Pair:
    """The sine, and its tangent."""
    return jnp.sin(x), jnp.cos(x) * x_dot


# ---- the calls: each applies `step` a number of times --------------------------------------------


def by_scan(x: Any, x_dot: Any) -> Pair:
    pair, _ = lax.scan(lambda pair, _: (step(*pair), None), (x, x_dot), None, length=2)
    return pair


def by_a_scan_that_stacks(x: Any, x_dot: Any) -> Pair:
    """The results are what the steps have stacked; the carry counts, and is known."""

    def body(i, pair):
        a, a_dot = step(*pair)
        return i + 1, (a * i / i, a_dot)

    return lax.scan(body, 1.0, (x, x_dot))[1]


def by_a_scan_over_constants(x: Any, x_dot: Any) -> Pair:
    """What the body closes over is linear; the carry becomes so in the first step."""

    def body(pair, _):
        a, _ = step(x, x_dot)
        return (a, jnp.cos(x) * x_dot), None

    return lax.scan(body, (x, jnp.zeros_like(x)), None, length=2)[0]


def by_cond(x: Any, x_dot: Any) -> Pair:
    """In the other branch the tangent does not depend on the tangent."""
    return lax.cond(x[0] > 0, step, lambda x, x_dot: (jnp.exp(x), jnp.zeros_like(x)), x, x_dot)


def by_the_other_branch(x: Any, x_dot: Any) -> Pair:
    return lax.cond(x[0] < 0, lambda x, x_dot: (jnp.ones_like(x), 3.0 * x_dot), step, x, x_dot)


def by_switch(x: Any, x_dot: Any) -> Pair:
    others = [lambda x, x_dot: (x, x * x_dot), lambda x, x_dot: (x**2, 2 * x * x_dot)]
    return lax.switch(2, [*others, step], x, x_dot)


def by_a_switch_at_run_time(x: Any, x_dot: Any) -> Pair:
    index = lax.convert_element_type(x[0] * 0 + 2, int)
    others = [lambda x, x_dot: (x, x * x_dot), lambda x, x_dot: (x**2, 2 * x * x_dot)]
    return lax.switch(index, [*others, step], x, x_dot)


def by_a_while_loop(x: Any, x_dot: Any) -> Pair:
    """The tangent rides along, and changes with the values."""

    def body(state):
        i, x, x_dot = state
        return (i + 1, *step(x, x_dot))

    return lax.while_loop(lambda state: state[0] < 2, body, (0, x, x_dot))[1:]


def around_a_while_loop(x: Any, x_dot: Any) -> Pair:
    """The loop carries a tangent that nobody reads; what is read of it are the values."""
    a, _ = by_a_while_loop(x, x_dot)
    return a, jnp.cos(jnp.sin(x)) * jnp.cos(x) * x_dot


def by_closed_call(x: Any, x_dot: Any) -> Pair:
    params = {"call_jaxpr": jax.make_jaxpr(step)(jax.typeof(x), jax.typeof(x_dot))}
    a, a_dot = closed_call_p.bind(x, x_dot, **closed_call_p.get_bind_params(params))
    return a, a_dot


def by_custom_vmap(x: Any, x_dot: Any) -> Pair:
    call = custom_vmap(step)
    call.def_vmap(lambda size, batched, *xs: (step(*xs), (batched[0], any(batched))))
    return call(x, x_dot)


def by_shard_map(check_vma: bool) -> Callable:
    def call(x, x_dot):
        mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
        spec = PartitionSpec("i")
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec), check_vma=check_vma
        )
        return mapped(x, x_dot)

    return call


def by_composite(x: Any, x_dot: Any) -> Pair:
    return lax.composite(step, name="tests.step")(x, x_dot)


def by_a_custom_rule(x: Any, x_dot: Any) -> Pair:
    """The function in which values and tangents pass has a rule itself."""
    call = jax.custom_jvp(step)
    call.defjvp(lambda primals, tangents: jax.jvp(step, primals, tangents))
    return call(x, x_dot)


def by_a_backward_rule(x: Any, x_dot: Any) -> Pair:
    call = jax.custom_vjp(step)

    def backward(saved, bars):
        x, x_dot = saved
        a_bar, dot_bar = bars
        return jnp.cos(x) * a_bar - jnp.sin(x) * x_dot * dot_bar, jnp.cos(x) * dot_bar

    call.defvjp(lambda x, x_dot: (step(x, x_dot), (x, x_dot)), backward)
    return call(x, x_dot)


def after_a_barrier(x: Any, x_dot: Any) -> Pair:
    return lax.optimization_barrier(step(*lax.optimization_barrier((x, x_dot))))


def put_on_a_device(x: Any, x_dot: Any) -> Pair:
    return jax.device_put(step(*jax.device_put((x, x_dot), jax.devices()[0])))


def halved(y: Any) -> Any:
    return jax.tree.map(lambda y: y / 2.0, y)


def doubled(y: Any) -> Any:
    return jax.tree.map(lambda y: 2.0 * y, y)


def solved(fun: Callable) -> Callable:
    """One system for values and tangents, twice the identity."""

    def call(x, x_dot):
        def solve(_, right):
            return halved(right)

        return lax.custom_linear_solve(doubled, doubled(fun(x, x_dot)), solve, solve)

    return call


def rooted(fun: Callable) -> Callable:
    """The root of `2 (y - fun(x))`."""

    def call(x, x_dot):
        right = fun(x, x_dot)

        def equation(y):
            return doubled(jax.tree.map(jnp.subtract, y, right))

        def solve(f, start):
            return jax.tree.map(jnp.subtract, start, halved(f(start)))

        start = jax.tree.map(jnp.zeros_like, right)
        return lax.custom_root(equation, start, solve, lambda g, y: halved(y))

    return call


def mapped(fun: Callable) -> Callable:
    """On one device of several."""
    return lambda *pair: jax.tree.map(
        lambda y: y[0], jax.pmap(fun)(*(jnp.asarray(x)[None] for x in pair))
    )


def inside(*wraps: Callable) -> Callable:
    """`step`, or another call, inside of others, the first of which is the innermost."""

    def call(x, x_dot):
        fun = step
        for wrap in wraps:
            fun = wrap(fun)
        return fun(x, x_dot)

    return call


def scanned(fun: Callable) -> Callable:
    """A loop of one step."""
    return lambda x, x_dot: lax.scan(lambda c, _: (fun(*c), None), (x, x_dot), None, length=1)[0]


def chosen(fun: Callable) -> Callable:
    def otherwise(x, x_dot):
        return jnp.exp(x), jnp.exp(x) * x_dot

    return lambda x, x_dot: lax.cond(x[0] > 0, fun, otherwise, x, x_dot)


def saving(fun: Callable) -> Callable:
    return jax.checkpoint(fun, policy=jax.checkpoint_policies.everything_saveable)


ONE: dict[str, Callable] = {
    "none": step,
    "jax.jit": inside(jax.jit),
    "ft.jit": inside(ft.jit),
    "jit(jit)": inside(jax.jit, jax.jit),
    "ft.jit(jax.jit)": inside(jax.jit, ft.jit),
    "jax.jit(ft.jit)": inside(ft.jit, jax.jit),
    "named_call": inside(jax.named_call),
    "jit(named_call)": inside(jax.named_call, jax.jit),
    "scan that stacks": by_a_scan_that_stacks,
    "scan over constants": by_a_scan_over_constants,
    "jit(scan)": inside(scanned, jax.jit),
    "scan(jit)": inside(jax.jit, scanned),
    "scan(scan)": inside(scanned, scanned),
    "cond": by_cond,
    "cond, the other branch": by_the_other_branch,
    "switch": by_switch,
    "switch at run time": by_a_switch_at_run_time,
    "jit(cond)": inside(chosen, jax.jit),
    "cond(jit)": inside(jax.jit, chosen),
    "scan(cond)": inside(chosen, scanned),
    "cond(scan)": inside(scanned, chosen),
    "cond(cond)": inside(chosen, chosen),
    "checkpoint": inside(jax.checkpoint),
    "checkpoint that saves": inside(saving),
    "jit(checkpoint)": inside(jax.checkpoint, jax.jit),
    "checkpoint(jit)": inside(jax.jit, jax.checkpoint),
    "scan(checkpoint)": inside(jax.checkpoint, scanned),
    "checkpoint(scan)": inside(scanned, jax.checkpoint),
    "checkpoint(checkpoint)": inside(jax.checkpoint, jax.checkpoint),
    "cond(checkpoint)": inside(jax.checkpoint, chosen),
    "checkpoint(cond)": inside(chosen, jax.checkpoint),
    "jit(scan(cond(checkpoint)))": inside(jax.checkpoint, chosen, scanned, jax.jit),
    "closed_call": by_closed_call,
    "jit(closed_call)": lambda *pair: jax.jit(by_closed_call)(*pair),
    "custom_vmap": by_custom_vmap,
    "jit(custom_vmap)": lambda *pair: jax.jit(by_custom_vmap)(*pair),
    "composite": by_composite,
    "custom_jvp": by_a_custom_rule,
    "jit(custom_jvp)": lambda *pair: jax.jit(by_a_custom_rule)(*pair),
    "custom_vjp": by_a_backward_rule,
    "jit(custom_vjp)": lambda *pair: jax.jit(by_a_backward_rule)(*pair),
    "shard_map": by_shard_map(True),
    "shard_map, not checked": by_shard_map(False),
    "jit(shard_map)": lambda *pair: jax.jit(by_shard_map(True))(*pair),
    "checkpoint(shard_map)": lambda *pair: jax.checkpoint(by_shard_map(True))(*pair),
    "custom_linear_solve": inside(solved),
    "jit(custom_linear_solve)": inside(solved, jax.jit),
    "custom_root": inside(rooted),
    "jit(custom_root)": inside(rooted, jax.jit),
    "pmap": inside(mapped),
    "optimization_barrier": after_a_barrier,
    "jit(optimization_barrier)": lambda *pair: jax.jit(after_a_barrier)(*pair),
    "device_put": put_on_a_device,
    "jit(device_put)": lambda *pair: jax.jit(put_on_a_device)(*pair),
}

TWO: dict[str, Callable] = {
    "scan": by_scan,
    "scan, jitted": lambda *pair: jax.jit(by_scan)(*pair),
    "scan, computed again": lambda *pair: jax.checkpoint(by_scan)(*pair),
    "around a while loop": around_a_while_loop,
    "around a while loop, jitted": lambda *pair: jax.jit(around_a_while_loop)(*pair),
    "a call after a call": lambda *pair: jax.jit(step)(*ft.jit(step)(*pair)),
}

CALLS: dict[str, tuple[Callable, int]] = {
    **{name: (call, 1) for name, call in ONE.items()},
    **{name: (call, 2) for name, call in TWO.items()},
}


def squared_sine(x: Any, times: int) -> Any:
    """The square of the sine (of the sine)."""
    for _ in range(times):
        x = jnp.sin(x)
    return x * x


def squared(call: Callable, times: int) -> Callable:
    """That function, with a rule that passes through the call."""
    fun = jax.custom_jvp(lambda x: squared_sine(x, times))

    @fun.defjvp
    def _(primals, tangents):
        a, a_dot = call(*primals, *tangents)
        return a * a, 2 * a * a_dot

    return fun


def slope(x: Any, times: int) -> Any:
    """The derivative of that, in closed form."""
    if times == 1:
        return 2 * np.sin(x) * np.cos(x)
    return 2 * np.sin(np.sin(x)) * np.cos(np.sin(x)) * np.cos(x)


def total(fun: Callable) -> Callable:
    """A sum with weights, so that no two cotangents are alike."""
    return lambda x: jnp.sum(fun(x) * jnp.asarray(X + 1))


WAYS: dict[str, Callable] = {
    "eager": ft.grad,
    "compiled": lambda f: ft.jit(ft.grad(f)),
    "of a compiled function": lambda f: ft.grad(ft.jit(f)),
    "linearized": lambda f: lambda x: ft.jacfwd(f)(x),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("way", WAYS)
def test_a_gradient_through_one_call(name: str, way: str) -> None:
    call, times = CALLS[name]
    gradient = WAYS[way](total(squared(call, times)))(X)
    chex.assert_trees_all_close(gradient, slope(X, times) * (X + 1), rtol=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_the_second_derivatives_through_one_call(name: str) -> None:
    """The rule is differentiated too: pushed forward, and what comes is split again."""
    call, times = CALLS[name]
    fun = total(squared(call, times))
    got = ft.jit(lambda x: ft.jvp(ft.grad(fun), (x,), (jnp.ones_like(x),))[1])(X)
    h = 1e-5
    want = (slope(X + h, times) - slope(X - h, times)) / (2 * h) * (X + 1)
    chex.assert_trees_all_close(got, want, rtol=1e-8)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_written_down_is_linear(name: str) -> None:
    """Each equation of the linear program depends on the tangents, and is linear in them."""
    call, times = CALLS[name]
    fun = total(squared(call, times))
    program = ft.make_jaxpr(fun)(X)
    primal, linear, moved = linearize_jaxpr(program, (True,))
    assert moved == (True,)
    residuals = primal.out_avals[1:]
    *_, tangent = linear.jaxpr.invars
    assert len(linear.jaxpr.invars) == len(residuals) + 1
    found = reached(linear.jaxpr.eqns, [tangent])
    assert all(found.issuperset(e.outvars) for e in linear.jaxpr.eqns)
    _, *saved = jx.evaluate(primal, X)
    x_dot = X**2
    (y_dot,) = jx.evaluate(linear, *saved, x_dot)
    chex.assert_trees_all_close(y_dot, np.sum(slope(X, times) * (X + 1) * x_dot), rtol=1e-12)
    (doubled,) = jx.evaluate(linear, *saved, 2 * x_dot)
    assert float(doubled) == 2 * float(y_dot)


def count(program: Any, name: str) -> int:
    found = 0
    for equation in program.eqns:
        found += equation.primitive.name == name
        found += sum(count(getattr(p, "jaxpr", p), name) for p in jaxprs_in_params(equation.params))
    return found


ONCE = ["none", "jax.jit", "ft.jit", "jit(jit)", "jax.jit(ft.jit)", "jit(scan)", "scan(jit)"]
ONCE += ["scan(scan)", "cond(jit)", "jit(cond)", "scan(cond)", "cond(scan)", "closed_call"]
ONCE += ["custom_vmap", "shard_map", "optimization_barrier", "device_put", "scan that stacks"]


@pytest.mark.parametrize("name", ONCE)
def test_nothing_is_computed_twice(name: str) -> None:
    """One sine and one cosine, in whatever half they are."""
    call, times = CALLS[name]
    program = ft.make_jaxpr(ft.grad(total(squared(call, times))))(X)
    assert (count(program.jaxpr, "sin"), count(program.jaxpr, "cos")) == (1, 1)


# ---- in the backward rule of a custom_vjp --------------------------------------------------------


def with_a_backward_rule(call: Callable, times: int) -> Callable:
    """As `squared`, with a rule that pulls back; in forward mode the rule is transposed."""
    fun = jax.custom_vjp(lambda x: squared_sine(x, times))

    def backward(x, y_bar):
        a, x_bar = call(x, y_bar)
        return (2 * a * x_bar,)

    fun.defvjp(lambda x: (fun(x), x), backward)
    return fun


def along(f: Callable) -> Callable:
    """The derivative in one direction, by forward mode."""
    return lambda x: ft.jvp(f, (x,), (X,))[1]


def pulled_along(f: Callable) -> Callable:
    return lambda x: jnp.vdot(ft.grad(f)(x), X)


EITHER_MODE: dict[str, Callable] = {
    "forward, eager": along,
    "forward, compiled": lambda f: ft.jit(along(f)),
    "forward, of a compiled function": lambda f: along(ft.jit(f)),
    "reverse, eager": pulled_along,
    "reverse, compiled": lambda f: ft.jit(pulled_along(f)),
    "reverse, of a compiled function": lambda f: pulled_along(ft.jit(f)),
}
KINDS = ["jax.jit", "ft.jit", "checkpoint", "scan over constants", "cond", "custom_jvp"]
KINDS += ["custom_vjp", "custom_linear_solve", "custom_root", "shard_map", "pmap", "custom_vmap"]
KINDS += ["composite", "closed_call", "device_put", "optimization_barrier"]


@pytest.mark.parametrize("name", KINDS)
def test_a_call_in_a_backward_rule(name: str) -> None:
    fun = total(with_a_backward_rule(*CALLS[name]))
    want = np.vdot(slope(X, CALLS[name][1]) * (X + 1), X)
    for way in EITHER_MODE.values():
        chex.assert_trees_all_close(way(fun)(X), want, rtol=1e-12)


# ---- calls of which everything is linear ---------------------------------------------------------


def mixing(u: Any, v: Any) -> Pair:
    """A linear step: it mixes two vectors."""
    return 2.0 * u - v, 3.0 * v


def ruled(fun: Callable) -> Callable:
    call = jax.custom_jvp(fun)
    call.defjvp(lambda primals, tangents: jax.jvp(fun, primals, tangents))
    return call


def ruled_backward(fun: Callable) -> Callable:
    call = jax.custom_vjp(fun)
    call.defvjp(lambda *xs: (fun(*xs), None), lambda _, bars: jax.linear_transpose(fun, X, X)(bars))
    return call


def batched(fun: Callable) -> Callable:
    call = custom_vmap(fun)
    call.def_vmap(lambda size, flags, *xs: (jax.vmap(fun)(*xs), (True, True)))
    return call


def closed(fun: Callable) -> Callable:
    def call(*xs):
        params = {"call_jaxpr": jax.make_jaxpr(fun)(*map(jax.typeof, xs))}
        return tuple(closed_call_p.bind(*xs, **closed_call_p.get_bind_params(params)))

    return call


def sharded(fun: Callable) -> Callable:
    spec = PartitionSpec("i")
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))
    return jax.shard_map(fun, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec))


WRAPS: dict[str, Callable] = {
    "jax.jit": jax.jit,
    "ft.jit": ft.jit,
    "checkpoint": jax.checkpoint,
    "scan": scanned,
    "cond": lambda f: lambda *xs: lax.cond(True, f, lambda u, v: (v, u), *xs),
    "cond at run time": lambda f: lambda *xs: lax.cond(jnp.sum(X) > 0, f, lambda u, v: (v, u), *xs),
    "custom_jvp": ruled,
    "custom_vjp": ruled_backward,
    "custom_linear_solve": solved,
    "shard_map": sharded,
    "pmap": mapped,
    "custom_vmap": batched,
    "composite": lambda f: lax.composite(f, name="tests.mixing"),
    "closed_call": closed,
    "device_put": lambda f: lambda *xs: jax.device_put(f(*xs)),
    "optimization_barrier": lambda f: lambda *xs: lax.optimization_barrier(f(*xs)),
}
"""All but `while_loop`, which is linear in a part alone, and `custom_root`, whose solver is not."""


@pytest.mark.parametrize("name", WRAPS)
def test_a_call_of_which_everything_is_linear(name: str) -> None:
    """In a forward rule, in a backward rule, and by itself, transposed."""
    call = WRAPS[name](mixing)

    def both(x_dot):
        u, v = call(x_dot, 2.0 * x_dot)
        return 4.0 * u + v  # (4 (2 - 2) + 3 * 2) x_dot

    @jax.custom_jvp
    def fun(x):
        return 6.0 * x

    fun.defjvp(lambda primals, tangents: (6.0 * primals[0], both(*tangents)))

    @jax.custom_vjp
    def pulled(x):
        return 6.0 * x

    pulled.defvjp(lambda x: (6.0 * x, None), lambda _, y_bar: (both(y_bar),))
    for way in EITHER_MODE.values():
        for f in (fun, pulled):
            want = 6 * np.vdot(X + 1, X)
            chex.assert_trees_all_close(way(total(f))(X), want, rtol=1e-12)
    for around in (lambda f: f, ft.jit):
        (got,) = around(ft.linear_transpose(both, X))(X)
        chex.assert_trees_all_close(got, 6 * X, rtol=1e-12)


# ---- loops without end ---------------------------------------------------------------------------


def test_a_while_loop_that_carries_tangents_goes_forward() -> None:
    fun = squared(by_a_while_loop, 2)
    for pushed in (ft.jvp, lambda f, *pair: ft.jvp(ft.jit(f), *pair), _compiled_jvp):
        y, y_dot = pushed(fun, (X,), (X,))
        chex.assert_trees_all_close(y, np.sin(np.sin(X)) ** 2, rtol=1e-12)
        chex.assert_trees_all_close(y_dot, slope(X, 2) * X, rtol=1e-12)
    y, pushforward = ft.linearize(fun, X)
    chex.assert_trees_all_close(pushforward(X), slope(X, 2) * X, rtol=1e-12)
    y, pushforward = ft.linearize(ft.jit(fun), X)
    chex.assert_trees_all_close(pushforward(X), slope(X, 2) * X, rtol=1e-12)


def _compiled_jvp(fun: Callable, primals: tuple, tangents: tuple) -> tuple:
    return ft.jit(lambda xs, x_dots: ft.jvp(fun, xs, x_dots))(primals, tangents)


@pytest.mark.parametrize("way", ["eager", "compiled", "of a compiled function"])
def test_a_while_loop_that_carries_tangents_goes_backward(way: str) -> None:
    slopes = WAYS[way](total(squared(by_a_while_loop, 2)))(X)
    chex.assert_trees_all_close(slopes, slope(X, 2) * (X + 1), rtol=1e-12)


# ---- linear functions ----------------------------------------------------------------------------

KNOWN = np.asarray([0.2, 0.9, 1.3])


def linear_through(call: Callable) -> Callable:
    """Linear in `x_dot`; the array that is closed over goes through the same call."""

    def fun(x_dot):
        a, a_dot = call(KNOWN, x_dot)
        return a * a_dot, 3.0 * x_dot

    return fun


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("compiled", [False, True])
def test_the_transpose_of_a_linear_function_with_a_call(name: str, compiled: bool) -> None:
    call, times = CALLS[name]
    transposed = ft.linear_transpose(linear_through(call), jax.ShapeDtypeStruct((3,), float))
    bars = jnp.asarray(X), jnp.asarray(X**2)
    (got,) = ft.jit(transposed)(bars) if compiled else transposed(bars)
    want = slope(KNOWN, times) / 2 * X + 3 * X**2
    chex.assert_trees_all_close(got, want, rtol=1e-12)


@pytest.mark.parametrize("name", CALLS)
def test_the_transpose_of_a_function_that_closes_over_a_traced_value(name: str) -> None:
    """What is known in the call is an argument of the function around it, and is differentiated."""
    call, times = CALLS[name]

    def fun(x, y_bar):
        (x_bar,) = ft.linear_transpose(lambda x_dot: call(x, x_dot)[1], x)(y_bar)
        return x_bar

    got = ft.jit(fun)(X, X)
    want = slope(X, times) / 2 / (np.sin(X) if times == 1 else np.sin(np.sin(X))) * X
    chex.assert_trees_all_close(got, want, rtol=1e-12)


def test_a_call_that_is_not_linear_has_no_transpose() -> None:
    """The product of two values that both depend on the input."""
    for wrap in (jax.jit, ft.jit, jax.checkpoint, lambda f: f):
        fun = wrap(lambda x: (x * x, x))
        with pytest.raises(TypeError, match="not linear"):
            ft.linear_transpose(lambda x, fun=fun: fun(x)[0], X)(X)


def test_of_several_results_each_is_in_its_half() -> None:
    """Results that are inputs, constants, known or linear, in the order that the call gives."""

    @jax.jit
    def call(k, x, scale):
        return x, k, jnp.sin(k), 2.0, scale * x, x * jnp.sin(k), k + 1.0

    def linear(x):
        same, k, sine, two, scaled, product, more = call(KNOWN, x, 3.0)
        return same * k + two * scaled * sine + product * more

    (got,) = ft.linear_transpose(linear, X)(X)
    want = X * (KNOWN + 6 * np.sin(KNOWN) + np.sin(KNOWN) * (KNOWN + 1))
    chex.assert_trees_all_close(got, want, rtol=1e-12)


# ---- effects in a checkpoint that is split -------------------------------------------------------

POLICIES: dict[str, Any] = {
    "none": None,
    "nothing": jax.checkpoint_policies.nothing_saveable,
    "everything": jax.checkpoint_policies.everything_saveable,
    "products": jax.checkpoint_policies.dots_saveable,
}


@pytest.mark.parametrize("policy", POLICIES)
def test_effects_in_a_checkpoint_happen_as_often_as_in_jax(policy: str, capfd: Any) -> None:
    """Once where the values are computed, and again where they are computed again."""
    seen: list[tuple[str, float]] = []

    def note(name: str, x: Any) -> None:
        jax.debug.callback(lambda x: seen.append((name, round(float(x), 6))), x)

    def fun(x):
        y = jnp.sin(x)
        note("sine", y)
        z = y * jnp.cos(x)
        jax.debug.print("product {}", z)
        note("product", z)
        return z * x

    remat = jax.checkpoint(fun, policy=POLICIES[policy])

    @jax.custom_jvp
    def in_a_rule(x):
        return fun(x)

    # One call for the value and the tangent, which is split.
    in_a_rule.defjvp(lambda x, x_dot: jax.jvp(remat, x, x_dot))

    def of_known_and_linear(x_dot, x=0.3):
        def body(x, x_dot):
            note("known", x)
            note("linear", 2.0)
            return jnp.sin(x), x_dot * jnp.cos(x)

        known, linear = jax.checkpoint(body, policy=POLICIES[policy])(x, x_dot)
        return known * linear

    cases: dict[str, Callable] = {
        "grad": lambda t: t.grad(remat)(0.5),
        "rule": lambda t: t.grad(in_a_rule)(0.5),
        "rule, compiled": lambda t: t.jit(t.grad(in_a_rule))(0.5),
        "rule of a compiled function": lambda t: t.grad(t.jit(in_a_rule))(0.5),
        "rule in a loop": lambda t: t.grad(
            lambda x: lax.scan(lambda c, _: (in_a_rule(c), None), x, None, length=2)[0]
        )(0.5),
        "rule, pullback called twice": lambda t: [*map(t.vjp(in_a_rule, 0.5)[1], (1.0, 2.0))],
        "rule, forward": lambda t: t.jvp(in_a_rule, (0.5,), (1.0,)),
        "second order": lambda t: t.grad(t.grad(in_a_rule))(0.5),
        "transpose": lambda t: t.linear_transpose(of_known_and_linear, 1.0)(1.0),
    }

    def effects(case: Callable, t: Any) -> tuple:
        seen.clear()
        result = jax.block_until_ready(case(t))
        jax.effects_barrier()
        return result, sorted(seen), sorted(capfd.readouterr().out.splitlines())

    for name, case in cases.items():
        (got, *ours), (want, *theirs) = effects(case, ft), effects(case, jax)
        chex.assert_trees_all_close(got, want, rtol=1e-12)
        if name == "transpose" and policy == "everything":
            # JAX's transpose asks no policy. As all is saved, nothing is done again.
            assert theirs[0] == sorted(2 * ours[0])
            continue
        assert ours == theirs, name
        assert ours[0]
