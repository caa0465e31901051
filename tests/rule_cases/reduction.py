"""Reductions over axes and cumulative ones."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from rule_cases.table import (
    F,
    booleans,
    case,
    distinct,
    integers,
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

# By a function of one's own. JAX has no derivative in the initial value, and none where one of
# several operands has no tangent.


def start(value: float, x: jax.Array) -> jax.Array:
    return jnp.full((), value, x.dtype)


def either(a: jax.Array, b: jax.Array) -> jax.Array:
    """`1 - (1 - a)(1 - b)`, with the neutral element 0."""
    return a + b - a * b


def then(first: tuple, second: tuple) -> tuple:
    """`(a, b)` stands for the function `a x + b`. The order matters."""
    (a, b), (c, d) = first, second
    return c * a, c * b + d


def larger(first: tuple, second: tuple) -> tuple:
    (x, i), (y, j) = first, second
    return jnp.where(x >= y, x, y), jnp.where(x >= y, i, j)


case("reduce", lambda x: lax.reduce(x, start(0, x), either, (0,)), F(5, 2), complex=True)
case("reduce", lambda x: lax.reduce(x, start(0, x), either, (2, 0)), F(2, 2, 3))
case("reduce", lambda x, y0: lax.reduce(x, y0, either, (1,)), F(2, 3), F(), jax_modes=())
case("reduce", lambda x, y0: lax.reduce(x, y0, either, (0,)), F(0, 2), F(), jax_modes=())
case("reduce", lambda x: lax.reduce(x, start(-jnp.inf, x), jnp.logaddexp, (0,)), F(4))
# Neither associative, nor is the start neutral: it comes in once for each block of 32 as well.
decaying = lambda a, b: 0.5 * a - a * b  # noqa: E731
case("reduce", lambda x, y0: lax.reduce(x, y0, decaying, (0,)), F(40, 2), F(), jax_modes=())
# JAX combines elements that are not neighbours, and also the value is then another.
case(
    "reduce",
    lambda x, y: lax.reduce((x, y), (start(1, x), start(0, y)), then, (0,)),
    F(5),
    F(5),
    jax_modes=(),
)
case(
    "reduce",
    lambda x, n: lax.reduce((x, n), (start(-jnp.inf, x), start(0, n)), larger, (0,)),
    distinct(5),
    integers(0, 9, 5),
    jax_modes=(),
)

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
