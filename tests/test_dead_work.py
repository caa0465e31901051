"""Work that nobody asks for: what a call computes for results that are not read.

A loop, a branch or a checkpoint may give more than is read.  What only these results need must go,
also inside; it is counted, operation by operation, in what functrans writes and in what XLA
compiles, beside JAX.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params

import functrans as ft
from functrans import jaxpr as jx
from functrans.programs.live import giving

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = np.asarray([0.3, 0.7, 1.1], np.float32)
W = np.eye(3, dtype=np.float32) + 0.1


def counted(jaxpr: Any) -> Counter:
    """How often each primitive stands in a jaxpr, and in those that it calls."""
    found: Counter = Counter()
    for equation in jaxpr.eqns:
        found[equation.primitive.name] += 1
        for inner in jaxprs_in_params(equation.params):
            found += counted(getattr(inner, "jaxpr", inner))
    return found


# ---- a program without some of its outputs -------------------------------------------------------


def looped(a, b, n):
    """Beside `sin` a loop carries a counter and `exp`, and stacks `cos`."""

    def step(carry, x):
        a, b, i, c = carry
        return (jnp.sin(a) * x, jnp.exp(b) * i, i + 1, c * b), (jnp.cos(b), a)

    return lax.scan(step, (a, b, n, b), jnp.arange(3.0))


def until(a, b, n):
    def step(carry):
        a, b, i, c = carry
        return jnp.sin(a), jnp.exp(b) + c, i + 1, c * b

    return lax.while_loop(lambda carry: carry[2] < n, step, (a, b, 0, b))


def chosen(a, b, n):
    branches = (lambda a, b: (jnp.sin(a), jnp.exp(b)), lambda a, b: (a, jnp.cos(b)))
    return lax.cond(n > 0, *branches, a, b)


def nested(a, b, n):
    return jax.checkpoint(jax.jit(lambda *args: (*chosen(*args), *until(*args))))(a, b, n)


ARGS = 0.4, 0.3, 2
PROGRAMS: dict[str, tuple[Callable, dict[str, int]]] = {
    "scan": (looped, {"sin": 1, "exp": 0, "cos": 0}),
    "while": (until, {"sin": 1, "exp": 0}),
    "cond": (chosen, {"sin": 1, "exp": 0, "cos": 0}),
    "jit": (jax.jit(chosen), {"sin": 1, "exp": 0, "cos": 0}),
    "ft.jit": (ft.jit(looped), {"sin": 1, "exp": 0, "cos": 0}),
    "checkpoint": (jax.checkpoint(looped), {"sin": 1, "exp": 0, "cos": 0}),
    "nested": (nested, {"sin": 1, "exp": 0, "cos": 0}),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_only_unread_outputs_need_is_gone(name: str) -> None:
    """The first output alone is read; then each output in its turn keeps its value."""
    fun, left = PROGRAMS[name]
    program = ft.make_jaxpr(fun)(*ARGS)
    first = giving(program, program.jaxpr.outvars[:1])
    assert {op: counted(first.jaxpr)[op] for op in left} == left
    assert any(counted(program.jaxpr)[op] > count for op, count in left.items())
    whole = jx.evaluate(program, *ARGS)
    shorter = [giving(program, [out]) for out in program.jaxpr.outvars]
    alone = jax.jit(lambda *args: [jx.evaluate(p, *args)[0] for p in shorter])(*ARGS)
    chex.assert_trees_all_close(alone, whole, rtol=1e-6)


def test_a_trimmed_loop_has_derivatives() -> None:
    """It is bound with params of its own, which JAX and functrans read."""
    program = ft.make_jaxpr(looped)(*ARGS)
    shorter = giving(program, program.jaxpr.outvars[:1])

    def trimmed(a):
        return jx.evaluate(shorter, a, *ARGS[1:])[0]

    def plain(a):
        for x in range(3):
            a = jnp.sin(a) * x
        return a

    for lib in (ft, jax):
        for grad in (lib.grad, lambda f, lib=lib: lib.grad(lib.grad(f))):
            chex.assert_trees_all_close(jax.jit(grad(trimmed))(0.4), grad(plain)(0.4), rtol=1e-5)
    many = jax.jit(jax.vmap(trimmed))(X)
    chex.assert_trees_all_close(many, jax.vmap(plain)(X), rtol=1e-6)


def test_a_call_with_an_effect_stays_whole() -> None:
    """What prints, prints, whoever reads its results."""

    def fun(x):
        def step(carry, _):
            a, b = carry
            jax.debug.print("{b}", b=b)
            return (jnp.sin(a), jnp.cos(b)), None

        return lax.scan(step, (x, x), None, length=2)[0]

    program = ft.make_jaxpr(fun)(1.0)
    shorter = giving(program, program.jaxpr.outvars[:1])
    assert counted(shorter.jaxpr) == counted(program.jaxpr)


# ---- derivatives, beside JAX ---------------------------------------------------------------------

SAVE_PRODUCTS = jax.checkpoint_policies.dots_saveable


def layers(w):
    return jnp.sin(jnp.sin(jnp.sin(X @ w) @ w) @ w)


def branches(w):
    return lax.cond(w[0, 0] > 0, lambda w: jnp.sin(X @ w), lambda w: jnp.cos(w[0]), w)


def steps(w):
    return lax.scan(lambda c, _: (jnp.sin(c @ w), None), jnp.asarray(X), None, length=3)[0]


MODELS: dict[str, Callable] = {
    "checkpointed layers": jax.checkpoint(layers),
    "layers whose products are saved": jax.checkpoint(layers, policy=SAVE_PRODUCTS),
    "checkpointed branches": jax.checkpoint(branches),
    "branches whose products are saved": jax.checkpoint(branches, policy=SAVE_PRODUCTS),
    "a checkpointed call": jax.checkpoint(jax.jit(layers)),
    "a checkpointed loop": jax.checkpoint(steps),
    "a loop whose products are saved": jax.checkpoint(steps, policy=SAVE_PRODUCTS),
    "twice": lambda w: jax.checkpoint(layers)(jax.checkpoint(branches)(w) * w),
}
TRANSFORMS: dict[str, Callable] = {
    "grad": lambda lib, f: lib.grad(f),
    "linearize": lambda lib, f: lambda w: lib.linearize(f, w)[1](w),
    "jvp": lambda lib, f: lambda w: lib.jvp(f, (w,), (w,)),
    "hvp": lambda lib, f: lambda w: lib.jvp(lib.grad(f), (w,), (w,)),
}
WRITTEN = "sin", "cos", "dot_general"


def compiled(fun: Callable) -> Counter:
    text = str(jax.jit(fun).lower(W).compile().as_text())
    return Counter(re.findall(r" (sine|cosine|dot)\(", text))


@pytest.mark.parametrize("name", MODELS)
def test_no_derivative_computes_more_than_that_of_jax(name: str) -> None:
    def total(w):
        return jnp.sum(MODELS[name](w))

    for transform in TRANSFORMS.values():
        ours, theirs = (transform(lib, total) for lib in (ft, jax))
        written = [counted(jax.make_jaxpr(fun)(W).jaxpr) for fun in (ours, theirs)]
        assert all(written[0][op] <= written[1][op] for op in WRITTEN), written
        ops = compiled(ours), compiled(theirs)
        # XLA makes one product of two that share a factor. Of a loop that would be the product for
        # the weights, which functrans computes once, after the loop.
        kinds = {"sine", "cosine"} if "loop" in name else {"sine", "cosine", "dot"}
        assert all(ops[0][op] <= ops[1][op] for op in kinds), ops
