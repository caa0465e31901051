"""The mini tracer: run a Python function, write a jaxpr.

    stage : (a -> b) -> Type a -> Jaxpr a b

JAX hands every operation of the running function to the *current trace*, which here answers with
an equation on paper instead of a number:

    sin x          becomes         v = sin u,    and the tracer that stands for v

In *staging* mode a trace writes down all that it sees.  In *recording* mode it writes down only
the equations that touch one of its own tracers and hands all others to its parent: the primal
work runs now, the tangent work is written down.  That difference is all of partial evaluation.

Read next: `forward.py`, which reads equations and pushes tangents through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.core
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var, new_jaxpr_eqn, set_current_trace

from functrans import jaxpr as jx
from functrans.errors import checks
from functrans.rules import CALL, STAGED


class Tracer(jax.core.Tracer):
    """Stands for the value of one atom (a variable, or a literal) of the jaxpr being written."""

    __slots__ = ("atom",)

    def __init__(self, trace: StagingTrace, atom: Any):
        super().__init__(trace, atom.aval)
        self.atom = atom
        self._line_info = source_info_util.current()

    def _origin_msg(self):
        line = self._line_info or source_info_util.current()
        return checks.traced_value(source_info_util.summarize(line))


class Trace(jax.core.Trace):
    """To a call of functions, which JAX hands over apart, do as to any other operation."""

    def process_custom_jvp_call(self, primitive, fun, jvp, args, /, **params):
        return self.process_primitive(primitive, args, {"subfuns": (fun, jvp), **params})

    def process_custom_vjp_call(self, primitive, fun, fwd, bwd, args, /, **params):
        return self.process_primitive(primitive, args, {"subfuns": (fun, fwd, bwd), **params})

    def process_call(self, primitive, fun, args, params, /):
        return self.process_primitive(primitive, args, {"subfuns": (fun,), **params})

    def process_shard_map(self, primitive, fun, args, /, **params):
        return STAGED["shard_map"](self, primitive, fun, args, params)


class StagingTrace(Trace):
    """Writes an equation for each operation."""

    is_linear = False

    def __init__(self):
        super().__init__()
        self.requires_low = False  # JAX's hi primitives come as they are
        self.inputs: list[Var] = []
        self.equations: list = []
        self.constants: dict[int, tuple[Var, Any]] = {}

    def new_input(self, aval: Any) -> Tracer:
        self.inputs.append(Var(aval))
        return Tracer(self, self.inputs[-1])

    def owns(self, x: Any) -> bool:
        return isinstance(x, Tracer) and x._trace is self

    def atom(self, x: Any) -> Any:
        """The atom for a value: its own, a literal if it is a scalar, else a constant's."""
        if self.owns(x):
            return x.atom
        if np.ndim(x) == 0 and not isinstance(x, jax.Array):
            return Literal(_canonical(x), jx.typeof(x))
        if id(x) not in self.constants:
            # The value is kept beside its variable, and so its id stays its own.
            self.constants[id(x)] = (Var(jx.typeof(x)), x)
        return self.constants[id(x)][0]

    def process_primitive(self, primitive, args, params, /):
        outs = self.stage_equation(primitive, args, params)
        return outs if primitive.multiple_results else outs[0]

    def stage_equation(self, primitive, args, params, known=None) -> list[Any]:
        """Write an equation, unless the primitive's room has a simpler way to stage it."""
        room = STAGED.get(CALL if "subfuns" in params else primitive)
        simpler = room and room(self, primitive, args, params)
        return self.write(primitive, args, params, known) if simpler is None else simpler

    def write(self, primitive, args, params, known=None) -> list[Any]:
        """Write `outputs = primitive[params] args`; return tracers for the outputs.

        `known` are the outputs' types and the effects, if they need not be found out.
        """
        atoms = [self.atom(x) for x in args]
        types = tuple(atom.aval for atom in atoms)
        avals, effects = known or jx.abstract_eval(primitive, types, params)
        outputs, source = [Var(aval) for aval in avals], source_info_util.current()
        self.equations.append(new_jaxpr_eqn(atoms, outputs, primitive, params, effects, source))
        return [Tracer(self, output) for output in outputs]

    def replay(self, program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        """Write the equations of another program as if its function had run here."""
        values = jx.environment(program, args)

        def read(atom):
            return atom.val if isinstance(atom, Literal) else values[atom]

        for equation in program.jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            known = [var.aval for var in equation.outvars], equation.effects
            with jx.context_of(equation, inlined=True):
                outs = self.stage_equation(equation.primitive, inputs, equation.params, known)
            values.update(zip(equation.outvars, outs, strict=True))
        return [read(atom) for atom in program.jaxpr.outvars]

    def stage_value(self, x: Any, /) -> Tracer:
        return x if self.owns(x) else Tracer(self, self.atom(x))

    def finish(self, outputs: Sequence[Any], debug_info: Any) -> tuple[Jaxpr, list]:
        """The program written, in which constants are the first inputs; and their values."""
        atoms = [self.atom(x) for x in outputs]
        # What was staged is what ran; a dead linear equation would only be transposed into zeros.
        equations = jx.live(self.equations, atoms) if self.is_linear else self.equations
        read = {a for e in equations for a in e.invars if isinstance(a, Var)}
        read.update(a for a in atoms if isinstance(a, Var))
        constants = [(var, _canonical(x)) for var, x in self.constants.values() if var in read]
        variables = [var for var, _ in constants]
        program = jx.closed([*variables, *self.inputs], atoms, equations, debug_info)
        return program.jaxpr, [value for _, value in constants]


class RecordingTrace(StagingTrace):
    """Writes the equations that touch its own tracers; all others run now, in the parent."""

    is_linear = True

    def __init__(self, parent: Any):
        super().__init__()
        self.parent = parent

    def process_primitive(self, primitive, args, params, /):
        if any(map(self.owns, args)):
            return super().process_primitive(primitive, args, params)
        with set_current_trace(self.parent):
            return primitive.bind(*args, **params)

    def stage_value(self, x, /):
        return x if self.owns(x) else self.parent.stage_value(x)


def _canonical(x: Any) -> Any:
    """A NumPy value in the precision that JAX gives it."""
    return x.astype(jx.typeof(x).dtype) if isinstance(x, np.ndarray | np.generic) else x


def stage(fun: Callable[..., Sequence[Any]], avals: Sequence[Any], debug_info: Any) -> ClosedJaxpr:
    """Run `fun`, which takes and returns flat lists, on tracers of the given types.

    Its constants become constants of the closed jaxpr.
    """
    trace = StagingTrace()
    with source_info_util.reset_name_stack():
        tracers = [trace.new_input(aval) for aval in avals]
        try:
            with set_current_trace(trace):
                outputs = fun(*tracers)
            jaxpr, constants = trace.finish(outputs, debug_info)
        finally:
            trace.invalidate()
    return jx.with_constants(jaxpr, constants)
