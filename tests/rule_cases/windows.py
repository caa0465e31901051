"""Reductions over sliding windows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
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

# Of windows that are dilated, JAX has no reverse-mode derivative.
for options in DILATIONS:
    case(
        "reduce_window_max", window(-np.inf, lax.max, **options), distinct(4, 5), jax_modes=("fwd",)
    )
    case(
        "reduce_window_min", window(np.inf, lax.min, **options), distinct(4, 5), jax_modes=("fwd",)
    )
options = DILATIONS[0]
case(
    "reduce_window_max",
    window(-np.inf, lax.max, **options),
    values(*[[1.0] * 5] * 4),
    kinks=True,
    jax_modes=("fwd",),
)

# By a function of one's own, or an initial value that is not the neutral element of a known one; it
# comes in once, and what is outside of the array not at all. JAX can evaluate
# a jvp of that, but not record it.


def either(a: jax.Array, b: jax.Array) -> jax.Array:
    """`1 - (1 - a)(1 - b)`, with the neutral element 0."""
    return a + b - a * b


for options, is_complex in ((WINDOWS[2], True), (DILATIONS[0], False), (DILATIONS[1], False)):
    row = window(0.0, either, **options)
    case("reduce_window", row, F(3, 3), complex=is_complex, jax_modes=())
PADDED = {"window_dimensions": (3,), "padding": ((2, 1),)}
case("reduce_window", window(1.0, lax.add, **PADDED), F(4), jax_modes=())
case("reduce_window", window(0.5, lambda a, b: 0.5 * a - a * b, **PADDED), F(4), jax_modes=())
case("reduce_window", window(0.1, lax.max, **PADDED), distinct(5), jax_modes=())
case("reduce_window", window(-np.inf, jnp.logaddexp, **PADDED), F(4), jax_modes=())
case(
    "reduce_window",
    lambda x, y, y0: lax.reduce_window(
        (x, y), (y0, y0), lambda a, b: (a[0] * b[0], a[1] + b[1]), (2,), (1,), ((1, 0),)
    ),
    F(4),
    F(4),
    F(),
    jax_modes=(),
)

# What the extrema of windows become: select by the second array, from or into the first.
SELECT = {"window_dimensions": (2, 2), "window_strides": (1, 2), "padding": ((0, 1), (1, 0))}
GATHER = {**SELECT, "base_dilation": (1, 1), "window_dilation": (1, 1)}
for name in ("ge", "le"):
    select = getattr(lax, f"{name}_p")
    bind = partial(lax.select_and_gather_add_p.bind, select_prim=select, **GATHER)
    case("select_and_gather_add", bind, F(3, 4), distinct(3, 4))
    dilated = {**GATHER, "window_dilation": (2, 1)}
    bind = partial(lax.select_and_gather_add_p.bind, select_prim=select, **dilated)
    case("select_and_gather_add", bind, F(3, 4), distinct(3, 4), jax_modes=("fwd",))
    bind = partial(lax.select_and_scatter_add_p.bind, select_prim=select, **SELECT)
    case("select_and_scatter_add", bind, F(3, 2), distinct(3, 4))
