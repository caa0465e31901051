"""Loops and branches that are opened, and the arithmetic of indices, which is folded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pygraphviz
import pytest
from jax import lax

import functrans as ft
from functrans.explain import blame, evaluation_table, graph

pytestmark = pytest.mark.usefixtures("quick_compilation")
X = np.linspace(0.5, 1.5, 7)


def scanned(x):
    total, sums = lax.scan(lambda c, v: (c * v, c + jnp.sin(v)), 1.0, x)
    return total + jnp.sum(sums**2)


def backwards(x):
    total, sums = lax.scan(lambda c, v: (c * v, c), 1.0, x, reverse=True)
    return total + jnp.sum(sums * x)


def counted(x):
    return lax.fori_loop(0, 7, lambda i, c: c * jnp.sin(x[i]), 1.0)


def powers(x):
    return lax.while_loop(lambda c: c[1] < 20, lambda c: (c[0] * x, c[1] + 3), (x, 0))[0]


def at_once(x):
    return lax.while_loop(lambda c: c < 0, lambda c: c * c, jnp.sin(x))


def chosen(x):
    return lax.cond(x > 0, lambda t: t * t, jnp.sin, x) + lax.switch(5, [jnp.cos, jnp.exp], x)


def nested(x):
    def step(c, v):
        d = lax.fori_loop(0, 5, lambda _, d: d * v, c)
        return lax.cond(d > 1, jnp.log, jnp.exp, d), jnp.cosh(v)

    total, ys = lax.scan(step, 1.0, x)
    return total * jnp.sum(ys)


def several(x):
    """Two examples, which go round a different number of times."""
    ends = jnp.array([2.0, 5.0])
    return jnp.sum(jax.vmap(lambda e: lax.while_loop(lambda c: c < e, lambda c: c * x, x))(ends))


def checkpointed(x):
    return jax.checkpoint(lambda x: jax.jit(scanned)(jnp.cos(x)))(x)


FUNCTIONS: dict[str, tuple[Callable, Any]] = {
    "scan": (scanned, X),
    "a scan from the end": (backwards, X),
    "fori_loop": (counted, X),
    "while": (powers, np.float64(1.1)),
    "while, that ends at once": (at_once, np.float64(1.1)),
    "branches": (chosen, np.float64(2.0)),
    "branches, the others": (chosen, np.float64(-2.0)),
    "nested": (nested, X),
    "several examples": (several, np.float64(1.3)),
    "one step": (scanned, X[:1]),
    "no step": (scanned, X[:0]),
    "checkpoint": (checkpointed, X),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers(name: str) -> None:
    """What is opened has the values and derivatives of what is not, and those of JAX."""
    with jax.enable_x64(True):
        fun, x = FUNCTIONS[name]
        value, tangent = jax.jvp(fun, (x,), (np.ones_like(x),))
        gradient = ft.grad(fun)(x)
        if "while" not in name and name != "several examples":  # of which JAX has no reverse mode
            np.testing.assert_allclose(gradient, jax.grad(fun)(x), rtol=1e-12)
        for unfold in (False, True, "loops", ("calls", "loops", "branches", "indices")):
            row = evaluation_table(fun, x, unfold=unfold).rows[-1]
            np.testing.assert_allclose(row.value, value, rtol=1e-12)
            np.testing.assert_allclose(row.derivative, tangent, rtol=1e-12)
            reverse = evaluation_table(fun, x, mode="rev", unfold=unfold).rows[-1]
            np.testing.assert_allclose(reverse.derivative, gradient, rtol=1e-12, atol=1e-15)
        assert not blame(fun, x)  # which opens every round


def steps(fun: Callable, *args, **options) -> list:
    return [row for row in evaluation_table(fun, *args, **options).rows if row.part == "step"]


def test_the_first_a_middle_and_the_last_round() -> None:
    rows = steps(lambda x: lax.scan(lambda c, v: (c * v, None), 1.0, x)[0], X, unfold=True)
    assert [(row.place, row.expression) for row in rows] == [
        ("step 0 of scan", "v₀[0]"),
        ("step 0 of scan", "1 × v₁"),
        ("", "steps 1…2 of scan(v₂, v₀)"),
        ("step 3 of scan", "v₀[3]"),
        ("step 3 of scan", "v₃ × v₄"),
        ("", "steps 4…5 of scan(v₅, v₀)"),
        ("step 6 of scan", "v₀[6]"),
        ("step 6 of scan", "v₆ × v₇"),
    ]
    products = np.cumprod(X)
    values = [row.value for row in rows if "×" in row.expression]
    np.testing.assert_allclose(values, products[[0, 3, 6]], rtol=1e-6)
    places = [row.place for row in steps(backwards, X[:2], unfold=True)]
    assert list(dict.fromkeys(places)) == ["step 1 of scan", "step 0 of scan", ""]


def test_a_while_shows_its_conditions() -> None:
    rows = steps(powers, 1.1, unfold=True)
    conditions = [(row.place, bool(row.value)) for row in rows if "< 20" in row.expression]
    rounds = [f"step {i} of while" for i in (0, 3, 6)]
    assert conditions == [*((place, True) for place in rounds), ("", False)]
    products = [row.value for row in rows if "×" in row.expression]
    np.testing.assert_allclose(products, [1.1**2, 1.1**5, 1.1**8], rtol=1e-6)


def test_the_branch_that_is_taken() -> None:
    rows = steps(chosen, 2.0, unfold=True)
    assert [row.expression for row in rows if row.place == "branch 1 of cond"] == [
        "v₀ × v₀",
        "exp(v₀)",
    ]
    assert not any("sin" in row.expression for row in rows)
    within = [row.place for row in steps(nested, X, unfold=True)]
    assert "step 6 of scan, step 4 of scan" in within
    assert any(re.fullmatch(r"step 6 of scan, branch \d of cond", place) for place in within)


def test_only_some_kinds_are_opened() -> None:
    def names(unfold) -> set[str]:
        return {row.expression.split("(")[0] for row in steps(nested, X, unfold=unfold)}

    assert "scan[7 steps]" in names(False) and "scan[7 steps]" in names("branches")
    assert "cond[2 branches]" in names("loops") and "cond[2 branches]" not in names(True)
    with pytest.raises(ValueError, match=r"evaluation_table: unfold .*'calls', .* has 'scan'"):
        steps(nested, X, unfold="scan")


def test_inside_jit() -> None:
    """A scan has so many rounds; how many a `while` has, or which branch is taken, is not known."""
    shown = []

    def fun(x):
        for inner in (powers, chosen):
            shown.append(evaluation_table(inner, x, unfold=True))
        return x

    jax.make_jaxpr(fun)(jax.ShapeDtypeStruct((), np.float32))
    texts = [" ".join(row.expression for row in table.rows) for table in shown]
    assert "while(" in texts[0] and "cond[2 branches](" in texts[1]
    table = evaluation_table(scanned, jax.ShapeDtypeStruct((7,), np.float32), unfold=True)
    assert "step 6 of scan" in {row.place for row in table.rows}


def test_rounds_are_boxes_of_a_graph() -> None:
    drawn = pygraphviz.AGraph(string=graph(nested, X, values=True, unfold=True).dot)
    boxes = {box.graph_attr["label"]: box for box in drawn.subgraphs()}
    assert {"step 0 of scan", "step 3 of scan", "step 6 of scan"} <= boxes.keys()
    inner = {box.graph_attr["label"] for box in boxes["step 6 of scan"].subgraphs()}
    assert {"step 0 of scan", "step 2 of scan", "step 4 of scan"} <= inner
    rows = steps(nested, X, unfold=True)
    assert len(boxes["step 3 of scan"].nodes()) >= 3
    assert len(drawn.nodes()) == len(rows) - sum("[1]" in row.expression for row in rows) + 2


def test_rounds_are_not_taken_for_repetitions() -> None:
    """Each round of many steps is drawn, and what is repeated in it stays inside of its box."""

    def fun(x):
        def step(c, v):
            for _ in range(4):
                c = jnp.sin(c) * v + jnp.exp(c)
            return jnp.cosh(jnp.log(c)) - jnp.tanh(v), None

        return lax.scan(step, 1.0, x)[0]

    drawn = pygraphviz.AGraph(string=graph(fun, X, residuals=True, unfold=True).dot)
    nodes = [box.nodes() for box in drawn.subgraphs()]
    assert len(nodes) == 3 and not {*nodes[0]} & {*nodes[1]} and not {*nodes[1]} & {*nodes[2]}
    assert "3 times more" in drawn.to_string() and re.search(
        r"keeps \d+ arrays: ", drawn.to_string()
    )


def test_a_round_in_a_narrow_terminal(monkeypatch) -> None:
    table = evaluation_table(scanned, X, unfold=True)
    for width, place in ((160, "step 3 of scan"), (72, "scan 3")):
        monkeypatch.setenv("COLUMNS", str(width))
        assert re.search(rf"^ *{place} +v₈ +v₅ × v₇ ", str(table), re.MULTILINE)


# ---- the arithmetic of indices -------------------------------------------------------------------


def picked(lp, y):
    return -jnp.mean(lp[jnp.arange(4), y])


LP, Y = np.arange(12, dtype=np.float32).reshape(4, 3), np.array([0, 2, 1, 0])


def test_the_arithmetic_of_indices_is_one_step() -> None:
    table = evaluation_table(picked, LP, Y, mode="rev")
    rows = [row for row in table.rows if row.part == "step"]
    assert [row.expression for row in rows[:2]] == ["indices(v₀)", "gather(v₋₁, v₁)"]
    np.testing.assert_array_equal(rows[0].value, np.stack([np.arange(4), Y], axis=1))
    assert re.search(r"Not shown: \d+ equations inside 1 folded call \(indices\)", table.notes[0])
    opened = evaluation_table(picked, LP, Y, mode="rev", unfold="indices")
    names = {row.expression.split("(")[0] for row in opened.rows if row.part == "step"}
    assert names >= {"iota", "where", "concatenate"} and "indices" not in names
    for ours in (table, opened):
        np.testing.assert_array_equal(ours.rows[-1].derivative, jax.grad(picked)(LP, Y))


def test_what_is_no_arithmetic_of_indices() -> None:
    def a_result(x, i):
        j = i + 1
        return x[j], j

    def data(x, i, n):
        return jnp.sum(x) * jnp.arange(5).at[i].set(n + n * n)

    def twice(x, i):
        return x[i] * jnp.cos(x[i])

    def texts(fun: Callable, *args) -> list[str]:
        return [row.expression for row in steps(fun, *args)]

    # The column is 0, whatever the row is.
    assert texts(a_result, LP, 1)[:3] == ["v₀ + 1", "indices(v₁)", "dynamic_slice(v₋₁, v₂, 0)"]
    written = texts(data, X, 1, 7)
    assert "v₀ × v₀" in written and any(text.startswith("indices(v₋₁") for text in written)
    assert sum(text.startswith("indices(v₀") for text in texts(twice, X, 2)) == 2
