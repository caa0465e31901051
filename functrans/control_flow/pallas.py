"""Kernels of Pallas, in forward mode: they read and write references to arrays.

    y[i] = sin(x[i])        becomes        y[i] = sin(x[i]),  y_dot[i] = cos(x[i]) x_dot[i]

A kernel returns nothing.  Its derivative takes a second reference for each one that moves, and
does to it, with tangents, what the kernel does to the first.  A Taylor series takes a column of
references, one for each coefficient.  We cannot transpose a kernel, since a read depends on the
writes before it: there is no reverse mode, neither here nor in JAX.

Read next: `columns.py`, calls in any other transform.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.experimental
from jax import ref
from jax.extend.core import ClosedJaxpr, JaxprEqn

from functrans import jaxpr as jx
from functrans import values
from functrans.control_flow.columns import (
    BOUND,
    Column,
    Shape,
    arrays,
    columns_of,
    filled,
    shape_of,
    walked,
)
from functrans.derivatives.common import unnamed, when_imported, when_met
from functrans.errors import operations
from functrans.forward import jvp_jaxpr
from functrans.rules import Rule, call, zero
from functrans.values import Flags, Zero


class ReferenceRule(Rule):
    """The first input is a reference: do the same to the reference of its tangent.

    `stored` gives the positions of the inputs to replace by their tangents: the value to write, or
    the one to take where a mask forbids to read.
    """

    def __init__(self, stored: Callable):
        self.stored = stored

    def forward(self, primitive, primals, tangents, params):
        if type(tangents[0]) is Zero:  # a moving value goes where no tangent is
            raise operations.no_rule(primitive)
        moved = [tangents[0], *primals[1:]]
        for i in self.stored(len(primals), params):
            moved[i] = values.instantiate(tangents[i])
        outs = jx.results(primitive, primitive.bind(*primals, **params))
        return outs, jx.results(primitive, primitive.bind(*moved, **params))

    def linearize(self, primitive, primals, tangents, params):
        raise operations.no_rule(primitive)


class PallasRule(Rule):
    """Binds a kernel with a column of references in the place of each reference."""

    def forward(self, primitive, primals, tangents, params):
        dots = [None if type(t) is Zero else t for t in tangents]
        columns = bound(primitive, params, [*zip(primals, dots, strict=True)], pushed, ())
        ys = [y for y, *_ in columns]
        return ys, [dot[0] if dot else Zero.like(y) for y, *dot in columns]

    def linearize(self, primitive, primals, tangents, params):
        # The tape takes the whole derived kernel, which computes the values again.
        ys = primitive.bind(*primals, **params)
        return list(ys), self.forward(primitive, primals, tangents, params)[1]

    def transpose(self, primitive, cotangents, inputs, params):
        advice = "Use forward mode (jvp, jacfwd), or give the function a jax.custom_vjp rule."
        raise operations.no_reverse("a pallas_call", advice)


def through_kernel(
    equation: JaxprEqn, columns: list, walk: Callable, settings: tuple
) -> list | None:
    """Bind a kernel again; `None` if a column has arrays of several shapes, as no block fits."""
    shapes = [{values.typeof(x).shape for x in column if x is not None} for column in columns]
    if any(len(of_column) > 1 for of_column in shapes):
        return None
    return bound(equation.primitive, equation.params, columns, walk, settings)


def pushed(kernel: ClosedJaxpr, columns: Sequence[Column]) -> list:
    """Walk a kernel with values and tangents."""
    dots = [column[1] if len(column) > 1 else None for column in columns]
    moving = tuple([dot is not None for dot in dots])
    program = jvp_jaxpr(kernel, moving).program
    jx.evaluate(program, *(x for x, *_ in columns), *values.pick(dots, moving))
    return []


def bound(
    primitive: Any, params: dict, columns: list, walk: Callable, settings: tuple
) -> list[tuple]:
    """Bind a kernel with columns of references.

    The column of a differentiable result is as long as the longest column of an input.
    """
    if params["mesh"] is not None:
        raise operations.no_rule(primitive)
    grid, aliases = params["grid_mapping"], params["input_output_aliases"]
    length, head = max(map(len, columns)), grid.num_dynamic_grid_bounds  # which aliases leave out
    # If an output begins as an input, so does its column: empty places of the input get zeros.
    for i in (head + i for i, _ in aliases):
        types = column_of_types(values.typeof(columns[i][0]), length)
        columns[i] = filled([columns[i]], ((True,) * len(types),), [types])[0]
    ins, kernel = shape_of(columns[head:]), jx.closed_of(params["jaxpr"])
    if any(sum(flags) > 1 for flags in ins[: grid.num_index_operands]):
        raise operations.moving_prefetch()
    program, outs, scratch = kernel_of_columns(kernel, grid, ins, length, walk, settings)
    if program.consts:  # a kernel cannot close over arrays
        raise operations.no_rule(primitive)
    out_types = [column_of_types(aval, length) for aval in params["out_avals"]]
    derived = {
        "jaxpr": program.jaxpr,
        "grid_mapping": with_columns(grid, ins, outs, scratch),
        "out_avals": tuple(arrays(out_types)),
        "input_output_aliases": aliases_of_columns(aliases, ins, outs),
        "cost_estimate": multiplied(params["cost_estimate"], length),
    }
    return columns_of(primitive.bind(*arrays(columns), **params | derived), outs)


def kernel_of_columns(
    kernel: ClosedJaxpr, grid: Any, ins: Shape, length: int, *how: Any
) -> tuple[Any, Shape, Shape]:
    """The kernel that a transform makes, and the columns of its outputs and of its scratch."""
    refs = [column_of_types(aval, length) for aval in kernel.in_avals]
    made = shape_of(refs[len(ins) :])
    avals = [types_at(*pair) for pair in zip(refs, (*ins, *made), strict=True)]
    with grid.trace_env():  # where a kernel may ask for its place in the grid
        program = walked(kernel, *how, tuple(avals)).program
    return program, made[: grid.num_outputs], made[grid.num_outputs :]


def aliases_of_columns(aliases: tuple, ins: Shape, outs: Shape) -> tuple:
    """Each array of an output begins as that of the input."""
    found = []
    for i, j in aliases:
        first = offset(ins, i), offset(outs, j)
        found += [(first[0] + place, first[1] + place) for place in range(sum(outs[j]))]
    return tuple(found)


def column_of_types(aval: Any, length: int) -> tuple:
    """The types of a value and of its tangents, if it has any."""
    dots = length - 1 if values.is_differentiable(aval) else 0
    return aval, *[values.tangent_aval(aval)] * dots


def types_at(types: tuple, flags: Flags) -> tuple:
    """The types, with `None` where a column has no array."""
    return tuple([aval if flag else None for aval, flag in zip(types, flags, strict=False)])


def offset(shape: Shape, at: int) -> int:
    """The position of the first array of a column among all arrays."""
    return sum(map(sum, shape[:at]))


def with_columns(grid: Any, ins: Shape, outs: Shape, scratch: Shape) -> Any:
    """The mapping of blocks; the blocks of a whole column are those of its value."""
    ins = ins[grid.num_index_operands :]
    pairs = zip(grid.block_mappings, (*ins, *outs), strict=True)
    scratch_types = zip(grid.scratch_avals, map(len, scratch), strict=True)
    return dataclasses.replace(
        grid,
        block_mappings=tuple([block for block, flags in pairs for _ in range(sum(flags))]),
        num_inputs=offset(ins, len(ins)),
        num_outputs=offset(outs, len(outs)),
        scratch_avals=tuple([a for pair in scratch_types for a in column_of_types(*pair)]),
    )


def multiplied(cost: Any, n: int) -> Any:
    """So many times the user's estimate of the cost, if there is one."""
    if cost is None:
        return None
    return dataclasses.replace(cost, **{k: n * v for k, v in vars(cost).items() if type(v) is int})


def stored_in(what: str) -> Callable:
    """A function that finds the `value` of a masked write, or the `other` of a masked read.

    They are `(reference, indices, value, mask)` where it writes, and `(reference, indices, mask,
    other)` where it reads.
    """

    def stored(count: int, params: dict) -> list[int]:
        *_, third, fourth = params["args_tree"].unflatten(range(count))
        found = third if what == "value" else fourth
        return [] if found is None else [found]

    return stored


# JAX has no public names for these primitives: `unnamed` finds each in a function that binds it.
def read(x):
    return jax.new_ref(x)[...]


def written(x):
    jax.new_ref(x)[...] = x


def added(x):
    ref.addupdate(jax.new_ref(x), (), x)


call(unnamed("get", read), ReferenceRule(lambda count, params: ()))
call(unnamed("swap", written), ReferenceRule(lambda count, params: (1,)))
call(unnamed("addupdate", added), ReferenceRule(lambda count, params: (1,)))


@when_imported("pallas")
def declare_kernels(pallas: Any) -> None:
    call(pallas.pallas_call_p, PallasRule())


BOUND[PallasRule] = through_kernel


# Reads and writes with a mask, in kernels for Triton.
@when_imported("pallas.triton")
def declare_masked(triton: Any) -> None:
    def kernel(x, y):
        triton.store(y, triton.load(x, mask=x[...] > 0, other=0.0), mask=x[...] > 0)

    def equations(function, shape, dtype):
        out = jax.ShapeDtypeStruct(shape, dtype)
        pallas_call = vars(jax.experimental)["pallas"].pallas_call(function, out_shape=out)
        (equation,) = jax.make_jaxpr(pallas_call)(out).jaxpr.eqns
        return [e.primitive for e in jx.closed_of(equation.params["jaxpr"]).jaxpr.eqns]

    call(unnamed("masked_load", kernel, (1,), find=equations), ReferenceRule(stored_in("other")))
    call(unnamed("masked_swap", kernel, (1,), find=equations), ReferenceRule(stored_in("value")))


@when_met("get_global")  # a reference that outlives the kernel
def declare_global(primitive: Any) -> None:
    zero(primitive)
