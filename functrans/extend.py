"""The interface for transforms of your own: a loop over equations, and a meaning for each.

    interpret : program, [x], (equation, [x] -> [y])  ->  [y]

A transform takes a function, stages it (`staged`), and walks the equations of the program with
values of its own kind in the place of arrays: intervals, sets of indices, Taylor coefficients.  For
one equation it may ask

    bind                 its outputs
    tangent_program      its tangents, as a program, from its derivative rule
    derivative_program   the same, reading the outputs instead of computing them again
    tangents_of          the tangents of such a program, for second derivatives
    through              its outputs on columns of arrays, if it carries programs (a loop, ...)
    rule_of              its rule, with the kind of operation (`is_linear`, `is_diagonal`)
    is_elementwise       whether it acts on each element by itself

With `transformed` a transform of a jitted function is jitted, as functrans's own are.

>>> import jax, functrans as ft
>>> from functrans import extend
>>> def operations(fun):
...     '''A function of the same arguments that counts the equations of `fun`.'''
...     def count(*args):
...         return len(extend.staged(fun, *args).program.jaxpr.eqns)
...     return count
>>> operations(lambda x: jax.numpy.sin(x) * x + 1.0)(2.0)
3

Read next: `taylor/__init__.py`, transforms written with this interface; or `jacobians.py`,
transforms that need no loop of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import lax, tree
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Primitive, Var

from functrans import caches
from functrans import jaxpr as jx
from functrans.control_flow.calls import InlinedRule
from functrans.control_flow.columns import carries_programs, through
from functrans.control_flow.jit import JitRule
from functrans.control_flow.library import derivative_of
from functrans.control_flow.odeint import is_solver, with_fixed_steps
from functrans.control_flow.scan import Loop as Scan
from functrans.control_flow.while_loop import Loop as While
from functrans.errors import checks
from functrans.flat import Flat
from functrans.forward import jvp_jaxpr, pushed_program
from functrans.jaxpr import Operation, bind
from functrans.jit import transformed, transformed_at_primals
from functrans.programs.live import giving, live, reached
from functrans.programs.strong import pushed_on_a_tape
from functrans.rules import RULES, rule_of
from functrans.templates import Template, sink_of, templates_of, without_templates
from functrans.tracer import Derived, stage
from functrans.values import (
    Flags,
    Linear,
    Zero,
    add,
    instantiate,
    merge,
    moving,
    part,
    pick,
    result,
    with_zeros,
)

__all__ = [
    "staged",
    "interpret",
    "bind",
    "evaluate",
    "tangent_program",
    "derivative_program",
    "tangents_of",
    "carries_programs",
    "times",
    "through",
    "rule_of",
    "is_elementwise",
    "transformed",
    "transformed_at_primals",
    "without_templates",
    "Staged",
    "Scan",
    "While",
    "Zero",
    "Linear",
    "instantiate",
    "result",
    "add",
    "moving",
    "pick",
    "part",
    "merge",
    "with_zeros",
]


class Staged(NamedTuple):
    """A function as a program, at arguments of given types."""

    program: ClosedJaxpr
    leaves: list
    """The arguments, flat."""
    out_tree: Any
    """The structure of the result."""

    def result(self, outs: Sequence) -> Any:
        """The results of the program, in the structure that the function returns."""
        return tree.unflatten(self.out_tree, outs)


def staged(fun: Callable, *args: Any) -> Staged:
    """Stage a function with functrans's tracer.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *args: its arguments; a `jax.ShapeDtypeStruct` may stand for an array.

    Returns:
      A `Staged`: the program, the flat arguments, and the structure of the result.

    Raises:
      TypeError: if an argument or a result is not an array.

    See also:
      `functrans.make_jaxpr`, a transform that gives the program alone.

    >>> from functrans import extend
    >>> extend.staged(lambda x: 2.0 * x, 3.0).program
    { lambda ; a:f32[]. let b:f32[] = mul 2.0:f32[] a in (b,) }
    """
    checks.is_function("staged", fun)
    leaves, in_tree = tree.flatten(args)
    flat = Flat(fun, in_tree)
    avals = [checks.type_of("staged", x) for x in leaves]
    program, _ = stage(flat, avals, jx.debug_info("staged", fun))
    return Staged(program, leaves, flat.out_tree)


def interpret(
    program: ClosedJaxpr,
    inputs: Sequence[Any],
    meaning: Callable[[JaxprEqn, list], Sequence],
    constant: Callable[[Any], Any] = lambda value: value,
    own_rules: bool = False,
) -> list:
    """Walk the equations of a program from the first to the last, and enter calls of functions.

    Args:
      program: a closed jaxpr.
      inputs: a value, of any kind, for each input of the program.
      meaning: a function of an equation and the values of its inputs. It returns a value for each
        output.
      constant: a function that makes such a value of a number or an array in the program.
      own_rules: whether to treat a call with a derivative of its own, such as one of a
        `jax.custom_jvp` function, as one equation.

    Returns:
      A list with a value for each output of the program.

    >>> import jax.numpy as jnp
    >>> from functrans import extend
    >>> program = extend.staged(lambda x: jnp.sin(x) * x, 2.0).program
    >>> names = []
    >>> def named(equation, inputs):
    ...     names.append(equation.primitive.name)
    ...     return extend.bind(equation, inputs)
    >>> (y,) = extend.interpret(program, [2.0], named)
    >>> float(y), names
    (1.8185948133468628, ['sin', 'mul'])
    """
    consts = [constant(x) for x in program.consts]
    known = dict(zip(program.jaxpr.constvars, consts, strict=True))
    known |= dict(zip(program.jaxpr.invars, inputs, strict=True))

    def read(atom: jx.Atom) -> Any:
        return constant(atom.val) if isinstance(atom, Literal) else known[atom]

    for equation in program.jaxpr.eqns:
        xs = [read(atom) for atom in equation.invars]
        called = _called(equation, own_rules)
        if called is None:
            ys = meaning(equation, xs)
        else:
            ys = interpret(called, xs, meaning, constant, own_rules)
        known.update(zip(equation.outvars, ys, strict=True))
    return [read(atom) for atom in program.jaxpr.outvars]


def _called(equation: JaxprEqn, own_rules: bool) -> ClosedJaxpr | None:
    """The program of a call, if the equation is nothing but a call of one function."""
    rule = RULES.get(equation.primitive)
    if isinstance(rule, JitRule):
        (program,) = rule.bodies(equation.params)
        if own_rules and is_solver(equation.params):  # the size of a step has no derivative
            return with_fixed_steps(program)
        return None if own_rules and derivative_of(equation.params) else program
    if isinstance(rule, InlinedRule):
        return rule.program(equation.params)
    # Of a custom rule: the function itself.
    return None if own_rules else equation.params.get("call_jaxpr")


def is_elementwise(primitive: Primitive) -> bool:
    """Tell whether each element of the result depends on one element of each input.

    `rule_of(primitive).is_diagonal` says the same of a derivative that is one factor for each
    element. This function also knows the operations that are linear over the real numbers only, as
    `conj` is, or linear in part, as `select_n` is.

    Args:
      primitive: the operation.

    Returns:
      A boolean.

    Raises:
      NotImplementedError: if the primitive has no rule.

    >>> from jax import lax
    >>> from functrans import extend
    >>> extend.is_elementwise(lax.sin_p), extend.is_elementwise(lax.select_n_p)
    (True, True)
    >>> extend.is_elementwise(lax.rev_p)
    False
    """
    return primitive in _LINEAR_IN_EACH_ELEMENT or rule_of(primitive).is_diagonal


# Their rules say that they are linear, or linear over the real numbers, and not in which elements.
_LINEAR_IN_EACH_ELEMENT = {lax.select_n_p, lax.convert_element_type_p, lax.reduce_precision_p}
_LINEAR_IN_EACH_ELEMENT |= {lax.real_p, lax.imag_p, lax.conj_p, lax.complex_p, lax.abs_p}


def evaluate(program: ClosedJaxpr, inputs: Sequence, equation: JaxprEqn) -> list:
    """Evaluate a program that was derived from an equation, in the place of the equation.

    Args:
      program: a closed jaxpr, such as that of `tangent_program`.
      inputs: an array for each input of the program.
      equation: the equation. Errors and profiles then point to its line.

    Returns:
      A list with an array for each output of the program.

    See also:
      `bind`, which evaluates the equation itself.

    >>> import jax.numpy as jnp
    >>> from functrans import extend
    >>> (equation,) = extend.staged(jnp.square, 2.0).program.jaxpr.eqns
    >>> y, y_dot = extend.evaluate(extend.tangent_program(equation, [True]).program, [3.0, 1.0],
    ...                            equation)
    >>> float(y), float(y_dot)
    (9.0, 6.0)
    """
    sink, written = sink_of(jx.current_trace()), Template(program)
    written.compiles = False  # it is not kept
    outs = sink.run(written, [*map(sink.enter, inputs)], equation)
    return [*map(sink.leave, outs)]


def tangent_program(equation: JaxprEqn, flags: Sequence[bool]) -> Derived:
    """Derive the program of an equation's tangents: what its rule writes.

    Args:
      equation: an equation of a program.
      flags: for each input, whether it has a tangent.

    Returns:
      `(program, moved)`. The program computes `(inputs, tangents of the inputs with the flag) ->
      (outputs, tangents of the outputs that moved)`; `moved` says of each output whether it did.

    Raises:
      NotImplementedError: if the primitive has no rule.

    See also:
      `derivative_program`, which reads the outputs instead of computing them; `evaluate`, which
      runs the program.

    >>> import jax.numpy as jnp
    >>> from functrans import extend
    >>> (equation,) = extend.staged(jnp.sin, 2.0).program.jaxpr.eqns
    >>> extend.tangent_program(equation, [True]).program
    { lambda ; a:f32[] b:f32[]. let
        c:f32[] = sin a
        d:f32[] = cos a
        e:f32[] = mul b d
      in (c, e) }
    """
    operation, flags = Operation.of(equation), tuple(flags)
    kept = templates_of(pushed_program, operation, flags)
    return Derived(kept.program.program, kept.moved) if kept else pushed_program(operation, flags)


def derivative_program(equation: JaxprEqn, flags: Sequence[bool]) -> Derived:
    """Derive the program of an equation's tangents that reads the equation's results.

    Args:
      equation: an equation of a program.
      flags: for each input, whether it has a tangent.

    Returns:
      `(program, moved)`. The program computes `(inputs, outputs, tangents of the inputs with the
      flag) -> tangents of the outputs that moved`; `moved` says of each output whether it did.

    Raises:
      NotImplementedError: if the primitive has no rule.

    See also:
      `tangent_program`, which computes the outputs too.

    >>> import jax.numpy as jnp
    >>> from functrans import extend
    >>> (equation,) = extend.staged(jnp.exp, 2.0).program.jaxpr.eqns
    >>> extend.derivative_program(equation, [True]).program
    { lambda ; a:f32[] b:f32[] c:f32[]. let d:f32[] = mul c b in (d,) }
    """
    program, moved = tangent_program(equation, flags)
    return Derived(_reading_results(program, len(flags), len(moved)), moved)


@caches.by_program
def tangents_of(program: ClosedJaxpr, flags: Flags) -> Derived:
    """Derive the program of the tangents of a program, such as a `derivative_program`.

    Args:
      program: a closed jaxpr.
      flags: a tuple that says for each input whether it has a tangent.

    Returns:
      `(program, moved)`. The program computes `(inputs, tangents of the inputs with the flag) ->
      tangents of the outputs that moved`; `moved` says of each output whether it did.

    See also:
      `tangent_program` and `derivative_program`, for one equation.

    >>> from functrans import extend
    >>> program = extend.staged(lambda x, y: x * y, 2.0, 3.0).program
    >>> extend.tangents_of(program, (True, False)).program
    { lambda ; a:f32[] b:f32[] c:f32[]. let d:f32[] = mul c b in (d,) }
    """
    pushed, moved = jvp_jaxpr(program, flags)
    return Derived(giving(pushed, pushed.jaxpr.outvars[len(moved) :]), moved)


def times(slope: Any, tangent: Any) -> Any:
    """Multiply as in the chain rule: `slope * tangent`, and under `strong_zeros` `inf * 0 = 0`.

    Args:
      slope: an array, a derivative.
      tangent: an array that broadcasts against it, a tangent.

    Returns:
      The product.

    >>> import functrans as ft
    >>> from functrans import extend
    >>> with ft.strong_zeros():
    ...     float(extend.times(float("inf"), 0.0))
    0.0
    """
    return pushed_on_a_tape(lambda dots: slope * dots[0], [tangent])


@caches.by_program
def _reading_results(program: ClosedJaxpr, inputs: int, count: int) -> ClosedJaxpr:
    """The program with its first `count` outputs as inputs, after the first of its inputs."""
    jaxpr = program.jaxpr
    computed = {v for equation in jaxpr.eqns for v in equation.outvars}
    results: list[Any] = []
    for atom in jaxpr.outvars[:count]:  # an input that is handed on stays what it is
        is_new = isinstance(atom, Var) and atom in computed and atom not in results
        results.append(atom if is_new else Var(atom.aval))
    given, equations = set(results), []
    dots = reached(jaxpr.eqns, jaxpr.invars[inputs:])
    for e in jaxpr.eqns:
        outs = [Var(v.aval) if v in given else v for v in e.outvars]
        # An equation without results writes to a reference: to that of the values it did before.
        writes_dots = not outs and not dots.isdisjoint(a for a in e.invars if isinstance(a, Var))
        if writes_dots or not given.issuperset(e.outvars):
            equations.append(e.replace(outvars=outs))
    outputs = jaxpr.outvars[count:]
    variables = [*jaxpr.invars[:inputs], *results, *jaxpr.invars[inputs:]]
    kept, info = live(equations, outputs), jaxpr.debug_info
    return jx.closed(variables, outputs, kept, info, jaxpr.constvars, program.consts)
