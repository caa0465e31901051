"""Gather, scatter and dynamic slices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rule_cases.table import (
    F,
    case,
    distinct,
    indices,
    integers,
    values,
)

# Gather, scatter, dynamic slices.

MODES = ("clip", "fill", "promise_in_bounds")
INDICES = indices([0, 2], [2, 0], [0, 2])  # one of them twice


def rows(x: jax.Array, i: jax.Array, mode: str) -> jax.Array:
    """`x[i]` for an `i` of any shape."""
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(i.ndim,), collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    return lax.gather(x, i[..., None], numbers, (1, x.shape[1]), mode=mode)


for mode in MODES:
    case("gather", partial(rows, mode=mode), F(3, 2), INDICES, complex=True)
    case(
        "gather",
        lambda x, i, mode=mode: x.at[i, :, i[0]].get(mode=mode),
        F(3, 2, 3),
        indices(0, 2, 2),
    )
for mode in ("clip", "fill"):
    # What is filled in is NaN, which has no differences.
    filled = mode == "fill"
    case("gather", partial(rows, mode=mode), F(3, 2), indices(-1, 5, 1), kinks=filled)
    case(
        "gather",
        lambda x, i, mode=mode: x.at[i].get(mode=mode),
        F(3, 2),
        indices(-4, 7, 1),
        kinks=filled,
    )
case("gather", lambda x, i: x.at[i].get(mode="fill", fill_value=7.0), F(3), indices(5, 1))
case(
    "gather",
    lambda x, i: x.at[i].get(unique_indices=True, indices_are_sorted=True),
    F(4),
    indices(0, 2),
)
case("gather", lambda x, i: jnp.take_along_axis(x, i, axis=1), F(3, 4), integers(0, 4, 3, 2))
case("gather", lambda x, i: jax.vmap(lambda a, j: a[j])(x, i), F(3, 4), integers(0, 4, 3, 2))
case("gather", lambda x: x[jnp.array([2, 0, 2]), :, None, 1:], F(3, 2, 3), complex=True)


def update(method: str, mode: str | None = None, **options: Any) -> Callable:
    """`x.at[i].add(y)` and the like."""
    return lambda x, i, y: getattr(x.at[i], method)(y, mode=mode, **options)


SCATTERS = {
    "scatter": "set",
    "scatter-add": "add",
    "scatter-sub": "subtract",
    "scatter-mul": "multiply",
    "scatter-min": "min",
    "scatter-max": "max",
}
for name, method in SCATTERS.items():
    is_complex = method not in ("min", "max")
    for mode in ("clip", "drop", "promise_in_bounds"):
        # JAX has no derivative of a product for indices that may repeat.
        options = {"unique_indices": True} if method == "multiply" else {}
        scattered = update(method, mode, **options)
        case(
            name,
            scattered,
            distinct(4, 2),
            indices(3, 0),
            distinct(2, 2, low=-1.9, high=1.7),
            complex=is_complex,
        )
    for mode in ("clip", "drop"):
        outside = indices(-7, 1) if method == "multiply" else indices(-7, 9, 1)
        updates = distinct(2 if method == "multiply" else 3, 2, low=-1.9, high=1.7)
        # JAX 0.10 has NaN for the derivative of an extremum with an update whose index is clipped.
        newer = mode == "clip" and method in ("min", "max")
        scattered = update(method, mode, **options)
        case(name, scattered, distinct(4, 2), outside, updates, newer=newer)
for method in ("add", "subtract"):
    name = "scatter-sub" if method == "subtract" else "scatter-add"
    case(name, update(method), F(3, 2), indices(0, 2, 0), F(3, 2), complex=True)
# Of a product the derivative in one factor is the product of the others, also where some are 0.
# JAX has none for indices that may repeat.
ONE_ZERO, TWO_ZEROS = values(0.5, 0.0, -1.5, 2.0), values(0.0, 0.0, -1.5, 2.0)
REPEATED, OUTSIDE = indices(1, 0, 1, 1), indices(9, 0, -7, 0)
product = update("multiply")
case("scatter-mul", product, F(3), REPEATED, ONE_ZERO, complex=True, jax_modes=())
case("scatter-mul", update("multiply", "drop"), F(3), OUTSIDE, TWO_ZEROS, jax_modes=())
case("scatter-mul", update("multiply", "clip"), F(3, 1), OUTSIDE, F(4, 1), jax_modes=())
# With `set`, which of two updates of one place wins is up to XLA; functrans decides as JAX does.
case("scatter", update("set"), F(3, 2), indices(0, 2, 0), F(3, 2), complex=True)
case("scatter", lambda x, y: x.at[1:3, ::2].set(y), F(4, 3), F(2, 2), complex=True)
case("scatter", lambda x, y: x.at[..., 0].set(y), F(2, 3), F())
# A function that is applied at indices, as often as each occurs. JAX has no derivative.


def bent(mode: str | None = None, **options: Any) -> Callable:
    return lambda x, i: x.at[i].apply(lambda a: jnp.sin(a) * a, mode=mode, **options)


case("scatter", bent(), F(3, 2), indices(0, 2, 0, 0), complex=True, jax_modes=())
case("scatter", bent("clip"), F(4), indices(9, 1, -7, 3), jax_modes=())
case("scatter", bent("drop"), F(4), indices(9, 1, -7, 1), jax_modes=())
case("scatter", bent(unique_indices=True), F(3, 2), indices(2, 0), jax_modes=())
case(
    "scatter-min",
    update("min"),
    values(1.0, 2.0, 3.0),
    indices(0, 1, 0),
    values(1.0, 0.5, 1.0),
    kinks=True,
)
case(
    "scatter-max",
    update("max"),
    values(1.0, 2.0, 3.0),
    indices(0, 1, 0),
    values(1.0, 2.5, 1.0),
    kinks=True,
)
case("scatter-max", update("max"), distinct(3), indices(0, 1, 0), distinct(3, low=-1.9, high=1.7))
case(
    "scatter-add",
    lambda x, i, y: jax.vmap(lambda a, j, b: a.at[j].add(b))(x, i, y),
    F(2, 4),
    integers(0, 4, 2, 3),
    F(2, 3),
)
case(
    "scatter-add",
    lambda x, i: jax.ops.segment_sum(x, i, 4),
    F(5, 2),
    integers(0, 4, 5),
    complex=True,
)

case(
    "dynamic_slice",
    lambda x, i, j: lax.dynamic_slice(x, (i, j), (2, 2)),
    F(4, 3),
    integers(1, 2),
    integers(0, 2),
    complex=True,
)
case("dynamic_slice", lambda x, i: lax.dynamic_slice(x, (i,), (2,)), F(4), integers(7, 9))
case(
    "dynamic_slice",
    lambda x, i: lax.dynamic_slice_in_dim(x, i, 2, axis=1) * x[:, 1:3],
    F(2, 4),
    integers(-1, 0),
)
case(
    "dynamic_update_slice",
    lambda x, y, i, j: lax.dynamic_update_slice(x, y, (i, j)),
    F(4, 3),
    F(2, 2),
    integers(1, 2),
    integers(0, 2),
    complex=True,
)
case(
    "dynamic_update_slice",
    lambda x, y, i: lax.dynamic_update_slice(x, y, (i,)),
    F(4),
    F(2),
    integers(7, 9),
)
