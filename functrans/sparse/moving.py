"""Equations that move elements: slices, pads, transposes, gathers, scatters, and their transposes.

    moving       run the equation on the numbers of the elements: where has each of them come from?
    transposed   run its transpose: sums are transposes of copies, scatter-adds those of gathers

An index that is not known may point to any place along the dimensions over which it runs.  There
the elements of x form a class: an equation that reads one of them reads the whole class.

Read next: `contractions.py`, products of arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
from jax import lax
from jax.extend.core import jaxprs_in_params

from functrans import extend
from functrans.rules import LinearRule
from functrans.sparse.algebra import Matrix, dense, identity, selection
from functrans.sparse.numbers import Equation, evaluated, moves


def is_unknown_index(atom: Any, x: Any) -> bool:
    return x.known is None and np.issubdtype(atom.aval.dtype, np.integer)


def _coefficients(equation: Equation, at: int, inputs: Sequence) -> list | None:
    """The other inputs, as they enter when numbers of elements are moved.

    A factor enters by its support, or by ones if it is not known; an index as it is. `None` if an
    index is not known.
    """
    found: list = []
    for i, (atom, x) in enumerate(zip(equation.invars, inputs, strict=True)):
        aval, is_number = atom.aval, np.issubdtype(atom.aval.dtype, np.inexact)
        if i == at:
            found.append(None)
        elif x.known is None and not is_number:
            return None
        elif is_number:
            place = x.nonzero
            found.append(np.ones(aval.shape, np.int32) if place is None else place.astype(np.int32))
        else:
            found.append(x.now)
    return found


def moving(equation: Equation, at: int, inputs: Sequence) -> list[Matrix] | None:
    """Run the equation on the numbers of the elements."""
    # The program in a scatter or a reduction has the types of the elements, not of their numbers.
    if any(jaxprs_in_params(equation.params)):
        return None
    shape = equation.invars[at].aval.shape
    if (given := _coefficients(equation, at, inputs)) is None:
        return None
    found = moves(lambda x: _evaluated_at(equation, at, given, x.reshape(shape)), prod(shape))
    return found and [selection(columns, prod(shape), is_read) for columns, is_read in found]


def _evaluated_at(equation: Equation, at: int, given: list, x: Any) -> list:
    return evaluated(equation, [*given[:at], x, *given[at + 1 :]])


def transposed(equation: Equation, at: int, inputs: Sequence) -> list[Matrix] | None:
    """Run the transpose on the numbers of the elements of the result."""
    rule, size = extend.rule_of(equation.primitive), equation.outvars[0].aval.size
    if not isinstance(rule, LinearRule) or len(equation.outvars) > 1:
        return None
    if (given := _coefficients(equation, at, inputs)) is None:
        return None
    found = moves(lambda numbers: _pulled(equation, at, given, numbers), size)
    return found and [selection(columns, size, is_read).T.tocsr() for columns, is_read in found]


def _pulled(equation: Equation, at: int, inputs: list, numbers: np.ndarray) -> list:
    """The cotangent of one input, of numbers as the cotangent of the result."""
    primitive, params = equation.primitive, equation.params
    symbol = extend.Linear(equation.invars[at].aval.update(dtype=np.dtype(np.int32)))
    given = [*inputs[:at], symbol, *inputs[at + 1 :]]
    out = numbers.reshape(equation.outvars[0].aval.shape)
    rule, params = extend.rule_of(primitive), primitive.get_bind_params(params)
    staged = extend.staged(lambda y: rule.transpose(primitive, [y], given, params)[at], out)
    return extend.interpret(staged.program, [out], evaluated)


# ---- indices -------------------------------------------------------------------------------------


def _of_gather(equation, inputs):
    return equation.params["dimension_numbers"].start_index_map


def _of_scatter(equation, inputs):
    return equation.params["dimension_numbers"].scatter_dims_to_operand_dims


READS: dict[Any, Callable] = {lax.gather_p: _of_gather}
WRITES: dict[Any, Callable] = {
    lax.scatter_p: _of_scatter,
    lax.scatter_add_p: _of_scatter,
}
RUNS_OVER = READS | WRITES
"""The dimensions of the operand over which unknown indices run."""


def with_unknown_indices(equation: Equation, at: int, inputs: Sequence) -> Matrix:
    """All elements along these dimensions are one class, of which any may be read or written."""
    operand, primitive = equation.invars[0].aval, equation.primitive
    if at == 0 and primitive in WRITES:  # an element that is not overwritten stays
        return identity(operand.size)
    first = np.arange(operand.size).reshape(operand.shape)
    for d in RUNS_OVER[primitive](equation, inputs):
        first = np.broadcast_to(first.take([0], d), operand.shape)
    given = _coefficients(equation, at, [*map(_anywhere, equation.invars, inputs)]) or []
    if primitive is lax.scatter_p:  # of several updates to one place any may be the one that stays
        equation = equation.replace(primitive=lax.scatter_add_p)
    run = _pulled if primitive in WRITES else _evaluated_at
    found = moves(lambda numbers: run(equation, at, given, numbers[first]), operand.size)
    if found is None:
        return dense(equation.outvars[0].aval.size, equation.invars[at].aval.size, equation)
    ((columns, is_read),) = found
    classes = selection(first.ravel(), operand.size)  # member -> the first of its class
    read = selection(columns, operand.size, is_read)
    return (classes @ read.T).tocsr() if primitive in WRITES else (read @ classes.T).tocsr()


def _anywhere(atom: Any, x: Any) -> Any:
    """An input, with zeros for indices that are not known."""
    zeros = np.zeros(atom.aval.shape, atom.aval.dtype)
    return x._replace(known=lambda: zeros) if is_unknown_index(atom, x) else x
