"""Sparse Jacobians and Hessians: find the elements that may differ from zero, evaluate only these.

    detect     the pattern: where an element of the result depends on one of the input
    color      the columns, or rows, that one pass can evaluate together
    evaluate   one pass for each color, and read the nonzeros

>>> import jax.numpy as jnp, functrans as ft
>>> jacobian = ft.sparse.jacobian(lambda x: jnp.diff(x) ** 2, jnp.zeros(9))
>>> jacobian.show()
⠙⢦⡀⠀⠀
⠀⠀⠙⢦⡀
Coloring(8 x 9: 2 forward passes instead of 8)

Read next: `checks.py`, the checks of a user's arguments.
"""

from functrans.sparse import loops  # noqa: F401  it adds the equations that carry programs
from functrans.sparse.coloring import Coloring, color
from functrans.sparse.declared import with_pattern
from functrans.sparse.evaluation import (
    SparseDerivative,
    hessian,
    hessian_pattern,
    jacobian,
    jacobian_pattern,
)
from functrans.sparse.patterns import Pattern

__all__ = [
    "jacobian",
    "hessian",
    "jacobian_pattern",
    "hessian_pattern",
    "with_pattern",
    "Pattern",
    "Coloring",
    "color",
    "SparseDerivative",
]
