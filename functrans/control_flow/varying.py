"""A program for inputs that vary over the devices of a mesh, where they were the same on all.

    g(x) = f(copy(x))        f_bar = sum over the devices of g_bar

In a `shard_map`, a value that is the same on all devices is copied to each before it meets one that
varies, and the transpose of the copy is a sum over the devices.  A loop that takes its own number
of steps on each device may have no such sum in its steps.  So the copy moves out of the program:
what it copied comes in as a copy.

Read next: `steps.py`, a step and its transpose.
"""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import ClosedJaxpr, jaxprs_in_params
from jax.extend.core.primitives import jit_p

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.derivatives.collectives import pvary_p
from functrans.programs.replay import walk
from functrans.tracer import stage


class _Typed(Exception):
    """A program inside keeps the types of its inputs."""


@caches.by_program
def varying(program: ClosedJaxpr, avals: tuple) -> ClosedJaxpr | None:
    """The program for inputs of these types; `None` if it, or one inside, keeps its types."""

    def meet(equation, inputs):
        types = [v.aval for v in equation.invars]
        if [*map(values.typeof, inputs)] == types:
            return jx.bind(equation, inputs)
        if equation.primitive is pvary_p:
            return [values.varying_as(inputs[0], equation.outvars[0].aval)]
        if equation.primitive is jit_p:
            return walk(equation.params["jaxpr"], inputs, meet)
        if any(jaxprs_in_params(equation.params)):
            raise _Typed
        return jx.bind(equation, inputs)

    def run(*inputs):
        return walk(program, inputs, meet), None

    try:
        copied = stage(run, avals, program.jaxpr.debug_info)[0]
    except _Typed:
        return None
    return copied if [*copied.out_avals] == [*program.out_avals] else None


def copied_as(aval: object, program: ClosedJaxpr, inputs: Sequence) -> tuple[ClosedJaxpr, list]:
    """The program of a step, and its first inputs, copied to the devices over which a type varies.

    If the step cannot take them, both stay as they are.
    """
    moves = [values.is_differentiable(values.typeof(x)) for x in inputs]
    copies = [
        values.varying_as(x, aval) if flag else x for x, flag in zip(inputs, moves, strict=True)
    ]
    types = [*map(values.typeof, copies)]
    if types == [*map(values.typeof, inputs)]:
        return program, [*inputs]
    found = varying(program, (*types, *program.in_avals[len(types) :]))
    return (program, [*inputs]) if found is None else (found, copies)
