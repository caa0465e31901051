"""The derivatives of the solvers, and of the triangular factorizations of a matrix.

    A x = b        A x_dot + A_dot x = b_dot        x_dot = A^-1 (b_dot - A_dot x)

A factorization is an equation too: `A = L L^H` for Cholesky, `A = L U`.  Differentiate it, and
multiply by the inverses of the factors.  The result is the sum of a lower and an upper triangular
matrix, and each of them, read off, gives the tangent of a factor.

All matrices may have batch dimensions in front.  `x^H` is the conjugate of the transpose; here, as
everywhere, transposing a *linear map* conjugates nothing.

Read next: `orthogonal.py`, where a factor is a unitary matrix.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import lax
from jax.lax import conj, neg
from jax.lax.linalg import (
    cholesky_p,
    cholesky_update_p,
    lu_p,
    lu_pivots_to_permutation_p,
    symmetric_product_p,
    triangular_solve,
    triangular_solve_p,
    tridiagonal_solve_p,
)

from functrans.derivatives.common import (
    add,
    eq,
    indicator,
    is_complex,
    mul,
    number,
    sub,
    zeros_like,
)
from functrans.rules import Zero, general, instantiate, linear, zero

# ---- matrices ------------------------------------------------------------------------------------


def matmul(x: Any, y: Any) -> Any:
    batch = tuple(range(x.ndim - 2))
    numbers = (((x.ndim - 1,), (y.ndim - 2,)), (batch, batch))
    return lax.dot_general(x, y, numbers, precision=lax.Precision.HIGHEST)


def transposed(x: Any) -> Any:
    return lax.transpose(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))


def conjugate(x: Any) -> Any:
    return conj(x) if is_complex(x) else x


def adjoint(x: Any) -> Any:
    return conjugate(transposed(x))


def places(x: Any) -> tuple[Any, Any]:
    """The row number and the column number of each entry of a matrix."""
    rows = lax.broadcasted_iota(np.int32, x.shape, x.ndim - 2)
    return rows, lax.broadcasted_iota(np.int32, x.shape, x.ndim - 1)


def lower_part(x: Any, k: int = 0) -> Any:
    """The entries on and below diagonal `k`, which is `k` above the main diagonal."""
    rows, columns = places(x)
    return lax.select(lax.ge(add(rows, k), columns), x, zeros_like(x))


def upper_part(x: Any, k: int = 0) -> Any:
    """The entries on and above diagonal `k`."""
    rows, columns = places(x)
    return lax.select(lax.le(add(rows, k), columns), x, zeros_like(x))


def lower_half(x: Any) -> Any:
    """The entries below the diagonal and half of it: `x = h + h^H` if x is Hermitian."""
    return mul(0.5, add(lower_part(x), lower_part(x, -1)))


def eye_like(x: Any) -> Any:
    return indicator(eq(*places(x)), x)


def diagonal(x: Any) -> Any:
    return lax.reduce_sum(lax.select(eq(*places(x)), x, zeros_like(x)), (x.ndim - 1,))


def spread(s: Any, x: Any, axis: int) -> Any:
    """A vector as a matrix of the type of `x`, which varies along `axis` (-2: down a column)."""
    dimensions = (*range(x.ndim - 2), x.ndim + axis)
    return lax.broadcast_in_dim(lax.convert_element_type(s, x.dtype), x.shape, dimensions)


def scale_rows(s: Any, x: Any) -> Any:
    """`diag(s) x`"""
    return mul(x, spread(s, x, -2))


def scale_columns(x: Any, s: Any) -> Any:
    """`x diag(s)`"""
    return mul(x, spread(s, x, -1))


def resized(x: Any, rows: int, columns: int) -> Any:
    """Cut off the last rows and columns, or append zeros."""
    growth = [(0, rows - x.shape[-2], 0), (0, columns - x.shape[-1], 0)]
    return lax.pad(x, number(0, x), [(0, 0, 0)] * (x.ndim - 2) + growth)


def rows_of(x: Any, order: Any) -> Any:
    """The rows of a matrix in the order of a permutation."""
    batch = tuple(range(x.ndim - 2))
    dimensions = lax.GatherDimensionNumbers(
        offset_dims=(x.ndim - 1,),
        collapsed_slice_dims=(x.ndim - 2,),
        start_index_map=(x.ndim - 2,),
        operand_batching_dims=batch,
        start_indices_batching_dims=batch,
    )
    return lax.gather(
        x,
        lax.expand_dims(order, (order.ndim,)),
        dimensions,
        slice_sizes=(1,) * (x.ndim - 1) + x.shape[-1:],
        unique_indices=True,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def columns_of(x: Any, order: Any) -> Any:
    return transposed(rows_of(transposed(x), order))


def solve(a: Any, b: Any) -> Any:
    """`a^-1 b` for a square matrix."""
    lu, _, permutation = lax.linalg.lu(a)
    y = triangular_solve(
        lu, rows_of(b, permutation), left_side=True, lower=True, unit_diagonal=True
    )
    return triangular_solve(lu, y, left_side=True, lower=False)


def minus(tangent: Any, change: Any) -> Any:
    """`tangent - change`, where the first may be a `Zero`."""
    return neg(change) if type(tangent) is Zero else sub(tangent, change)


# ---- triangular systems --------------------------------------------------------------------------


# op(A) x = b  =>  x_dot = op(A)^-1 (b_dot - op(A_dot) x). The solver reads one triangle of A, and
# we read the same one of A_dot. The transpose of op(A)^-1 is op(A)^-T: it conjugates as op does.
def triangular_solve_jvp(primals, tangents, *, left_side, lower, unit_diagonal, transpose_a,
                         conjugate_a):  # fmt: skip
    (a, b), (a_dot, b_dot) = primals, tangents
    params = {
        "left_side": left_side, "lower": lower, "unit_diagonal": unit_diagonal,
        "transpose_a": transpose_a, "conjugate_a": conjugate_a,
    }  # fmt: skip
    x = triangular_solve_p.bind(a, b, **params)
    if type(a_dot) is not Zero:
        skip = int(unit_diagonal)
        moved = lower_part(a_dot, -skip) if lower else upper_part(a_dot, skip)
        moved = transposed(moved) if transpose_a else moved
        moved = conjugate(moved) if conjugate_a else moved
        b_dot = minus(b_dot, matmul(moved, x) if left_side else matmul(x, moved))
    return x, triangular_solve_p.bind(a, b_dot, **params)


def triangular_solve_transpose(x_bar, a, b, *, transpose_a, **params):
    return triangular_solve_p.bind(a, x_bar, transpose_a=not transpose_a, **params)


linear(triangular_solve_p, triangular_solve_transpose, jvp=triangular_solve_jvp, argnums=1)

# ---- tridiagonal systems -------------------------------------------------------------------------


# Row i of the system is  l_i x_(i-1) + d_i x_i + u_i x_(i+1) = b_i.
def tridiagonal_product(low, middle, high, x):
    terms = [
        scale_rows(band, shifted(x, step, x.ndim - 2))
        for band, step in ((low, 1), (middle, 0), (high, -1))
        if type(band) is not Zero
    ]
    return sum(terms[1:], terms[0])


def shifted(x, step, axis):
    """Entry i is `x_(i - step)`, and zero where there is none."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (step, -step, 0)
    return lax.pad(x, number(0, x), padding)


def tridiagonal_solve_jvp(primals, tangents, **params):
    (*bands, b), (low_dot, middle_dot, high_dot, b_dot) = primals, tangents
    x = tridiagonal_solve_p.bind(*bands, b, **params)
    if any(type(band) is not Zero for band in (low_dot, middle_dot, high_dot)):
        b_dot = minus(b_dot, tridiagonal_product(low_dot, middle_dot, high_dot, x))
    return x, tridiagonal_solve_p.bind(*bands, b_dot, **params)


# The transposed matrix has (A^T)_(i,i-1) = u_(i-1) below its diagonal, and l_(i+1) above it.
def tridiagonal_solve_transpose(x_bar, low, middle, high, b, **params):
    last = low.ndim - 1
    below, above = shifted(high, 1, last), shifted(low, -1, last)
    return tridiagonal_solve_p.bind(below, middle, above, x_bar, **params)


linear(tridiagonal_solve_p, tridiagonal_solve_transpose, jvp=tridiagonal_solve_jvp, argnums=3)

# ---- Cholesky ------------------------------------------------------------------------------------


# A = L L^H  =>  L^-1 A_dot L^-H = X + X^H  with  X = L^-1 L_dot,
#
# which is lower triangular with a real diagonal. So X is the lower half of the left side.
#
# The primitive reads one triangle of A, and we read the same one of A_dot: the other one is its
# conjugate. (`jnp.linalg` makes A Hermitian first; where `jax.scipy.linalg` does not, the cotangent
# is that of the triangle.)
def cholesky_jvp(primals, tangents):
    l = cholesky_p.bind(*primals)
    return l, cholesky_tangent(lower_part(l), hermitian(tangents[0]))


def cholesky_tangent(l, a_dot):
    inner = triangular_solve(l, a_dot, left_side=True, lower=True)
    both = triangular_solve(l, inner, lower=True, transpose_a=True, conjugate_a=True)
    return matmul(l, lower_half(both))


def hermitian(x, lower=True):
    """The Hermitian matrix whose lower (or upper) triangle is that of `x`."""
    half = lower_half(x if lower else adjoint(x))
    return add(half, adjoint(half))


general(cholesky_p, cholesky_jvp)


# With R^T R = A, and S^T S = A + w w^T for the answer S, L = S^T is a Cholesky factor.
def cholesky_update_jvp(primals, tangents):
    r, w = primals
    r_dot, w_dot = (instantiate(t) for t in tangents)
    s = cholesky_update_p.bind(r, w)
    product = matmul(transposed(upper_part(r)), upper_part(r_dot))
    outer = mul(spread(w, r, -2), spread(w_dot, r, -1))
    half = add(product, outer)
    l_dot = cholesky_tangent(transposed(upper_part(s)), add(half, transposed(half)))
    return s, transposed(l_dot)


general(cholesky_update_p, cholesky_update_jvp)


# y = alpha a a^T + beta c, for real numbers only.
def symmetric_product_jvp(primals, tangents, *, alpha, beta):
    (a, _), (a_dot, c_dot) = primals, tangents
    y = symmetric_product_p.bind(*primals, alpha=alpha, beta=beta)
    y_dot = c_dot if type(c_dot) is Zero else mul(float(beta), c_dot)
    if type(a_dot) is not Zero:
        half = mul(-float(alpha), matmul(a_dot, transposed(a)))
        y_dot = minus(y_dot, add(half, transposed(half)))
    return y, y_dot


general(symmetric_product_p, symmetric_product_jvp)

# ---- LU ------------------------------------------------------------------------------------------


# P A = L U, and P is constant nearby. If A is square,
#
#     L^-1 P A_dot U^-1 = X = L^-1 L_dot + U_dot U^-1
#
# is the sum of a strictly lower and an upper triangular matrix. If it is not, let L' and U' be the
# factors with columns (rows) of the identity matrix appended until they are square: L'^-1 L and
# U U'^-1 are then the first columns (rows) of identity matrices, and the same equation holds.
def lu_jvp(primals, tangents):
    lu, pivots, permutation = lu_p.bind(*primals)
    lu_dot = lu_tangent(lu, rows_of(tangents[0], permutation))
    return [lu, pivots, permutation], [lu_dot, Zero.like(pivots), Zero.like(permutation)]


def lu_tangent(lu, a_dot):
    """The tangents of both factors, packed in one matrix as they are, from that of `L U`."""
    m, n = lu.shape[-2:]
    lower, upper = resized(lu, m, m), upper_part(resized(lu, n, n))
    lower = add(lower_part(lower, -1), eye_like(lower))
    appended, column = places(upper)
    is_appended = lax.bitwise_and(eq(appended, column), lax.ge(appended, np.int32(m)))
    upper = add(upper, indicator(is_appended, upper))
    inner = triangular_solve(lower, a_dot, left_side=True, lower=True, unit_diagonal=True)
    x = triangular_solve(upper, inner, lower=False)
    return add(matmul(lower, lower_part(x, -1)), matmul(upper_part(x), upper))


general(lu_p, lu_jvp)
zero(lu_pivots_to_permutation_p)
