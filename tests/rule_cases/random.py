"""Random numbers."""

from __future__ import annotations

import jax
from jax import lax
from jax.extend.core import primitives as extended

from rule_cases.table import (
    F,
    bits,
    case,
    integers,
    keys,
)

# Random numbers: constant where they come from, differentiable in what is done with them.

case("random_bits", jax.random.bits, keys())
case("random_fold_in", jax.random.fold_in, keys(), bits())
case("random_split", jax.random.split, keys())
case("random_seed", jax.random.key, integers(0, 9))
case("random_wrap", jax.random.wrap_key_data, bits(2))
case("random_clone", jax.random.clone, keys())
case("random_unwrap", jax.random.key_data, keys())
case("rng_bit_generator", lambda b: lax.rng_bit_generator(b, (3,)), bits(4))
case("threefry2x32", extended.threefry2x32_p.bind, bits(), bits(), bits(3), bits(3))
case("random_bits", lambda k, x: x * jax.random.normal(k, (3,), "float32"), keys(), F(3))
