"""`blame` names the equation that first made a nan or an infinity, and the numbers that met."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functrans as ft
from functrans.explain import blame

pytestmark = pytest.mark.usefixtures("quick_compilation")


def root(x):
    return jnp.where(x > 0, jnp.sqrt(x), 0.0)


LINE = inspect.getsourcelines(root)[1] + 1
MET = "the derivative of sqrt(0) is inf; it meets the cotangent 0"


def stepping(x):
    def step(c, i):
        return c - 1, jnp.where(i < 2, jnp.sqrt(c), 0.0)

    return jnp.sum(lax.scan(step, x, jnp.arange(4))[1])


def backwards(x):
    return jnp.sum(lax.scan(lambda c, y: (c, root(y) * c), 1.0, x, reverse=True)[1])


def repeated(x):
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, root(c[1])), (0, x))[1]


@jax.custom_vjp
def own(x):
    return x


own.defvjp(lambda x: (x, x), lambda x, y_bar: (y_bar / x,))

ADJOINTS: dict[str, tuple] = {
    "plain": (root, 0.0, MET, ""),
    "jit": (jax.jit(root), 0.0, MET, "jit of root"),
    "vmap": (lambda x: jax.vmap(root)(x), np.array([1.0, 0.0, 2.0]), MET, ""),
    "cond": (lambda x: lax.cond(x < 1, root, jnp.sin, x), 0.0, MET, "branch 1 of cond"),
    "checkpoint": (jax.checkpoint(root), 0.0, MET, "checkpoint"),
    "while": (repeated, 0.0, MET, "step 2 of while"),
    "backwards": (backwards, np.array([0.0, 2.0]), MET, "step 0 of scan"),
    "jit of scan": (
        jax.jit(backwards),
        np.array([2.0, 0.0, 3.0]),
        MET,
        "step 1 of scan, jit of backwards",
    ),
}


@pytest.mark.parametrize("name", ADJOINTS)
def test_adjoints(name: str) -> None:
    fun, x, numbers, inside = ADJOINTS[name]
    found = blame(fun, x)
    assert found and not found.value
    culprit = found.derivative
    assert culprit and culprit.kind == "adjoint" and culprit.operation == "sqrt"
    assert culprit.numbers == numbers and culprit.inside == inside
    assert re.search(rf"test_blame\.py:{LINE}\b", culprit.line)
    assert culprit.result == ("nan at [1]" if name == "vmap" else "nan")
    assert "strong_zeros" in culprit.remedy
    for part in culprit:
        assert part in str(found)
    with ft.strong_zeros():
        assert not blame(fun, x)


# For each function and point: the kind, the operation, and what is said.
OTHERS: list[tuple] = [
    (lambda x: jnp.log(x - 2), 1.0, "value", "log", "nan", "log(-1)"),
    (stepping, 1.0, "value", "sqrt", "nan", "step 2 of scan", "sqrt(-1)"),
    (stepping, 1.0, "adjoint", "sqrt", "nan", "step 3 of scan", "sqrt(-2) is nan", "cotangent 0"),
    (lambda x: jnp.where(x > 0, 1 / x, 0.0), 0.0, "adjoint", "div", "1 / 0 is inf", "cotangent 0"),
    (lambda x: x / jnp.zeros(()), 1.0, "adjoint", "div", "the cotangent 1 is divided by 0"),
    (jnp.linalg.norm, np.zeros(2), "adjoint", "sqrt", "inf", "cotangent 1"),
    (ft.grad(root), 0.0, "value", "div", "inf", "0.5 / 0"),
    (lambda x: jnp.where(x > 5, x, jnp.inf) * 0, 1.0, "value", "mul", "nan", "inf × 0"),
    (jax.nn.softmax, np.array([-np.inf, -np.inf]), "value", "the argument", "-inf at [0]"),
    (
        lambda x: jax.nn.softmax(jnp.where(np.array([[True], [False]]), x, -jnp.inf)),
        np.ones((2, 2)),
        "value", "sub", "nan at [1, 0]", "-inf − -inf",
    ),
    (lambda x: x / jnp.zeros((2, 1)), np.ones((2, 2)), "adjoint", "div", "is divided by 0"),
    (jnp.sum, np.array([1.0, np.nan]), "value", "the argument", "nan at [1]", "passed"),
    (lambda x: own(x * 0), 1.0, "adjoint", "own", "inf", "the cotangent 1 is divided by 0"),
    (lambda x: jnp.exp(x) ** 2, 80.0, "value", "integer_pow", "inf"),
    (
        lambda w: jnp.sum((np.array([[1.0], [np.inf]]) @ w)[:1]),
        np.ones((1, 1)),
        "adjoint", "dot_general", "nan at [0, 0]", "a factor is inf at [1, 0]", "strong_zeros",
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", OTHERS, ids=range(len(OTHERS)))
def test_what_is_said(case: tuple) -> None:
    fun, x, kind, operation, *words = case
    found = blame(fun, x)
    culprit = found.value if kind == "value" else found.derivative
    assert culprit and culprit.kind == kind and operation in culprit.operation
    for word in words:
        assert word in str(culprit)


def test_tangents() -> None:
    def later(x):
        return jnp.sqrt(jnp.where(x > 0, x, 0.0))

    culprit = blame(later, -1.0, mode="fwd").derivative
    assert culprit and culprit.kind == "tangent" and culprit.result == "nan"
    assert culprit.numbers == "the derivative of sqrt(0) is inf; it meets the tangent 0"
    assert not blame(root, 1.0, mode="fwd")


def fine(x):
    c, ys = lax.scan(lambda c, y: (c + y, c * jnp.sin(y)), 0.0, x)
    return jnp.where(c > 0, jnp.sum(ys), jnp.max(x)), jnp.where(x > 0, x, -jnp.inf)


@pytest.mark.parametrize("mode, what", [("rev", "adjoints"), ("fwd", "tangents")])
def test_it_says_so_when_there_is_none(mode: str, what: str) -> None:
    found = blame(fine, np.array([1.0, 2.0]), mode=mode)
    assert not found and str(found) == f"no nan and no infinity in the values and {what}"


NO_FUNCTION: Any = 1.0
WRONG: dict[str, tuple[Callable, type, str]] = {
    "mode": (lambda: blame(root, 1.0, mode="reverse"), ValueError, "'reverse'"),
    "function": (lambda: blame(NO_FUNCTION, 1.0), TypeError, "blame"),
    "argument": (lambda: blame(root, "x"), TypeError, "blame"),
    "jit": (lambda: jax.jit(lambda x: blame(root, x) and x)(1.0), TypeError, "inside jit"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input(name: str) -> None:
    run, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        run()
