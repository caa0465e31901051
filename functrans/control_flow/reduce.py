"""Reductions by the user's function: `lax.reduce` and `lax.reduce_window`.

    y = f(f(f(y0, x1), x2), ...)

JAX asks for an associative f and a neutral y0, so that the order of the steps does not matter.
For any other f the value depends on the order, and so does the derivative: both follow the fold
from the left, XLA's order on a CPU.  (XLA may take the elements of a padded window in another
order, which changes from program to program.)

Read next: `applied.py`, a function applied at indices.
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
    """Differentiates the expansion of an operation, a function of other operations."""

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

UNROLLED = 8


def combine(program: ClosedJaxpr, left: Sequence, right: Sequence) -> list:
    """Apply the user's function of scalars to arrays of one shape."""

    def function(*scalars):
        return jx.evaluate(program, *scalars)

    for _ in range(left[0].ndim):
        function = jax.vmap(function)
    return function(*left, *right)


def fold(program: ClosedJaxpr, starts: Sequence, xs: Sequence, present: Any = None) -> list:
    """Reduce the first axis of `xs`; only the elements that are `present` count."""
    shape = xs[0].shape[1:]
    starts = [lax.broadcast(start, shape) for start in starts]
    if 0 in xs[0].shape:
        return starts

    def step(ys, element):
        *x, counts = element
        new = combine(program, ys, x)
        if present is None:
            return new, None
        return [lax.select(counts, a, b) for a, b in zip(new, ys, strict=True)], None

    columns = [*xs, xs[0] if present is None else present]
    unroll = len(xs[0]) <= UNROLLED or 1
    return lax.scan(step, starts, columns, unroll=unroll)[0]


# ---- reduce --------------------------------------------------------------------------------------

BLOCK = 32


def reduced(*inputs: Any, jaxpr: ClosedJaxpr, dimensions: Sequence[int], **_: Any) -> list:
    """`lax.reduce`: the reduced dimensions become one, the first."""
    xs, starts = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
    dimensions = sorted(dimensions)
    if len(xs) == 1:
        xs = in_blocks(jaxpr, starts, xs, dimensions)
    kept = [d for d in range(xs[0].ndim) if d not in dimensions]
    size = prod(xs[0].shape[d] for d in dimensions)

    def in_front(x):
        shape = (size, *(x.shape[d] for d in kept))
        return lax.reshape(lax.transpose(x, (*dimensions, *kept)), shape)

    columns = [*map(in_front, xs)]
    if size == 1:  # XLA returns it unchanged
        return [lax.squeeze(x, (0,)) for x in columns]
    return fold(jaxpr, starts, columns)


def in_blocks(jaxpr: ClosedJaxpr, starts: Sequence, xs: Sequence, dimensions: Sequence) -> Sequence:
    """As XLA does on a CPU, reduce a long dimension in blocks of 32 first."""
    while max((xs[0].shape[d] for d in dimensions), default=0) > BLOCK:
        shape = xs[0].shape
        sizes = tuple(min(n, BLOCK) if d in dimensions else 1 for d, n in enumerate(shape))
        padding, ones = lax.padtype_to_pads(shape, sizes, sizes, "SAME"), (1,) * len(shape)
        window = {"window_dimensions": sizes, "window_strides": sizes, "padding": padding}
        xs = folded_windows(jaxpr, starts, xs, **window, base_dilation=ones, window_dilation=ones)
    return xs


call(lax.reduce_p, ExpansionRule(reduced))

# ---- reduce_window -------------------------------------------------------------------------------


def windows_reduced(*inputs: Any, jaxpr: Any, consts: Sequence, **window: Any) -> list:
    """`lax.reduce_window`: the elements of each window become a new axis, the first."""
    xs, starts = inputs[: len(inputs) // 2], inputs[len(inputs) // 2 :]
    program = jx.with_constants(jaxpr, consts) if consts else ClosedJaxpr(jaxpr, [])
    shape, sizes = xs[0].shape, window["window_dimensions"]
    if not shape:  # XLA returns a single element unchanged
        return list(xs)
    if len(xs) == 1 and spans(shape, **window):  # XLA makes a `reduce` of it
        xs = in_blocks(program, starts, xs, [d for d, n in enumerate(shape) if n == sizes[d]])
        window["window_dimensions"] = np.minimum(sizes, xs[0].shape)
    return folded_windows(program, starts, xs, **window)


def spans(shape: tuple, *, window_dimensions, window_strides, padding, base_dilation,
          window_dilation) -> bool:  # fmt: skip
    """Whether in each dimension a window holds all elements, or one, without gaps."""
    dilations = (*base_dilation, *window_dilation)
    sizes = zip(shape, window_dimensions, window_strides, strict=True)
    is_plain = set(dilations) <= {1} and not any(map(any, padding))
    return is_plain and all(size in (1, n) and stride in (1, n) for n, size, stride in sizes)


def folded_windows(program: ClosedJaxpr, starts: Sequence, xs: Sequence, **window: Any) -> list:
    """Fold the windows, each from its first element to its last."""
    present = windows(lax.full(xs[0].shape, True), lax.full((), False), **window)
    if 0 in present.shape or 0 in xs[0].shape:
        return [lax.broadcast(start, present.shape[1:]) for start in starts]
    # The values in the holes do not count. They are elements, and not a number of our choice, at
    # which the user's function might have no derivative.
    elements = [windows(x, first_of(x), **window) for x in xs]
    is_whole = not any(map(any, window["padding"])) and set(window["base_dilation"]) <= {1}
    return fold(program, starts, elements, None if is_whole else present)


def first_of(x: Any) -> Any:
    return lax.reshape(lax.slice(x, [0] * x.ndim, [1] * x.ndim), ())


def windows(x: Any, hole: Any, *, window_dimensions: Sequence[int], window_strides: Sequence[int],
            padding: Sequence, base_dilation: Sequence[int],
            window_dilation: Sequence[int]) -> Any:  # fmt: skip
    """The elements in the windows, along a new first axis; `hole` where there is none."""
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
