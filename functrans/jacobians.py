"""Jacobians and Hessians: a linear function at each vector of a basis.

    jacfwd f x = [ J e_1, ..., J e_n ]       one pushforward for each input      (n passes)
    jacrev f x = [ e_1^T J; ...; e_m^T J ]   one pullback for each output        (m passes)

    hessian = jacfwd . jacrev                hvp f x v = d/dt grad f (x + t v),  at t = 0

`jax.vmap` pushes all vectors of the basis at once, or `chunk_size` of them at a time.  All at once
they form the identity, and a matrix times the identity is the matrix, with no product to compute.

Read next: `adjoints.py`, derivatives of values inside a function; here the tour ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax, tree

from functrans import jaxpr as jx
from functrans import values
from functrans.errors import checks
from functrans.flat import Argnums, answer, select
from functrans.jit import transformed, transformed_at_primals
from functrans.programs.bases import first_products
from functrans.signatures import of_the_arguments, with_signature_of
from functrans.transforms import jvp, linearize, vjp, with_gradient


def basis_vector(avals: Sequence, i: Any) -> list:
    """The `i`-th vector of the standard basis of the space of arrays of these types."""

    def numbers(aval):
        return lax.reshape(jnp.arange(aval.size), aval.shape, out_sharding=values.sharding_of(aval))

    starts = [sum(a.size for a in avals[:k]) for k in range(len(avals))]
    pairs = zip(avals, starts, strict=True)
    return [(numbers(a) == i - start).astype(a.dtype) for a, start in pairs]


def over_basis(linear: Callable, avals: Sequence, chunk_size: int | None) -> Any:
    """Stack `linear(e_i)` for each vector of the basis, at most `chunk_size` of them at a time."""
    basis = jnp.arange(sum(a.size for a in avals))
    if chunk_size is None or checks.chunk_size(chunk_size) >= len(basis):
        rest, products = first_products(linear, avals)

        def at(i, *products):
            return jx.evaluate(rest, *basis_vector(avals, i), *products)

        return jax.vmap(at)(basis, *products)
    return lax.map(lambda i: linear(basis_vector(avals, i)), basis, batch_size=chunk_size)


def split_basis(stacked: Any, avals: Sequence, axis: int) -> list:
    """Undo the stacking: for each type, the axis `axis` becomes the axes of that type."""
    parts = lax.split(stacked, [a.size for a in avals], axis)
    before, after = stacked.shape[:axis], stacked.shape[axis + 1 :]
    return [part.reshape(before + a.shape + after) for part, a in zip(parts, avals, strict=True)]


def _jacobian(name: str, mode: Callable, fun: Callable, argnums: Any, **settings: Any) -> Callable:
    """A function to the Jacobian, for the public function of this name.

    `mode` is `linearize`, for columns, or `vjp`, for rows.
    """
    settings |= {"name": name, "mode": mode, "argnums": checks.argnums(argnums)}
    return transformed(fun, _jacobian_at, **settings)


def _jacobian_at(fun, name, mode, argnums, has_aux, chunk_size, holomorphic, allow_int=False):
    by_rows = mode is vjp

    def jacobian_at(*args, **kwargs):
        partial, selected = select(name, fun, args, kwargs, argnums)
        point = selected[0] if isinstance(argnums, int) else selected
        allowed = {"holomorphic": holomorphic, "complex_too": by_rows, "allow_int": allow_int}
        checks.inputs(name, fun, argnums, args, **allowed)
        out, linear, *aux = mode(partial, *selected, has_aux=has_aux)
        if by_rows or holomorphic:  # forward mode takes outputs of any dtype
            checks.outputs(name, out, holomorphic)
        out_tree, in_tree = tree.structure(out), tree.structure(point)
        with linear.width():
            if by_rows:
                rows = _blocks(linear, out, selected, 0, chunk_size)
                blocks = [[row[i] for row in rows] for i in range(out_tree.num_leaves)]
            else:
                blocks = _blocks(linear, selected, out, -1, chunk_size)
        jacobian = tree.unflatten(out_tree, [tree.unflatten(in_tree, row) for row in blocks])
        return answer(name, out, jacobian, aux)

    return of_the_arguments(fun, name, "Jacobian", jacobian_at)


def _blocks(linear: Any, source: Any, target: Any, axis: int, chunk_size: int | None) -> list:
    """For each leaf of `target`, its derivatives along the basis of each leaf of `source`.

    The axes of the basis are the first (`axis=0`: rows `e_i^T J`) or the last (`-1`: `J e_i`).
    """
    leaves, structure = tree.flatten(source)
    avals = [*map(jax.typeof, leaves)]

    def at(vector):
        return tree.leaves(linear.at(tree.unflatten(structure, vector)))

    stacked = map(_cast_like, over_basis(at, avals, chunk_size), tree.leaves(target))
    return [split_basis(jnp.moveaxis(x, 0, axis), avals, axis % x.ndim) for x in stacked]


def _cast_like(derivatives: Any, value: Any) -> Any:
    """As in JAX, keep the weak type of a Python number, and the dtype of integers."""
    aval = jax.typeof(value)
    same = values.is_differentiable(aval) and not aval.weak_type
    return derivatives if same else values.cast(derivatives, aval)


def value_and_jacfwd(
    fun: Callable,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable:
    """Make a function that computes `fun` and its Jacobian, column by column in forward mode.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      argnums: the position, or positions, of the arguments with respect to which to differentiate.
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      chunk_size: how many basis vectors to push at a time, or `None` for all of them. A small
        number saves memory, and changes no result.

    Returns:
      A function of the same arguments that returns `(value, jacobian)`, or
      `((value, aux), jacobian)`, from one evaluation of `fun`. The Jacobian is that of `jacfwd`.

    Raises:
      TypeError: as for `jacfwd`.
      ValueError: as for `jacfwd`.

    See also:
      `jacfwd`, for the Jacobian alone; `value_and_jacrev`, the same in reverse mode.

    >>> import jax.numpy as jnp, functrans as ft
    >>> value, jacobian = ft.value_and_jacfwd(jnp.square)(3.0)
    >>> float(value), float(jacobian)
    (9.0, 6.0)
    """
    settings = {"has_aux": has_aux, "chunk_size": chunk_size, "holomorphic": holomorphic}
    return _jacobian("value_and_jacfwd", linearize, fun, argnums, **settings)


@with_signature_of(value_and_jacfwd)
def jacfwd(**given: Any) -> Callable:
    """Make a function that computes the Jacobian of `fun`, column by column in forward mode.

    Forward mode suits a function with fewer inputs than outputs: `n` inputs take `n` passes,
    `jacfwd f x = [J e_1, ..., J e_n]`.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      argnums: the position, or positions, of the arguments with respect to which to differentiate.
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      chunk_size: how many basis vectors to push at a time, or `None` for all of them. A small
        number saves memory, and changes no result.

    Returns:
      A function of the same arguments that returns the Jacobian, or `(jacobian, aux)`. The Jacobian
      has the structure of the output; each leaf of it has the structure of the argument, with
      arrays of shape `output.shape + input.shape` and the dtype of the output.

    Raises:
      TypeError: if an argument is not of a real dtype (complex, if `holomorphic`).
      ValueError: if `chunk_size` is less than 1, or if `argnums` asks for an argument that is not
        there.

    See also:
      `jacrev`, for fewer outputs than inputs; `functrans.sparse.jacobian`, for a matrix with few
      nonzeros; `linearize`, for products with vectors of your own.

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.jacfwd(lambda x: x * x)(jnp.array([1.0, 2.0])).tolist()
    [[2.0, 0.0], [0.0, 4.0]]
    """
    return _jacobian("jacfwd", linearize, **given)


def value_and_jacrev(
    fun: Callable,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    *,
    chunk_size: int | None = None,
) -> Callable:
    """Make a function that computes `fun` and its Jacobian, row by row in reverse mode.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      argnums: the position, or positions, of the arguments with respect to which to differentiate.
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      allow_int: whether to allow integer arguments; their derivative is of dtype `float0`.
      chunk_size: how many basis vectors to pull back at a time, or `None` for all of them. A small
        number saves memory, and changes no result.

    Returns:
      A function of the same arguments that returns `(value, jacobian)`, or
      `((value, aux), jacobian)`, from one evaluation of `fun`. The Jacobian is that of `jacrev`.

    Raises:
      TypeError: as for `jacrev`.
      ValueError: as for `jacrev`.

    See also:
      `jacrev`, for the Jacobian alone; `value_and_jacfwd`, the same in forward mode.

    >>> import jax.numpy as jnp, functrans as ft
    >>> value, jacobian = ft.value_and_jacrev(jnp.square)(3.0)
    >>> float(value), float(jacobian)
    (9.0, 6.0)
    """
    settings = {"has_aux": has_aux, "chunk_size": chunk_size, "holomorphic": holomorphic}
    return _jacobian("value_and_jacrev", vjp, fun, argnums, allow_int=allow_int, **settings)


@with_signature_of(value_and_jacrev)
def jacrev(**given: Any) -> Callable:
    """Make a function that computes the Jacobian of `fun`, row by row in reverse mode.

    Reverse mode suits a function with fewer outputs than inputs: `m` outputs take `m` passes,
    `jacrev f x = [e_1^T J; ...; e_m^T J]`. `jacobian` is another name for it.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      argnums: the position, or positions, of the arguments with respect to which to differentiate.
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      allow_int: whether to allow integer arguments; their derivative is of dtype `float0`.
      chunk_size: how many basis vectors to pull back at a time, or `None` for all of them. A small
        number saves memory, and changes no result.

    Returns:
      A function of the same arguments that returns the Jacobian, or `(jacobian, aux)`. The Jacobian
      has the structure of the output; each leaf of it has the structure of the argument, with
      arrays of shape `output.shape + input.shape` and the dtype of the input.

    Raises:
      TypeError: if an argument holds integers, or if an output is not of a real dtype (complex, if
        `holomorphic`).
      ValueError: if `chunk_size` is less than 1, or if `argnums` asks for an argument that is not
        there.

    See also:
      `jacfwd`, for fewer inputs than outputs; `functrans.sparse.jacobian`, for a matrix with few
      nonzeros; `vjp`, for products with covectors of your own.

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.jacrev(lambda x: x * x)(jnp.array([1.0, 2.0])).tolist()
    [[2.0, 0.0], [0.0, 4.0]]
    """
    return _jacobian("jacrev", vjp, **given)


jacobian = jacrev


@with_signature_of(value_and_jacfwd)
def hessian(fun: Callable, **given: Any) -> Callable:
    """Make a function that computes the matrix of second derivatives of `fun`.

    In a formula, `hessian f = jacfwd (jacrev f)`: forward mode over reverse mode.

    Args:
      fun: a function of arrays, or pytrees of arrays, to a real scalar, or to several real numbers.
      argnums: the position, or positions, of the arguments with respect to which to differentiate.
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      chunk_size: how many basis vectors to push at a time, or `None` for all of them. A small
        number saves memory, and changes no result.

    Returns:
      A function of the same arguments that returns the Hessian, or `(hessian, aux)`. The Hessian
      has the structure of the output; each leaf of it has that of the argument, twice, with arrays
      of shape `output.shape + input.shape + input.shape`.

    Raises:
      TypeError: if an argument or an output is not of a real dtype (complex, if `holomorphic`).
      ValueError: if `chunk_size` is less than 1, or if `argnums` asks for an argument that is not
        there.

    See also:
      `hvp`, for products with vectors at a small part of the cost; `functrans.sparse.hessian`, for
      a matrix with few nonzeros; `laplacian`, for the sum over the diagonal.

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.hessian(lambda x: x[0] * x[1] ** 2)(jnp.array([1.0, 2.0])).tolist()
    [[0.0, 4.0], [4.0, 2.0]]
    """
    gradient = _jacobian("hessian", vjp, fun=fun, **given)
    return _jacobian("hessian", linearize, fun=gradient, **given)


def hvp(fun: Callable, x: Any, v: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Multiply the Hessian of a scalar function by a vector, at the cost of a few evaluations.

    In a formula, `hvp f x v = d/dt grad f (x + t v)` at `t = 0`: forward mode over reverse mode.

    Args:
      fun: a function to a real scalar (shape `()`), of an array or a pytree of arrays, and of any
        further arguments.
      x: the first argument of `fun`, at which to take the Hessian.
      v: the vector, of the structure, shapes and dtypes of `x`.
      *args: the further arguments of `fun`, which do not move, such as a batch of data.
      **kwargs: its keyword arguments.

    Returns:
      `H(x) v`, of the structure, shapes and dtypes of `x`, where `H` is the Hessian of `fun` in its
      first argument.

    Raises:
      TypeError: if `fun` does not return a real scalar, if `x` holds integers, or if the structures
        or dtypes of `x` and `v` differ.
      ValueError: if the shapes of `x` and `v` differ.

    See also:
      `hessian`, for the whole matrix.

    Source: B. A. Pearlmutter, Fast exact multiplication by the Hessian, Neural Computation 6
    (1994).

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.hvp(lambda x: x[0] * x[1] ** 2, jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0])).tolist()
    [0.0, 4.0]
    >>> float(ft.hvp(lambda x, y: y * x**3, 2.0, 1.0, 10.0))
    120.0
    """
    return transformed_at_primals(fun, _hvp)(x, v, *args, **kwargs)


def _hvp(fun: Callable) -> Callable:
    gradient = with_gradient("hvp", fun, 0, ())

    def hvp_at(x, v, /, *args, **kwargs):
        checks.inputs("hvp", fun, 0, (x,), complex_too=True)
        checks.tangents(x, v, "hvp", "v")
        return jvp(lambda x: gradient(x, *args, **kwargs), (x,), (v,))[1]

    return hvp_at
