"""Reductions over axes and cumulative ones."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import lax

from rule_cases.table import (
    F,
    booleans,
    case,
    distinct,
    values,
)

# Reductions.

case("reduce_sum", lambda x: lax.reduce_sum(x, (0, 2)), F(2, 3, 2), complex=True)
case("reduce_sum", lambda x: lax.reduce_sum(x, ()), F(2))
case("reduce_prod", lambda x: lax.reduce_prod(x, (0, 2)), F(2, 3, 2), complex=True)
case("reduce_prod", lambda x: lax.reduce_prod(x, (0,)), values(0.0, 2.0, -3.0), complex=True)
case("reduce_prod", lambda x: lax.reduce_prod(x, (0,)), values(0.0, 2.0, 0.0), complex=True)
case("reduce_prod", lambda x: lax.reduce_prod(x, (0,)), F(1))
case("reduce_prod", lambda x: lax.reduce_prod(x, (1,)), F(2, 0))
case("reduce_max", lambda x: lax.reduce_max(x, (0, 2)), distinct(2, 3, 2))
case("reduce_min", lambda x: lax.reduce_min(x, (1,)), distinct(2, 3, 2))
case("reduce_max", lambda x: lax.reduce_max(x, (1,)), values([1.0, 2, 2], [3, 3, 3]), kinks=True)
case("reduce_min", lambda x: lax.reduce_min(x, (1,)), values([1.0, 1, 2], [3, 3, 3]), kinks=True)
case("reduce_and reduce_or", lambda p: (jnp.all(p, 0), jnp.any(p, 1)), booleans(2, 3))
case("reduce_xor", lambda p: lax.reduce_xor(p, (0,)), booleans(4))
case(
    "argmax argmin",
    lambda x: (lax.argmax(x, 1, jnp.int32), lax.argmin(x, 0, jnp.int32)),
    distinct(2, 3),
)
case("argmax", lambda x: x[lax.argmax(x, 0, jnp.int32)], distinct(3))

CUMULATIVE = {
    "cumsum": (lax.cumsum, F(3, 4), True),
    "cumprod": (lax.cumprod, F(3, 4), True),
    "cummax": (lax.cummax, distinct(3, 4), False),
    "cummin": (lax.cummin, distinct(3, 4), False),
    "cumlogsumexp": (lax.cumlogsumexp, F(1, 3), False),
}
for name, (operation, maker, is_complex) in CUMULATIVE.items():
    for reverse in (False, True):
        case(name, partial(operation, axis=1, reverse=reverse), maker, complex=is_complex)
case("cumsum", lambda x: lax.cumsum(x, 0), F(1))
case("cumprod", lambda x: lax.cumprod(x, 0), values(2.0, 0.0, 3.0, 0.0, 1.0), complex=True)
case("cummax", lambda x: lax.cummax(x, 0), values(1.0, 2.0, 2.0, 1.0, 3.0), kinks=True)
case("cummin", lambda x: lax.cummin(x, 0), values(2.0, 1.0, 1.0, 3.0, 0.0), kinks=True)
