"""The user's function, applied at indices: `x.at[i].apply(f)`.

    y_p = f(f(... x_p)),  as often as p is among the indices;        y_p = x_p elsewhere

We read the element at an index, apply f as often as the index occurs, and write the result back;
of several equal updates of one place a scatter takes one.  If an index may occur twice, a loop
applies f until the last place is done.  For a place that is done, the loop applies f to the first
value once more and ignores the result: f has been there, so this step makes no new nan.

Read next: `linear_solve.py`, a system and its solver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr

from functrans.control_flow.reduce import ExpansionRule, combine
from functrans.derivatives.indexing import (
    read_back,
    scatter_jvp,
    scatter_transpose,
    write_sum,
)
from functrans.rules import LinearRule, call, varying_as


def applied(
    x: Any, indices: Any, u: Any, *, update_jaxpr: Any, update_consts: Sequence, **params: Any
) -> Any:
    """The scatter of the elements with f applied; it does not read the updates."""
    program = ClosedJaxpr(update_jaxpr, [*update_consts])
    first = read_back(x, indices, u, params)

    def f(values):
        return combine(program, [values], [u])[0]

    if params["unique_indices"] or prod(indices.shape[:-1]) == 1:
        new = f(first)
    else:
        new = repeated(f, first, occurrences(x, indices, u, params))
    return lax.scatter_p.bind(x, indices, new, update_jaxpr=None, update_consts=(), **params)


def occurrences(x: Any, indices: Any, u: Any, params: dict) -> Any:
    """For each update, how many updates its place has; 0 out of bounds."""
    aval = jax.typeof(indices)
    nothing, ones = (varying_as(lax.full(y.shape, n, np.int32), aval) for n, y in ((0, x), (1, u)))
    return read_back(write_sum(nothing, indices, ones, params), indices, u, params)


def repeated(f: Callable, first: Any, counts: Any) -> Any:
    """`f(f(... first))`, of each element as often as its count says."""

    def step(state):
        t, values = state
        goes_on = lax.lt(lax.broadcast(t, counts.shape), counts)
        new = f(lax.select(goes_on, values, first))
        return t + 1, lax.select(goes_on, new, values)

    most = lax.reduce_max(counts, range(counts.ndim))
    return lax.while_loop(lambda state: state[0] < most, step, (most * 0, first))[1]


class ScatterRule(LinearRule):
    """The rule of a scatter of values; and of one of a function, whose expansion has a rule."""

    def __init__(self, applied: ExpansionRule):
        super().__init__(scatter_transpose, argnums=(0, 2), jvp=scatter_jvp)
        self.forward = _either(self.forward, applied.forward)
        self.transpose = _either(self.transpose, applied.transpose)


def _either(plain: Callable, applied: Callable) -> Callable:
    def chosen(primitive, xs, ys, params):
        return (plain if params["update_jaxpr"] is None else applied)(primitive, xs, ys, params)

    return chosen


call(lax.scatter_p, ScatterRule(ExpansionRule(lambda *xs, **params: [applied(*xs, **params)])))
