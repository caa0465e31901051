"""Where an array lies, and operations that move its elements."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import layout
from jax.experimental.layout import Layout, with_layout_constraint

from rule_cases.table import (
    F,
    case,
)

# Where an array lies.


def sharding(axis_type: Any) -> jax.sharding.NamedSharding:
    """On one device."""
    mesh = jax.make_mesh((1,), ("axis",), axis_types=(axis_type,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


case("layout_constraint", lambda x: with_layout_constraint(x * x, Layout((0, 1))), F(3, 2))
AUTO, EXPLICIT = map(sharding, (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit))
case("sharding_constraint", lambda x: lax.with_sharding_constraint(x * x, AUTO), F(3), complex=True)
case("reshard", lambda x: jax.sharding.reshard(x * x, EXPLICIT), F(3), complex=True)

# Shapes.

case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (1,)), F(3), complex=True)
case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (0, 2)), F(2, 1))
case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3), ()), F())
case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (1, 3), (1,)), F(3))
case("reshape", lambda x: lax.reshape(x, (3, 2)), F(2, 3), complex=True)
case("reshape", lambda x: lax.reshape(x, (12,), dimensions=(2, 0, 1)), F(2, 3, 2))
case("squeeze", lambda x: lax.squeeze(x, (0, 2)), F(1, 3, 1), complex=True)
case("transpose", lambda x: lax.transpose(x, (2, 0, 1)), F(2, 3, 4), complex=True)
case("rev", lambda x: lax.rev(x, (0, 2)), F(2, 3, 2), complex=True)
case("concatenate", lambda x, y: lax.concatenate([x, y, x], 1), F(2, 3), F(2, 1), complex=True)
case("concatenate", lambda x, y: lax.concatenate([x, y], 0), F(2), F(0))
case("pad", lambda x, v: lax.pad(x, v, [(1, 2, 0), (0, 1, 2)]), F(2, 3), F(), complex=True)
case("pad", lambda x, v: lax.pad(x, v, [(-1, 2, 0), (1, -1, 0)]), F(3, 3), F(), complex=True)
case("pad", lambda x, v: lax.pad(x, v, [(-2, -1, 1), (-1, 0, 2)]), F(4, 3), F(), complex=True)
case("pad", lambda x, v: lax.pad(x, v, [(-1, -2, 0)]), F(3), F())
case("pad", lambda x, v: lax.pad(x, v, [(2, 1, 1)]), F(0), F())
case("slice", lambda x: lax.slice(x, (1, 0), (4, 3)), F(5, 3), complex=True)
case("slice", lambda x: lax.slice(x, (1, 0), (6, 4), (2, 3)), F(7, 4), complex=True)
case("slice", lambda x: lax.slice(x, (0,), (6,), (3,)), F(7))
case("split", lambda x: lax.split(x, (1, 0, 3), axis=1), F(2, 4), complex=True)
case("split", lambda x: lax.split(x, (1, 3), axis=0)[1], F(4))
case("stack", lambda x, y: jnp.stack([x, y, x], 1), F(2, 3), F(2, 3), complex=True)
case("unstack", lambda x: jnp.unstack(x, axis=1)[::2], F(2, 3), complex=True)
case("tile", lambda x: lax.tile(x, (2, 1, 3)), F(2, 2, 1), complex=True)
case("tile", lambda x: lax.tile(x, (0, 3)), F(2, 2))
case("iota", lambda x: lax.iota(jnp.int32, 3), F(3))
case("iota", lambda x: x * lax.broadcasted_iota(x.dtype, (2, 3), 1), F(2, 3))

if hasattr(layout, "explicit_layout"):
    # JAX evaluates it in compiled programs alone.
    negated = layout.explicit_layout(lambda x: -x, in_layouts=Layout((0, 1)))
    case("relayout", jax.jit(negated), F(2, 3), vmap=False)
