"""Operations across devices, on a mesh of one device; `../test_collectives.py` has more of them.

On one device the sums have one term, so that each row is a function that finite differences know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import mlir
from jax.sharding import PartitionSpec as P

from functrans.derivatives import collectives
from functrans.rules import RULES
from rule_cases.table import F, case

ALONG = P("i")


def mapped(body: Callable, specs: Any = ALONG, checked: bool = True) -> Callable:
    """`body` on each device of a mesh of one, which is there when the function is called."""

    def fun(*args):
        mesh = jax.make_mesh((1,), ("i",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
        options: Any = {"in_specs": ALONG, "out_specs": specs, "check_vma": checked}
        # JAX's jit fails where the tangent of an argument of shard_map is a NumPy array.
        return jax.shard_map(body, mesh=mesh, **options)(*(1 * x for x in args))

    return fun


def to(kind: str, x: jax.Array) -> jax.Array:
    return lax.pcast(x, "i", to=kind)


# Every device counts.

case("shard_map", mapped(lambda x, y: lax.sin(x) * y), F(3), F(3), complex=True)
case("psum", mapped(lambda x: lax.sin(x) * lax.psum(x, "i"), checked=False), F(3), complex=True)
case("all_gather", mapped(lambda x: lax.all_gather(lax.sin(x), "i")), F(3))
case("reduce_scatter", mapped(lambda x: lax.psum_scatter(lax.sin(x), "i", tiled=True)), F(3))
case("all_to_all", mapped(lambda x: lax.all_to_all(lax.sin(x), "i", 1, 0, tiled=True)), F(3, 2))
case("ppermute", mapped(lambda x: lax.ppermute(lax.sin(x), "i", [(0, 0)])), F(3))

# One number for all devices.

case("psum_invariant pvary", mapped(lambda x: lax.sin(x) * lax.psum(x, "i")), F(3))
case(
    "all_gather_invariant",
    mapped(lambda x: lax.all_gather(lax.sin(x), "i", axis=1, to="invarying"), P()),
    F(3),
)

# Sums that are not carried out yet. JAX cannot vectorize them, nor evaluate them one by one.

case(
    f"{collectives.vary_unreduced_cast_p.name} unreduced_psum",
    jax.jit(mapped(lambda x: lax.sin(lax.psum(to("unreduced", x**2), "i")), P())),
    F(3),
    vmap=False,
)
case(
    "unreduced_reduce_scatter",
    jax.jit(mapped(lambda x: lax.sin(lax.psum_scatter(to("unreduced", x**2), "i", tiled=True)))),
    F(3),
    vmap=False,
)
case(
    f"preduced {collectives.reduced_vary_cast_p.name}",
    jax.jit(mapped(lambda x: lax.sin(to("varying", to("reduced", lax.psum(x**2, "i")))))),
    F(3),
    vmap=False,
)
case(
    "all_gather_reduced",
    jax.jit(mapped(lambda x: lax.sin(to("varying", lax.all_gather(x**2, "i", to="reduced"))))),
    F(3),
    vmap=False,
)

# What XLA does not have on CPUs is done there by other collectives.


def pbroadcast_on_cpu(x: jax.Array, *source_input: Any, axis_name: Any, source: Any = None) -> Any:
    (source,) = source_input or (source,)
    return lax.all_gather(x, axis_name)[source]


def ragged_all_to_all_on_cpu(
    x: jax.Array, base: jax.Array, *places: jax.Array, axis_name: Any, axis_index_groups: None
) -> jax.Array:
    """For each device `d` and each slice that it sends to this one: read there, and write here."""
    xs, sent_from, sent, written_at = (lax.all_gather(p, axis_name) for p in (x, *places[:3]))
    count = sent.shape[1] // len(xs)
    rows = jnp.arange(len(base))
    for d in range(len(xs)):
        for k in range(count):
            i = lax.axis_index(axis_name) * count + k
            position = rows - written_at[d, i]
            is_written = (position >= 0) & (position < sent[d, i])
            read = xs[d][jnp.clip(position + sent_from[d, i], 0, len(x) - 1)]
            base = jnp.where(is_written.reshape(-1, *[1] * (base.ndim - 1)), read, base)
    return base


def lower_on_cpu(primitive: Any, fun: Callable) -> None:
    mlir.register_lowering(primitive, mlir.lower_fun(fun, multiple_results=False), platform="cpu")


lower_on_cpu(collectives.pbroadcast_p, pbroadcast_on_cpu)
lower_on_cpu(lax.ragged_all_to_all_p, ragged_all_to_all_on_cpu)


def ragged(x: jax.Array, base: jax.Array) -> jax.Array:
    """Rows 0 and 2, 3 of `x` become the rows 3 and 1, 2 of `base`."""
    places = [jnp.array(numbers) for numbers in ([0, 2], [1, 2], [3, 1], [1, 2])]
    return lax.ragged_all_to_all(lax.sin(x), lax.cos(base), *places, axis_name="i")


# JAX's transpose fails, of both.
case(
    "pbroadcast",
    mapped(lambda x: lax.pbroadcast(lax.sin(x), "i", 0)),
    F(3),
    jax_modes=("fwd",),
)
case("ragged_all_to_all", mapped(ragged), F(4, 2), F(5, 2), jax_modes=("fwd",), vmap=False)

if collectives.pbroadcast_dynamic_p in RULES:
    lower_on_cpu(collectives.pbroadcast_dynamic_p, pbroadcast_on_cpu)
    case(
        "pbroadcast_dynamic",
        mapped(lambda x: lax.pbroadcast(lax.sin(x), "i", lax.axis_index("i") * 0)),
        F(3),
        jax_modes=("fwd",),
    )


def inspected(x: jax.Array) -> jax.Array:
    jax.debug.inspect_array_sharding(x, callback=str)
    return lax.floor(x)


case("inspect_sharding", inspected, F(3), kinks=True, vmap=False)
