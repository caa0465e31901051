"""Which equation first made a nan or an infinity: `(a -> b), a -> Blame`.

    v_k = f(v_i)        v_k_dot = f'(v_i) v_i_dot        v_i_bar = f'(v_i) v_k_bar

The function runs equation by equation, on numbers, with all calls opened: each step of a loop, the
chosen branch.  The first equation that makes a nan or an infinity of finite numbers is to blame.
There may be two: one for the values, and one for the tangents or the adjoints.

Read next: `../testing.py`, which checks derivatives against JAX and finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jax.tree_util import keystr

from functrans import jaxpr as jx
from functrans import values
from functrans.control_flow.base import CallRule
from functrans.errors.lines import user_line
from functrans.explain import notation, steps
from functrans.explain.notation import Text
from functrans.explain.planning import staged
from functrans.explain.records import Number, Places, Step, Variable
from functrans.explain.unfolding import Unfolded, every_round, unfold
from functrans.linearize import LinearProgram
from functrans.reverse import transpose_jaxpr
from functrans.rules import RULES
from functrans.values import Flags


class Culprit(NamedTuple):
    """An equation that made a nan or an infinity of finite numbers."""

    kind: str
    """`"value"`, `"tangent"` or `"adjoint"`."""
    operation: str
    """The primitive, or the argument if the user passed it."""
    line: str
    """The line of the user's code."""
    inside: str
    """The calls, loops and steps around it."""
    result: str
    """The result, nan or an infinity, and its place in the array."""
    numbers: str
    """The numbers that met there."""
    remedy: str

    def __str__(self) -> str:
        place = f"at {self.line}" + (f", in {self.inside}" if self.inside else "")
        lines = f"{self.kind}: {self.operation} {place}", f"made {self.result}: {self.numbers}"
        return "\n    ".join((*lines, *([self.remedy] if self.remedy else [])))


class Blame(NamedTuple):
    """The culprits that `blame` found; false if there are none."""

    value: Culprit | None
    """The first culprit in the values, or `None`."""
    derivative: Culprit | None
    """The first culprit in the tangents, or in the adjoints, or `None`."""
    searched: str
    """The numbers that `blame` searched."""

    def __bool__(self) -> bool:
        return bool(self.value or self.derivative)

    def __str__(self) -> str:
        found = [str(culprit) for culprit in (self.value, self.derivative) if culprit]
        return "\n".join(found) or f"no nan and no infinity in the {self.searched}"

    __repr__ = __str__


def blame(fun: Callable, *args: Any, mode: str = "rev") -> Blame:
    """Find the equation that first made a nan or an infinity.

    functrans runs the function equation by equation, and opens calls and loops; this takes time and
    memory for each step. The adjoints start with ones for all results, and the tangents with ones
    for all arguments.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *args: its arguments: arrays with values, so outside `jit`.
      mode: `"rev"` to search the adjoints, `"fwd"` to search the tangents.

    Returns:
      A `Blame`: the first culprit in the values and the first in the derivatives, each with the
      user's line, the calls and steps around it, the numbers that met there, and a remedy. It is
      false if there is none.

    Raises:
      TypeError: if an argument or a result is not an array, or if an argument has no value.
      ValueError: if `mode` is neither of the two.

    See also:
      `functrans.strong_zeros`, a remedy.

    >>> import jax.numpy as jnp
    >>> from functrans.explain import blame
    >>> def f(x):
    ...     return jnp.where(x > 0, jnp.sqrt(x), 0.0)
    >>> blame(f, 0.0)
    adjoint: sqrt at ...
        made nan: the derivative of sqrt(0) is inf; it meets the cotangent 0
        remedy: functrans.strong_zeros(), or a mask of the argument of sqrt, not of its result alone
    >>> blame(f, 1.0)
    no nan and no infinity in the values and adjoints
    """
    if mode not in ("rev", "fwd"):
        raise ValueError(f'blame: mode must be "rev" or "fwd", but it is {mode!r}')
    function, paths, leaves, program = staged("blame", fun, args)
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        raise TypeError("blame: an argument has no value, as inside jit: call it outside")
    with jax.core.eval_context():
        run = _Run(unfold(program, leaves, lambda *_: True, every_round), leaves, mode)
        value = next(_passed(function.fun, paths, leaves), None) or run.evaluated()
        derivative = run.pushed() if mode == "fwd" else run.pulled()
    searched = "values and tangents" if mode == "fwd" else "values and adjoints"
    return Blame(value, derivative, searched)


def _passed(fun: Callable, paths: Sequence, leaves: Sequence) -> Iterator[Culprit]:
    """A culprit for each argument that is not finite itself."""
    for path, x in zip(paths, leaves, strict=True):
        if not _finite(x):
            name = f"the argument {keystr(path)} of {jx.name_of(fun)}"
            yield Culprit("value", name, "the call", "", _at(x, _first(x)), "it was passed", "")


# ---- the run -------------------------------------------------------------------------------------


class Done(NamedTuple):
    """A step that has been evaluated, and its linear part."""

    step: Step
    linear: LinearProgram | None


class _Run:
    """A program that has been opened, evaluated equation by equation."""

    def __init__(self, unfolded: Unfolded, leaves: Sequence, mode: str):
        jaxpr, self.mode = unfolded.program.jaxpr, mode
        given = [*jaxpr.invars, *jaxpr.constvars], [*leaves, *unfolded.program.consts]
        pairs = zip(*given, strict=True)
        self.variables: dict = {var: Variable("", var.aval, value=x) for var, x in pairs}
        for variable in map(self.variables.__getitem__, jaxpr.invars):
            variable.moves = values.is_differentiable(variable.aval)
            if mode == "fwd" and variable.moves:
                variable.tangent = lax.full(variable.aval.shape, 1, variable.aval.dtype)
        pairs = zip(jaxpr.eqns, unfolded.places, strict=True)
        self.done = [self.evaluate(equation, places) for equation, places in pairs]
        self.results = [*map(self.read, jaxpr.outvars)]

    def read(self, atom: jx.Atom) -> Variable | Number:
        return Number(atom.val, atom.aval) if isinstance(atom, Literal) else self.variables[atom]

    def evaluate(self, equation: JaxprEqn, places: Places) -> Done:
        outputs = [Variable("", var.aval) for var in equation.outvars]
        step = Step(equation, [*map(self.read, equation.invars)], outputs, "", places)
        self.variables.update(zip(equation.outvars, outputs, strict=True))
        return Done(step, steps.evaluate_step(step, self.mode))

    def evaluated(self) -> Culprit | None:
        """The first culprit in the values."""
        for step, _ in self.done:
            given = [x.value for x in step.inputs]
            for y in step.outputs:
                if _is_new(y.value, given):
                    return _value(step, y)
        return None

    def pushed(self) -> Culprit | None:
        """The first culprit in the tangents."""
        for step, _ in self.done:
            dots = [x.tangent for x in step.inputs]
            if all(map(_finite, dots)) and not all(_finite(y.tangent) for y in step.outputs):
                moving = values.moving(dots)
                xs, given = [x.value for x in step.inputs], values.pick(dots, moving)
                _, linear = steps.linearized(step.equation, xs, moving)
                program = jx.with_constants(linear.jaxpr, linear.residuals)
                return _derivative(step, "tangent", program, given)
        return None

    def pulled(self) -> Culprit | None:
        """The first culprit in the adjoints, on the way back from the results."""
        for y in self.results:
            if isinstance(y, Variable) and y.moves:
                aval = values.tangent_aval(y.aval)
                steps.contribute(y, lax.full(aval.shape, 1, aval.dtype))
        for step, linear in reversed(self.done):
            y_bars = [y.adjoint for y in step.outputs]
            if linear is None or not any(values.moving(y_bars)):
                continue
            x_bars = steps.pull(linear, y_bars)
            if all(map(_finite, y_bars)) and not all(map(_finite, x_bars)):
                given = values.pick(y_bars, linear.moved)
                moving = values.moving(given)
                jaxpr = jx.with_constants(linear.jaxpr, [])
                is_linear = [i >= len(linear.residuals) for i in range(len(jaxpr.in_avals))]
                pulled, _ = transpose_jaxpr(jaxpr, tuple(is_linear), moving)
                jaxpr, known = jx.constants_first(pulled, linear.residuals)
                program = jx.with_constants(jaxpr, known)
                return _derivative(step, "cotangent", program, values.pick(given, moving))
            for x, x_bar in zip(values.pick(step.inputs, step.moving), x_bars, strict=True):
                if type(x_bar) is not values.Zero:
                    steps.contribute(x, x_bar)
        return None


# ---- the text about a culprit --------------------------------------------------------------------


def _value(step: Step, y: Variable) -> Culprit:
    equation, i = step.equation, _first(y.value)
    texts = [Text(_number_at(x.value, y.aval.shape, i) or "…") for x in step.inputs]
    numbers = f"it is {notation.expression(equation, texts).text}"
    name = notation.called(equation)
    remedy = f"remedy: if it is masked later, mask the argument of {name} instead"
    return _culprit(step, "value", _at(y.value, i), numbers, remedy)


def _derivative(step: Step, word: str, program: ClosedJaxpr, given: list) -> Culprit:
    """Look for the equation of the linear program in which the numbers meet."""
    equation, kind = step.equation, "adjoint" if word == "cotangent" else word
    name = notation.called(equation)
    linear = (True,) * len(given)
    met = next(_meeting(program, given, linear), None)
    if met is None:
        return _culprit(step, kind, "what is not finite", "a sum of what is finite", "")
    inner, xs, flags, y = met
    (known, linear), i, shape = values.part(xs, flags), _first(y), np.shape(y)
    texts = [Text(_number_at(x.value, shape, i) or "…") for x in step.inputs]
    expression, cure = notation.expression(equation, texts).text, ""
    if len(known) == len(linear) == 1 and RULES[inner.primitive].is_diagonal:
        factor, vector = (_number_at(x, shape, i) for x in (known[0], linear[0]))
        own = equation.primitive is inner.primitive
        if not factor:
            numbers = f"in {expression}, of the {word} {vector}"
        elif "div" in notation.called(inner):
            numbers = f"in {expression} the {word} {vector} is divided by {factor}"
        elif factor not in ("inf", "-inf", "nan"):
            numbers = f"the product of {factor} and the {word} {vector}"
        else:
            what = f"in {expression} a factor" if own else f"the derivative of {expression}"
            numbers = f"{what} is {factor}; it meets the {word} {vector}"
        is_zero = vector == "0"
    else:
        bad = next((x for x in known if not _finite(x)), None)
        factor = "" if bad is None else _at(bad, _first(bad))
        numbers = f"a factor is {factor}; it meets the {word}" if factor else "a sum, or a product"
        is_zero = any(not np.all(np.asarray(x)) for x in linear)
    if is_zero:
        cure = "functrans.strong_zeros(), or "
    remedy = f"remedy: {cure}a mask of the argument of {name}, not of its result alone"
    return _culprit(step, kind, _at(y, i), numbers, remedy)


def _culprit(step: Step, kind: str, made: str, numbers: str, remedy: str) -> Culprit:
    line, name = user_line(step.equation.source_info), notation.called(step.equation)
    inside = ", ".join(place.text for place in reversed(step.places))
    return Culprit(kind, name, line, inside, made, numbers, remedy)


def _meeting(program: ClosedJaxpr, inputs: Sequence, linear: Flags) -> Iterator[tuple]:
    """The equations that make something not finite of linear values that are finite: each with its
    inputs, the flags of the linear ones, and the result."""
    jaxpr = program.jaxpr
    known = jx.environment(program, inputs)
    owned = {v for v, flag in zip(jaxpr.invars, linear, strict=True) if flag}
    for equation in jaxpr.eqns:
        xs = [a.val if type(a) is Literal else known[a] for a in equation.invars]
        flags = jx.among(equation.invars, owned)
        ys = jx.bind(equation, xs)
        known.update(zip(equation.outvars, ys, strict=True))
        if not any(flags):
            continue
        owned.update(equation.outvars)
        bad = [y for y in ys if not _finite(y)]
        if bad and all(map(_finite, values.pick(xs, flags))):
            rule = RULES.get(equation.primitive)
            bodies = rule.bodies(equation.params) if isinstance(rule, CallRule) else ()
            if len(bodies) == 1 and len(bodies[0].in_avals) == len(xs):
                yield from _meeting(bodies[0], xs, flags)
            yield equation, xs, flags, bad[0]


# ---- numbers -------------------------------------------------------------------------------------


def _finite(x: Any) -> bool:
    if type(x) is values.Zero or not jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact):
        return True
    return bool(np.isfinite(np.asarray(x)).all())


def _has_nan(x: Any) -> bool:
    return not _finite(x) and bool(np.isnan(np.asarray(x)).any())


def _is_new(y: Any, xs: Sequence) -> bool:
    """Whether a result is not finite, of finite inputs; or nan, of infinities."""
    if all(map(_finite, xs)):
        return not _finite(y)
    return _has_nan(y) and not any(map(_has_nan, xs))


def _first(x: Any) -> tuple:
    """The index of the first nan; if there is none, of the first element that is not finite."""
    array = np.asarray(x)
    bad = np.isnan(array) if np.isnan(array).any() else ~np.isfinite(array)
    return np.unravel_index(np.argmax(bad), array.shape) if array.ndim else ()


def _at(x: Any, i: tuple) -> str:
    where = f" at [{', '.join(map(str, i))}]" if i else ""
    return notation.number(np.asarray(x)[i].item()) + where


def _number_at(x: Any, shape: tuple, i: tuple) -> str:
    """The element that meets element `i` of a result of this shape, if it is known."""
    array = np.asarray(x)
    if array.ndim and (len(shape) != array.ndim or {*array.shape} - {1, *shape}):
        return ""
    at = tuple([0 if size == 1 else k for size, k in zip(array.shape, i, strict=False)])
    return notation.number(array[at].item() or 0)
