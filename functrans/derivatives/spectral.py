"""The derivatives of eigenvalues, singular values, their vectors, and Schur's form.

    A V = V diag(w)        =>        V^-1 A_dot V = diag(w_dot) + X diag(w) - diag(w) X,
                                     V_dot = V X

so that `w_dot` is the diagonal of the left side, and `X_ij = (V^-1 A_dot V)_ij / (w_j - w_i)`.

Where two eigenvalues are equal, their vectors are any basis of a plane, and have no derivative. The
values and the vectors alone cannot tell the derivative of a result in which the choice of that
basis cancels, such as `V f(w) V^H`: with `V = 1` its tangent has entries `f'(w) (A_dot)_ij` that no
`w_dot` and no `V_dot` contain.  So functrans claims nothing about such vectors, in either mode:

    - their tangents are NaN;
    - a cotangent that reaches them makes that of A NaN.

All other vectors are right, and so are all eigenvalues if the function uses no vectors.  For equal
eigenvalues `w_dot` is the diagonal in the basis that `V` happens to be, as in JAX: the symmetric
functions of the eigenvalues, such as their sum, have the right derivatives.  Two values count as
equal if they differ by at most the rounding of the largest.  The same holds for singular values.

Read next: `fft.py`, the Fourier transforms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jax import lax
from jax.lax import conj, neg, real
from jax.lax.linalg import eig_p, eigh_p, schur_p, svd_p, triangular_solve

from functrans.derivatives.common import add, div, eq, is_complex, mul, number, sub, zeros_like
from functrans.derivatives.linalg import (
    adjoint,
    conjugate,
    diagonal,
    eye_like,
    hermitian,
    matmul,
    places,
    scale_columns,
    shifted,
    solve,
    spread,
    transposed,
    upper_part,
)
from functrans.rules import checks, general, instantiate

# ---- differences of values -----------------------------------------------------------------------


def pairs(values: Any) -> tuple[Any, Any]:
    """`w_i` and `w_j`, each as a matrix."""
    last, shape = values.ndim, (*values.shape, values.shape[-1])
    batch = range(last - 1)
    rows = lax.broadcast_in_dim(values, shape, (*batch, last - 1))
    return rows, lax.broadcast_in_dim(values, shape, (*batch, last))


def near_zero(x: Any, values: Any) -> Any:
    """Where x, one of the values or a sum or difference of two, is zero.

    The values are known up to rounding, which is relative to the largest: so x is zero up to that.
    """
    largest = lax.reduce_max(lax.abs(values), (values.ndim - 1,))
    rounding = mul(values.shape[-1] * float(np.finfo(values.dtype).eps), largest)
    return lax.le(lax.abs(x), lax.broadcast_in_dim(rounding, x.shape, range(rounding.ndim)))


def reciprocal(x: Any, values: Any) -> Any:
    """`1 / x`, and 0 where x, one of the values or a sum or difference of two, is zero."""
    is_zero = near_zero(x, values)
    return lax.select(is_zero, zeros_like(x), div(1, lax.select(is_zero, lax.full_like(x, 1), x)))


def gap_reciprocals(values: Any) -> Any:
    """`1 / (w_j - w_i)`"""
    rows, columns = pairs(values)
    return reciprocal(sub(columns, rows), values)


def equal_pairs(values: Any) -> Any:
    """For each pair of different places, whether the values there are equal."""
    rows, columns = pairs(values)
    equal = near_zero(sub(columns, rows), values)
    return lax.bitwise_and(equal, lax.ne(*places(equal)))


def repeated(values: Any) -> Any:
    """Which values are equal to another."""
    return any_of(equal_pairs(values), -1)


def any_of(mask: Any, *axes: int) -> Any:
    return lax.reduce_or(mask, [mask.ndim + axis for axis in axes])


def times(weights: Any, x: Any) -> Any:
    """The entries of a matrix, which may be complex, times weights."""
    return mul(lax.convert_element_type(weights, x.dtype), x)


def inner(x: Any, y: Any) -> Any:
    """`x_j^H y_j` for each pair of columns."""
    return lax.reduce_sum(mul(conjugate(x), y), (x.ndim - 2,))


def only_whole(subset: Any, what: str) -> None:
    if subset is not None:
        raise NotImplementedError(
            f"the derivative of some of the {what} (subset_by_index={subset}), at "
            f"{checks.user_line()}: it depends on the others too. Compute all, and take some."
        )


# ---- vectors that have no derivative -------------------------------------------------------------


# Forward, the tangents of these vectors are NaN. Transposed, NaN times a cotangent would be NaN
# also where the cotangent is zero, because the function reads only other vectors. A rule that looks
# at cotangents is not linear; `custom_linear_solve` lets us declare a transpose of our own, here
# for the identity, `1 x = b`. It passes the cotangents on, or puts NaN in their place.
#
# Zero cotangents of undetermined vectors say that the function does not read them, or that it is a
# `V f(w) V^H` with f(w) = 0. At A = 1 that is log A, and without full rank a matrix put together
# again from its singular values; neither has a derivative that is zero. So cotangents pass only if
#
#     - undetermined vectors, and the values that belong to them, have none,
#     - and others have some, which shows that the function reads those;
#
# or if the function uses no vectors, only values. To see that, we multiply copies of the tangents
# of the values, `uses`, by NaN, and add them to the undetermined vectors. So these become NaN, and
# the cotangent of a copy is NaN if the function uses the vectors, and zero if it does not.
def with_undetermined(
    w_dot: Any, vectors_dot: list, masks: list, complement: int | None = None
) -> tuple[Any, list]:
    """The tangents of values, and of vectors (or of their motions within their own basis).

    The masks say which vectors are undetermined. Those at the place `complement` have no values.
    """

    def transpose(_, cotangents):
        w_bar, vectors_bar, uses_bar = cotangents
        is_used = is_read = shows = lax.full(w_bar.shape[:-1], False)
        columns = zip(vectors_bar, uses_bar, masks, strict=True)
        for k, (x_bar, use_bar, mask) in enumerate(columns):
            moves = any_moves(x_bar)
            if k != complement:
                moves = lax.bitwise_or(moves, lax.ne(w_bar, zeros_like(w_bar)))
            used = lax.bitwise_and(mask, lax.ne(use_bar, use_bar))
            is_used = lax.bitwise_or(is_used, any_of(used, -1))
            is_read = lax.bitwise_or(is_read, any_of(lax.bitwise_and(used, moves), -1))
            shown = lax.bitwise_and(lax.bitwise_not(mask), moves)
            shows = lax.bitwise_or(shows, any_of(shown, -1))
        passes = lax.bitwise_and(lax.bitwise_not(is_read), shows)
        refused = lax.bitwise_and(is_used, lax.bitwise_not(passes))

        def passed(x_bar):
            at_all = lax.broadcast_in_dim(refused, x_bar.shape, range(refused.ndim))
            return lax.select(at_all, lax.full_like(x_bar, np.nan), x_bar)

        return passed(w_bar), [*map(passed, vectors_bar)], [*map(zeros_like, uses_bar)]

    def one_for_each(mask):
        if mask.shape == w_dot.shape:
            return w_dot
        first = lax.index_in_dim(w_dot, 0, w_dot.ndim - 1, keepdims=False)
        return lax.broadcast_in_dim(first, mask.shape, range(first.ndim))

    solved: Any = lax.custom_linear_solve(
        lambda x: x,
        (w_dot, vectors_dot, [one_for_each(mask) for mask in masks]),
        solve=lambda _, b: b,
        transpose_solve=transpose,
        symmetric=True,
    )
    w_dot, vectors_dot, uses = solved
    marked = []
    for x_dot, use, mask in zip(vectors_dot, uses, masks, strict=True):
        nans = lax.select(mask, lax.full(mask.shape, np.nan, use.dtype), zeros_like(use))
        marked.append(add(x_dot, spread(mul(nans, use), x_dot, -1)))
    return w_dot, marked


def any_moves(x_bar: Any) -> Any:
    """Which columns are not zero."""
    return any_of(lax.ne(x_bar, zeros_like(x_bar)), -2)


# ---- Hermitian matrices --------------------------------------------------------------------------


# V is unitary, V^-1 = V^H, and so the motion of V, X = V^H V_dot, is skew-Hermitian. Its diagonal,
# which turns the phases of complex vectors, is arbitrary; here it is zero. The primitive reads one
# triangle of A.
def eigh_jvp(primals, tangents, *, lower, subset_by_index, **params):
    only_whole(subset_by_index, "eigenvectors of a Hermitian matrix")
    v, w = eigh_p.bind(*primals, lower=lower, subset_by_index=subset_by_index, **params)
    moved = matmul(hermitian(tangents[0], lower), v)
    x = times(gap_reciprocals(w), matmul(adjoint(v), moved))
    w_dot, (x,) = with_undetermined(real_part(inner(v, moved)), [x], [repeated(w)])
    return [v, w], [matmul(v, x), w_dot]


def real_part(x):
    return real(x) if is_complex(x) else x


general(eigh_p, eigh_jvp)

# ---- singular values -----------------------------------------------------------------------------


# A = U S V^H. With P = U^H A_dot V, and the motions X = U^H U_dot and Y = V^H V_dot, both
# skew-Hermitian,
#
#     P = X S + S_dot - S Y,
#
# whose Hermitian and skew-Hermitian parts are, for i /= j,
#
#     P+_ij = (X + Y)_ij (s_j - s_i) / 2,        P-_ij = (X - Y)_ij (s_j + s_i) / 2.
#
# On the diagonal P+ = S_dot, and P- gives X - Y as above, while X + Y, which turns the phases of
# both vectors, is arbitrary; here it is such that Y is zero. U also moves out of the space of its
# columns, by (1 - U U^H) A_dot V S^-1; so does V, with A_dot^H.
#
# Full matrices add the vectors C of the complement, which are orthogonal to the others: U^H C = 0
# gives U^H C_dot = -U_dot^H C. Two or more of them are any basis of it, and C^H C_dot is arbitrary.
# A function of the projector C C^H alone does not see it: its cotangent C_bar has a Hermitian
# C_bar^T C. But at one point other functions may have that too, and no tangent tells them apart.
def svd_jvp(primals, tangents, *, full_matrices, compute_uv, subset_by_index, **params):
    (a,), (a_dot,) = primals, tangents
    m, n = a.shape[-2:]
    only_whole(subset_by_index, "singular vectors")
    is_full = compute_uv and full_matrices and m != n
    vectors = {"full_matrices": is_full, "compute_uv": True, "subset_by_index": None}
    s, u_all, vh_all = svd_p.bind(a, **vectors, **params)
    u, of_left = columns_before(u_all, min(m, n))
    v, of_right = columns_before(adjoint(vh_all), min(m, n))
    moved = matmul(a_dot, v)
    s_dot = real_part(inner(u, moved))
    if not compute_uv:
        return [s], [s_dot]
    p = matmul(adjoint(u), moved)
    hermitian_part, skew_part = mul(0.5, add(p, adjoint(p))), mul(0.5, sub(p, adjoint(p)))
    mean = times(gap_reciprocals(s), hermitian_part)
    difference = times(reciprocal(add(*pairs(s)), s), skew_part)
    if is_complex(p):
        mean = add(mean, lax.select(eq(*places(p)), difference, zeros_like(difference)))
    u_dot, v_dot = matmul(u, add(mean, difference)), matmul(v, sub(mean, difference))
    if m > n:
        outside = sub(moved, matmul(u, p))
        u_dot = add(u_dot, scale_columns(outside, reciprocal(s, s)))
    if n > m:
        outside = sub(matmul(adjoint(a_dot), u), matmul(v, adjoint(p)))
        v_dot = add(v_dot, scale_columns(outside, reciprocal(s, s)))
    of_u = of_v = repeated(s)
    # Without a singular value a vector of the longer side is one of the complement; and a complex U
    # takes the phase that V does not.
    if m > n or is_complex(p):
        of_u = lax.bitwise_or(of_u, near_zero(s, s))
    if n > m:
        of_v = lax.bitwise_or(of_v, near_zero(s, s))
    dots, masks = [u_dot, v_dot], [of_u, of_v]
    if is_full:
        x, x_dot, rest = (u, u_dot, of_left) if m > n else (v, v_dot, of_right)
        if abs(m - n) == 1:
            dots.append(neg(matmul(x, matmul(adjoint(x_dot), rest))))
            masks.append(lax.expand_dims(any_of(near_zero(s, s), -1), (s.ndim - 1,)))
        else:
            # Zero, but linear in A_dot, so that the transpose sees the cotangents.
            first = lax.index_in_dim(s_dot, 0, s.ndim - 1, keepdims=False)
            first = lax.broadcast_in_dim(mul(0, first), rest.shape, range(first.ndim))
            dots.append(lax.convert_element_type(first, rest.dtype))
            masks.append(lax.full((*s.shape[:-1], abs(m - n)), True))
    s_dot, (u_dot, v_dot, *rest_dot) = with_undetermined(s_dot, dots, masks, 2)
    if rest_dot and m > n:
        u_dot = lax.concatenate([u_dot, *rest_dot], u.ndim - 1)
    elif rest_dot:
        v_dot = lax.concatenate([v_dot, *rest_dot], v.ndim - 1)
    return [s, u_all, vh_all], [s_dot, u_dot, adjoint(v_dot)]


def columns_before(x, k):
    """The first k columns, and the others."""
    last = x.ndim - 1
    return lax.slice_in_dim(x, 0, k, axis=last), lax.slice_in_dim(x, k, None, axis=last)


general(svd_p, svd_jvp)

# ---- general square matrices ---------------------------------------------------------------------


# The left eigenvectors, W^H A = diag(w) W^H, are the eigenvectors of A^H, whose eigenvalues are
# those of A, conjugated. Where equal eigenvalues have one and the same vector, V has no inverse,
# the eigenvalues have no derivative, and all is NaN.
def eig_jvp(primals, tangents, *, compute_left_eigenvectors, compute_right_eigenvectors, **params):
    (a,), (a_dot,) = primals, tangents
    w, *left, v = eig_p.bind(
        a,
        compute_left_eigenvectors=compute_left_eigenvectors,
        compute_right_eigenvectors=True,
        **params,
    )
    a_dot = lax.convert_element_type(a_dot, w.dtype)
    defect = lax.select(is_defective(w, v), lax.full_like(v, np.nan), lax.full_like(v, 1))
    p = mul(solve(v, matmul(a_dot, v)), defect)
    w_dot, outs, vectors_dot = diagonal(p), [w, *left], []
    for u in left:
        p_left = solve(u, matmul(adjoint(a_dot), u))
        vectors_dot.append(vectors_tangent(conj(w), u, p_left))
    if compute_right_eigenvectors:
        outs, vectors_dot = [*outs, v], [*vectors_dot, vectors_tangent(w, v, p)]
    if vectors_dot:
        masks = [repeated(w)] * len(vectors_dot)
        w_dot, vectors_dot = with_undetermined(w_dot, vectors_dot, masks)
    return outs, [w_dot, *vectors_dot]


def is_defective(w, v):
    """Whether any vectors of equal eigenvalues are parallel, as a mask of the shape of `v`."""
    parallel = lax.ge(lax.abs(matmul(adjoint(v), v)), 1 - float(np.finfo(v.dtype).eps) ** 0.5)
    found = any_of(lax.bitwise_and(equal_pairs(w), parallel), -1, -2)
    return lax.broadcast_in_dim(found, v.shape, range(found.ndim))


# Each vector has length 1, and its largest component, number k, is real. We subtract the part of
# v_dot = (V X)_j that would change this, a multiple c of v:
#
#     Re v^H (v_dot - c v) = 0        =>    Re c = Re v^H v_dot
#     Im (v_dot - c v)_k = 0          =>    Im c = Im (v_dot)_k / v_k
def vectors_tangent(w, v, p):
    v_dot = matmul(v, mul(gap_reciprocals(w), p))
    k = lax.argmax(lax.abs(v), v.ndim - 2, np.int32)
    is_largest = eq(places(v)[0], lax.broadcast_in_dim(k, v.shape, _without(v, v.ndim - 2)))

    def largest(x):
        return lax.reduce_sum(lax.select(is_largest, x, zeros_like(x)), (x.ndim - 2,))

    phase = div(lax.imag(largest(v_dot)), lax.real(largest(v)))
    return sub(v_dot, scale_columns(v, lax.complex(lax.real(inner(v, v_dot)), phase)))


def _without(x, axis):
    return [d for d in range(x.ndim) if d != axis]


general(eig_p, eig_jvp)

# ---- Schur's form --------------------------------------------------------------------------------


# A = Q T Q^H with T upper triangular. Let S = Q^H A_dot Q and X = Q^H Q_dot, which is
# skew-Hermitian:
#
#     S = X T + T_dot - T X        =>        low(X T - T X) = low(S),    T_dot = S - X T + T X
#
# Below the diagonal, column j of X meets only the columns before it:
#
#     (T_jj - T_>j,>j) X_>j,j = S_>j,j - X_>j,<j T_<j,j
#
# The phases of the columns of Q are free; here they do not turn, X_jj = 0. Where T_ii = T_jj, up to
# rounding, there is no derivative, and what is divided by the difference is NaN.
def schur_jvp(primals, tangents, *, compute_schur_vectors, **params):
    (a,), a_dot = primals, instantiate(tangents[0])
    t, q = schur_p.bind(a, compute_schur_vectors=True, **params)
    s = matmul(adjoint(q), matmul(a_dot, q))
    if is_complex(t):
        x = rotation(t, s)
        t_dot = upper_part(moved_form(t, s, x))
    else:
        x, t_dot = real_motion(t, s)
    count = 2 if compute_schur_vectors else 1
    return [t, q][:count], [t_dot, matmul(q, x)][:count]


def moved_form(t, s, x):
    return sub(s, sub(matmul(x, t), matmul(t, x)))


# Two complex eigenvalues of a real matrix are a block on the diagonal of T, which LAPACK brings to
# a standard form (dlanv2), and a unitary, block-diagonal Z to a triangular one:
#
#     B = [[a, b], [c, a]],  b c < 0,      Z = [[i u, v], [v, i u]],  u^2 = |b| / (|b| + |c|),
#                                                                     v^2 = |c| / (|b| + |c|)
#
# where v has the sign of c, since B (i u, v) = (a + i sqrt(-b c)) (i u, v). Below the blocks, X
# solves the equations above with blocks for entries, which no other part of X enters; hence it is
# the motion of the form Z^H T Z, turned back by Z. Within a block X is a rotation by an angle w,
# which adds w (b + c) to the first entry of the diagonal and takes it from the second: so these
# stay equal. A block with b = -c is the same after any rotation, and there all is NaN.
def real_motion(t, s):
    """The motion X of Q, and the tangent of T."""
    b, c, begins = blocks(t)
    z = triangulating(t, b, c, begins)
    x = rotation(through(adjoint(z), t), through(adjoint(z), s))
    rows, columns = places(t)
    is_form = lax.bitwise_or(lax.ge(columns, rows), transposed(next_to_diagonal(t, begins)))
    x = lax.select(is_form, zeros_like(t), real(through(z, x)))
    x = sub(x, transposed(x))
    change, sum_of_both = diagonal(moved_form(t, s, x)), add(b, c)
    largest = lax.reduce_max(lax.abs(t), (t.ndim - 1,))
    undefined = lax.bitwise_and(begins, near_zero(sum_of_both, largest))
    twice = lax.select(begins, mul(2, sum_of_both), lax.full_like(b, 1))
    angle = div(sub(shifted(change, -1, b.ndim - 1), change), twice)
    angle = lax.select(undefined, lax.full_like(angle, np.nan), angle)
    angle = lax.select(next_to_diagonal(t, begins), spread(angle, t, -2), zeros_like(t))
    x = add(x, sub(transposed(angle), angle))
    return x, lax.select(is_form, moved_form(t, s, x), zeros_like(t))


def blocks(t):
    """The numbers b and c, and whether a block begins, in each row; without one, b = c = 1."""
    rows, columns = places(t)
    above = lax.select(eq(columns, add(rows, 1)), t, zeros_like(t))
    below = lax.select(eq(rows, add(columns, 1)), t, zeros_like(t))
    b = lax.reduce_sum(above, (t.ndim - 1,))
    c = lax.reduce_sum(below, (t.ndim - 2,))
    begins, one = lax.ne(c, zeros_like(c)), lax.full_like(c, 1)
    return lax.select(begins, b, one), lax.select(begins, c, one), begins


def next_to_diagonal(t, begins):
    """Where a block has its entry b."""
    rows, columns = places(t)
    begins = lax.broadcast_in_dim(begins, t.shape, range(t.ndim - 1))
    return lax.bitwise_and(begins, eq(columns, add(rows, 1)))


def triangulating(t, b, c, begins):
    """Z, which is 1 where there are no blocks."""
    total, first = add(lax.abs(b), lax.abs(c)), lax.convert_element_type(begins, t.dtype)
    u, v = (lax.sqrt(div(lax.abs(x), total)) for x in (b, c))
    off = lax.select(next_to_diagonal(t, begins), spread(mul(lax.sign(c), v), t, -2), zeros_like(t))
    in_both_rows = [add(x, shifted(x, 1, x.ndim - 1)) for x in (first, mul(first, u))]
    inside, turned = (mul(eye_like(t), spread(x, t, -2)) for x in in_both_rows)
    straight = sub(eye_like(t), inside)
    return lax.complex(add(straight, add(off, transposed(off))), turned)


def through(z, x):
    """`z x z^H`"""
    return matmul(matmul(z, lax.convert_element_type(x, z.dtype)), adjoint(z))


def rotation(t, s):
    """The skew-Hermitian X for which `X t - t X` and s are equal below the diagonal."""
    axis, batch = t.ndim - 1, range(t.ndim - 2)
    equal = lax.select(equal_pairs(diagonal(t)), lax.full_like(t, np.nan), zeros_like(t))
    columns: list = []
    for j in range(t.shape[-1] - 1):
        right = s[..., j + 1 :, j : j + 1]
        if columns:
            before = lax.concatenate(columns, axis)[..., j + 1 :, :]
            right = sub(right, matmul(before, t[..., :j, j : j + 1]))
        corner = lax.broadcast_in_dim(t[..., j, j], t.shape, batch)
        left = sub(mul(eye_like(t), corner), t)
        undefined = spread(equal[..., j], t, -2)
        left = lax.select(eq(*places(t)), add(left, undefined), left)[..., j + 1 :, j + 1 :]
        column = triangular_solve(left, right, left_side=True, lower=False)
        above = [(0, 0, 0)] * len(batch) + [(j + 1, 0, 0), (0, 0, 0)]
        columns.append(lax.pad(column, number(0, column), above))
    last = lax.slice_in_dim(zeros_like(t), 0, 1, axis=axis)
    x = lax.concatenate([*columns, last], axis)
    return sub(x, adjoint(x))


general(schur_p, schur_jvp)
