"""Jacobians and Hessians: a linear function at each vector of a basis.

    jacfwd f x = [ J e_1, ..., J e_n ]       one pushforward for each input      (n passes)
    jacrev f x = [ e_1^T J; ...; e_m^T J ]   one pullback for each output        (m passes)

    hessian = jacfwd . jacrev                hvp f x v = d/dt grad f (x + t v),  at t = 0

The passes go through the program together, by `jax.vmap`, or in chunks of `chunk_size`.

This is the end of the tour; `derivatives/` and `control_flow/` have the rules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, tree

from functrans import checks
from functrans import jaxpr as jx
from functrans.jit import Jitted
from functrans.transforms import grad, jvp, linearize, of_jitted, select, vjp


def basis_vector(leaves: Sequence, i: Any) -> list:
    """The `i`-th vector of the standard basis of the space of these arrays."""
    vectors, start = [], 0
    for leaf in leaves:
        aval = jx.typeof(leaf)
        place = jnp.arange(aval.size) + start
        vectors.append((place == i).astype(aval.dtype).reshape(aval.shape))
        start += aval.size
    return vectors


def over_basis(linear: Callable, leaves: Sequence, chunk_size: int | None) -> Any:
    """Stack `linear(e_i)` for every vector of the basis; at most `chunk_size` of them at a time."""
    dimension = sum(jx.typeof(leaf).size for leaf in leaves)

    def at(i):
        return linear(basis_vector(leaves, i))

    if chunk_size is None or chunk_size >= dimension:
        return jax.vmap(at)(jnp.arange(dimension))
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, but it is {chunk_size}")
    return lax.map(at, jnp.arange(dimension), batch_size=chunk_size)


def split_basis(stacked: Any, leaves: Sequence, axis: int) -> list:
    """Undo the stacking: the axis `axis` becomes, for each leaf, the axes of that leaf."""
    sizes = [jx.typeof(leaf).size for leaf in leaves]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    blocks = []
    for leaf, start, size in zip(leaves, starts, sizes, strict=True):
        block = lax.slice_in_dim(stacked, start, start + size, axis=axis)
        shape = stacked.shape
        blocks.append(block.reshape(*shape[:axis], *jnp.shape(leaf), *shape[axis + 1 :]))
    return blocks


def _forward(fun, argnums, has_aux, holomorphic, chunk_size, with_value):
    checks.is_function("jacfwd", fun)
    argnums = checks.argnums(argnums)

    @functools.wraps(fun, assigned=("__name__", "__qualname__"), updated=())
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        partial, selected = select("jacfwd", fun, args, kwargs, argnums)
        point = selected[0] if isinstance(argnums, int) else selected
        leaves, in_tree = tree.flatten(selected)
        for leaf in leaves:
            checks.forward_input("jacfwd", leaf, holomorphic)
        out, pushforward, *aux = linearize(partial, *selected, has_aux=has_aux)
        for leaf in tree.leaves(out):
            checks.output("jacfwd", leaf, holomorphic)

        def column(vector):
            return pushforward(*tree.unflatten(in_tree, vector))

        columns = over_basis(column, leaves, chunk_size)

        def blocks(columns_of_one):
            last = jnp.moveaxis(columns_of_one, 0, -1)
            return tree.unflatten(
                tree.structure(point), split_basis(last, leaves, last.ndim - 1)
            )

        return _result(out, tree.map(blocks, columns), aux, with_value)

    return jacobian_of


def _reverse(fun, argnums, has_aux, holomorphic, allow_int, chunk_size, with_value):
    checks.is_function("jacrev", fun)
    argnums = checks.argnums(argnums)

    @functools.wraps(fun, assigned=("__name__", "__qualname__"), updated=())
    def jacobian_of(*args: Any, **kwargs: Any) -> Any:
        partial, selected = select("jacrev", fun, args, kwargs, argnums)
        for leaf in tree.leaves(selected):
            checks.grad_input("jacrev", leaf, holomorphic, allow_int)
        out, pullback, *aux = vjp(partial, *selected, has_aux=has_aux)
        leaves, out_tree = tree.flatten(out)
        for leaf in leaves:
            checks.output("jacrev", leaf, holomorphic)

        def row(covector):
            pulled = pullback(tree.unflatten(out_tree, covector))
            return pulled[0] if isinstance(argnums, int) else pulled

        rows = over_basis(row, leaves, chunk_size)
        row_leaves, row_tree = tree.flatten(rows)
        blocks = zip(*(split_basis(r, leaves, 0) for r in row_leaves), strict=True)
        jacobian = tree.unflatten(out_tree, [tree.unflatten(row_tree, b) for b in blocks])
        return _result(out, jacobian, aux, with_value)

    return jacobian_of


def _result(out: Any, jacobian: Any, aux: Sequence, with_value: bool) -> Any:
    if with_value:
        return ((out, *aux) if aux else out), jacobian
    return (jacobian, *aux) if aux else jacobian


@of_jitted
def _jacfwd(fun, argnums, has_aux, holomorphic, chunk_size):
    return _forward(fun, argnums, has_aux, holomorphic, chunk_size, with_value=False)


@of_jitted
def _value_and_jacfwd(fun, argnums, has_aux, holomorphic, chunk_size):
    return _forward(fun, argnums, has_aux, holomorphic, chunk_size, with_value=True)


@of_jitted
def _jacrev(fun, argnums, has_aux, holomorphic, allow_int, chunk_size):
    return _reverse(fun, argnums, has_aux, holomorphic, allow_int, chunk_size, with_value=False)


@of_jitted
def _value_and_jacrev(fun, argnums, has_aux, holomorphic, allow_int, chunk_size):
    return _reverse(fun, argnums, has_aux, holomorphic, allow_int, chunk_size, with_value=True)


def jacfwd(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable:
    """The Jacobian, column by column in forward mode: for functions with few inputs.

    Args:
      fun: a function of arrays or pytrees of arrays to the same.
      argnums: the position, or positions, of the arguments with respect to which to differentiate.
      has_aux: whether `fun` returns a pair of its output and something not differentiated.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      chunk_size: push at most so many basis vectors through the program at a time; the result is
        the same and the peak of memory lower.

    Returns:
      A function of the same arguments that returns the Jacobian: the structure of the output, in
      it that of the input, and each leaf of shape `output.shape + input.shape`; or
      `(jacobian, aux)`.

    Raises:
      TypeError: if an input or output is not of a real dtype (complex, if `holomorphic`).

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.jacfwd(lambda x: x * x)(jnp.array([1.0, 2.0])).tolist()
    [[2.0, 0.0], [0.0, 4.0]]
    """
    return _jacfwd(fun, argnums, has_aux, holomorphic, chunk_size)


def value_and_jacfwd(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable:
    """As `jacfwd`, and the value from the same evaluation: `(value, jacobian)`.

    With `has_aux` it is `((value, aux), jacobian)`.

    >>> import jax.numpy as jnp, functrans as ft
    >>> value, jacobian = ft.value_and_jacfwd(jnp.square)(3.0)
    >>> float(value), float(jacobian)
    (9.0, 6.0)
    """
    return _value_and_jacfwd(fun, argnums, has_aux, holomorphic, chunk_size)


def jacrev(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable:
    """The Jacobian, row by row in reverse mode: for functions with few outputs.

    The arguments and the result are those of `jacfwd`; `allow_int` is that of `grad`.

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.jacrev(lambda x: x * x)(jnp.array([1.0, 2.0])).tolist()
    [[2.0, 0.0], [0.0, 4.0]]
    """
    return _jacrev(fun, argnums, has_aux, holomorphic, allow_int, chunk_size)


def value_and_jacrev(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable:
    """As `jacrev`, and the value from the same evaluation: `(value, jacobian)`.

    With `has_aux` it is `((value, aux), jacobian)`.

    >>> import jax.numpy as jnp, functrans as ft
    >>> value, jacobian = ft.value_and_jacrev(jnp.square)(3.0)
    >>> float(value), float(jacobian)
    (9.0, 6.0)
    """
    return _value_and_jacrev(fun, argnums, has_aux, holomorphic, allow_int, chunk_size)


jacobian = jacrev


def hessian(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable:
    """The matrix of second derivatives, forward over reverse; the arguments are those of `jacfwd`.

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.hessian(lambda x: x[0] * x[1] ** 2)(jnp.array([1.0, 2.0])).tolist()
    [[0.0, 4.0], [4.0, 2.0]]
    """
    first = jacrev(fun, argnums, has_aux, holomorphic, chunk_size=chunk_size)
    return jacfwd(first, argnums, has_aux, holomorphic, chunk_size=chunk_size)


def hvp(fun: Callable, x: Any, v: Any) -> Any:
    """The Hessian of a scalar function times a vector, at the cost of a few evaluations.

    Args:
      fun: a function of one array or pytree of arrays to a real scalar.
      x: where.
      v: the vector: the structure, shapes and dtypes of `x`.

    Returns:
      `H(x) v`, like `x`. Source: B. A. Pearlmutter, Fast exact multiplication by the Hessian,
      Neural Computation 6 (1994).

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.hvp(lambda x: x[0] * x[1] ** 2, jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])).tolist()
    [0.0, 4.0]
    """
    if isinstance(fun, Jitted) and fun.has_plain_arguments:
        return fun.transformed(_hvp_of)(x, v)
    return jvp(grad(fun), (x,), (v,))[1]


def _hvp_of(fun: Callable) -> Callable:
    return lambda x, v: hvp(fun, x, v)
