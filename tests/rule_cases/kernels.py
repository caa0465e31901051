"""Kernels of Pallas, and calls that say where or how a function is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import ref
from jax.experimental import compute_on, pallas, scheduling_groups, xla_metadata

from rule_cases.table import IS_12, F, case


def kernel(body: Callable) -> Callable:
    """A function of arrays of one shape, to one of that shape."""

    def called(*xs):
        out = jax.ShapeDtypeStruct(xs[0].shape, xs[0].dtype)
        return pallas.pallas_call(body, out_shape=out, interpret=True)(*xs)

    return called


@kernel
def product(x, y, out):
    out[...] = jnp.sin(x[...]) * y[...]


@kernel
def summed(x, out):
    out[...] = jnp.zeros_like(out)
    ref.addupdate(out, (), x[...] ** 2)


# In forward mode alone; JAX cannot linearize it. Its `jvp` is compared in `test_kernels.py`.
FORWARD: Any = {"modes": ("fwd",), "jax_modes": ()}
case("pallas_call get swap", product, F(4), F(4), **FORWARD)
case("pallas_call addupdate", summed, F(4), **FORWARD)


def sines(x, y):
    return jnp.sin(x * y) * y, jnp.cos(x)


metadata_call: Any = scheduling_groups.scheduling_group("1")
set_metadata: Any = xla_metadata.set_xla_metadata
case("xla_metadata_call", metadata_call(sines), F(3), F(3), complex=True)
case(
    "xla_metadata_value",
    lambda x: jnp.square(set_metadata(jnp.sin(x), name="value")),
    F(3),
    complex=True,
)
# It has another name since JAX 0.11.
computed_on: Any = getattr(compute_on, "compute_on2", compute_on.compute_on)
on_host = computed_on(sines, compute_type="device_host", out_memory_spaces=jax.memory.Space.Device)
case("compute_on", on_host, F(3), F(3), complex=True)

if IS_12:
    from jax.experimental import overlap

    ordered = overlap.program_order(sines, enforce=False)
    case("program_order", ordered, F(3), F(3), newer=True)
