"""Lineax and Optimistix: derivatives of a solution with respect to the data.

Both bring primitives of their own, and call JAX's transforms inside: Optimistix linearizes the
residuals in each step, and its implicit adjoint is a `custom_jvp` that solves with Lineax.  Around
all of that the derivative is functrans's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax
import numpy as np
import optimistix
import pytest
from compare import BOTH, check_derivatives, check_gradient, forward_over_reverse, wide

RNG = np.random.default_rng(0)
SQUARE, TALL = RNG.normal(size=(3, 3)) + 3 * np.eye(3), RNG.normal(size=(4, 3))
TIGHT: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}

pytestmark = pytest.mark.usefixtures("float64")


def positive(matrix: jax.Array) -> Any:
    spd = matrix @ matrix.T + jnp.eye(3)
    return lineax.MatrixLinearOperator(spd, lineax.positive_semidefinite_tag)


def triangular(matrix: jax.Array) -> Any:
    return lineax.MatrixLinearOperator(jnp.tril(matrix), lineax.lower_triangular_tag)


def tridiagonal(matrix: jax.Array) -> Any:
    bands = (jnp.diagonal(matrix, offset) for offset in (0, -1, 1))
    return lineax.TridiagonalLinearOperator(*bands)


def of_a_function(matrix: jax.Array) -> Any:
    """Nonlinear: the operator is the Jacobian of this function, at the diagonal."""

    def function(x, matrix):
        return jnp.tanh(matrix @ x) + 2 * x

    return lineax.JacobianLinearOperator(function, jnp.diagonal(matrix), matrix)


# The solver, the operator that it solves with, the matrix from which that is made.
SOLVES: dict[str, tuple[Any, Callable, np.ndarray]] = {
    "LU": (lineax.LU(), lineax.MatrixLinearOperator, SQUARE),
    "QR": (lineax.QR(), lineax.MatrixLinearOperator, TALL),
    "SVD": (lineax.SVD(), lineax.MatrixLinearOperator, TALL),
    "Cholesky": (lineax.Cholesky(), positive, SQUARE),
    "CG": (lineax.CG(**TIGHT), positive, SQUARE),
    "BiCGStab": (lineax.BiCGStab(**TIGHT), lineax.MatrixLinearOperator, SQUARE),
    "triangular": (lineax.Triangular(), triangular, SQUARE),
    "tridiagonal": (lineax.Tridiagonal(), tridiagonal, SQUARE),
    "Jacobian": (lineax.LU(), of_a_function, SQUARE),
}


@pytest.mark.parametrize("name", SOLVES)
def test_linear_solves(name: str) -> None:
    solver, operator, matrix = SOLVES[name]

    def loss(inputs):
        matrix, vector = inputs
        return jnp.sum(jnp.sin(lineax.linear_solve(operator(matrix), vector, solver).value))

    inputs = jnp.asarray(matrix), jnp.asarray(RNG.normal(size=len(matrix)))
    check_derivatives(loss, inputs, BOTH if name in ("LU", "QR") else (forward_over_reverse,))


TIMES = np.linspace(0.0, 1.0, 5)
DECAY = 2 * np.exp(-1.3 * TIMES) + 0.1 * RNG.normal(size=5)
MIXING = np.array([[1.0, 0.2], [0.3, 1.0]])


def fit(data: jax.Array, **options: Any) -> Any:
    """The two constants of an exponential decay."""

    def residuals(constants, data):
        return constants[0] * jnp.exp(-constants[1] * TIMES) - data

    solver = optimistix.LevenbergMarquardt(rtol=1e-10, atol=1e-10)
    return optimistix.least_squares(residuals, solver, jnp.ones(2), args=data, **options)


def root(data: jax.Array, **options: Any) -> Any:
    def function(x, data):
        return jnp.tanh(MIXING @ x) + x - data

    solver = optimistix.Newton(rtol=1e-10, atol=1e-10)
    return optimistix.root_find(function, solver, jnp.zeros(2), args=data, **options)


def fixed_point(data: jax.Array, **options: Any) -> Any:
    def function(x, data):
        return 0.3 * jnp.cos(x * data) + data

    solver = optimistix.FixedPointIteration(rtol=1e-12, atol=1e-12)
    return optimistix.fixed_point(function, solver, jnp.zeros(2), args=data, **options)


def minimum(data: jax.Array, **options: Any) -> Any:
    def function(x, data):
        return jnp.sum((x - data) ** 2) + jnp.sum(jnp.cosh(x))

    solver = optimistix.BFGS(rtol=1e-10, atol=1e-10)
    return optimistix.minimise(function, solver, jnp.zeros(2), args=data, **options)


PAIR = np.array([0.5, 0.8])
PROBLEMS: dict[str, tuple[Callable, np.ndarray]] = {
    "least squares": (fit, DECAY),
    "root": (root, PAIR),
    "fixed point": (fixed_point, PAIR),
    "minimum": (minimum, PAIR),
}


def of_the_solution(name: str, adjoint: Any) -> tuple[Callable, jax.Array]:
    solve, data = PROBLEMS[name]

    def loss(data):
        solution = solve(data, adjoint=adjoint, max_steps=32, throw=False)
        return jnp.sum(jnp.sin(solution.value))

    return loss, wide(data)


@pytest.mark.parametrize("name", PROBLEMS)
def test_by_the_implicit_function_theorem(name: str) -> None:
    """No derivative goes through the iterations."""
    check_derivatives(*of_the_solution(name, optimistix.ImplicitAdjoint()), (forward_over_reverse,))


ITERATIONS = optimistix.RecursiveCheckpointAdjoint()


def test_through_the_iterations_in_reverse() -> None:
    check_gradient(*of_the_solution("root", ITERATIONS))


def test_through_the_iterations_forward_over_reverse() -> None:
    """What is saved on the way can be pushed forward; it cannot be pulled back again."""
    check_derivatives(*of_the_solution("fixed point", ITERATIONS), (forward_over_reverse,))


def test_under_vmap() -> None:
    """Lineax calls `jax.vmap` in its rules; each root is found in a number of steps of its own."""
    systems, sides = np.stack([SQUARE, 2 * SQUARE.T]), RNG.normal(size=(2, 3))

    def solved(matrix, side):
        operator = lineax.MatrixLinearOperator(matrix)
        return lineax.linear_solve(operator, side, lineax.LU()).value

    def root(slope):
        def function(y, slope):
            return jnp.tanh(slope * y) + y - 1

        found = optimistix.root_find(
            function, optimistix.Newton(**TIGHT), jnp.zeros(()), slope, throw=False
        )
        return found.value

    def loss(params):
        solutions = jax.vmap(solved)(*params)
        return jnp.sum(jnp.sin(solutions)) + jnp.sum(jax.vmap(root)(params[1][0]) ** 2)

    check_derivatives(loss, (jnp.asarray(systems), jnp.asarray(sides)), (forward_over_reverse,))
