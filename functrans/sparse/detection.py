"""Detection: which elements of the results depend on which elements of the inputs.

    detect : (a -> b), Type a  ->  Pattern of J

The pattern of `J` is that of the program `(x, x_dot) -> J x_dot`, which the rules write, so
detection needs no rules of its own.  The program is linear in `x_dot`, and for each of its
equations

    y_dot = A x_dot        rows(y) = A rows(x)                 in the algebra of or and and

where `rows(x)`, a sparse boolean matrix, says for each element of a value on which elements of the
input it depends, and A is the pattern of the equation (`local.py`).  A value that does not depend
on the tangents may be *known*: a mask, an index or the counter of a loop is known if it does not
depend on the inputs.

The Hessian of f is the Jacobian of its gradient.  It pairs two inputs where they meet in an
equation that is not linear, since the tangent of no other equation reads both.

Read next: `loops.py`, equations that carry programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import jax.core
import numpy as np
from jax import tree
from jax.extend.core import jaxprs_in_params
from scipy import sparse

from functrans import extend
from functrans.caches import DETECTING
from functrans.programs.strong import strong_zeros
from functrans.sparse import checks
from functrans.sparse.algebra import Matrix, check_size, dense, selection, times
from functrans.sparse.local import local
from functrans.sparse.numbers import Equation, evaluated
from functrans.transforms import jvp


class Value(NamedTuple):
    """A value of the tangent program, as far as it is known."""

    shape: tuple[int, ...]
    rows: Matrix | None = None
    """The inputs on which each element depends; `None` if there are none."""
    known: Callable | None = None
    """Gives the value, if it depends on no input at all."""

    @property
    def now(self) -> Any:
        """The value, or `None`."""
        return None if self.known is None else self.known()


def constant(x: Any) -> Value:
    is_traced = isinstance(x, jax.core.Tracer)
    return Value(np.shape(x), known=None if is_traced else lambda: x)


def detected(fun: Callable, likes: Sequence, argnum: int = 0) -> Matrix:
    """The pattern of the Jacobian of `fun` in one of its arguments, in the order of its leaves."""
    argnum = checks.position(argnum, len(likes))
    x = likes[argnum]

    def push(x_dot, *args):
        def moved(x):
            return fun(*args[:argnum], x, *args[argnum + 1 :])

        checks.real_input(fun, args, argnum)
        y, y_dot = jvp(moved, (args[argnum],), (x_dot,))
        checks.real_output(y)
        return y_dot

    # With strong zeros there are no more nonzeros, and other primitives.
    with strong_zeros(False), DETECTING(True):
        program: Any = extend.staged(push, x, *likes).program
    sizes = [prod(np.shape(leaf)) for leaf in tree.leaves(x)]
    shapes = [v.aval.shape for v in program.jaxpr.invars]
    columns, width = np.cumsum([0, *sizes]).tolist(), sum(sizes)
    dots = [
        Value(shape, selection(np.arange(start, start + size), width))
        for shape, start, size in zip(shapes, columns, sizes, strict=False)
    ]
    inputs = [*dots, *map(Value, shapes[len(sizes) :])]
    outs = extend.interpret(program, inputs, meaning, constant)
    rows = [no_rows(out.shape, width) if out.rows is None else out.rows for out in outs]
    return sparse.vstack(rows, format="csr") if rows else no_rows((0,), width)


def no_rows(shape: Sequence[int], width: int) -> Matrix:
    return sparse.csr_array((prod(shape), width), dtype=bool)


# ---- one equation --------------------------------------------------------------------------------


def meaning(equation: Equation, inputs: list[Value]) -> list[Value]:
    """The results of an equation, as far as they are known."""
    shapes = [v.aval.shape for v in equation.outvars]
    if all(x.rows is None for x in inputs):
        return still(equation, inputs)
    if (carries := CALLS.get(equation.primitive)) is not None:
        return carries(equation, inputs)
    if extend.is_elementwise(equation.primitive):
        return [Value(shapes[0], present(_elementwise(equation, inputs)))]
    found: list = [None] * len(shapes)
    moving = [(at, x) for at, x in enumerate(inputs) if x.rows is not None]
    patterns = [local(equation, at, inputs) for at, _ in moving]
    if None in patterns and (program := implementation(equation)):
        return extend.interpret(program, inputs, meaning, constant)
    for (at, x), known in zip(moving, patterns, strict=True):
        size = equation.invars[at].aval.size
        own = known or [dense(v.aval.size, size, equation) for v in equation.outvars]
        products = (times(pattern, x.rows, equation) for pattern in own)
        found = [union(a, b) for a, b in zip(found, products, strict=True)]
    return [Value(shape, present(rows)) for shape, rows in zip(shapes, found, strict=True)]


def implementation(equation: Equation) -> Any:
    """The program by which a primitive is evaluated, if it is one of other primitives."""
    primitive, params = equation.primitive, equation.params
    types = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]

    def evaluate(*xs):
        return primitive.impl(*xs, **primitive.get_bind_params(params))

    try:
        program = extend.staged(evaluate, *types).program
    except Exception:  # it is no function of arrays of JAX: it may raise anything
        return None
    return None if primitive in primitives_of(program) else program


def primitives_of(program: Any) -> set:
    inner = (jaxpr for e in program.eqns for jaxpr in jaxprs_in_params(e.params))
    return {e.primitive for e in program.eqns}.union(*map(primitives_of, inner))


def still(equation: Equation, inputs: list[Value]) -> list[Value]:
    """The results of an equation that no tangent reaches; they are computed when they are read."""
    shapes = [v.aval.shape for v in equation.outvars]
    if equation.effects or any(x.known is None for x in inputs):
        return [*map(Value, shapes)]

    @functools.cache
    def results():
        return evaluated(equation, [x.now for x in inputs])

    return [Value(shape, known=lambda i=i: results()[i]) for i, shape in enumerate(shapes)]


def union(a: Matrix | None, b: Matrix | None) -> Matrix | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b


def present(rows: Matrix | None) -> Matrix | None:
    return None if rows is None or rows.nnz == 0 else rows


# ---- elementwise ---------------------------------------------------------------------------------


def _elementwise(equation: Equation, inputs: list[Value]) -> Matrix | None:
    aval, total = equation.outvars[0].aval, None
    size = aval.size
    for at, x in enumerate(inputs):
        if x.rows is None:
            continue
        rows = x.rows
        if rows.shape[0] != size:  # dimensions of length 1 are repeated
            check_size(rows.nnz * (size // rows.shape[0]), equation)
            numbers = np.arange(rows.shape[0], dtype=np.int32).reshape(x.shape)
            rows = rows[np.broadcast_to(numbers, aval.shape).ravel()]
        kept = _mask(equation, at, inputs)
        if kept is not None:
            rows = selection(np.arange(size), size, kept) @ rows
        total = union(total, rows)
    return total


def _mask(equation: Equation, at: int, inputs: list[Value]) -> np.ndarray | None:
    """Where an equation that is linear in this input reads it, if known zeros can tell."""
    others = [x.now for x in inputs if x.rows is None]
    if any(x is None for x in others) or all(np.all(x) for x in others):
        return None
    given = [
        x.now if x.rows is None else np.full(x.shape, i == at, atom.aval.dtype)
        for i, (x, atom) in enumerate(zip(inputs, equation.invars, strict=True))
    ]
    (result,) = evaluated(equation, given)
    return np.broadcast_to(result != 0, equation.outvars[0].aval.shape).ravel()


CALLS: dict[Any, Callable[[Equation, list[Value]], list[Value]]] = {}
"""For equations that carry programs: a function of the equation and its inputs."""
