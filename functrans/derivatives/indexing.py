"""The derivatives of reading and writing at computed indices.

    gather    y_j = x[i_j]                 x_bar = sum_j y_bar_j e[i_j], a scatter-add of zeros
    scatter   y = x, then y[i_j] += u_j    x_bar = y_bar,  u_bar_j = y_bar[i_j], a gather

The indices have no derivative.

Read next: `windows.py`, reductions over windows that slide.
"""

from math import prod
from typing import Any

import numpy as np
from jax import lax

from functrans.derivatives.common import (
    add,
    aval_of,
    div,
    eq,
    indicator,
    mul,
    named,
    zeros_like,
)
from functrans.derivatives.reduction import before, compose
from functrans.rules import Linear, Zero, general, instantiate, linear, varying_as

# ---- at one place --------------------------------------------------------------------------------


def dynamic_slice_transpose(y_bar, x, *starts):
    return lax.dynamic_update_slice(zeros_like(x), y_bar, starts)


def dynamic_update_slice_transpose(y_bar, x, u, *starts):
    return (
        lax.dynamic_update_slice(y_bar, zeros_like(u), starts) if type(x) is Linear else None,
        lax.dynamic_slice(y_bar, starts, u.shape) if type(u) is Linear else None,
    )


linear(lax.dynamic_slice_p, dynamic_slice_transpose)
linear(lax.dynamic_update_slice_p, dynamic_update_slice_transpose, argnums=(0, 1))

# ---- gather --------------------------------------------------------------------------------------


# Out of bounds the answer is a constant, `fill_value`, and its tangent is 0.
def gather_jvp(primals, tangents, *, mode, fill_value, **params):
    x, indices = primals
    y = lax.gather_p.bind(x, indices, mode=mode, fill_value=fill_value, **params)
    if type(tangents[0]) is Zero:
        return y, Zero.like(y)
    return y, lax.gather_p.bind(tangents[0], indices, mode=mode, fill_value=0, **params)


def gather_transpose(
    y_bar, x, indices, *, dimension_numbers, indices_are_sorted, unique_indices, mode
):
    return lax.scatter_add(
        zeros_like(x),
        indices,
        y_bar,
        lax.ScatterDimensionNumbers(
            update_window_dims=dimension_numbers.offset_dims,
            inserted_window_dims=dimension_numbers.collapsed_slice_dims,
            scatter_dims_to_operand_dims=dimension_numbers.start_index_map,
            operand_batching_dims=dimension_numbers.operand_batching_dims,
            scatter_indices_batching_dims=dimension_numbers.start_indices_batching_dims,
        ),
        indices_are_sorted=indices_are_sorted,
        unique_indices=unique_indices,
        mode=mode,
    )


linear(lax.gather_p, gather_transpose, jvp=gather_jvp)

# ---- scatter -------------------------------------------------------------------------------------


def read_back(x: Any, indices: Any, u: Any, params: dict) -> Any:
    """Gather from `x` the elements to which such a scatter of `u` writes; 0 out of bounds."""
    numbers = params["dimension_numbers"]
    single = {*numbers.inserted_window_dims, *numbers.operand_batching_dims}
    window = iter(u.shape[d] for d in numbers.update_window_dims)
    return lax.gather(
        x,
        indices,
        lax.GatherDimensionNumbers(
            offset_dims=numbers.update_window_dims,
            collapsed_slice_dims=numbers.inserted_window_dims,
            start_index_map=numbers.scatter_dims_to_operand_dims,
            operand_batching_dims=numbers.operand_batching_dims,
            start_indices_batching_dims=numbers.scatter_indices_batching_dims,
        ),
        slice_sizes=[1 if d in single else next(window) for d in range(x.ndim)],
        indices_are_sorted=params["indices_are_sorted"],
        unique_indices=params["unique_indices"],
        mode=params["mode"],
        fill_value=0,
    )


def write_sum(x: Any, indices: Any, u: Any, params: dict) -> Any:
    """Scatter-add `u` to `x`, a `Zero` of which costs nothing."""
    if type(u) is Zero:
        return x
    keys = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    return lax.scatter_add(instantiate(x), indices, u, **{key: params[key] for key in keys})


def scatter_add_jvp(primals, tangents, **params):
    x_dot, _, u_dot = tangents
    y = lax.scatter_add_p.bind(*primals, **params)
    return y, write_sum(x_dot, primals[1], u_dot, params)


def scatter_add_transpose(y_bar, x, indices, u, **params):
    return y_bar, read_back(y_bar, indices, u, params) if type(u) is Linear else None


def scatter_sub_jvp(primals, tangents, **params):
    x_dot, _, u_dot = tangents
    y = lax.scatter_sub_p.bind(*primals, **params)
    u_dot = u_dot if type(u_dot) is Zero else lax.neg(u_dot)
    return y, write_sum(x_dot, primals[1], u_dot, params)


def scatter_sub_transpose(y_bar, x, indices, u, **params):
    x_bar, u_bar = scatter_add_transpose(y_bar, x, indices, u, **params)
    return x_bar, None if u_bar is None else lax.neg(u_bar)


linear(lax.scatter_add_p, scatter_add_transpose, jvp=scatter_add_jvp, argnums=(0, 2))
scatter_sub_p = named("scatter_sub")
linear(scatter_sub_p, scatter_sub_transpose, jvp=scatter_sub_jvp, argnums=(0, 2))


# An element that is overwritten has no cotangent. If several updates go to one place, one wins, and
# the others have none either. Each update writes its number; one that then reads its own has won.
def scatter_jvp(primals, tangents, **params):
    x, indices, u = primals
    moved = lax.scatter_p.bind(
        instantiate(tangents[0]), indices, instantiate(tangents[2]), **params
    )
    return lax.scatter_p.bind(x, indices, u, **params), moved


def scatter_transpose(y_bar, x, indices, u, **params):
    x_bar = u_bar = None
    if type(x) is Linear:
        x_bar = lax.scatter_p.bind(y_bar, indices, zeros_like(u), **params)
    if type(u) is Linear:
        u_bar = read_back(y_bar, indices, u, params)
        if not params["unique_indices"]:
            u_bar = lax.select(wins(y_bar.shape, indices, u, params), u_bar, zeros_like(u))
    return x_bar, u_bar


def wins(shape, indices, u, params):
    aval = aval_of(indices)
    numbers = varying_as(lax.reshape(lax.iota(np.int32, prod(u.shape)), u.shape), aval)
    nothing = varying_as(lax.full(shape, -1, np.int32), aval)
    written = lax.scatter_p.bind(nothing, indices, numbers, **params)
    return lax.eq(read_back(written, indices, u, params), numbers)


linear(lax.scatter_p, scatter_transpose, jvp=scatter_jvp, argnums=(0, 2))


# y = x times the product of the updates u_j to that place, hence dy/dx is that product, and dy/du_j
# is x times the other updates. We may not divide y by u_j, which may be 0.
def scatter_mul_jvp(primals, tangents, **params):
    (x, indices, u), (x_dot, _, u_dot) = primals, tangents
    y = lax.scatter_mul_p.bind(x, indices, u, **params)
    if type(x_dot) is not Zero:
        x_dot = lax.scatter_mul_p.bind(x_dot, indices, u, **params)
    if type(u_dot) is not Zero:
        partial = read_back(x, indices, u, params)
        if not params["unique_indices"]:
            places = lax.reshape(lax.iota(np.int32, prod(x.shape)), x.shape)
            places = read_back(add(places, 1), indices, u, params)  # 0 is out of bounds
            partial = mul(partial, product_of_others(places, u))
        u_dot = mul(u_dot, partial)
    return y, write_sum(x_dot, indices, u_dot, params)


# We sort the updates by place. Those to one place are then neighbours, and the product of those
# before k is
#
#     p_k = u_(k-1) p_(k-1)        or 1 if k is the first at its place
#
# a linear recurrence. The product of those behind k follows in the same way.
def product_of_others(places, u):
    """The product of the other elements at the place of each element of `u`."""
    order = lax.iota(np.int32, prod(u.shape))
    places, order, factors = lax.sort(
        (lax.reshape(places, order.shape), order, lax.reshape(u, order.shape)), num_keys=1
    )
    others = mul(*(product_so_far(places, factors, reverse) for reverse in (False, True)))
    return lax.reshape(lax.sort((order, others), num_keys=1)[1], u.shape)


def product_so_far(places, factors, reverse):
    is_first = lax.ne(places, before(places, -1, 0, reverse))
    one, zeros = lax.full_like(factors, 1), zeros_like(factors)
    steps = (
        lax.select(is_first, zeros, before(factors, 1, 0, reverse)),
        lax.select(is_first, one, zeros),
    )
    return lax.associative_scan(compose, steps, reverse=reverse)[1]


def scatter_mul_transpose(y_bar, x, indices, u, **params):
    return lax.scatter_mul_p.bind(y_bar, indices, u, **params)


linear(lax.scatter_mul_p, scatter_mul_transpose, jvp=scatter_mul_jvp)


# The extremum of an element and of all updates to it; the tangent is shared evenly among those that
# attain it.
def extremum(primitive):
    def jvp(primals, tangents, **params):
        (x, indices, u), (x_dot, _, u_dot) = primals, tangents
        y = primitive.bind(x, indices, u, **params)
        x_attains = indicator(eq(x, y), y)
        u_attains = indicator(eq(u, read_back(y, indices, u, params)), y)
        count = write_sum(x_attains, indices, u_attains, params)
        total = write_sum(
            mul(instantiate(x_dot), x_attains),
            indices,
            mul(instantiate(u_dot), u_attains),
            params,
        )
        return y, div(total, count)

    return jvp


general(lax.scatter_max_p, extremum(lax.scatter_max_p))
general(lax.scatter_min_p, extremum(lax.scatter_min_p))
