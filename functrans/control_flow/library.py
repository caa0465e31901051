"""Functions of JAX, compiled under a name, whose programs hide the derivative.

    X X = A         =>         X X_dot + X_dot X = A_dot             (Sylvester's equation)

`jax.scipy.linalg.sqrtm` skips some divisions: if the numerator of an entry of the triangular root
is zero, it sets the entry to the constant 0, and a constant has no derivative.  This happens at
diagonal matrices, and wherever rounding gives a zero.  The equation that the function solves has
the derivative, in both modes, even for repeated eigenvalues.

Read next: `jit.py`, a call of one function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.scipy.linalg
from jax import lax
from jax.lax.linalg import schur, triangular_solve

from functrans.derivatives.common import zeros_like
from functrans.derivatives.linalg import adjoint, eye_like, matmul, transposed, upper_part
from functrans.errors import checks
from functrans.rules import cast


def derivative_of(params: dict) -> Callable | None:
    """The pushforward `(x, a, a_dot) -> x_dot` of a compiled function that has one here."""
    if params["name"] != "_sqrtm" or "_sqrtm_triu" not in _names(params["jaxpr"]):
        return None
    program = params["jaxpr"]
    if program.in_avals[0].ndim > 2 and str(program) != _batched(jax.scipy.linalg.sqrtm, program):
        raise NotImplementedError(
            f"the derivative of jax.scipy.linalg.sqrtm at {checks.user_line()}, batched in another "
            "way than over the first axes: move the axes of the batch to the front"
        )
    return sqrtm_tangent


def _names(program: Any) -> list:
    return [equation.params.get("name") for equation in program.jaxpr.eqns]


def _batched(function: Callable, program: Any) -> str:
    """The program of the function of a square matrix, mapped over the first axes."""
    (aval,) = program.in_avals
    if aval.shape[-1] != aval.shape[-2]:
        return ""
    for _ in aval.shape[:-2]:
        function = jax.vmap(function)
    call = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(aval.shape, aval.dtype)).eqns[0]
    return str(call.params["jaxpr"])


# With A = Z T Z^H, Schur's form, the root U = Z^H X Z is triangular, and the equation becomes
# U Y + Y U = R for R = Z^H A_dot Z and Y = Z^H X_dot Z. Column j of Y meets those before it:
#
#     (U + U_jj) y_j = r_j - Y_<j U_<j,j
#
# The derivatives of this solution are solutions for other right sides, so nobody differentiates
# this code. With L Y = X Y + Y X the transpose is L^T Y = X^T Y + Y X^T, the same equation for
# Y^T and R^T. We solve both as one symmetric system,
#
#     [ 0  L^T ] [Y]   [0]
#     [ L   0  ] [Z] = [R]        with  Z = 0,
#
# so that JAX need not derive a transpose.
def sqrtm_tangent(x: Any, a: Any, a_dot: Any) -> Any:
    """The tangent of the root x of a."""
    z = schur(lax.convert_element_type(lax.stop_gradient(a), x.dtype))[1]
    u = upper_part(matmul(adjoint(z), matmul(lax.stop_gradient(x), z)))

    def solved(r):
        r = matmul(adjoint(z), matmul(r, z))

        def column(j, y):
            of_u, of_r = (lax.dynamic_slice_in_dim(m, j, 1, m.ndim - 1) for m in (u, r))
            corner = lax.dynamic_slice_in_dim(of_u, j, 1, u.ndim - 2)
            shifted = u + eye_like(u) * corner
            y_j = triangular_solve(shifted, of_r - matmul(y, of_u), left_side=True)
            return lax.dynamic_update_slice_in_dim(y, y_j, j, y.ndim - 1)

        y = lax.fori_loop(0, u.shape[-1], column, lax.full_like(r, 0))
        return matmul(z, matmul(y, adjoint(z)))

    def both(yz):
        (y, z), xt = yz, transposed(x)
        return matmul(xt, z) + matmul(z, xt), matmul(x, y) + matmul(y, x)

    def solve(_, sides):
        of_transpose, r = sides
        return solved(r), transposed(solved(transposed(of_transpose)))

    right = cast(a_dot, jax.typeof(x))
    return lax.custom_linear_solve(both, (zeros_like(right), right), solve, symmetric=True)[0]
