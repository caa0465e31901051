"""A linear function at every vector of a basis: the products with a matrix are the matrix.

    A I = A

A Jacobian pushes a whole basis through a linear program.  Where the basis vectors meet a matrix for
the first time, no product needs computing.

Read next: `passing.py`, operations that are handed on as others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.core
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var

from functrans import jaxpr as jx
from functrans import values
from functrans.programs.live import live
from functrans.rules import RULES
from functrans.tracer import stage


def first_products(linear: Callable, avals: Sequence[Any]) -> tuple[ClosedJaxpr, list]:
    """Stage a linear function of a list, and take its first products with a whole basis.

    If basis vectors meet a matrix unchanged, or scaled element by element by known numbers,
    the products are the columns of the matrix, scaled: `A I = A`, without a multiplication.

    Returns the rest of the program, a function of a basis vector and of its
    products; and the products, stacked over the basis.
    """
    types = [jax.core.ShapedArray(a.shape, a.dtype, sharding=a.sharding) for a in avals]
    info = jx.debug_info("jacobian", linear)
    program, _ = stage(lambda *xs: (linear(list(xs)), None), types, info)
    jaxpr, ends = program.jaxpr, list(itertools.accumulate(aval.size for aval in avals))
    known: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
    # A diagonal matrix D takes e_i to (D 1)_i e_i: its product with ones is the scale.
    ones = [(i, values.full(1, aval)) for i, aval in enumerate(types)]
    scaled: dict[Any, tuple] = dict(zip(jaxpr.invars, ones, strict=True))
    rest: list[JaxprEqn] = []
    products: dict[Var, Any] = {}
    for equation in jaxpr.eqns:
        inputs = [a.val if isinstance(a, Literal) else known.get(a) for a in equation.invars]
        moving = [i for i, x in enumerate(inputs) if x is None]
        if not moving:
            known.update(zip(equation.outvars, jx.bind(equation, inputs), strict=True))
            continue
        rest.append(equation)
        i, scale = scaled.get(equation.invars[moving[0]], (0, None))
        if scale is None or len(moving) > 1:
            continue
        position = moving[0]
        if equation.primitive is lax.dot_general_p:
            columns = _columns(equation, position, inputs[1 - position], scale)
            if columns is not None:
                others = ends[i] - scale.size, ends[-1] - ends[i], 0
                padding = [others, *[(0, 0, 0)] * (columns.ndim - 1)]
                products[equation.outvars[0]] = lax.pad(
                    columns, np.zeros((), columns.dtype), padding
                )
        elif _is_diagonal(equation, scale.shape):
            inputs[position] = scale
            scaled[equation.outvars[0]] = i, *jx.bind(equation, inputs)
    kept = live([e for e in rest if products.keys().isdisjoint(e.outvars)], jaxpr.outvars)
    inputs, consts = [*jaxpr.invars, *products], list(known.values())
    program = jx.closed(inputs, jaxpr.outvars, kept, jaxpr.debug_info, list(known), consts)
    return program, list(products.values())


def _is_diagonal(equation: JaxprEqn, shape: tuple) -> bool:
    """Whether an equation only multiplies each element of an array of this shape."""
    rule = RULES.get(equation.primitive)
    out: Any = equation.outvars[0].aval
    return bool(rule) and rule.is_diagonal and out.shape == shape


def _columns(equation: JaxprEqn, position: int, matrix: Any, scale: Any) -> Any:
    """The scaled products with all vectors of the basis, stacked along the first axis.

    `None` if a product does not sum over all dimensions of the vector, or if these may be sharded.
    """
    (contracted, _), aval = equation.params["dimension_numbers"], equation.outvars[0].aval
    if len(contracted[position]) < scale.ndim or values.sharding_of(aval):
        return None
    order = [d for _, d in sorted(zip(contracted[position], contracted[1 - position], strict=True))]
    free = [d for d in range(matrix.ndim) if d not in order]
    columns = values.cast(lax.transpose(matrix, [*order, *free]), aval)
    factor = lax.broadcast_in_dim(values.cast(scale, aval), columns.shape, range(scale.ndim))
    return lax.reshape(columns * factor, (scale.size, *columns.shape[scale.ndim :]))
