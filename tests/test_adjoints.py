"""Derivatives of named values, beside those in changes that are written out by hand.

Each program comes twice: with names, and as a function of the changes, `h + p`, of which JAX takes
the derivative at `p = 0`.
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
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType, PartitionSpec

import functrans as ft

pytestmark = pytest.mark.usefixtures("float64")

X = np.asarray([0.3, 0.7])
W = np.asarray([0.4, 0.9, 1.3])
SPLIT = PartitionSpec("i")


def name(h: Any, label: str) -> Any:
    return checkpoint_name(h, label)


# ---- programs: with names, with changes, and what is named in them ------------------------------


def layers(x, w):
    h = name(jnp.sin(x * w[0]), "h")
    return jnp.sum(name(h * x, "g") ** 2) * w[2] * w[1]


def layers_changed(p, x, w):
    h = jnp.sin(x * w[0]) + p["h"]
    return jnp.sum((h * x + p["g"]) ** 2) * w[2] * w[1]


def layers_named(x, w):
    return {"h": jnp.sin(x * w[0]), "g": jnp.sin(x * w[0]) * x}


def several(x, w):
    """One name for three values of two types."""
    for i in range(2):
        x = name(jnp.tanh(x * w[i]), "h")
    return name(jnp.prod(x), "h") * w[2]


def several_changed(p, x, w):
    for i in range(2):
        x = jnp.tanh(x * w[i]) + p["h"][i]
    return (jnp.prod(x) + p["h"][2]) * w[2]


def several_named(x, w):
    first = jnp.tanh(x * w[0])
    second = jnp.tanh(first * w[1])
    return {"h": (first, second, jnp.prod(second))}


def loop(x, w):
    """The carry, and what the steps stack, which run from the last to the first."""

    def step(c, w):
        c = name(jnp.sin(c * w), "c")
        return c, name(jnp.sum(c * c), "y")

    c, ys = lax.scan(step, x, w, reverse=True)
    return jnp.sum(c) * jnp.sum(ys)


def loop_changed(p, x, w):
    def step(c, step):
        w, p = step
        c = jnp.sin(c * w) + p["c"]
        return c, jnp.sum(c * c) + p["y"]

    c, ys = lax.scan(step, x, (w, p), reverse=True)
    return jnp.sum(c) * jnp.sum(ys)


def loop_named(x, w):
    cs = [x]
    for i in (2, 1, 0):
        cs.insert(0, jnp.sin(cs[0] * w[i]))
    c = jnp.stack(cs[:3])
    return {"c": c, "y": jnp.sum(c * c, axis=1)}


def choice(x, w):
    """Both branches have a value of one name, and one has another."""

    def yes(x):
        return name(jnp.sin(x), "a") * name(x, "b")

    def no(x):
        return name(jnp.cos(x), "a") * 2.0

    y = lax.cond(w[0] > 1, yes, no, x) * lax.cond(w[0] < 1, yes, no, x)
    return jnp.sum(y) * jnp.prod(w)


def choice_changed(p, x, w):
    first, second = jnp.cos(x) + p["a"][0], jnp.sin(x) + p["a"][3]
    unread = jnp.sum(0 * (p["a"][1] + p["a"][2] + p["b"][0]))
    return jnp.sum(first * 2.0 * second * (x + p["b"][1])) * jnp.prod(w) + unread


def choice_named(x, w):
    zero = jnp.zeros_like(x)
    return {"a": (jnp.cos(x), zero, zero, jnp.sin(x)), "b": (zero, x)}


def nested(x, w):
    """A branch in a checkpoint in a loop in a jitted function."""

    @jax.checkpoint
    def inner(c, w):
        return lax.cond(w > 0.5, lambda c: name(c * c, "a"), jnp.sin, c) * w

    @jax.jit
    def outer(c):
        return lax.scan(lambda c, w: (inner(c, w) + c, None), c, w)[0]

    return jnp.sum(name(outer(x), "out") ** 2)


def nested_changed(p, x, w):
    def step(c, step):
        w, p = step
        return jnp.where(w > 0.5, c * c + p, jnp.sin(c) + 0 * p) * w + c, None

    c, _ = lax.scan(step, x, (w, p["a"]))
    return jnp.sum((c + p["out"]) ** 2)


def nested_named(x, w):
    c, a = x + jnp.sin(x) * w[0], [jnp.zeros_like(x)]
    for i in (1, 2):
        a.append(c * c)
        c = c + a[-1] * w[i]
    return {"a": jnp.stack(a), "out": c}


def saved(x, w):
    """The policy of a checkpoint keeps what has the name."""
    policy = jax.checkpoint_policies.save_only_these_names("h")

    def inner(x, w):
        return jnp.sin(name(jnp.exp(x * w[0]), "h"))

    return jnp.sum(jax.checkpoint(inner, policy=policy)(x, w) ** 2) * w[1] * w[2]


def saved_changed(p, x, w):
    return jnp.sum(jnp.sin(jnp.exp(x * w[0]) + p["h"]) ** 2) * w[1] * w[2]


def saved_named(x, w):
    return {"h": jnp.exp(x * w[0])}


def batched(x, w):
    """A batch of loops."""

    def inner(x):
        return lax.scan(lambda c, w: (name(jnp.sin(c * w), "c"), None), x, w)[0]

    return jnp.sum(jax.vmap(inner)(x) ** 2)


def batched_changed(p, x, w):
    c, _ = lax.scan(lambda c, step: (jnp.sin(c * step[0]) + step[1], None), x, (w, p["c"]))
    return jnp.sum(c**2)


def batched_named(x, w):
    first = jnp.sin(x * w[0])
    second = jnp.sin(first * w[1])
    return {"c": jnp.stack([first, second, jnp.sin(second * w[2])])}


def mapped(x, w):
    """What differs between devices is stacked along its first dimension."""
    mesh = jax.make_mesh((1,), ("i",), axis_types=(AxisType.Auto,))

    def inner(x, w):
        h = name(jnp.sin(x) * w[0], "h")
        return lax.psum(jnp.sum(h * h), "i") * w[1] * w[2]

    specs = {"in_specs": (SPLIT, PartitionSpec()), "out_specs": PartitionSpec()}
    return jax.shard_map(inner, mesh=mesh, **specs)(x, w)


def mapped_changed(p, x, w):
    return jnp.sum((jnp.sin(x) * w[0] + p["h"]) ** 2) * w[1] * w[2]


def mapped_named(x, w):
    return {"h": jnp.sin(x) * w[0]}


PROGRAMS = [
    (layers, layers_changed, layers_named),
    (several, several_changed, several_named),
    (loop, loop_changed, loop_named),
    (choice, choice_changed, choice_named),
    (nested, nested_changed, nested_named),
    (saved, saved_changed, saved_named),
    (batched, batched_changed, batched_named),
    (mapped, mapped_changed, mapped_named),
]
IDS = [row[0].__name__ for row in PROGRAMS]
each_program = pytest.mark.parametrize(("program", "changed", "named"), PROGRAMS, ids=IDS)


def adjoints(program: Callable) -> Callable:
    return ft.value_and_adjoints(program, argnums=(0, 1))


def by_hand(program: Callable, changed: Callable) -> Callable:
    """The same, by JAX, from the program in which the changes are written out."""
    shapes = jax.eval_shape(lambda: adjoints(program)(X, W)[1])

    def run(x, w):
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        value, (bars, *gradient) = jax.value_and_grad(changed, (0, 1, 2))(zeros, x, w)
        return value, bars, tuple(gradient)

    return run


def close(got: Any, want: Any, rtol: float = 1e-12) -> None:
    chex.assert_trees_all_close(got, want, rtol=rtol, atol=rtol)


@each_program
def test_adjoints_and_gradients(program: Callable, changed: Callable, named: Callable) -> None:
    """As they run, compiled, and of a jitted function."""
    del named
    reference = by_hand(program, changed)
    want = jax.jit(reference)(X, W)
    assert all(np.any(x != 0) for x in jax.tree.leaves((want[0], want[2])))
    close(adjoints(program)(X, W), want)
    close(jax.jit(adjoints(program))(X, W), want)
    close(adjoints(ft.jit(program))(X, W), want)


@pytest.mark.parametrize(("program", "changed", "named"), PROGRAMS[2:6], ids=IDS[2:6])
def test_of_adjoints_more_derivatives(
    program: Callable, changed: Callable, named: Callable
) -> None:
    """Ours and JAX's around ours, in both modes, and a batch."""
    del named
    ours, reference = adjoints(program), by_hand(program, changed)

    def inner(function):
        def run(x):
            leaves = jax.tree.leaves(function(x, W)[1])
            return sum(jnp.sum(jnp.sin(h * (i + 1.0))) for i, h in enumerate(leaves))

        return run

    def all_of(x, x_dot):
        f, g = inner(ours), inner(reference)
        want = jax.grad(g)(x), jax.jvp(jax.grad(g), (x,), (x_dot,))[1]
        got = [(d.grad(f)(x), e.jvp(d.grad(f), (x,), (x_dot,))[1]) for d, e in DERIVATIVES]
        xs = jnp.stack([x, x_dot, x + 1])
        return got, want, jax.vmap(lambda x: ours(x, W))(xs), [reference(x, W) for x in xs]

    got, want, batch, each = jax.jit(all_of)(X, X[::-1])
    assert np.any(want[1] != 0)
    for derivatives in got:
        close(derivatives, want, 1e-10)
    close(batch, jax.tree.map(lambda *xs: jnp.stack(xs), *each))


DERIVATIVES: list[tuple[Any, Any]] = [(ft, ft), (jax, jax)]


@each_program
def test_tangents(program: Callable, changed: Callable, named: Callable) -> None:
    del changed
    rng = np.random.default_rng(0)
    dots = rng.normal(size=X.shape), rng.normal(size=W.shape)
    pushed = ft.value_and_tangents(program)
    want = *jax.jvp(program, (X, W), dots), jax.jvp(named, (X, W), dots)[1]
    close(jax.jit(pushed)((X, W), dots), want)
    close(ft.value_and_tangents(ft.jit(program))((X, W), dots), want)


def before_a_while_loop(x, w):
    h = name(jnp.sin(x), "h")
    return jnp.sum(lax.while_loop(lambda h: h[0] < 5, lambda h: h * (2 + w[0]), h))


def test_before_a_while_loop() -> None:
    dots = ft.value_and_tangents(before_a_while_loop, "h")((X, W), (X, W))[2]
    close(dots, {"h": np.cos(X) * X})


def test_instead_of_a_while_loop() -> None:
    """The message about a name in a `while_loop` says what to do: each way gives the numbers."""

    def step(x):
        return name(2 * x, "h")

    def outside(x):
        x = name(x, "h")
        return name(lax.while_loop(lambda x: x < 9, lambda x: 2 * x, x), "h")

    def counted(x):
        return lax.fori_loop(0, 4, lambda _, x: step(x), x)

    def bounded(x):
        body = lambda x, _: (lax.cond(x < 9, step, lambda x: x, x), None)  # noqa: E731
        return lax.scan(body, x, length=6)[0]

    for fun, bars, dots in (
        (outside, (16.0, 1.0), (1.0, 16.0)),
        (counted, np.array([8.0, 4, 2, 1]), np.array([2.0, 4, 8, 16])),
        (bounded, np.array([8.0, 4, 2, 1, 0, 0]), np.array([2.0, 4, 8, 16, 0, 0])),
    ):
        close(ft.value_and_adjoints(fun, "h")(1.0), (16.0, {"h": bars}))
        close(ft.value_and_tangents(fun, "h")((1.0,), (1.0,)), (16.0, 16.0, {"h": dots}))


# ---- the first tutorial --------------------------------------------------------------------------


def test_the_first_tutorial_in_one_call() -> None:
    x, y = np.array([1.0, 2.0]), np.array([9.48773584, 518.01282467])

    def loss(x):
        h = name(jnp.exp(name(x**2, "f1")), "h")
        return jnp.sum((h - y) ** 2)

    value, bars, gradient = ft.value_and_adjoints(loss, argnums=0)(x)
    u = np.exp(x**2)
    close(value, np.sum((u - y) ** 2))
    close(bars, {"h": 2 * (u - y), "f1": 2 * u * (u - y)})
    close(gradient, 4 * x * u * (u - y))


# ---- what it costs -------------------------------------------------------------------------------


def matrices(x, w):
    for _ in range(3):
        x = jnp.tanh(x @ w)
    h = name(x, "h")
    return jnp.sum(jnp.tanh(name(h @ w, "g")) ** 2)


def after(h, w):
    return jnp.sum(jnp.tanh(h @ w) ** 2)


def test_what_is_not_asked_for_costs_nothing() -> None:
    """As many operations as the gradient of what comes after, and no array of zeros."""
    x, w = jnp.ones((50, 20)), jnp.ones((20, 20))

    def separately(x, w):
        for _ in range(3):
            x = jnp.tanh(x @ w)
        return ft.value_and_grad(after)(x, w)

    def costs(function: Callable) -> tuple:
        compiled: Any = jax.jit(function).lower(x, w).compile()
        return compiled.cost_analysis()["flops"], compiled.memory_analysis().temp_size_in_bytes

    asked = ft.value_and_adjoints(matrices, "h")
    got, want = costs(asked), costs(separately)
    assert got[0] <= want[0]
    assert got[1] <= want[1]
    # Nothing is added to h: the only sums are those of the derivative of tanh.
    written = [str(e.primitive) for e in ft.make_jaxpr(asked)(x, w).jaxpr.eqns]
    plain = [str(e.primitive) for e in ft.make_jaxpr(separately)(x, w).jaxpr.eqns]
    assert sum("add" in p for p in written) <= sum("add" in p for p in plain)


def test_aux_and_static_arguments() -> None:
    def f(x, how, *, factor):
        h = name(getattr(jnp, how)(x), "h")
        return jnp.sum(h * factor), {"h": h, "how": how}

    function = ft.value_and_adjoints(f, ["h"], argnums=0, has_aux=True)
    (value, aux), bars, gradient = function(X, "sin", factor=3.0)
    assert aux["how"] == "sin"
    close((value, aux["h"], bars), (3 * np.sum(np.sin(X)), np.sin(X), {"h": np.full(2, 3.0)}))
    close(gradient, 3 * np.cos(X))


def test_closed_over_parameters() -> None:
    """What is named need not depend on an argument that is differentiated."""
    table = jnp.arange(6.0).reshape(3, 2)

    def loss(tokens):
        return jnp.sum(name(table[tokens], "h") ** 3)

    _, bars = ft.value_and_adjoints(loss, "h")(np.asarray([2, 0]))
    close(bars["h"], 3 * table[np.asarray([2, 0])] ** 2)


# ---- what is refused -----------------------------------------------------------------------------


@jax.custom_jvp
def own(x):
    return name(x, "h") * 2


own.defjvp(lambda xs, x_dots: (own(xs[0]), 2 * x_dots[0]))


@pytest.mark.parametrize(
    ("function", "asked", "said"),
    [
        (layers, "k", r"no value is named 'k'. The names are 'h', 'g'"),
        (lambda x, w: jnp.sum(x), "k", r"no value has a name; .*checkpoint_name"),
        (lambda x, w: jnp.sum(x), None, r"in <lambda> no value has a name; .*checkpoint_name"),
        (layers, (), r"no names are asked for. The names are 'h', 'g'"),
        (
            lambda x, w: lax.while_loop(lambda x: x < 9, lambda x: name(x + 1, "h"), x[0]),
            "h",
            r"'h' is inside the while_loop at .*test_adjoints.py.* use a fori_loop .* or a scan",
        ),
        (lambda x, w: jnp.sum(own(x)), "h", r"'h' is inside 'custom_jvp_call'.*test_adjoints.py"),
    ],
)
def test_what_is_refused(function: Callable, asked: Any, said: str) -> None:
    for transform in (
        lambda: ft.value_and_adjoints(function, asked)(X, W),
        lambda: ft.value_and_tangents(function, asked)((X, W), (X, W)),
    ):
        with pytest.raises(ValueError, match=said):
            transform()


def test_types_that_are_refused() -> None:
    with pytest.raises(TypeError, match=r"value named 'h' is of type int64.* no derivative"):
        ft.value_and_adjoints(lambda x: jnp.sum(x) * name(3, "h"), "h")(X)
    with pytest.raises(TypeError, match="value_and_adjoints needs a function with a scalar output"):
        ft.value_and_adjoints(lambda x: name(x, "h"), "h")(X)
    with pytest.raises(TypeError, match=r"value_and_adjoints.*int64"):
        ft.value_and_adjoints(lambda x: name(jnp.sum(x) * 1.0, "h"), "h", argnums=0)(3)
    with pytest.raises(TypeError, match="value_and_tangents: primals must be a tuple"):
        ft.value_and_tangents(layers, "h")(X, W)
