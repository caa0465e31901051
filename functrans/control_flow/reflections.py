"""The reduction of a square matrix by reflections: `jax.lax.linalg.hessenberg`, `tridiagonal`.

    A = Q H Q^H,    Q = H_1 H_2 ... ,    H_k = 1 - tau_k v_k v_k^H      (a reflection for a column)

We write the reduction as a loop, `A -> H_k^H A H_k`, and push its tangents forward, or record them,
as for any other loop.  The primals are LAPACK's, and so are two choices that the loop does not make
again: the signs, and which columns to leave alone.

    reduced : (A, beta, taus) -> (H, V, taus)

Read next: `shard_map.py`, a function of each device's part.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.lax.linalg import hessenberg, tridiagonal

from functrans.control_flow.calls import pushed, recorded
from functrans.derivatives.common import emitted, without_name
from functrans.derivatives.linalg import adjoint, diagonal, lower_part, matmul, upper_part
from functrans.rules import Rule, call


# With x the part of column k that is below the diagonal, and alpha its first entry,
#
#     H_k^H x = beta e_1,    beta = -+|x|,    v_k = x / (alpha - beta),    tau_k = 1 - alpha / beta
#
# where the first entry of v_k is 1 instead. LAPACK's beta gives the sign, and keeps squares within
# range. Where LAPACK found nothing to reflect, it set tau_k = 0 and left the column alone. We keep
# that choice: the result jumps where such a column gets entries to reflect, and the derivative is
# the one along the matrices without such entries.
def reduced(a: Any, beta: Any, taus: Any) -> tuple[Any, Any, Any]:
    """H, the matrix V of all reflectors, below its first subdiagonal, and the taus."""
    place = jnp.arange(a.shape[-1])

    def reflect(a, column):
        k, size, tau = column
        alone = tau == 0
        size = jnp.where(alone, 1, size)
        x = jnp.where(place > k, lax.dynamic_index_in_dim(a, k, 1, keepdims=False), 0)
        alpha = lax.dynamic_index_in_dim(x, k + 1, keepdims=False)
        y = x / size
        squares = jnp.where(alone, 1, jnp.sum(jnp.real(y * jnp.conj(y))))
        beta = size * jnp.sqrt(squares)
        difference = jnp.where(alone, 1, alpha - beta)
        tail = jnp.where(alone | (place == k + 1), 0, x / difference)
        v = jnp.where(place == k + 1, 1, tail)[:, None]
        tau = jnp.where(alone, 0, -difference / beta)
        a = a - tau * matmul(matmul(a, v), adjoint(v))
        a = a - jnp.conj(tau) * matmul(v, matmul(adjoint(v), a))
        return a, (tail, tau)

    columns = jnp.arange(len(taus)), beta, taus
    h, (tails, taus) = lax.scan(reflect, a, columns)
    return h, jnp.pad(tails.T, ((0, 0), (0, 1))), taus


# The entries of H are on and above the first subdiagonal, those of V below.
def reduce_hessenberg(a: Any, packed: Any, taus: Any) -> list:
    h, v, taus = reduced(a, jnp.real(jnp.diagonal(packed, -1)), taus)
    return [upper_part(h, -1) + v, taus]


# LAPACK reads one triangle, and passes the rest on. If it is the upper triangle, the reduction
# begins with the last column: reverse rows and columns of the matrix.
def reduce_tridiagonal(a: Any, packed: Any, d: Any, e: Any, taus: Any, *, lower: bool) -> list:
    if not lower:
        a, e, taus = jnp.flip(a), jnp.flip(e), jnp.flip(taus)
    below = lower_part(a, -1)
    hermitian = below + adjoint(below) + jnp.diag(jnp.real(diagonal(a)))
    h, v, taus = reduced(hermitian, e, taus)
    d, e = jnp.real(jnp.diagonal(h)), jnp.real(jnp.diagonal(h, -1))
    packed = upper_part(a, 1) + jnp.diag(d) + jnp.diag(e, -1) + v
    outs = [packed, d, e, taus]
    return outs if lower else list(map(jnp.flip, outs))


class ReductionRule(Rule):
    """The tangents of a function of the matrix and the results; the primitive gives the results."""

    def __init__(self, function: Callable):
        self.function = function

    def forward(self, primitive: Primitive, primals: list, tangents: list, params: dict) -> tuple:
        return self._moved(pushed, primitive, primals, tangents, params)

    def linearize(self, primitive: Primitive, primals: list, tangents: list, params: dict) -> tuple:
        return self._moved(recorded, primitive, primals, tangents, params)

    def _moved(self, push, primitive, primals, tangents, params):
        outs = primitive.bind(*primals, **params)
        function: Callable = partial(self.function, **params)
        for _ in primals[0].shape[:-2]:
            function = jax.vmap(function)
        return outs, push(lambda a: function(a, *outs), primals, tangents)[1]


@without_name
def declare_hessenberg() -> None:
    for primitive in emitted(hessenberg, (2, 2)):
        call(primitive, ReductionRule(reduce_hessenberg))


@without_name
def declare_tridiagonal() -> None:
    for primitive in emitted(tridiagonal, (2, 2)):
        call(primitive, ReductionRule(reduce_tridiagonal))
