"""What the reverse pass keeps: peak memory beside JAX, policies of `checkpoint`, a list of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from repeated import repeated_after

import functrans as ft
from benchmarks import models


def array(*shape: int, scale: float = 0.3) -> jax.Array:
    return jnp.asarray(scale * np.random.default_rng(list(shape)).normal(size=shape), jnp.float32)


# Programs with loops.


def lstm(params, xs):
    def step(state, x):
        hidden, cell = state
        gates = x @ params["x"] + hidden @ params["h"] + params["b"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    start = jnp.zeros((xs.shape[1], params["h"].shape[0]))
    return jnp.mean(lax.scan(step, (start, start), xs)[1] ** 2)


LSTM = {"x": array(8, 64), "h": array(16, 64), "b": array(64)}


def transformer(layers, x):
    """Twelve layers, scanned: attention and a perceptron, with residual connections."""

    def normalize(x):
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)

    def layer(x, p):
        q, k, v = jnp.split(normalize(x) @ p["qkv"], 3, axis=-1)
        weights = jax.nn.softmax(q @ k.T / np.sqrt(k.shape[-1]))
        x = x + weights @ v @ p["out"]
        return x + jax.nn.gelu(normalize(x) @ p["up"]) @ p["down"], None

    return jnp.mean(lax.scan(layer, x, layers)[0] ** 2)


LAYERS = {
    "qkv": array(12, 16, 48),
    "out": array(12, 16, 16),
    "up": array(12, 16, 32),
    "down": array(12, 32, 16),
}


def ode(params, y):
    """Runge and Kutta's method with a fixed step, for a field that is a small network."""

    def field(y):
        return jnp.tanh(y @ params["w"] + params["b"]) @ params["v"]

    def step(y, h):
        k1 = field(y)
        k2 = field(y + h / 2 * k1)
        k3 = field(y + h / 2 * k2)
        k4 = field(y + h * k3)
        return y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), None

    return jnp.mean(lax.scan(step, y, jnp.full(50, 0.1))[0] ** 2)


FIELD = {"w": array(8, 32), "b": array(32), "v": array(32, 8)}

BLOCK = models.transformer(layers=1, scanned=False, d=64, heads=4, batch=8, time=32)

PROGRAMS: dict[str, tuple[Callable, tuple]] = {
    "LSTM": (lstm, (LSTM, array(30, 4, 8))),
    "transformer": (transformer, (LAYERS, array(10, 16))),
    "ODE": (ode, (FIELD, array(4, 8))),
    # Its softmax divides by a sum, whose copies are not to be written out.
    "block": (BLOCK.fun, (jax.tree.map(jnp.asarray, BLOCK.x), *map(jnp.asarray, BLOCK.data))),
}


def compiled(fun: Callable, *args: Any) -> Any:
    return jax.jit(fun).lower(*args).compile()


@pytest.mark.parametrize("name", PROGRAMS)
def test_peak_memory_is_at_most_that_of_jax(name):
    fun, args = PROGRAMS[name]
    ours, theirs = (compiled(ad.grad(fun), *args) for ad in (ft, jax))
    chex.assert_trees_all_close(ours(*args), theirs(*args), rtol=1e-3, atol=1e-6)
    memory = [program.memory_analysis().temp_size_in_bytes for program in (ours, theirs)]
    assert memory[0] <= memory[1]


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_kept_is_what_is_listed(name):
    """The residuals of the pullback are those of the list, to the byte (but for single numbers)."""
    fun, args = PROGRAMS[name]
    listed = ft.saved_residuals(fun, *args)
    kept = jax.tree.leaves(ft.vjp(fun, *args)[1])
    assert sum(r.size for r in listed if r.shape) == sum(x.nbytes for x in kept if x.ndim)


# Loops.


def stacked_and_kept(fun: Callable, *args: Any, steps: int) -> tuple[list, list]:
    """The shapes of the residuals with an axis for the steps, and of those without."""
    shapes = [residual.shape for residual in ft.saved_residuals(fun, *args)]
    return (
        sorted(shape for shape in shapes if shape[:1] == (steps,)),
        sorted(shape for shape in shapes if shape[:1] != (steps,)),
    )


def test_what_is_the_same_in_each_step_is_computed_once():
    def fun(w, xs):
        def step(c, x):
            c = c + jnp.exp(w) @ x
            return c, None

        return lax.scan(step, jnp.zeros(3), xs)[0]

    stacked, kept = stacked_and_kept(fun, array(3, 4), array(7, 4), steps=7)
    assert stacked == [(7, 4)]  # the input xs, as it is
    assert kept == [(3,), (3, 4)]  # the zero tangent of the first carry, and exp(w)


def test_what_is_an_output_is_not_stacked_again():
    def fun(xs):
        def step(c, x):
            y = jnp.exp(x)
            return c * y, y

        return lax.scan(step, jnp.ones(4), xs)

    stacked, kept = stacked_and_kept(fun, array(7, 4), steps=7)
    assert stacked == [(7, 4), (7, 4)]  # the output y, and the carry
    assert kept == [(4,)]  # the zero tangent of the first carry
    ys = fun(array(7, 4))[1]
    (_, out), pullback = ft.vjp(fun, array(7, 4))
    chex.assert_trees_all_equal(out, ys)
    assert any(x is out for x in jax.tree.leaves(pullback))


# Checkpoints.

WEIGHTS = [array(4, 4, scale=1.0) + i for i in range(3)]


def block(ws, x):
    """Products, elementwise functions, names, and calls."""
    for i, w in enumerate(ws):
        x = jnp.sin(jax.jit(jnp.matmul)(x, w))
        x = checkpoint_name(jnp.exp(x), f"h{i}")
    return x


def scanned_block(ws, x):
    return lax.scan(lambda c, w: (jnp.sin(c @ w), None), x, jnp.stack(ws))[0]


def branching_block(ws, x):
    return lax.cond(x[0, 0] > 0, block, lambda ws, x: jnp.cos(block(ws[:2], x)), ws, x)


policies = jax.checkpoint_policies
POLICIES = {
    "none": None,
    "everything": policies.everything_saveable,
    "nothing": policies.nothing_saveable,
    "dots": policies.dots_saveable,
    "dots without batch": policies.dots_with_no_batch_dims_saveable,
    "these names": policies.save_only_these_names("h0", "h2"),
    "anything except": policies.save_anything_except_these_names("h1"),
    "names but these": policies.save_any_names_but_these("h0"),
    "both": policies.save_from_both_policies(
        policies.dots_saveable, policies.save_only_these_names("h1")
    ),
}


def operations(program: Any) -> dict[str, int]:
    """How often the compiled program has each of the operations that may be done again."""
    text = program.as_text()
    names = ("dot", "sine", "cosine", "exponential")
    return {name: len(re.findall(rf" {name}\(", text)) for name in names}


@pytest.mark.parametrize("fun", repeated_after(1, [block, scanned_block, branching_block]))
@pytest.mark.parametrize("policy", POLICIES)
def test_a_checkpoint_computes_again_what_its_policy_says(fun, policy):
    """Counted in the compiled program; as many as in JAX's."""
    checkpointed = jax.checkpoint(fun, policy=POLICIES[policy])

    def loss(ws, x):
        return jnp.sum(checkpointed(ws, x) ** 2)

    args = WEIGHTS, jnp.ones((2, 4))
    ours, theirs = (compiled(ad.grad(loss), *args) for ad in (ft, jax))
    assert operations(ours) == operations(theirs)
    chex.assert_trees_all_close(ours(*args), theirs(*args), rtol=1e-4, atol=1e-5)


def test_the_policies_differ():
    """In what is handed to XLA; with JAX 0.10, XLA merges on CPU what is computed again."""

    def dots(policy):
        fun = jax.checkpoint(block, policy=policy)
        loss = ft.grad(lambda ws, x: jnp.sum(fun(ws, x) ** 2))
        return jax.jit(loss).lower(WEIGHTS, jnp.ones((2, 4))).as_text().count("dot_general")

    assert dots(policies.dots_saveable) < dots(policies.nothing_saveable)


def test_a_policy_is_asked_once_about_each_equation():
    """One that answers by turns would else save one thing and compute again without another."""
    asked: list[str] = []

    def every_other(primitive, *_, **__):
        asked.append(primitive.name)
        return len(asked) % 2 == 1

    def body(x, _):
        return jnp.exp(jnp.sinh(x)) * x, jnp.exp(x)

    def fun(x):
        return jnp.sum(jax.lax.scan(body, jnp.cbrt(x), None, length=3)[0])

    x = np.linspace(0.1, 1.0, 3, dtype=np.float32)
    got = ft.grad(jax.checkpoint(fun, policy=every_other))(x)
    np.testing.assert_allclose(got, jax.grad(fun)(x), rtol=1e-5)
    assert [asked.count(name) for name in ("cbrt", "sinh", "exp")] == [1, 1, 2]


@pytest.mark.parametrize("policy", ["none", "dots", "these names"])
def test_second_derivatives_through_a_checkpoint(policy):
    checkpointed = jax.checkpoint(block, policy=POLICIES[policy])

    def loss(x):
        return jnp.sum(checkpointed(WEIGHTS, x) ** 2)

    x = array(2, 4)
    ours, theirs = ft.jit(ft.hessian(loss))(x), jax.jit(jax.hessian(loss))(x)
    chex.assert_trees_all_close(ours, theirs, rtol=1e-3, atol=1e-2)


def test_an_offloading_policy_warns_and_saves_on_the_device():
    policy = policies.save_and_offload_only_these_names(
        names_which_can_be_saved=["h0"],
        names_which_can_be_offloaded=["h1"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    fun = jax.checkpoint(block, policy=policy)
    with pytest.warns(UserWarning, match="saves them on the device"):
        got = ft.grad(lambda x: jnp.sum(fun(WEIGHTS, x)))(array(2, 4))
    want = jax.grad(lambda x: jnp.sum(block(WEIGHTS, x)))(array(2, 4))
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_list_names_arguments_and_lines():
    def fun(params, x):
        return jnp.sum(jnp.sin(params["w"]) * x)

    residuals = ft.saved_residuals(fun, {"w": array(3)}, array(3))
    origins = sorted(residual.origin for residual in residuals)
    assert origins[1] == "the argument [1] of fun" or origins[2] == "the argument [1] of fun"
    assert all(r.shape == (3,) and r.dtype == np.float32 and r.size == 12 for r in residuals)
    assert sum(f"{__file__}" in origin for origin in origins) == len(origins) - 1
