"""The derivatives of the reductions over sliding windows, as in pooling.

    y_i = sum_k x[s i + d k - low],        x_bar[q] = sum of y_i over the windows i that hold q

A sum over windows is a convolution with ones, and so is its transpose (`contraction.py`).  The
largest element of each window is selected, and its transpose scatters to where it was found.

Read next: `sorting.py`.
"""

from collections.abc import Callable
from typing import Any

from jax import lax

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
def gather_transpose(y_bar, x_dot, x, *, base_dilation, window_dilation, **params):
    if any(d != 1 for d in (*base_dilation, *window_dilation)):
        raise NotImplementedError(
            "the reverse-mode derivative of the maximum or minimum over dilated windows "
            f"(base_dilation={base_dilation}, window_dilation={window_dilation}): XLA's "
            "select-and-scatter has no dilation. Slice the dilated input by hand, or use jvp."
        )
    return lax.select_and_scatter_add_p.bind(y_bar, x, **params)


def scatter_transpose(x_bar, y, x, **params):
    ones = (1,) * x.ndim
    return lax.select_and_gather_add_p.bind(
        x_bar, x, base_dilation=ones, window_dilation=ones, **params
    )


linear(lax.select_and_gather_add_p, gather_transpose)
linear(lax.select_and_scatter_add_p, scatter_transpose)
