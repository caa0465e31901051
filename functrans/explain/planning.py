"""A function as steps that have names, before anything is evaluated: `(a -> b), a -> Run`.

    v₋₁, v₀      the inputs          v₁, v₂, ...      one for each output of each equation

We stage the function, and open the calls, loops and branches that the user asks for.  We fold the
arithmetic of indices, unless the user asks for it too.

Read next: `starts.py`, where a derivative starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from jax import tree
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from jax.extend.core.primitives import jit_p, remat_p
from jax.tree_util import keystr, tree_flatten_with_path

from functrans import jaxpr as jx
from functrans.errors import checks, wording
from functrans.explain import indices, notation, unfolding
from functrans.explain.notation import subscript
from functrans.explain.records import Number, Places, Result, Run, Step, Variable
from functrans.explain.unfolding import Unfolded, kind_of, some_rounds
from functrans.flat import Flat
from functrans.tracer import stage


class Staged(NamedTuple):
    """A function, staged at arguments."""

    function: Flat
    paths: list
    """The paths of the leaves of the arguments."""
    leaves: list
    program: ClosedJaxpr


def staged(name: str, fun: Callable, args: Any) -> Staged:
    """Stage `fun(*args)` for the public function `name`, or say what is wrong with it."""
    checks.is_function(name, fun)
    pairs, in_tree = tree_flatten_with_path(args)
    leaves = [known(x) for _, x in pairs]
    flat, avals = Flat(fun, in_tree), [checks.type_of(name, x) for x in leaves]
    program, _ = stage(flat, avals, jx.debug_info(name, fun))
    if not program.out_avals:
        raise wording.no_array(name, tree.unflatten(flat.out_tree, []))
    return Staged(flat, [path for path, _ in pairs], leaves, program)


Unfold = bool | str | Collection[str]
"""The choice of what to open: all, nothing, or some of `CLOSED`."""
CLOSED = ("calls", "loops", "branches", "indices")
"""The kinds of equations that stand for several, unless they are opened."""


def planned(name: str, fun: Callable, args: tuple, unfold: Unfold) -> Run:
    """The steps of `fun(*args)`; so far only the inputs and the constants have values.

    `name` is the public function that the user has called, for its errors. `unfold` says what to
    open: kinds in `CLOSED`, or `True` for all but the arithmetic of indices.
    """
    opens = _opened(name, unfold)
    function, paths, leaves, program = staged(name, fun, args)
    jits = 0
    while (equations := program.jaxpr.eqns) and all(e.primitive is jit_p for e in equations):
        jits += 1
        program, _ = unfolding.unfold(program, leaves, _is_outermost, some_rounds)
    unfolded = Unfolded(program, [()] * len(program.jaxpr.eqns))
    if opens:
        # What a checkpoint keeps is its own.
        unfolded = unfolding.unfold(
            program,
            leaves,
            lambda e, _: kind_of(e) in opens and e.primitive is not remat_p,
            some_rounds,
        )
    if "indices" not in opens:
        unfolded = indices.folded(unfolded)
    run = _named(unfolded, function, _labels(fun, args, paths), leaves)
    run.jits = jits
    return run


def _opened(name: str, unfold: Unfold) -> Collection[str]:
    """The kinds in `CLOSED` to open, if the user has given `unfold` to `name`."""
    if isinstance(unfold, bool):
        return CLOSED[:-1] if unfold else ()
    kinds = [unfold] if isinstance(unfold, str) else [*unfold]
    if wrong := [kind for kind in kinds if kind not in CLOSED]:
        raise ValueError(
            f"{name}: unfold must be True, False, or some of {CLOSED}, but it has {wrong[0]!r}"
        )
    return kinds


def _is_outermost(_: JaxprEqn, places: Places) -> bool:
    return not places


def known(x: Any) -> Any:
    """The value of a tracer, if it has one: it has one in `grad` and `jvp`, and none in `jit`."""
    value = x.to_concrete_value() if isinstance(x, Tracer) else None
    return x if value is None else value


# ---- names ---------------------------------------------------------------------------------------


def _labels(fun: Callable, args: tuple, paths: Sequence) -> list[str]:
    """What the user calls each leaf of the arguments: `w`, `params['layer'][0]`."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):  # a function written in C
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += [f"x{subscript(i + 1)}" for i in range(len(names), len(args))]
    return [names[path[0].idx] + keystr(path[1:]) for path in paths]


class _Registry(dict[Var, Variable]):
    """The variables of a jaxpr, as they are recorded."""

    def read(self, atom: jx.Atom) -> Variable | Number:
        return Number(atom.val, atom.aval) if isinstance(atom, Literal) else self[atom]


def _named(unfolded: Unfolded, flat: Flat, labels: Sequence[str], leaves: Sequence) -> Run:
    """Name the variables of a program, and write the expressions of its steps."""
    program = unfolded.program
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
    steps = _steps(unfolded, _read(jaxpr), registry)
    paths, _ = tree_flatten_with_path(tree.unflatten(flat.out_tree, jaxpr.outvars))
    results = [Result("y" + keystr(path), registry.read(atom)) for path, atom in paths]
    return Run(flat, inputs, constants, steps, results, program)


def _read(jaxpr: Any) -> set[Var]:
    """The variables that an equation reads, or that are results."""
    atoms = [*jaxpr.outvars, *(atom for equation in jaxpr.eqns for atom in equation.invars)]
    return {atom for atom in atoms if not isinstance(atom, Literal)}


def _steps(unfolded: Unfolded, read: set[Var], registry: _Registry) -> list[Step]:
    """Record the equations, and in `registry` their outputs."""
    steps, number = [], 0
    for equation, places in zip(unfolded.program.jaxpr.eqns, unfolded.places, strict=True):
        outputs = [Variable("", var.aval) for var in equation.outvars]
        registry.update(zip(equation.outvars, outputs, strict=True))
        for output in [registry[var] for var in equation.outvars if var in read] or outputs:
            number += 1
            output.name = f"v{subscript(number)}"
        inputs = [registry.read(atom) for atom in equation.invars]
        expression = notation.expression(equation, [x.text for x in inputs]).text
        shown = tuple([place for place in places if not place.is_call])
        steps.append(Step(equation, inputs, outputs, expression, shown))
    return steps
