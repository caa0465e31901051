"""The derivatives of the reductions over sliding windows, as in pooling.

    y_i = sum_k x[s i + d k - low],        x_bar[q] = sum of y_i over the windows i that hold q

A sum over windows is a convolution with ones, and so is its transpose (`contraction.py`).  A
maximum selects the largest element of each window, and its transpose scatters to the places of
these.

Read next: `sorting.py`, elements in another order.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jax import lax

from functrans.derivatives.common import add, eq, number, zeros_like
from functrans.derivatives.contraction import Window
from functrans.rules import general, instantiate, linear


def reduce_window_sum_transpose(
    y_bar, x, *, window_dimensions, window_strides, padding, base_dilation, window_dilation
):
    lows = [low for low, _ in padding]
    windows = map(Window, window_dimensions, window_strides, lows, base_dilation, window_dilation)
    return lax.reduce_window_sum_p.bind(
        y_bar,
        window_dimensions=window_dimensions,
        window_strides=base_dilation,
        padding=tuple(map(Window.transposed_padding, windows, x.shape, y_bar.shape)),
        base_dilation=window_strides,
        window_dilation=window_dilation,
    )


linear(lax.reduce_window_sum_p, reduce_window_sum_transpose)


def extremum_of_windows(primitive: Any, select_p: Any) -> Callable:
    def jvp(primals, tangents, **params):
        (x,), x_dot = primals, instantiate(tangents[0])
        y_dot = lax.select_and_gather_add_p.bind(x_dot, x, select_prim=select_p, **params)
        return primitive.bind(x, **params), y_dot

    return jvp


general(lax.reduce_window_max_p, extremum_of_windows(lax.reduce_window_max_p, lax.ge_p))
general(lax.reduce_window_min_p, extremum_of_windows(lax.reduce_window_min_p, lax.le_p))


# y_i = x_dot at the place where x is extreme in window i: linear in x_dot, constant in x.
def gather_transpose(y_bar, x_dot, x, *, select_prim, base_dilation, window_dilation, **params):
    if any(d != 1 for d in (*base_dilation, *window_dilation)):
        windows = DilatedWindows(
            x.shape, base_dilation=base_dilation, window_dilation=window_dilation, **params
        )
        return windows.scatter(y_bar, windows.places(x, select_prim))
    return lax.select_and_scatter_add_p.bind(y_bar, x, select_prim=select_prim, **params)


# XLA's select-and-scatter has no dilation. Element k of all windows is a slice with strides, and
# the transpose of that puts it back between zeros.
class DilatedWindows:
    """How windows lie in an array of this shape when it is padded and dilated."""

    def __init__(
        self, shape, *, window_dimensions, window_strides, padding, base_dilation, window_dilation
    ):
        self.strides, self.base_dilation = window_strides, base_dilation
        self.padding = [(*pair, d - 1) for pair, d in zip(padding, base_dilation, strict=True)]
        self.offsets = np.array([*np.ndindex(*window_dimensions)]) * window_dilation
        spread = (np.array(shape) - 1) * base_dilation + 1
        self.padded = spread + np.sum(padding, axis=1)
        # From an element of the first window to the same one of the last.
        self.span = (self.padded - self.offsets[-1] - 1) // window_strides * window_strides

    def places(self, x: Any, select: Any) -> Any:
        """The number of the element selected in each window, the first of several."""
        pick, worst = (lax.argmax, -np.inf) if select is lax.ge_p else (lax.argmin, np.inf)
        x = lax.pad(x, number(worst, x), self.padding)
        elements = [
            lax.slice(x, offset, (offset + self.span + 1).tolist(), self.strides)
            for offset in self.offsets.tolist()
        ]
        stacked = lax.concatenate([lax.expand_dims(e, (0,)) for e in elements], 0)
        return pick(stacked, 0, np.int32)

    def scatter(self, y_bar: Any, places: Any) -> Any:
        """The array with `y_bar` where it was selected, and 0 elsewhere."""
        total = lax.full(self.padded.tolist(), 0, y_bar.dtype)
        for k, offset in enumerate(self.offsets):
            part = lax.select(eq(places, k), y_bar, zeros_like(y_bar))
            rest = self.padded - offset - self.span - 1
            gaps = [stride - 1 for stride in self.strides]
            config = zip(offset.tolist(), rest.tolist(), gaps, strict=True)
            total = add(total, lax.pad(part, number(0, part), [*config]))
        cropped = [(-low, -high, 0) for low, high, _ in self.padding]
        total = lax.pad(total, number(0, total), cropped)
        return lax.slice(total, [0] * total.ndim, total.shape, self.base_dilation)


def scatter_transpose(x_bar, y, x, **params):
    ones = (1,) * x.ndim
    return lax.select_and_gather_add_p.bind(
        x_bar, x, base_dilation=ones, window_dilation=ones, **params
    )


linear(lax.select_and_gather_add_p, gather_transpose)
linear(lax.select_and_scatter_add_p, scatter_transpose)
