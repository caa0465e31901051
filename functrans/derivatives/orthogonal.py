"""The derivatives of the factorization `A = Q R`, and of products of Householder reflections.

    Q^H Q = 1        =>        Q^H Q_dot + (Q^H Q_dot)^H = 0

so the motion of Q within its own columns is a skew-Hermitian matrix, and its lower triangle
determines it.

Read next: `spectral.py`, the eigenvalues and the singular values.
"""

from __future__ import annotations

from typing import Any

import jax.scipy.linalg
import numpy as np
from jax.lax import neg
from jax.lax.linalg import householder_product_p, ormqr_p, qr_p, triangular_solve

from functrans.derivatives.common import add, eq, indicator, sub, unnamed
from functrans.derivatives.linalg import (
    adjoint,
    columns_of,
    conjugate,
    diagonal,
    eye_like,
    lower_half,
    lower_part,
    lu_tangent,
    matmul,
    minus,
    resized,
    scale_columns,
    scale_rows,
    upper_part,
)
from functrans.rules import Zero, checks, general, instantiate, linear

# ---- QR ------------------------------------------------------------------------------------------


# A = Q R, where Q has k = min(m, n) columns, and A1, R1 are the first k columns of A, R:
#
#     Q^H A1_dot R1^-1 = W = Omega + R1_dot R1^-1        with  Omega = Q^H Q_dot.
#
# The last term is upper triangular with a real diagonal (that of R is real), so the lower triangle
# of W is that of Omega, and so is the imaginary part of its diagonal. Then
#
#     R_dot = Q^H A_dot - Omega R,        Q_dot = Q Omega + (1 - Q Q^H) A1_dot R1^-1,
#
# where 1 - Q Q^H = 0 unless there are more rows than columns. We divide by R1: where the first k
# columns of A are dependent, there is no derivative, and the tangents are infinite or NaN.
def qr_tangent(q: Any, r: Any, a_dot: Any) -> tuple[Any, Any]:
    m, k = q.shape[-2:]
    quotient = triangular_solve(resized(r, k, k), resized(a_dot, m, k), lower=False)
    w = matmul(adjoint(q), quotient)
    half = lower_half(w)
    omega = sub(half, adjoint(half))
    q_dot = matmul(q, omega)
    if m > k:
        q_dot = add(q_dot, sub(quotient, matmul(q, w)))
    return q_dot, upper_part(sub(matmul(adjoint(q), a_dot), matmul(omega, r)))


def qr_jvp(primals, tangents, *, full_matrices, pivoting, **params):
    (a,), (a_dot,) = primals, tangents
    m, n = a.shape[-2:]
    if full_matrices and m > n:
        raise NotImplementedError(
            f"the derivative of a QR factorization of a {m} x {n} matrix with full matrices, at "
            f"{checks.user_line()}: the columns that full matrices add to Q are any basis of the "
            "complement of the others, and so they have no derivative. Use full_matrices=False "
            "(mode='reduced' or 'economic'); the projector onto the complement is 1 - Q Q^H."
        )
    q, r, *order = qr_p.bind(a, full_matrices=full_matrices, pivoting=pivoting, **params)
    if pivoting:  # the order of the columns is constant nearby
        a_dot = columns_of(a_dot, order[0])
    q_dot, r_dot = qr_tangent(q, r, a_dot)
    return [q, r, *order], [q_dot, r_dot, *map(Zero.like, order)]


general(qr_p, qr_jvp)

# ---- products of reflections ---------------------------------------------------------------------


# A product of k reflections 1 - tau_i v_i v_i^H in closed form (Schreiber and Van Loan, 1989) is
#
#     H_1 H_2 ... H_k = 1 - V T V^H,    T = (1 + D N)^-1 D,    D = diag(tau),  N = striu(V^H V)
#
# where V has the columns v_i, below a unit diagonal. As T^-1 = D^-1 + N, T D^-1 = 1 - T N and
# D^-1 T = 1 - N T, we have, also if a tau_i is zero,
#
#     T_dot = -T (T^-1)_dot T = (1 - T N) D_dot (1 - N T) - T N_dot T.
def reflectors(a: Any, k: int) -> Any:
    """V, which is stored below the diagonal of the matrix."""
    v = lower_part(resized(a, a.shape[-2], k), -1)
    return add(v, eye_like(v))


def triangle(v: Any, taus: Any) -> tuple[Any, Any]:
    """T and N."""
    n = upper_part(matmul(adjoint(v), v), 1)
    d = scale_rows(taus, eye_like(n))
    t = triangular_solve(scale_rows(taus, n), d, left_side=True, lower=False, unit_diagonal=True)
    return t, n


def moved_away(a, taus, a_dot, taus_dot, c, of_adjoint):
    """`-Q_dot c = (V T V^H)_dot c` for the product of the reflections, or that of `Q^H`."""
    v = reflectors(a, taus.shape[-1])
    v_dot = lower_part(resized(a_dot, *v.shape[-2:]), -1)
    t, n = triangle(v, taus)
    overlap = matmul(adjoint(v), v_dot)
    n_dot = upper_part(add(overlap, adjoint(overlap)), 1)
    one = eye_like(n)
    left, right = sub(one, matmul(t, n)), sub(one, matmul(n, t))
    t_dot = sub(matmul(scale_columns(left, taus_dot), right), matmul(t, matmul(n_dot, t)))
    if of_adjoint:
        t, t_dot = adjoint(t), adjoint(t_dot)
    inner = matmul(adjoint(v), c)
    inner_dot = add(matmul(t_dot, inner), matmul(t, matmul(adjoint(v_dot), c)))
    return add(matmul(v_dot, matmul(t, inner)), matmul(v, inner_dot))


# The first columns of Q.
def householder_product_jvp(primals, tangents):
    (a, taus), (a_dot, taus_dot) = primals, map(instantiate, tangents)
    q = householder_product_p.bind(a, taus)
    return q, neg(moved_away(a, taus, a_dot, taus_dot, eye_like(q), False))


# y = Q c, and c Q = (Q^H c^H)^H. The transpose in c has Q^T = conj Q^H conj.
def ormqr_jvp(primals, tangents, *, left, transpose):
    (a, taus, c), (a_dot, taus_dot, c_dot) = primals, tangents
    params = {"left": left, "transpose": transpose}
    y = ormqr_p.bind(a, taus, c, **params)
    y_dot = c_dot if type(c_dot) is Zero else ormqr_p.bind(a, taus, c_dot, **params)
    if type(a_dot) is not Zero or type(taus_dot) is not Zero:
        moved = instantiate(a_dot), instantiate(taus_dot)
        if left:
            change = moved_away(a, taus, *moved, c, transpose)
        else:
            change = adjoint(moved_away(a, taus, *moved, adjoint(c), not transpose))
        y_dot = minus(y_dot, change)
    return y, y_dot


def ormqr_transpose(y_bar, a, taus, c, *, left, transpose):
    turned = ormqr_p.bind(a, taus, conjugate(y_bar), left=left, transpose=not transpose)
    return conjugate(turned)


general(householder_product_p, householder_product_jvp)
linear(ormqr_p, ormqr_transpose, jvp=ormqr_jvp, argnums=2)

# ---- QR, with Q left as reflections --------------------------------------------------------------


# The first k columns of Q = 1 - V T V^H are E - V T V1^H, where E holds the first k columns of the
# identity, and V1 the first k rows of V. So
#
#     E - Q = V U        with  U = T V1^H
#
# is the LU factorization of a matrix whose tangent is -Q_dot (Ballard et al., 2014), and the
# diagonal of U is tau. A real square matrix has tau_k = 0; nothing in V depends on that column of
# U, and a 1 in its place keeps U invertible.
def reflectors_tangent(packed, taus, a_dot):
    """The tangents of R and V, packed in one matrix as R and V are, and those of the taus."""
    m, n = packed.shape[-2:]
    k = taus.shape[-1]
    v = reflectors(packed, k)
    u = matmul(triangle(v, taus)[0], adjoint(resized(v, k, k)))
    q = sub(eye_like(v), matmul(v, u))
    q_dot, r_dot = qr_tangent(q, upper_part(resized(packed, k, n)), a_dot)
    u = add(upper_part(u), scale_rows(indicator(eq(taus, 0), taus), eye_like(u)))
    vu_dot = lu_tangent(add(lower_part(v, -1), resized(u, m, k)), neg(q_dot))
    packed_dot = add(resized(r_dot, m, n), resized(lower_part(vu_dot, -1), m, n))
    return packed_dot, diagonal(resized(vu_dot, k, k))


def geqrf_jvp(primals, tangents, **params):
    packed, taus = geqrf_p.bind(*primals, **params)
    return [packed, taus], reflectors_tangent(packed, taus, tangents[0])


# With pivoting; the order of the columns is counted from 1.
def geqp3_jvp(primals, tangents, **params):
    packed, order, taus = geqp3_p.bind(*primals, **params)
    a_dot = columns_of(tangents[0], sub(order, np.int32(1)))
    packed_dot, taus_dot = reflectors_tangent(packed, taus, a_dot)
    return [packed, order, taus], [packed_dot, Zero.like(order), taus_dot]


def factored(pivoting: bool) -> Any:
    return lambda a: jax.scipy.linalg.qr_multiply(a, a, pivoting=pivoting)


geqrf_p = unnamed("geqrf", factored(False), (1, 1))
general(geqrf_p, geqrf_jvp)
geqp3_p = unnamed("geqp3", factored(True), (1, 1))
general(geqp3_p, geqp3_jvp)
