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
    parent: Any = None

    def __init__(self, inline: bool = True):
        super().__init__()
        self.inline = inline  # the small calls that ask for it
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
        if type(x) is Literal or type(x) is Var:
            return x
        if self.owns(x):
            return x.atom
        if np.ndim(x) == 0 and not isinstance(x, jax.Array):
            return Literal(_canonical(x), jx.typeof(x))
        if id(x) not in self.constants:
            # The value is kept beside its variable, and so its id stays its own.
            self.constants[id(x)] = (Var(jx.typeof(x)), x)
        return self.constants[id(x)][0]

    def value(self, atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else Tracer(self, atom)

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
        return [Tracer(self, output) for output in outputs]

    def run(self, program: Template, atoms: Sequence[Any], origin: Any = None) -> list:
        """Write the equations of a template, in the place of an equation if one is given."""
        found = [*map(self.atom, program.constants), *atoms]
        source = jx.source_of(origin) if origin else source_info_util.current()
        for equation, inputs in program.steps:
            inputs = [found[i] if type(i) is int else i for i in inputs]
            found += self.copy(equation, inputs, source, (origin or equation).ctx)
        return [found[i] if type(i) is int else i for i in program.outputs]

    def copy(self, equation: JaxprEqn, atoms: list, source: Any, context: Any) -> list[Var]:
        """Write an equation of another program, with other inputs."""
        outputs = [Var(v.aval) for v in equation.outvars]
        self.equations.append(jx.copied(equation, atoms, outputs, source, context))
        return outputs

    def run_equation(self, equation: JaxprEqn, atoms: list) -> list[Var]:
        return self.copy(equation, atoms, jx.source_of(equation), equation.ctx)

    def replay(self, program: ClosedJaxpr, args: Sequence[Any]) -> list[Any]:
        """Write the equations of another program as if its function had run here."""
        values = jx.environment(program, args)

        def read(atom):
            return atom.val if isinstance(atom, Literal) else values[atom]

        here = source_info_util.current()
        for equation in program.jaxpr.eqns:
            inputs, source = [read(atom) for atom in equation.invars], jx.scoped(here, equation)
            primitive, params, outs = equation.primitive, equation.params, None
            if primitive in STAGED:
                with jx.context_of(equation, source):
                    outs = STAGED[primitive](self, primitive, inputs, params)
            if outs is None:
                atoms = self.copy(equation, [*map(self.atom, inputs)], source, equation.ctx)
                outs = [Tracer(self, atom) for atom in atoms]
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

    def atom(self, x):
        """As of any trace; of a parent that writes, too, the variables are read as they are."""
        is_written = type(self.parent) is StagingTrace and isinstance(x, Tracer)
        return x.atom if is_written and x._trace is self.parent else super().atom(x)

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
        tracers = [trace.new_input(aval) for aval in avals]
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

    Its values have numbers: the constants first, then the inputs, then what each equation gives.
    """

    def __init__(self, program: ClosedJaxpr):
        jaxpr, self.program, self.constants = program.jaxpr, program, program.consts
        numbers = {v: i for i, v in enumerate([*jaxpr.constvars, *jaxpr.invars])}

        def numbered(atoms):
            return [a if type(a) is Literal else numbers[a] for a in atoms]

        self.steps = []
        for equation in jaxpr.eqns:
            self.steps.append((equation, numbered(equation.invars)))
            numbers.update({v: len(numbers) + i for i, v in enumerate(equation.outvars)})
        self.outputs = numbered(jaxpr.outvars)
        self.runs = 0

    @functools.cached_property
    def compiled(self) -> Callable:
        """The program compiled; an output that is an input is not copied."""
        found: dict[Any, int] = {v: i for i, v in enumerate(self.program.jaxpr.invars)}
        outputs = self.program.jaxpr.outvars
        places = [None if type(a) is Literal else found.get(a) for a in outputs]
        new = [a for a, place in zip(outputs, places, strict=True) if place is None]
        kept = jx.giving(self.program, new)
        works = new or kept.jaxpr.effects
        function = jax.jit(functools.partial(jx.evaluate, kept)) if works else lambda *_: ()

        def run(*args):
            rest = iter(function(*args))
            return [next(rest) if i is None else args[i] for i in places]

        return run


def itself(program: ClosedJaxpr) -> tuple[ClosedJaxpr]:
    return (program,)


def derived(origin: Any, primitive: Any, params: dict, alone: bool, derive: Callable, *key) -> Any:
    """What `derive` makes of an equation, in templates; `None` if its rule must be asked again."""
    rule = RULES.get(primitive)
    if found := rule and rule.derived(params, derive, key[1:]):
        return found
    if not rule or not rule.by_types or alone:
        return None
    with contextlib.suppress(*_NEEDS_VALUES):
        return _derived(origin, tuple(params.items()), rule, primitive, derive, *key)
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
