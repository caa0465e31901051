"""Linear algebra: closed forms, matrices that are hard, and the library functions of JAX.

Every rule by itself is in `rule_cases/linalg.py`. Here are the gradients that have a formula in
the textbooks; repeated eigenvalues and singular values, where the formulas for vectors divide by
zero; matrices without full rank, and nearly so; and what has no derivative.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import chex
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsp
import numpy as np
import pytest
from jax import lax
from repeated import repeated_after

import functrans as ft
from functrans.control_flow import library
from functrans.testing import DIFFERENCES, cross_check

pytestmark = pytest.mark.usefixtures("float64")


def array(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def orthogonal(n: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(array(n, n, seed=seed))[0]


def close(got: Any, want: Any, rtol: float = 1e-9) -> None:
    size = float(np.max(np.abs(want)))
    chex.assert_trees_all_close(np.asarray(got), np.asarray(want), rtol=rtol, atol=rtol * size)


def check(fun: Callable, *args: Any, **options: Any) -> None:
    """Against finite differences, to first order if no other is asked for."""
    options = {"order": 1, "against": (DIFFERENCES,), "jitted": True} | options
    cross_check(fun, *args, **options).check()


def symmetric(x: Any) -> Any:
    return (x + x.T) / 2


# Closed forms.

A, B, C = array(3, 3), array(3), array(3, seed=1)


def by_lu(a, b):
    return jsp.lu_solve(jsp.lu_factor(a), b)


def by_qr(a, b):
    q, r = jnp.linalg.qr(a)
    return jsp.solve_triangular(r, q.T @ b)


def by_normal_equations(a, b):
    return jsp.cho_solve(jsp.cho_factor(a.T @ a), a.T @ b)


SOLVERS = [jnp.linalg.solve, by_lu, by_qr, by_normal_equations]


@pytest.mark.parametrize("solve", SOLVERS)
def test_the_solution_of_a_linear_system(solve: Callable) -> None:
    """`A x = b`: dL/db = A^-T dL/dx,  dL/dA = -A^-T (dL/dx) x^T."""
    x = np.linalg.solve(A, B)
    x_bar = 2 * x + C
    a_bar, b_bar = ft.grad(lambda a, b: jnp.sum(solve(a, b) ** 2) + C @ solve(a, b), (0, 1))(A, B)
    close(b_bar, np.linalg.solve(A.T, x_bar))
    close(a_bar, -np.outer(np.linalg.solve(A.T, x_bar), x))


def by_lstsq(a, b):
    return jnp.linalg.lstsq(a, b)[0]


def by_pinv(a, b):
    return jnp.linalg.pinv(a) @ b


@pytest.mark.parametrize("solve", [by_qr, by_normal_equations, by_pinv, by_lstsq])
def test_least_squares(solve: Callable) -> None:
    """With r = b - A x and z = (A^T A)^-1 dL/dx: dL/db = A z,  dL/dA = r z^T - A z x^T."""
    a, b, c = array(5, 3), array(5), array(3)
    x = np.linalg.lstsq(a, b)[0]
    z = np.linalg.solve(a.T @ a, c)
    a_bar, b_bar = ft.grad(lambda a, b: c @ solve(a, b), (0, 1))(a, b)
    close(b_bar, a @ z)
    close(a_bar, np.outer(b - a @ x, z) - np.outer(a @ z, x))
    check(solve, a, b)


@pytest.mark.parametrize("shape", [(3, 3), (4, 2), (2, 4)])
@pytest.mark.parametrize("full", [False, True])
def test_a_loss_of_singular_values(shape: tuple[int, int], full: bool) -> None:
    """dL/dW = U diag(dL/dsigma) V^T, whether or not the vectors are asked for."""

    def loss(w):
        s = jnp.linalg.svd(w, full_matrices=False)[1] if full else jnp.linalg.svdvals(w)
        return jnp.sum(jnp.sin(s) * s)

    w = array(*shape)
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    close(ft.grad(loss)(w), u @ np.diag(np.cos(s) * s + np.sin(s)) @ vt)


def test_determinant_and_inverse() -> None:
    """d det A = det A tr(A^-1 dA),  d log|det A| = tr(A^-1 dA),  d A^-1 = -A^-1 dA A^-1."""
    inverse, direction = np.linalg.inv(A), array(3, 3, seed=1)
    close(ft.grad(jnp.linalg.det)(A), np.linalg.det(A) * inverse.T)
    close(ft.grad(lambda a: jnp.linalg.slogdet(a)[1])(A), inverse.T)
    close(ft.jvp(jnp.linalg.inv, (A,), (direction,))[1], -inverse @ direction @ inverse)


def test_a_function_of_eigenvalues() -> None:
    """d tr f(A) = tr(f'(A) dA), for a symmetric matrix and for one with complex eigenvalues."""
    a = symmetric(A)
    close(ft.grad(lambda a: jnp.sum(jnp.linalg.eigvalsh(a) ** 3))(a), 3 * a @ a)
    rotating = np.array([[1.0, 2.0, 0.5], [-2.0, 1.0, 0.3], [0.1, 0.2, 3.0]])
    assert np.iscomplexobj(np.linalg.eigvals(rotating))
    for eigenvalues in (jnp.linalg.eigvals, lambda a: jnp.linalg.eig(a)[0]):
        got = ft.grad(lambda a, eigenvalues=eigenvalues: jnp.sum(eigenvalues(a) ** 3).real)
        close(got(rotating), 3 * (rotating @ rotating).T)


def test_reflections_of_a_factorization_are_its_unitary_factor() -> None:
    """Q from `qr`, and Q from the product of the reflections that `qr` in its raw mode returns."""

    def by_reflections(a):
        packed, taus = jnp.linalg.qr(a, mode="raw")
        return lax.linalg.householder_product(packed.mT, taus)

    for a in (array(4, 3), A, A + 1j * array(3, 3, seed=1)):
        direction = jnp.cos(a)
        want, want_dot = ft.jvp(lambda a: jnp.linalg.qr(a)[0], (a,), (direction,))
        got, got_dot = ft.jvp(by_reflections, (a,), (direction,))
        close(got, want)
        close(got_dot, want_dot)


def test_a_triangle_that_is_not_read_has_no_gradient() -> None:
    """`jax.scipy.linalg.cholesky` reads one triangle. As a function of that it has this gradient,
    which finite differences confirm; both triangles together say the same of a symmetric matrix."""
    a = A @ A.T + np.eye(3)

    def of_scipy(a):
        return jnp.sum(jnp.sin(jsp.cholesky(a, lower=True)))

    def of_numpy(a):
        return jnp.sum(jnp.sin(jnp.linalg.cholesky(a)))

    one, both = ft.grad(of_scipy)(a), ft.grad(of_numpy)(a)
    assert np.any(one) and not np.any(np.triu(one, 1))
    close((one + one.T) / 2, both)
    check(of_scipy, a)


# Repeated eigenvalues and singular values.

Q = orthogonal(3)
REPEATED = {
    "identity": np.eye(3),
    "multiple of the identity": 2.5 * np.eye(3),
    "two of three, diagonal": np.diag([2.0, 5.0, 2.0]),
    "two of three": symmetric(Q @ np.diag([1.0, 1.0, 2.0]) @ Q.T),  # equal up to rounding
}
repeated = pytest.mark.parametrize("a", REPEATED.values(), ids=REPEATED)


@repeated
@pytest.mark.parametrize("eigenvalues", [jnp.linalg.eigvalsh, jnp.linalg.eigvals])
def test_functions_of_repeated_eigenvalues(a: np.ndarray, eigenvalues: Callable) -> None:
    close(ft.grad(lambda a: jnp.sum(eigenvalues(a) ** 3).real)(a), 3 * a @ a)
    close(ft.grad(lambda a: jnp.sum(jnp.log(eigenvalues(a))).real)(a), np.linalg.inv(a))


def nan_or_close(got: Any, want: Any) -> None:
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    error = np.where(np.isnan(got), 0, got - want)
    assert np.max(np.abs(error)) < 1e-9, (got, want)


def derivative_of_a_matrix_function(a: np.ndarray, f: Callable, slope: Callable) -> np.ndarray:
    """Daleckii and Krein: V (F o V^H dA V) V^H, with F_ij = (f(w_i) - f(w_j)) / (w_i - w_j), and
    f'(w_i) where these are equal; at `[k, l, i, j]` is what A_ij makes of the entry kl."""
    w, v = np.linalg.eigh(a)
    gap = w[:, None] - w
    equal = abs(gap) < 1e-9
    f_w, mean = f(w), (w[:, None] + w) / 2
    quotients = np.where(equal, slope(mean), (f_w[:, None] - f_w) / np.where(equal, 1, gap))
    whole = np.einsum("kp,pq,lq,ip,jq->klij", v, quotients, v.conj(), v.conj(), v)
    return (whole + np.swapaxes(whole, 2, 3)) / 2 if np.isrealobj(a) else whole


OF_EIGENVALUES = {
    "exp": (jnp.exp, np.exp, np.exp),
    "log": (jnp.log, np.log, lambda w: 1 / w),  # log 1 = 0: no cotangent reaches the vectors
    "square of a difference": (lambda w: (w - 1) ** 2, lambda w: (w - 1) ** 2, lambda w: 2 * w - 2),
}
MATRICES = [*REPEATED.values(), np.diag([1.0, 1.0, 2.0]), np.diag([0.5, 1.0, 4.0]), A @ A.T]


@pytest.mark.parametrize("name", OF_EIGENVALUES)
def test_a_matrix_function_by_its_factors_is_right_or_not_a_number(name: str) -> None:
    """Vectors with equal eigenvalues cannot say how f(A) moves: at the identity exp(A + dA) is
    e (1 + dA + ...), of which w_dot has the diagonal alone, in the basis that V happens to be."""
    f, value, slope = OF_EIGENVALUES[name]

    def function(a):
        w, v = jnp.linalg.eigh(a)
        return (v * f(w)) @ v.T

    matrices = np.stack(MATRICES)
    want = np.stack([derivative_of_a_matrix_function(a, value, slope) for a in matrices])
    for jacobian in (ft.jacfwd, ft.jacrev):
        got = np.asarray(jax.jit(jax.vmap(jacobian(function)))(matrices))
        nan_or_close(got, want)
        assert not np.any(np.isnan(got[-2:]))


@pytest.mark.parametrize("name", ["real", "complex"])
def test_a_vector_of_a_simple_eigenvalue_beside_repeated_ones(name: str) -> None:
    """dv_j = sum_i v_i (v_i^H dA v_j) / (w_j - w_i), in both modes; the other vectors are NaN, and
    values and vectors may be asked for together (jax#4646)."""
    basis = Q if name == "real" else np.linalg.qr(A + 1j * array(3, 3, seed=1))[0]
    exact, rounded = np.diag([1.0, 1.0, 4.0]), basis @ np.diag([4.0, 1.0, 1.0]) @ basis.conj().T
    matrices = np.stack([exact + 0 * basis, (rounded + rounded.conj().T) / 2])
    direction = A + A.T if name == "real" else rounded + A + A.T

    def factors(a):
        w, v = jnp.linalg.eigh(a)
        return w, v

    def pulled(a, at):
        (w, v), pull = ft.vjp(factors, a)
        value = jnp.arange(3) == at
        both = pull((0 * w, jnp.where(value, jnp.cos(jnp.arange(3.0))[:, None] + 0 * v, 0)))
        return both[0], pull((jnp.where(value, 1.0, 0 * w), 0 * v))[0]

    @jax.jit
    @jax.vmap
    def derivatives(a):
        return ft.jvp(factors, (a,), (direction,)), [pulled(a, at) for at in range(3)]

    ((_, v), (w_dot, v_dot)), cotangents = derivatives(matrices)
    for k, a in enumerate(matrices):
        w, vectors = np.linalg.eigh(a)[0], np.asarray(v[k])
        p = vectors.conj().T @ direction @ vectors
        close(w_dot[k], np.diag(p).real)
        assert np.all(np.isnan(v_dot[k][:, :2]))
        want = vectors[:, :2] @ (p[:2, 2] / (w[2] - w[:2]))
        close(v_dot[k][:, 2], want)
        of_vector, of_value = (
            [np.asarray(c[k]) for c in cs] for cs in zip(*cotangents, strict=True)
        )
        assert np.all(np.isnan(of_vector[:2]))
        assert np.all(np.isnan(of_value[:2]))
        weights = np.cos(np.arange(3.0))
        close(np.sum(of_vector[2] * direction).real, np.sum(weights * want).real)
        close(np.sum(of_value[2] * direction).real, p[2, 2].real)
    close(jax.jit(jax.vmap(ft.grad(lambda a: jnp.linalg.eigvalsh(a).sum().real)))(matrices),
          np.stack([np.eye(3)] * 2))  # fmt: skip


def test_second_derivatives_with_repeated_eigenvalues() -> None:
    """Of a simple eigenvalue: d^2 w_j = 2 sum_i |v_i^H dA v_j|^2 / (w_j - w_i). Of tr A^3, which is
    6 tr(A dA dA), the eigenvalues and vectors do not tell enough."""
    a, direction = np.diag([1.0, 1.0, 4.0]), symmetric(array(3, 3))
    want = 2 * np.sum(direction[:2, 2] ** 2) / 3

    def largest(a):
        return jnp.linalg.eigvalsh(a)[-1]

    def cubes(a):
        return jnp.sum(jnp.linalg.eigvalsh(a) ** 3)

    def pushed(f):
        return lambda a: ft.jvp(f, (a,), (direction,))[1]

    @jax.jit
    def derivatives(a):
        return (
            [pushed(pushed(largest))(a), jnp.sum(ft.grad(pushed(largest))(a) * direction)],
            [pushed(pushed(cubes))(a), jnp.sum(direction * pushed(ft.grad(cubes))(a))],
            [jnp.sum(direction * pushed(ft.grad(largest))(a))],
        )

    of_simple, of_all, forward_over_reverse = derivatives(a)
    close(of_simple, [want, want])
    nan_or_close(of_all, [6 * np.trace(a @ direction @ direction)] * 2)
    nan_or_close(forward_over_reverse, [want])


def test_derivatives_of_jax_around_those_of_eigenvectors() -> None:
    """What is written for `eigh`, `svd` and `eig` is differentiated by JAX as well."""
    a, direction = A @ A.T + np.diag([0.0, 1.0, 3.0]), symmetric(array(3, 3))

    def loss(a):
        (w, v), (u, s, vt) = jnp.linalg.eigh(a), jnp.linalg.svd(a + A)
        return jnp.sum(jnp.sin(w) * v[0] ** 2) + jnp.sum(s * u[0] * vt[:, 1])

    @jax.jit
    def second(a):
        return [
            outer.jvp(inner.grad(loss), (a,), (direction,))[1]
            for outer, inner in ((jax, ft), (ft, ft), (ft, jax), (jax, jax))
        ]

    *got, want = second(a)
    for value in got:
        close(value, want)


def test_a_defective_matrix() -> None:
    """Equal eigenvalues that share one vector have no derivative; the same values with two have."""
    jordan, diagonable = np.array(
        [[[1.0, 1, 0], [0, 1, 0], [0, 0, 3]], [[1, 0, 1], [0, 1, 0], [0, 0, 3]]]
    )

    def cubes(a):
        return jnp.sum(jnp.linalg.eigvals(a) ** 3).real

    def last(a):
        return jnp.linalg.eig(a)[1][:, 2].real

    gradient, of_vector = jax.jit(lambda a: (ft.grad(cubes)(a), ft.jacfwd(last)(a)))(diagonable)
    close(gradient, 3 * (diagonable @ diagonable).T)
    assert np.all(np.isfinite(of_vector))
    assert np.all(np.isnan(ft.grad(cubes)(jordan)))
    assert np.all(np.isnan(ft.jvp(jnp.linalg.eigvals, (jordan,), (A,))[1]))


def test_the_projector_onto_a_simple_eigenvalue_beside_a_repeated_one() -> None:
    """With A = a + (b - a) p p^T: dP = (1 - P) dA P / (b - a) + its transpose."""
    p = Q[:, 2]
    a = symmetric(np.eye(3) + np.outer(p, p))

    def projector(a):
        v = jnp.linalg.eigh(a)[1]
        return jnp.outer(v[:, 2], v[:, 2])

    direction, weights = symmetric(array(3, 3)), symmetric(array(3, 3, seed=1))
    half = (np.eye(3) - np.outer(p, p)) @ direction @ np.outer(p, p)
    close(ft.jvp(projector, (a,), (direction,))[1], half + half.T)
    gradient = ft.grad(lambda a: jnp.sum(weights * projector(a)))(a)
    close(np.sum(gradient * direction), np.sum(weights * (half + half.T)))
    check(lambda a: projector(symmetric(a)), a)


def of_singular(f: Callable) -> Callable:
    def function(a):
        u, s, vt = jnp.linalg.svd(a, full_matrices=False)
        return (u * f(s)) @ vt

    return function


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_repeated_singular_values(scale: float) -> None:
    """At a multiple of an orthogonal matrix, where the nuclear norm and the polar factor U V^T are
    smooth: the gradient of the norm is U V^T, and d(U V^T) = U V^T skew(V U^T dA) / scale."""
    a, direction = scale * Q, array(3, 3)
    nuclear = ft.grad(lambda a: jnp.linalg.norm(a, "nuc"))
    m = Q.T @ direction / scale

    @jax.jit
    def derivatives(a):
        polar = of_singular(jnp.ones_like), nuclear
        again = of_singular(lambda s: s)
        tangents = [ft.jvp(function, (a,), (direction,))[1] for function in polar]
        return nuclear(a), tangents, (ft.jacfwd(again)(a), ft.jacrev(again)(a))

    gradient, tangents, jacobians = derivatives(a)
    close(gradient, Q)
    for got in tangents:
        nan_or_close(got, Q @ (m - m.T) / 2)
    for got in jacobians:
        nan_or_close(got, np.eye(9).reshape(3, 3, 3, 3))


@pytest.mark.parametrize("shape", [(3, 3), (4, 3), (3, 4)])
@pytest.mark.parametrize("rank", [1, 2])
def test_a_matrix_put_together_again_without_full_rank(shape: tuple[int, int], rank: int) -> None:
    """`U S V^H = A`, of which singular values that are zero take what moves their vectors."""
    exact = np.zeros(shape)
    exact[range(rank), range(rank)] = range(2, 2 + rank)
    turned = orthogonal(shape[0]) @ exact @ orthogonal(shape[1], seed=1)
    identity = np.eye(exact.size).reshape(*shape, *shape)
    both = jax.jit(lambda a: [j(of_singular(lambda s: s))(a) for j in (ft.jacfwd, ft.jacrev)])
    for a in (exact, turned):
        for got in both(a):
            nan_or_close(got, identity)
    if rank == 2:  # the null vector of the shorter side has the derivative of a simple eigenvector
        k = 2 if shape[0] >= shape[1] else 0

        def null(a):
            u, _, vt = jnp.linalg.svd(a, full_matrices=False)
            return jnp.outer(vt[2], vt[2]) if k else jnp.outer(u[:, 2], u[:, 2])

        def projector(a):
            b = a.T @ a if k else a @ a.T
            v = jnp.linalg.eigh(b)[1][:, 0]
            return jnp.outer(v, v)

        derivatives = (ft.jacfwd(null), ft.jacrev(null), ft.jacfwd(projector))
        *found, want = jax.jit(lambda a: [of(a) for of in derivatives])(turned)
        for got in found:
            close(got, want)


def test_the_product_of_the_factors() -> None:
    """U S V^T and V diag(w) V^T are the matrix, to the second derivative."""

    def from_singular(a):
        u, s, vt = jnp.linalg.svd(a, full_matrices=False)
        return (u * s) @ vt

    a, direction = array(4, 3), array(4, 3, seed=1)
    close(ft.jvp(from_singular, (a,), (direction,))[1], direction)
    twice = ft.jvp(lambda a: ft.jvp(from_singular, (a,), (direction,))[1], (a,), (direction,))[1]
    assert np.max(np.abs(twice)) < 1e-12


# Rank.


def test_singular_values_without_full_rank() -> None:
    """The gradient of those that are not zero; all are finite."""
    u, v = orthogonal(4)[:, 0], orthogonal(3)[:, 0]
    a = 3 * np.outer(u, v)
    for values in (jnp.linalg.svdvals, lambda a: jnp.linalg.svd(a, full_matrices=False)[1]):
        close(ft.grad(lambda a, values=values: values(a)[0])(a), np.outer(u, v))
        assert np.all(np.isfinite(ft.jacrev(values)(a)))


def test_the_best_approximation_of_rank_one_at_rank_one() -> None:
    """It is the projection onto the tangent space of the matrices of rank one."""
    u, v = orthogonal(4)[:, 0], orthogonal(3)[:, 0]

    def best(a):
        u, s, vt = jnp.linalg.svd(a, full_matrices=False)
        return s[0] * jnp.outer(u[:, 0], vt[0])

    a, direction = 3 * np.outer(u, v), array(4, 3)
    lost = (np.eye(4) - np.outer(u, u)) @ direction @ (np.eye(3) - np.outer(v, v))
    close(ft.jvp(best, (a,), (direction,))[1], direction - lost)
    check(best, a)


def test_qr_without_full_rank_is_seen() -> None:
    """Q jumps there; the tangents are not finite numbers."""
    a = np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    q_dot = ft.jvp(lambda a: jnp.linalg.qr(a)[0], (a,), (array(3, 2),))[1]
    assert not np.all(np.isfinite(q_dot))


def exact_inverse_and_determinant(a: np.ndarray) -> tuple[np.ndarray, Fraction]:
    """By Gauss and Jordan in rational numbers, of which each float is one."""
    n = len(a)
    rows = [[*map(Fraction, row), *(Fraction(i == j) for j in range(n))] for i, row in enumerate(a)]
    determinant = Fraction(1)
    for i in range(n):
        pivot = max(range(i, n), key=lambda k, i=i: abs(rows[k][i]))
        if pivot != i:
            rows[i], rows[pivot] = rows[pivot], rows[i]
            determinant = -determinant
        determinant *= rows[i][i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for k in range(n):
            if k != i:
                rows[k] = [x - rows[k][i] * y for x, y in zip(rows[k], rows[i], strict=True)]
    return np.array([row[n:] for row in rows], dtype=object), determinant


def test_a_nearly_singular_matrix() -> None:
    """With a condition number of 1e8 the inverse has about eight digits, and so do the gradients.
    (One that divided by the condition twice would have none.)"""
    a = orthogonal(4) @ np.diag([1.0, 0.1, 1e-3, 1e-8]) @ orthogonal(4, seed=1)
    b, c = array(4), array(4, seed=1)
    assert 0.9e8 < np.linalg.cond(a) < 1.1e8
    inverse, determinant = exact_inverse_and_determinant(a)
    x, z = inverse @ list(map(Fraction, b)), inverse.T @ list(map(Fraction, c))
    want = {
        "solve": -np.outer(z, x),
        "inverse": -np.outer(z, x),
        "determinant": determinant * inverse.T,
        "logarithm": inverse.T,
    }
    functions = {
        "solve": lambda a: c @ jnp.linalg.solve(a, b),
        "inverse": lambda a: c @ jnp.linalg.inv(a) @ b,
        "determinant": jnp.linalg.det,
        "logarithm": lambda a: jnp.linalg.slogdet(a)[1],
    }
    for name, fun in functions.items():
        exact = np.array(want[name], dtype=float)
        error = np.max(np.abs(ft.grad(fun)(a) - exact)) / np.max(np.abs(exact))
        assert error < 1e-6, (name, error)


# Higher order.


def log_likelihood(a, x):
    """Of a normal distribution, by the Cholesky factor of its covariance."""
    l = jnp.linalg.cholesky(a @ a.T + jnp.eye(3))
    z = jsp.solve_triangular(l, x, lower=True)
    return jnp.sum(jnp.log(jnp.diag(l))) + z @ z / 2


HIGHER = {
    "cholesky": log_likelihood,
    "solve": lambda a, x: x @ jnp.linalg.solve(a, jnp.sin(x)),
    "eigenvalues": lambda a, x: jnp.sum(jnp.sin(jnp.linalg.eigvalsh(a + jnp.outer(x, x)))),
    "singular values": lambda a, x: jnp.sum(jnp.linalg.svdvals(a * x) ** 1.5),
}


@pytest.mark.parametrize("name", HIGHER)
def test_the_gradient_of_the_gradient(name: str) -> None:
    check(HIGHER[name], A, B, order=2, modes=("rev",))
    got, want = jax.jit(lambda *args: [ad.hessian(HIGHER[name])(*args) for ad in (ft, jax)])(A, B)
    close(got, want, rtol=1e-8)


# The library functions of JAX, which are made of these.


def dominant(x: Any) -> Any:
    return x + 4 * jnp.eye(x.shape[-1])


def positive(x: Any) -> Any:
    return x @ jnp.conj(x.mT) + jnp.eye(x.shape[-1])


def of_vectors(x: Any) -> Any:
    """Without the phases."""
    w, v = jnp.linalg.eigh(positive(x))
    return w, v * jnp.conj(v)


FUNCTIONS: dict[str, Callable] = {
    "solve": lambda x: jnp.linalg.solve(dominant(x), x[:, :2]),
    "solve, one column": lambda x: jnp.linalg.solve(dominant(x), x[0]),
    "scipy solve": lambda x: jsp.solve(positive(x), x[0], assume_a="pos"),
    "inv": lambda x: jnp.linalg.inv(dominant(x)),
    "det": jnp.linalg.det,
    "slogdet": lambda x: jnp.linalg.slogdet(x),
    "pinv": lambda x: (jnp.linalg.pinv(x[:, :2]), jnp.linalg.pinv(x[:2])),
    "matrix_power": lambda x: (
        jnp.linalg.matrix_power(x, 3),
        jnp.linalg.matrix_power(dominant(x), -2),
    ),
    "expm": jsp.expm,
    "lstsq": lambda x: jnp.linalg.lstsq(x[:, :2], x[:, 2])[0],
    "cho_solve": lambda x: jsp.cho_solve((jnp.linalg.cholesky(positive(x)), True), x[0]),
    "lu_solve": lambda x: jsp.lu_solve(jsp.lu_factor(dominant(x)), x, trans=2),
    "lu": lambda x: jsp.lu(x)[1:],
    "eigvalsh": lambda x: jnp.linalg.eigvalsh(positive(x)),
    "eigh": of_vectors,
    "svdvals": lambda x: jnp.linalg.svdvals(x[:2]),
    "norms": lambda x: (jnp.linalg.norm(x, "nuc"), jnp.linalg.norm(x, 2), jnp.linalg.cond(x)),
    "qr": lambda x: (jnp.linalg.qr(x[:, :2]), jnp.linalg.qr(x, mode="r")),
    "qr, complete": lambda x: jnp.linalg.qr(x, mode="complete"),
    "polar": lambda x: jsp.polar(x[:, :2], method="svd"),
    "solve_triangular": lambda x: jsp.solve_triangular(dominant(x), x, trans="C", lower=True),
    "tensorsolve": lambda x: jnp.linalg.tensorsolve(dominant(x), x[0]),
    "multi_dot": lambda x: jnp.linalg.multi_dot([x, x[:, :2], x[:2]]),
}


@pytest.mark.parametrize("is_complex", repeated_after(1, [True, False]), ids=["complex", "real"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_library_functions(name: str, is_complex: bool) -> None:
    """Forward and reverse mode, of a batch and compiled, against JAX's."""
    x = jnp.asarray(array(2, 3, 3) + (1j * array(2, 3, 3, seed=1) if is_complex else 0))
    x_dot = jnp.cos(x)

    def derivatives(ad):
        def both(x, x_dot):
            y, pushed = ad.jvp(FUNCTIONS[name], (x,), (x_dot,))
            return pushed, ad.vjp(FUNCTIONS[name], x)[1](jax.tree.map(jnp.sin, y))

        return jax.vmap(both)(x, x_dot)

    got, want = jax.jit(lambda: (derivatives(ft), derivatives(jax)))()
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    jax.tree.map(close, got, want)


# The root of a matrix.

TRIANGULAR = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 3.0]])
ROOTS = {
    "symmetric": symmetric(A) + 4 * np.eye(3),
    "diagonal": np.diag([1.0, 4.0, 9.0]),
    "identity": np.eye(3),
    "of a root with a zero": TRIANGULAR @ TRIANGULAR,
    "general": A + 4 * np.eye(3),
    "with a complex root": np.array([[1.0, 2.0, 0.5], [-2.0, 1.0, 0.3], [0.1, 0.2, -3.0]]),
}


def sylvester(x: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The Y for which X Y + Y X is the right side."""
    one = np.eye(len(x))
    return np.linalg.solve(np.kron(x, one) + np.kron(one, x.T), right.ravel()).reshape(x.shape)


def test_the_root_of_a_matrix() -> None:
    """X X = A: X dX + dX X = dA, and X ddX + ddX X = -2 dX dX. The program of jax.scipy has a
    `where` on exact zeros, which hides derivatives; JAX has no rule for Schur's form, and none."""
    matrices, direction, weights = np.stack([*ROOTS.values()]), array(3, 3), array(3, 3, seed=1)

    def pushed(f):
        return lambda a: ft.jvp(f, (a,), (direction,))[1]

    def loss(a):
        return jnp.sum(weights * jsp.sqrtm(a)).real

    @jax.jit
    @jax.vmap
    def derivatives(a):
        return jsp.sqrtm(a), pushed(jsp.sqrtm)(a), pushed(pushed(jsp.sqrtm))(a), ft.grad(loss)(a)

    x, first, second, gradient = map(np.asarray, derivatives(matrices))
    for k in range(len(matrices)):
        dx = sylvester(x[k], direction)
        close(first[k], dx)
        close(second[k], sylvester(x[k], -2 * dx @ dx))
        close(np.sum(gradient[k] * direction), np.sum(weights * dx).real)
    batched = jax.vmap(jsp.sqrtm)
    for f in (batched, ft.jit(batched)):
        close(ft.jvp(f, (matrices,), (np.stack([direction] * len(matrices)),))[1], first)
    with pytest.raises(NotImplementedError, match=r"sqrtm at .*test_linalg.py"):
        ft.jvp(jax.vmap(jsp.sqrtm, 2), (matrices.T,), (matrices.T,))


def test_the_names_of_jax_by_which_the_root_is_known() -> None:
    (call,) = jax.make_jaxpr(jsp.sqrtm)(A).eqns
    assert library.derivative_of(call.params) is library.sqrtm_tangent


def test_schur_with_repeated_eigenvalues_is_not_a_number() -> None:
    """Equal up to rounding as well, where a division would give any number."""
    for a in (np.eye(3), REPEATED["two of three"]):
        tangents = ft.jvp(lax.linalg.schur, (a,), (A,))[1]
        assert all(np.any(np.isnan(t)) and not np.any(abs(t) > 1e3) for t in tangents)


# What has no derivative.


@pytest.mark.parametrize(
    ("fun", "message"),
    [
        (lambda x: jnp.linalg.qr(x, mode="complete")[1], "QR factorization of a 4 x 3 matrix"),
    ],
)
def test_a_basis_of_the_complement_has_no_derivative(fun: Callable, message: str) -> None:
    """The message says why, in which line of which file, and what to do."""
    for differentiate in (
        lambda x: ft.jvp(fun, (x,), (x,)),
        lambda x: ft.grad(lambda x: jnp.sum(fun(x)))(x),
        ft.jit(lambda x: ft.jvp(fun, (x,), (x,))),
    ):
        with pytest.raises(NotImplementedError, match=message) as error:
            differentiate(jnp.asarray(array(4, 3)))
        assert "full_matrices=False" in str(error.value)
        assert "test_linalg.py" in str(error.value)


@pytest.mark.parametrize("flip", [False, True], ids=["tall", "wide"])
def test_full_matrices_of_singular_vectors(flip: bool) -> None:
    """The vectors of the complement are any basis of it, if there are two; all else is as ever."""
    a = jnp.asarray(array(2, 5, 3).mT if flip else array(2, 5, 3))
    direction = jnp.asarray(array(*a.shape, seed=1))
    full, thin = jnp.linalg.svd, functools.partial(jnp.linalg.svd, full_matrices=False)

    def loss(svd):
        def of(a):
            u, s, vt = svd(a)
            return jnp.sum(jnp.sin(u[..., :3] * s[..., None, :] ** 2) @ vt[..., :3, :])

        return of

    @jax.jit
    def derivatives(a):
        """Each of the full and of the thin form: the last is of the values alone."""
        values, rest = 1, 2 if flip else 0
        pairs = [
            [
                ft.jvp(svd, (a,), (direction,)),
                ft.grad(loss(svd))(a),
                ft.hvp(loss(svd), a, direction),
                ft.grad(lambda a, svd=svd: jnp.sum(svd(a)[values]))(a),
            ]
            for svd in (full, thin)
        ]
        return pairs, ft.grad(lambda a: jnp.sum(full(a)[rest]))(a)

    (of_full, of_thin), of_rest = derivatives(a)
    ((_, s, _), tangents), (_, want) = of_full[0], of_thin[0]
    close(tangents[0][..., :3], want[0])
    close(tangents[1], want[1])
    close(tangents[2][..., :3, :], want[2])
    assert np.all(np.isnan(tangents[2][..., 3:, :] if flip else tangents[0][..., 3:]))
    for got, want in zip(of_full[1:], of_thin[1:], strict=True):
        close(got, want)
    assert s.shape == (2, 3)
    assert np.all(np.isnan(of_rest))  # a complement that is read


@jax.jit
def of_the_form_of_schur(a: Any, a_dot: Any, weights: Any) -> tuple:
    """The form and its tangent; of a loss, the gradient, what moves it, and the slope of both."""

    def loss(a):
        t, q = lax.linalg.schur(a)
        return jnp.sum(weights * jnp.sin(t)) + jnp.sum(weights.T * q)

    return (
        ft.jvp(lax.linalg.schur, (a,), (a_dot,)),
        ft.jvp(ft.grad(loss), (a,), (a_dot,)),
        ft.jvp(loss, (a,), (a_dot,))[1],
        ft.grad(lambda a: jnp.sum(ft.grad(loss)(a) * a_dot))(a),
    )


@pytest.mark.parametrize("seed", range(4))
def test_schur_of_a_real_matrix_with_complex_eigenvalues(seed: int) -> None:
    """The tangents solve the equations of the form: A = Q T Q^T, and equal entries in each block.

    Differences are not defined wherever LAPACK turns a block the other way round next to A.
    """
    a, a_dot, weights = (array(6, 6, seed=seed + i) for i in (0, 10, 20))
    form, (gradient, moved), slope, of_slope = of_the_form_of_schur(a, a_dot, weights)
    (t, q), (t_dot, q_dot) = jax.tree.map(np.asarray, form)
    begins = np.flatnonzero(np.diagonal(t, -1))
    assert begins.size
    close(q_dot @ t @ q.T + q @ t_dot @ q.T + q @ t @ q_dot.T, a_dot)
    close(q.T @ q_dot, -q_dot.T @ q)
    close(np.diagonal(t_dot)[begins], np.diagonal(t_dot)[begins + 1])
    assert not np.any(np.where(np.tril(t) == 0, np.tril(t_dot), 0))
    close(np.sum(gradient * a_dot), slope)
    close(moved, of_slope)


def test_schur_of_a_block_that_is_the_same_in_all_rotations() -> None:
    """Nothing is claimed of it; the complex form has a derivative, and so has the root."""
    a, a_dot = np.array([[0.5, 1.0], [-1.0, 0.5]]), np.array([[1.0, 2.0], [0.5, -1.0]])
    for tangent in ft.jvp(jax.lax.linalg.schur, (a,), (a_dot,))[1]:
        assert np.all(np.isnan(tangent))

    def eigenvalues(a):
        return jnp.diagonal(jax.scipy.linalg.schur(a, output="complex")[0])

    def conjugates(values):
        return sorted(np.asarray(values), key=lambda z: z.imag)

    got = ft.jvp(eigenvalues, (a,), (a_dot,))
    want = ft.jvp(jnp.linalg.eigvals, (a,), (a_dot,))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(conjugates(x), conjugates(y), rtol=1e-10)
    root, root_dot = ft.jvp(jsp.sqrtm, (a,), (a_dot,))
    close(root_dot, sylvester(np.asarray(root), a_dot))


@pytest.mark.parametrize("reduction", [lax.linalg.hessenberg, lax.linalg.tridiagonal])
def test_a_matrix_that_is_reduced_already(reduction: Callable) -> None:
    """Nothing is reflected: it stays what it is, and so does a tangent that is reduced as well."""
    x, x_dot = (np.diag(v) + np.diag(v[1:], 1) + np.diag(v[1:], -1) for v in (B, C))
    pushed, [x_bar] = jax.jit(
        lambda x, x_dot: (
            ft.jvp(reduction, (x,), (x_dot,)),
            ft.vjp(lambda v: reduction(v)[0], x)[1](x_dot),
        )
    )(x, x_dot)
    (packed, *_, taus), (packed_dot, *_, taus_dot) = pushed
    chex.assert_trees_all_equal(np.asarray(packed), x)
    close(packed_dot, x_dot)
    assert not np.any(taus)
    assert not np.any(taus_dot)
    close(np.vdot(x_bar, x_dot), np.vdot(x_dot, x_dot))
