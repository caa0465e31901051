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

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.core
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import (
    ClosedJaxpr,
    Jaxpr,
    JaxprEqn,
    Literal,
    Var,
    new_jaxpr_eqn,
    set_current_trace,
)

from functrans import jaxpr as jx
from functrans.errors import checks
from functrans.rules import CALL, RULES, STAGED


class Tracer(jax.core.Tracer):
    """Stands for the value of one atom (a variable, or a literal) of the jaxpr being written."""

    __slots__ = ("atom",)

    def __init__(self, trace: StagingTrace, atom: Any, source: Any = None):
        super().__init__(trace, atom.aval)
        self.atom, self._line_info = atom, source

    def _origin_msg(self):
        return checks.traced_value(self._line_info)


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

    def __init__(self, inline: bool = True):
        super().__init__()
        self.inline = inline  # the small calls that ask for it
        self.requires_low = False  # JAX's hi primitives come as they are
        self.inputs: list[Var] = []
        self.equations: list = []
        self.constants: dict[int, tuple[Var, Any]] = {}

    def new_input(self, aval: Any, source: Any = None) -> Tracer:
        self.inputs.append(Var(aval))
        return Tracer(self, self.inputs[-1], source)

    def owns(self, x: Any) -> bool:
        return isinstance(x, Tracer) and x._trace is self

    def atom(self, x: Any, aval: Any = None) -> Any:
        """The atom for a value: its own, a literal if it is a scalar, else a constant's.

        `aval` is its type, if that is at hand.
        """
        if type(x) is Literal or type(x) is Var:
            return x
        if self.owns(x):
            return x.atom
        if np.ndim(x) == 0 and not isinstance(x, jax.Array):
            return Literal(_canonical(x), jx.typeof(x))
        if id(x) not in self.constants:
            # The value is kept beside its variable, and so its id stays its own.
            self.constants[id(x)] = (Var(aval or jx.typeof(x)), x)
        return self.constants[id(x)][0]

    def value(self, atom: Any, source: Any = None) -> Any:
        return atom.val if type(atom) is Literal else Tracer(self, atom, source)

    def process_primitive(self, primitive, args, params, /):
        room = STAGED.get(CALL if "subfuns" in params else primitive)
        outs = room and room(self, primitive, args, params)
        outs = self.write(primitive, args, params) if outs is None else outs
        return outs if primitive.multiple_results else outs[0]

    def write(self, primitive, args, params) -> list[Any]:
        """Write `outputs = primitive[params] args`; return tracers for the outputs."""
        atoms = [self.atom(x) for x in args]
        avals, effects = jx.abstract_eval(primitive, tuple(a.aval for a in atoms), params)
        outputs, source = [Var(aval) for aval in avals], source_info_util.current()
        self.equations.append(new_jaxpr_eqn(atoms, outputs, primitive, params, effects, source))
        return [Tracer(self, output, source) for output in outputs]

    def run(self, program: Template, atoms: Sequence[Any], origin: Any = None) -> list:
        """Write the equations of a template, in the place of an equation if one is given."""
        found = [*map(self.atom, program.fixed), *atoms]
        here = jx.source_of(origin) if origin else source_info_util.current()
        for equation, numbers, avals in program.steps:
            # `copy`, written out: of what tracing a gradient adds, most is done here.
            source, context = (here, origin) if origin else (jx.scoped(here, equation), equation)
            inputs, outputs = [*map(found.__getitem__, numbers)], [*map(Var, avals)]
            self.equations.append(jx.copied(equation, inputs, outputs, source, context.ctx))
            found += outputs
        return [*map(found.__getitem__, program.outputs)]

    def copy(self, equation: JaxprEqn, atoms: list, source: Any, context: Any) -> list[Var]:
        """Write an equation of another program, with other inputs."""
        outputs = [Var(v.aval) for v in equation.outvars]
        self.equations.append(jx.copied(equation, atoms, outputs, source, context))
        return outputs

    def run_equation(self, equation: JaxprEqn, atoms: list) -> list[Var]:
        return self.copy(equation, atoms, jx.source_of(equation), equation.ctx)

    def replay(self, program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        """Write the equations of another program as if its function had run here."""
        here, atoms = source_info_util.current(), [*map(self.atom, args)]
        if Literal not in map(type, atoms):  # what is written depends on types alone
            return [self.value(atom, here) for atom in self.run(_replayed(program), atoms)]
        return self.replay_each(program, args)

    def replay_each(self, program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        """The same, with each equation in turn."""
        here, values = source_info_util.current(), jx.environment(program, args)

        def read(atom):
            return atom.val if isinstance(atom, Literal) else values[atom]

        for equation in program.jaxpr.eqns:
            inputs, source = [read(atom) for atom in equation.invars], jx.scoped(here, equation)
            room = STAGED.get(equation.primitive)
            with jx.context_of(equation, source):
                outs = room and room(self, equation.primitive, inputs, equation.params)
            if outs is None:
                atoms = self.copy(equation, [*map(self.atom, inputs)], source, equation.ctx)
                outs = [Tracer(self, atom, source) for atom in atoms]
            values.update(zip(equation.outvars, outs, strict=True))
        return [read(atom) for atom in program.jaxpr.outvars]

    def stage_value(self, x: Any, /) -> Tracer:
        return x if self.owns(x) else Tracer(self, self.atom(x))

    def finish(self, outputs: Sequence[Any], debug_info: Any) -> tuple[Jaxpr, list]:
        """The program written, in which constants are the first inputs; and their values."""
        atoms = [self.atom(x) for x in outputs]
        constants = self.read(atoms)
        program = jx.closed([*constants, *self.inputs], atoms, self.equations, debug_info)
        return program.jaxpr, [*map(_canonical, constants.values())]

    def read(self, outputs: Sequence[Any]) -> dict[Var, Any]:
        """The constants that the outputs or the equations read."""
        read = {a for e in self.equations for a in e.invars if type(a) is not Literal}
        read.update(a for a in outputs if type(a) is not Literal)
        return {var: x for var, x in self.constants.values() if var in read}


class RecordingTrace(StagingTrace):
    """Writes the equations that touch its own tracers; all others run now, in the parent."""

    is_linear = True

    def __init__(self, parent: Any):
        super().__init__()
        self.parent = parent

    def atom(self, x, aval=None):
        """As of any trace; of a parent that writes, too, the variables are read as they are."""
        is_written = type(self.parent) is StagingTrace and isinstance(x, Tracer)
        return x.atom if is_written and x._trace is self.parent else super().atom(x, aval)

    def read(self, outputs):
        # A dead linear equation would only be transposed into zeros.
        self.equations, free = jx.live_and_free(self.equations, outputs)
        values, inputs = dict(self.constants.values()), {*self.inputs}
        return {
            v: values[v] if v in values else Tracer(self.parent, v) for v in free if v not in inputs
        }

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


def stage(
    fun: Callable[..., Sequence[Any]], avals: Sequence[Any], debug_info: Any, inline: bool = True
) -> ClosedJaxpr:
    """Run `fun`, which takes and returns flat lists, on tracers of the given types.

    Its constants become constants of the closed jaxpr.
    """
    trace = StagingTrace(inline)
    with source_info_util.reset_name_stack():
        source = source_info_util.current()
        tracers = [trace.new_input(aval, source) for aval in avals]
        try:
            with set_current_trace(trace):
                outputs = fun(*tracers)
            jaxpr, constants = trace.finish(outputs, debug_info)
        finally:
            trace.invalidate()
    return jx.with_constants(jaxpr, constants)


# ---- programs that run many times ----------------------------------------------------------------


WORTH_COMPILING = 4
"""After so many runs on arrays a program is compiled; until then its operations run one by one."""


class Template:
    """A program to be written down, or run, many times.

    Its values have numbers: first what is fixed, the constants and the literals, then the inputs,
    then what each equation gives.
    """

    def __init__(self, program: ClosedJaxpr):
        jaxpr, self.program, self.runs = program.jaxpr, program, 0
        read = [*(a for e in jaxpr.eqns for a in e.invars), *jaxpr.outvars]
        literals = [atom for atom in read if type(atom) is Literal]
        self.fixed = [*program.consts, *literals]
        given = (v for equation in jaxpr.eqns for v in equation.outvars)
        atoms = [*jaxpr.constvars, *literals, *jaxpr.invars, *given]
        numbers = {id(atom): i for i, atom in enumerate(atoms)}
        self.steps = [
            (e, [numbers[id(a)] for a in e.invars], [v.aval for v in e.outvars]) for e in jaxpr.eqns
        ]
        self.outputs = [numbers[id(atom)] for atom in jaxpr.outvars]
        self.out_avals = program.out_avals

    @functools.cached_property
    def compiled(self) -> Callable:
        """The program compiled; an output that is an input is not copied."""
        jaxpr, first = self.program.jaxpr, len(self.fixed)
        places = [n - first if 0 <= n - first < len(jaxpr.invars) else None for n in self.outputs]
        pairs = zip(jaxpr.outvars, places, strict=True)
        kept = jx.giving(self.program, [a for a, place in pairs if place is None])
        works = kept.jaxpr.outvars or kept.jaxpr.effects
        function = jax.jit(functools.partial(jx.evaluate, kept)) if works else lambda *_: ()

        def run(*args):
            rest = iter(function(*args))
            return [next(rest) if i is None else args[i] for i in places]

        return run


@jx.cached_by_program
def _replayed(program: ClosedJaxpr) -> Template:
    """What `replay` writes where no input is a literal."""

    def replay(*tracers):
        return jx.current_trace().replay_each(program, tracers)

    return Template(stage(replay, program.in_avals, program.jaxpr.debug_info))


def itself(program: ClosedJaxpr) -> tuple[ClosedJaxpr]:
    return (program,)


def derived(origin: Any, primitive: Any, params: dict, alone: bool, derive: Callable, *key) -> Any:
    """What `derive` makes of an equation, in templates; `None` if its rule must be asked again."""
    rule = RULES.get(primitive)
    if not rule or alone or not rule.by_types:
        return rule and rule.derived(params, derive, key[1:])
    try:
        return _derived(origin, (*params.items(),), rule, primitive, derive, *key)
    except _NEEDS_VALUES:
        return None


_NEEDS_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
"""What a rule raises that asks for the values of its inputs."""


@jx.cached_by_types
def _derived(
    params: tuple, rule: Any, primitive: Any, derive: Callable, avals: tuple, *flags: Any
) -> list:
    parts = derive(jx.single(primitive, avals, dict(params)), *flags)
    return [Template(part) if isinstance(part, ClosedJaxpr) else part for part in parts]


# Work is done on *handles*: on atoms where a trace writes, which does it itself, and on values in
# all other traces, for which this does it.


class Worker:
    """Does in a trace, on values, what a `StagingTrace` does on atoms."""

    def __init__(self, trace: Any):
        self.trace = trace

    def atom(self, x: Any) -> Any:
        """The handle of a value, or of a literal."""
        return x.val if type(x) is Literal else x

    def value(self, handle: Any) -> Any:
        return handle

    def run(self, program: Template, values: Sequence[Any], origin: Any = None) -> list:
        """Run a template: compiled if there are arrays, else equation by equation."""
        program.runs += 1
        if type(self.trace) is jx.EvalTrace and program.runs > WORTH_COMPILING:
            with contextlib.suppress(NotImplementedError):  # a primitive that XLA does not know
                return program.compiled(*values)
        with set_current_trace(self.trace), jx.context_of(origin):
            return jx.evaluate(program.program, *values, propagate_source_info=False)

    def run_equation(self, equation: JaxprEqn, values: list) -> list:
        with set_current_trace(self.trace):
            return jx.bind(equation, values)


def worker(trace: Any) -> Any:
    """What does a trace's work."""
    return trace if type(trace) is StagingTrace else Worker(trace)


def place(handles: Sequence[Any], gaps: Sequence[Any]) -> list:
    """Put handles in the gaps, and `None` for each `Zero`."""
    rest = iter(handles)
    return [next(rest) if gap is None else None for gap in gaps]
