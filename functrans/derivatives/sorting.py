"""The derivatives of sorting: permute the tangents as the primals.

    y = x[s],        y_dot = x_dot[s],        x_bar[s] = y_bar

where s is the permutation that sorts x: it is constant nearby, as long as no two keys are equal.

Read next: `special.py`, error functions and Bessel functions.
"""

from typing import Any

import numpy as np
from jax import lax

from functrans.derivatives.common import named
from functrans.rules import Zero, general


def take_along(x: Any, indices: Any, axis: int) -> Any:
    """`x[..., indices, ...]`, where each line of `x` along `axis` has its own indices."""
    lines = tuple(d for d in range(x.ndim) if d != axis)
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
        operand_batching_dims=lines,
        start_indices_batching_dims=lines,
    )
    return lax.gather(
        x,
        lax.expand_dims(indices, (x.ndim,)),
        numbers,
        slice_sizes=(1,) * x.ndim,
        unique_indices=True,
        mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS,
    )


def permute(tangent: Any, indices: Any, axis: int) -> Any:
    return tangent if type(tangent) is Zero else take_along(tangent, indices, axis)


# Sorting carries 0, 1, 2, ... along, and they become the permutation.
def sort_jvp(primals, tangents, *, dimension, is_stable, num_keys):
    positions = lax.broadcasted_iota(np.int32, np.shape(primals[0]), dimension)
    *ys, permutation = lax.sort_p.bind(
        *primals, positions, dimension=dimension, is_stable=is_stable, num_keys=num_keys
    )
    return ys, [permute(tangent, permutation, dimension) for tangent in tangents]


def top_k_jvp(primals, tangents, *, axis, **params):
    values, indices = lax.top_k_p.bind(*primals, axis=axis, **params)
    return [values, indices], [permute(tangents[0], indices, axis), Zero.like(indices)]


def approx_top_k_jvp(primals, tangents, *, reduction_dimension, **params):
    values, indices = lax.approx_top_k_p.bind(
        *primals, reduction_dimension=reduction_dimension, **params
    )
    axis = reduction_dimension % np.ndim(values)
    return [values, indices], [permute(tangents[0], indices, axis), Zero.like(indices)]


general(lax.sort_p, sort_jvp)
general(lax.top_k_p, top_k_jvp)
approx_top_k_p = named("approx_top_k")
general(approx_top_k_p, approx_top_k_jvp)
