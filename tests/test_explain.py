"""Evaluation tables and graphs: the numbers, the formulas, what is left out, and how it looks."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pygraphviz
import pytest
from rich.cells import cell_len
from rich.console import Console

import functrans as ft
from functrans.explain import EvaluationTable, blame, evaluation_table, graph, play
from functrans.explain.export import latex, plain_latex
from functrans.explain.notation import marked, value

pytestmark = pytest.mark.usefixtures("quick_compilation")


def loss(w1, w2):
    m = w2 * jnp.log(w1)  # line of the product
    return m + jnp.sqrt(m)


W1, W2 = 2.0, 5.0
M = W2 * math.log(W1)
SLOPE = 1 + 0.5 / math.sqrt(M)  # of m + sqrt m
DOT, BAR = "\u0307", "\u0304"


def plain(text: str) -> str:
    """`v̇₁` as `v1'`, `v̄₁` as `v1~`, so that tests can be typed."""
    digits = str.maketrans("₋₀₁₂₃₄₅₆₇₈₉−", "-0123456789-")
    text = re.sub(rf"([^\W\d_])([{DOT}{BAR}])([₋₀-₉]*)", r"\1\3\2", text)
    return text.translate(digits).replace(DOT, "'").replace(BAR, "~")


def part(table: EvaluationTable, name: str) -> list:
    return [row for row in table.rows if row.part == name]


def derivatives(table: EvaluationTable, name: str) -> list:
    return [row.derivative for row in part(table, name)]


# ---- the textbook's example ----------------------------------------------------------------------


def test_forward_mode_by_hand() -> None:
    values = [math.log(W1), M, math.sqrt(M), M + math.sqrt(M)]
    in_w1 = [1 / W1, W2 / W1, W2 / W1 * 0.5 / math.sqrt(M), W2 / W1 * SLOPE]
    in_w2 = [0, math.log(W1), math.log(W1) * 0.5 / math.sqrt(M), math.log(W1) * SLOPE]
    for wrt, tangents in ((0, in_w1), (1, in_w2)):
        table = evaluation_table(loss, W1, W2, wrt=wrt)
        steps = part(table, "step")
        np.testing.assert_allclose([row.value for row in steps], values, rtol=1e-6)
        np.testing.assert_allclose([row.derivative for row in steps], tangents, rtol=1e-6)
        assert derivatives(table, "input") == [1 - wrt, wrt]
        np.testing.assert_allclose(derivatives(table, "output"), tangents[-1], rtol=1e-6)


def test_forward_mode_in_words() -> None:
    table = evaluation_table(loss, W1, W2)
    rows = [
        (row.step, row.expression, row.derivative_step, row.derivative_expression)
        for row in table.rows
    ]
    assert [tuple(map(plain, row)) for row in rows] == [
        ("v-1", "w1", "v-1'", ""),
        ("v0", "w2", "v0'", ""),
        ("v1", "log(v-1)", "v1'", "v-1' × (1 / v-1)"),
        ("v2", "v0 × v1", "v2'", "v0 × v1'"),
        ("v3", "sqrt(v2)", "v3'", "v2' × (0.5 / v3)"),
        ("v4", "v2 + v3", "v4'", "v2' + v3'"),
        ("y", "v4", "y'", "v4'"),
    ]
    assert table.title == "loss: forward mode, tangent 1 in w1"
    assert table.notes == []


def test_reverse_mode_by_hand() -> None:
    table = evaluation_table(loss, W1, W2, mode="rev")
    reverse = part(table, "seed") + part(table, "reverse") + part(table, "gradient")
    found = [
        (plain(row.step), plain(row.derivative_step), plain(row.derivative_expression))
        for row in reverse
    ]
    assert found == [
        ("y", "v4~", "y~"),
        ("v4", "v2~", "v4~"),
        ("v4", "v3~", "v4~"),
        ("v3", "v2~", "v2~ + v3~ × (0.5 / v3)"),
        ("v2", "v0~", "v2~ × v1"),
        ("v2", "v1~", "v0 × v2~"),
        ("v1", "v-1~", "v1~ × (1 / v-1)"),
        ("w1", "∂y/∂w1", "v-1~"),
        ("w2", "∂y/∂w2", "v0~"),
    ]
    gradient = [SLOPE * W2 / W1, SLOPE * math.log(W1)]
    adjoints = [1, 1, 1, SLOPE, gradient[1], W2 * SLOPE, gradient[0], *gradient]
    np.testing.assert_allclose([row.derivative for row in reverse], adjoints, rtol=1e-6)
    values = [math.log(W1), M, math.sqrt(M), M + math.sqrt(M)]
    np.testing.assert_allclose([r.value for r in part(table, "step")], values, rtol=1e-6)


def test_the_user_s_line() -> None:
    line = loss.__code__.co_firstlineno + 1
    row = next(row for row in evaluation_table(loss, W1, W2).rows if row.step == "v₂")
    assert row.line == ("test_explain.py", line, "m = w2 * jnp.log(w1)  # line of the product")
    assert str(row.line) == f"test_explain.py:{line}"


# ---- against JAX and finite differences ----------------------------------------------------------


@jax.custom_jvp
def with_a_rule(x):
    return jnp.sin(x)


with_a_rule.defjvps(lambda x_dot, _, x: jnp.cos(x) * x_dot)


def network(params, x):
    for w, b in params:
        x = jnp.tanh(x @ w + b)
    return jnp.mean(x**2)


def loops(x):
    total, sums = jax.lax.scan(lambda c, v: (c * jnp.cos(v), c + v), 1.0, x)
    total = jax.lax.cond(total > 0, lambda t: t * t, jnp.sin, total)
    return total + jnp.sum(jnp.where(sums > 1, sums, 0.1 * sums**3))


def library(x):
    return jnp.var(jax.nn.silu(x)) + with_a_rule(x[0]) + jnp.linalg.norm(jax.nn.softmax(x))


def steep(x):
    return jnp.sum(jnp.linalg.solve(jnp.outer(x, x) + jnp.eye(3), jnp.cumsum(x)) ** 2)


RNG = np.random.default_rng(0)
X = RNG.normal(size=3)
PARAMS = [(RNG.normal(size=(3, 2)), RNG.normal(size=2)), (RNG.normal(size=(2, 3)), np.zeros(3))]
REAL_FUNCTIONS: dict[str, tuple[Callable, tuple]] = {
    "loss": (loss, (2.0, 5.0)),
    "network": (network, (PARAMS, RNG.normal(size=(4, 3)))),
    "loops": (loops, (X,)),
    "library": (library, (X,)),
    "linear algebra": (steep, (X,)),
    "jitted": (ft.jit(library), (X,)),
    "a gradient": (lambda *xs: jnp.sum(ft.grad(ft.jit(library))(*xs) ** 2), (X,)),
    "JAX's gradient": (lambda *xs: jnp.sum(jax.grad(loops)(*xs)), (X,)),
}


@pytest.fixture
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", REAL_FUNCTIONS)
def test_numbers(name: str) -> None:
    fun, args = REAL_FUNCTIONS[name]
    args = jax.tree.map(jnp.asarray, args)
    everything = tuple(range(len(args)))
    tangents = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape)), args)
    primal, tangent = jax.jit(lambda *pair: jax.jvp(fun, *pair))(args, tangents)

    forward = part(evaluation_table(fun, *args, tangents=tangents), "output")[0]
    np.testing.assert_allclose(forward.value, primal, rtol=1e-12)
    np.testing.assert_allclose(forward.derivative, tangent, rtol=1e-10)
    ahead = jax.tree.map(lambda x, t: np.add(x, 1e-5 * np.asarray(t)), args, tangents)
    behind = jax.tree.map(lambda x, t: np.add(x, -1e-5 * np.asarray(t)), args, tangents)
    slope = (jax.jit(fun)(*ahead) - jax.jit(fun)(*behind)) / 2e-5
    np.testing.assert_allclose(forward.derivative, slope, rtol=1e-6)

    reverse = evaluation_table(fun, *args, mode="rev")
    gradient = jax.tree.leaves(jax.jit(jax.grad(fun, everything))(*args))
    for ours, theirs in zip(derivatives(reverse, "gradient"), gradient, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_rule_of_the_user_s() -> None:
    """The adjoint is that of the rule, which here is not the derivative."""

    @jax.custom_vjp
    def halved(x):
        return jnp.sin(x)

    halved.defvjp(lambda x: (jnp.sin(x), x), lambda x, y_bar: (0.5 * y_bar * jnp.cos(x),))
    table = evaluation_table(lambda x: 3 * halved(x), 0.0, mode="rev")
    assert [row.expression for row in part(table, "step")] == ["halved(v₀)", "3 × v₁"]
    assert derivatives(table, "gradient") == [1.5]


def test_what_to_differentiate() -> None:
    both = evaluation_table(loss, W1, W2, wrt=(0, 1))
    assert derivatives(both, "input") == [1, 1]
    given = evaluation_table(loss, W1, W2, tangents=(1.0, 1.0))
    assert derivatives(given, "output") == derivatives(both, "output")
    only = evaluation_table(loss, W1, W2, mode="rev", wrt=1)
    assert [row.step for row in part(only, "gradient")] == ["w2"]
    assert "v₋₁" not in [row.step for row in part(only, "reverse")]
    # The first argument that has a derivative.
    table = evaluation_table(lambda n, x: n * x, 3, 2.0)
    assert derivatives(table, "input") == [None, 1]


def test_a_cotangent() -> None:
    table = evaluation_table(
        lambda x: (2 * x, x * x), 3.0, mode="rev", cotangent=(jnp.float32(10), jnp.float32(1))
    )
    assert [row.step for row in part(table, "seed")] == ["y[0]", "y[1]"]
    (row,) = part(table, "gradient")
    assert (row.derivative_step, row.derivative) == ("adjoint of x", 26)


def test_complex_numbers() -> None:
    z = 1 + 2j
    (row,) = part(evaluation_table(lambda z: z * z, z), "output")
    assert (row.value, row.derivative) == (z * z, 2 * z)
    table = evaluation_table(lambda z: z * z, z, mode="rev", cotangent=jnp.complex64(1))
    assert derivatives(table, "gradient") == [2 * z]


# ---- real programs -------------------------------------------------------------------------------


def test_calls_are_folded() -> None:
    def fun(x):
        y, _ = jax.lax.scan(lambda c, v: (jnp.sin(c) * v, None), 1.0, jax.nn.relu(x))
        return jax.lax.cond(y > 0, lambda t: 2 * t, lambda t: t, jax.nn.silu(y))

    table = evaluation_table(fun, jnp.ones(3), mode="rev")
    calls = {row.expression.split("(")[0] for row in part(table, "step")}
    assert calls >= {"relu", "silu", "scan[3 steps]", "cond[2 branches]"}
    (once,) = part(evaluation_table(fun, jnp.ones(1), mode="rev"), "step")[1:2]
    assert once.expression.startswith("scan[1 step](")
    calls = r"\(relu, scan\[3 steps\], silu, cond\[2 branches\]\)"
    assert re.fullmatch(rf"Not shown: \d+ equations inside 4 folded calls {calls}.", table.notes[0])
    # Their derivatives have no formula.
    of_scan = [row for row in part(table, "reverse") if row.expression.startswith("scan")]
    assert [plain(row.derivative_expression) for row in of_scan] == ["v2~ · ∂v2/∂v1"]
    opened = evaluation_table(fun, jnp.ones(3), unfold=True)
    names = {row.expression.split("(")[0] for row in part(opened, "step")}
    assert "logistic" in names and "silu" not in names
    # What the library wrote has the line of the call.
    assert all(row.line.file == "test_explain.py" for row in part(opened, "step"))


def test_a_jitted_function_is_opened() -> None:
    for fun in (ft.jit(loss), jax.jit(ft.jit(loss))):
        assert evaluation_table(fun, W1, W2).rows == evaluation_table(loss, W1, W2).rows


def test_arguments_have_their_paths() -> None:
    def fun(params, *more):
        return params["w"][0] * params["b"] + more[0]

    table = evaluation_table(fun, {"w": [2.0], "b": 3.0}, 1.0)
    labels = [row.expression for row in part(table, "input")]
    assert labels == ["params['b']", "params['w'][0]", "x₂"]
    assert [row.step for row in part(table, "input")] == ["v₋₂", "v₋₁", "v₀"]


def test_large_arrays_are_summarised() -> None:
    table = evaluation_table(lambda x: (x, x > 3, jnp.argsort(x)), jnp.arange(6.0))
    text = str(table)
    assert "f32[6] ‖7.416‖" in text
    assert re.search(r"bool\[6\] 2.true", text)
    assert "i32[6] 0…5" in text
    assert table.notes[-1] == "Arrays of more than 4 elements: type, ‖norm‖."
    assert "[1, 2.5]" in str(evaluation_table(lambda x: x, jnp.array([1, 2.5])))


def test_results_that_nothing_reads() -> None:
    table = evaluation_table(lambda x: jax.lax.sort((x, 2 * x))[1], jnp.array([3.0, 1.0]))
    assert "Not shown: 1 result that nothing reads." in table.notes
    assert [row.step for row in part(table, "step")] == ["v₁", "v₂"]
    assert part(table, "step")[1].expression == "sort(v₀, v₁)[1]"


def test_constants() -> None:
    c = jnp.arange(3.0)
    table = evaluation_table(lambda x: jnp.sum(c * x), jnp.ones(3), mode="rev")
    (row,) = part(table, "constant")
    assert row.step == "c₁"
    np.testing.assert_array_equal(row.value, c)
    np.testing.assert_array_equal(derivatives(table, "gradient"), [c])


def test_functions_without_equations() -> None:
    table = evaluation_table(lambda x: x, 3.0, mode="rev")
    assert part(table, "step") == [] and derivatives(table, "gradient") == [1]
    table = evaluation_table(lambda x: 7.0, 3.0, mode="rev")
    assert part(table, "output")[0].value == 7 and derivatives(table, "gradient") == [0]
    assert derivatives(evaluation_table(lambda x: x, 3.0), "output") == [1]


def test_one_variable_that_is_two_results() -> None:
    table = evaluation_table(lambda x: (x * x,) * 2, 2.0, mode="rev", cotangent=(1.0, 1.0))
    seeds = [(plain(row.derivative_expression), row.derivative) for row in part(table, "seed")]
    assert seeds == [("y~[0]", 1), ("v1~ + y~[1]", 2)]
    assert derivatives(table, "gradient") == [8]


def test_values_without_derivatives() -> None:
    def fun(x, n, key):
        jax.debug.print("{}", n)
        return x * n + jax.lax.stop_gradient(x) + jax.random.uniform(key)

    table = evaluation_table(fun, jnp.bfloat16(2), 3, jax.random.key(0), mode="rev")
    assert [row.step for row in part(table, "gradient")] == ["x"]
    assert derivatives(table, "gradient") == [3]
    forward = evaluation_table(fun, jnp.bfloat16(2), 3, jax.random.key(0))
    assert [row.derivative_step for row in part(forward, "input")[1:]] == ["", ""]
    assert "key<fry>[]" in str(forward) and "debug" in str(forward)


# ---- inside other transformations ----------------------------------------------------------------


def tables_of(transform: Callable, x) -> tuple:
    """What is shown in a function that is transformed, and the result of that."""
    shown = []

    def fun(x):
        shown.append(evaluation_table(loss, x, W2, mode="rev"))
        graph(loss, x, W2, values=True, tangents=True)._repr_svg_()
        return loss(x, W2)

    return transform(fun)(x), shown[0]


def test_inside_grad_there_are_values() -> None:
    expected = evaluation_table(loss, W1, W2, mode="rev")
    for transform in (ft.grad, jax.grad, lambda f: ft.grad(ft.grad(f))):
        result, table = tables_of(transform, W1)
        assert result == transform(lambda x: loss(x, W2))(W1)
        assert [r.derivative for r in table.rows] == [r.derivative for r in expected.rows]


def test_inside_jit_there_are_types() -> None:
    for transform in (ft.jit, jax.jit):
        _, table = tables_of(transform, W1)
        assert {str(row.derivative).lstrip("~") for row in part(table, "reverse")} == {"float32[]"}
        assert table.notes == [
            "Types stand for values that are not known here, as inside jit and vmap."
        ]
    _, table = tables_of(jax.vmap, jnp.ones(3))
    assert part(table, "output")[0].value.shape == ()
    shape = jax.ShapeDtypeStruct((3,), jnp.float32)
    table = evaluation_table(loss, shape, W2)
    assert part(table, "output")[0].value.shape == (3,)


@pytest.mark.usefixtures("few_objects")
def test_a_table_leaves_nothing_behind() -> None:
    def fun(x):
        evaluation_table(loss, x, W2, mode="rev")
        return loss(x, W2)

    assert len(ft.make_jaxpr(fun)(W1).eqns) == len(ft.make_jaxpr(loss)(W1, W2).eqns)
    with jax.checking_leaks():
        ft.jit(fun)(W1)


# ---- mistakes ------------------------------------------------------------------------------------

MISTAKES: dict[str, tuple[Callable, type, str]] = {
    "integers": (lambda: evaluation_table(loss, 2, 5), TypeError, r"w1: int32\[\], .*2.0 for 2"),
    "wrt": (lambda: evaluation_table(loss, 2.0, 5, wrt=1), ValueError, r"wrt=1.*These are \[0\]"),
    "wrt and tangents": (
        lambda: evaluation_table(loss, 2.0, 5.0, wrt=1, tangents=(1.0, 1.0)),
        TypeError,
        "wrt or tangents",
    ),
    "tangents": (
        lambda: evaluation_table(loss, 2.0, 5.0, tangents=(1.0,)),
        TypeError,
        "a tuple with one tangent for each argument, 2 in all",
    ),
    "mode": (lambda: evaluation_table(loss, 2.0, 5.0, mode="reverse"), ValueError, "'rev'"),
    "cotangent": (
        lambda: evaluation_table(loss, 2.0, 5.0, cotangent=1.0),
        ValueError,
        "cotangent is for mode='rev'",
    ),
    "tangents in reverse": (
        lambda: evaluation_table(loss, 2.0, 5.0, mode="rev", tangents=(1.0, 1.0)),
        ValueError,
        "tangents is for mode='fwd'",
    ),
    "a vector": (
        lambda: evaluation_table(lambda x: 2 * x, jnp.ones(3), mode="rev"),
        TypeError,
        r"returns float32\[3\], not one real number.*such as jax.tree.map\(jnp.ones_like, ",
    ),
    "a cotangent's type": (
        lambda: evaluation_table(lambda x: 2 * x, jnp.ones(3), mode="rev", cotangent=jnp.ones(2)),
        ValueError,
        r"float32\[3\], but got float32\[2\]",
    ),
    "no function": (lambda: evaluation_table(3, 2.0), TypeError, "expects a function"),
    "no array": (lambda: evaluation_table(loss, "a", 5.0), TypeError, "evaluation_table: 'a'"),
    "no derivative": (
        lambda: evaluation_table(
            lambda x: jax.pure_callback(abs, jax.ShapeDtypeStruct((), x.dtype), x), 2.0, mode="rev"
        ),
        ValueError,
        r"at .*test_explain.py.* whose derivative is not known",
    ),
    "cotangent of a graph": (
        lambda: graph(loss, 2.0, 5.0, cotangent=1.0),
        ValueError,
        "adjoints=True",
    ),
    "unfold": (
        lambda: play(loss, 2.0, 5.0, unfold=["scan"]),
        ValueError,
        r"play: unfold must be .*'indices'\), but it has 'scan'",
    ),
    **{
        f"no return, {show.__name__}": (
            lambda show=show: show(lambda x: None, 2.0),
            ValueError,
            rf"{show.__name__} needs .* returned None: is a `return` missing\?",
        )
        for show in (evaluation_table, graph, play, blame, ft.saved_residuals)
    },
    "ending": (lambda: graph(loss, 2.0, 5.0).save("x.gif"), ValueError, r"\.svg, \.png"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name: str) -> None:
    act, error, message = MISTAKES[name]
    with pytest.raises(error, match=message):
        act()


@pytest.mark.parametrize("library, act", [("rich.table", evaluation_table), ("pygraphviz", graph)])
def test_without_the_libraries(library: str, act: Callable, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=r"pip install 'functrans\[explain\]'"):
        act(loss, W1, W2)


def test_the_libraries_are_loaded_when_needed() -> None:
    code = "import functrans, sys; print(sorted({'rich', 'pygraphviz'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# ---- how it looks --------------------------------------------------------------------------------


def test_a_table_in_a_terminal(monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    table = evaluation_table(loss, W1, W2, mode="rev")
    text = str(table)
    assert repr(table) == text
    assert max(map(len, text.splitlines())) <= 110  # combining marks have no width
    assert re.search(r"v₂\s+v₀ × v₁\s+3.4657\s+\d+  m = w2", text)
    assert "reverse pass, the last equation first" in text
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True)
    console.print(table)
    assert console.export_text(clear=False).split() == text.split()
    assert "\x1b[32m" in console.export_text(styles=True)  # values are green


@pytest.mark.parametrize("width", [60, 80])
def test_a_table_in_a_narrow_terminal(width: int) -> None:
    """No number is cut; formulas are broken, and lines of code cut, instead."""
    table = evaluation_table(library, jnp.linspace(0.0, 1.0, 9), mode="rev")
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    for row in table.rows:
        assert row.value is None or value(row.value) in text
        assert row.derivative is None or value(row.derivative, is_brief=True) in text


def perceptron(weights, biases, x, target):
    for w, b in zip(weights, biases, strict=True):
        x = jnp.tanh(x @ w + b)
    return jnp.mean((x - target) ** 2)


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_a_row_of_a_perceptron_is_one_line(width: int, mode: str, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    weights = [jnp.full((3, 5), 0.3), jnp.full((5, 2), 0.3)]
    args = (weights, [jnp.ones(5), jnp.ones(2)], jnp.ones((4, 3)), jnp.zeros((4, 2)))
    table = evaluation_table(perceptron, *args, mode=mode)
    text, grids = str(table), table.grids()
    rules = sum(3 + len(set(grid.parts)) - 1 for grid in grids)
    captions = sum(1 + bool(grid.caption) for grid in grids)
    assert len(text.splitlines()) == 1 + len(table.rows) + rules + captions + len(table.notes)
    assert max(map(cell_len, text.splitlines())) <= width
    assert ("return jnp.m" in text) == (width == 120 or mode == "rev")
    beside = str(evaluation_table(perceptron, *args, mode="rev", layout="side by side"))
    assert max(map(cell_len, beside.splitlines())) <= width
    for row in table.rows:  # no number is cut
        assert mode == "fwd" or value(row.derivative, is_brief=True) in beside


def test_a_table_in_a_notebook() -> None:
    table = evaluation_table(lambda x: jnp.where(x < 1, x, 2 * x), 3.0)
    html = table._repr_html_()
    root = ElementTree.fromstring(html)
    cells = ["".join(cell.itertext()) for cell in root.iter("td")]
    assert "v₀ < 1" in cells and "v₀ &lt; 1" in html
    assert len(list(root.iter("tr"))) == len(table.rows) + 1
    reverse = evaluation_table(loss, W1, W2, mode="rev")
    root = ElementTree.fromstring(reverse._repr_html_())
    captions = [caption.text for caption in root.iter("caption")]
    assert captions == ["forward pass", "reverse pass, the last equation first"]


# ---- graphs --------------------------------------------------------------------------------------


def nodes(dot: str) -> dict[str, list[str]]:
    """The lines of text of each node."""
    parsed = pygraphviz.AGraph(string=dot)
    ordered = sorted(parsed.nodes(), key=lambda node: int(node[1:]))
    return {n: re.findall(r">([^<]+)</FONT>", n.attr["label"]) for n in ordered}


def edges(dot: str) -> set[tuple[str, str, str]]:
    """For each edge the names of its ends, and what is written on it."""
    parsed, texts = pygraphviz.AGraph(string=dot), nodes(dot)
    return {
        (
            texts[e[0]][0].split(" ")[0],
            texts[e[1]][0].split(" ")[0],
            (e.attr["label"] or "").strip(),
        )
        for e in parsed.edges()
    }


def test_a_graph_with_values_and_adjoints() -> None:
    picture = graph(loss, W1, W2, values=True, adjoints=True)
    texts = [[plain(line) for line in lines] for lines in nodes(picture.dot).values()]
    assert texts == [
        ["v-1 = w1", "2", "v-1~ = 3.1714"],
        ["v0 = w2", "5", "v0~ = 0.87931"],
        ["v1 = log(v-1)", "0.69315", "v1~ = 6.3429"],
        ["v2 = v0 × v1", "3.4657", "v2~ = 1.2686"],
        ["v3 = sqrt(v2)", "1.8616", "v3~ = 1"],
        ["v4 = v2 + v3", "5.3274", "v4~ = 1"],
        ["y"],
    ]
    # What leaves v₂ adds up to its adjoint.
    assert {tuple(map(plain, edge)) for edge in edges(picture.dot)} == {
        ("v-1", "v1", "3.1714"),
        ("v0", "v2", "0.87931"),
        ("v1", "v2", "6.3429"),
        ("v2", "v3", "0.26858"),
        ("v2", "v4", "1"),
        ("v3", "v4", "1"),
        ("v4", "y", "1"),
    }


def test_a_graph_without_numbers() -> None:
    picture = graph(loss, W1, W2)
    assert {len(lines) for lines in nodes(picture.dot).values()} == {1}
    assert {label for _, _, label in edges(picture.dot)} == {""}
    assert repr(picture) == "Graph(loss: 4 steps)"
    tangents = nodes(graph(loss, W1, W2, tangents=(0.0, 2.0)).dot).values()
    assert [plain(lines[-1]) for lines in tangents][1:3] == ["v0' = 2", "v1' = 0"]


def test_a_graph_shows_types() -> None:
    x = jnp.ones((2, 3))
    plainly = [*nodes(graph(lambda x, s: (jnp.sin(x) @ x.T, s), x, 2.0).dot).values()]
    assert plainly[:3] == [["v₋₁ = x", "f32[2,3]"], ["v₀ = s"], ["v₁ = sin(v₋₁)", "f32[2,3]"]]
    valued = [*nodes(graph(lambda x: (x, x > 0, x[0, 0]), x, values=True).dot).values()]
    assert valued[:2] == [
        ["v₀ = x", "f32[2,3]", "‖2.449‖"],
        ["v₁ = v₀ &gt; 0", "bool[2,3]", "6\u00a0true"],
    ]
    several = [*nodes(graph(lambda x: jax.lax.top_k(x, 1), x, values=True).dot).values()]
    assert several[1][1:] == ["v₁: f32[2,1]", "v₁ = [[1], [1]]", "v₂: i32[2,1]", "v₂ = [[0], [0]]"]
    abstract = nodes(graph(loss, jax.ShapeDtypeStruct((), jnp.float32), W2, values=True).dot)
    assert abstract["n0"] == ["v₋₁ = w1", "f32[]"]


def test_tangents_and_adjoints_in_one_graph() -> None:
    picture = graph(loss, W1, W2, tangents=(1.0, 3.0), adjoints=True)
    texts = {lines[0].split(" ")[0]: lines[1:] for lines in nodes(picture.dot).values()}
    assert [plain(line) for line in texts["v₂"]] == ["v2' = 4.5794", "v2~ = 1.2686"]
    assert picture.title == "loss: 4 steps, the tangents given, cotangent 1 of y"
    # Across each cut of the graph, tangents times adjoints have the same sum.
    inner = {name: [float(line.split(" = ")[1]) for line in lines] for name, lines in texts.items()}
    products = {name: math.prod(pair) for name, pair in inner.items() if pair}
    for cut in (("v₋₁", "v₀"), ("v₁", "v₀"), ("v₂",), ("v₄",)):
        assert math.isclose(sum(products[name] for name in cut), products["v₄"], rel_tol=1e-4)
    everything = graph(ft.jit(network), PARAMS, X[None], values=True, tangents=True, adjoints=True)
    assert "tangent ones in" in everything.title and "cotangent 1 of y" in everything.title
    only = graph(loss, W1, W2, tangents=True, adjoints=True, wrt=1)
    assert "tangent 1 in w2" in only.title and "v₁~" not in plain(only.dot)


KEPT_OF = REAL_FUNCTIONS | {"jitted by JAX": (jax.jit(library), (X,))}


@pytest.mark.parametrize("name", KEPT_OF)
def test_a_graph_marks_what_is_kept(name: str) -> None:
    fun, args = KEPT_OF[name]
    args = jax.tree.map(jnp.asarray, args)
    kept = ft.saved_residuals(fun, *args)
    picture = graph(fun, *args, residuals=True)
    assert any(
        note.startswith(f"Kept for the reverse pass: {kept.total:,} B in {len(kept)} array")
        for note in picture.notes
    )
    lines = [line for lines in nodes(picture.dot).values() for line in lines if "keeps " in line]
    sizes = [int(line.rpartition(": ")[2].removesuffix(" B").replace(",", "")) for line in lines]
    assert sum(sizes) == kept.total


def test_what_is_kept_has_a_name() -> None:
    def fun(w, x):
        return jnp.sum(jnp.sin(jnp.tanh(w @ x)) * jnp.exp(x))

    picture = graph(fun, jnp.ones((3, 3)), jnp.ones(3), residuals=True)
    lines = [*nodes(picture.dot).values()]
    kept = {text[0].split(" ")[0]: text[-1] for text in lines if "keeps " in text[-1]}
    assert kept == {
        "v₋₁": "keeps v₋₁: 36 B",
        "v₀": "keeps v₀: 12 B",
        "v₂": "keeps 1 − v₂²: 12 B",
        "v₃": "keeps cos(v₂), v₃: 24 B",
        "v₄": "keeps v₄: 12 B",
    }
    only = graph(fun, jnp.ones((3, 3)), jnp.ones(3), residuals=True, wrt=1)
    assert "keeps v₀" not in only.dot and "keeps v₋₁" in only.dot


def test_a_graph_folds_calls() -> None:
    picture = graph(lambda x: jnp.sum(jax.nn.silu(x)), jnp.ones(3))
    assert ["v₁ = silu(v₀)", "(2 equations inside)", "f32[3]"] in nodes(picture.dot).values()
    assert picture.notes[0] == "Not shown: 2 equations inside 1 folded call (silu)."


def test_a_graph_of_constants() -> None:
    c = jnp.ones(3)
    texts = list(nodes(graph(lambda x: (c, x, 7.0), 2.0).dot).values())
    assert texts == [["v₀ = x"], ["c₁, a constant", "f32[3]"], ["y[2] = 7"], ["y[0]"], ["y[1]"]]


def deep(depth: int) -> tuple[Callable, list, jax.Array]:
    return network, [(jnp.eye(3), jnp.zeros(3))] * depth, jnp.ones((2, 3))


def test_repeated_steps_are_drawn_once() -> None:
    fun, params, x = deep(50)
    picture = graph(fun, params, x, values=True, adjoints=True)
    assert picture.title.startswith("network: 203 steps")
    texts = list(nodes(picture.dot).values())
    assert ["v₅ … v₂₀₀", "the 4 steps before this, 49 times more"] in texts
    assert "Not shown: 98 inputs that only repeated steps read." in picture.notes
    assert len(texts) < 20
    # In the gradient both passes repeat themselves.
    picture = graph(ft.grad(fun), params, x)
    repeated = [lines for lines in nodes(picture.dot).values() if "times more" in lines[-1]]
    assert len(repeated) == 2
    assert len(nodes(picture.dot)) < 50


def boxes(dot: str) -> dict[str, tuple[float, float, float, float]]:
    """Left, right, bottom and top of each node, as Graphviz lays them out."""
    laid_out = pygraphviz.AGraph(string=dot)
    laid_out.layout("dot")
    found = {}
    for node in laid_out.nodes():
        x, y = map(float, node.attr["pos"].split(","))
        width, height = 72 * float(node.attr["width"]), 72 * float(node.attr["height"])
        found[node] = x - width / 2, x + width / 2, y - height / 2, y + height / 2
    return found


@pytest.mark.parametrize("count", [4, 200])
def test_nodes_do_not_overlap(count: int) -> None:
    def fun(x, y):
        for i in range(count // 4):
            x, y = jnp.sin(x) * y, (jnp.cos(y) + x if i % 3 else y - jnp.exp(-x))
        return x + y

    placed = list(boxes(graph(fun, 1.0, 2.0, values=True, adjoints=True).dot).values())
    assert len(placed) > count // 8
    for i, (left, right, bottom, top) in enumerate(placed):
        for left2, right2, bottom2, top2 in placed[:i]:
            assert right <= left2 or right2 <= left or top <= bottom2 or top2 <= bottom


def test_a_graph_in_files(tmp_path: Path) -> None:
    picture = graph(loss, W1, W2, values=True)
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF", "dot": b"digraph"}
    for ending, start in starts.items():
        picture.save(tmp_path / f"graph.{ending}")
        assert (tmp_path / f"graph.{ending}").read_bytes().startswith(start), ending
    root = ElementTree.fromstring(picture._repr_svg_())
    texts = ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "v₂ = v₀ × v₁" in texts and "3.4657" in texts


def test_text_is_escaped() -> None:
    picture = graph(lambda x: (x["<b>"] < 1) & (x["<b>"] > 0), {"<b>": 2.0})
    root = ElementTree.fromstring(picture._repr_svg_())
    assert "v₀ = x['<b>']" in "".join(root.itertext())


def test_marks_stand_over_the_letter() -> None:
    assert marked("v₁₂", BAR) == f"v{BAR}₁₂"


# ---- files, and the layout -----------------------------------------------------------------------


def test_a_table_as_a_file(tmp_path: Path) -> None:
    table = evaluation_table(loss, W1, W2, mode="rev")
    texts = {}
    for ending in ("html", "md", "tex"):
        table.save(tmp_path / f"table.{ending}")
        texts[ending] = (tmp_path / f"table.{ending}").read_text(encoding="utf-8")
    assert table._repr_html_() in texts["html"]
    lines = texts["md"].splitlines()
    assert lines.count("|---|---|---|---|") == 2 and "| v₂ | v₀ × v₁ | 3.4657 |" in texts["md"]
    last = r"$\mathrm{w2}$ & $\partial y/\partial \mathrm{w2} = \bar{v}_{0}$ & $0.87931$ &  \\"
    assert last in texts["tex"] and texts["tex"].count(r"\begin{tabular}{llll}") == 2
    assert r"$\bar{v}_{2} = \bar{v}_{2} + \bar{v}_{3} \times (0.5 / v_{3})$" in texts["tex"]
    assert not any(letter in texts["tex"] for letter in "₀₁₂×∂" + BAR)
    with pytest.raises(ValueError, match=r"must end in \.html, \.md, \.tex"):
        table.save(tmp_path / "table.pdf")


def test_signs_of_latex_in_a_text() -> None:
    def f(p):
        return p["a_b"] @ p["a_b"]  # 100 % & more

    formulas = evaluation_table(f, {"a_b": np.ones(3)}).grids()[0].rows
    assert [latex(cell) for cell in formulas[1][:2]] == ["v_{1}", "v_{0} @ v_{0}"]
    assert latex("v₁ᵀ + sum_of(v₋₁²)") == r"v_{1}^{\mathsf T} + \mathrm{sum\_of}(v_{-1}^{2})"
    assert latex("steps 1…2 of scan(v₁)") == (
        r"\mathrm{steps}\ 1\dots 2\ \mathrm{of}\ \mathrm{scan}(v_{1})"
    )
    assert plain_latex("100 % & a_b^c") == r"100 \% \& a\_b\textasciicircum c"


def test_both_passes_side_by_side() -> None:
    table = evaluation_table(loss, W1, W2, mode="rev", layout="side by side")
    console = Console(file=io.StringIO(), width=180, color_system=None, force_jupyter=False)
    console.print(table)
    lines = plain(console.file.getvalue()).splitlines()
    assert any("forward pass" in line and "reverse pass" in line for line in lines)
    assert 'class="side-by-side"' in table._repr_html_()
    assert table.rows == evaluation_table(loss, W1, W2, mode="rev").rows
    with pytest.raises(ValueError, match="layout must be 'stacked' or 'side by side'"):
        evaluation_table(loss, W1, W2, layout="beside")
