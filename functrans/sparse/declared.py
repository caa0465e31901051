"""Declared patterns: the user states the pattern of a function if its program does not show it.

    with_pattern : (a -> b), Pattern m n  ->  (a -> b)

While functrans detects a pattern, and only then, it replaces the derivatives of the function by
those of

    y  =  sin(P x)          P the pattern, as a matrix of zeros and ones

Element i depends on the x_j for which row i of P has a one, and on no other, to all orders: second
derivatives pair all of them.  The value of the function stays the same.

Read next: `coloring.py`, the columns or rows of one pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax, tree

from functrans.caches import DETECTING
from functrans.errors.checks import is_function
from functrans.sparse import checks
from functrans.sparse.patterns import Pattern


def with_pattern(fun: Callable, pattern: Any) -> Callable:
    """Declare the pattern of a function, if you know more than its program shows.

    It serves a solver whose result depends on few of its inputs, a computed index, a
    primitive or a callback of your own.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same; for a primitive, its `bind`.
      pattern: a `Pattern`, or a matrix that makes one. Its rows are the elements of the results,
        flat, and its columns those of all arguments, in the order of `jax.tree.leaves`.

    Returns:
      A function with the same results and the same derivatives. Each detection of a pattern takes
      the declared one in place of the program's, also inside other functions and loops, and to
      all orders. `jacobian(..., check=True)` finds out if it lacks a nonzero.

    Raises:
      TypeError: if `fun` is not a function.
      ValueError: if `pattern` is not a matrix; or, when a pattern is detected, if it is not as
        large as the Jacobian.

    See also:
      `jacobian` and `hessian`, whose `pattern=` declares the pattern of the whole function.

    Source: A. Griewank and A. Walther, Evaluating Derivatives (2008), chapter 7.

    >>> import jax.numpy as jnp, numpy as np, functrans as ft
    >>> def squared_in_order(x):  # you know that the elements are in order already, or nearly
    ...     return x[jnp.argsort(x)] ** 2
    >>> ft.sparse.jacobian_pattern(squared_in_order, jnp.zeros(6))
    Pattern(6 x 6, 36 nonzeros, 100.0%)
    >>> declared = ft.sparse.with_pattern(squared_in_order, np.eye(6) + np.eye(6, k=1))
    >>> ft.sparse.jacobian_pattern(lambda x: jnp.sin(declared(x)), jnp.zeros(6))
    Pattern(6 x 6, 11 nonzeros, 30.6%)
    """
    is_function("sparse.with_pattern", fun)
    known = Pattern(pattern)

    @functools.wraps(fun)
    def declared(*args, **kwargs):
        if not DETECTING.value:
            return fun(*args, **kwargs)
        return _standing_in(fun, known, args, kwargs)

    return declared


def _standing_in(fun: Callable, pattern: Pattern, args: tuple, kwargs: dict) -> Any:
    """The value of the function, with the derivatives of `sin(P x)`."""
    still_args, still_kwargs = tree.map(lax.stop_gradient, (args, kwargs))
    out = fun(*still_args, **still_kwargs)
    checks.has_arrays(out)
    outs, structure = tree.flatten(out)
    xs = [jnp.ravel(x).astype(float) for x in tree.leaves((args, kwargs))]
    checks.shape(pattern.shape, outs, xs, "pattern that with_pattern was given")
    m = pattern.shape[0]
    read = jnp.concatenate(xs)[pattern.columns]
    y = jnp.sin(jnp.zeros(m).at[pattern.rows].add(read))
    parts = jnp.split(y - lax.stop_gradient(y), np.cumsum([*map(jnp.size, outs)])[:-1].tolist())
    moved = [
        out + part.reshape(jnp.shape(out)).astype(jnp.result_type(out))
        for out, part in zip(outs, parts, strict=True)
    ]
    return tree.unflatten(structure, moved)
