"""Sparse Jacobians and Hessians: in as many passes as there are colors.

    jacobian : (a -> b), Type a  ->  (a -> the nonzeros of J)

    detect the pattern,   color it,   evaluate   J s  for each color (s is 1 at its columns),   read

A Hessian is the Jacobian of the gradient; each pass is forward over reverse.  All work that
depends on the pattern happens once; the rest is a program of arrays, like any other.

Read next: `../programs/__init__.py`, transformations of programs.
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
from functrans.errors.checks import is_function
from functrans.sparse import checks
from functrans.sparse.coloring import Coloring, color
from functrans.sparse.detection import detected
from functrans.sparse.patterns import Pattern
from functrans.transforms import grad, linearize, vjp

FORMATS = ("bcoo", "dense", "values")

CONSTANT = 1 << 20
"""Up to this many elements in all, the vectors are constants of the program."""


def jacobian_pattern(fun: Callable, *likes: Any, argnum: int = 0) -> Pattern:
    """Find the elements of the Jacobian that may differ from zero for some values of the arguments.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *likes: its arguments, or `jax.ShapeDtypeStruct`; their values do not matter.
      argnum: the position of the argument with respect to which to differentiate.

    Returns:
      A `Pattern`. It has a row for each element of the results and a column for each element of
      the argument, both flat, in the order of `jax.tree.leaves`.

    Raises:
      TypeError: if the argument or a result does not consist of real numbers.
      ValueError: if the pattern itself is too large, because it is not sparse.

    See also:
      `jacobian`, which evaluates these elements; `hessian_pattern`, for second derivatives.

    Source: A. Griewank and A. Walther, Evaluating Derivatives (2008), chapter 7.

    >>> import jax, functrans as ft
    >>> x = jax.ShapeDtypeStruct((6,), "float32")
    >>> ft.sparse.jacobian_pattern(lambda x: x[1:] - x[:-1] ** 2, x)
    Pattern(5 x 6, 10 nonzeros, 33.3%)
    """
    return Pattern(detected(fun, likes, argnum))


def hessian_pattern(fun: Callable, *likes: Any, argnum: int = 0) -> Pattern:
    """Find the elements of the Hessian of a scalar function that may differ from zero.

    Args:
      fun: a function of arrays, or pytrees of arrays, to a real scalar (shape `()`).
      *likes: its arguments, or `jax.ShapeDtypeStruct`; their values do not matter.
      argnum: the position of the argument with respect to which to differentiate.

    Returns:
      A symmetric `Pattern`, with a row and a column for each element of the argument, flat, in the
      order of `jax.tree.leaves`.

    Raises:
      TypeError: if `fun` does not return a scalar, or the argument does not consist of real
        numbers.
      ValueError: if the pattern itself is too large, because it is not sparse.

    See also:
      `hessian`, which evaluates these elements; `jacobian_pattern`, for first derivatives.

    >>> import jax, functrans as ft
    >>> x = jax.ShapeDtypeStruct((6,), "float32")
    >>> ft.sparse.hessian_pattern(lambda x: (x[1:] * x[:-1]).sum(), x)
    Pattern(6 x 6, 10 nonzeros, 27.8%)
    """
    matrix = detected(_gradient(fun, argnum), likes, argnum)
    return Pattern(matrix + matrix.T)


def _gradient(fun: Callable, argnum: int) -> Callable:
    @functools.wraps(fun)
    def energy(*args):
        out = fun(*args)
        checks.scalar(out)
        return out

    return grad(energy, argnums=argnum)


class SparseDerivative:
    """A function that computes the nonzeros of a Jacobian or a Hessian.

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
        """The structure of a `BCOO`; imported here, since this import takes a while."""
        from jax.experimental.sparse import BCOO

        options = {"indices_sorted": True, "unique_indices": True}
        with jax.ensure_compile_time_eval():
            data = jnp.zeros(self.pattern.nnz)
            return tree.structure(BCOO((data, self._indices), shape=self.pattern.shape, **options))

    def show(self, width: int = 48) -> None:
        """Print the pattern, at most `width` characters wide, and what the coloring saves."""
        self.coloring.show(width)

    def __repr__(self) -> str:
        return f"<sparse derivative of {self.__name__}: {self.coloring!r}>"


# ---- the nonzeros --------------------------------------------------------------------------------


def _values(fun: Callable, coloring: Coloring, argnum: int, order: int, check: bool) -> Callable:
    """A function of the same arguments to the nonzeros, and the deviation of a probe."""

    derived = fun if order == 1 else _gradient(fun, argnum)

    def values_at(*args):
        at = checks.position(argnum, len(args))
        checks.real_input(fun, args, at)
        x = args[at]

        def function(x):
            return derived(*args[:at], x, *args[at + 1 :])

        shape, found = coloring.pattern.shape, []
        if coloring.forward or check:
            out, push = linearize(function, x)
            _fits(shape, out, x)

            def column(seed):
                return _flat(push(_like(seed, x)))

            found += _compressed(column, coloring.columns, coloring.forward)
        if coloring.reverse:
            out, pull = vjp(function, x)
            _fits(shape, out, x)

            def row(seed):
                return _flat(pull(_like(seed, out))[0])

            found += _compressed(row, coloring.rows, coloring.reverse)
        data = _read(found, coloring.places)
        return (data, _deviation(coloring.pattern, data, column)) if check else data

    return values_at


def _compressed(product: Callable, colors: np.ndarray, count: int) -> list:
    """The products with a vector for each color: a matrix, or none if there is no color."""
    if not count:
        return []
    # XLA moves the elements of a constant once and for all, while it compiles; that takes long if
    # there are many of them.
    module: Any = np if count * colors.size <= CONSTANT else jnp
    seeds = jnp.asarray(colors == module.arange(count)[:, None], float)
    return [jax.vmap(product)(seeds)]


def _read(products: list, places: np.ndarray) -> Any:
    """The elements at these places of the matrices, which are counted row by row."""
    if not products:
        return jnp.zeros(0)
    if len(products) == 1:  # With two indices nothing is divided while the program runs.
        return products[0][np.divmod(places, products[0].shape[1])]
    return jnp.concatenate([jnp.ravel(x) for x in products])[places]


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


def _fits(shape: tuple, out: Any, x: Any) -> None:
    checks.real_output(out)
    checks.shape(shape, out, x)


# ---- the probe -----------------------------------------------------------------------------------


def _deviation(pattern: Pattern, data: Any, column: Callable) -> Any:
    """How far `J v`, computed from the nonzeros, is from the product itself: for each row, relative
    to the sum of its terms."""
    m, n = pattern.shape
    v = jnp.asarray(np.random.default_rng(0).normal(size=n), data.dtype)
    terms = data * v[pattern.columns]
    total, size = (jnp.zeros(m, data.dtype).at[pattern.rows].add(t) for t in (terms, abs(terms)))
    difference = abs(column(v) - total)
    return jnp.where(difference > 0, difference / jnp.maximum(size, jnp.finfo(data.dtype).tiny), 0)


def _checked(data: Any, deviation: Any) -> Any:
    """The nonzeros; an error if the pattern lacks some, or nan where nothing can raise it."""
    is_right = (deviation < jnp.sqrt(jnp.finfo(data.dtype).eps)).all()
    if isinstance(is_right, jax.core.Tracer):
        return jnp.where(is_right, data, jnp.nan)
    if not is_right:
        row = int(jnp.argmax(jnp.nan_to_num(deviation, nan=jnp.inf)))
        raise ValueError(
            f"functrans.sparse: the pattern does not fit the function: it lacks a nonzero of row "
            f"{row}, whose product with a vector differs from that of the derivative. Give a "
            "pattern that has it; or none, and it is detected."
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
    """Make a function that computes a sparse Jacobian in a few passes of forward or reverse mode.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *likes: its arguments, or `jax.ShapeDtypeStruct`; their values do not matter.
      argnum: the position of the argument with respect to which to differentiate.
      pattern: a `Pattern`, a `Coloring`, or a matrix; without it, functrans detects the pattern.
      mode: how to color the pattern, `"columns"`, `"rows"`, `"both"` or `"auto"`: see `color`.
      format: of the result: `"bcoo"`, `"dense"`, or `"values"`, the nonzeros in the order of the
        pattern, which goes row by row.
      check: whether to compare each result with the product of the Jacobian and a vector.

    Returns:
      A `SparseDerivative`: a function of the same arguments to the Jacobian, of shape `(m, n)`,
      with a row for each of the `m` elements of the results and a column for each of the `n`
      elements of the argument. It has a `pattern` and a `coloring`, and `show()` prints them. It is
      compiled if `fun` is.

    Raises:
      TypeError: if the argument or a result does not consist of real numbers.
      ValueError: if the Jacobian is far from sparse; or, with `check`, if the pattern lacks a
        nonzero. (Inside `jit`, which cannot raise such an error, the result is then nan.)

    See also:
      `functrans.jacfwd` and `functrans.jacrev`, for a dense matrix.

    Sources: A. R. Curtis, M. J. D. Powell and J. K. Reid, On the estimation of sparse Jacobian
    matrices, 1974; A. Griewank and A. Walther, Evaluating Derivatives (2008), chapters 7 and 8.

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
    """Make a function that computes the sparse Hessian of a scalar function in a few passes.

    Args:
      fun: a function of arrays, or pytrees of arrays, to a real scalar (shape `()`).
      *likes: its arguments, or `jax.ShapeDtypeStruct`; their values do not matter.
      argnum: the position of the argument with respect to which to differentiate.
      pattern: a symmetric `Pattern`, a `Coloring`, or a matrix; without it, functrans detects the
        pattern.
      format: of the result: `"bcoo"`, `"dense"`, or `"values"`, the nonzeros in the order of the
        pattern, which goes row by row.
      check: whether to compare each result with the product of the Hessian and a vector.

    Returns:
      A `SparseDerivative`: a function of the same arguments to the Hessian, of shape `(n, n)` for
      an argument of `n` elements; see `jacobian`. Each pass is forward mode over reverse mode.

    Raises:
      TypeError: as for `hessian_pattern`.
      ValueError: as for `jacobian`.

    See also:
      `functrans.hessian`, for a dense matrix; `functrans.hvp`, for products with vectors.

    Sources: T. F. Coleman and J. J. Moré, Estimation of sparse Hessian matrices and graph coloring
    problems, 1984; A. H. Gebremedhin, F. Manne and A. Pothen, SIAM Review 47 (2005).

    >>> import jax.numpy as jnp, functrans as ft
    >>> hessian = ft.sparse.hessian(lambda x: ((x[1:] - x[:-1]) ** 4).sum(), jnp.zeros(1000))
    >>> hessian.coloring
    Coloring(1,000 x 1,000: 3 forward-over-reverse passes instead of 1,000)
    """
    return _derivative(fun, likes, argnum, pattern, "symmetric", format, check, order=2)


def _derivative(fun, likes, argnum, pattern, mode, format, check, order) -> SparseDerivative:
    is_function("functrans.sparse", fun)
    if format not in FORMATS:
        raise ValueError(f"format must be one of {[*FORMATS]}, and is {format!r}")
    if pattern is None:
        find = jacobian_pattern if order == 1 else hessian_pattern
        pattern = find(fun, *likes, argnum=argnum)
    elif likes:
        _at_likes(fun, likes, argnum, order, pattern)
    coloring = pattern if isinstance(pattern, Coloring) else color(pattern, mode)
    if order == 1 and coloring.symmetric:
        raise ValueError(
            "functrans.sparse.jacobian: a symmetric coloring reads an element in the place of its "
            "mirror image, as only a Hessian allows: use functrans.sparse.hessian, or another mode"
        )
    if mode == "auto" and coloring.reverse and likes and not _has_reverse(fun, likes, argnum):
        coloring = color(coloring.pattern, "columns")
    return SparseDerivative(fun, coloring, argnum, order, format, check)


def _at_likes(fun: Callable, likes: tuple, argnum: int, order: int, pattern: Any) -> None:
    """Check a given pattern at once, if the arguments are known already."""
    given = pattern.pattern if isinstance(pattern, Coloring) else Pattern(pattern)

    def probe(*args):
        at = checks.position(argnum, len(args))
        checks.real_input(fun, args, at)
        out = fun(*args) if order == 1 else _gradient(fun, at)(*args)
        _fits(given.shape, out, args[at])
        return out

    extend.staged(probe, *likes)


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
