"""The arithmetic of indices, folded: `program -> program`, in which it is one call.

    x[arange(n), i]      iota, lt, add, select_n, broadcast, concatenate     become     indices(i)

JAX counts an index that is negative from the other end, and brings several indices together, before
it reads or writes by them.  None of these equations has a derivative.

Read next: `planning.py`, which names the variables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax.core
import numpy as np
from jax.extend.core import ClosedJaxpr, DebugInfo, Jaxpr, JaxprEqn, Literal, Var

from functrans import jaxpr as jx
from functrans.explain.records import Places
from functrans.explain.unfolding import Unfolded, called
from functrans.values import is_differentiable

INDICES = {"gather": slice(1, 2), "dynamic_slice": slice(1, None)}
INDICES |= {"dynamic_update_slice": slice(2, None), "scatter": slice(1, 2)}
"""Which of its inputs a primitive reads as indices."""


def folded(unfolded: Unfolded) -> Unfolded:
    """Put the equations that only make the indices of another one into a call before it."""
    program, places = _without_constants(unfolded)
    jaxpr = program.jaxpr
    groups: dict[int, list[JaxprEqn]] = defaultdict(list)
    for i, owner in sorted(_owners(jaxpr).items()):
        groups[owner].append(jaxpr.eqns[i])
    groups = {owner: made for owner, made in groups.items() if len(made) > 1}
    gone = {id(equation) for made in groups.values() for equation in made}
    kept: list[tuple[JaxprEqn, Places]] = []
    for i, (equation, place) in enumerate(zip(jaxpr.eqns, places, strict=True)):
        kept += [(_call(groups[i], jaxpr), place)] if i in groups else []
        kept += [] if id(equation) in gone else [(equation, place)]
    return _with_equations(program, kept)


def _with_equations(program: ClosedJaxpr, kept: Sequence[tuple[JaxprEqn, Places]]) -> Unfolded:
    jaxpr, equations = program.jaxpr, [equation for equation, _ in kept]
    given, outputs, constants = jaxpr.invars, jaxpr.outvars, (jaxpr.constvars, program.consts)
    whole = jx.closed(given, outputs, equations, jaxpr.debug_info, *constants)
    return Unfolded(whole, [place for _, place in kept])


def _without_constants(unfolded: Unfolded) -> Unfolded:
    """Write numbers for the indices that depend on nothing but numbers."""
    jaxpr, known = unfolded.program.jaxpr, {}
    owners = _owners(jaxpr)
    kept: list[tuple[JaxprEqn, Places]] = []
    for i, (equation, place) in enumerate(zip(jaxpr.eqns, unfolded.places, strict=True)):
        atoms = [a if isinstance(a, Literal) else known.get(a, a) for a in equation.invars]
        values = [a.val for a in atoms if isinstance(a, Literal)]
        avals: list[Any] = [var.aval for var in equation.outvars]
        is_number = all(aval.shape == () for aval in avals)
        if i in owners and is_number and len(values) == len(atoms):
            with jax.core.eval_context():
                ys = map(np.asarray, jx.bind(equation, values))
            pairs = zip(equation.outvars, ys, strict=True)
            known.update((var, Literal(y[()], var.aval)) for var, y in pairs)
        else:
            kept.append((equation.replace(invars=atoms), place))
    return _with_equations(unfolded.program, kept)


def _owners(jaxpr: Jaxpr) -> dict[int, int]:
    """The equation that reads the indices, for each equation that only makes indices."""
    readers: dict[Any, set[int]] = defaultdict(set)
    others: dict[Any, set[int]] = defaultdict(set)  # that read it, and not as an index
    for i, equation in enumerate(jaxpr.eqns):
        indices = equation.invars[_indices(equation)]
        for atom in _variables(equation):
            readers[atom].add(i)
            others[atom] |= set() if atom in indices else {i}
    results = {atom for atom in jaxpr.outvars if not isinstance(atom, Literal)}
    owners: dict[int, int] = {}
    for i, equation in reversed([*enumerate(jaxpr.eqns)]):
        made = equation.outvars
        if equation.effects or any(is_differentiable(v.aval) or v in results for v in made):
            continue
        read = set().union(*(readers[var] for var in made))
        if read and not any(others[var] for var in made):
            owners[i] = min(read)
        elif read <= owners.keys() and len(found := {owners[reader] for reader in read}) == 1:
            owners[i] = found.pop()
    return owners


def _indices(equation: JaxprEqn) -> slice:
    name = str(equation.primitive)
    return INDICES.get("scatter" if name.startswith("scatter") else name, slice(0, 0))


def _call(equations: list[JaxprEqn], jaxpr: Jaxpr) -> JaxprEqn:
    """A call of a function `indices`, whose body these equations are."""
    own = {var: None for equation in equations for var in equation.outvars}
    inner = {id(equation) for equation in equations}
    outer = {atom for e in jaxpr.eqns if id(e) not in inner for atom in _variables(e)}
    given = [*dict.fromkeys(v for e in equations for v in _variables(e) if v not in own)]
    outputs = [var for var in own if var in outer]
    program = jx.closed(given, outputs, equations, DebugInfo("explain", "indices", None, None))
    last = equations[-1]
    return called(program, given, last, last.source_info, outputs)


def _variables(equation: JaxprEqn) -> list[Var]:
    return [atom for atom in equation.invars if not isinstance(atom, Literal)]
