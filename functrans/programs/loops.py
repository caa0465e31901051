"""Loops that functrans writes: their bodies are staged once, by functrans.

    scan : ((c, x) -> (c', y)),  c,  [x]  ->  c, [y]

`jax.lax.scan` would trace each equation of a body that is staged already.  So we give it a body of
one equation, a call of the staged one.  It hands its own equation to the current trace; our trace
opens the call again before it passes the loop on.  (To bind `scan_p` directly would lose two
services of `lax.scan`: a carry that no step changes becomes a constant, and an output that is an
input is not stacked.)

Read next: `revolve.py`, a loop run backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, Primitive
from jax.extend.core.primitives import scan_p

from functrans import jaxpr as jx
from functrans.programs.jitted import bind_jit
from functrans.programs.passing import exchanged
from functrans.programs.places import added_in_place
from functrans.templates import Template, Writing, sink_of
from functrans.tracer import stage

BODY = "functrans_body"
"""The name by which we recognise the call in a body."""


def scan(body: Callable, carry: Any, xs: Any, **options: Any) -> tuple:
    """`jax.lax.scan`, which traces no equation of the body."""

    def call(*args):
        leaves, tree = jax.tree.flatten(args)

        def flat(*tracers):
            return jax.tree.flatten(body(*jax.tree.unflatten(tree, tracers)))

        info = jx.debug_info("scan", body)
        program, results = stage(flat, [jax.typeof(x) for x in leaves], info)
        jaxpr, inputs = jx.constants_first(added_in_place(program), leaves)
        return jax.tree.unflatten(results, bind_jit(jx.with_constants(jaxpr, []), inputs, BODY))

    with exchanged(_open):
        return lax.scan(call, carry, xs, **options)


def _open(primitive: Primitive, params: dict) -> tuple[Primitive, dict]:
    """In the body of a `scan`, the equations of the call that it consists of."""
    is_loop = primitive is scan_p
    return primitive, {**params, "jaxpr": _opened(params["jaxpr"])} if is_loop else params


def evaluate(program: ClosedJaxpr, *inputs: Any) -> list:
    """Evaluate a program that functrans staged; a trace that writes copies its equations."""
    sink = sink_of(jx.current_trace())
    if not isinstance(sink, Writing):
        return jx.evaluate(program, *inputs)
    return [*map(sink.leave, sink.copy(Template(program), [*map(sink.enter, inputs)], None))]


def _opened(body: ClosedJaxpr) -> ClosedJaxpr:
    """The body with the equations of its one call, if it has just that call."""
    jaxpr, equations = body.jaxpr, body.jaxpr.eqns
    if len(equations) != 1 or equations[0].params.get("name") != BODY:
        return body
    call, inner = equations[0], equations[0].params["jaxpr"].jaxpr
    inside: dict[Any, Any] = {}
    for outer, variable in zip(call.invars, inner.invars, strict=True):
        if type(outer) is Literal or outer in inside:
            return body  # the call returns an input, which takes an equation
        inside[outer] = variable
    inside |= zip(call.outvars, inner.outvars, strict=True)

    def renamed(atoms: list) -> list:
        return [a if type(a) is Literal else inside.get(a, a) for a in atoms]

    inputs, outputs, constants = map(renamed, (jaxpr.invars, jaxpr.outvars, jaxpr.constvars))
    return jx.closed(inputs, outputs, inner.eqns, inner.debug_info, constants, body.consts)
