"""A step of training on two processes: `python distributed_training.py PORT RANK`, for both ranks.

Each process has one device and half of the batch.  The gradient with respect to the weights is
computed by functrans and by JAX, with arrays that are sharded over both processes and with
`shard_map`; and by JAX on the whole batch in each process alone.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import functrans as ft


def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.sin(x @ w) ** 2)


def main(port: int, rank: int) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=rank)
    assert jax.device_count() == 2 and jax.local_device_count() == 1
    numbers = np.random.default_rng(0)
    whole = numbers.normal(size=(4, 3)).astype(np.float32)
    weights = numbers.normal(size=3).astype(np.float32)

    mesh = jax.make_mesh((2,), ("i",), (AxisType.Auto,))
    along, everywhere = NamedSharding(mesh, P("i")), NamedSharding(mesh, P())
    x = jax.make_array_from_process_local_data(along, whole[2 * rank : 2 * rank + 2])
    w = jax.make_array_from_process_local_data(everywhere, weights)

    def on_each(ad: Any) -> Any:
        def body(w, x):
            return lax.pmean(ad.grad(loss)(w, x), "i")

        specs: Any = {"in_specs": (P(), P("i")), "out_specs": P()}
        return jax.jit(jax.shard_map(body, mesh=mesh, check_vma=False, **specs))

    def through(ad: Any) -> Any:
        def body(w, x):
            return lax.pmean(loss(w, x), "i")

        mapped = jax.shard_map(body, mesh=mesh, in_specs=(P(), P("i")), out_specs=P())
        return ad.jit(ad.grad(mapped))

    want = np.asarray(jax.grad(loss)(weights, whole))
    for ad in (ft, jax):
        for gradient in (ad.jit(ad.grad(loss)), on_each(ad), through(ad)):
            got = gradient(w, x)
            assert got.sharding.is_equivalent_to(everywhere, 1)
            np.testing.assert_allclose(got.addressable_data(0), want, rtol=1e-5, atol=1e-6)
    print("the gradients agree")
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
