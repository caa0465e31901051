"""Calls on columns of arrays: how a transform goes through control flow.

    y = call[f] x        becomes        Y = call[F] X,        where a transform makes F of f

A transform may carry more with a value than one array: coefficients, or a Jacobian.  It carries a
*column*: a list of arrays, the value itself first, with `None` in the place of a zero.
`through` binds a call (`jit`, `cond`, `scan`, `while_loop`, `checkpoint`, ...) again, with all of
these arrays for its inputs; it only asks how the transform walks a program.

Which arrays are zero is known before the program runs, so it must be the same in all branches and
steps of a loop: where it differs, we write out zeros.  For a loop this is a fixed point.

Read next: `../staging.py`, operations that need no equation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, JaxprEqn

from functrans import caches, values
from functrans.control_flow import scan, while_loop
from functrans.control_flow.base import CallRule, together
from functrans.control_flow.jit import JitRule
from functrans.control_flow.library import derivative_of
from functrans.jaxpr import in_place_of
from functrans.programs import loops
from functrans.programs.jitted import Role
from functrans.programs.live import either, settle
from functrans.rules import RULES
from functrans.tracer import stage
from functrans.values import Flags

Column = Sequence[Any]
"""Arrays, the value itself first; `None` stands for one that is zero."""
Shape = tuple[Flags, ...]
"""For each of several columns, which of its places hold an array."""


class Walked(NamedTuple):
    """The program that a transform makes: it takes and gives the arrays of columns."""

    program: Any
    given: Shape
    """Which places of the output columns hold an array."""


def through(
    equation: JaxprEqn, columns: Sequence[Column], walk: Callable, *settings: Any
) -> list | None:
    """Bind an equation that carries programs, with columns for its inputs.

    A *column* holds the arrays that a transform carries for one value: the value itself first, and
    `None` in the place of an array that is zero.

    Args:
      equation: an equation of any primitive.
      columns: a column for each input; that of an input without a derivative holds one array.
      walk: a function of a program, columns for its inputs, and the settings; it returns columns
        for the outputs of the program.
      *settings: further arguments of `walk`. They must be hashable, for functrans keeps the derived
        programs for them.

    Returns:
      A column for each output; or `None` if the equation carries no programs, or is a kernel and
      the arrays of some column have different shapes.

    >>> import jax.numpy as jnp
    >>> from jax import lax
    >>> from functrans import extend
    >>> def doubled(f, x):
    ...     return lax.cond(x > 0, f, lambda x: x, x)
    >>> equation = extend.staged(lambda x: doubled(jnp.sin, x), 1.0).program.jaxpr.eqns[-1]
    >>> def walk(program, columns):  # a transform that carries the value alone
    ...     outs = extend.interpret(program, [x for x, *_ in columns], extend.bind)
    ...     return [[y] for y in outs]
    >>> ((y,),) = extend.through(equation, [[1], [2.0]], walk)
    >>> float(y)
    0.9092974066734314
    """
    if not carries_programs(equation):
        return None
    rule = RULES[equation.primitive]
    bound = next(bound for kind, bound in BOUND.items() if isinstance(rule, kind))
    with in_place_of(equation):
        return bound(equation, [*map(tuple, columns)], walk, settings)


def carries_programs(equation: JaxprEqn) -> bool:
    """Tell whether an equation is a call that `through` can bind again: a loop, a choice, ...

    Args:
      equation: an equation of any primitive.

    Returns:
      A boolean.

    >>> import jax.numpy as jnp
    >>> from jax import lax
    >>> from functrans import extend
    >>> program = extend.staged(lambda x: lax.fori_loop(0, 3, lambda i, c: c * x, jnp.sin(x)), 1.0)
    >>> [extend.carries_programs(e) for e in program.program.jaxpr.eqns]
    [False, True]
    """
    rule = RULES[equation.primitive]
    has_own = isinstance(rule, JitRule) and derivative_of(equation.params)
    return isinstance(rule, tuple(BOUND)) and not has_own


# ---- columns as flat lists -----------------------------------------------------------------------


def shape_of(columns: Sequence[Column]) -> Shape:
    return tuple([tuple([x is not None for x in column]) for column in columns])


def arrays(columns: Sequence[Column]) -> list:
    return [x for column in columns for x in column if x is not None]


def columns_of(flat: Sequence, shape: Shape) -> list[tuple]:
    """The inverse of `arrays`."""
    rest = iter(flat)
    return [tuple([next(rest) if there else None for there in flags]) for flags in shape]


def filled(columns: Sequence[Column], shape: Shape, avals: Sequence[Column]) -> list[tuple]:
    """The columns, with zeros of these types in the further places of the shape."""

    def place(x, there, aval):
        return values.zeros(aval) if there and x is None else x

    triples = zip(columns, shape, avals, strict=True)
    return [tuple(map(place, *padded(*triple))) for triple in triples]


def padded(*lists: Sequence) -> list[list]:
    """The lists, filled with `None` to the same length."""
    length = max(map(len, lists))
    return [[*xs, *[None] * (length - len(xs))] for xs in lists]


def union(one: Shape, other: Shape) -> Shape:
    return tuple([either(padded(*pair)) for pair in zip(one, other, strict=True)])


# ---- derived programs ----------------------------------------------------------------------------


@caches.by_program
def walked(program: ClosedJaxpr, walk: Callable, settings: tuple, avals: tuple) -> Walked:
    """The program of arrays; `avals` are columns of types."""

    def flat(*inputs):
        outs = walk(program, columns_of(inputs, shape_of(avals)), *settings)
        return arrays([*map(typed, outs, program.out_avals)]), shape_of(outs)

    return Walked(*stage(flat, arrays(avals), program.jaxpr.debug_info))


def typed(column: Column, aval: Any) -> Column:
    """The column in the weak type of the value, as in every branch and step."""
    if not values.is_differentiable(aval):
        return column

    def alike(x):
        is_so = x is None or values.typeof(x).weak_type == aval.weak_type
        return x if is_so else values.cast(x, aval)

    return tuple(map(alike, column))


@caches.by_program
def walked_bodies(
    first: ClosedJaxpr, others: tuple, walk: Callable, settings: tuple, avals: tuple
) -> Walked:
    """The programs of all branches, which give columns of one shape."""
    bodies = [walked(body, walk, settings, avals) for body in together(first, others)]
    shape, types = bodies[0].given, out_types(bodies[0])
    for body in bodies[1:]:
        shape = union(shape, body.given)
        types = first_of_both(types, out_types(body))

    def full(body):
        def flat(*inputs):
            outs = columns_of(loops.evaluate(body.program, *inputs), body.given)
            return arrays(filled(outs, shape, types)), None

        program = body.program
        if body.given == shape:
            return program
        return stage(flat, program.in_avals, program.jaxpr.debug_info)[0]

    return Walked(tuple(map(full, bodies)), shape)


def out_types(body: Walked) -> list[tuple]:
    return columns_of(body.program.out_avals, body.given)


def first_of_both(one: Sequence[Column], other: Sequence[Column]) -> list[tuple]:
    """In each place the array of the first columns, or else that of the second."""
    pairs = [padded(*pair) for pair in zip(one, other, strict=True)]
    return [tuple([a or b for a, b in zip(*pair, strict=True)]) for pair in pairs]


def types_of(columns: Sequence[Column]) -> tuple:
    return tuple([tuple([x if x is None else values.typeof(x) for x in c]) for c in columns])


# ---- the primitives ------------------------------------------------------------------------------


def _call(equation: JaxprEqn, columns: list, walk: Callable, settings: tuple) -> list:
    """Branches, and calls of one function."""
    rule: Any = RULES[equation.primitive]
    params, head, given = equation.params, columns[: rule.head], columns[rule.head :]
    avals = tuple(map(inside, types_of(given), rule.bodies(params)[0].in_avals))
    programs, shape = rule.derive(params, walked_bodies, walk, settings, avals)
    ins, outs = roles("in", shape_of(given)), roles("out", shape)
    inputs = [*(index for index, *_ in head), *arrays(given)]
    results = rule.again(equation.primitive, params, programs, inputs, ins, outs)
    return columns_of(results, shape)


def inside(types: Sequence, aval: Any) -> tuple:
    """The types of a column in a program whose input has the type `aval`: where that is the type of
    one device's part, the others begin with the axes of this part, too."""
    value, *others = types
    dot, n = values.tangent_aval(aval), value.ndim

    def part(a):
        return dot if a.ndim == n else dot.update(shape=(*dot.shape, *a.shape[n:]))

    fits = [a is not None and a.shape[:n] == value.shape for a in others]
    return aval, *(part(a) if fit else a for a, fit in zip(others, fits, strict=True))


def roles(side: str, shape: Shape) -> list[Role]:
    """Each array stands for the value of its column."""
    return [Role(side, i) for i, flags in enumerate(shape) for there in flags if there]


def _steps(body: ClosedJaxpr, avals: tuple, count: int, end: int, *how: Any) -> tuple:
    """The body of a loop whose carry are its inputs from `count` to `end`, and the types of its
    inputs: with those places of the carry that are filled in some step."""
    types = list(avals)

    def derive(shape):
        return walked(body, *how, tuple(types))

    def feedback(shape, given):
        carry = out_types(derive(shape))[: end - count]
        types[count:end] = first_of_both(types[count:end], carry)
        return shape_of(types)

    start: Any = shape_of(types)
    _, derived = settle(derive, start, feedback)
    return derived, types


def _scan(equation: JaxprEqn, columns: list, walk: Callable, settings: tuple) -> list:
    """A loop of a known length, which slices the arrays in a column of xs."""
    loop = scan.Loop.of(equation.params)
    (consts, carry, xs), end = loop.parts(columns), loop.consts + loop.carry
    carry = [*map(typed, carry, loop.program.out_avals)]
    slices = types_of(xs)
    slices = [[a if a is None else a.update(shape=a.shape[1:]) for a in c] for c in slices]
    avals = (*types_of([*consts, *carry]), *map(tuple, slices))
    derived, types = _steps(loop.program, avals, loop.consts, end, walk, settings)
    wanted, types = shape_of(types[loop.consts : end]), types[loop.consts : end]

    def body(carry, x):
        outs = loops.evaluate(derived.program, *arrays([*consts, *carry, *x]))
        outs = columns_of(outs, derived.given)
        return filled(outs[: loop.carry], wanted, types), outs[loop.carry :]

    carry, ys = loops.scan(body, filled(carry, wanted, types), xs, **loop.options)
    return [*carry, *ys]


def _while(equation: JaxprEqn, columns: list, walk: Callable, settings: tuple) -> list:
    """A loop until a condition is met, which reads the values alone."""
    loop = while_loop.Loop.of(equation.params)
    asked, consts, carry = loop.parts(columns)
    carry = [*map(typed, carry, loop.body.out_avals)]
    avals, count = types_of([*consts, *carry]), len(consts)
    derived, types = _steps(loop.body, avals, count, count + len(carry), walk, settings)
    types = types[count:]
    wanted = shape_of(types)

    def condition(asked, flat):
        value = [column[0] for column in columns_of(flat, wanted)]
        return loops.evaluate(loop.condition, *asked, *value)

    def body(consts, flat):
        outs = loops.evaluate(derived.program, *arrays(consts), *flat)
        return arrays(filled(columns_of(outs, derived.given), wanted, types))

    start = arrays(filled(carry, wanted, types))
    outs = loop.bind(condition, body, [value for value, *_ in asked], consts, start)
    return columns_of(outs, wanted)


BOUND: dict[type, Callable] = {CallRule: _call, scan.ScanRule: _scan, while_loop.WhileRule: _while}
