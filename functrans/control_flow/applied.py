"""A function of the user's own, applied at indices: `x.at[i].apply(f)`.

    y_p = f(f(... x_p)),  as often as p is among the indices;        y_p = x_p elsewhere

So what is read at an index is given to f as often as the index occurs, and written back; of several
updates of one place, which are the same, a scatter takes one.  If some index may occur twice, f is
in a loop that runs until the last place has had its own.  A place that has had them is given what
it was in the beginning, where f has been applied, so that no step that is none makes a nan.

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
    """The scatter of what f makes of the elements; the updates are not read."""
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
    """How many updates there are of the place of each; 0 out of bounds."""
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
