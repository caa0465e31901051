"""Sparse Jacobians and Hessians: no pattern has too few nonzeros, and those of known kinds none too
many; each coloring can be read; and what is evaluated is the dense matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.experimental.sparse import BCOO, BCSR
from jax.extend.core import Primitive
from jax.flatten_util import ravel_pytree
from jax.interpreters import ad, batching, mlir
from scipy import optimize
from scipy import sparse as scipy_sparse
from scipy.sparse.linalg import spsolve

import functrans as ft
from functrans import extend
from functrans.explain import graph
from functrans.sparse import numbers
from functrans.sparse.coloring import best, stars
from tests.test_random_programs import Program, deterministic, programs

pytestmark = pytest.mark.usefixtures("float64")


def dense(fun: Callable, x: Any) -> Any:
    """The Jacobian, by JAX, as a matrix."""
    flat, unflatten = ravel_pytree(x)
    return jax.jacfwd(lambda v: ravel_pytree(fun(unflatten(v)))[0])(flat)


def evaluated(cases: dict[str, Any]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """For each case its Jacobian at each point, ours and JAX's; all are one program."""
    functions = {name: ft.sparse.jacobian(fun, x, format="dense") for name, (fun, x, *_) in
                 cases.items()}  # fmt: skip

    def both(points):
        return {
            name: [(functions[name](x), dense(cases[name][0], x)) for x in xs]
            for name, xs in points.items()
        }

    points = {name: case[3] if len(case) > 3 else [case[1]] for name, case in cases.items()}
    return jax.tree.map(np.asarray, jax.jit(both)(points))


# ---- patterns ------------------------------------------------------------------------------------

RNG = np.random.default_rng(7)
SIX, EIGHT = RNG.uniform(0.5, 1.5, 6), RNG.uniform(0.5, 1.5, 8)
GRID = RNG.uniform(0.5, 1.5, (4, 5))
SENDERS, RECEIVERS = np.array([0, 1, 2, 2, 5]), np.array([1, 2, 0, 4, 5])
TRIANGLES = np.array([[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]])
WEIGHTS = RNG.normal(size=(2, 2))
BAND = np.eye(8) + 2 * np.eye(8, k=1)


def stored(matrix: np.ndarray, nse: int) -> BCOO:
    """As `BCOO.fromdense` gives it, by NumPy: XLA would compile whenever pytest looks for tests."""
    data, places = np.zeros(nse, np.float32), np.full((nse, 2), matrix.shape, np.int32)
    nonzeros = np.argwhere(matrix)
    data[: len(nonzeros)], places[: len(nonzeros)] = matrix[matrix != 0], nonzeros
    args = jnp.asarray(data), jnp.asarray(places)
    return BCOO(args, shape=matrix.shape, indices_sorted=True, unique_indices=True)


STORED, SMALL = stored(BAND, 20), stored(BAND[:4, :4], 7)
COMPRESSED = BCSR.from_scipy_sparse(scipy_sparse.csr_array(BAND.astype(np.float32)))
THREE = jnp.asarray([[0, 1], [1, 1], [2, 0]])
CROSS: Any = np.array([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]])[None, None]


def ones(*shape: int) -> Any:
    return np.ones(shape)


def bratu(u):
    p = jnp.pad(u, 1)
    inner = p[2:, 1:-1] + p[:-2, 1:-1] + p[1:-1, 2:] + p[1:-1, :-2]
    return inner - 4 * u + jnp.exp(u)


def bratu_energy(u):
    p = jnp.pad(u, 1)
    return 0.5 * (jnp.sum((p[1:] - p[:-1]) ** 2) + jnp.sum((p[:, 1:] - p[:, :-1]) ** 2)) - jnp.sum(
        jnp.exp(u)
    )


def arrow(x):
    return (x**2 * x[0]).at[0].set(jnp.sum(jnp.sin(x)))


def messages(x):
    h = x.reshape(6, 2)
    sent = jnp.tanh(h[SENDERS] @ WEIGHTS)
    return h**2 + jax.ops.segment_sum(sent, RECEIVERS, 6)


def elements(u):
    corners = u[TRIANGLES]
    edges = corners[:, 1:] - corners[:, :1]
    return jnp.sum(jnp.sqrt(1 + jnp.sum(edges**2, axis=1)))


def convolved(x):
    return lax.conv_general_dilated(x[None, None], CROSS, (1, 1), "SAME") ** 2


def heat(x):
    def step(c, _):
        return c + 0.1 * (jnp.roll(c, 1) - 2 * c + jnp.roll(c, -1)) + c**3, None

    return lax.scan(step, x, None, length=2)[0]


def shifted(x):
    return lax.scan(lambda c, a: (a, a * c), x[0], x)[1]


def written(x):
    return lax.fori_loop(0, 4, lambda i, c: c.at[i].set(c[i + 1] * x[i]), x)


def from_behind(x):
    return lax.scan(lambda c, a: (c * a, c + a), 1.0, x, reverse=True)


def blocks(x):
    pairs = x.reshape(4, 2)
    return jax.vmap(lambda a: jnp.linalg.solve(jnp.outer(a, a) + jnp.eye(2), jnp.sin(a)))(pairs)


@jax.custom_jvp
def straight_through(x):
    return jnp.floor(x)


straight_through.defjvp(lambda xs, x_dots: (jnp.floor(xs[0]), x_dots[0]))


doubled_p = Primitive("doubled_for_a_pattern")
doubled_p.def_impl(lambda x: 2.0 * jnp.roll(x, 1))
doubled_p.def_abstract_eval(lambda x: x)
mlir.register_lowering(doubled_p, mlir.lower_fun(doubled_p.impl, multiple_results=False))
batching.primitive_batchers[doubled_p] = lambda xs, axes: (
    jax.vmap(doubled_p.impl, axes[0])(*xs), 0)  # fmt: skip
ad.primitive_jvps[doubled_p] = lambda xs, x_dots: (doubled_p.bind(*xs), doubled_p.impl(*x_dots))
ft.rules.linear(doubled_p, lambda y_bar, x: 2.0 * jnp.roll(y_bar, -1))


EXACT: dict[str, tuple[Callable, Any]] = {
    "five points": (bratu, GRID),
    "the gradient of its energy": (ft.grad(bratu_energy), GRID),
    "a band": (lambda x: x[1:-1] ** 3 + x[2:] * x[:-2], EIGHT),
    "periodic": (lambda x: jnp.roll(x, 2) * x, EIGHT),
    "an arrow": (arrow, SIX),
    "blocks": (blocks, EIGHT),
    "a product with a band": (lambda x: jnp.asarray(BAND) @ jnp.sin(x), EIGHT),
    "the same from the right": (lambda x: x.reshape(2, 4) @ jnp.asarray(BAND[:4, :4]), EIGHT),
    "products of matrices in a batch": (
        lambda x: jnp.einsum("bij,bjk->bik", x.reshape(2, 2, 2), x.reshape(2, 2, 2)), EIGHT),
    "a stored matrix": (
        lambda x: STORED @ jnp.sin(x), EIGHT),
    "compressed rows": (lambda x: COMPRESSED @ x.reshape(8, 1) ** 2, EIGHT),
    "a stored matrix on the right": (
        lambda x: x.reshape(2, 4) @ SMALL, EIGHT),
    "stored numbers that vary": (
        lambda x: BCOO((x[:3], THREE), shape=(3, 2))
        @ np.ones((2, 2)), SIX),
    "the gradient of an energy with it": (
        ft.grad(lambda x: jnp.sum((STORED @ x) ** 3)), EIGHT),
    "a primitive of the user's": (lambda x: doubled_p.bind(x)[::-1], SIX),
    "messages": (messages, RNG.uniform(size=12)),
    "finite elements": (ft.grad(elements), SIX),
    "a convolution with a cross": (convolved, GRID),
    "with strides and dilations": (
        lambda x: lax.conv_general_dilated(
            x[None, None], ones(2, 1, 2, 2), (2, 1), [(1, 1), (0, 2)], (2, 1), (1, 2)), GRID),
    "in groups": (
        lambda x: lax.conv_general_dilated(
            x.reshape(1, 4, 2), ones(4, 2, 2), (1,), [(0, 1)], feature_group_count=2), EIGHT),
    "in groups of the batch": (
        lambda x: lax.conv_general_dilated(
            x.reshape(4, 1, 2), ones(4, 1, 2), (1,), [(0, 1)], batch_group_count=2), EIGHT),
    "in the kernel": (
        lambda w: lax.conv_general_dilated(
            jnp.sin(jnp.arange(1.0, 13).reshape(2, 2, 3)), w.reshape(2, 2, 2), (1,), [(0, 0)]),
        EIGHT),
    "a mask": (lambda x: jnp.where(jnp.arange(8) > 3, x, 0) * np.array([1, 0] * 4), EIGHT),
    "a mask of a factor": (lambda x: (np.array([1, 0] * 4) * jnp.sin(x)) * jnp.roll(x, 1), EIGHT),
    "a mask of a quotient": (lambda x: np.array([1, 0] * 4) / x, EIGHT),
    "filled with ones": (
        lambda x: jnp.take(x * np.array([1, 0] * 4), np.array([0, 20, 2]), fill_value=1.0)
        * x[5:], EIGHT),
    "zeros around": (lambda x: jnp.pad(x, 1)[2:] * jnp.pad(x, 1)[:-2], EIGHT),
    "zeros that are written over": (
        lambda x: jnp.zeros(8).at[:3].set(jnp.cos(x[:3])) * x[::-1], EIGHT),
    "a band of products": (
        lambda x: jnp.triu(jnp.tril(jnp.outer(x, x) + 1, 1), -1) @ jnp.sin(x), EIGHT),
    "its gradient": (
        ft.grad(lambda x: jnp.sum(jnp.triu(jnp.tril(jnp.outer(x, x) ** 2, 1), -1) ** 2)), EIGHT),
    "cumulative": (lambda x: jnp.cumsum(x.reshape(2, 4), axis=1), EIGHT),
    "a cumulative product": (lambda x: jnp.cumprod(x.reshape(2, 4), axis=0), EIGHT),
    "cumulative from the end": (lambda x: lax.cumsum(x, reverse=True), EIGHT),
    "normalized": (lambda x: jax.nn.softmax(x.reshape(4, 2), axis=1), EIGHT),
    "a transform": (lambda x: jnp.abs(jnp.fft.fft(x.reshape(4, 2))), EIGHT),
    "sums over windows": (
        lambda x: lax.reduce_window(x, 0.0, lax.add, (3,), (2,), "SAME"), EIGHT),
    "set and added": (
        lambda x: x.at[jnp.array([0, 2])].set(x[5:7]).at[jnp.array([1, 1])].add(x[3:5]), EIGHT),
    "multiplied": (
        lambda x: x.at[jnp.array([0, 2])].multiply(x[5:7], unique_indices=True), EIGHT),
    "subtracted": (lambda x: x.at[jnp.array([0, 2])].subtract(x[5:7]), EIGHT),
    "split and joined": (
        lambda x: jnp.concatenate([jnp.stack(jnp.split(x, 2)).T, jnp.tile(x[:2], (2, 1))]), EIGHT),
    "with gaps": (lambda x: lax.pad(x, x[0], [(-1, 2, 1)]), EIGHT),
    "complex inside": (lambda x: jnp.abs(jnp.exp(1j * x) + x[::-1]) ** 2, SIX),
    "at an index": (lambda x: lax.dynamic_slice(x, (jnp.arange(5)[3],), (2,)) ** 2, EIGHT),
    "heat": (heat, EIGHT),
    "shifted": (shifted, SIX),
    "the gradient of it": (ft.grad(lambda x: jnp.sum(shifted(x))), SIX),
    "written in a loop": (written, SIX),
    "from behind": (from_behind, SIX),
    "mapped": (lambda x: lax.map(lambda a: a * jnp.sum(a), x.reshape(4, 2)), EIGHT),
    "computed again": (jax.checkpoint(lambda x: jnp.sin(x) * x[::-1]), SIX),
    "a rule of the user's": (straight_through, SIX),
    "a tree": (lambda x: {"a": x["u"] * x["v"], "b": x["v"] ** 2}, {"u": SIX[:3], "v": SIX[3:]}),
    "nothing": (lambda x: (jnp.floor(x), jnp.zeros(2), lax.stop_gradient(x)), SIX),
}  # fmt: skip
"""Programs whose patterns have none too many, at arguments where no nonzero is 0 by chance."""


def test_exact() -> None:
    for name, [(got, want)] in evaluated(EXACT).items():
        fun, x = EXACT[name]
        pattern = ft.sparse.jacobian_pattern(fun, x).dense()
        np.testing.assert_array_equal(pattern, want != 0, err_msg=name)
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12, err_msg=name)


def chosen(x):
    return lax.cond(x[0] > 1, lambda x: x, lambda x: x[::-1], x)


def until(x):
    def body(c):
        return c[0] + 1, jnp.concatenate([c[1][:4] * c[1][1:5], c[1][4:]])

    return lax.while_loop(lambda c: c[0] < jnp.sum(x) / 2, body, (0, x))[1]


UNIONS: dict[str, tuple[Callable, Any, Any]] = {
    "a branch": (chosen, SIX, np.eye(6) + np.eye(6)[::-1]),
    "a known branch": (lambda x: lax.switch(1, [jnp.sin, lambda x: x[::-1]], x), SIX,
                       np.eye(6)[::-1]),
    "any number of steps": (
        until, EIGHT, np.eye(8) + np.triu(np.ones((8, 8)), 1) * (np.arange(8) < 5)
        * (np.arange(8) < 4)[:, None]),
    "an unknown place": (
        lambda x: lax.dynamic_slice(x.reshape(2, 4), (jnp.argmax(x) % 2, 1), (1, 2)), EIGHT,
        np.eye(4)[1:3] @ np.tile(np.eye(4), 2)),
    "an unknown place in a line": (
        lambda x: lax.dynamic_slice(x, (jnp.argmax(x),), (6,)), EIGHT,
        sum(np.eye(6, 8, k) for k in range(3))),
    "an unknown place is written": (
        lambda x: lax.dynamic_update_slice(
            x.reshape(2, 4), x[:1].reshape(1, 1), (1, jnp.argmax(x) % 4)), EIGHT,
        np.eye(8) + np.outer(np.arange(8) > 3, np.arange(8) < 1)),
    "sorted along rows": (
        lambda x: jnp.sort(x.reshape(2, 4), axis=1), EIGHT, np.kron(np.eye(2), np.ones((4, 4)))),
    "permuted": (lambda x: x[jnp.argsort(jnp.sin(3 * x))], SIX, np.ones((6, 6))),
    "scattered": (
        lambda x: x.at[jnp.argsort(x)[:2]].set(x[:2]), SIX,
        np.eye(6) + np.outer(np.ones(6), np.arange(6) < 2)),
    "the largest of each window": (
        lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID"), SIX,
        np.kron(np.eye(3), np.ones((1, 2)))),
    "its gradient's": (
        ft.grad(lambda x: jnp.sum(lax.reduce_window(x, -jnp.inf, lax.max, (2,), (2,), "VALID")**2)),
        SIX, np.kron(np.eye(3), np.ones((2, 2)))),
    "factors in a batch": (
        lambda x: jnp.linalg.cholesky(
            jax.vmap(lambda a: a @ a.T + jnp.eye(2))(x.reshape(2, 2, 2))), EIGHT,
        np.kron(np.eye(2), [[1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])),
}  # fmt: skip
"""Programs whose nonzeros depend on values, and the pattern that holds for all of them."""


def test_unions() -> None:
    cases = {name: (*case, [f(case[1]) for f in (np.copy, np.flip, lambda x: np.sin(5 * x))])
             for name, case in UNIONS.items()}  # fmt: skip
    for name, found in evaluated(cases).items():
        fun, x, pattern = UNIONS[name]
        got = ft.sparse.jacobian_pattern(fun, x).dense()
        np.testing.assert_array_equal(got, pattern != 0, err_msg=name)
        for got, want in found:
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12, err_msg=name)


def test_a_long_loop_has_the_pattern_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """As products of patterns, where each step is not interpreted by itself."""
    loops = {"heat": heat, "shifted": shifted, "from behind": from_behind}
    loops["the gradient of it"] = EXACT["the gradient of it"][0]
    want = {name: ft.sparse.jacobian_pattern(fun, SIX) for name, fun in loops.items()}
    monkeypatch.setattr("functrans.sparse.loops.FEW", 0)
    for name, fun in loops.items():
        assert ft.sparse.jacobian_pattern(fun, SIX) == want[name], name
    # The carry reaches a fixed point, and the other steps are the same.
    still = ft.sparse.jacobian_pattern(
        lambda x: lax.scan(lambda c, _: (jnp.sin(c), c), x, None, length=10_000)[1], SIX[:2]
    )
    assert still.nnz == 20_000
    # An index that is the counter is not known any more.
    assert ft.sparse.jacobian_pattern(written, SIX).nnz == 36


def of_a_tuple(program: Program) -> Callable:
    fun = program.function()
    return lambda args: fun(*args)


@settings(deterministic, max_examples=10)
@given(st.lists(programs(most=4), min_size=20, max_size=20), st.integers(0, 2**16))
def test_never_too_few(programs: list[Program], seed: int) -> None:
    """Every nonzero of random programs, at a random point, is in the pattern."""
    functions = [*map(of_a_tuple, programs)]
    args = [program.arguments(seed) for program in programs]
    matrices = jax.jit(lambda args: [*map(dense, functions, args)])(args)
    for program, fun, xs, matrix in zip(programs, functions, args, matrices, strict=True):
        pattern = ft.sparse.jacobian_pattern(fun, xs).dense()
        assert not (np.asarray(matrix) != 0)[~pattern].any(), program


@settings(deterministic, max_examples=2)
@given(st.lists(programs(most=3), min_size=10, max_size=10), st.integers(0, 2**16))
def test_never_too_few_in_a_hessian(programs: list[Program], seed: int) -> None:
    def energy(program):
        fun = of_a_tuple(program)
        return lambda args: sum(jnp.sum(jnp.sin(y)) for y in fun(args))

    functions, args = [*map(energy, programs)], [program.arguments(seed) for program in programs]
    gradients = [*map(jax.grad, functions)]
    matrices = jax.jit(lambda args: [*map(dense, gradients, args)])(args)
    for program, fun, xs, matrix in zip(programs, functions, args, matrices, strict=True):
        pattern = ft.sparse.hessian_pattern(fun, xs).dense()
        assert not (np.asarray(matrix) != 0)[~pattern].any(), program


def test_moves_in_numpy_are_those_of_xla() -> None:
    """What NumPy runs in the place of a primitive gives the same."""
    x = np.arange(12, dtype=np.int32).reshape(3, 4)
    programs: list[Callable] = [
        lambda x: lax.slice(x, (0, 1), (3, 4), (2, 2)),
        *(
            lambda x, low=low, high=high, inside=inside: lax.pad(
                x, np.int32(7), [(low, high, inside), (0, 0, 0)]
            )
            for low, high, inside in product((-3, -1, 0, 2), (-2, 0, 3), (0, 1, 2))
            if 3 + 2 * inside + low + high >= 0
        ),
        lambda x: lax.broadcast_in_dim(x[:, :1], (2, 3, 5), (1, 2)),
        lambda x: lax.reshape(x, (2, 6), (1, 0)),
        lambda x: lax.squeeze(x[:1], (0,)),
        lambda x: lax.transpose(x, (1, 0)),
        lambda x: lax.rev(x, (1,)),
        lambda x: lax.concatenate([x, x[:1]], 0),
        lambda x: lax.select_n(lax.lt(x, np.int32(5)), x, x + 2),
        lambda x: lax.select_n(lax.rem(x, np.int32(3)), x, x * 2, x - 3),
        lambda x: lax.broadcasted_iota(np.int32, (3, 4), 1) - x,
        lambda x: -lax.reduce_sum(x, (0,)),
    ]
    met = set()
    for program in programs:
        closed = extend.staged(program, x).program
        met |= {equation.primitive for equation in closed.jaxpr.eqns}
        (got,) = extend.interpret(closed, [x], numbers.evaluated)
        np.testing.assert_array_equal(got, program(x))
        assert got.dtype == program(x).dtype
    assert met >= {*numbers.NUMPY}


def test_numbers_tell_moves_from_sums() -> None:
    found: Any = numbers.moves(lambda x: [-x[::-1] * np.array([1, 0, 1], np.int32)], 3)
    ((columns, is_read),) = found
    assert columns[is_read].tolist() == [2, 0] and is_read.tolist() == [True, False, True]
    for run in (np.cumsum, lambda x: x[:2] + x[1:], lambda x: x + x[::-1] - x[1], lambda x: 2 * x):
        assert numbers.moves(lambda x, run=run: [run(x).astype(np.int32)], 3) is None
    assert numbers.moves(lambda x: [x.astype(np.float32)], 3) is None


# ---- colorings -----------------------------------------------------------------------------------


def random_pattern(m: int, n: int, density: float, seed: int) -> ft.sparse.Pattern:
    return ft.sparse.Pattern(np.random.default_rng(seed).random((m, n)) < density)


@pytest.mark.parametrize("mode", ["columns", "rows", "both", "auto", "symmetric"])
def test_a_coloring_can_be_read(mode: str) -> None:
    """Each nonzero stands in the products at the place that is said."""
    for seed, density in enumerate((0.02, 0.1, 0.4, 1.0)):
        pattern = random_pattern(20, 20 if mode == "symmetric" else 15, density, seed)
        if mode == "symmetric":
            pattern = ft.sparse.Pattern(pattern.matrix + pattern.matrix.T)
        values = np.random.default_rng(seed).normal(size=pattern.shape) * pattern.dense()
        values = values + values.T if mode == "symmetric" else values
        coloring = ft.sparse.color(pattern, mode)
        columns = coloring.columns[:, None] == np.arange(coloring.forward)
        rows = coloring.rows[:, None] == np.arange(coloring.reverse)
        products = np.concatenate([(values @ columns).T.ravel(), (values.T @ rows).T.ravel()])
        read = pattern.csr(products[coloring.places]).toarray()
        np.testing.assert_allclose(read, values, rtol=1e-12)


def test_star_colorings_have_no_path_in_two_colors() -> None:
    for seed in range(4):
        edges = np.triu(np.random.default_rng(seed).random((12, 12)) < 0.3, 1)
        edges = edges | edges.T
        colors = stars(scipy_sparse.csr_array(edges), np.random.default_rng(seed).permutation(12))
        neighbors = [np.flatnonzero(row) for row in edges]
        for a in range(12):
            for b in neighbors[a]:
                assert colors[a] != colors[b]
                for c in neighbors[b]:
                    for d in neighbors[c]:
                        if len({a, b, c, d}) == 4:
                            assert len({*colors[[a, b, c, d]]}) > 2


def test_how_many_colors() -> None:
    n = 30
    line = np.eye(n) + np.eye(n, k=1) + np.eye(n, k=-1)
    arrowhead = np.eye(n)
    arrowhead[-1] = arrowhead[:, -1] = 1
    grid = np.kron(line, np.eye(n)) + np.kron(np.eye(n), line)
    wide = np.zeros((2, n))
    wide[0] = 1

    def passes(matrix, mode="auto"):
        coloring = ft.sparse.color(matrix, mode)
        return coloring.forward, coloring.reverse

    assert passes(line) == (3, 0) and passes(line, "symmetric") == (3, 0)
    assert passes(grid) == (5, 0) and passes(grid, "symmetric") == (5, 0)
    assert passes(arrowhead) == (2, 1) and passes(arrowhead, "symmetric") == (2, 0)
    assert passes(arrowhead, "columns") == (n, 0) and passes(arrowhead, "rows") == (0, n)
    assert passes(wide) == (0, 1) and passes(wide.T) == (1, 0)
    assert passes(np.zeros((3, 4))) == (0, 0)
    assert passes(np.kron(np.eye(9), np.ones((2, 3)))) == (0, 2)
    # Where the longest columns come first there are fewer colors.
    first = ft.sparse.Pattern(arrowhead)
    assert best(first.matrix).max() == n - 1


def test_stencils_have_as_many_colors_as_points() -> None:
    def line(n, width=1):
        return sum(np.eye(n, k=k) for k in range(-width, width + 1))

    def cross(*sizes):
        total: Any = 0
        for d in range(len(sizes)):
            factors = [line(n) if i == d else np.eye(n) for i, n in enumerate(sizes)]
            total = total + functools.reduce(np.kron, factors)
        return total

    square = np.kron(line(9), line(16))
    cases = [(cross(16, 9), 5), (cross(8, 7, 6), 7), (square, 9), (line(40, 3), 7)]
    cases += [(np.kron(cross(16, 9), np.ones((2, 2))), 10), (cross(16, 9)[:, :99], 5)]
    cases += [(np.linalg.matrix_power(cross(12, 10), 2), 13)]
    for matrix, points in cases:
        coloring = ft.sparse.color(matrix, "columns")
        assert coloring.passes == points
    # Rows that are as long as those of a stencil, and are none.
    periodic = np.eye(7) + np.eye(7)[[*range(1, 7), 0]]
    assert ft.sparse.color(periodic, "columns").passes == 3


def test_patterns_and_colorings_are_values(tmp_path: Any) -> None:
    pattern = random_pattern(9, 7, 0.3, 0)
    pattern.save(tmp_path / "pattern.npz")
    assert ft.sparse.Pattern.load(tmp_path / "pattern.npz") == pattern == pattern.T.T
    assert hash(pattern.T.T) == hash(pattern) and pattern != pattern.T
    bcoo = BCOO.fromdense(jnp.asarray(pattern.dense(), float), nse=40)  # with padding
    for same in (pattern.dense(), bcoo, scipy_sparse.coo_array(pattern.dense()), pattern):
        assert ft.sparse.Pattern(same) == pattern
    for mode in ("auto", "both"):
        coloring = ft.sparse.color(pattern, mode)
        coloring.save(tmp_path / "coloring.npz")
        loaded = ft.sparse.Coloring.load(tmp_path / "coloring.npz")
        assert loaded == coloring and hash(loaded) == hash(coloring)
        np.testing.assert_array_equal(loaded.places, coloring.places)


def test_pictures(capsys: pytest.CaptureFixture) -> None:
    pattern = ft.sparse.Pattern(np.eye(8))
    pattern.show()
    assert capsys.readouterr().out == "⠑⢄⠀⠀\n⠀⠀⠑⢄\n"
    ft.sparse.Pattern(scipy_sparse.eye_array(10_000)).show(width=4)
    assert capsys.readouterr().out == "⠑⢄⠀⠀\n⠀⠀⠑⢄\n"
    assert pattern._repr_svg_().count("M") == 8
    ft.sparse.color(np.eye(8)).show()
    assert "1 forward pass instead of 8" in capsys.readouterr().out
    drawn = graph(lambda x: jnp.diff(x) ** 2, jnp.arange(4.0), pattern=True)
    assert drawn.dot.count("#c0392b") >= 6 and "3 x 4, 6 nonzeros" in drawn.notes[-1]
    two = lambda w, x: {"s": w * x[1:], "t": w}  # noqa: E731
    for wrt, columns in ((None, "w"), (1, "x"), ((0, 1), "w, x")):
        (note,) = graph(two, 2.0, jnp.arange(3.0), pattern=True, wrt=wrt).notes
        assert f"rows y['s'], y['t'], columns {columns}; Pattern(" in note
    # By default the first argument with a derivative; the columns are in the order of arguments.
    (note,) = graph(lambda n, x: n * x[1:], 2, jnp.arange(3.0), pattern=True).notes
    assert "columns x; Pattern(2 x 3, 2 nonzeros" in note
    (note,) = graph(two, 2.0, jnp.arange(3.0), pattern=True, wrt=(1, 0)).notes
    assert "columns w, x; Pattern(3 x 4, 5 nonzeros" in note
    with pytest.raises(TypeError, match=r"x must be .* complex64.* choose another with wrt\.$"):
        graph(two, 2.0, jnp.ones(3, "complex64"), pattern=True, wrt=1)


@pytest.mark.parametrize(
    ("columns", "rows", "text"),
    [
        ([0, 0], [-1, -1], "1 forward pass instead of 2"),
        ([0, 1], [-1, -1], "2 forward passes instead of 2"),
        ([-1, -1], [0, 0], "1 reverse pass instead of 2"),
        ([0, -1], [-1, 0], "1 forward pass and 1 reverse pass instead of 2"),
    ],
)
def test_the_text_of_a_coloring(columns: list, rows: list, text: str) -> None:
    assert f": {text})" in repr(ft.sparse.Coloring(ft.sparse.Pattern(np.eye(2)), columns, rows))
    none = ft.sparse.Coloring(ft.sparse.Pattern(np.zeros((2, 2))), [-1, -1], [-1, -1])
    assert "no passes instead of 2" in repr(none)


# ---- evaluation ----------------------------------------------------------------------------------


def chain(x):
    return jnp.sum((x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def test_other_transforms_of_it() -> None:
    """It is a function as any other: batched, differentiated, compiled, ours and JAX's."""
    fun = lambda x: jnp.sin(x[1:]) * x[:-1]  # noqa: E731
    jacobian = ft.sparse.jacobian(fun, SIX, format="dense")
    points = np.stack([SIX, SIX[::-1]])

    def all_of(points):
        x, v = points
        return {
            "vmap": jax.vmap(jacobian)(points),
            "jvp": ft.jvp(jacobian, (x,), (v,))[1],
            "grad": ft.grad(lambda x: jnp.sum(jacobian(x) ** 2))(x),
            "jax's": jax.grad(lambda x: jnp.sum(jacobian(x) ** 2))(x),
            "jit": ft.jit(jacobian)(x),
            "product": ft.sparse.jacobian(fun, SIX)(x) @ v,
        }

    def expected(points):
        x, v = points
        square = jax.grad(lambda x: jnp.sum(dense(fun, x) ** 2))(x)
        return {
            "vmap": jax.vmap(lambda x: dense(fun, x))(points),
            "jvp": jax.jvp(lambda x: dense(fun, x), (x,), (v,))[1],
            "grad": square,
            "jax's": square,
            "jit": dense(fun, x),
            "product": dense(fun, x) @ v,
        }

    got, want = jax.jit(lambda points: (all_of(points), expected(points)))(points)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


def test_that_of_a_jitted_function_is_compiled() -> None:
    jacobian = ft.sparse.jacobian(ft.jit(bratu), GRID)
    assert hasattr(jacobian.values, "lower")
    got = jacobian(GRID)
    assert isinstance(got, BCOO) and got.indices_sorted and got.unique_indices
    flat, want = jax.jit(lambda u, x: (dense(bratu, u), dense(jax.grad(chain), x)))(GRID, SIX)
    np.testing.assert_allclose(got.todense(), flat, rtol=1e-12)
    np.testing.assert_allclose(jacobian.pattern.csr(got.data).toarray(), flat, rtol=1e-12)
    hessian = ft.sparse.hessian(ft.jit(chain), SIX, format="values")
    assert hessian.coloring.passes == 3 and hasattr(hessian.values, "lower")
    np.testing.assert_allclose(hessian.pattern.csr(hessian(SIX)).toarray(), want, rtol=1e-12)
    assert "3 forward-over-reverse passes" in repr(hessian)


def test_other_arguments() -> None:
    """They may have any values at each call, and so their indices are not known."""

    def fun(scale, x, places):
        return scale * x[places] ** 2

    likes = jax.ShapeDtypeStruct((), float), SIX, np.arange(3)
    jacobian = ft.sparse.jacobian(fun, *likes, argnum=1, format="dense", check=True)
    assert jacobian.pattern.nnz == 18
    np.testing.assert_allclose(
        jacobian(2.0, SIX, np.array([5, 0, 0])), np.diag(4 * SIX)[[5, 0, 0]], rtol=1e-12
    )
    hessian = ft.sparse.hessian(lambda v, x: v @ x**3, SIX, SIX, argnum=1, format="dense")
    np.testing.assert_allclose(hessian(SIX, SIX), np.diag(6 * SIX**2), rtol=1e-12)


def test_single_precision_and_large_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("functrans.sparse.evaluation.CONSTANT", 0)
    x = SIX.astype(np.float32)
    got = ft.sparse.jacobian(arrow, x, format="dense", check=True)(x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, jax.jit(lambda x: dense(arrow, x))(x), rtol=1e-6)


def test_strong_zeros() -> None:
    """They change what is evaluated, and not the pattern."""

    def root(x):
        return jnp.where(x > 0, jnp.sqrt(x), 0) @ jnp.asarray(BAND[:6, :6])

    with ft.strong_zeros():
        jacobian = ft.sparse.jacobian(root, SIX, format="dense")
        assert jacobian.pattern == ft.sparse.Pattern(BAND[:6, :6].T)
        np.testing.assert_array_equal(jacobian(np.zeros(6)), 0)


def test_where_there_is_no_reverse_mode_columns_do() -> None:
    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    # Right for a tangent that is positive or 0, and not linear.
    sine.defjvp(lambda xs, dots: (jnp.sin(xs[0]), jnp.cos(xs[0]) * jnp.sqrt(dots[0] ** 2)))

    def fun(f):
        return lambda x: (f(x) * x[0]).at[0].set(jnp.sum(x))

    passes = ft.sparse.jacobian(fun(jnp.sin), SIX).coloring
    assert (passes.forward, passes.reverse) == (2, 1)
    jacobian = ft.sparse.jacobian(fun(sine), SIX, format="dense")
    assert (jacobian.coloring.forward, jacobian.coloring.reverse) == (6, 0)
    np.testing.assert_allclose(jacobian(SIX), dense(fun(jnp.sin), SIX), rtol=1e-12)


def test_a_pattern_that_is_given() -> None:
    def fun(x):
        return x**2 + jnp.roll(x, 1)

    right = ft.sparse.jacobian_pattern(fun, SIX)
    for same in (right, right.dense(), ft.sparse.color(right, "rows")):
        got = ft.sparse.jacobian(fun, pattern=same, check=True, format="dense")(SIX)
        np.testing.assert_allclose(got, np.diag(2 * SIX) + np.eye(6)[[-1, *range(5)]], rtol=1e-12)
    wrong = ft.sparse.jacobian(fun, pattern=np.eye(6), check=True, format="values")
    with pytest.raises(ValueError, match="the pattern does not fit the function"):
        wrong(SIX)
    assert np.isnan(jax.jit(wrong)(SIX)).all()


# ---- at work -------------------------------------------------------------------------------------


def test_implicit_steps_of_a_reaction_and_diffusion() -> None:
    """Fisher's equation, `u_t = u_xx + u (1 - u)`: its front runs at the speed 2 or a little less.

    Each implicit step solves `u - u_old - dt f(u) = 0` by Newton's method.
    """
    n, h, dt = 400, 0.25, 0.1
    x = h * np.arange(n)

    @ft.jit
    def residual(u, old):
        padded = jnp.pad(u, 1, mode="edge")
        diffusion = (padded[2:] - 2 * u + padded[:-2]) / h**2
        return u - old - dt * (diffusion + u * (1 - u))

    u = (x < 10).astype(float)
    jacobian = ft.sparse.jacobian(residual, u, u, format="values")
    assert jacobian.coloring.passes == 3
    fronts = []
    for step in range(300):
        old, u = u, u
        for _ in range(20):
            defect = np.asarray(residual(u, old))
            if np.abs(defect).max() < 1e-11:
                break
            u = u - spsolve(jacobian.pattern.csr(jacobian(u, old)).tocsc(), defect)
        assert np.abs(residual(u, old)).max() < 1e-11
        if step in (99, 299):
            fronts.append(np.interp(-0.5, -u, x))
    # A small u ~ exp(-k (x - c t)) grows in each step by 1 / (1 - dt (mu + 1)), where -mu is what
    # the differences make of exp(-k x), and the slowest such wave is seen.
    k = np.linspace(0.5, 1.5, 1000)
    mu = 2 * (np.cosh(k * h) - 1) / h**2
    speed = np.min(-np.log(1 - dt * (mu + 1)) / (dt * k))
    assert 0.95 * speed < (fronts[1] - fronts[0]) / (200 * dt) < speed


def test_an_optimization_with_constraints() -> None:
    """SciPy's `trust-constr`, with a sparse Hessian of the objective and of the constraints.

    Source: Lukšan and Vlček, *Sparse and partially separable test problems for unconstrained and
    equality constrained optimization*, 1999, problem 5.1.
    """

    @ft.jit
    def objective(x):
        return jnp.sum(100 * (x[:-1] ** 2 - x[1:]) ** 2 + (x[:-1] - 1) ** 2)

    @ft.jit
    def constraints(x):
        a, b, c = x[:-2], x[1:-1], x[2:]
        rest = jnp.sin(b - c) * jnp.sin(b + c) + 4 * b - a * jnp.exp(a - b) - 3
        return 3 * b**3 + 2 * c - 5 + rest

    start, weights = np.tile([-1.2, 1.0], 20), np.ones(38)
    jacobian = ft.sparse.jacobian(constraints, start, format="values")
    hessian = ft.sparse.hessian(objective, start, format="values")
    lagrangian = ft.jit(lambda x, v: v @ constraints(x))
    weighted = ft.sparse.hessian(lagrangian, start, weights, format="values")
    assert [f.coloring.passes for f in (jacobian, hessian, weighted)] == [3, 3, 3]
    constraint: Any = optimize.NonlinearConstraint
    given = constraint(
        lambda x: np.asarray(constraints(x)), 0, 0,
        jac=lambda x: jacobian.pattern.csr(jacobian(x)),
        hess=lambda x, v: weighted.pattern.csr(weighted(x, v)),
    )  # fmt: skip
    found = optimize.minimize(
        lambda x: float(objective(x)), start, method="trust-constr",
        jac=lambda x: np.asarray(ft.grad(objective)(x)),
        hess=lambda x: hessian.pattern.csr(hessian(x)), constraints=[given],
        options={"gtol": 1e-9, "xtol": 1e-14, "maxiter": 200},
    )  # fmt: skip
    assert found.constr_violation < 1e-9 and found.niter < 60
    # The conditions of Karush, Kuhn and Tucker, with the multipliers that were found.
    slopes = jax.jit(lambda x: (jax.grad(objective)(x), dense(constraints, x)))
    gradient, matrix = slopes(found.x)
    assert np.abs(gradient + matrix.T @ found.v[0]).max() < 1e-6
