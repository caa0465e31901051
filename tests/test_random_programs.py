"""Random programs: hypothesis writes them with `jax.numpy`, and functrans agrees with JAX.

A program is Python source, which is what a failure prints. Each line calls one operation, on
shapes that broadcast, through an inner `jit` or `vmap`, or under Python control flow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import functrans as ft

UNARY = [
    "jnp.sin({x})",
    "jnp.tanh({x}) * {x}",
    "jnp.exp(-({x} ** 2))",
    "jnp.log1p({x} ** 2)",
    "jnp.sqrt(1 + {x} ** 2)",
    "1 / (2 + jnp.cos({x}))",
    "jnp.sin({x}) ** 3",
    "jnp.arctan({x})",
    "jnp.abs({x})",
    "jnp.clip({x}, -0.5, 0.8)",
    "jnp.where({x} > 0.1, jnp.sin({x}), {x} ** 2)",
    "jnp.round({x}) * jnp.cos({x})",
    "jax.lax.stop_gradient({x}) * {x}",
    "jnp.abs(jnp.exp(1j * {x}) + {x}) ** 2",
    "jnp.real(jnp.exp((0.3 + 1j) * jnp.sin({x})))",
    "jax.nn.relu({x})",
    "jax.nn.silu({x})",
    "jax.nn.gelu({x})",
    "jax.nn.softplus({x})",
    "jnp.sinc({x})",
]
BINARY = [
    "{x} + {y}",
    "{x} - 2 * {y}",
    "jnp.sin({x}) * {y}",
    "{x} / (1 + {y} ** 2)",
    "jnp.maximum({x}, jnp.sin({y}) + 0.1)",
    "jnp.arctan2({x}, 1 + {y} ** 2)",
    "jnp.power(1 + {x} ** 2, jnp.sin({y}))",
    "jnp.where({x} > {y} + 0.1, {x}, jnp.cos({y}))",
    "jnp.logaddexp({x}, {y})",
    "jnp.hypot({x}, 1 + {y} ** 2)",
]
ALONG_AN_AXIS = [
    "jnp.sum({x}, axis={k})",
    "jnp.mean({x}, axis={k}, keepdims=True)",
    "jnp.var({x}, axis={k})",
    "jnp.prod(jnp.cos({x}), axis={k})",
    "jnp.max({x}, axis={k})",
    "jnp.cumsum({x}, axis={k})",
    "jnp.cumprod(jnp.sin({x}), axis={k})",
    "jax.nn.softmax({x}, axis={k})",
    "jax.nn.logsumexp({x}, axis={k}, keepdims=True)",
    "jnp.sort({x}, axis={k})",
    "jnp.take_along_axis({x}, jnp.argsort(jnp.sin({x}), axis={k}), axis={k})",
    "jnp.take({x}, jnp.array([0, -1, 0]), axis={k})",
    "jnp.flip({x}, axis={k}) * {x}",
    "jnp.roll({x}, 1, axis={k}) * {x}",
    "jnp.concatenate([{x}, jnp.sin({x})], axis={k})",
    "jnp.stack([{x}, 0.5 * {x}], axis={k})",
    "jnp.moveaxis({x}, {k}, 0)",
    "jnp.diff(jnp.pad({x}, 1), axis={k})",
    "jnp.repeat({x}, 2, axis={k})",
]
OF_AN_ARRAY = [
    "{x}[0]",
    "{x}[::-1] * {x}[-1:]",
    "{x}.at[0].set(0.5)",
    "{x}.at[jnp.array([0, 0])].add(jnp.sin({x}[-1]))",
    "{x}.at[-1].multiply({x}[0])",
    "{x}.T",
    "jnp.ravel({x})",
    "jnp.einsum('i...,i...->...', {x}, jnp.sin({x}))",
    "jnp.tensordot(jnp.sin({x}), {x}, axes=[[0], [0]])",
    "jax.lax.dynamic_slice_in_dim({x}, jnp.argmax({x}) % 2, 1)",
    "jax.lax.top_k({x}, 1)[0]",
]
WRAPPERS = [
    "jax.jit(lambda a: {inner})({x})",
    "jax.vmap(lambda a: {inner})({x})",
    "jax.jit(jax.vmap(lambda a: {inner}))({x})",
    "jax.vmap(jax.jit(lambda a: {inner}), out_axes=-1)({x})",
    "jax.vmap(lambda a, b: ({inner}) * b)({x}, jnp.sin({x}))",
    "jax.vmap(lambda b: jax.vmap(lambda a: {inner})({x}) * b)({x})",
]
UNTIL_SMALL = """\
    {v} = {x}
    while jnp.max(jnp.abs({v})) > 0.7:
        {v} = 0.8 * jnp.sin({v})
"""
REPEATED = """\
    {v} = {x}
    for i in range(3):
        {v} = jnp.sin((i + 1) * {v}) + {x}
"""
CHOSEN = """\
    if jnp.sum({x}) > 0.2:
        {v} = {one}
    else:
        {v} = {other}
"""
LARGEST = 40


class Program:
    """A function as source text, and the shapes of its arguments."""

    def __init__(self, shapes: list[tuple[int, ...]]):
        self.shapes = shapes
        self.names = [f"x{i}" for i in range(len(shapes))]
        self.body: list[str] = []
        self.types = dict(zip(self.names, shapes, strict=True))

    def add(self, name: str, expression: str, statement: str | None = None) -> None:
        """Append a line if its result is not too large; `expression` has the shape of it."""
        arrays = {k: jax.ShapeDtypeStruct(s, float) for k, s in self.types.items()}
        shape = jax.eval_shape(
            lambda arrays: eval(expression, {"jnp": jnp, "jax": jax, **arrays}), arrays
        ).shape
        if np.prod(shape) <= LARGEST and len(shape) <= 4:
            self.body.append(statement or f"    {name} = {expression}\n")
            self.types[name] = shape

    def source(self) -> str:
        results = ", ".join(list(self.types)[-2:])
        return f"def f({', '.join(self.names)}):\n{''.join(self.body)}    return {results}\n"

    def function(self) -> Callable:
        scope: dict[str, Any] = {"jnp": jnp, "jax": jax}
        exec(self.source(), scope)
        return scope["f"]

    def arguments(self, seed: int) -> tuple:
        rng = np.random.default_rng(seed)
        return tuple(rng.uniform(-1.5, 1.5, shape) for shape in self.shapes)

    def __repr__(self) -> str:
        return f"\n# {dict(zip(self.names, self.shapes, strict=True))}\n{self.source()}"


SHAPES = st.lists(st.sampled_from([1, 2, 3]), max_size=3).map(tuple)


def broadcastable(a: tuple, b: tuple) -> bool:
    return all(1 in (m, n) or m == n for m, n in zip(a[::-1], b[::-1], strict=False))


@st.composite
def programs(draw: Callable, branches: bool = False, most: int = 8) -> Program:
    program = Program(draw(st.lists(SHAPES, min_size=1, max_size=3)))
    kinds = ["unary", "binary", "binary", "axis", "axis", "array", "wrapper", "loop"]
    kinds += ["if", "while"] * branches
    for i in range(draw(st.integers(3, most))):
        name, kind = f"v{i}", draw(st.sampled_from(kinds))
        # Recent values first, so that programs are deep rather than wide.
        x = draw(st.sampled_from(list(program.types)[::-1]))
        shape = program.types[x]
        if kind == "binary":
            fits = [y for y, other in program.types.items() if broadcastable(shape, other)]
            y = draw(st.sampled_from(fits))
            program.add(name, draw(st.sampled_from(BINARY)).format(x=x, y=y))
        elif kind == "axis" and shape:
            k = draw(st.integers(0, len(shape) - 1))
            program.add(name, draw(st.sampled_from(ALONG_AN_AXIS)).format(x=x, k=k))
        elif kind == "array" and shape:
            program.add(name, draw(st.sampled_from(OF_AN_ARRAY)).format(x=x))
        elif kind == "wrapper" and shape:
            inner = draw(st.sampled_from(UNARY)).format(x="a")
            program.add(name, draw(st.sampled_from(WRAPPERS)).format(inner=inner, x=x))
        elif kind == "loop":
            program.add(name, x, REPEATED.format(v=name, x=x))
        elif kind == "while":
            program.add(name, x, UNTIL_SMALL.format(v=name, x=x))
        elif kind == "if":
            one, other = (draw(st.sampled_from(UNARY)).format(x=x) for _ in range(2))
            program.add(name, x, CHOSEN.format(v=name, x=x, one=one, other=other))
        else:
            program.add(name, draw(st.sampled_from(UNARY)).format(x=x))
    return program


def first_order(ad: Any, fun: Callable) -> Callable:
    """The value, and its derivative in both modes."""

    def evaluate(args, args_dot):
        y, y_dot = ad.jvp(fun, args, args_dot)
        y_again, pull = ad.vjp(fun, *args)
        return y, y_again, y_dot, pull(jax.tree.map(jnp.cos, y))

    return evaluate


def second_order(ad: Any, fun: Callable) -> Callable:
    """The Hessian of a scalar function of all results, times a vector."""

    def energy(args):
        return sum(jnp.sum(jnp.sin(y)) for y in fun(*args))

    return lambda args, args_dot: ad.jvp(ad.grad(energy), (args,), (args_dot,))[1]


def close(got: Any, want: Any) -> None:
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        chex.assert_trees_all_close(a, b, rtol=1e-8, atol=1e-9 * (1 + np.max(np.abs(b), initial=0)))


pytestmark = pytest.mark.usefixtures("float64")


deterministic = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@settings(deterministic, max_examples=20)
@given(programs(), st.integers(0, 2**16), st.booleans())
def test_compiled(program: Program, seed: int, nested: bool) -> None:
    fun = program.function()
    args, args_dot = program.arguments(seed), program.arguments(seed + 1)

    def everything(ad, fun):
        parts = first_order(ad, fun), second_order(ad, fun)
        return ad.jit(lambda *xs: [part(*xs) for part in parts])

    ours, theirs = everything(ft, ft.jit(fun) if nested else fun), everything(jax, fun)
    close(*jax.jit(lambda *xs: (ours(*xs), theirs(*xs)))(args, args_dot))


@settings(deterministic, max_examples=4)
@given(programs(branches=True, most=4), st.integers(0, 2**16))
def test_eager(program: Program, seed: int) -> None:
    """Here `if` and `while` may depend on values, as they may in all transforms but `jit`."""
    fun = program.function()
    args, args_dot = program.arguments(seed), program.arguments(seed + 1)
    for order in (first_order, second_order):
        close(order(ft, fun)(args, args_dot), order(jax, fun)(args, args_dot))
