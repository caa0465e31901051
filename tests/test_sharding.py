"""Explicitly sharded arrays: each zero, seed, carry and basis vector has the sharding of its value.

With `AxisType.Explicit` the sharding is part of an array's type, and JAX compares types: the carry
of a loop before and after a step, the branches of a `cond`, the cases of a `select`, the parts of a
`concatenate`.  The number of devices is fixed when JAX starts, so that all of it runs in a child
process, which is this file run as a script.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functrans as ft

pytestmark = pytest.mark.usefixtures("quick_compilation")

PROGRAMS: dict[str, Callable] = {}
"""Functions of weights, which all devices have, and of rows, of which each has some."""


def program(fun: Callable) -> Callable:
    PROGRAMS[fun.__name__] = fun
    return fun


def steps(body: Callable, start: Any) -> Any:
    return lax.scan(body, start, None, length=2)


@program
def carry_that_moves_later(w, x):
    return steps(lambda c, _: (jnp.tanh(c @ w), None), x)[0]


@program
def carry_that_does_not_move(w, x):
    fixed = lax.stop_gradient(x)
    return steps(lambda c, _: ((c[0] * 1.0, jnp.tanh(c[1] @ w) + c[0]), c[1]), (fixed, x))


@program
def sums_over_steps(w, x):
    def step(total, row):
        return total + jnp.sin(row @ w), total * row

    return lax.scan(step, jnp.zeros_like(x), jnp.stack([x, 2 * x]))


@program
def fori_loop(w, x):
    return lax.fori_loop(0, 2, lambda i, c: jnp.sin(c @ w), x)


@program
def loop_until(w, x):
    """Of which JAX has no reverse mode."""
    return lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jnp.sin(s[1] @ w)), (0, x))[1]


FOR_JAX = {loop_until: fori_loop}
"""What JAX differentiates in their place."""


@program
def where(w, x):
    return jnp.where(x > 0.3, x @ w, 0.0), jnp.where(x > 0.3, x, x @ w)


@program
def concatenate(w, x):
    return jnp.concatenate([x @ w, jnp.ones_like(x), x], 1), jnp.stack([x @ w, x], 1)


@program
def split(w, x):
    return jnp.split(x @ w, 3, axis=1)[1], jnp.pad(x @ w, ((0, 0), (1, 2)))


@program
def branches(w, x):
    at_zero = lax.cond(w[0, 0] < 0, lambda w, x: jnp.zeros_like(x), lambda w, x: x * 1.0, w, x)
    return at_zero, lax.switch(1, [lambda w, x: x, lambda w, x: jnp.cos(x @ w)], w, x)


@program
def checkpoint(w, x):
    policy = jax.checkpoint_policies.dots_saveable

    def layer(w, x):
        return lax.cond(
            w[0, 0] > 0, lambda w, x: jnp.sin(jnp.sin(x @ w)), lambda w, x: x * 1.0, w, x
        )

    return jax.checkpoint(layer)(w, x), jax.checkpoint(layer, policy=policy)(w, x)


@program
def calls(w, x):
    def layer(w, x):
        return jnp.tanh(x @ w)

    rows = jax.vmap(lambda row: jnp.sin(row @ w))(x)
    specs = {"in_specs": (PartitionSpec(), PartitionSpec("d")), "out_specs": PartitionSpec("d")}
    return jax.jit(layer)(w, x), ft.jit(layer)(w, x), rows, jax.shard_map(layer, **specs)(w, x)


@program
def broadcasts(w, x):
    return x + jnp.sum(w, 0), jnp.tile(x @ w, (1, 2)), (x @ w).reshape(8, 1, 3)


@program
def convolution(w, x):
    return lax.conv_general_dilated((x @ w)[:, None, :], w[None, :1, :2], (1,), "VALID")


@program
def reductions(w, x):
    y = x @ w
    deviation = (y - y.mean(-1, keepdims=True)) / jnp.sqrt(y.var(-1, keepdims=True) + 1e-3)
    return jax.nn.logsumexp(y, axis=-1), jnp.max(y, axis=1), jnp.sum(y, axis=0), deviation


@program
def indices(w, x):
    y = x @ w
    return y.at[:, jnp.array([0, 2])].add(x[:, :2]), y[:, jnp.array([2, 0])], y.at[:, 1].set(3.0)


@program
def what_is_not_read(w, x):
    return jnp.sin(w), lax.stop_gradient(x) * 2


def loss(fun: Callable) -> Callable:
    return lambda w, x: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(fun(w, x)))


def derivatives(ad: Any, fun: Callable, w: Any, x: Any) -> dict:
    w_dot, both = jnp.cos(w), (jnp.cos(w), jnp.cos(x))
    found = {
        "grad": ad.grad(loss(fun), (0, 1))(w, x),
        "jvp in one": ad.jvp(lambda w: fun(w, x), (w,), (w_dot,)),
        "linearize": ad.linearize(fun, w, x)[1](*both),
    }
    if fun is PROGRAMS["convolution"]:  # JAX cannot batch it
        found["hvp"] = ad.jvp(ad.grad(loss(fun)), (w, x), both)
    else:
        found |= {
            "jacfwd": ad.jacfwd(fun, (0, 1))(w, x),
            "jacrev": ad.jacrev(fun, (0, 1))(w, x),
            "hessian": ad.hessian(loss(fun), (0, 1))(w, x),
        }
    return found


def complaints(name: str, w: Any, x: Any) -> list[str]:
    """Where functrans and JAX give other numbers, or other types."""
    fun, said = PROGRAMS[name], []
    both = (ft, fun), (jax, FOR_JAX.get(fun, fun))
    got, want = jax.jit(lambda w, x: [derivatives(*each, w, x) for each in both])(w, x)
    for transform in want:
        pairs = jax.tree.leaves(got[transform]), jax.tree.leaves(want[transform])
        for a, b in zip(*pairs, strict=True):
            if jax.typeof(a) != jax.typeof(b):
                said.append(f"{transform}: {jax.typeof(a)} for {jax.typeof(b)}")
            elif not np.allclose(a, b, rtol=1e-9, atol=1e-9):
                said.append(f"{transform}: {a} for {b}")
    return said


def own_ends(w: Any, x: Any) -> list[str]:
    """A loop that takes other numbers of steps on other devices, and goes back as many."""

    def grown(scale, w, x):
        def step(c):
            return 1.5 * c + jnp.sin(c @ w) * scale(w[0, 0])

        end = lax.while_loop(lambda c: jnp.sum(c) < 30.0, step, x)
        return jnp.sum(end**2)[None]

    def total(scale, w, x):
        rows = PartitionSpec("d")
        specs = {"in_specs": (PartitionSpec(), rows), "out_specs": rows}
        return jnp.sum(jax.shard_map(functools.partial(grown, scale), **specs)(w, x))

    def one_by_one(scale, w, x):
        return sum(grown(scale, w, part)[0] for part in x)

    ours, said = functools.partial(total, jax.nn.sigmoid), []
    theirs = functools.partial(one_by_one, jax.nn.sigmoid)
    parts, own_w = np.split(np.asarray(x), 4), np.asarray(w)
    got = jax.jit(ft.grad(ours, 1))(w, x)
    want = np.concatenate(ft.grad(theirs, 1)(own_w, parts))
    said += [] if np.allclose(got, want, rtol=1e-9) else [f"its own input: {got}"]
    for transform in (ft.grad, lambda f: ft.grad(lambda w, x: jnp.sum(w * ft.grad(f)(w, x)))):
        got = jax.jit(transform(ours))(w, x)
        want = transform(theirs)(own_w, parts)
        said += [] if np.allclose(got, want, rtol=1e-9) else [f"what it reads: {got} for {want}"]
    try:  # a program inside that is typed, and not the user's
        jax.jit(ft.grad(functools.partial(total, jax.nn.relu)))(w, x)
    except NotImplementedError as error:
        return said if "pcast" in str(error) and "grown" in str(error) else [str(error)]
    return [*said, "the sum over devices in each step was not refused"]


def on_four_devices() -> dict[str, list[str]]:
    jax.config.update("jax_num_cpu_devices", 4)
    jax.config.update("jax_enable_x64", True)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        w = jnp.eye(3) + jnp.arange(9.0).reshape(3, 3) / 10
        x = jax.device_put(
            jnp.arange(24.0).reshape(8, 3) / 24, NamedSharding(mesh, PartitionSpec("d"))
        )
        found = {}
        for name in PROGRAMS:
            try:
                found[name] = complaints(name, w, x)
            except Exception as error:
                found[name] = [f"{type(error).__name__}: {str(error)[:300]}"]
        found["each device its own end"] = own_ends(w, x)
        ways = {"eager": lambda f: f, "ft.jit": ft.jit}  # and not within `jax.jit`
        for name, way in ways.items():
            got = way(ft.grad(loss(carry_that_moves_later), (0, 1)))(w, x)
            want = jax.jit(jax.grad(loss(carry_that_moves_later), (0, 1)))(w, x)
            same = all(
                jax.typeof(a) == jax.typeof(b) and np.allclose(a, b, rtol=1e-9)
                for a, b in zip(got, want, strict=True)
            )
            found[name] = [] if same else [str(got)]
        return found


@pytest.fixture(scope="module")
def found(run_once: Callable[[str], Path]) -> dict[str, list[str]]:
    return json.loads((run_once(__file__) / "found.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [*PROGRAMS, "eager", "ft.jit", "each device its own end"])
def test_types_and_values_are_those_of_jax(name: str, found: dict[str, list[str]]) -> None:
    assert found[name] == []


if __name__ == "__main__":
    (Path(sys.argv[1]) / "found.json").write_text(json.dumps(on_four_devices()), encoding="utf-8")
