"""Move the cut between two halves of a program to where it costs the least: a minimum cut.

    x -> (y, r),  (r, x_dot) -> y_dot      becomes      x -> (y, s),  (g(s), x_dot) -> y_dot

The second half reads `r`.  It gets `s` instead, and computes `r = g(s)` again, by cheap equations
of the first half.  Among all such `s` we choose the one that minimizes

    sum of keep(v) over v in s   +   sum of work(v) over the variables computed again

This is a minimum cut of a network.  Each variable is an edge of capacity `keep(v)`, followed by the
variables computed from it.  A source flows without bound into the variables that no cheap equation
gives (inputs, results of products, ...), and into all others with capacity `work(v)`, or 0 where
nothing is evaluated more often (see `least`).  The reads of the second half flow into a sink.  Then
the sum above is the capacity of a cut between source and sink, its minimum is the maximum flow
(L. R. Ford and D. R. Fulkerson, Maximal flow through a network, Canadian Journal of Mathematics 8,
1956), and the edges of the cut are `s`.  H. He and S. Yu do the same with graphs of PyTorch:
Transcending runtime-memory tradeoffs in checkpointing by being fusion aware, MLSys 2023.

Read next: `sums.py`, sums that follow a loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var, jaxprs_in_params
from jax.extend.core.primitives import jit_p

from functrans import caches
from functrans import jaxpr as jx
from functrans.programs.halves import changing
from functrans.programs.jitted import says_nothing
from functrans.programs.live import giving, live
from functrans.programs.replay import opened


def _named(names: str) -> frozenset[str]:
    return frozenset(names.split())


# The equations to evaluate again, by their cost. XLA fuses these with the reader of the result:
IN_PASSING = _named("""
    abs add add_any and bitcast_convert_type broadcast_in_dim ceil clamp clz complex concatenate
    convert_element_type copy div dynamic_slice empty eq eq_to floor ge gt imag integer_pow iota
    is_finite le le_to lt lt_to max min mul name ne neg not or pad population_count pvary real
    reduce_precision reshape rev round select_n shift_left shift_right_arithmetic
    shift_right_logical sign slice split square squeeze stack stop_gradient sub tile transpose
    unstack xor
""")
# These take a while for each number of the result:
FUNCTIONS = _named("""
    acos acosh asin asinh atan atan2 atanh cbrt cosh erf erfc exp exp2 expm1 gather log log1p
    logistic pow rem rsqrt sinh sqrt tan tanh
""")
# These take several times as long, but XLA thinks them cheap: each kernel that reads the result
# evaluates them for itself.
SINES = _named("cos sin")
# These read many numbers for each number of the result:
REDUCTIONS = _named("""
    argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum reduce_xor
""")
# A call costs as much as the equations inside.
CALLS = _named("call closed_call cond custom_jvp_call custom_vjp_call jit")


def work(equation: JaxprEqn) -> int | None:
    """The cost of evaluating an equation again; `None` if we never do.

    The unit is an eighth of the cost of keeping a byte, that is of writing and reading it.  To
    evaluate a function of numbers of 4 bytes costs half as much as to keep them.  For numbers of
    8 bytes the two cost the same, for a processor computes half as many at a time, in more steps.
    A function of few numbers takes as long as one of `FEW`: there we keep the result.  A sine costs
    four times as much as another function, and a reduction an eighth of each byte that it reads.
    """
    name = equation.primitive.name
    if equation.effects:
        return None
    if name in CALLS:
        inner = [work(e) for program in jaxprs_in_params(equation.params) for e in program.eqns]
        return None if None in inner else sum(filter(None, inner))
    if name in FUNCTIONS | SINES:
        aval: Any = equation.outvars[0].aval
        cost = _size(aval) * aval.dtype.itemsize
        return None if aval.size < FEW else 4 * cost if name in SINES else cost
    if name in REDUCTIONS:
        return sum(map(size, equation.invars))
    return 0 if name in IN_PASSING else None


def size(atom: Any) -> int:
    """In bytes; 0 for a value that is not an array."""
    return _size(atom.aval)


@functools.lru_cache(maxsize=4096)
def _size(aval: Any) -> int:
    return aval.size * aval.dtype.itemsize if hasattr(aval, "dtype") else 0


FEW = 64
"""To evaluate a function of fewer numbers takes no less time."""

FIXED, THERE, SHARED, STACKED = 0, 2, 7, 8
"""The cost of keeping a byte: of a value that is the same in each step of a loop; of one that is
there already, and is only read; of one that others may keep too; and of any other."""


class Prices(NamedTuple):
    """The price of a byte, for each input and each result of the first half."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def cut(first: ClosedJaxpr, second: ClosedJaxpr, prices: Prices) -> tuple[ClosedJaxpr, ClosedJaxpr]:
    """Cut two halves elsewhere, at the least cost of bytes kept and of work done again.

    Args:
      first: `x -> (y, r)`.
      second: `(r, x_dot) -> y_dot`.
      prices: of `x` and `y`.

    Returns:
      `x -> (y, s)`, and `(s, x_dot) -> y_dot`.
    """
    return _elsewhere(first, ref(second), prices) or (first, second)


@caches.by_program
def _elsewhere(first: ClosedJaxpr, second: Callable, prices: Prices) -> tuple | None:
    """The result of `cut`, or `None` if the halves stay the same."""
    first, count = opened(first, is_opened), len(prices.outputs)
    jaxpr, whole, consts = first.jaxpr, second().jaxpr, second().consts
    residuals = jaxpr.outvars[count:]
    read = [var for var in dict.fromkeys(residuals) if isinstance(var, Var)]
    kept = least(jaxpr, read, prices)
    if {*kept} == {*read}:
        return None
    equations = [_without(e, {*kept}) for e in jaxpr.eqns if work(e) is not None]
    again = live(equations, [var for var in read if var not in {*kept}])
    given, rest = whole.invars[: len(residuals)], whole.invars[len(residuals) :]
    made = dict(zip(given, residuals, strict=True))

    def renamed(atoms: Sequence) -> list:
        return [made.get(a, a) if isinstance(a, Var) else a for a in atoms]

    equations = [e.replace(invars=renamed(e.invars)) for e in whole.eqns]
    inputs, outputs, equations = [*kept, *rest], renamed(whole.outvars), [*again, *equations]
    thinner = jx.closed(inputs, outputs, equations, whole.debug_info, whole.constvars, consts)
    return giving(first, [*jaxpr.outvars[:count], *kept]), thinner


def is_opened(equation: JaxprEqn) -> bool:
    """Whether to look into a call: its function as a whole is not cheap."""
    is_call = equation.primitive is jit_p and work(equation) is None
    return is_call and says_nothing(equation.params)


def _without(equation: JaxprEqn, kept: set) -> JaxprEqn:
    """The equation; its results have other names where they are kept."""
    if kept.isdisjoint(equation.outvars):
        return equation
    outs = [Var(v.aval) if v in kept else v for v in equation.outvars]
    return equation.replace(outvars=outs)


# ---- the network ---------------------------------------------------------------------------------

SOURCE, SINK = 0, 1
UNBOUNDED, LARGEST = 2**31 - 1, 2**30  # one capacity, and a sum of others: SciPy's have 32 bits


def least(jaxpr: Jaxpr, read: Sequence[Var], prices: Prices) -> list[Var]:
    """The variables to keep, at the least cost, so that we can compute those in `read` again."""
    makers = {var: equation for equation in jaxpr.eqns for var in equation.outvars}
    if all(work(makers[var]) is None for var in read if var in makers):
        return [*read]
    needed = {v for e in live(jaxpr.eqns, jaxpr.outvars[: len(prices.outputs)]) for v in e.outvars}
    price = _pricing(jaxpr, prices)
    # A variable is an edge from the node n, its value, to the node n + 1, which leads to its uses.
    node: dict[Var, int] = {var: 2 * i + 2 for i, var in enumerate(read)}
    edges: dict[tuple[int, int], int | None] = {(n + 1, SINK): None for n in node.values()}
    for equation in reversed(jaxpr.eqns):
        outs = [var for var in equation.outvars if var in node]
        cost = work(equation) if outs else None
        given = [a for a in equation.invars if isinstance(a, Var)] if cost is not None else []
        for var in given:
            node.setdefault(var, 2 * len(node) + 2)
        for var in outs:
            edges |= {(node[a] + 1, node[var]): None for a in given}
            # Computing again is free where it adds no evaluation.  An equation that y does not need
            # moves to the second half, and still runs once.  XLA evaluates a sine in each kernel
            # that reads it: one that y needs runs in two kernels even if we keep it; one that y
            # does not need runs once if we keep it, and else in several kernels of the second half.
            is_free = (var in needed) == (equation.primitive.name in SINES)
            edges[SOURCE, node[var]] = 0 if cost is not None and is_free else cost
    for var, n in node.items():
        edges[n, n + 1] = price(var, makers.get(var))
        if var not in makers:
            edges[SOURCE, n] = None
    side = sink_side(edges)
    return [var for var, n in node.items() if n + 1 in side and n not in side]


def sink_side(edges: dict[tuple[int, int], int | None]) -> set[int]:
    """The nodes on the sink's side of a minimum cut; of several cuts, the one nearest to the sink.

    Args:
      edges: from pairs of nodes to capacities; `None` is without bound.
    """
    # Imported here, since most programs need no cut.
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    unit = 1 + sum(filter(None, edges.values())) // LARGEST
    capacities = [UNBOUNDED if c is None else -(-c // unit) for c in edges.values()]
    ends, size = np.array([*edges], np.int32).T, 1 + max(map(max, edges))
    graph = csr_array((np.array(capacities, np.int32), ends), shape=(size, size))
    left = graph - maximum_flow(graph, SOURCE, SINK).flow
    left.eliminate_zeros()
    return {*breadth_first_order(left.T.tocsr(), SINK, return_predecessors=False).tolist()}


def _pricing(jaxpr: Jaxpr, prices: Prices) -> Callable:
    """A function that gives the cost of keeping a variable."""
    given = [*zip(jaxpr.invars, prices.inputs, strict=True), *((v, FIXED) for v in jaxpr.constvars)]
    varying = changing(jaxpr, [var for var, price in given if price != FIXED])
    named = dict(given)
    for var, price in zip(jaxpr.outvars, prices.outputs, strict=False):
        if isinstance(var, Var) and var in varying:
            named[var] = min(price, named.get(var, price))

    def cost(var: Var, maker: JaxprEqn | None) -> int:
        if maker is None or var in varying:
            return named.get(var, STACKED) * size(var)
        # A value that is the same in each step is kept once, for what it has more than its inputs.
        return max(0, size(var) - sum(map(size, maker.invars)))

    return cost
