"""The transforms of Taylor mode: `jet` and `derivatives`.

    jet f (x_0, x_1, x_2, ...)  =  the coefficients of f(x_0 + x_1 t + x_2 t^2 + ...)

    derivatives f (x, v)        =  [d^k/dt^k f(x + t v) at t = 0, for k = 0, 1, ...]

Here the time grows with the square of the order.  Nested `jvp`s compute the same in a time that
doubles with each order.

Read next: `laplacian.py`, second derivatives in many directions at once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from math import factorial as factorial_of
from typing import Any

import jax.core
from jax import tree, typeof

from functrans import extend
from functrans.errors import checks, structures, wording
from functrans.extend import Zero
from functrans.rules import cast
from functrans.taylor.equations import coefficients
from functrans.taylor.streams import Stream, divided, scaled


def jet(
    fun: Callable,
    primals: Sequence,
    series: Sequence,
    order: int | None = None,
    factorial: bool = False,
) -> Any:
    """Push a Taylor series forward: from the coefficients of `x(t)` to those of `f(x(t))`.

    The coefficients are those of `t^k`, derivatives divided by `k!`. The time grows with the square
    of the order, while each further nested `jvp` doubles it.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      primals: a tuple or list with its arguments, `x_0`.
      series: a tuple or list with the structure of `primals`, and a list of coefficients `[x_1,
        x_2, ...]` in the place of each array. They have its shape and dtype; those that are missing
        are zero. An integer has none: `[]`.
      order: how many coefficients to compute after the value; by default, as many as the longest
        list has.
      factorial: whether the coefficients of inputs and results include the factor `k!`. Then they
        are derivatives, as in `jax.experimental.jet.jet`.

    Returns:
      `(output, series)`. The series has the structure of the output, with a list of `order`
      coefficients in the place of each array, of its shape and dtype.

    Raises:
      TypeError: if structures or dtypes differ, or `order` is not an integer.
      ValueError: if shapes differ, if `order` is negative, or if `fun` returns no array.

    See also:
      `derivatives`, along a straight line; `jvp`, for the first order.

    Sources: A. Griewank and A. Walther, Evaluating Derivatives (2008), chapter 13; J. Bettencourt,
    M. Johnson and D. Duvenaud, Taylor-mode automatic differentiation for higher-order derivatives
    in JAX (2019).

    >>> import jax.numpy as jnp, functrans as ft
    >>> y, (y_1, y_2, y_3) = ft.jet(jnp.exp, (0.0,), ([1.0],), order=3)
    >>> float(y), float(y_1), float(y_2), round(float(6 * y_3), 4)
    (1.0, 1.0, 0.5, 1.0)
    """
    checks.sequences("jet", primals, series, "series")
    settings = {"name": "jet", "order": order, "factorial": factorial}
    at = extend.transformed_at_primals(fun, _jet, **settings)
    return at(tuple(primals), tuple(series))


def _jet(fun: Callable, name: str, order: int | None, factorial: bool) -> Callable:
    def jet_at(primals, series):
        columns = columns_of(name, primals, series)
        longest = max(map(len, columns), default=1) - 1
        count = longest if order is None else order_of(name, order)
        scale = factorial_of if factorial else lambda _: 1
        columns = [[divided(x, scale(k)) for k, x in enumerate(column)] for column in columns]
        outs, result = pushed(fun, name, primals, columns, count)
        outs = [[scaled(y, scale(k)) for k, y in enumerate(column)] for column in outs]
        return result([y for y, *_ in outs]), result([rest for _, *rest in outs])

    return jet_at


def derivatives(fun: Callable, order: int) -> Callable[[Any, Any], list]:
    """Make a function that computes `fun` and its first `order` derivatives along a direction.

    Args:
      fun: a function of one array, or pytree of arrays, to the same.
      order: how many derivatives.

    Returns:
      A function of `x` and a direction `v`, of the structure, shapes and dtypes of `x`. It returns
      the list `[d^k/dt^k fun(x + t v) at t = 0, for k = 0, ..., order]`, each like `fun(x)`.

    Raises:
      TypeError: if the structures or dtypes of `x` and `v` differ, or `order` is not an integer.
      ValueError: if their shapes differ, if `order` is negative, or if `fun` returns no array.

    See also:
      `jet`, which takes a curve instead of a straight line.

    >>> import functrans as ft
    >>> [float(y) for y in ft.derivatives(lambda x: x**3, 4)(2.0, 1.0)]
    [8.0, 12.0, 12.0, 6.0, 0.0]
    """
    checks.is_function("derivatives", fun)
    order = order_of("derivatives", order)
    return extend.transformed_at_primals(fun, _derivatives, name="derivatives", order=order)


def _derivatives(fun: Callable, name: str, order: int) -> Callable:
    def derivatives_at(x, v):
        pairs = zip(tree.leaves(x), checks.tangents(x, v, name, "the direction"), strict=True)
        columns = [[x, typed_like(x, dot)] for x, dot in pairs]
        outs, result = pushed(fun, name, (x,), columns, order)
        return [result([scaled(y[k], factorial_of(k)) for y in outs]) for k in range(order + 1)]

    derivatives_at.__qualname__ = derivatives_at.__name__  # for the errors of Python
    return derivatives_at


def pushed(
    fun: Callable, name: str, args: tuple, columns: Sequence, order: int
) -> tuple[list, Callable]:
    """The coefficients of each leaf of the output, and the function from leaves to an output."""
    program = extend.staged(fun, *args)
    if not program.program.out_avals:
        raise wording.no_array(name, program.result([]))
    outs = coefficients(program.program, columns, order)
    streams = [Stream(aval, c) for aval, c in zip(program.program.out_avals, outs, strict=True)]
    results = [[extend.result(y[k]) for k in range(order + 1)] for y in streams]
    return results, program.result


def columns_of(name: str, primals: tuple, series: tuple) -> list[list]:
    """The coefficients of each leaf of the primals, itself first."""
    if len(primals) != len(series):
        raise TypeError(
            f"{name}: primals and series must have one entry for each argument, but they have "
            f"{len(primals)} and {len(series)}"
        )
    leaves, in_tree = tree.flatten(primals)
    types = checks.types(name, leaves, lambda: structures.leaves("primals", primals))
    try:
        given = in_tree.flatten_up_to(series)
    except ValueError as error:
        raise TypeError(
            f"{name}: the series must have the structure of the primals, with a list of "
            f"coefficients in the place of each array: {error}"
        ) from error
    labels = [label for label, _ in structures.leaves("series", tree.unflatten(in_tree, leaves))]
    columns = []
    for x, aval, label, terms in zip(leaves, types, labels, given, strict=True):
        if not isinstance(terms, (list, tuple)):
            raise TypeError(
                f"{name}: {label} must be a list of coefficients, [x_1, x_2, ...], but it is "
                f"{structures.described(terms)}"
            )
        avals, expected = [aval.to_tangent_aval()] * len(terms), checks.Expected(f"{name}: {label}")
        terms = checks.typed(expected, avals, terms, [*terms])
        columns.append([x, *(typed_like(x, term) for term in terms)])
    return columns


def typed_like(primal: Any, x: Any) -> Any:
    """The coefficient, in the weak type of its primal, if that is a Python number."""
    aval = typeof(primal).to_tangent_aval()
    return x if type(x) is Zero or typeof(x).weak_type == aval.weak_type else cast(x, aval)


def order_of(name: str, given: Any) -> int:
    """How many coefficients are asked for."""
    if not isinstance(given, jax.core.Tracer) and not hasattr(given, "__index__"):
        raise TypeError(
            f"{name}: order must be an integer, but it is {structures.described(given)}"
        )
    if operator.index(given) < 0:
        raise ValueError(f"{name}: order must not be negative, but it is {given}")
    return operator.index(given)
