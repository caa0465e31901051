"""Calls that say where, or how, to compute a function.

    y = tag[f] x          forward:     tag[jvp f]
                          linearize:   tag[primal half of f],  then  tag[linear half of f]
                          transpose:   tag[transpose of the linear half]

A derived function runs in the same place, fused or scheduled in the same way.  The call names a
memory for each result, and the tangent of a result stands in the same memory.  functrans looks for
the modules of `jax.experimental` that define these calls when it meets one.

Read next: `pallas.py`, kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from functrans import values
from functrans.control_flow.base import CallRule
from functrans.derivatives.common import emitted, when_imported
from functrans.programs.jitted import Role
from functrans.rules import call

Roles = Sequence[Role | None]


class TaggedRule(CallRule):
    """`body` is the param with the function, `spaces` the one with the memory of each result."""

    def __init__(self, body: str = "jaxpr", spaces: str = ""):
        self.carried = self.body = body
        self.spaces = spaces

    def bodies(self, params):
        return (params[self.body],)

    def with_bodies(self, params, bodies, ins, outs):
        given = {self.body: bodies[0]}
        if self.spaces:
            given[self.spaces] = tuple(values.pick(params[self.spaces], outs))
        if "exclude_mask" in params:
            given["exclude_mask"] = tuple(values.pick(params["exclude_mask"], ins))
        return params | given

    def again(self, primitive, params, bodies, inputs, ins, outs):
        changed: dict[str, Any] = {self.body: bodies[0]}
        if self.spaces:
            changed[self.spaces] = tuple(self.space(params, role) for role in outs)
        if "exclude_mask" in params:  # in `program_order`: the inputs that may come at any time
            excluded = params["exclude_mask"]
            changed["exclude_mask"] = tuple(
                role is not None and role.side == "in" and excluded[role.index] for role in ins
            )
        return primitive.bind(*inputs, **params | changed)

    def space(self, params: dict, role: Role | None) -> Any:
        """The memory of a result, of its tangent, or of the cotangent of an input."""
        if role is None:
            return jax.memory.Space.Device
        if role.side == "out":
            return params[self.spaces][role.index]
        space = params[self.body].in_avals[role.index].memory_space
        return jax.memory.Space.Device if space is jax.memory.Space.Any else space

    def derived(self, params):
        if params.get("ad_metadata", "same") == "same":
            return params
        return {**params, "xla_metadata": params["ad_metadata"], "ad_metadata": "same"}


@when_imported("compute_on")
def declare_compute_on(module: Any) -> None:
    wrap = getattr(module, "compute_on2", module.compute_on)  # `compute_on2` until JAX 0.10
    options: Any = {"compute_type": "device_host", "out_memory_spaces": jax.memory.Space.Device}
    (primitive,) = emitted(wrap(lambda x: x, **options))
    call(primitive, TaggedRule(spaces="out_memory_spaces"))


@when_imported("scheduling_groups")
@when_imported("xla_metadata")
def declare_metadata(module: Any) -> None:
    if hasattr(module, "xla_metadata_call"):
        (primitive,) = emitted(module.xla_metadata_call(lambda x: x))
        call(primitive, TaggedRule())


@when_imported("overlap")
def declare_program_order(module: Any) -> None:
    (primitive,) = emitted(module.program_order(lambda x: x, enforce=False))
    call(primitive, TaggedRule("call_jaxpr"))


@when_imported("fused")
def declare_fused(module: Any) -> None:
    call(module.fused_p, TaggedRule(spaces="out_spaces"))
