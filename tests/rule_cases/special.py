"""Special functions; `tests/test_special.py` compares them with mpmath."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from rule_cases.table import (
    POSITIVE,
    F,
    apart,
    case,
    keys,
    values,
)

case("erf", lax.erf, F(3, 2))
case("erfc", lax.erfc, F(3, 2))
case("erf_inv", lax.erf_inv, F(3, 2, low=-0.8, high=0.8))

case("lgamma", lax.lgamma, apart(3, 2))
case("digamma", lax.digamma, POSITIVE)
case("polygamma", lambda x: lax.polygamma(jnp.full_like(x, 2.0), x), POSITIVE)
THREE = F(3, low=0.3, high=3.0)
# JAX has no rule for `zeta` itself, but for `jax.scipy.special.zeta`, as a custom_jvp function.
case("zeta", lax.zeta, F(3, low=1.5, high=4.0), THREE, jax_modes=())
case("zeta", jax.scipy.special.zeta, F(3, low=1.5, high=4.0), THREE, half=False)


def with_shapes(function: Callable, *shapes: float) -> Callable:
    """A function of `x` alone: the parameters are constant."""
    return lambda x: function(*(jnp.full_like(x, shape) for shape in shapes), x)


for shape in (0.4, 1.0, 3.0):
    case("igamma", with_shapes(lax.igamma, shape), POSITIVE)
case("igammac", with_shapes(lax.igammac, 1.6), POSITIVE)
case("igamma", lax.igamma, POSITIVE, POSITIVE, order=1)
case("igammac", lax.igammac, POSITIVE, POSITIVE, order=1)
# JAX has no rule for this one, and none in the shapes of the next.
case("igamma_grad_a", lax.igamma_grad_a, POSITIVE, POSITIVE, jax_modes=(), order=1, half=False)
beta = lax.regularized_incomplete_beta_p.bind
for shapes in ((0.4, 2.5), (3.0, 1.0)):
    case("regularized_incomplete_beta", with_shapes(beta, *shapes), F(3, low=0.1, high=0.9))
shapes = F(3, low=0.5, high=3.0), F(3, low=0.5, high=3.0)
case("regularized_incomplete_beta", beta, *shapes, F(3, low=0.1, high=0.9), jax_modes=(), order=1)
case("bessel_i0e", lax.bessel_i0e, apart(3, 2))
case("bessel_i1e", lax.bessel_i1e, apart(3, 2))
# e^|x| I0e(x) is I_0(x), whose derivative at 0 is 0; JAX 0.10 has 1.
case(
    "bessel_i0e bessel_i1e",
    lambda x: jnp.exp(jnp.abs(x)) * (lax.bessel_i0e(x) + lax.bessel_i1e(x)),
    values(0.0, 1e-3, 1.0, -1.0),
    jax_modes=(),
)
# The derivative is that of the quantile which the sample is. At a fixed key the sample moves
# otherwise, as it is drawn by rejection, so that differences have another answer.
case("random_gamma", jax.random.gamma, keys(), THREE, order=1, kinks=True)
case("random_gamma", jax.random.loggamma, keys(), THREE, order=1, kinks=True)
