"""Products that sum: dot_general and the convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from rule_cases.table import (
    F,
    case,
)

# Contractions.


def dot(batch: Any, contract: Any, **options: Any) -> Callable:
    """`lax.dot_general` with these dimensions."""
    return lambda x, y: lax.dot_general(x, y, (contract, batch), **options)


NONE = ((), ())
case("dot_general", dot(NONE, ((1,), (0,))), F(2, 3), F(3, 4), complex=True)
case("dot_general", dot(NONE, ((0,), (1,))), F(3, 2), F(4, 3), complex=True)
case("dot_general", dot(NONE, ((0,), (0,))), F(3), F(3), complex=True)
case("dot_general", dot(NONE, NONE), F(2), F(3), complex=True)
case("dot_general", dot(NONE, ((1, 2), (2, 0))), F(2, 3, 4), F(4, 5, 3), complex=True)
case("dot_general", dot(NONE, ((2, 1), (0, 2))), F(2, 3, 4), F(4, 5, 3))
case("dot_general", dot(((0,), (0,)), ((2,), (1,))), F(2, 3, 4), F(2, 4, 5), complex=True)
case("dot_general", dot(((2,), (1,)), ((0,), (2,))), F(4, 3, 2), F(5, 2, 4), complex=True)
case("dot_general", dot(((0, 3), (3, 1)), ((1,), (0,))), F(2, 3, 4, 5), F(3, 5, 2, 2))
case("dot_general", dot(((3, 0), (1, 3)), ((2, 1), (0, 2))), F(2, 3, 4, 5), F(4, 5, 3, 2))
case("dot_general", dot(((1, 0), (0, 1)), NONE), F(2, 3, 4), F(3, 2))
case("dot_general", lambda x: x @ x, F(3, 3), complex=True)
case(
    "dot_general",
    dot(NONE, ((1,), (0,)), preferred_element_type=jnp.float32),
    F(2, 3),
    F(3, 2),
    kinks=True,
)
case("dot_general", dot(NONE, ((1,), (0,))), F(2, 0), F(0, 3))


def conv(
    dimensions: Any = None, strides: Any = (1, 1), padding: Any = "VALID", **options: Any
) -> Callable:
    """`lax.conv_general_dilated` with these options."""
    options["dimension_numbers"] = dimensions
    return lambda x, y: lax.conv_general_dilated(x, y, strides, padding, **options)


case("conv_general_dilated", conv(), F(2, 3, 4, 4), F(2, 3, 2, 2), complex=True)
case(
    "conv_general_dilated",
    conv(("NHWC", "HWIO", "NHWC"), (2, 1), "SAME"),
    F(2, 5, 4, 2),
    F(3, 2, 2, 3),
)
case(
    "conv_general_dilated",
    conv(("NHWC", "OIHW", "NCHW"), (3, 2), ((1, 2), (2, 0))),
    F(1, 5, 4, 2),
    F(2, 2, 2, 3),
)
case(
    "conv_general_dilated",
    conv(padding=((0, 0), (0, 0)), lhs_dilation=(2, 1), rhs_dilation=(1, 2)),
    F(1, 2, 3, 5),
    F(2, 2, 2, 2),
)
case(
    "conv_general_dilated",
    conv(None, (2, 3), ((2, 1), (1, 3)), lhs_dilation=(2, 3), rhs_dilation=(2, 1)),
    F(1, 2, 3, 3),
    F(2, 2, 2, 3),
)
case("conv_general_dilated", conv(None, (1, 2), ((-1, 2), (0, -1))), F(1, 1, 5, 5), F(1, 1, 2, 2))
case(
    "conv_general_dilated", conv(feature_group_count=2), F(1, 4, 3, 3), F(4, 2, 2, 2), complex=True
)
case(
    "conv_general_dilated",
    conv(None, (2, 1), "SAME", feature_group_count=3),
    F(2, 3, 4, 3),
    F(6, 1, 2, 2),
)
case("conv_general_dilated", conv(batch_group_count=2), F(4, 2, 3, 3), F(4, 2, 2, 2), complex=True)
case(
    "conv_general_dilated",
    conv(("HWNC", "HWIO", "HWNC"), (2, 2), ((1, 1), (0, 1)), batch_group_count=3),
    F(4, 3, 3, 2),
    F(2, 2, 2, 3),
)
case("conv_general_dilated", conv(None, (2,), "SAME", rhs_dilation=(2,)), F(2, 2, 6), F(3, 2, 2))
case("conv_general_dilated", conv(None, (), ()), F(2, 3), F(4, 3))


# Products with groups: where the ragged dimension is kept, summed or a batch.


def ragged(
    sizes: Any, contract: Any, batch: Any, ragged_dimension: int, group: Any = (), **options: Any
) -> Callable:
    """`lax.ragged_dot_general` with these dimensions and sizes of groups."""
    numbers = lax.RaggedDotDimensionNumbers((contract, batch), [ragged_dimension], group)
    groups = jnp.array(sizes)
    return lambda x, y: lax.ragged_dot_general(x, y, groups, numbers, **options)


SIZES = [2, 0, 2]  # of five rows, the last of which is in no group
EACH = [[2, 1, 1], [1, 0, 3]]
NO_BATCH = ((), ())
RAGGED = {
    "kept": [
        (ragged(SIZES, ((1,), (1,)), NO_BATCH, 0, (0,)), F(5, 3), F(3, 3, 2)),
        (ragged(SIZES, ((0,), (2,)), NO_BATCH, 1, (1,)), F(3, 5), F(2, 3, 3)),
        (ragged(EACH, ((2,), (2,)), ((0,), (1,)), 1, (0,)), F(2, 4, 3), F(3, 2, 3, 2)),
        (ragged(EACH, ((2,), (1,)), NO_BATCH, 1, (0,)), F(2, 4, 3), F(3, 3, 2)),
    ],
    "summed": [
        (ragged(SIZES, ((1,), (0,)), NO_BATCH, 1), F(4, 5), F(5, 3)),
        (ragged(SIZES, ((0,), (1,)), NO_BATCH, 0), F(5, 2), F(3, 5)),
        (ragged(EACH, ((1,), (2,)), ((0,), (1,)), 1), F(2, 4, 3), F(2, 2, 4)),
        (ragged(EACH, ((1, 2), (2, 1)), NO_BATCH, 2), F(3, 2, 4), F(3, 4, 2)),
    ],
    "batch": [(ragged(SIZES, ((2,), (1,)), ((0,), (0,)), 0), F(5, 2, 3), F(5, 3, 2))],
}
for kind, rows in RAGGED.items():
    for fun, x, y in rows:
        # JAX transposes the first kind alone, and what comes of it is of the second. It vectorizes
        # over the first dimensions alone.
        if kind == "kept":
            case("ragged_dot_general", fun, x, y, order=1, complex=True, vmap=False)
        case("ragged_dot_general", fun, x, y, jax_modes=(), vmap=False)
case(
    "ragged_dot_general",
    ragged(SIZES, ((1,), (1,)), NO_BATCH, 0, (0,), preferred_element_type=jnp.float32),
    F(5, 3),
    F(3, 3, 2),
    order=1,
    kinks=True,
    vmap=False,
)
