"""Primitives that carry functions."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import hijax

import functrans as ft
from rule_cases.table import (
    F,
    apart,
    case,
    integers,
)

# Calls.


@jax.custom_jvp
def sine_by_rule(x: jax.Array, y: jax.Array) -> jax.Array:
    """`sin(x) y`."""
    return jnp.sin(x) * y


sine_by_rule.defjvps(lambda t, z, x, y: t * jnp.cos(x) * y, lambda t, z, x, y: t * jnp.sin(x))


@jax.custom_vjp
def cube_by_rule(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x^3 y`, of operands of one shape: the rule does not sum."""
    assert jnp.shape(x) == jnp.shape(y)
    return x**3 * y


cube_by_rule.defvjp(
    lambda x, y: (x**3 * y, (x, y)),
    lambda saved, z: (z * 3 * saved[0] ** 2 * saved[1], z * saved[0] ** 3),
)

HiPrim: Any = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive  # the name before JAX 0.11


class Cube(HiPrim):
    """`x^3 y`, without a rule."""

    def __init__(self, aval: Any):
        self.in_avals, self.out_aval, self.params = (aval, aval), aval, {}
        super().__init__()

    def expand(self, x: Any, y: Any) -> Any:
        return x**3 * y

    def batch(self, axis_data: Any, args: Any, dims: Any) -> Any:
        fronts = [
            jnp.broadcast_to(x, (axis_data.size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
            for x, d in zip(args, dims, strict=True)
        ]
        return type(self)(jax.typeof(fronts[0]))(*fronts), 0


class CubeWithRules(Cube):
    """The same, with one."""

    def jvp(self, primals: Any, tangents: Any) -> Any:
        (x, y), (x_dot, y_dot) = primals, map(hijax.instantiate_zeros, tangents)
        return self(x, y), 3 * x**2 * y * x_dot + x**3 * y_dot


case("jit", jax.jit(lambda x, y: lax.sin(x) * y), F(3), F(3), complex=True)
case("jit", jax.jit(lambda x, n: (lax.sin(x), n, x * n)), F(3), integers(0, 9, 3))
case("jit", lambda x: jax.jit(lambda y: jax.jit(lax.sin)(y) * x)(x), F(3))
case("custom_jvp_call", sine_by_rule, F(3), F(3), complex=True)
case("custom_jvp_call", jax.nn.relu, apart(4))
# JAX has no forward mode for `custom_vjp`; functrans transposes the backward rule to get it.
case("custom_vjp_call", cube_by_rule, F(3), F(3), complex=True, jax_modes=("rev",))
# JAX asks for a rule for each mode; these have none, or one.
bound = (
    ("call_hi_primitive", lambda x, y: Cube(jax.typeof(x))(x, y)),
    ("hi_with_rules", lambda x, y: ft.jit(CubeWithRules(jax.typeof(x)))(x, y)),
)
for name, fun in bound:
    case(name, fun, F(3), F(3), complex=True, jax_modes=())
case(
    "transposed_backward_rule",
    lambda x, y: ft.linearize(cube_by_rule, x, y)[1](y, x),
    F(3),
    F(3),
    complex=True,
    jax_modes=(),
)


def loop(w: jax.Array, c: jax.Array, xs: jax.Array, **options: Any) -> Any:
    """A carry of a number and an integer, a constant, and something stacked at each step."""

    def body(carry: Any, x: Any) -> Any:
        i, c = carry
        c = c * w + lax.sin(x) * (i + 1)
        return (i + 1, c), (c * x, i)

    (_, c), (ys, _) = lax.scan(body, (0, c), xs, **options)
    return c, ys


case("scan", loop, F(3), F(3), F(4, 3), complex=True)
case("scan", partial(loop, reverse=True, unroll=2), F(3), F(3), F(4, 3))
# The carry starts from a constant: its tangent is zero at the first step and moves from then on.
case("scan", lambda w, xs: loop(w, jnp.ones_like(w), xs)[0], F(3), F(4, 3), half=False)
case("scan", lambda x: lax.map(lambda y: y * lax.sin(y), x, batch_size=2), F(5))

case("remat2", jax.checkpoint(lambda x, y: lax.sin(lax.sin(x) * y)), F(3), F(3), complex=True)
case("remat2", lambda x: jax.checkpoint(lambda y: (y * x, y**3))(lax.cos(x)), F(3))
