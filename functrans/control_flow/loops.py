"""Loops that functrans writes: their bodies are staged once, by functrans.

    scan : ((c, x) -> (c', y)),  c,  [x]  ->  c, [y]

`jax.lax.scan` would trace each equation of a body that is staged already.  So it is given a body of
one equation, a call of the staged one; the call is opened again when JAX hands the loop over.

Read next: `scan.py`, which derives loops from loops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, set_current_trace
from jax.extend.core.primitives import scan_p

from functrans import jaxpr as jx
from functrans.control_flow.jit import bind_jit
from functrans.tracer import RecordingTrace, StagingTrace, Template, Trace, stage

BODY = "functrans_body"


def scan(body: Callable, carry: Any, xs: Any, is_linear: bool = False, **options: Any) -> tuple:
    """`jax.lax.scan`, which traces no equation of the body.

    `is_linear` says that all results of the body are linear in what a tape, if one runs, owns.
    """

    def call(*args):
        leaves, tree = jax.tree.flatten(args)
        results: Any = None

        def flat(*tracers):
            nonlocal results
            outs, results = jax.tree.flatten(body(*jax.tree.unflatten(tree, tracers)))
            return outs

        program = stage(flat, [jx.typeof(x) for x in leaves], jx.debug_info("scan", body))
        jaxpr, inputs = jx.opened(program, leaves)
        return jax.tree.unflatten(results, bind_jit(jx.with_constants(jaxpr, []), inputs, BODY))

    with set_current_trace(_Emitting(jx.current_trace(), is_linear)):
        return lax.scan(call, carry, xs, **options)


def evaluate(program: ClosedJaxpr, *inputs: Any) -> list:
    """Evaluate a program that functrans has staged; a trace that writes copies its equations."""
    trace = jx.current_trace()
    if type(trace) is not StagingTrace:
        return jx.evaluate(program, *inputs)
    return [*map(trace.value, trace.run(Template(program), [*map(trace.atom, inputs)]))]


class _Emitting(Trace):
    """Hands all on to its parent, a loop with the call in its body opened."""

    def __init__(self, parent: Any, is_linear: bool):
        super().__init__()
        self.requires_low = False
        self.parent, self.is_linear = parent, is_linear

    def process_primitive(self, primitive, args, params, /):
        if primitive is scan_p:
            params = {**params, "jaxpr": _opened(params["jaxpr"])}
            if self.is_linear and isinstance(self.parent, RecordingTrace):
                return self.parent.write(primitive, args, params)
        with set_current_trace(self.parent):
            return primitive.bind(*args, **params)

    def stage_value(self, x, /):
        return self.parent.stage_value(x)


def _opened(body: ClosedJaxpr) -> ClosedJaxpr:
    """The body with the equations of the call that it consists of, if it consists of that call."""
    jaxpr, equations = body.jaxpr, body.jaxpr.eqns
    if len(equations) != 1 or equations[0].params.get("name") != BODY:
        return body
    call, inner = equations[0], equations[0].params["jaxpr"].jaxpr
    place: dict[Any, Any] = {}
    for given, variable in zip(call.invars, inner.invars, strict=True):
        if type(given) is Literal or given in place:
            return body  # it would take an equation to hand this over
        place[given] = variable
    place |= zip(call.outvars, inner.outvars, strict=True)

    def placed(atoms: list) -> list:
        return [a if type(a) is Literal else place.get(a, a) for a in atoms]

    inputs, outputs, constants = map(placed, (jaxpr.invars, jaxpr.outvars, jaxpr.constvars))
    return jx.closed(inputs, outputs, inner.eqns, inner.debug_info, constants, body.consts)
