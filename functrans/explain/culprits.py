"""Which equation first made a nan or an infinity: `(a -> b), a -> Blame`.

    v_k = f(v_i)        v_k_dot = f'(v_i) v_i_dot        v_i_bar = f'(v_i) v_k_bar

The function runs equation by equation, on numbers, with all calls opened: each step of a loop, the
branch that is taken.  The first equation that makes something that is not finite of what is finite
is to blame; one for the values, and one for the tangents, or for the adjoints.

Read next: `../testing.py`, which checks derivatives against JAX and finite differences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax, tree
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jax.extend.core.primitives import cond_p, remat_p, scan_p
from jax.tree_util import keystr

from functrans import jaxpr as jx
from functrans import values
from functrans.control_flow.base import CallRule
from functrans.control_flow.calls import InlinedRule
from functrans.control_flow.scan import Loop as Scan
from functrans.control_flow.while_loop import Loop as While
from functrans.errors import checks
from functrans.errors.lines import user_line
from functrans.explain import notation, steps
from functrans.explain.notation import Text
from functrans.explain.planning import known
from functrans.explain.records import Number, Step, Variable
from functrans.flat import Flat
from functrans.linearize import LinearProgram
from functrans.reverse import transpose_jaxpr
from functrans.rules import RULES
from functrans.tracer import stage
from functrans.values import Flags


class Culprit(NamedTuple):
    """An equation that made a nan or an infinity of finite numbers."""

    kind: str
    """`"value"`, `"tangent"` or `"adjoint"`."""
    operation: str
    """The primitive, or the argument if the user has passed it."""
    line: str
    """Of the user's code."""
    inside: str
    """The calls, loops and steps in which it is."""
    result: str
    """What it has made, and where."""
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
    """The first in the values."""
    derivative: Culprit | None
    """The first in the tangents, or in the adjoints."""
    searched: str
    """What has been looked at."""

    def __bool__(self) -> bool:
        return bool(self.value or self.derivative)

    def __str__(self) -> str:
        found = [str(culprit) for culprit in (self.value, self.derivative) if culprit]
        return "\n".join(found) or f"no nan and no infinity in the {self.searched}"

    __repr__ = __str__


def blame(fun: Callable, *args: Any, mode: str = "rev") -> Blame:
    """Find the equation that first made a nan or an infinity.

    functrans runs the function equation by equation, and opens calls and loops; this takes time and
    memory for each step. The adjoints are those of the sum of the results, and the tangents those
    of ones in all arguments.

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
    checks.is_function("blame", fun)
    if mode not in ("rev", "fwd"):
        raise ValueError(f'blame: mode must be "rev" or "fwd", but it is {mode!r}')
    paths, in_tree = tree.flatten_with_path(args)
    leaves = [known(x) for _, x in paths]
    flat, avals = Flat(fun, in_tree), [checks.type_of("blame", x) for x in leaves]
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        raise TypeError("blame: an argument has no value, as inside jit: call it outside")
    program, _ = stage(flat, avals, jx.debug_info("blame", fun))
    with jax.core.eval_context():
        run = _Run(mode)
        inputs = [run.input(*pair) for pair in zip(avals, leaves, strict=True)]
        for (path, _), variable in zip(paths, inputs, strict=True):
            if run.culprit is None and not _finite(variable.value):
                i = _first(variable.value)
                made = _at(variable.value, i)
                name = f"the argument {keystr(path)} of {jx.name_of(fun)}"
                run.culprit = Culprit("value", name, "the call", "", made, "it was passed", "")
        results = run.program(program, inputs, (), None)
        derivative = run.pushed() if mode == "fwd" else run.pulled(results)
    searched = "values and tangents" if mode == "fwd" else "values and adjoints"
    return Blame(run.culprit, derivative, searched)


# ---- the run -------------------------------------------------------------------------------------


class Done(NamedTuple):
    """A step that has been evaluated, and where."""

    step: Step
    linear: LinearProgram | None
    inside: tuple
    source: Any


class _Run:
    """A program, evaluated equation by equation; calls are opened."""

    def __init__(self, mode: str):
        self.mode = mode
        self.done: list[Done] = []
        self.culprit: Culprit | None = None

    def input(self, aval: Any, value: Any) -> Variable:
        variable = self.constant(value, aval)
        variable.moves = values.is_differentiable(aval)
        if self.mode == "fwd" and variable.moves:
            variable.tangent = lax.full(aval.shape, 1, aval.dtype)
        return variable

    def constant(self, value: Any, aval: Any = None) -> Variable:
        return Variable("", aval or jax.typeof(value), value=value)

    def program(self, program: ClosedJaxpr, inputs: Sequence, inside: tuple, source: Any) -> list:
        """The results of a program, as variables."""
        jaxpr = program.jaxpr
        found: dict = dict(zip(jaxpr.constvars, map(self.constant, program.consts), strict=True))
        found |= zip(jaxpr.invars, inputs, strict=True)

        def read(atom: jx.Atom) -> Variable | Number:
            return Number(atom.val, atom.aval) if type(atom) is Literal else found[atom]

        for equation in jaxpr.eqns:
            xs = [*map(read, equation.invars)]
            has_line = source_info_util.summarize(equation.source_info)
            here = equation.source_info if has_line or source is None else source
            outs = self.opened(equation, xs, inside, here)
            if outs is None:
                outs = self.leaf(equation, xs, inside, here)
            found.update(zip(equation.outvars, outs, strict=True))
        return [*map(read, jaxpr.outvars)]

    def leaf(self, equation: JaxprEqn, xs: list, inside: tuple, source: Any) -> list:
        step = Step(equation, xs, [Variable("", v.aval) for v in equation.outvars], "")
        linear = steps.evaluate_step(step, self.mode)
        done = Done(step, linear, inside, source)
        self.done.append(done)
        if self.culprit is None:
            given = [x.value for x in xs]
            made = (_value(done, y) for y in step.outputs if _is_new(y.value, given))
            self.culprit = next(made, None)
        return step.outputs

    # Calls: a program runs inside of another, and what it is given and gives are its variables.

    def opened(self, equation: JaxprEqn, xs: list, inside: tuple, source: Any) -> list | None:
        primitive, params, rule = equation.primitive, equation.params, RULES.get(equation.primitive)
        if primitive is scan_p:
            return self.scan(Scan.of(params), xs, inside, source)
        if primitive in While.primitives:
            return self.loop(While.of(params), xs, inside, source)
        if primitive is cond_p:
            i = int(np.clip(xs[0].value, 0, len(params["branches"]) - 1))
            within = (*inside, f"branch {i} of cond")
            return self.program(params["branches"][i], xs[1:], within, source)
        if isinstance(rule, InlinedRule) and type(rule) is InlinedRule:
            return self.program(rule.program(params), xs, inside, source)
        if isinstance(rule, CallRule) and (primitive is remat_p or "jaxpr" in params):
            bodies = rule.bodies(params)
            if len(bodies) == 1 and len(bodies[0].in_avals) == len(xs) and "mesh" not in params:
                called = f"{primitive.name} of {notation.called(equation)}"
                within = (*inside, "checkpoint" if primitive is remat_p else called)
                return self.program(bodies[0], xs, within, source)
        return None

    def scan(self, loop: Scan, xs: list, inside: tuple, source: Any) -> list:
        consts, carry, columns = loop.parts(xs)
        order = range(loop.options["length"])
        rows = []
        for i in reversed(order) if loop.options["reverse"] else order:
            step = [self.written(_row, [x, self.constant(np.int32(i))], source)[0] for x in columns]
            given, within = [*consts, *carry, *step], (*inside, f"step {i} of scan")
            outs = self.program(loop.program, given, within, source)
            carry = outs[: loop.carry]
            rows.append(outs[loop.carry :])
        if loop.options["reverse"]:
            rows.reverse()
        if not rows:
            rows_of: list[Any] = loop.program.out_avals[loop.carry :]
            empty = [jnp.zeros((0, *aval.shape), aval.dtype) for aval in rows_of]
            return [*carry, *map(self.constant, empty)]
        return [
            *carry,
            *(self.written(_stacked, [*ys], source)[0] for ys in zip(*rows, strict=True)),
        ]

    def loop(self, loop: While, xs: list, inside: tuple, source: Any) -> list:
        asked, consts, carry = loop.parts(xs)
        i = 0
        while np.any(self.program(loop.condition, [*asked, *carry], inside, source)[0].value):
            within = (*inside, f"step {i} of while")
            carry = self.program(loop.body, [*consts, *carry], within, source)
            i += 1
        return carry

    def written(self, function: Callable, xs: list, source: Any) -> list:
        """A function of ours, as steps."""
        avals, info = [x.aval for x in xs], jx.debug_info("blame", function)
        program, _ = stage(lambda *xs: ([function(*xs)], None), avals, info)
        return self.program(program, xs, (), source)

    # Derivatives.

    def pushed(self) -> Culprit | None:
        """The first culprit in the tangents."""
        for done in self.done:
            step = done.step
            dots = [x.tangent for x in step.inputs]
            if all(map(_finite, dots)) and not all(_finite(y.tangent) for y in step.outputs):
                moving = values.moving(dots)
                xs, given = [x.value for x in step.inputs], values.pick(dots, moving)
                _, linear = steps.linearized(step.equation, xs, moving)
                program = jx.with_constants(linear.jaxpr, linear.residuals)
                return _derivative(done, "tangent", program, given)
        return None

    def pulled(self, results: Sequence) -> Culprit | None:
        """The first culprit in the adjoints, from the results backwards."""
        for y in results:
            if isinstance(y, Variable) and y.moves:
                aval = values.tangent_aval(y.aval)
                steps.contribute(y, lax.full(aval.shape, 1, aval.dtype))
        for done in reversed(self.done):
            step, linear = done.step, done.linear
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
                return _derivative(done, "cotangent", program, values.pick(given, moving))
            for x, x_bar in zip(values.pick(step.inputs, step.moving), x_bars, strict=True):
                if type(x_bar) is not values.Zero:
                    steps.contribute(x, x_bar)
        return None


def _row(x: Any, i: Any) -> Any:
    return lax.dynamic_index_in_dim(x, i, keepdims=False)


def _stacked(*ys: Any) -> Any:
    return jnp.stack(ys)


# ---- what is said of a culprit -------------------------------------------------------------------


def _value(done: Done, y: Variable) -> Culprit:
    equation, i = done.step.equation, _first(y.value)
    texts = [Text(_number_at(x.value, y.aval.shape, i) or "…") for x in done.step.inputs]
    numbers = f"it is {notation.expression(equation, texts).text}"
    name = notation.called(equation)
    remedy = f"remedy: if it is masked later, mask the argument of {name} instead"
    return _culprit(done, "value", _at(y.value, i), numbers, remedy)


def _derivative(done: Done, word: str, program: ClosedJaxpr, given: list) -> Culprit:
    """Look for the equation of the linear program in which the numbers meet."""
    equation, kind = done.step.equation, "adjoint" if word == "cotangent" else word
    name = notation.called(equation)
    linear = (True,) * len(given)
    met = next(_meeting(program, given, linear), None)
    if met is None:
        return _culprit(done, kind, "what is not finite", "a sum of what is finite", "")
    inner, xs, flags, y = met
    (known, linear), i, shape = values.part(xs, flags), _first(y), np.shape(y)
    texts = [Text(_number_at(x.value, shape, i) or "…") for x in done.step.inputs]
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
    return _culprit(done, kind, _at(y, i), numbers, remedy)


def _culprit(done: Done, kind: str, made: str, numbers: str, remedy: str) -> Culprit:
    line, inside = user_line(done.source), ", ".join(reversed(done.inside))
    return Culprit(kind, notation.called(done.step.equation), line, inside, made, numbers, remedy)


def _meeting(program: ClosedJaxpr, inputs: Sequence, linear: Flags) -> Iterator[tuple]:
    """The equations in which something not finite is made of linear values that are finite: each
    with its inputs, the flags of the linear ones, and the result."""
    jaxpr = program.jaxpr
    known = jx.environment(program, inputs)
    owned = {v for v, flag in zip(jaxpr.invars, linear, strict=True) if flag}
    for equation in jaxpr.eqns:
        xs = [a.val if type(a) is Literal else known[a] for a in equation.invars]
        flags = tuple([type(a) is not Literal and a in owned for a in equation.invars])
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
    """Whether a result is not finite and what it is made of is, or is nan made of infinities."""
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
    """The element that meets the one at `i` of a result of this shape, if one knows it."""
    array = np.asarray(x)
    if array.ndim and (len(shape) != array.ndim or {*array.shape} - {1, *shape}):
        return ""
    at = tuple([0 if size == 1 else k for size, k in zip(array.shape, i, strict=False)])
    return notation.number(array[at].item() or 0)
