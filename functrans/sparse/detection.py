"""Detection: which elements of the results depend on which elements of the inputs.

    detect : (a -> b), Type a  ->  Pattern of J

The pattern of `J` is that of the program `(x, x_dot) -> J x_dot`, which the rules write, so
detection needs no rules of its own.  The program is linear in `x_dot`, and for each of its
equations

    y_dot = A x_dot        rows(y) = A rows(x)                 in the algebra of or and and

where `rows(x)`, a sparse boolean matrix, says for each element of a value on which elements of the
input it depends, and A is the pattern of the equation (`local.py`).  A value that does not depend
on the tangents may be *known*: a mask, an index or the counter of a loop is known if it does not
depend on the inputs.  If it is not known, its *support* says where it may differ from zero; linear
equations pass the support on as they pass on rows.

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
from jax import lax, tree
from jax.extend.core import jaxprs_in_params
from scipy import sparse

from functrans import extend
from functrans.caches import DETECTING
from functrans.programs.strong import strong_zeros
from functrans.rules import LINEAR, LinearRule
from functrans.sparse import checks
from functrans.sparse.algebra import Matrix, check_size, dense, selection, times
from functrans.sparse.local import local
from functrans.sparse.numbers import Equation, evaluated
from functrans.transforms import jvp

FILL = lax.GatherScatterMode.FILL_OR_DROP


class Value(NamedTuple):
    """A value of the tangent program, as far as it is known."""

    shape: tuple[int, ...]
    rows: Matrix | None = None
    """The inputs on which each element depends; `None` if no element depends on any."""
    known: Callable | None = None
    """A function that computes the value, if it depends on no input."""
    support: Callable | None = None
    """A function to the elements in which a value that is not known may differ from zero."""

    @property
    def now(self) -> Any:
        """The value, or `None`."""
        return None if self.known is None else self.known()

    @property
    def nonzero(self) -> np.ndarray | None:
        """Where the value may differ from zero; `None` if anywhere."""
        if self.known is None:
            return None if self.support is None else self.support()
        found = np.asarray(self.known()) != 0
        return None if found.all() else found


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

    # Strong zeros add no nonzeros, and would bring other primitives.
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
    """The program of other primitives that evaluates a primitive, if there is one."""
    primitive, params = equation.primitive, equation.params
    types = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in equation.invars]

    def evaluate(*xs):
        return primitive.impl(*xs, **primitive.get_bind_params(params))

    try:
        program = extend.staged(evaluate, *types).program
    except Exception:  # the implementation takes no tracers: it may raise anything
        return None
    return None if primitive in primitives_of(program) else program


def primitives_of(program: Any) -> set:
    inner = (jaxpr for e in program.eqns for jaxpr in jaxprs_in_params(e.params))
    return {e.primitive for e in program.eqns}.union(*map(primitives_of, inner))


def still(equation: Equation, inputs: list[Value]) -> list[Value]:
    """The results of an equation that no tangent reaches; they are computed when they are read."""
    shapes = [v.aval.shape for v in equation.outvars]
    if equation.effects or any(x.known is None for x in inputs):
        if len(shapes) == 1 and (group := _linear_in(equation)):
            return [Value(shapes[0], support=_support(equation, inputs, group))]
        return [*map(Value, shapes)]

    @functools.cache
    def results():
        return evaluated(equation, [x.now for x in inputs])

    return [Value(shape, known=lambda i=i: results()[i]) for i, shape in enumerate(shapes)]


def _linear_in(equation: Equation) -> Sequence[int]:
    """The inputs in which an equation is linear, jointly; a gather that fills is not."""
    primitive, count = equation.primitive, len(equation.invars)
    fills = primitive is lax.gather_p and equation.params["mode"] == FILL
    if fills or not jax.dtypes.issubdtype(equation.outvars[0].aval.dtype, np.inexact):
        return ()
    rule = extend.rule_of(primitive)
    if isinstance(rule, LinearRule):
        return rule.places(count)
    if rule.is_linear(count):
        return range(count)
    partials = enumerate(getattr(rule, "partials", ()))
    return [i for i, partial in partials if partial is LINEAR][:1]


# A linear equation passes a support on as it passes rows on: a support has one column.
def _support(equation: Equation, inputs: list[Value], group: Sequence[int]) -> Callable | None:
    if all(x.known is None and x.support is None for x in inputs):
        return None

    @functools.cache
    def support():
        places = [x.nonzero for x in inputs]
        if all(place is None for place in places):
            return None
        given = [
            x._replace(rows=_column(x, place)) if i in group else x
            for i, (x, place) in enumerate(zip(inputs, places, strict=True))
        ]
        try:
            (result,) = meaning(equation, given)
        except ValueError:  # its pattern is too large
            return None
        found = np.zeros(prod(result.shape), bool)
        if result.rows is not None:
            found[np.diff(result.rows.indptr) > 0] = True
        return None if found.all() else found.reshape(result.shape)

    return support


def _column(x: Value, place: np.ndarray | None) -> Matrix | None:
    found = np.ones(x.shape, bool) if place is None else place
    return present(sparse.csr_array(found.reshape(-1, 1)))


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
    """The elements of the result that read this input, as far as known zeros tell."""
    still = [(x, v) for x, v in zip(inputs, equation.invars, strict=True) if x.rows is None]
    if any(
        x.known is None and not jax.dtypes.issubdtype(v.aval.dtype, np.inexact) for x, v in still
    ):
        return None
    if all(x.nonzero is None for x, _ in still):
        return None
    given = [
        np.full(x.shape, i == at, atom.aval.dtype) if x.rows is not None else coefficient(x, atom)
        for i, (x, atom) in enumerate(zip(inputs, equation.invars, strict=True))
    ]
    (result,) = evaluated(equation, given)
    return np.broadcast_to(result != 0, equation.outvars[0].aval.shape).ravel()


def coefficient(x: Value, atom: Any) -> Any:
    """Numbers that are not zero where an input may differ from zero."""
    if x.known is not None:
        return x.now
    found = np.ones(x.shape, bool) if x.nonzero is None else x.nonzero
    return found.astype(atom.aval.dtype)


CALLS: dict[Any, Callable[[Equation, list[Value]], list[Value]]] = {}
"""A function of the equation and its inputs, for each primitive that carries programs."""
