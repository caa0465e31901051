"""Matrix factorizations and solvers.

Eigenvectors and singular vectors are unique up to a phase, and a phase is what LAPACK makes of it.
What is looked at is therefore `u_ij conj(u_kj)`, which has no phase, except where the derivative of
the phase is fixed by a convention.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import linalg

from rule_cases.table import F, Maker, array, case, indices


def spaced(*shape: int) -> Maker:
    """Near a diagonal matrix with 2, 4, 6, ...: distinct eigenvalues and singular values, all
    positive, and a largest component in each eigenvector."""

    def make(rng, dtype):
        diagonal = np.eye(shape[-2], shape[-1]) * 2 * np.arange(1, shape[-1] + 1)
        return array(diagonal + np.asarray(F(*shape, low=-0.4, high=0.4)(rng, dtype)), dtype)

    return make


def without_phase(u: Any, v: Any) -> Any:
    """`u_ij conj(v_kj)`"""
    return u[..., :, None, :] * jnp.conj(v)[..., None, :, :]


def matrices(primitives: str, fun: Callable, *makers: Maker, **options: Any) -> None:
    """A row, also with complex numbers; there is no linear algebra of 16 bits."""
    case(primitives, fun, *makers, **{"complex": True, "half": False, **options})


# Solvers.


def triangular(**options: Any) -> Callable:
    return lambda a, b: linalg.triangular_solve(a, b, **options)


matrices(
    "triangular_solve",
    triangular(left_side=True, lower=True, transpose_a=True, conjugate_a=True),
    spaced(2, 3, 3),
    F(2, 3, 2),
)
matrices("triangular_solve", triangular(left_side=True), spaced(3, 3), F(3, 1))
matrices("triangular_solve", triangular(unit_diagonal=True), F(2, 2), F(3, 2))
matrices("triangular_solve", triangular(lower=True, conjugate_a=True), spaced(2, 2), F(1, 2))
matrices(
    "tridiagonal_solve",
    linalg.tridiagonal_solve,
    F(2, 3, low=-0.5, high=0.5),
    F(2, 3, low=2, high=3),
    F(2, 3, low=-0.5, high=0.5),
    F(2, 3, 2),
)

# Triangular factors.

matrices("cholesky", linalg.cholesky, spaced(2, 3, 3))
# It reads the lower triangle, and in that alone it has a derivative; JAX takes the tangent to be
# Hermitian, and its cotangent for that of the whole matrix.
matrices(
    "cholesky",
    lambda x: linalg.cholesky(x, symmetrize_input=False),
    spaced(3, 3),
    jax_modes=(),
)
# Below the diagonal of R there is what the rotations leave of nothing. JAX has no rule, and
# cannot vectorize it.
matrices(
    "cholesky_update",
    lambda r, w: jnp.triu(linalg.cholesky_update(jnp.triu(r), w)),
    spaced(3, 3),
    F(3),
    complex=False,
    jax_modes=(),
    vmap=False,
)
# JAX has no rule.
matrices(
    "symmetric_product",
    lambda a, c: linalg.symmetric_product(a, c, alpha=0.7, beta=-2.0),
    F(2, 3, 2),
    F(2, 3, 3),
    complex=False,
    jax_modes=(),
)
# JAX's rule for one matrix indexes the tangent with the permutation, so that it must not be a NumPy
# array, as the tangents are here: hence the factor.
matrices("lu", lambda x: linalg.lu(2 * x)[0], F(3, 3), complex=False)
matrices("lu", lambda x: linalg.lu(x)[0], F(2, 4, 2))
matrices("lu", lambda x: linalg.lu(2 * x)[0], F(2, 4), complex=False)
matrices(
    "lu_pivots_to_permutation",
    lambda pivots: linalg.lu_pivots_to_permutation(pivots, 3),
    indices(1, 2, 2),
    complex=False,
)

# Unitary factors.


def qr(**options: Any) -> Callable:
    """Q and R; the order of the columns left out."""
    return lambda x: linalg.qr(x, **options)[:2]


matrices("qr", qr(), spaced(2, 3, 3))
matrices("qr", qr(full_matrices=False), spaced(4, 2))
# JAX has no rule for a wide matrix.
matrices("qr", qr(), spaced(2, 2, 4), jax_modes=())
# As for lu, the factor is for JAX, whose rule fails for a batch.
pivoted = qr(full_matrices=False, pivoting=True)
matrices("qr", lambda x: pivoted(2 * x), spaced(4, 3), complex=False)
matrices("qr", pivoted, spaced(2, 3, 3), jax_modes=())


def raw(x: Any) -> Any:
    return jnp.linalg.qr(x, mode="raw")


# JAX has no rules for what works with reflections.
matrices("geqrf", raw, spaced(2, 4, 2), jax_modes=())
matrices("geqrf", raw, spaced(3, 3), jax_modes=())
matrices("geqrf", raw, spaced(2, 3), complex=False, jax_modes=())
matrices(
    "geqp3 ormqr",
    lambda x, c: jax.scipy.linalg.qr_multiply(x, c, pivoting=True)[:2],
    spaced(4, 3),
    F(2, 4),
    jax_modes=(),
)
matrices("householder_product", linalg.householder_product, F(2, 4, 3), F(2, 2), jax_modes=())


def reflected(**options: Any) -> Callable:
    return lambda a, taus, c: linalg.ormqr(a, taus, c, **options)


matrices("ormqr", reflected(), F(2, 4, 2), F(2, 2), F(2, 4, 3), jax_modes=())
matrices("ormqr", reflected(left=False, transpose=True), F(3, 3), F(3), F(2, 3), jax_modes=())

# Eigenvalues and singular values.


def eigh(x: Any, **options: Any) -> Any:
    v, w = linalg.eigh(x, **options)
    return w, without_phase(v, v)


matrices("eigh", eigh, spaced(2, 3, 3))
# As above: it reads one triangle.
matrices(
    "eigh",
    lambda x: eigh(x, lower=False, symmetrize_input=False),
    spaced(3, 3),
    jax_modes=(),
)
# The convention for the phase is JAX's, and LAPACK's is not differentiable; a real matrix has none.
matrices("eigh", linalg.eigh, spaced(3, 3), complex=False)


def svd(x: Any) -> Any:
    """The singular values, and `u_ij conj(v_kj)`, in which the phase of both cancels."""
    u, s, vh = linalg.svd(x, full_matrices=False)
    return s, without_phase(u, jnp.conj(vh.mT))


matrices("svd", svd, spaced(2, 3, 3), complex=False)
matrices("svd", svd, spaced(4, 2))
matrices("svd", svd, spaced(2, 4))
matrices("svd", lambda x: linalg.svd(x, compute_uv=False), spaced(2, 4, 3))
matrices("svd", lambda x: linalg.svd(x), spaced(2, 2), complex=False)
# One vector of the complement is determined but for its sign. JAX has none.
for shape in ((3, 2), (2, 3)):
    matrices("svd", lambda x: linalg.svd(x), spaced(*shape), complex=False, jax_modes=())
# Values, left and right vectors; the phase is LAPACK's.
matrices("eig", lambda x: linalg.eig(x, enable_eigvec_derivs=True), spaced(2, 3, 3))
# Two of the eigenvalues are conjugates. Without that option JAX differentiates only the values.
matrices(
    "eig",
    lambda x: linalg.eig(x + jnp.array([[0.0, 3.0], [-3.0, 0.0]]), compute_left_eigenvectors=False),
    spaced(2, 2),
    complex=False,
    jax_modes=(),
)


def schur(x: Any) -> Any:
    """Schur's form, but for the phases; a real matrix with real eigenvalues has none."""
    t, q = linalg.schur(x)
    return (abs(t) ** 2, abs(q) ** 2) if jnp.iscomplexobj(x) else (t, q)


# JAX has no derivative for it.
matrices("schur", schur, spaced(3, 3), jax_modes=())
matrices("schur", schur, spaced(2, 3, 3), jax_modes=(), complex=False)
matrices("schur", lambda x: linalg.schur(x, compute_schur_vectors=False)[0], spaced(3, 3),
         jax_modes=(), complex=False)  # fmt: skip
# Complex eigenvalues of a real matrix: a block in the middle, and one at either end.
for above, below in (([0.0, 3.0, 0.0], [0.0, -1.5, 0.0]), ([3.0, 0.0, -1.5], [-1.0, 0.0, 4.0])):
    shift = np.diag(above, 1) + np.diag(below, -1)
    matrices("schur", lambda x, shift=shift: linalg.schur(x + shift), spaced(4, 4),
             jax_modes=(), complex=False)  # fmt: skip

# Reductions by reflections. JAX has no rule. Each program takes long to compile: complex numbers
# and batches are in one row.
matrices("hessenberg", linalg.hessenberg, F(3, 3), jax_modes=(), complex=False)
matrices("hessenberg", linalg.hessenberg, F(2, 3, 3), jax_modes=(), order=1)
matrices("tridiagonal", linalg.tridiagonal, F(3, 3), jax_modes=(), order=1)
matrices(
    "tridiagonal",
    lambda x: linalg.tridiagonal(x, lower=False),
    F(2, 3, 3),
    complex=False,
    jax_modes=(),
    order=1,
)
