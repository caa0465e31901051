"""Adjoints and tangents of values inside a function, by the names that they have.

    value_and_adjoints :  (a -> R)  ->  a  ->  (R, {name: h_bar})

`h = checkpoint_name(layer(x), "h")` names a value.  Its adjoint is the gradient in a change `p` of
this value, at `p = 0`:

    L = f(x, h + p),       h_bar = dL/dp

We stage the function and rewrite its program: `h` stays the same, and its tangent becomes
`h_dot + p_dot`.  So the function itself does no more work.  The linear half has an input for each
named value, and nothing ever reads a value of `p`.

We bind an equation that carries programs (a loop, a branch, a checkpoint) again, with programs that
take the changes of the values named inside as further inputs; for a `scan` the changes of all steps
are stacked.  For tangents the named values become further outputs instead.

Read next: `extend.py`, the interface for transforms of your own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax import tree
from jax.extend.core import ClosedJaxpr, JaxprEqn, jaxprs_in_params

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.base import CallRule, together
from functrans.control_flow.calls import InlinedRule
from functrans.control_flow.custom import from_symbolic
from functrans.control_flow.scan import Loop, ScanRule
from functrans.derivatives.elementwise import name_p
from functrans.errors import checks, names
from functrans.errors.structures import arguments
from functrans.flat import Argnums, Flat, select
from functrans.jit import transformed, transformed_at_primals
from functrans.programs.jitted import roles
from functrans.programs.loops import evaluate, scan
from functrans.programs.replay import walk
from functrans.rules import RULES
from functrans.signatures import of_the_arguments
from functrans.tracer import stage
from functrans.transforms import jvp, vjp

Names = frozenset[str]

# ---- a change of a value; only its tangent counts ------------------------------------------------


@jax.custom_jvp
def changed(h: Any, p: Any) -> Any:
    """`h`, with the tangent `h_dot + p_dot`."""
    del p
    return h


def _changed_jvp(primals: Sequence, tangents: Sequence) -> tuple:
    (h, _), (h_dot, p_dot) = primals, map(from_symbolic, tangents)
    if values.typeof(h).weak_type:  # a Python number; `p` has no weak type
        p_dot = values.cast(p_dot, values.tangent_aval(values.typeof(h)))
    return h, values.add(h_dot, p_dot)


changed.defjvp(_changed_jvp, symbolic_zeros=True)


# ---- the program, with further inputs or outputs -------------------------------------------------


@caches.by_program
def names_in(jaxpr: Any) -> tuple[str, ...]:
    """The name of each named value of a program, in the order of its equations."""
    found: list[str] = []
    for equation in jaxpr.eqns:
        if equation.primitive is name_p:
            found.append(equation.params["name"])
        for inner in jaxprs_in_params(equation.params):
            found += names_in(inner)
    return tuple(found)


def _has(equation: JaxprEqn, asked: Names) -> bool:
    """Whether programs that the equation carries have a value of one of these names."""
    return any(not asked.isdisjoint(names_in(p)) for p in jaxprs_in_params(equation.params))


@caches.by_program
def giving(program: ClosedJaxpr, asked: Names) -> ClosedJaxpr:
    """The program of `x -> (y, h)`, where `h` are the named values."""

    def run(*xs):
        outs, named = _evaluate(program, xs, asked, None)
        return [*outs, *named], None

    return stage(run, program.in_avals, program.jaxpr.debug_info)[0]


@caches.by_program
def taking(program: ClosedJaxpr, asked: Names) -> ClosedJaxpr:
    """The program of `(x, p) -> y`, where `p` are the changes of the named values."""
    count = len(program.in_avals)

    def run(*xs):
        return _evaluate(program, xs[:count], asked, iter(xs[count:]))[0], None

    avals = [*program.in_avals, *types(program, asked)]
    return stage(run, avals, program.jaxpr.debug_info)[0]


def types(program: ClosedJaxpr, asked: Names) -> list:
    """The types of the named values, as seen from outside the program."""
    return list(giving(program, asked).out_avals[len(program.out_avals) :])


class Extended(NamedTuple):
    """Programs that take, or give, an array for each value that one of them names."""

    programs: tuple[ClosedJaxpr, ...]
    count: int


@caches.by_program
def extended(first: ClosedJaxpr, others: tuple, asked: Names, takes: bool) -> Extended:
    """The programs of a call; each has a place for the named values of all of them."""
    bodies = together(first, others)
    kinds = [types(body, asked) for body in bodies]
    if len(bodies) == 1:
        return Extended(((taking if takes else giving)(first, asked),), len(kinds[0]))
    inputs, outputs = len(first.in_avals), len(first.out_avals)
    avals = [aval for own in kinds for aval in own]

    def program(i: int, body: ClosedJaxpr) -> ClosedJaxpr:
        start = sum(map(len, kinds[:i]))
        end = start + len(kinds[i])

        def takes_all(*xs):
            own = xs[inputs + start : inputs + end]
            return jx.evaluate(taking(body, asked), *xs[:inputs], *own), None

        def gives_all(*xs):
            outs = jx.evaluate(giving(body, asked), *xs)
            before, after = (map(values.zeros, part) for part in (avals[:start], avals[end:]))
            return [*outs[:outputs], *before, *outs[outputs:], *after], None

        run, more = (takes_all, avals) if takes else (gives_all, [])
        return stage(run, [*body.in_avals, *more], body.jaxpr.debug_info)[0]

    return Extended(tuple([program(*pair) for pair in enumerate(bodies)]), len(avals))


def _evaluate(
    program: ClosedJaxpr, inputs: Sequence, asked: Names, changes: Iterator | None
) -> tuple[list, list]:
    """Evaluate a program with changes of its named values; or, for `None`, return these values too.

    Returns the results, and the named values.
    """
    given: list = []

    def meet(equation, xs):
        if _has(equation, asked):
            with jx.in_place_of(equation):
                ys, named = _call(equation, xs, asked, changes)
            given.extend(named)
            return ys
        ys = jx.bind(equation, xs)
        if equation.primitive is not name_p or equation.params["name"] not in asked:
            return ys
        if changes is not None:
            return [changed(ys[0], next(changes))]
        given.extend(ys)
        return ys

    return walk(program, inputs, meet), given


def _call(equation: JaxprEqn, xs: list, asked: Names, changes: Iterator | None) -> tuple:
    """The same for an equation that carries programs with named values."""
    primitive, params, takes = equation.primitive, equation.params, changes is not None
    rule, count = RULES[primitive], len(equation.outvars)
    if type(rule) is InlinedRule:
        return _evaluate(rule.program(params), xs, asked, changes)
    if isinstance(rule, ScanRule):
        results = _scan(Loop.of(params), xs, asked, changes)
    elif isinstance(rule, CallRule):
        programs, number = rule.derive(params, extended, asked, takes)
        ins = roles("in", [True] * (len(xs) - rule.head))
        outs, new = roles("out", [True] * count), [None] * number
        if changes is not None:
            xs, ins = [*xs, *(next(changes) for _ in new)], [*ins, *new]
        else:
            outs = [*outs, *new]
        results = rule.again(primitive, params, programs, xs, ins, outs)
    else:
        hidden = {n for p in jaxprs_in_params(params) for n in names_in(p)} & asked
        raise names.hidden(sorted(hidden), primitive)
    return results[:count], results[count:]


def _scan(loop: Loop, xs: list, asked: Names, changes: Iterator | None) -> list:
    """Loop over the steps, which take the change of each, or give what is named in each."""
    consts, carry, steps = loop.parts(xs)
    (program,), number = extended(loop.program, (), asked, changes is not None)
    if changes is not None:
        steps += [next(changes) for _ in range(number)]

    def body(c, x):
        outs = evaluate(program, *consts, *c, *x)
        return outs[: loop.carry], outs[loop.carry :]

    carry, ys = scan(body, carry, steps, **loop.options)
    return [*carry, *ys]


# ---- functions of pytrees ------------------------------------------------------------------------


class Named:
    """A function, staged at its arguments, and its values of the names that are asked for."""

    def __init__(self, name: str, fun: Callable, asked: tuple | None, args: tuple, has_aux: bool):
        leaves, in_tree = tree.flatten(args)
        avals = checks.types(name, leaves, lambda: arguments(fun, enumerate(args)))
        flat = Flat(fun, in_tree, has_aux)

        def run(*tracers):
            outs, aux = flat(*tracers)
            kept = [*map(values.is_value, aux)]
            rest, found = values.part(aux, kept)
            return [*outs, *found], (len(outs), kept, rest)

        self.flat = flat
        self.program, self.aux = stage(run, avals, jx.debug_info(name, fun))
        there = names_in(self.program)
        self.asked = frozenset(names.present(name, fun, asked, there))
        self.labels = [label for label in there if label in self.asked]
        self.types = types(self.program, self.asked)
        names.have_tangents(name, self.labels, self.types)

    def result(self, outs: Sequence) -> tuple[Any, Any]:
        """What the function returns, and `aux`."""
        count, kept, rest = self.aux
        out = tree.unflatten(self.flat.out_tree, outs[:count])
        return out, tree.unflatten(self.flat.aux_tree, values.merge(rest, outs[count:], kept))

    def changed(self, changes: list, *args: Any) -> tuple[Any, Any]:
        """The function of changes of its named values, and of its arguments; and `aux`."""
        program = taking(self.program, self.asked)
        return self.result(jx.evaluate(program, *tree.leaves(args), *changes))

    def opened(self, *args: Any) -> tuple[Any, Any]:
        """The function that gives its named values, too; and `aux`."""
        outs = jx.evaluate(giving(self.program, self.asked), *tree.leaves(args))
        count = len(self.program.out_avals)
        out, aux = self.result(outs[:count])
        return (out, outs[count:]), aux

    def by_name(self, found: Sequence) -> dict[str, Any]:
        """One for each name; a tuple where several values have the name."""
        pairs = [*zip(self.labels, found, strict=True)]
        several = {name: tuple(x for n, x in pairs if n == name) for name in self.labels}
        return {name: xs[0] if len(xs) == 1 else xs for name, xs in several.items()}


def value_and_adjoints(
    fun: Callable,
    names: str | Sequence[str] | None = None,
    argnums: Argnums | None = None,
    has_aux: bool = False,
) -> Callable[..., Any]:
    """Make a function that computes `fun`, a scalar, and its gradient in the named values inside.

    In the textbooks an *adjoint* is the derivative of the result with respect to any value on the
    way: `h_bar = dL/dp` at `p = 0`, where `p` is added to `h`. functrans stages the function, so it
    must not branch in Python on the values of its arguments.

    Args:
      fun: a function of arrays, or pytrees of arrays, to a real scalar (shape `()`). It, or a
        function that it calls, names a value with `jax.ad_checkpoint.checkpoint_name(h, "h")`.
      names: a name or several; `None` stands for all names.
      argnums: the position, or positions, of arguments whose gradient to return too.
      has_aux: whether `fun` returns a pair: its value, and a result without a derivative.

    Returns:
      A function of the same arguments that returns `(value, adjoints)`, or with `argnums`
      `(value, adjoints, gradient)`; with `has_aux`, `value` is `(value, aux)`. The adjoints are a
      dictionary with an array like the value for each name, or a tuple if several values have the
      name. In a `scan` the adjoints of all steps are stacked; in a branch that was not taken they
      are zero; in a `shard_map` values that differ between devices are joined along the first
      dimension (a number gets one).

    Raises:
      ValueError: if a name does not occur, or stands where no derivative reaches it: in a
        `while_loop`, or in a function with a derivative of the user's own.
      TypeError: if `fun` does not return a scalar, or a named value is an integer.

    See also:
      `grad`, for the gradient in the arguments alone; `value_and_tangents`, for forward mode.

    Source: A. Griewank and A. Walther, Evaluating Derivatives, 2nd ed. (2008), section 3.2.

    >>> import jax.numpy as jnp, functrans as ft
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def loss(x):
    ...     h = checkpoint_name(jnp.exp(x), "h")
    ...     return jnp.sum(h * h)
    >>> value, adjoints, gradient = ft.value_and_adjoints(loss, "h", argnums=0)(0.0)
    >>> float(value), float(adjoints["h"]), float(gradient)
    (1.0, 2.0, 2.0)
    """
    wanted = None if argnums is None else checks.argnums(argnums)
    settings = {"name": "value_and_adjoints", "names": _listed(names)}
    return transformed(fun, _adjoints, **settings, argnums=wanted, has_aux=has_aux)


def _adjoints(fun: Callable, name: str, names: Any, argnums: Any, has_aux: bool) -> Callable:
    def adjoints_at(*args, **kwargs):
        partial, selected = select(name, fun, args, kwargs, () if argnums is None else argnums)
        if argnums is not None:
            checks.inputs(name, fun, argnums, args, complex_too=True)
        staged = Named(name, partial, names, selected, has_aux)
        changes = [*map(values.zeros, staged.types)]
        out, pullback, aux = vjp(staged.changed, changes, *selected, has_aux=True)
        checks.scalar(name, out, False)
        bars, *gradient = pullback(values.constant(1, jax.typeof(out)))
        found = (out, aux) if has_aux else out, staged.by_name(bars)
        if argnums is None:
            return found
        return *found, gradient[0] if isinstance(argnums, int) else tuple(gradient)

    return of_the_arguments(fun, name, "adjoints", adjoints_at)


def value_and_tangents(
    fun: Callable, names: str | Sequence[str] | None = None, has_aux: bool = False
) -> Callable[..., Any]:
    """Make a function that computes `f(x)`, its tangent, and the tangents of named values inside.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same. It, or a function that it calls,
        names a value with `jax.ad_checkpoint.checkpoint_name(h, "h")`.
      names: a name or several; `None` stands for all names.
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.

    Returns:
      A function of `(primals, tangents)`, like those of `jvp`. It returns
      `(output, output_tangent, tangents)`; with `has_aux`, `output` is `(output, aux)`. The
      tangents are a dictionary, as in `value_and_adjoints`.

    Raises:
      ValueError: as for `value_and_adjoints` and `jvp`.
      TypeError: as for `jvp`, or if a named value is an integer.

    See also:
      `jvp`, for the tangent of the output alone; `value_and_adjoints`, for reverse mode.

    >>> import jax.numpy as jnp, functrans as ft
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def f(x):
    ...     h = checkpoint_name(jnp.exp(x), "h")
    ...     return h * h
    >>> y, y_dot, tangents = ft.value_and_tangents(f, "h")((0.0,), (1.0,))
    >>> float(y), float(y_dot), float(tangents["h"])
    (1.0, 2.0, 1.0)
    """
    settings = {"name": "value_and_tangents", "names": _listed(names), "has_aux": has_aux}
    return transformed_at_primals(fun, _tangents, **settings)


def _tangents(fun: Callable, name: str, names: Any, has_aux: bool) -> Callable:
    def tangents_at(primals, tangents):
        checks.sequences(name, primals, tangents)
        staged = Named(name, fun, names, tuple(primals), has_aux)
        (out, _), (out_dot, dots), aux = jvp(staged.opened, primals, tangents, has_aux=True)
        return (out, aux) if has_aux else out, out_dot, staged.by_name(dots)

    return tangents_at


def _listed(names: Any) -> tuple[str, ...] | None:
    return names if names is None else (names,) if isinstance(names, str) else tuple(names)
