"""Kernels of Pallas, in forward mode: they read and write references to arrays.

    y[i] = sin(x[i])        becomes        y[i] = sin(x[i]),  y_dot[i] = cos(x[i]) x_dot[i]

A kernel returns nothing.  Its derivative takes a second reference for each one that moves, and
does to it, with tangents, what the kernel does to the first.  We cannot transpose this, since a
read depends on the time: there is no reverse mode, neither here nor in JAX.

Read next: `columns.py`, calls in any other transform.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import jax
import jax.experimental
from jax import ref

from functrans import jaxpr as jx
from functrans import values
from functrans.derivatives.common import unnamed, when_imported, when_met
from functrans.errors import operations
from functrans.forward import jvp_jaxpr
from functrans.rules import Rule, call, zero
from functrans.values import Flags, Zero


class ReferenceRule(Rule):
    """The first input is a reference: do the same to the reference of its tangent.

    `stored` finds the inputs that the operation writes there, or reads instead.
    """

    def __init__(self, stored: Callable):
        self.stored = stored

    def forward(self, primitive, primals, tangents, params):
        if type(tangents[0]) is Zero:  # it writes a moving value where nothing moves
            raise operations.no_rule(primitive)
        moved = [tangents[0], *primals[1:]]
        for i in self.stored(len(primals), params):
            moved[i] = values.instantiate(tangents[i])
        outs = jx.results(primitive, primitive.bind(*primals, **params))
        return outs, jx.results(primitive, primitive.bind(*moved, **params))

    def linearize(self, primitive, primals, tangents, params):
        raise operations.no_rule(primitive)


class PallasRule(Rule):
    """Binds the kernel's derivative, whose references to tangents come after the others."""

    def forward(self, primitive, primals, tangents, params):
        grid, aliases, head = grid_of(primitive, params)
        # If an output begins as an input, its tangent begins as the tangent of the input.
        aliased = {i for i, _ in aliases}
        dots = [values.instantiate(t) if i in aliased else t for i, t in enumerate(tangents)]
        moving = values.moving(dots)
        kernel = jx.closed_of(params["jaxpr"])
        made = tuple(map(values.is_differentiable, kernel.in_avals[len(primals) - head :]))
        groups = moving[head:], made[: grid.num_outputs], made[grid.num_outputs :]
        program = jvp_jaxpr(kernel, (*moving[head:], *made)).program
        if program.consts:  # a kernel has no constants
            raise operations.no_rule(primitive)
        moved, avals = groups[1], params["out_avals"]
        more = [
            (len(primals) + sum(moving[:i]), grid.num_outputs + sum(moved[:j]))
            for i, j in aliases
            if moving[i] and moved[j]
        ]
        derived = {
            "jaxpr": regrouped(program, groups),
            "grid_mapping": with_tangents(grid, groups),
            "out_avals": (*avals, *map(values.tangent_aval, values.pick(avals, moved))),
            "input_output_aliases": (*aliases, *more),
            "cost_estimate": doubled(params["cost_estimate"]),
        }
        outs = primitive.bind(*primals, *values.pick(dots, moving), **params | derived)
        ys, y_dots = outs[: len(avals)], outs[len(avals) :]
        return list(ys), values.with_zeros(y_dots, moved, avals)

    def linearize(self, primitive, primals, tangents, params):
        # The tape takes the whole derived kernel, which computes the values again.
        ys = primitive.bind(*primals, **params)
        return list(ys), self.forward(primitive, primals, tangents, params)[1]

    def transpose(self, primitive, cotangents, inputs, params):
        advice = "Use forward mode (jvp, jacfwd), or give the function a jax.custom_vjp rule."
        raise operations.no_reverse("a pallas_call", advice)


def grid_of(primitive: Any, params: dict) -> tuple[Any, tuple, int]:
    """The mapping of blocks, the outputs that begin as inputs, and the number of sizes."""
    grid = params["grid_mapping"]
    if params["mesh"] is not None:
        raise operations.no_rule(primitive)
    return grid, params["input_output_aliases"], grid.num_dynamic_grid_bounds


def regrouped(program: Any, groups: Sequence[Flags]) -> Any:
    """The kernel of inputs, outputs and scratch; in each group tangents come last."""
    jaxpr, inputs = program.jaxpr, []
    primals = iter(jaxpr.invars)
    dots = iter(jaxpr.invars[sum(map(len, groups)) :])
    for flags in groups:
        inputs += [*islice(primals, len(flags)), *islice(dots, sum(flags))]
    return jx.closed(inputs, jaxpr.outvars, jaxpr.eqns, jaxpr.debug_info).jaxpr


def with_tangents(grid: Any, groups: Sequence[Flags]) -> Any:
    """The mapping of blocks; the block of a tangent is that of its value."""
    ins, outs, scratch = groups
    of_ins, of_outs = grid.block_mappings[: grid.num_inputs], grid.block_mappings[grid.num_inputs :]
    more_in = values.pick(of_ins, ins[grid.num_index_operands :])
    more_out = values.pick(of_outs, outs)
    return dataclasses.replace(
        grid,
        block_mappings=(*of_ins, *more_in, *of_outs, *more_out),
        num_inputs=grid.num_inputs + len(more_in),
        num_outputs=grid.num_outputs + len(more_out),
        scratch_avals=(
            *grid.scratch_avals,
            *map(values.tangent_aval, values.pick(grid.scratch_avals, scratch)),
        ),
    )


def doubled(cost: Any) -> Any:
    """Twice the user's estimate of the cost, if there is one."""
    if cost is None:
        return None
    return dataclasses.replace(cost, **{k: 2 * v for k, v in vars(cost).items() if type(v) is int})


def stored_in(what: str) -> Callable:
    """The position of the value among the inputs of a masked operation.

    They are `(reference, indices, value, mask)` where it writes, and `(reference, indices, mask,
    other)` where it reads.
    """

    def stored(count: int, params: dict) -> list[int]:
        *_, third, fourth = params["args_tree"].unflatten(range(count))
        found = third if what == "value" else fourth
        return [] if found is None else [found]

    return stored


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
