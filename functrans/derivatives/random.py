"""Random bits and keys: none has a derivative.

    bits = h(key),        d bits = 0

A sample is differentiable in the parameters of its distribution by the arithmetic that makes it
from the bits (`mean + deviation * normal(key)`), whose rules are in the other files.

Read next: `effects.py`, operations with an effect.
"""

import jax
from jax import lax

from functrans.derivatives.common import named, unnamed
from functrans.rules import zero


def _wrap_clone_unwrap(data):
    key = jax.random.wrap_key_data(data, impl="threefry2x32")
    return jax.random.key_data(jax.random.clone(key))


for name in ("random_bits", "random_seed", "random_split", "random_fold_in", "threefry2x32"):
    zero(named(name))
for name in ("random_wrap", "random_clone", "random_unwrap"):
    zero(unnamed(name, _wrap_clone_unwrap, (2,), "uint32"))
zero(lax.rng_bit_generator_p)
