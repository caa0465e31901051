"""Programs that run many times: a rule writes one for each type of equation, and we keep it.

    templates_of : meaning, operation, flags -> the programs that the rule writes

The answer of most rules depends only on the types of the inputs.  So the interpreters ask a rule
once for each type, on tracers, and keep the small jaxpr that it writes: a *template*.  For the next
such equation we *splice* the template into the jaxpr that a trace writes (new variables, the same
primitives, params and types: no tracer, no abstract evaluation, no traceback), or run it compiled
on arrays.  With `without_templates()` we ask every rule every time: the results are the same, up to
rounding, and take longer.

Interpreters therefore carry *handles*.  Where a trace writes a jaxpr, a handle is an atom of it,
and needs no tracer; elsewhere it is the value.  A *sink* takes equations: `Sink` runs them,
`Writing` writes them.

Read next: `forward.py`, the first interpreter that uses them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var, set_current_trace
from jax.extend.core.primitives import custom_jvp_call_p

from functrans import caches
from functrans import jaxpr as jx
from functrans.jaxpr import Atom, Operation, Place
from functrans.programs.outputs import new_outputs
from functrans.rules import RULES
from functrans.tracer import StagingTrace

_config: Any = jax.config
_RULES_FOLDER = os.path.join(os.path.dirname(__file__), "derivatives")

Handle = Any
"""An atom where a trace writes; elsewhere a value."""


class Template:
    """A program to write down, or to run, many times.

    Its values have numbers: first the constants and the literals, then the inputs, then the outputs
    of each equation.
    """

    def __init__(self, program: ClosedJaxpr):
        jaxpr = program.jaxpr
        read = [*(a for e in jaxpr.eqns for a in e.invars), *jaxpr.outvars]
        self.consts, self.literals = program.consts, [a for a in read if type(a) is Literal]
        made = (v for equation in jaxpr.eqns for v in equation.outvars)
        atoms = [*jaxpr.constvars, *self.literals, *jaxpr.invars, *made]
        numbers = {id(atom): i for i, atom in enumerate(atoms)}
        self.equations = [
            (e, [numbers[id(a)] for a in e.invars], [v.aval for v in e.outvars]) for e in jaxpr.eqns
        ]
        self.outputs = [numbers[id(atom)] for atom in jaxpr.outvars]
        self.out_avals, self.program, self.compiles = program.out_avals, program, True

    def splice(self, registers: list[Atom], equations: list[JaxprEqn], at: Place | None) -> list:
        """Write the equations at one place; for `None`, each at its own line, in the open scopes.

        `registers` holds an atom for each constant, literal and input.
        """
        here = None if at else source_info_util.current()
        for equation, numbers, avals in self.equations:
            source, context = at or (jx.scoped(here, equation), equation.ctx)
            inputs, outputs = [*map(registers.__getitem__, numbers)], [*map(Var, avals)]
            # `JaxprEqn.replace`, written out: most of the time of tracing a gradient passes here.
            params, effects = equation.params, equation.effects
            if equation.primitive is custom_jvp_call_p:
                params = _at_line(params, source)
            spliced = (inputs, outputs, equation.primitive, params, effects, source, context)
            equations.append(JaxprEqn(*spliced))
            registers += outputs
        return [*map(registers.__getitem__, self.outputs)]

    def evaluate(self, *inputs: Any) -> list:
        """Evaluate the equations, here and now."""
        registers = [*self.consts, *(literal.val for literal in self.literals), *inputs]
        for equation, numbers, _ in self.equations:
            primitive, params = equation.primitive, equation.params
            if equation.primitive is custom_jvp_call_p:
                params = _at_line(params, source_info_util.current())
            params = primitive.get_bind_params(params)
            out = primitive.bind(*map(registers.__getitem__, numbers), **params)
            registers += jx.results(primitive, out)
        return [*map(registers.__getitem__, self.outputs)]

    @functools.cached_property
    def compiled(self) -> Callable:
        """The program, compiled by XLA.

        Even the first call runs it compiled, so that no result depends on the number of calls. XLA
        does not copy an output that is an input: we return the input itself.
        """
        new = new_outputs(self.program)
        if not new.positions and not self.program.jaxpr.effects:
            return lambda *inputs: new.all_outputs(inputs, ())
        function = jax.jit(functools.partial(jx.evaluate, new.program or self.program))
        if new.program is None:
            return function
        return lambda *inputs: new.all_outputs(inputs, function(*inputs))


def _at_line(params: dict, source: Any) -> dict:
    """Params of a call; equations that a rule wrote inside get the line of the place too."""
    program, line = params["call_jaxpr"], source.traceback
    if _RULES_FOLDER not in (program.jaxpr.debug_info.func_src_info or ""):
        return params
    equations = [e.replace(source_info=e.source_info.replace(traceback=line)) for e in program.eqns]
    jaxpr = program.jaxpr.replace(eqns=equations)
    return {**params, "call_jaxpr": jx.with_constants(jaxpr, program.consts)}


# ---- sinks ---------------------------------------------------------------------------------------


class Sink:
    """Takes equations, for an interpreter, and hands them to the trace that does its work.

    For most traces a handle is the value itself, and we run templates; on arrays, compiled.
    """

    def __init__(self, trace: Any):
        self.trace = trace
        self.enter: Callable[[Any], Handle] = lambda value: value
        """The handle of a value."""
        self.leave: Callable[[Handle], Any] = self.enter
        """The value of a handle."""

    def read(self, atoms: Sequence[Atom], known: dict[Var, Handle]) -> list[Handle]:
        """The handles of some atoms, of which the variables are known."""
        return [a.val if type(a) is Literal else known[a] for a in atoms]

    def bind(self, equation: JaxprEqn, inputs: list[Handle]) -> list[Handle]:
        """The same equation with other inputs."""
        with set_current_trace(self.trace):
            return jx.bind(equation, inputs)

    def run(self, template: Template, inputs: Sequence, equation: JaxprEqn | None) -> list[Handle]:
        """A template in the place of an equation; for `None`, at the current line."""
        compiles = template.compiles and not _config.jax_disable_jit
        if compiles and type(self.trace) is jx.EvalTrace:
            try:
                return template.compiled(*inputs)
            except NotImplementedError:  # XLA does not know some primitive
                template.compiles = False
        with set_current_trace(self.trace), jx.in_place_of(equation):
            return template.evaluate(*inputs)


class Writing(Sink):
    """For a trace that writes a jaxpr: a handle is an atom of it, and we splice templates."""

    def __init__(self, trace: StagingTrace):
        self.trace, self.enter, self.leave = trace, trace.atom, trace.value

    def read(self, atoms, known):
        return [a if type(a) is Literal else known[a] for a in atoms]

    def bind(self, equation, inputs):
        outputs = [Var(v.aval) for v in equation.outvars]
        source = jx.source_of(equation)
        written = equation.replace(invars=inputs, outvars=outputs, source_info=source)
        self.trace.equations.append(written)
        return outputs

    def run(self, template, inputs, equation):
        return self.copy(template, inputs, jx.place_of(equation))

    def copy(self, template: Template, inputs: Sequence[Atom], at: Place | None) -> list[Atom]:
        """A template at one place; for `None`, each equation at its own line."""
        registers = [*map(self.trace.atom, template.consts), *template.literals, *inputs]
        return template.splice(registers, self.trace.equations, at)


def sink_of(trace: Any) -> Sink:
    """The sink for a trace."""
    # Not `isinstance`: a tape, a subclass, hands some operations to its parent.
    return Writing(trace) if type(trace) is StagingTrace else Sink(trace)


# ---- the memory ----------------------------------------------------------------------------------


_asks_every_time = False


@contextmanager
def without_templates() -> Iterator[None]:
    """Ask every rule every time, in all threads: for teaching, and for tests of the templates.

    Returns:
      A context manager, and a decorator.

    >>> import functrans as ft
    >>> from functrans import extend
    >>> with extend.without_templates():
    ...     float(ft.grad(lambda x: x**3)(2.0))
    12.0
    """
    global _asks_every_time
    before, _asks_every_time = _asks_every_time, True
    try:
        yield
    finally:
        _asks_every_time = before


def templates_of(make: Callable, of: Operation, *flags: Any) -> Any:
    """`make(of, *flags)`, a named tuple of programs and flags, with templates for programs.

    `make` stages the meaning that an interpreter gives to the operation. The result is `None` if
    the interpreter must ask the rule itself, on values, since the rule runs Python functions or
    looks at the values.
    """
    rule = RULES[of.primitive]
    if rule is None or _asks_every_time:
        return None
    primitive, params, avals, at = of
    mesh = jax.sharding.get_abstract_mesh() if at is None else at.ctx.cur_abstract_mesh
    # The equations of a carried program have contexts of their own.
    is_marked = at is not None and (at.ctx.compute_type or at.ctx.xla_metadata)
    key = (at.ctx if at and is_marked else mesh), rule, primitive, avals, make, flags
    if rule.depends_on_types_only:
        made = _by_types((*params.items(),), key, at)
    elif rule.carried:
        rest = {**params, rule.carried: None}
        program, kinds = params[rule.carried], caches.kinds(rest.values())
        made = _by_program(program, (*rest.items(),), kinds, *key, at=at)
    else:
        return None
    return None if made is MUST_ASK else made


MUST_ASK = "the rule itself"
"""Kept in the place of programs: the interpreter must ask the rule each time."""


@caches.by_types
def _by_types(params: tuple, key: tuple, at: Any) -> Any:
    try:
        return _made(dict(params), key[2:], at)
    except jax.errors.JAXTypeError:
        return MUST_ASK  # it looks at a value; a rule that is wrong fails again when it is asked


@caches.by_program
def _by_program(program: Any, rest: tuple, _: tuple, context: Any, rule: Any, *key: Any, at: Any):
    made = _made({**dict(rest), rule.carried: program}, key, at)
    # An entry of the cache must not keep its program alive.
    kept = (t for t in made if isinstance(t, Template))
    inner = (e.params.get(rule.carried) for t in kept for e, *_ in t.equations)
    return MUST_ASK if any(p is program for p in inner) else made


def _made(params: dict, key: tuple, at: JaxprEqn | None) -> Any:
    primitive, avals, make, flags = key
    with jx.in_place_of(at):  # also for the line in an error
        made = make(Operation(primitive, params, avals), *flags)
    return type(made)(*[Template(x) if isinstance(x, ClosedJaxpr) else x for x in made])
