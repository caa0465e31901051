"""A program as one `jit` equation.

    jitted : (program, inputs) -> outputs,      by     y = jit[program] x

Read next: `../derivatives/__init__.py`, the rules.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax.core
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr
from jax.extend.core.primitives import jit_p

from functrans import jaxpr as jx
from functrans.programs.outputs import new_outputs


class Role(NamedTuple):
    """An input or output of the original equation, to which one of a derived call corresponds.

    A tangent and a cotangent correspond to their primal, and have its sharding. An array that
    corresponds to nothing, such as a residual, has the role `None`.
    """

    side: str
    """`in` or `out`."""
    index: int


def roles(side: str, flags: Iterable[bool]) -> list[Role | None]:
    """The roles of those inputs, or outputs, that have the flag."""
    return [Role(side, i) for i, flag in enumerate(flags) if flag]


def bind_jit(
    program: ClosedJaxpr,
    inputs: Sequence[Any],
    name: str,
    like: dict | None = None,
    ins: Sequence[Role | None] | None = None,
    outs: Sequence[Role | None] | None = None,
) -> list:
    """Evaluate a jaxpr as one `jit` equation.

    Args:
      like: the params of the equation from which this one is derived, if any.
      ins, outs: the role of each input and output, whose sharding and layout it then has.
    """
    ins = ins or [None] * len(inputs)
    if any(isinstance(x, jax.core.Tracer) for x in program.consts):
        # The function closes over a value of an outer trace, which is not a constant here.
        ins = [*[None] * len(program.consts), *ins]
        jaxpr, inputs = jx.constants_first(program, inputs)
        program = jx.with_constants(jaxpr, [])
    equations = program.jaxpr.eqns
    if len(equations) == 1 and equations[0].primitive is jit_p:  # one call already
        return jx.evaluate(program, *inputs)
    new = new_outputs(program)
    kept = new.program or program
    default = model_params(jax.sharding.get_abstract_mesh())
    params = dict(like or default)
    outs = outs or [None] * len(program.jaxpr.outvars)
    outs = [outs[i] for i in new.positions]

    def choose(what: str, given: Sequence[Role | None]) -> tuple:
        nothing = default[f"in_{what}"][0]
        of = {"in": params[f"in_{what}"], "out": params[f"out_{what}"]}
        return tuple([nothing if r is None else of[r.side][r.index] for r in given])

    params |= {
        "name": name,
        "jaxpr": kept,
        "in_shardings": choose("shardings", ins),
        "in_layouts": choose("layouts", ins),
        "out_shardings": choose("shardings", outs),
        "out_layouts": choose("layouts", outs),
        "donated_invars": (False,) * len(inputs),
        "inline": params["inline"],
        "compiler_options_kvs": (),
    }
    results = jit_p.bind(*inputs, **params) if outs or kept.jaxpr.effects else []
    return new.all_outputs(inputs, results)


@functools.lru_cache(maxsize=16)
def model_params(mesh: Any) -> dict:
    """The params of a `jit` equation that does not place its inputs and outputs."""
    del mesh  # the params name the mesh of their context
    with jax.disable_jit(False):
        return dict(jax.make_jaxpr(jax.jit(jnp.negative))(1.0).eqns[0].params)


def says_nothing(params: dict) -> bool:
    """Whether a `jit` equation does not place its inputs and outputs."""
    return _said(params) <= _unsaid(jax.sharding.get_abstract_mesh())


def _said(params: dict) -> set:
    """The sharding and the layout of each input and output of the call."""
    shardings = params["in_shardings"], params["out_shardings"]
    return {*shardings[0], *shardings[1], *params["in_layouts"], *params["out_layouts"]}


@functools.lru_cache(maxsize=16)
def _unsaid(mesh: Any) -> set:
    return _said(model_params(mesh))
