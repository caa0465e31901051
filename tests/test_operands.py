"""Rows of the table with several operands, some of which are smaller, or not in the batch.

The reference is the row's own function at operands of the usual shapes, whose derivatives
`test_rules.py` checks: from `f(x) = f(B x)`, where B broadcasts, follows `J_f(x) = J_f(B x) B`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from rule_cases import Case
from test_rules import DTYPES, REAL_ROWS, assert_close, direction, has_tangent, stacked

import functrans as ft
from functrans.rules import RULES

pytestmark = pytest.mark.usefixtures("quick_compilation")

SEVERAL = [row for row in REAL_ROWS if len(row.values[0].makers) > 1 and not row.marks]
# The inputs of `add_any` have one type.
ELEMENTWISE = {p.name for p, rule in RULES.items() if rule.is_diagonal} - {"add_any"}
# Neither JAX nor XLA looks whether the shapes fit, or the indices: they read what is not there.
UNCHECKED = {"ragged_all_to_all", "ormqr", "gather"}


def derivatives(fun: Callable, modes: tuple, args: tuple, x_dots: tuple, y_bars: Any) -> dict:
    """Tangents of the results and cotangents of the operands, where they have any."""
    found: dict = {}
    if "fwd" in modes:
        found["y_dots"] = ft.jvp(fun, args, completed(x_dots, args))[1]
    if "rev" in modes:
        outs, pull = ft.vjp(fun, *args)
        found["x_bars"] = pull(completed(y_bars, outs))
    return jax.tree.map(lambda x: x if has_tangent(x) else None, found)


def directions(xs: Any) -> Any:
    return jax.tree.map(lambda x: np.asarray(direction(x)) if has_tangent(x) else None, xs)


def completed(dots: Any, xs: Any) -> Any:
    """A `float0` for each array that has no tangent."""
    return jax.tree.map(lambda x, dot: direction(x) if dot is None else dot, xs, dots)


class Smaller(NamedTuple):
    """Operands of a row of which some are smaller than usual."""

    args: tuple
    usual: tuple

    def at_usual_shapes(self, xs: tuple) -> tuple:
        """The same, broadcast: the operands, or their tangents."""
        pairs = zip(xs, self.usual, strict=True)
        return tuple(x if x is None else broadcast_to(x, like) for x, like in pairs)

    def summed(self, x_bars: tuple) -> tuple:
        """The transpose of that: `B^T x_bar`."""
        pairs = zip(x_bars, self.args, strict=True)
        return tuple(x_bar if x_bar is None else sum_to(x_bar, np.shape(x)) for x_bar, x in pairs)


def broadcast_to(x: Any, like: Any) -> Any:
    return x if np.shape(x) == like.shape else np.broadcast_to(x, like.shape).astype(like.dtype)


def sum_to(x: Any, shape: tuple) -> Any:
    axes = tuple(i for i, n in enumerate(x.shape) if not shape or shape[i] != n)
    return np.sum(np.asarray(x), axes).reshape(shape)


def replaced(args: tuple, places: dict) -> Smaller:
    return Smaller(tuple(places.get(i, x) for i, x in enumerate(args)), args)


def smaller_operands(args: tuple) -> Iterator[Smaller]:
    """One that is a Python number; one with an axis of size 1; two with different such axes."""
    arrays = {i: np.asarray(x) for i, x in enumerate(args) if x.size and not is_key(x)}
    for i, x in arrays.items():
        yield replaced(args, {i: x.ravel()[0].item() if has_tangent(x) else x.ravel()[0]})
        if x.ndim:
            yield replaced(args, {i: x[..., :1]})
    for (i, x), (j, y) in combinations(arrays.items(), 2):
        if x.ndim > 1 and y.ndim > 1:
            yield replaced(args, {i: x[:1], j: y[..., :1]})


def is_taken(look: Callable, fun: Callable, args: tuple) -> bool:
    """Whether JAX takes such operands, or XLA, as `look` finds out."""
    try:
        look(fun, *args)
    except Exception:
        return False
    return True


def lower(fun: Callable, *args: Any) -> Any:
    return jax.jit(fun).lower(*args)


class Batch(NamedTuple):
    """Operands of which each is a batch of two, but for one; and the examples one by one."""

    args: tuple
    axes: tuple
    examples: list

    def sliced(self, xs: tuple) -> list[tuple]:
        """The examples, or their tangents."""
        pairs = [(x if a is None else on_host(x), a) for x, a in zip(xs, self.axes, strict=True)]
        return [tuple(x if x is None or a is None else x[k] for x, a in pairs) for k in (0, 1)]

    def summed(self, x_bars: tuple) -> tuple:
        """The cotangent of the one operand, of those of each example."""
        pairs = zip(x_bars, self.axes, strict=True)
        sums = (x if x is None or a == 0 else np.sum(np.asarray(x), 0) for x, a in pairs)
        return tuple(sums)


def batches(case: Case, examples: list[tuple]) -> Iterator[Batch]:
    for i in range(len(examples[0]) if case.vmap else 0):
        axes = tuple(None if j == i else 0 for j in range(len(examples[0])))
        args = tuple(examples[0][i] if j == i else x for j, x in enumerate(stacked(examples)))
        batch = Batch(args, axes, [])
        yield batch._replace(examples=batch.sliced(args))


def stack(results: list) -> Any:
    return stacked([(result,) for result in results])[0]


def on_host(x: Any) -> Any:
    """For NumPy to slice: JAX would compile a program for each shape."""
    return x if x is None or is_key(x) else np.asarray(x)


def agree(case: Case, got: Any, want: Any) -> bool:
    try:
        assert_close(case, numbers(got), numbers(want))
    except AssertionError:
        return False
    return True


def numbers(xs: Any) -> Any:
    """The same, with the numbers of each random key."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if is_key(x) else x, xs)


def is_key(x: Any) -> bool:
    return bool(jax.dtypes.issubdtype(jax.typeof(x).dtype, jax.dtypes.prng_key))


@pytest.mark.parametrize(("case", "kind"), SEVERAL)
def test_operands_that_are_smaller_or_not_in_the_batch(case: Case, kind: str) -> None:
    """Where the function takes them, which is found by trying: it has the same values."""
    fun, modes = case.fun, case.modes
    examples = [case.inputs(DTYPES[kind, 32], seed) for seed in (0, 1)]
    tried = smaller_operands(examples[0]) if UNCHECKED.isdisjoint(case.primitives) else ()
    smaller, unbatched = list(tried), list(batches(case, examples))

    def values(smaller, batched):
        pairs = zip(unbatched, batched, strict=True)
        return [fun(*xs) for xs in smaller], [jax.vmap(fun, b.axes)(*xs) for b, xs in pairs]

    def inputs():
        return [s.args for s in smaller], [b.args for b in unbatched]

    # XLA looks at each by itself only where one of them is wrong.
    for look in (jax.eval_shape, lower):
        smaller = [s for s in smaller if is_taken(look, fun, s.args)]
        unbatched = [b for b in unbatched if is_taken(look, jax.vmap(fun, b.axes), b.args)]
        if is_taken(lower, values, inputs()):
            break
    outs, batched_outs = jax.jit(values)(*inputs())
    usual = jax.jit(fun)
    wide_outs = [usual(*s.at_usual_shapes(s.args)) for s in smaller]
    each_out = [stack([usual(*xs) for xs in b.examples]) for b in unbatched]
    small = zip(smaller, outs, wide_outs, strict=True)
    small = [(s, y) for s, y, want in small if agree(case, y, want)]
    batch = zip(unbatched, batched_outs, each_out, strict=True)
    batch = [(b, y) for b, y, want in batch if agree(case, y, want)]
    assert small or not ELEMENTWISE.issuperset(case.primitives)
    assert batch or not case.vmap

    def other_derivatives(smaller, batched):
        alone = [derivatives(fun, modes, *inputs) for inputs in smaller]
        for (b, _), inputs in zip(batch, batched, strict=True):
            alone.append(derivatives(jax.vmap(fun, b.axes), modes, *inputs))
        return alone

    given = [
        [(o.args, directions(o.args), directions(y)) for o, y in others]
        for others in (small, batch)
    ]
    usual_derivatives = jax.jit(lambda *inputs: derivatives(fun, modes, *inputs))
    got = iter(jax.jit(other_derivatives)(*given))
    for (s, _), (args, x_dots, y_bars) in zip(small, given[0], strict=True):
        want = usual_derivatives(s.at_usual_shapes(args), s.at_usual_shapes(x_dots), y_bars)
        assert_close(case, next(got), with_sums(want, s.summed))
    for (b, _), (_, x_dots, y_bars) in zip(batch, given[1], strict=True):
        each_y_bar = [jax.tree.map(itemgetter(k), y_bars) for k in (0, 1)]
        triples = zip(b.examples, b.sliced(x_dots), each_y_bar, strict=True)
        want = stack([usual_derivatives(*triple) for triple in triples])
        assert_close(case, next(got), with_sums(want, b.summed))


def with_sums(found: dict, summed: Callable) -> dict:
    return {key: summed(xs) if key == "x_bars" else xs for key, xs in found.items()}
