"""Sorting."""

from __future__ import annotations

from jax import lax

from rule_cases.table import (
    F,
    case,
    distinct,
    indices,
    values,
)

# Sorting.

case("sort", lambda x: lax.sort(x, dimension=0), distinct(4, 2))
case("sort", lambda x: lax.sort(x, dimension=1, is_stable=False), distinct(2, 4))
case("sort", lambda x, y: lax.sort((x, y), num_keys=1), distinct(2, 4), F(2, 4))
case(
    "sort",
    lambda x, y, n: lax.sort((n, x, y), dimension=0, num_keys=2),
    distinct(4),
    F(4),
    indices(1, 0, 1, 0),
)
case(
    "sort", lambda x, y: lax.sort((x, y), num_keys=1), values(1.0, 0.0, 1.0, 0.0), F(4), kinks=True
)
case("sort", lambda x: lax.sort(x), distinct(4), complex=True)
case("top_k", lambda x: lax.top_k(x, 2), distinct(2, 5))
case("top_k", lambda x: lax.top_k(x * x, 3)[0], distinct(4, low=0.5))
case("approx_top_k", lambda x: lax.approx_max_k(x, 2), distinct(2, 5))
