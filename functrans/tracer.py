"""The mini tracer: run a Python function, write a jaxpr.

    stage : (a -> b) -> Type a -> Jaxpr a b

A *jaxpr* is a list of equations, `outputs = primitive[params] inputs`.  The inputs of an equation
are *atoms*: variables and numbers.  Each has an *aval*, the type of an array: its shape and dtype.

JAX hands every operation of a running function to the *current trace*: `lax.sin(x)` arrives as
`trace.process_primitive(sin_p, [x], {})`, and the trace decides what happens.  Ours writes an
equation instead of computing a number:

    sin x          becomes         v = sin u,    and the tracer that stands for v

In *staging* mode a trace writes down all operations.  In *recording* mode it is a *tape*: it writes
down only the equations that touch one of its own tracers, and hands all others to its parent.
`linearize.py` makes tracers of a tape for the tangents alone: so the parent does the work on the
values, and the tape writes down the work on tangents.  This difference is all that partial
evaluation takes.

Read next: `templates.py`, programs that run many times; or, in a first reading, `forward.py`, which
reads equations and pushes tangents through them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.core
import numpy as np
from jax.extend import core as jex
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, set_current_trace

from functrans import appearance, values
from functrans import jaxpr as jx
from functrans.jaxpr import Atom
from functrans.programs.live import each_depends, live_and_free
from functrans.rules import CALL, RULES, STAGING_RULES, low_params
from functrans.values import Flags

_config: Any = jax.config


class Tracer(appearance.Tracer):
    """Stands for the value of one atom (a variable, or a literal) of the jaxpr that we write."""

    __module__ = appearance.in_jax(__name__)
    __slots__ = ("atom",)

    def __init__(self, trace: StagingTrace, atom: Atom, source: Any = None):
        super().__init__(trace, atom.aval)
        self.atom, self._line_info = atom, source


class Trace(jax.core.Trace):
    """JAX hands calls of Python functions (`custom_jvp`, ...) to methods of their own.

    We treat such a call as one more operation, with the functions in `params["subfuns"]`; a
    `shard_map` has a staging rule of its own.
    """

    def owns(self, x: Any) -> bool:
        return isinstance(x, appearance.Tracer) and x._trace is self

    def process_custom_jvp_call(self, primitive, fun, jvp, args, /, **params):
        return self.process_primitive(primitive, args, {"subfuns": (fun, jvp), **params})

    def process_custom_vjp_call(self, primitive, fun, fwd, bwd, args, /, **params):
        return self.process_primitive(primitive, args, {"subfuns": (fun, fwd, bwd), **params})

    def process_call(self, primitive, fun, args, params, /):
        return self.process_primitive(primitive, args, {"subfuns": (fun,), **params})

    def process_shard_map(self, primitive, fun, args, /, **params):
        return STAGING_RULES["shard_map"](self, primitive, fun, args, params)


class StagingTrace(Trace):
    """Writes an equation for each operation, unless a staging rule needs none."""

    def __init__(self):
        super().__init__()
        # JAX need not replace a high-level ("hi") primitive by its function before it calls us.
        self.requires_low = False
        self.inputs: list[Var] = []
        self.equations: list[JaxprEqn] = []
        self.constants: dict[int, tuple[Var, Any]] = {}

    def record(self, fun: Callable, avals: Iterable, debug_info: Any) -> tuple[Jaxpr, list, Any]:
        """Run `fun` on new inputs, and end the trace: the results of `finish`, and `aux`.

        `fun` takes a flat list and returns two things: a flat list of outputs, and `aux`.
        """
        source = source_info_util.current()
        tracers = [self.new_input(aval, source) for aval in avals]
        try:
            with set_current_trace(self):
                outputs, aux = fun(*tracers)
            return *self.finish(outputs, debug_info), aux
        finally:
            self.invalidate()

    def new_input(self, aval: Any, source: Any = None) -> Tracer:
        self.inputs.append(Var(aval))
        return Tracer(self, self.inputs[-1], source)

    def atom(self, x: Any, aval: Any = None) -> Atom:
        """The atom for a value: its own, a literal for a Python or NumPy scalar, else a constant's.

        `aval` is the type of the value, if the caller knows it.
        """
        if self.owns(x):
            return x.atom
        if np.ndim(x) == 0 and not isinstance(x, jax.Array):
            return Literal(_canonical(x), jax.typeof(x))
        if id(x) not in self.constants:
            # We keep the value beside its variable, so that no other value gets its id.
            self.constants[id(x)] = (Var(aval or jax.typeof(x)), x)
        return self.constants[id(x)][0]

    def value(self, atom: Atom, source: Any = None) -> Any:
        """A number for a literal, a tracer for a variable."""
        return atom.val if type(atom) is Literal else Tracer(self, atom, source)

    def process_primitive(self, primitive, args, params, /):
        if _config.eager_constant_folding and not any(isinstance(x, jax.core.Tracer) for x in args):
            with jax.core.eval_context():  # within `jax.ensure_compile_time_eval`
                return primitive.bind(*args, **params)
        rule = RULES[primitive]
        if rule is None or not rule.depends_on_types_only:  # it may carry programs
            params = low_params(params)
        # A staging rule may need no equation: `x` converted to its own type is `x`.
        simplify = STAGING_RULES.get(CALL if "subfuns" in params else primitive)
        outs = None if simplify is None else simplify(self, primitive, args, params)
        if outs is None:
            outs = self.write(primitive, args, params)
        return outs if primitive.multiple_results else outs[0]

    def write(self, primitive: Any, args: Sequence, params: dict) -> list[Any]:
        """Write `outputs = primitive[params] args`; return tracers for the outputs."""
        atoms = [self.atom(x) for x in args]
        avals, effects = jx.abstract_eval(primitive, tuple([a.aval for a in atoms]), params)
        outputs, source = [Var(aval) for aval in avals], source_info_util.current()
        self.equations.append(jex.new_jaxpr_eqn(atoms, outputs, primitive, params, effects, source))
        return [Tracer(self, output, source) for output in outputs]

    def stage_value(self, x: Any, /) -> Tracer:
        """A tracer for a value, without an equation."""
        return x if self.owns(x) else Tracer(self, self.atom(x))

    def finish(self, outputs: Sequence[Any], debug_info: Any) -> tuple[Jaxpr, list]:
        """Return the jaxpr and its constants; these are its first inputs."""
        atoms = [self.atom(x) for x in outputs]
        constants = self.constants_for(atoms)
        program = jx.closed([*constants, *self.inputs], atoms, self.equations, debug_info)
        return program.jaxpr, [*map(_canonical, constants.values())]

    def constants_for(self, outputs: Sequence[Atom]) -> dict[Var, Any]:
        """The constants that the equations and the outputs read."""
        read = {id(a) for atoms in (outputs, *(e.invars for e in self.equations)) for a in atoms}
        return {var: x for var, x in self.constants.values() if id(var) in read}


class RecordingTrace(StagingTrace):
    """A tape: writes the equations that touch its own tracers; its parent does all others.

    If only some results of an equation depend on the tape, the rule splits the equation in two; a
    loop that carries a counter beside a tangent is an example. So all outputs of a tape's equation
    depend on the tape, and linearly, for its inputs are tangents. `apart` says that XLA does not
    see the recorded program together with the work of the parent: residuals pass as arrays.
    """

    def __init__(self, parent: Any, apart: bool = False):
        super().__init__()
        self.parent, self.apart = parent, apart or type(parent) is jx.EvalTrace
        self.scope = source_info_util.current_name_stack()

    def atom(self, x, aval=None):
        # As in any trace; but if the parent writes a jaxpr too, our equations mention its variables
        # directly. `finish` makes *residuals* of them: values of the primal run that the equations
        # of the tape read.
        is_variable = type(self.parent) is StagingTrace and self.parent.owns(x)
        return x.atom if is_variable else super().atom(x, aval)

    def process_primitive(self, primitive, args, params, /):
        owned = tuple([self.owns(x) for x in args])
        if not any(owned):
            with set_current_trace(self.parent):
                return primitive.bind(*args, **params)
        if "subfuns" in params:  # the tape takes no derivative, and so needs no custom rule
            with set_current_trace(self):
                return params["subfuns"][0].call_wrapped(*args)
        outs = self.split(primitive, args, owned, params)
        if outs is None:
            return super().process_primitive(primitive, args, params)
        return outs if primitive.multiple_results else outs[0]

    def split(self, primitive: Any, args: Sequence, owned: Flags, params: dict) -> list | None:
        """The results of an equation, if some of them do not depend on the tape; else `None`."""
        rule = RULES[primitive]
        if rule is None or not rule.may_split or all(rule.depends(params, owned)):
            return None
        with set_current_trace(self):
            return rule.split(primitive, [*args], owned, params)

    def stage_value(self, x, /):
        return x if self.owns(x) else self.parent.stage_value(x)

    def constants_for(self, outputs):
        """Leave out the equations that no output needs; return the residuals of the others."""
        equations, free = live_and_free(self.equations, outputs)
        self.equations = jx.scoped_from(self.scope, equations)
        constants, inputs = dict(self.constants.values()), {*self.inputs}
        assert each_depends(self.equations, inputs), "an equation does not read the tape"
        return {
            v: constants[v] if v in constants else Tracer(self.parent, v)
            for v in free
            if v not in inputs
        }


def _canonical(x: Any) -> Any:
    """A NumPy value in the precision that JAX gives it."""
    return x.astype(jax.typeof(x).dtype) if isinstance(x, np.ndarray | np.generic) else x


def stage(
    fun: Callable[..., tuple[Sequence[Any], Any]], avals: Sequence[Any], debug_info: Any
) -> tuple[ClosedJaxpr, Any]:
    """Run `fun` on tracers of the given types, and return the program that the trace writes.

    `fun` takes a flat list and returns a pair: a flat list of outputs, and anything else, which
    `stage` returns beside the program. Arrays that `fun` closes over become constants.
    """
    with source_info_util.reset_name_stack():
        jaxpr, constants, aux = StagingTrace().record(fun, avals, debug_info)
    return jx.with_constants(jaxpr, constants), aux


class Derived(NamedTuple):
    """A program of values and of those vectors (tangents or cotangents) that move."""

    program: Any
    moved: Flags
    """Which of the vectors that it returns move (are not known to be zero)."""


def program_of_vectors(
    run: Callable, avals: Sequence, of: Sequence, moving: Flags, info: Any, dual=values.tangent_aval
) -> Derived:
    """The program of `run(values, vectors)`, which returns values and vectors too.

    The vectors that go in are tangents, or cotangents, of values of the types `of`: `dual` gives
    the type of one. `moving` says which of them there are; `avals` are the types of the values.
    """
    count = len(avals)

    def flat(*inputs):
        outs, vectors = run([*inputs[:count]], values.with_zeros(inputs[count:], moving, of))
        moved = values.moving(vectors)
        return [*outs, *values.pick(vectors, moved)], moved

    return Derived(*stage(flat, [*avals, *map(dual, values.pick(of, moving))], info))
