"""Reductions by a function of the user's own: `lax.reduce` and `lax.reduce_window`.

    y = f(f(f(y0, x1), x2), ...)  =  f(y0, f(f(x1, x2), f(x3, x4)))

JAX asks for an f that is associative, so that the elements may be combined in pairs of neighbours,
and the pairs in pairs: for n elements in log n steps, each of which is f on whole arrays.  The
derivative of the reduction is the derivative of that.

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

from functrans import jaxpr as jx
from functrans.forward import forward
from functrans.reverse import transpose_function
from functrans.rules import Rule, call
from functrans.values import Linear


class ExpansionRule(Rule):
    """The derivative of an operation is that of a function of other operations, its expansion."""

    def __init__(self, expansion: Callable):
        self.expansion = expansion

    def forward(self, primitive, primals, tangents, params):
        outs, tangents_out, _ = forward(
            lambda *inputs: (self.expansion(*inputs, **params), []), primals, tangents
        )
        return outs, tangents_out

    def transpose(self, primitive, cotangents, inputs, params):
        def linear_part(*xs):
            rest = iter(xs)
            whole = [next(rest) if type(x) is Linear else x for x in inputs]
            return self.expansion(*whole, **params)

        avals = [x.aval for x in inputs if type(x) is Linear]
        x_bars = iter(transpose_function(linear_part, avals, cotangents))
        return [next(x_bars) if type(x) is Linear else None for x in inputs]


# ---- the reduction of a first axis ---------------------------------------------------------------


def combine(program: ClosedJaxpr, left: Sequence, right: Sequence) -> list:
    """Apply the user's function of scalars to arrays of one shape."""

    def function(*scalars):
        return jx.evaluate(program, *scalars)

    for _ in range(left[0].ndim):
        function = jax.vmap(function)
    return function(*left, *right)


def fold(program: ClosedJaxpr, starts: Sequence, xs: Sequence, present: Any = None) -> list:
    """Reduce the first axis of `xs`, of which those elements count that are `present`."""
    shape = xs[0].shape[1:]
    starts = [lax.broadcast(start, shape) for start in starts]
    if 0 in xs[0].shape:
        return starts
    while (size := xs[0].shape[0]) > 1:
        left, right, rest = zip(*map(neighbours, xs), strict=True)
        both = combine(program, left, right)
        if present is not None:
            in_left, in_right, in_rest = neighbours(present)
            alone = [lax.select(in_left, a, b) for a, b in zip(left, right, strict=True)]
            pairs = zip(both, alone, strict=True)
            both = [lax.select(in_left & in_right, a, b) for a, b in pairs]
            present = joined(in_left | in_right, in_rest, size)
        xs = [joined(pair, single, size) for pair, single in zip(both, rest, strict=True)]
    totals = [lax.squeeze(x, (0,)) for x in xs]
    ends = combine(program, starts, totals)
    if present is None:
        return ends
    any_present = lax.squeeze(present, (0,))
    return [lax.select(any_present, end, y) for end, y in zip(ends, starts, strict=True)]


def neighbours(x: Any) -> tuple:
    """The first of each pair, the second, and what is left over."""
    size = x.shape[0]
    even = size - size % 2
    return (
        lax.slice_in_dim(x, 0, even, 2),
        lax.slice_in_dim(x, 1, even, 2),
        lax.slice_in_dim(x, even, size),
    )


def joined(pairs: Any, rest: Any, size: int) -> Any:
    return lax.concatenate([pairs, rest], 0) if size % 2 else pairs


# ---- reduce --------------------------------------------------------------------------------------


def reduced(*inputs: Any, jaxpr: ClosedJaxpr, dimensions: Sequence[int], **_: Any) -> list:
    """`lax.reduce`: the dimensions that are reduced become one, the first."""
    xs, starts = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
    kept = [d for d in range(xs[0].ndim) if d not in dimensions]
    size = prod(xs[0].shape[d] for d in dimensions)

    def in_front(x):
        shape = (size, *(x.shape[d] for d in kept))
        return lax.reshape(lax.transpose(x, (*dimensions, *kept)), shape)

    return fold(jaxpr, starts, [*map(in_front, xs)])


call(lax.reduce_p, ExpansionRule(reduced))

# ---- reduce_window -------------------------------------------------------------------------------


def windows_reduced(*inputs: Any, jaxpr: Any, consts: Sequence, **window: Any) -> list:
    """`lax.reduce_window`: the elements of each window become a new axis, the first."""
    xs, starts = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
    program = jx.with_constants(jaxpr, consts) if consts else ClosedJaxpr(jaxpr, [])
    present = windows(lax.full(xs[0].shape, True), lax.full((), False), **window)
    if 0 in present.shape or 0 in xs[0].shape:
        return [lax.broadcast(start, present.shape[1:]) for start in starts]
    # What is read in the holes does not count. It is an element, not a number of ours, for which
    # the user's function might have no derivative.
    elements = [windows(x, first_of(x), **window) for x in xs]
    is_whole = not any(map(any, window["padding"])) and set(window["base_dilation"]) <= {1}
    return fold(program, starts, elements, None if is_whole else present)


def first_of(x: Any) -> Any:
    return lax.reshape(lax.slice(x, [0] * x.ndim, [1] * x.ndim), ())


def windows(x: Any, hole: Any, *, window_dimensions: Sequence[int], window_strides: Sequence[int],
            padding: Sequence, base_dilation: Sequence[int],
            window_dilation: Sequence[int]) -> Any:  # fmt: skip
    """What the windows read of `x`, along a new first axis; and `hole` where there is nothing."""
    pads = zip(padding, base_dilation, strict=True)
    x = lax.pad(x, hole, [(low, high, dilation - 1) for (low, high), dilation in pads])
    reach = (np.array(window_dimensions) - 1) * window_dilation
    last = (x.shape - reach - 1) // window_strides * window_strides
    if np.any(last < 0):
        shape = np.where(last < 0, 0, last // window_strides + 1)
        return lax.full((prod(window_dimensions), *shape.tolist()), 0, x.dtype)
    offsets = np.array([*np.ndindex(*window_dimensions)]) * window_dilation
    parts = [
        lax.slice(x, offset.tolist(), (offset + last + 1).tolist(), window_strides)
        for offset in offsets
    ]
    return lax.concatenate([lax.expand_dims(part, (0,)) for part in parts], 0)


call(lax.reduce_window_p, ExpansionRule(windows_reduced))
