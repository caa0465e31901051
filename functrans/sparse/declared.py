"""Patterns that a user declares, of functions whose programs say less than their authors know.

    with_pattern : (a -> b), Pattern m n  ->  (a -> b)

While a pattern is being detected, and only then, the function has in the place of its derivatives
those of

    y  =  sin(P x)          P the pattern, as a matrix of zeros and ones

where element i depends on those x_j that P says it does, on no other, and to any order: the second
derivatives of y_i pair all of these.  Its value stays that of the function.

Read next: `coloring.py`, what can be evaluated together.
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
    """The same function, of whose Jacobian the pattern is known.

    It serves where the program says less than its author knows: a solver whose result depends on
    few of its inputs, an index that is computed, a primitive or a callback of one's own.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same; for a primitive, its `bind`.
      pattern: a `Pattern`, or a matrix of which one can be made. Its rows are the elements of the
        results, flat, and its columns those of all arguments, in the order of `jax.tree.leaves`.

    Returns:
      A function that does the same, and has the same derivatives. `jacobian` and `hessian`, and
      what else detects a pattern, take this one in the place of what the program shows, also inside
      of other functions and loops. With `check=True` they tell if it lacks a nonzero.

    Raises:
      TypeError: if `fun` is not a function.
      ValueError: where it is called, if the pattern has another shape than the Jacobian.

    >>> import jax.numpy as jnp, numpy as np, functrans as ft
    >>> def nearest(x):  # its author knows that the elements are nearly in order
    ...     return x[jnp.clip(jnp.searchsorted(x, x), 0, 5)] ** 2
    >>> ft.sparse.jacobian_pattern(nearest, jnp.zeros(6))
    Pattern(6 x 6, 36 nonzeros, 100.0%)
    >>> declared = ft.sparse.with_pattern(nearest, np.eye(6) + np.eye(6, k=1))
    >>> ft.sparse.jacobian_pattern(lambda x: jnp.sin(declared(x)), jnp.zeros(6))
    Pattern(6 x 6, 11 nonzeros, 30.6%)

    Source: Griewank and Walther, *Evaluating Derivatives*, chapter 7.
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
