"""Sparse arrays: the values move, and the places, with one that is there twice and one outside of
the array where a format allows that, stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental import sparse
from jax.experimental.sparse.csr import csr_matvec
from jax.experimental.sparse.linalg import spsolve

from rule_cases.table import F, apart, case

SHAPE = (3, 4)
PLACES = jnp.array([[0, 1], [2, 0], [2, 3], [0, 1], [3, 4]], jnp.int32)
TWO = jnp.array([[[0, 3], [1, 1]], [[2, 0], [0, 0]]], jnp.int32)  # of a batch of two matrices
LINES = jnp.array([[3], [0], [3]], jnp.int32)  # of an array with a dense dimension
ROWS, COLUMNS = jnp.array([0, 0, 2, 2], jnp.int32), jnp.array([1, 3, 0, 2], jnp.int32)
POINTERS = jnp.array([0, 2, 2, 4], jnp.int32)


def bcoo(d: Any, places: Any = PLACES, shape: tuple = SHAPE) -> sparse.BCOO:
    return sparse.BCOO((d, places), shape=shape)


def bcsr(d: Any) -> sparse.BCSR:
    return sparse.BCSR((d, COLUMNS, POINTERS), shape=SHAPE)


def coo(d: Any) -> sparse.COO:
    return sparse.COO((d, ROWS, COLUMNS), shape=SHAPE)


def csr(d: Any) -> sparse.CSR:
    return sparse.CSR((d, COLUMNS, POINTERS), shape=SHAPE)


def dot(places: Any, shape: tuple, contract: tuple, batch: tuple = ((), ())) -> Callable:
    def product(d, x):
        numbers = (contract, batch)
        return sparse.bcoo_dot_general(bcoo(d, places, shape), x, dimension_numbers=numbers)

    return product


def sampled(places: Any, contract: tuple, batch: tuple = ((), ())) -> Callable:
    def product(a, b):
        numbers = (contract, batch)
        return sparse.bcoo_dot_general_sampled(a, b, places, dimension_numbers=numbers)

    return product


def extracted(a: Any, is_unique: bool) -> Any:
    return sparse.bcoo_extract(bcoo(jnp.ones(5)), a, assume_unique=is_unique).data ** 2


# Conversions. To double or square is to keep NumPy arrays from JAX's rules, some of which fail.

case("bcoo_todense", lambda d: bcoo(d).todense() ** 2, F(5))
# Values that two matrices share: in JAX their cotangent has the wrong shape.
case("bcoo_todense", lambda d: bcoo(d, TWO, (2, *SHAPE)).todense(), F(1, 2), jax_modes=("fwd",))
case("bcoo_todense", lambda d: bcoo(d, LINES, (4, 2)).todense() ** 2, F(3, 2))
case("bcoo_todense", lambda d: sparse.bcoo_reduce_sum(bcoo(d), axes=(0, 1)).todense(), F(5))
case("bcsr_todense", lambda d: bcsr(d).todense() ** 2, F(4))
# The old formats cannot be batched.
case("coo_todense", lambda d: coo(d).todense() ** 2, F(4), vmap=False)
case("csr_todense", lambda d: csr(d).todense() ** 2, F(4), vmap=False)
case("todense", lambda d: sparse.todense(bcoo(d)) ** 2, F(5))
case("todense", lambda d: sparse.todense(bcsr(d)) ** 2, F(4))
# JAX fails at the second derivative of this, and has no transpose for the next two.
case("todense", lambda d: sparse.todense(d), F(4), jax_modes=())
case("todense", lambda d: sparse.todense(csr(d)), F(4), vmap=False, jax_modes=("fwd",))
case(
    "todense",
    lambda d: sparse.todense(
        sparse.CSC((d, ROWS, jnp.array([0, 1, 1, 4, 4], jnp.int32)), shape=SHAPE)
    ),
    F(4),
    vmap=False,
    jax_modes=("fwd",),
)
case("bcoo_extract", lambda a: extracted(a, True), F(*SHAPE))
# Of values that stand in one place the first is read; JAX has no transpose of that, nor a batch.
case("bcoo_extract", lambda a: extracted(a, False), F(*SHAPE), jax_modes=("fwd",), vmap=False)
case("bcsr_extract", lambda a: sparse.bcsr_extract(COLUMNS, POINTERS, a) ** 2, F(*SHAPE))
# JAX fails where these are batched.
case("bcoo_fromdense", lambda a: sparse.BCOO.fromdense(a, nse=14).data, apart(*SHAPE), vmap=False)
case("bcsr_fromdense", lambda a: sparse.BCSR.fromdense(a, nse=14).data, apart(*SHAPE), vmap=False)
case("coo_fromdense", lambda a: sparse.COO.fromdense(2 * a, nse=12).data, apart(*SHAPE), vmap=False)
case("csr_fromdense", lambda a: sparse.CSR.fromdense(2 * a, nse=12).data, apart(*SHAPE), vmap=False)

# Products.

case("bcoo_dot_general", lambda d, x: bcoo(d) @ x, F(5), F(4, 2), complex=True)
case("bcoo_dot_general", lambda d, x: x @ bcoo(d), F(5), F(3))
# JAX fails where these three are batched.
BATCH = dot(TWO, (2, *SHAPE), ((2,), (1,)), ((0,), (0,)))
case("bcoo_dot_general", BATCH, F(2, 2), F(2, 4, 2), vmap=False)
case("bcoo_dot_general", dot(TWO, (2, *SHAPE), ((0, 2), (1, 0))), F(2, 2), F(4, 2), vmap=False)
case("bcoo_dot_general", dot(TWO, (2, *SHAPE), ((), ())), F(2, 2), F(2), vmap=False)
# JAX has no transpose where there are dense dimensions.
case("bcoo_dot_general", dot(LINES, (4, 2), ((0,), (1,))), F(3, 2), F(2, 4), jax_modes=("fwd",))
case("bcsr_dot_general", lambda d, x: bcsr(d) @ x, F(4), F(4, 2), complex=True)
# The second derivatives of JAX 0.10 are wrong.
COO: Any = {"vmap": False, "newer": True}
case("coo_matvec", lambda d, x: (coo(d) @ x) ** 2, F(4), F(4), complex=True, **COO)
case("coo_matvec", lambda d, x: (coo(d).T @ x) ** 2, F(4), F(3), **COO)
case("coo_matmat", lambda d, x: (coo(d) @ x) ** 2, F(4), F(4, 2), **COO)
# In reverse JAX fails where a cotangent is a NumPy array; and JAX 0.10 is wrong where the matrix is
# transposed.
CSR: Any = {"vmap": False, "jax_modes": ("fwd",)}
case("csr_matvec", lambda d, x: csr(d) @ x, F(4), F(4), complex=True, **CSR)
case("csr_matmat", lambda d, x: csr(d) @ x, F(4), F(4, 2), **CSR)
case("csr_matvec", lambda d, x: csr_matvec(csr(d), x, transpose=True), F(4), F(3), **CSR)
case("bcoo_dot_general_sampled", sampled(PLACES, ((1,), (0,))), F(3, 2), F(2, 4), complex=True)
case("bcoo_dot_general_sampled", sampled(PLACES, ((), ())), F(3), F(4))
case(
    "bcoo_dot_general_sampled",
    sampled(TWO, ((1,), (2,)), ((0,), (0,))),
    F(2, 2, 3),
    F(2, 4, 2),
    vmap=False,  # here JAX fails, too
)

# New places.

case("bcoo_transpose", lambda d: bcoo(d).T.data ** 2, F(5))
case("bcoo_sort_indices", lambda d: sparse.bcoo_sort_indices(bcoo(2 * d)).data ** 2, F(5))
case("bcoo_sum_duplicates", lambda d: bcoo(d).sum_duplicates(nse=3).data ** 2, F(5))
case(
    "bcoo_spdot_general",
    lambda d, e: (bcoo(d) @ bcoo(e).T).data,
    F(5),
    F(5),
    jax_modes=("fwd",),  # JAX has no transpose of this
)

# A system: JAX cannot batch it, and it has no half precision.

SYSTEM = np.array([[4.0, 0.0, 1.0], [0.5, 3.0, 0.0], [0.0, 1.0, 5.0]])
STORED = np.nonzero(SYSTEM)


def solve(d: Any, b: Any) -> Any:
    values = jnp.asarray(SYSTEM[STORED], d.dtype) + 0.1 * d
    columns = jnp.asarray(STORED[1], jnp.int32)
    return spsolve(values, columns, jnp.array([0, 2, 4, 6], jnp.int32), b)


case("spsolve", solve, F(6), F(3), vmap=False, half=False)
