"""A jitted call inside a differentiated function stays one call in each half.

    jit f          forward:     jit (jvp f)
                   linearize:   jit (primal half),  then  jit (linear half)
                   transpose:   jit (transpose of the linear half)

Each derived jaxpr is made once for a jaxpr and for which of its inputs move.

Read next: `custom.py`, calls whose derivative the user has written.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal, Var, set_current_trace
from jax.extend.core.primitives import jit_p

from functrans import jaxpr as jx
from functrans.control_flow.halves import giving
from functrans.jaxpr import Linear
from functrans.linearize import jvp_jaxpr, linearize_jaxpr
from functrans.reverse import transpose_jaxpr
from functrans.rules import Rule, call, staged

Place = tuple[str, int] | None


def bind_jit(
    program: ClosedJaxpr,
    args: Sequence[Any],
    name: str,
    like: dict | None = None,
    inputs: Sequence[Place] | None = None,
    outputs: Sequence[Place] | None = None,
) -> list:
    """Evaluate a jaxpr as one `jit` equation.

    Args:
      like: the params of the equation from which this one derives, if it derives from one.
      inputs, outputs: for each input and output its place in that equation, `("in", i)` or
        `("out", i)`, whose sharding and layout it then has; `None` for a new one.
    """
    equations = program.jaxpr.eqns
    if len(equations) == 1 and equations[0].primitive is jit_p:  # it is one call already
        return jx.evaluate(program, *args)
    kept, positions, sources = _without_copies(program)
    default = _jit_params(jax.sharding.get_abstract_mesh())
    params = dict(like or default)
    inputs = inputs or [None] * len(args)
    outputs = outputs or [None] * len(sources)
    outputs = [outputs[i] for i in positions]

    def choose(what: str, places: Sequence[Place]) -> tuple:
        nothing = default[f"in_{what}"][0]
        return tuple(nothing if p is None else params[f"{p[0]}_{what}"][p[1]] for p in places)

    params |= {
        "name": name,
        "jaxpr": kept,
        "in_shardings": choose("shardings", inputs),
        "in_layouts": choose("layouts", inputs),
        "out_shardings": choose("shardings", outputs),
        "out_layouts": choose("layouts", outputs),
        "donated_invars": (False,) * len(args),
        "inline": params["inline"],
        "compiler_options_kvs": (),
    }
    outs = jit_p.bind(*args, **params) if outputs or kept.jaxpr.effects else []
    given = {"in": args, "new": outs}
    return [given[kind][i] for kind, i in sources]


def _places(side: str, flags: Iterable[bool]) -> list:
    return [(side, i) for i, flag in enumerate(flags) if flag]


class JitRule(Rule):
    """Derive the jaxpr that is inside, and bind the result as a `jit` equation again.

    A tangent or a cotangent has the sharding of its primal; a residual has its own.
    """

    def forward(self, primitive, primals, tangents, params):
        moving = jx.moving(tangents)
        program, gaps = jvp_jaxpr(params["jaxpr"], moving)
        outs = bind_jit(
            program,
            [*primals, *jx.present(tangents)],
            params["name"],
            like=params,
            inputs=[*_places("in", [True] * len(primals)), *_places("in", moving)],
            outputs=[*_places("out", [True] * len(gaps)), *_places("out", _open(gaps))],
        )
        return outs[: len(gaps)], jx.fill(gaps, outs[len(gaps) :])

    def linearize(self, primitive, primals, tangents, params):
        moving = jx.moving(tangents)
        first, second, gaps = linearize_jaxpr(params["jaxpr"], moving)
        new = [None] * (len(first.out_avals) - len(gaps))
        outs = bind_jit(
            first,
            primals,
            params["name"],
            like=params,
            inputs=_places("in", [True] * len(primals)),
            outputs=[*_places("out", [True] * len(gaps)), *new],
        )
        outs, residuals = outs[: len(gaps)], outs[len(gaps) :]
        tangents_out = bind_jit(
            second,
            [*residuals, *jx.present(tangents)],
            params["name"],
            like=params,
            inputs=[*new, *_places("in", moving)],
            outputs=_places("out", _open(gaps)),
        )
        return outs, jx.fill(gaps, tangents_out)

    def transpose(self, primitive, cotangents, inputs, params):
        linear = tuple(type(x) is Linear for x in inputs)
        known = [not is_linear for is_linear in linear]
        moving = jx.moving(cotangents)
        program, gaps = transpose_jaxpr(params["jaxpr"], linear, moving)
        pulled = bind_jit(
            program,
            [*compress(inputs, known), *jx.present(cotangents)],
            params["name"],
            like=params,
            inputs=[*_places("in", known), *_places("out", moving)],
            outputs=list(compress(_places("in", linear), _open(gaps))),
        )
        x_bars = iter(jx.fill(gaps, pulled))
        return [next(x_bars) if is_linear else None for is_linear in linear]


def _open(gaps: list) -> list[bool]:
    return [gap is None for gap in gaps]


def _is_inlined(params: dict) -> bool:
    default = _jit_params(jax.sharding.get_abstract_mesh())
    inline = getattr(params["inline"], "value", params["inline"]) in (True, "jax_early")
    keys = ("in_shardings", "out_shardings", "in_layouts", "out_layouts")
    return inline and all(one is default[key][0] for key in keys for one in params[key])


@functools.lru_cache(maxsize=16)
def _jit_params(mesh: Any) -> dict:
    del mesh  # the params name the mesh in whose context they were made
    return dict(jax.make_jaxpr(jax.jit(jnp.negative))(1.0).eqns[0].params)


def _inlined(trace, primitive, args, params):
    """A small call that asks for it is replaced by its equations.

    On a tape that is a call some of whose results are not linear: they are computed now.
    """
    program = params["jaxpr"]
    if not trace.is_linear:
        return trace.replay(program, args) if _is_inlined(params) else None
    if all(_depends(program, tuple(map(trace.owns, args)))):
        return None
    with set_current_trace(trace):
        return jx.evaluate(program, *args)


@jx.cached_by_program
def _depends(program: ClosedJaxpr, inputs: tuple[bool, ...]) -> list[bool]:
    """For each output whether it depends on one of these inputs."""
    found = set(compress(program.jaxpr.invars, inputs))
    for equation in program.jaxpr.eqns:
        if any(isinstance(atom, Var) and atom in found for atom in equation.invars):
            found.update(equation.outvars)
    return [isinstance(atom, Var) and atom in found for atom in program.jaxpr.outvars]


call(jit_p, JitRule())
staged(jit_p, _inlined)


@jx.cached_by_program
def _without_copies(program: ClosedJaxpr) -> tuple[ClosedJaxpr, list, list]:
    """Drop the outputs that are inputs or other outputs.

    Returns the smaller program, the positions of the outputs that it keeps, and for each output of
    the whole program where its value is: `("in", i)` or `("new", i)`.
    """
    jaxpr = program.jaxpr
    found = {var: ("in", i) for i, var in enumerate(jaxpr.invars)}
    positions: list[int] = []
    sources = []
    for i, atom in enumerate(jaxpr.outvars):
        if isinstance(atom, Literal) or atom not in found:
            source = ("new", len(positions))
            positions.append(i)
            if isinstance(atom, Var):
                found[atom] = source
        else:
            source = found[atom]
        sources.append(source)
    kept = [jaxpr.outvars[i] for i in positions]
    return giving(program, kept), positions, sources
