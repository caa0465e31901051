"""Numbers in the place of elements: run an equation on them to learn where it moves each.

    moves : ([number] -> [number]),  how many  ->  from where each result has come

An operation that moves elements without computing with them moves their numbers in the same way.
We run it on two numberings that have nothing to do with each other:

    y = run(1, 2, 3, ...),    z = run(h(1), h(2), h(3), ...)       moving:    z = h(y)

or y and z are the same constant.  A sum fails the test, because `h(i + j) != h(i) + h(j)`.

XLA would compile for longer than such an operation runs, and so NumPy runs the frequent ones.

Read next: `algebra.py`, patterns as matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import lax

from functrans import extend

Equation = Any
"""An equation of a jaxpr. Its inputs and outputs are arrays; their types in JAX do not say so."""


def moves(run: Callable, size: int) -> list | None:
    """Find from where an operation takes each element of its results.

    Args:
      run: takes `size` integers, and returns arrays.
      size: how many elements it moves.

    Returns:
      A pair for each result: the number of the input element that each of its elements is, and
      whether it is one. `None` if the operation computes with elements, or takes no integers.
    """
    numbers = np.arange(1, size + 1, dtype=np.int32)
    other = -1 - _scrambled(numbers)
    try:
        pairs = list(zip(run(numbers), run(other), strict=True))
    except (TypeError, ValueError, NotImplementedError):
        return None
    found = []
    for y, z in pairs:
        y, z = np.asarray(y).ravel(), np.asarray(z).ravel()
        if y.dtype != np.int32 or z.dtype != np.int32:
            return None
        is_read = y != z
        columns = np.where(is_read, np.abs(y.astype(np.int64)) - 1, 0)  # up to a sign
        if is_read.any() and (columns.min() < 0 or columns.max() >= size):
            return None
        if (np.sign(y) * other[columns] != z)[is_read].any():
            return None
        found.append((columns, is_read))
    return found


def _scrambled(x: np.ndarray) -> np.ndarray:
    """A one-to-one map of the integers below 2^31 that is far from linear."""
    x = x.astype(np.uint64)
    for factor, shift in ((0x2C1B3C6D, 15), (0x297A2D39, 13)):
        x = (x * np.uint64(factor)) & np.uint64(0x7FFFFFFF)
        x ^= x >> np.uint64(shift)
    return x.astype(np.int32)


def evaluated(equation: Equation, inputs: Sequence) -> list:
    """The results of an equation, as NumPy arrays."""
    function = NUMPY.get(equation.primitive)
    if function is not None and not any(map(_is_extended, inputs)):
        return [function(*map(np.asarray, inputs), equation)]
    with jax.ensure_compile_time_eval():
        return [*map(_as_numpy, extend.bind(equation, [*map(jax.numpy.asarray, inputs)]))]


def _is_extended(x: Any) -> bool:
    """Whether the elements of an array are no numbers, but keys of random numbers, say."""
    return hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended)


def _as_numpy(x: Any) -> Any:
    return x if _is_extended(x) else np.asarray(x)


# ---- in NumPy ------------------------------------------------------------------------------------


def _slice(x, e):
    begin, end = e.params["start_indices"], e.params["limit_indices"]
    steps = e.params["strides"] or (1,) * x.ndim
    return x[tuple(map(slice, begin, end, steps))]


def _pad(x, value, e):
    shape = e.outvars[0].aval.shape
    out = np.full(shape, value, x.dtype)
    source, target = [], []
    for (low, _, interior), size, n in zip(e.params["padding_config"], x.shape, shape, strict=True):
        step = interior + 1
        first = max(0, -(low // step))  # the first element that is not cropped: low + step i >= 0
        last = min(size, (n - 1 - low) // step + 1) if n else 0
        last = max(first, last)
        source.append(slice(first, last))
        target.append(slice(low + step * first, low + step * last, step) if last > first else
                      slice(0, 0))  # fmt: skip
    out[tuple(target)] = x[tuple(source)]
    return out


def _broadcast(x, *rest):
    e = rest[-1]
    shape, dims = e.params["shape"], e.params["broadcast_dimensions"]
    sizes = [1] * len(shape)
    for d, size in zip(dims, x.shape, strict=True):
        sizes[d] = size
    return np.broadcast_to(x.reshape(sizes), shape)


def _reshape(x, e):
    dims = e.params["dimensions"]
    return (x if dims is None else x.transpose(dims)).reshape(e.outvars[0].aval.shape)


def _select(which, *rest):
    *cases, _ = rest
    return np.choose(which.astype(np.int8), cases) if len(cases) <= 32 else np.select(
        [which == i for i in range(len(cases))], cases)  # fmt: skip


def _iota(e):
    dtype, shape, d = e.params["dtype"], e.params["shape"], e.params["dimension"]
    line = np.arange(shape[d], dtype=dtype).reshape(
        [-1 if i == d else 1 for i in range(len(shape))]
    )
    return np.broadcast_to(line, shape)


def _result(function: Callable) -> Callable:
    """The function; its result gets the type that the equation says."""
    return lambda *args: np.asarray(function(*args[:-1])).astype(args[-1].outvars[0].aval.dtype)


NUMPY: dict[Any, Callable] = {
    lax.slice_p: _slice,
    lax.pad_p: _pad,
    lax.broadcast_in_dim_p: _broadcast,
    lax.reshape_p: _reshape,
    lax.squeeze_p: lambda x, e: x.reshape(e.outvars[0].aval.shape),
    lax.transpose_p: lambda x, e: x.transpose(e.params["permutation"]),
    lax.rev_p: lambda x, e: np.flip(x, e.params["dimensions"]),
    lax.concatenate_p: lambda *xs: np.concatenate(xs[:-1], xs[-1].params["dimension"]),
    lax.select_n_p: _select,
    lax.iota_p: _iota,
    lax.lt_p: lambda x, y, e: x < y,
    lax.add_p: _result(np.add),
    lax.sub_p: _result(np.subtract),
    lax.mul_p: _result(np.multiply),
    lax.neg_p: _result(np.negative),
    lax.reduce_sum_p: lambda x, e: np.sum(x, e.params["axes"], dtype=x.dtype),
}
