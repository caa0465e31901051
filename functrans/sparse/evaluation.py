"""Sparse Jacobians and Hessians: in as many passes as there are colors.

    jacobian : (a -> b), Type a  ->  (a -> the nonzeros of J)

    detect the pattern,   color it,   evaluate   J s  for each color (s is 1 at its columns),   read

A Hessian is the Jacobian of the gradient, of which each pass is forward over reverse.  All that
depends on the pattern is done once; what is left is a program of arrays, like any other.

Read next: `../programs/__init__.py`, what is done to programs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.core
import jax.numpy as jnp
import numpy as np
from jax import tree

from functrans import extend
from functrans.sparse.coloring import Coloring, color
from functrans.sparse.detection import detected
from functrans.sparse.patterns import Pattern
from functrans.transforms import grad, linearize, vjp

FORMATS = ("bcoo", "dense", "values")

CONSTANT = 1 << 20
"""How many elements the vectors may have, all together, that stand in a program as constants."""


def jacobian_pattern(fun: Callable, *likes: Any, argnum: int = 0) -> Pattern:
    """Which elements of the Jacobian may differ from zero, for any values of the arguments.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *likes: its arguments, or `jax.ShapeDtypeStruct`; their values do not matter.
      argnum: the argument with respect to which to differentiate.

    Returns:
      A `Pattern`; its rows are the elements of the results, flat, and its columns those of the
      argument, both in the order of `jax.tree.leaves`.

    Raises:
      TypeError: if the argument or a result is not of real numbers.
      ValueError: if the Jacobian is so large, and so far from sparse, that its pattern would be.

    >>> import jax, functrans as ft
    >>> x = jax.ShapeDtypeStruct((6,), "float32")
    >>> ft.sparse.jacobian_pattern(lambda x: x[1:] - x[:-1] ** 2, x)
    Pattern(5 x 6, 10 nonzeros, 33.3%)

    Source: Griewank and Walther, *Evaluating Derivatives*, chapter 7.
    """
    return Pattern(detected(fun, likes, argnum))


def hessian_pattern(fun: Callable, *likes: Any, argnum: int = 0) -> Pattern:
    """Which elements of the Hessian of a scalar function may differ from zero.

    Args:
      fun: a function of arrays, or pytrees of arrays, to a real scalar.
      *likes: its arguments, or `jax.ShapeDtypeStruct`; their values do not matter.
      argnum: the argument with respect to which to differentiate.

    Returns:
      A symmetric `Pattern`, in the order of `jax.tree.leaves`.

    >>> import jax, functrans as ft
    >>> x = jax.ShapeDtypeStruct((6,), "float32")
    >>> ft.sparse.hessian_pattern(lambda x: (x[1:] * x[:-1]).sum(), x)
    Pattern(6 x 6, 10 nonzeros, 27.8%)
    """
    matrix = detected(grad(fun, argnums=argnum), likes, argnum)
    return Pattern(matrix + matrix.T)


class SparseDerivative:
    """A function that evaluates the nonzeros of a Jacobian or a Hessian.

    Attributes:
      pattern: the `Pattern`.
      coloring: the `Coloring`.
      values: the function to the nonzeros alone, in the order of the pattern.
    """

    def __init__(self, fun, coloring, argnum, order, format, check):
        self.__name__ = getattr(fun, "__name__", type(fun).__name__)
        self.pattern, self.coloring, self.format = coloring.pattern, coloring, format
        self.checks = check
        settings = {"coloring": coloring, "argnum": argnum, "order": order, "check": check}
        self.values = extend.transformed(fun, _values, **settings)

    def __call__(self, *args: Any) -> Any:
        data, *deviations = self.values(*args) if self.checks else [self.values(*args)]
        if deviations:
            data = _checked(data, deviations[0])
        if self.format == "values":
            return data
        i, j = self.pattern.rows, self.pattern.columns
        if self.format == "dense":
            return jnp.zeros(self.pattern.shape, data.dtype).at[i, j].set(data)
        return tree.unflatten(self._structure, (data, self._indices))

    @functools.cached_property
    def _indices(self) -> Any:
        with jax.ensure_compile_time_eval():
            return jnp.stack([self.pattern.rows, self.pattern.columns], axis=1)

    @functools.cached_property
    def _structure(self) -> Any:
        """That of a `BCOO`, which is imported where it is needed: it takes a while."""
        from jax.experimental.sparse import BCOO

        options = {"indices_sorted": True, "unique_indices": True}
        with jax.ensure_compile_time_eval():
            data = jnp.zeros(self.pattern.nnz)
            return tree.structure(BCOO((data, self._indices), shape=self.pattern.shape, **options))

    def show(self, width: int = 48) -> None:
        """Print the pattern, and what the coloring saves."""
        self.coloring.show(width)

    def __repr__(self) -> str:
        return f"<sparse derivative of {self.__name__}: {self.coloring!r}>"


# ---- the nonzeros --------------------------------------------------------------------------------


def _values(fun: Callable, coloring: Coloring, argnum: int, order: int, check: bool) -> Callable:
    """A function of the same arguments to the nonzeros, and how far a probe deviates."""

    def values_at(*args):
        x = args[argnum]
        derived = fun if order == 1 else grad(fun, argnums=argnum)

        def function(x):
            return derived(*args[:argnum], x, *args[argnum + 1 :])

        shape, found = coloring.pattern.shape, []
        if coloring.forward or check:
            out, push = linearize(function, x)
            _require_shape(shape, out, x)

            def column(seed):
                return _flat(push(_like(seed, x)))

            found += _compressed(column, coloring.columns, coloring.forward)
        if coloring.reverse:
            out, pull = vjp(function, x)
            _require_shape(shape, out, x)

            def row(seed):
                return _flat(pull(_like(seed, out))[0])

            found += _compressed(row, coloring.rows, coloring.reverse)
        data = jnp.concatenate(found)[coloring.places] if found else jnp.zeros(0)
        return (data, _deviation(coloring.pattern, data, column)) if check else data

    return values_at


def _compressed(product: Callable, colors: np.ndarray, count: int) -> list:
    """The products with a vector for each color, flat, one after another."""
    if not count:
        return []
    # XLA moves the elements of a constant once and for all, while it compiles; that takes long if
    # there are many of them.
    module: Any = np if count * colors.size <= CONSTANT else jnp
    seeds = jnp.asarray(colors == module.arange(count)[:, None], float)
    return [jax.vmap(product)(seeds).ravel()]


def _flat(x: Any) -> Any:
    return jnp.concatenate([jnp.ravel(leaf) for leaf in tree.leaves(x)])


def _like(flat: Any, x: Any) -> Any:
    """A flat vector as a tree of arrays like `x`."""
    leaves, structure = tree.flatten(x)
    ends = np.cumsum([jnp.size(leaf) for leaf in leaves])[:-1].tolist()
    parts = jnp.split(flat, ends)
    pairs = zip(parts, leaves, strict=True)
    return tree.unflatten(
        structure, [p.reshape(jnp.shape(leaf)).astype(jnp.result_type(leaf)) for p, leaf in pairs]
    )


def _require_shape(shape: tuple, out: Any, x: Any) -> None:
    m, n = (sum(jnp.size(leaf) for leaf in tree.leaves(part)) for part in (out, x))
    if (m, n) != shape:
        raise ValueError(f"functrans.sparse: the pattern is {shape}, and the Jacobian {(m, n)}")


# ---- the probe -----------------------------------------------------------------------------------


def _deviation(pattern: Pattern, data: Any, column: Callable) -> Any:
    """How far `J v`, from the nonzeros, is from the product itself: for each row, in relation to
    the sum of its terms."""
    m, n = pattern.shape
    v = jnp.asarray(np.random.default_rng(0).normal(size=n), data.dtype)
    terms = data * v[pattern.columns]
    total, size = (jnp.zeros(m, data.dtype).at[pattern.rows].add(t) for t in (terms, abs(terms)))
    difference = abs(column(v) - total)
    return jnp.where(difference > 0, difference / jnp.maximum(size, jnp.finfo(data.dtype).tiny), 0)


def _checked(data: Any, deviation: Any) -> Any:
    """The nonzeros; an error if the pattern lacks some, or `nan` where none can be raised."""
    is_right = (deviation < jnp.sqrt(jnp.finfo(data.dtype).eps)).all()
    if isinstance(is_right, jax.core.Tracer):
        return jnp.where(is_right, data, jnp.nan)
    if not is_right:
        row = int(jnp.argmax(jnp.nan_to_num(deviation, nan=jnp.inf)))
        raise ValueError(
            f"functrans.sparse: the pattern does not fit the function: the product of row {row} "
            "of its matrix with a vector differs from that of the Jacobian."
        )
    return data


# ---- the transforms ------------------------------------------------------------------------------


def jacobian(
    fun: Callable,
    *likes: Any,
    argnum: int = 0,
    pattern: Any = None,
    mode: str = "auto",
    format: str = "bcoo",
    check: bool = False,
) -> SparseDerivative:
    """The sparse Jacobian of a function, in a few passes of forward or reverse mode.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *likes: its arguments, or `jax.ShapeDtypeStruct`; their values do not matter.
      argnum: the argument with respect to which to differentiate.
      pattern: a `Pattern`, a `Coloring`, or a matrix; without it, the pattern is detected.
      mode: how to color it, `"columns"`, `"rows"`, `"both"` or `"auto"`: see `color`.
      format: of the result: `"bcoo"`, `"dense"`, or `"values"`, the nonzeros in the order of the
        pattern, which goes row by row.
      check: whether each result is compared with the product of the Jacobian with a vector.

    Returns:
      A function of the same arguments to the Jacobian, with a row for each element of the results
      and a column for each element of the argument. It has a `pattern` and a `coloring`, and
      `show()` prints them. It is compiled if `fun` is.

    Raises:
      TypeError: if the argument or a result is not of real numbers.
      ValueError: if the Jacobian is far from sparse; or, with `check`, if the pattern lacks a
        nonzero. (Inside of `jit`, where none can be raised, the result is then `nan`.)

    >>> import jax.numpy as jnp, functrans as ft
    >>> def residual(u):
    ...     u = jnp.pad(u, 1)
    ...     return u[2:] - 2 * u[1:-1] + u[:-2] + jnp.exp(u[1:-1])
    >>> u = jnp.zeros(1000)
    >>> jacobian = ft.sparse.jacobian(residual, u)
    >>> jacobian.coloring
    Coloring(1,000 x 1,000: 3 forward passes instead of 1,000)
    >>> jacobian(u)
    BCOO(float32[1000, 1000], nse=2998)

    Sources: Curtis, Powell and Reid, *On the estimation of sparse Jacobian matrices*, 1974;
    Griewank and Walther, *Evaluating Derivatives*, chapters 7 and 8.
    """
    return _derivative(fun, likes, argnum, pattern, mode, format, check, order=1)


def hessian(
    fun: Callable,
    *likes: Any,
    argnum: int = 0,
    pattern: Any = None,
    format: str = "bcoo",
    check: bool = False,
) -> SparseDerivative:
    """The sparse Hessian of a scalar function, in a few passes of forward over reverse mode.

    Args:
      fun: a function of arrays, or pytrees of arrays, to a real scalar.
      *likes: its arguments, or `jax.ShapeDtypeStruct`; their values do not matter.
      argnum: the argument with respect to which to differentiate.
      pattern: a symmetric `Pattern`, a `Coloring`, or a matrix; without it, it is detected.
      format: of the result: `"bcoo"`, `"dense"`, or `"values"`, the nonzeros in the order of the
        pattern, which goes row by row.
      check: whether each result is compared with the product of the Hessian with a vector.

    Returns:
      A function of the same arguments to the Hessian; see `jacobian`.

    >>> import jax.numpy as jnp, functrans as ft
    >>> hessian = ft.sparse.hessian(lambda x: ((x[1:] - x[:-1]) ** 4).sum(), jnp.zeros(1000))
    >>> hessian.coloring
    Coloring(1,000 x 1,000: 3 forward-over-reverse passes instead of 1,000)

    Sources: Coleman and Moré, *Estimation of sparse Hessian matrices and graph coloring problems*,
    1984; Gebremedhin, Manne and Pothen, SIAM Review 47, 2005.
    """
    return _derivative(fun, likes, argnum, pattern, "symmetric", format, check, order=2)


def _derivative(fun, likes, argnum, pattern, mode, format, check, order) -> SparseDerivative:
    if format not in FORMATS:
        raise ValueError(f"format must be one of {[*FORMATS]}, and is {format!r}")
    if pattern is None:
        find = jacobian_pattern if order == 1 else hessian_pattern
        pattern = find(fun, *likes, argnum=argnum)
    coloring = pattern if isinstance(pattern, Coloring) else color(pattern, mode)
    if mode == "auto" and coloring.reverse and likes and not _has_reverse(fun, likes, argnum):
        coloring = color(coloring.pattern, "columns")
    return SparseDerivative(fun, coloring, argnum, order, format, check)


def _has_reverse(fun: Callable, likes: tuple, argnum: int) -> bool:
    """Whether there is a reverse mode: a rule of the user's, or a kernel, may have none."""

    def pulled(*args):
        out, pull = vjp(lambda x: fun(*args[:argnum], x, *args[argnum + 1 :]), args[argnum])
        return pull(out)

    try:
        extend.staged(pulled, *likes)
    except (NotImplementedError, TypeError, ValueError):
        return False
    return True
