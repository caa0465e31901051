"""Symbols in the place of arrays, and the arithmetic of tangents.

    Zero      a tangent or a cotangent that is known to be zero
    Linear    an input that has no value, because the equation is linear in it

    0 + x = x             0 x = 0             no array is made for a `Zero`

Interpreters keep a list in which some tangents are zero as two things: flags, which say of each
tangent whether it moves (is not known to be zero), and the list of those that move.  A rule sees
`Zero`s instead.

Read next: `jaxpr.py`, the programs that compute with values.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Literal, Var
from jax.extend.core.primitives import add_jaxvals_p, convert_element_type_p

Flags = tuple[bool, ...]
"""A boolean for each item of a list: whether it moves, or is linear, or is known."""

typeof = jax.typeof


class _Symbol:
    """Has the type of an array, and no value."""

    def __init__(self, aval: Any):
        self.aval = aval

    shape = property(lambda self: self.aval.shape)
    dtype = property(lambda self: self.aval.dtype)
    ndim = property(lambda self: self.aval.ndim)

    def __repr__(self):
        return f"{type(self).__name__}({self.aval.str_short()})"


class Zero(_Symbol):
    """A tangent or a cotangent that is known to be zero: never multiplied, never added.

    It has the `aval`, `shape`, `dtype` and `ndim` of the array for which it stands.
    """

    @classmethod
    def like(cls, primal: Any) -> Zero:
        """The zero tangent of a value."""
        return cls(tangent_aval(typeof(primal)))


class Linear(_Symbol):
    """In a transpose: an input in which the equation is linear.

    It has the `aval`, `shape`, `dtype` and `ndim` of the array for which it stands, and no value.
    """


# ---- types ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4096)
def tangent_aval(aval: Any) -> Any:
    """The type of the tangents of values of this type."""
    return aval.to_tangent_aval()


@functools.lru_cache(maxsize=4096)
def cotangent_aval(aval: Any) -> Any:
    """The type of the cotangents of values of this type; for integers too, in linear functions."""
    bar = aval.to_ct_aval()
    return aval if bar.dtype == jax.dtypes.float0 else bar


@functools.lru_cache(maxsize=4096)
def is_differentiable(aval: Any) -> bool:
    """Whether values of this type have tangents: floating-point and complex numbers do."""
    return getattr(tangent_aval(aval), "dtype", jax.dtypes.float0) != jax.dtypes.float0


def aval_of(x: Any) -> Any:
    """The type of an atom, a symbol, or a value."""
    return x.aval if isinstance(x, (Var, Literal, _Symbol)) else typeof(x)


def is_value(x: Any) -> bool:
    """Whether JAX takes `x` for an array or a scalar."""
    try:
        typeof(x)
    except TypeError:
        return False
    return True


# ---- lists in which some tangents are zero -------------------------------------------------------


def moving(tangents: Iterable) -> Flags:
    """Tell which tangents are not known to be zero.

    Args:
      tangents: arrays, and a `Zero` for each tangent that is known to be zero.

    Returns:
      A tuple of booleans.

    >>> from functrans import extend
    >>> extend.moving([1.0, extend.Zero.like(2.0)])
    (True, False)
    """
    return tuple([type(t) is not Zero for t in tangents])


def linear(inputs: Iterable) -> Flags:
    """Which of the inputs have no value."""
    return tuple([type(x) is Linear for x in inputs])


def pick(xs: Iterable, flags: Iterable[bool]) -> list:
    """Pick the entries that have the flag.

    Args:
      xs: a list.
      flags: a boolean for each entry.

    Returns:
      A list of these entries, in order.

    >>> from functrans import extend
    >>> extend.pick("abc", [True, False, True])
    ['a', 'c']
    """
    return list(compress(xs, flags))


def part(xs: Iterable, flags: Sequence[bool]) -> tuple[list, list]:
    """Part a list into the entries without the flag, and those with it.

    Args:
      xs: a list.
      flags: a boolean for each entry.

    Returns:
      Two lists; `merge` is the inverse.

    >>> from functrans import extend
    >>> extend.part("abc", [True, False, True])
    (['b'], ['a', 'c'])
    """
    xs = list(xs)
    return pick(xs, [not flag for flag in flags]), pick(xs, flags)


def merge(unflagged: Iterable, flagged: Iterable, flags: Sequence[bool]) -> list:
    """Merge two lists into one: the inverse of `part`.

    Args:
      unflagged: the entries without the flag, in order.
      flagged: the entries with the flag, in order.
      flags: a boolean for each entry of the result.

    Returns:
      A list.

    >>> from functrans import extend
    >>> extend.merge("b", "ac", [True, False, True])
    ['a', 'b', 'c']
    """
    rest, some = iter(unflagged), iter(flagged)
    return [next(some if flag else rest) for flag in flags]


def with_zeros(tangents: Iterable, flags: Sequence[bool], avals: Sequence) -> list:
    """Fill a list of tangents with a `Zero` for each one that is not there.

    Args:
      tangents: the tangents that have the flag, in order.
      flags: a boolean for each entry of the result.
      avals: the type of the value that each entry is a tangent of.

    Returns:
      A list; `moving` tells which of its entries are arrays.

    >>> import jax
    >>> from functrans import extend
    >>> extend.with_zeros([5.0], (False, True), [jax.typeof(1.0), jax.typeof(2.0)])
    [Zero(float32[]), 5.0]
    """
    given = iter(tangents)
    pairs = zip(flags, avals, strict=True)
    return [next(given) if flag else Zero(tangent_aval(aval)) for flag, aval in pairs]


# ---- arrays for symbols --------------------------------------------------------------------------


def zeros(aval: Any) -> Any:
    """The array of zeros of a tangent type; for integers, NumPy's `float0` array."""
    if aval.dtype == jax.dtypes.float0:
        return np.zeros(aval.shape, jax.dtypes.float0)
    return full(0, aval)


def full(value: Any, aval: Any) -> Any:
    """An array of this type, and of its sharding, with the value in every element."""
    scalar, sharding = constant(value, aval), sharding_of(aval)
    return varying_as(lax.broadcast_in_dim(scalar, aval.shape, (), out_sharding=sharding), aval)


def sharding_of(aval: Any, order: Sequence[int | None] | None = None) -> Any:
    """The explicit sharding of a type, or `None`, with its dimensions in this order; a `None` in
    the order stands for a new dimension."""
    sharding = aval.sharding
    if sharding is None or sharding.mesh.empty:
        return None
    dimensions = range(aval.ndim) if order is None else order
    spec = [None if d is None else sharding.spec[d] for d in dimensions]
    return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec(*spec))


def instantiate(x: Any) -> Any:
    """Make an array of zeros of a `Zero`; return anything else unchanged.

    Args:
      x: a tangent or a cotangent, or a `Zero` in its place.

    Returns:
      An array of the shape and dtype of `x` (of dtype `float0` for integers).

    >>> import jax.numpy as jnp
    >>> from functrans import extend
    >>> extend.instantiate(extend.Zero.like(jnp.ones(2))).tolist()
    [0.0, 0.0]
    """
    return zeros(x.aval) if type(x) is Zero else x


def result(x: Any) -> Any:
    """Make an array of anything that a transform may return, a `Zero` or a number too.

    Args:
      x: an array, a number, or a `Zero`.

    Returns:
      An array of the shape and dtype of `x`.

    >>> from functrans import extend
    >>> float(extend.result(2.0)), float(extend.result(extend.Zero.like(2.0)))
    (2.0, 0.0)
    """
    x = instantiate(x)
    return jnp.asarray(x) if isinstance(x, (int, float, complex, np.generic)) else x


def constant(value: Any, aval: Any) -> Any:
    """A scalar constant of a type, as a literal; for a weak type, a Python number."""
    scalar = aval.dtype.type(value)
    is_plain = aval.weak_type and typeof(scalar.item()).dtype == aval.dtype
    return scalar.item() if is_plain else scalar


def cast(x: Any, aval: Any) -> Any:
    """Convert to the dtype of a type, and make it weak, as a Python number is, if the type is."""
    return convert_element_type_p.bind(
        x, new_dtype=aval.dtype, weak_type=aval.weak_type, sharding=None
    )


def varying_as(x: Any, aval: Any) -> Any:
    """Copy to the devices of the mesh axes over which values of this type vary."""
    kind = getattr(aval, "manual_axis_type", None)  # only types of arrays have one
    if type(x) is Zero or not (kind and kind.varying):
        return x
    missing = kind.varying - typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(sorted(missing)), to="varying") if missing else x


# ---- the arithmetic of tangents ------------------------------------------------------------------


def add(x: Any, y: Any) -> Any:
    """Add two tangents, or two cotangents; a `Zero` costs nothing.

    Args:
      x: an array, or a `Zero`.
      y: an array of the same shape and dtype, or a `Zero`.

    Returns:
      The sum, a `Zero` if both are.

    >>> from functrans import extend
    >>> zero = extend.Zero.like(2.0)
    >>> extend.add(zero, 3.0), extend.add(zero, zero)
    (3.0, Zero(float32[]))
    """
    if type(x) is Zero:
        return y
    return x if type(y) is Zero else add_jaxvals_p.bind(x, y)


def broadcast_to(x: Any, aval: Any) -> Any:
    """Broadcast to the shape of a type: a scalar, or an axis of size 1, to every element."""
    shape = typeof(x).shape
    if shape == aval.shape:
        return x
    kept = range(aval.ndim) if shape else ()
    return lax.broadcast_in_dim(x, aval.shape, kept, out_sharding=sharding_of(aval))


def sum_to(x: Any, aval: Any) -> Any:
    """The transpose of `broadcast_to`: make what a rule returns for an input the cotangent of the
    input itself, for the operation may have broadcast it."""
    shape: Any = getattr(aval_of(x), "shape", None)  # only types of arrays have one
    if type(x) is Zero or shape == getattr(aval, "shape", None):
        return x
    axes = tuple(i for i, size in enumerate(shape) if not aval.shape or size != aval.shape[i])
    return lax.reshape(lax.reduce_sum(x, axes), aval.shape)
