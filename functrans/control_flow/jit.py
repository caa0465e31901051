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
from functrans.forward import jvp_jaxpr
from functrans.linearize import linearize_jaxpr
from functrans.reverse import transpose_jaxpr
from functrans.rules import Rule, call, staged
from functrans.tracer import Template, stage

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
    kept = kept or program
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

    def derived(self, params, derive, flags):
        rest = tuple({**params, "jaxpr": None}.items())
        mesh = jax.sharding.get_abstract_mesh()
        return DERIVED[derive](params["jaxpr"], *flags, rest, mesh)


@jx.cached_by_program
def _pushed(jaxpr: Any, moving: tuple, rest: tuple, mesh: Any) -> tuple:
    program, gaps = jvp_jaxpr(jaxpr, moving)
    primals = _places("in", [True] * len(moving))
    inputs = [*primals, *_places("in", moving)]
    outputs = [*_places("out", [True] * len(gaps)), *_places("out", _open(gaps))]
    return _as_jit(program, rest, inputs, outputs), gaps


@jx.cached_by_program
def _halved(jaxpr: Any, moving: tuple, rest: tuple, mesh: Any) -> tuple:
    first, second, gaps = linearize_jaxpr(jaxpr, moving)
    new = [None] * (len(first.out_avals) - len(gaps))
    primals, outs = _places("in", [True] * len(moving)), _places("out", [True] * len(gaps))
    first = _as_jit(first, rest, primals, [*outs, *new])
    inputs = [*new, *_places("in", moving)]
    # What is one equation now is to be transposed as one, and so it is not inlined.
    second = _as_jit(second, rest, inputs, _places("out", _open(gaps)), inline=False)
    return first, second, gaps


@jx.cached_by_program
def _pulled(jaxpr: Any, linear: tuple, moving: tuple, rest: tuple, mesh: Any) -> tuple:
    program, gaps = transpose_jaxpr(jaxpr, linear, moving)
    inputs = [*_places("in", [not x for x in linear]), *_places("out", moving)]
    outputs = list(compress(_places("in", linear), _open(gaps)))
    return _as_jit(program, rest, inputs, outputs), gaps


DERIVED = {jvp_jaxpr: _pushed, linearize_jaxpr: _halved, transpose_jaxpr: _pulled}


def _as_jit(
    program: ClosedJaxpr, rest: tuple, inputs: list, outputs: list, inline: bool = True
) -> Template:
    """The program as one `jit` equation, like the equation whose params are `rest`."""
    like = dict(rest)

    def bound(*args):
        return bind_jit(program, args, like["name"], like, inputs, outputs)

    return Template(stage(bound, program.in_avals, program.jaxpr.debug_info, inline))


def _open(gaps: list) -> list[bool]:
    return [gap is None for gap in gaps]


def _is_inlined(params: dict) -> bool:
    """Whether the call asks for it, and says nothing of where its inputs and outputs are."""
    inline = getattr(params["inline"], "value", params["inline"]) in (True, "jax_early")
    return inline and _said(params) <= _unsaid(jax.sharding.get_abstract_mesh())


def _said(params: dict) -> set:
    """What the call says of its inputs and outputs: each sharding and each layout."""
    shardings = params["in_shardings"], params["out_shardings"]
    return {*shardings[0], *shardings[1], *params["in_layouts"], *params["out_layouts"]}


@functools.lru_cache(maxsize=16)
def _unsaid(mesh: Any) -> set:
    return _said(_jit_params(mesh))


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
        return trace.replay(program, args) if trace.inline and _is_inlined(params) else None
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
def _without_copies(program: ClosedJaxpr) -> tuple[ClosedJaxpr | None, list, list]:
    """Drop the outputs that are inputs or other outputs.

    Returns the smaller program (`None` if there is none), the positions of the outputs that it
    keeps, and for each output of the whole program where its value is: `("in", i)` or `("new", i)`.
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
    # What is kept for a program must not keep the program.
    shorter = len(positions) < len(sources)
    kept = jx.giving(program, [jaxpr.outvars[i] for i in positions]) if shorter else None
    return kept, positions, sources
