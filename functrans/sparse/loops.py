"""Equations that carry programs: branches, loops, solvers, functions to be computed again.

    solve    its solver is such a program
    cond     the union over the branches, or the branch itself if it is known which
    scan     each of the steps in turn
    while    the union over any number of steps: a fixed point

The body of a loop is linear in the tangents as well, and so it has a pattern: that of `(consts,
carry, x) -> (carry, y)`, which we find once.  A step is then a product of patterns.  If the steps
are few and read something that is known (a counter, an index), we interpret each with its own
values.

Read next: `declared.py`, patterns that a user gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, jaxprs_in_params
from jax.extend.core.primitives import cond_p, linear_solve_p, remat_p, scan_p
from scipy import sparse

from functrans import extend
from functrans.sparse.algebra import Matrix, identity, selection, times
from functrans.sparse.detection import (
    CALLS,
    Value,
    constant,
    meaning,
    no_rows,
    present,
    union,
)
from functrans.sparse.numbers import Equation

FEW = 4_000
"""We interpret each step with its own values up to this many equations in all steps."""


def run(program: ClosedJaxpr, inputs: Sequence[Value]) -> list[Value]:
    return extend.interpret(program, inputs, meaning, constant)


def checkpoint(equation: Equation, inputs: list[Value]) -> list[Value]:
    rule: Any = extend.rule_of(equation.primitive)
    (program,) = rule.bodies(equation.params)
    return run(program, inputs)


def linear_solve(equation: Equation, inputs: list[Value]) -> list[Value]:
    """The pattern of the solver in the right-hand side; the system itself does not move."""
    lengths, solver = equation.params["const_lengths"], equation.params["jaxprs"].solve
    start = lengths.matvec + lengths.vecmat
    return run(solver, [*inputs[start : start + lengths.solve], *inputs[sum(lengths) :]])


def cond(equation: Equation, inputs: list[Value]) -> list[Value]:
    index, *rest = inputs
    branches = equation.params["branches"]
    if index.known is not None:
        return run(branches[int(np.clip(index.now, 0, len(branches) - 1))], rest)
    shapes, results = [v.aval.shape for v in equation.outvars], []
    for branch in branches:
        results.append([out.rows for out in run(branch, rest)])
    rows = results[0]
    for others in results[1:]:
        rows = [union(a, b) for a, b in zip(rows, others, strict=True)]
    return [*map(Value, shapes, rows)]


# ---- the pattern of a step -----------------------------------------------------------------------


class Step(NamedTuple):
    """The pattern of a body, between those of its inputs and outputs that tangents reach."""

    pattern: Matrix
    reads: list[bool]
    writes: list[bool]


def step_of(program: ClosedJaxpr, inputs: Sequence[Value], reached: Sequence[bool]) -> Step:
    """The pattern of a program in the inputs that are `reached`."""
    sizes = [np.prod(x.shape, dtype=int) if r else 0 for x, r in zip(inputs, reached, strict=True)]
    starts, width = np.cumsum([0, *sizes]).tolist(), sum(sizes)
    given = [
        x._replace(rows=selection(np.arange(start, start + size), width)) if size else
        x._replace(rows=None)
        for x, start, size in zip(inputs, starts, sizes, strict=False)
    ]  # fmt: skip
    outs = run(program, given)
    writes = [out.rows is not None for out in outs]
    kept = [out.rows for out in outs if out.rows is not None]
    return Step(stacked(kept, width), list(reached), writes)


def stacked(rows: Sequence[Matrix], width: int) -> Matrix:
    return sparse.vstack(rows, format="csr") if rows else no_rows((0,), width)


def settled(program: ClosedJaxpr, inputs: list[Value], carry: slice) -> tuple[list[bool], Step]:
    """The inputs that tangents reach in some step, and the pattern in them."""
    reached = [x.rows is not None for x in inputs]
    while True:
        step = step_of(program, inputs, reached)
        size = carry.stop - carry.start
        found = [a or b for a, b in zip(reached[carry], step.writes[:size], strict=True)]
        if found == reached[carry]:
            return reached, step
        reached[carry] = found


# ---- scan ----------------------------------------------------------------------------------------


def scan(equation: Equation, inputs: list[Value]) -> list[Value]:
    loop = extend.Scan.of(equation.params)
    consts, carry, xs = loop.parts(inputs)
    length = loop.options["length"]
    order = range(length)[:: -1 if loop.options["reverse"] else 1]
    changing = zip([*carry, *xs], equation.invars[loop.consts :], strict=True)
    knows = any(x.known is not None and _is_integer(v.aval) for x, v in changing)
    if knows and length * _count(loop.program.jaxpr) <= FEW:
        return _each_step(loop, consts, carry, xs, order)
    return _by_products(loop, inputs, order, equation)


def _is_integer(aval: Any) -> bool:
    return np.issubdtype(aval.dtype, np.integer)


def _count(jaxpr: Any) -> int:
    """How many equations there are, with those of the programs inside."""
    inner = (program for e in jaxpr.eqns for program in jaxprs_in_params(e.params))
    return len(jaxpr.eqns) + sum(map(_count, inner))


def element(x: Value, t: int) -> Value:
    """Row `t` of an array over which a loop runs."""
    shape, size = x.shape[1:], int(np.prod(x.shape[1:]))
    rows = None if x.rows is None else present(x.rows[t * size : (t + 1) * size])
    return Value(shape, rows, x.known and (lambda: np.asarray(x.now)[t]))


def _each_step(loop, consts, carry, xs, order) -> list[Value]:
    steps: list = []
    for t in order:
        outs = run(loop.program, [*consts, *carry, *(element(x, t) for x in xs)])
        carry, ys = [*map(_held, outs[: loop.carry])], outs[loop.carry :]
        steps.append(ys)
    columns = zip(*steps[:: order.step], strict=True) if steps else []
    width = next(x.rows.shape[1] for x in [*consts, *carry, *xs] if x.rows is not None)
    return [*carry, *(_stack(column, width) for column in columns)]


def _held(x: Value) -> Value:
    """A value that is computed now, so that no chain of computations grows with the steps."""
    if x.known is None:
        return x
    now = x.now
    return x._replace(known=lambda: now)


def _stack(column: Sequence[Value], width: int) -> Value:
    shape = (len(column), *column[0].shape)
    rows = None
    if any(x.rows is not None for x in column):
        rows = stacked(
            [no_rows(x.shape, width) if x.rows is None else x.rows for x in column], width
        )
    known = all(x.known is not None for x in column)
    return Value(shape, rows, (lambda: np.stack([x.now for x in column])) if known else None)


def _rows(x: Value, width: int) -> Matrix:
    return no_rows(x.shape, width) if x.rows is None else x.rows


def _by_products(loop, inputs, order, equation) -> list[Value]:
    count, width = len(order), next(x.rows.shape[1] for x in inputs if x.rows is not None)
    consts, carry, xs = loop.parts(inputs)
    unknown = [Value(c.shape, c.rows) for c in carry]
    inside = [*consts, *unknown, *(Value(x.shape[1:], x.rows) for x in xs)]
    reached, step = settled(loop.program, inside, slice(loop.consts, loop.consts + loop.carry))
    flags = loop.parts(reached)

    def rows_of(values, which):
        return [_rows(x, width) for x, flag in zip(values, which, strict=True) if flag]

    fixed, moving = rows_of(consts, flags[0]), rows_of(carry, flags[1])
    columns = rows_of(xs, flags[2])
    sizes = [column.shape[0] // max(count, 1) for column in columns]
    outs = [v.aval for v in equation.outvars]
    out_sizes = [a.size if i < loop.carry else a.size // max(count, 1) for i, a in enumerate(outs)]
    ends = np.cumsum([0, *(s for s, w in zip(out_sizes, step.writes, strict=True) if w)]).tolist()
    places = {i: n for n, i in enumerate(i for i, w in enumerate(step.writes) if w)}
    carried = [i for i, flag in enumerate(flags[1]) if flag]
    ys: list = []
    for t in order:
        x = [c[t * s : (t + 1) * s] for c, s in zip(columns, sizes, strict=True)]
        result = times(step.pattern, stacked([*fixed, *moving, *x], width), equation)
        parts = [result[a:b] for a, b in pairwise(ends)]
        before, moving = (
            moving,
            [parts[places[i]] if i in places else no_rows(outs[i].shape, width) for i in carried],
        )
        ys.append([parts[n] for i, n in places.items() if i >= loop.carry])
        if not columns and _same(before, moving):
            ys += [ys[-1]] * (count - len(ys))
            break
    final = dict(zip(carried, moving, strict=True))
    stacks = [stacked(column, width) for column in zip(*ys[:: order.step], strict=True)]
    final |= dict(zip([i for i in places if i >= loop.carry], stacks, strict=False))
    return [Value(aval.shape, present(final.get(i))) for i, aval in enumerate(outs)]


def _same(before: Sequence[Matrix], after: Sequence[Matrix]) -> bool:
    pairs = zip(before, after, strict=True)
    return all(a.nnz == b.nnz and (a != b).nnz == 0 for a, b in pairs)


# ---- while ---------------------------------------------------------------------------------------


# After any number of steps the carry depends on what the pattern of (1 or step) reaches. Its powers
# 1, 2, 4, 8, ... grow until they contain all.
def while_loop(equation: Equation, inputs: list[Value]) -> list[Value]:
    loop = extend.While.of(equation.params)
    _, consts, carry = loop.parts(inputs)
    inside = [*consts, *(Value(c.shape, c.rows) for c in carry)]
    count = len(consts)
    reached, step = settled(loop.body, inside, slice(count, count + len(carry)))
    width = next(x.rows.shape[1] for x in inputs if x.rows is not None)
    start = [_rows(x, width) for x, flag in zip(inside, reached, strict=True) if flag]
    start = stacked(start, width)
    sizes = [np.prod(x.shape, dtype=int) for x in inside]
    fixed = sum(s for s, flag in zip(sizes[:count], reached[:count], strict=True) if flag)
    flags = reached[count:]
    parts, at = [], 0
    for size, writes, flag in zip(sizes[count:], step.writes, flags, strict=True):
        if flag:
            parts.append(step.pattern[at : at + size] if writes else
                         no_rows((size,), step.pattern.shape[1]))  # fmt: skip
        at += size if writes else 0
    power = stacked([no_rows((fixed,), start.shape[0]), *parts], start.shape[0])
    power = power + identity(start.shape[0])
    while True:
        further = times(power, power, equation)
        if further.nnz == power.nnz:
            break
        power = further
    rows, at, outs = times(power, start, equation), fixed, []
    for size, c, flag in zip(sizes[count:], carry, flags, strict=True):
        outs.append(Value(c.shape, present(rows[at : at + size]) if flag else None))
        at += size if flag else 0
    return outs


CALLS |= {
    cond_p: cond,
    linear_solve_p: linear_solve,
    remat_p: checkpoint,
    scan_p: scan,
    **dict.fromkeys(extend.While.primitives, while_loop),
}
