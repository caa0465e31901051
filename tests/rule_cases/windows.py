"""Reductions over sliding windows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from jax import lax

from rule_cases.table import (
    F,
    case,
    distinct,
    values,
)

# Windows.


def window(init: float, computation: Callable, **options: Any) -> Callable:
    """`lax.reduce_window` with the initial value that makes JAX choose its own primitive for it."""
    settings = {"window_strides": None, "padding": "VALID", **options}
    return lambda x: lax.reduce_window(x, np.asarray(init, x.dtype), computation, **settings)


WINDOWS = (
    {"window_dimensions": (2, 2)},
    {"window_dimensions": (1, 3), "window_strides": (2, 1), "padding": "SAME"},
    {"window_dimensions": (3, 2), "window_strides": (2, 3), "padding": ((1, 2), (0, 1))},
)
DILATIONS = (
    {"window_dimensions": (2, 2), "window_dilation": (2, 1), "padding": ((1, 0), (1, 1))},
    {"window_dimensions": (2, 3), "base_dilation": (2, 2), "window_strides": (1, 2)},
    {"window_dimensions": (2, 2), "base_dilation": (1, 2), "window_dilation": (2, 3)},
)
for options in WINDOWS + DILATIONS:
    case("reduce_window_sum", window(0.0, lax.add, **options), F(4, 5), complex=True)
for options in WINDOWS:
    case("reduce_window_max", window(-np.inf, lax.max, **options), distinct(4, 5))
    case("reduce_window_min", window(np.inf, lax.min, **options), distinct(4, 5))
    case(
        "reduce_window_max",
        window(-np.inf, lax.max, **options),
        values(*[[1.0] * 5] * 4),
        kinks=True,
    )

# What the extrema of windows become: select by the second array, from or into the first.
SELECT = {"window_dimensions": (2, 2), "window_strides": (1, 2), "padding": ((0, 1), (1, 0))}
GATHER = {**SELECT, "base_dilation": (1, 1), "window_dilation": (1, 1)}
for name in ("ge", "le"):
    select = getattr(lax, f"{name}_p")
    bind = partial(lax.select_and_gather_add_p.bind, select_prim=select, **GATHER)
    case("select_and_gather_add", bind, F(3, 4), distinct(3, 4))
    bind = partial(lax.select_and_scatter_add_p.bind, select_prim=select, **SELECT)
    case("select_and_scatter_add", bind, F(3, 2), distinct(3, 4))
