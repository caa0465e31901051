"""A function as steps that have names, before anything is evaluated: `(a -> b), a -> Run`.

    v₋₁, v₀      the inputs          v₁, v₂, ...      one for each output of each equation

The function is staged, and calls of jitted functions are opened where that is asked for.

Read next: `starts.py`, where a derivative starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from jax import tree
from jax.core import Tracer
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import jit_p
from jax.tree_util import keystr, tree_flatten_with_path

from functrans import jaxpr as jx
from functrans.errors import checks
from functrans.explain import notation
from functrans.explain.notation import subscript
from functrans.explain.records import Number, Result, Run, Step, Variable
from functrans.flat import Flat
from functrans.programs.replay import walk
from functrans.tracer import stage


def planned(name: str, fun: Callable, args: tuple, unfold: bool) -> Run:
    """The steps of `fun(*args)`; of all variables the inputs and the constants have values.

    `name` is that of the function that the user has called, for its errors. With `unfold` no call
    of a jitted function remains.
    """
    checks.is_function(name, fun)
    paths, in_tree = tree_flatten_with_path(args)
    leaves = [known(x) for _, x in paths]
    flat, avals = Flat(fun, in_tree), [checks.type_of(name, x) for x in leaves]
    program, _ = stage(flat, avals, jx.debug_info(name, fun))
    while _has_calls(program, any if unfold else all):
        program = _opened(program)
    return _named(program, flat, _labels(fun, args, paths), leaves)


def known(x: Any) -> Any:
    """The value of a tracer, if it has one: in `grad` and `jvp` it has, in `jit` it has not."""
    value = x.to_concrete_value() if isinstance(x, Tracer) else None
    return x if value is None else value


# ---- calls of jitted functions -------------------------------------------------------------------


def _has_calls(program: ClosedJaxpr, quantifier: Callable) -> bool:
    """Whether any equation, or all of them, are calls of jitted functions."""
    equations = program.jaxpr.eqns
    return bool(equations) and quantifier(e.primitive is jit_p for e in equations)


def _opened(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program with the equations of the jitted functions in place of their calls."""

    def run(*inputs):
        return _evaluate_opened(program, inputs), None

    return stage(run, program.in_avals, program.jaxpr.debug_info)[0]


def _evaluate_opened(program: ClosedJaxpr, inputs: Sequence) -> list:
    """Evaluate a program, and in place of each call the body of the function that it calls.

    An equation that a library wrote gets the line of the call.
    """

    def meet(equation, xs):
        primitive = equation.primitive
        has_line = bool(source_info_util.summarize(equation.source_info))
        here = None if has_line else jx.scoped(source_info_util.current(), equation)
        with jx.in_place_of(equation, here):
            if primitive is jit_p:
                return _evaluate_opened(equation.params["jaxpr"], xs)
            params = primitive.get_bind_params(equation.params)
            return jx.results(primitive, primitive.bind(*xs, **params))

    return walk(program, inputs, meet)


# ---- names ---------------------------------------------------------------------------------------


def _labels(fun: Callable, args: tuple, paths: Sequence) -> list[str]:
    """What the user calls each leaf of the arguments: `w`, `params['layer'][0]`."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):  # a function written in C
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += [f"x{subscript(i + 1)}" for i in range(len(names), len(args))]
    return [names[path[0].idx] + keystr(path[1:]) for path, _ in paths]


class _Registry(dict[Var, Variable]):
    """The variables of a jaxpr, as they are recorded."""

    def read(self, atom: jx.Atom) -> Variable | Number:
        return Number(atom.val, atom.aval) if isinstance(atom, Literal) else self[atom]


def _named(program: ClosedJaxpr, flat: Flat, labels: Sequence[str], leaves: Sequence) -> Run:
    """Name the variables of a program, and write the expressions of its steps."""
    jaxpr, count = program.jaxpr, len(leaves)
    inputs = [
        Variable(f"v{subscript(i - count + 1)}", var.aval, label, x)
        for i, (var, label, x) in enumerate(zip(jaxpr.invars, labels, leaves, strict=True))
    ]
    constants = [
        Variable(f"c{subscript(i + 1)}", var.aval, value=known(x))
        for i, (var, x) in enumerate(zip(jaxpr.constvars, program.consts, strict=True))
    ]
    variables = [*jaxpr.invars, *jaxpr.constvars]
    registry = _Registry(zip(variables, [*inputs, *constants], strict=True))
    steps = _steps(jaxpr.eqns, _read(jaxpr), registry)
    paths, _ = tree_flatten_with_path(tree.unflatten(flat.out_tree, jaxpr.outvars))
    results = [Result("y" + keystr(path), registry.read(atom)) for path, atom in paths]
    return Run(flat, inputs, constants, steps, results)


def _read(jaxpr: Any) -> set[Var]:
    """The variables that an equation reads, or that are results."""
    atoms = [*jaxpr.outvars, *(atom for equation in jaxpr.eqns for atom in equation.invars)]
    return {atom for atom in atoms if not isinstance(atom, Literal)}


def _steps(equations: Sequence[JaxprEqn], read: set[Var], registry: _Registry) -> list[Step]:
    """Record the equations, and in `registry` their outputs."""
    steps, number = [], 0
    for equation in equations:
        outputs = [Variable("", var.aval) for var in equation.outvars]
        registry.update(zip(equation.outvars, outputs, strict=True))
        for output in [registry[var] for var in equation.outvars if var in read] or outputs:
            number += 1
            output.name = f"v{subscript(number)}"
        inputs = [registry.read(atom) for atom in equation.invars]
        expression = notation.expression(equation, [x.text for x in inputs]).text
        steps.append(Step(equation, inputs, outputs, expression))
    return steps
