"""A function, equation by equation: `(a -> b), a -> [(value, tangent or adjoint) of each step]`.

    v_k = f(v_i, v_j)      forward:    v_k_dot = df/dv_i v_i_dot + df/dv_j v_j_dot
                           reverse:    v_i_bar += v_k_bar df/dv_i,    the last equation first

The numbers come from functrans's own interpreters, to which the equations are handed one by one:
`forward` for tangents, `linearize` and `transpose` for adjoints.  The formula of a
derivative is what the same interpreters write if the equation is staged.

Read next: `table.py`, which shows the steps as a table.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import lax, tree
from jax.core import AbstractValue, Tracer
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jax.extend.core.primitives import jit_p
from jax.tree_util import keystr, tree_flatten_with_path

from functrans import jaxpr as jx
from functrans.errors import checks
from functrans.explain import notation
from functrans.explain.notation import BAR, DOT, Text, marked, subscript
from functrans.forward import forward
from functrans.jaxpr import Linear, Zero
from functrans.linearize import LinearProgram, linearize
from functrans.reverse import transpose
from functrans.tracer import stage
from functrans.transforms import Flat


@dataclass(eq=False)
class Variable:
    """An input, a constant, or a result of a step."""

    name: str
    aval: Any
    label: str = ""
    """What the user calls an input."""
    value: Any = None
    """Or its type, if it is not known."""
    tangent: Any = None
    adjoint: Any = None
    """A tangent or an adjoint is a `Zero` if it is known to be zero."""

    @property
    def text(self) -> Text:
        return Text(self.name)


@dataclass(eq=False)
class Number:
    """A literal, in the place of a variable."""

    value: Any
    aval: Any

    @property
    def text(self) -> Text:
        return Text(notation.value(self.value))

    @property
    def tangent(self) -> Zero:
        return Zero.like(self.value)

    adjoint = tangent


@dataclass(eq=False)
class Contribution:
    """What one use of a variable adds to its adjoint."""

    position: int
    """Which input of the step it is."""
    formula: str
    amount: Any
    is_first: bool
    total: Any
    """The adjoint after this."""


@dataclass(eq=False)
class Step:
    """One equation."""

    equation: JaxprEqn
    inputs: list
    outputs: list[Variable]
    shown: list[Variable]
    """Those outputs that are read."""
    expression: str
    tangents: dict[str, str] = field(default_factory=dict)
    """For the name of each output the formula of its tangent."""
    linear: LinearProgram | None = None
    contributions: list[Contribution] = field(default_factory=list)

    @property
    def name(self) -> str:
        return ", ".join(output.name for output in self.shown)


@dataclass(eq=False)
class Run:
    """A function, as it was evaluated step by step."""

    function: str
    inputs: list[Variable]
    constants: list[Variable]
    steps: list[Step]
    outputs: list
    """A variable or a number for each result."""
    labels: list[str]
    """What the results are called."""
    is_abstract: bool
    start: str = ""
    """In words, the tangent or the cotangent that it started with."""
    seeds: list = field(default_factory=list)
    """The cotangents of the results."""
    totals: list = field(default_factory=list)
    """For each result the adjoint of its variable, once the seeds up to this one are added."""

    @property
    def variables(self) -> list[Variable]:
        return [*self.inputs, *self.constants, *(v for step in self.steps for v in step.shown)]

    def notes(self) -> list[str]:
        """What is left out of a picture of this."""
        notes = []
        calls = [step.equation for step in self.steps if notation.is_call(step.equation)]
        if folded := sum(map(notation.inside, calls)):
            names = ", ".join(dict.fromkeys(map(notation.called, calls)))
            what = (
                "1 equation inside a folded call"
                if folded == 1
                else (f"{folded} equations inside folded calls")
            )
            notes.append(f"Not shown: {what} ({names}).")
        if unread := sum(len(step.outputs) - len(step.shown) for step in self.steps):
            notes.append(f"Not shown: {unread} result{'s' * (unread > 1)} that nothing reads.")
        if self.is_abstract:
            notes.append("Types stand for values that are not known here, as inside jit and vmap.")
        elif any(notation.is_summarised(v.aval) for v in self.variables):
            notes.append(f"Arrays of more than {notation.SMALL} elements: type, ‖norm‖.")
        return notes


def run(
    name: str,
    fun: Callable,
    args: tuple,
    mode: str | None,
    wrt: int | Sequence[int] | None = None,
    tangents: Any = None,
    cotangent: Any = None,
    unfold: bool = False,
) -> Run:
    """Evaluate `fun(*args)` step by step, with tangents (`"fwd"`), adjoints (`"rev"`), or neither.

    `name` is that of the function that the user has called, for its errors.
    """
    checks.is_function(fun)
    paths, in_tree = tree_flatten_with_path(args)
    leaves = [_known(x) for _, x in paths]
    flat, avals = Flat(fun, in_tree), [checks.type_of(name, x) for x in leaves]
    program = stage(lambda *xs: flat(*xs)[0], avals, jx.debug_info(name, fun))
    while _has_calls(program, any if unfold else all):
        opened = functools.partial(_opened, program)
        program = stage(opened, program.in_avals, jx.debug_info(name, fun))
    values = [*leaves, *map(_known, program.consts)]
    result = _plan(program, flat, _names(fun, args, paths), any(map(_is_abstract, values)))
    given = [*result.inputs, *result.constants]
    if tangents is None:
        dots, result.start = _ones(name, mode, result.inputs, [p[0].idx for p, _ in paths], wrt)
    else:
        if wrt is not None:
            raise TypeError(f"{name}: pass wrt or tangents, not both: the tangents say it all")
        if tree.structure(tangents) != in_tree:
            raise TypeError(
                f"{name}: tangents must be a tuple with one tangent for each of the {len(args)} "
                f"arguments, of the same structure, but it is {tangents!r}"
            )
        dots, result.start = checks.tangents(leaves, in_tree, tangents), "the tangents given"
    dots += [Zero.like(x) for x in values[len(dots) :]]
    if mode == "rev":
        result.seeds, result.start = _seeds(name, result, flat.out_tree, cotangent)

    def evaluate(*xs: Any) -> list:
        for variable, x, dot in zip(given, xs, dots, strict=True):
            variable.value, variable.tangent = x, dot
        for step in result.steps:
            _forward(step, mode)
        if mode == "rev":
            _reverse(result)
        return []

    if result.is_abstract:
        # On tracers of its own, so that it leaves nothing in the program that is being traced.
        stage(evaluate, [variable.aval for variable in given], jx.debug_info(name, fun))
        _forget_values(result)
    else:
        with jax.ensure_compile_time_eval():
            evaluate(*values)
    return result


# ---- before it runs ------------------------------------------------------------------------------


def _known(x: Any) -> Any:
    """The value of a tracer, if it has one: in `grad` and `jvp` it has, in `jit` it has not."""
    value = x.to_concrete_value() if isinstance(x, Tracer) else None
    return x if value is None else value


def _is_abstract(x: Any) -> bool:
    return isinstance(x, Tracer | jax.ShapeDtypeStruct)


def _has_calls(program: ClosedJaxpr, quantifier: Callable) -> bool:
    """Whether any equation, or all of them, are calls of jitted functions."""
    equations = program.jaxpr.eqns
    return bool(equations) and quantifier(e.primitive is jit_p for e in equations)


def _opened(program: ClosedJaxpr, *inputs: Any) -> list:
    """Evaluate a program and, in their places, the jitted functions that it calls.

    What a library wrote has the line of the call.
    """
    values = jx.environment(program, inputs)

    def find(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for equation in program.jaxpr.eqns:
        primitive, given = equation.primitive, map(find, equation.invars)
        has_line = bool(source_info_util.summarize(equation.source_info))
        here = None if has_line else jx.scoped(source_info_util.current(), equation)
        with jx.context_of(equation, here):
            if primitive is jit_p:
                outs = _opened(equation.params["jaxpr"], *given)
            else:
                params = primitive.get_bind_params(equation.params)
                outs = jx.results(primitive, primitive.bind(*given, **params))
        values.update(zip(equation.outvars, outs, strict=True))
    return list(map(find, program.jaxpr.outvars))


def _names(fun: Callable, args: tuple, paths: Sequence) -> list[str]:
    """What the user calls each leaf of the arguments: `w`, `params['layer'][0]`."""
    try:
        parameters = list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):  # a function written in C
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names += [f"x{subscript(i + 1)}" for i in range(len(names), len(args))]
    return [names[path[0].idx] + keystr(path[1:]) for path, _ in paths]


def _plan(program: ClosedJaxpr, flat: Flat, labels: Sequence[str], is_abstract: bool) -> Run:
    """Name the variables and write the expressions; nothing is evaluated yet."""
    jaxpr, count = program.jaxpr, len(labels)
    inputs = [
        Variable(f"v{subscript(i - count + 1)}", var.aval, label)
        for i, (var, label) in enumerate(zip(jaxpr.invars, labels, strict=True))
    ]
    constants = [Variable(f"c{subscript(i + 1)}", v.aval) for i, v in enumerate(jaxpr.constvars)]
    known: dict = dict(zip([*jaxpr.invars, *jaxpr.constvars], [*inputs, *constants], strict=True))
    atoms = [*jaxpr.outvars, *(atom for equation in jaxpr.eqns for atom in equation.invars)]
    used = {atom for atom in atoms if not isinstance(atom, Literal)}

    def find(atom: Any) -> Any:
        return Number(atom.val, atom.aval) if isinstance(atom, Literal) else known[atom]

    steps, number = [], 0
    for equation in jaxpr.eqns:
        outputs = [Variable("", var.aval) for var in equation.outvars]
        shown = [v for v, var in zip(outputs, equation.outvars, strict=True) if var in used]
        for output in shown or outputs:
            number += 1
            output.name = f"v{subscript(number)}"
        given = [find(atom) for atom in equation.invars]
        written = notation.expression(equation, [x.text for x in given]).text
        steps.append(Step(equation, given, outputs, shown or outputs, written))
        known.update(zip(equation.outvars, outputs, strict=True))
    results = tree_flatten_with_path(tree.unflatten(flat.out_tree, jaxpr.outvars))[0]
    names = ["y" + keystr(path) for path, _ in results]
    function, outs = jx.name_of(flat.fun), [find(atom) for _, atom in results]
    return Run(function, inputs, constants, steps, outs, names, is_abstract)


def _ones(
    name: str, mode: str | None, inputs: Sequence[Variable], numbers: Sequence[int], wrt: Any
) -> tuple[list, str]:
    """The tangents of ones in the arguments `wrt`; in reverse mode gaps in their places.

    `numbers` says of which argument each input is a part.
    """
    moves = [mode is not None and jx.is_differentiable(v.aval) for v in inputs]
    candidates = sorted({n for n, can in zip(numbers, moves, strict=True) if can})
    if mode and not candidates:
        types = ", ".join(f"{v.label}: {v.aval.str_short()}" for v in inputs) or "none"
        raise TypeError(
            f"{name}: no argument has a derivative ({types}). Pass floating-point numbers, such "
            "as 2.0 for 2."
        )
    chosen = candidates[:1] if mode == "fwd" else candidates
    if mode and wrt is not None:
        chosen = list(wrt) if isinstance(wrt, Sequence) else [wrt]
        if wrong := [n for n in chosen if n not in candidates]:
            raise ValueError(
                f"{name}: wrt={wrt!r}, but {wrong[0]!r} is not the number of an argument that has "
                f"a derivative. These are {candidates}, counted from 0; integers have no "
                "derivative: pass 2.0 for 2."
            )
    moves = [can and n in chosen for can, n in zip(moves, numbers, strict=True)]
    gaps = jx.gaps_for([v.aval for v in inputs], moves)
    if mode != "fwd":
        return gaps, ""
    moving = [v for v, moves in zip(inputs, moves, strict=True) if moves]
    words = "1" if all(v.aval.shape == () for v in moving) else "ones"
    ones = [lax.full(v.aval.shape, 1, v.aval.dtype) for v in moving]
    return jx.fill(gaps, ones), f"tangent {words} in {_listed([v.label for v in moving])}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"… ({len(names)} in all)"])


def _seeds(name: str, run: Run, out_tree: Any, cotangent: Any) -> tuple[list, str]:
    """The cotangents of the results."""
    avals = [x.aval.to_tangent_aval() for x in run.outputs]
    if cotangent is not None:
        given = checks.linear_input("the pullback", out_tree, avals, cotangent)
        return given, "the cotangent given"
    is_real = len(avals) == 1 and jax.dtypes.issubdtype(avals[0].dtype, jax.numpy.floating)
    if not is_real or avals[0].shape:
        got = ", ".join(aval.str_short() for aval in (x.aval for x in run.outputs)) or "nothing"
        raise TypeError(
            f"{name}: {run.function} returns {got}, not one real number, so that reverse mode must "
            "be told where to start. Pass cotangent=, of the structure and the types of the "
            "result, such as cotangent=jnp.ones(3); the adjoints are then those of its inner "
            "product with the result."
        )
    return [lax.full((), 1, avals[0].dtype)], f"cotangent 1 of {run.labels[0]}"


# ---- as it runs ----------------------------------------------------------------------------------


def _forward(step: Step, mode: str | None) -> None:
    """Evaluate one equation, and push its tangents or keep its linear part."""
    equation = step.equation
    primals, tangents = [x.value for x in step.inputs], [x.tangent for x in step.inputs]
    if not mode or not jx.present(tangents):
        outs = jx.bind(equation, primals)
        dots: list = [Zero.like(out) for out in outs]
    elif mode == "fwd":
        outs, dots = _push(equation, primals, tangents)
        step.tangents = _tangent_formulas(step, tangents)
    else:
        outs, _, linear = _linearize(equation, primals, tangents)
        step.linear, dots = linear, linear.gaps
    for output, out, dot in zip(step.outputs, outs, dots, strict=True):
        output.value, output.tangent = out, dot


def _push(equation: JaxprEqn, primals: list, tangents: list) -> tuple[list, list]:
    outs, dots, _ = forward(lambda *xs: (jx.bind(equation, xs), []), primals, tangents)
    return outs, dots


def _linearize(equation: JaxprEqn, primals: list, gaps: list) -> tuple:
    return linearize(lambda *xs: (jx.bind(equation, xs), []), primals, gaps)


def _reverse(run: Run) -> None:
    """Pull the cotangents of the results back, the last equation first."""
    for variable in [*run.inputs, *run.constants, *(v for s in run.steps for v in s.outputs)]:
        variable.adjoint = Zero(variable.aval.to_tangent_aval())
    for output, seed in zip(run.outputs, run.seeds, strict=True):
        if output.tangent is None:
            output.adjoint = jx.add(output.adjoint, jx.varying_as(seed, output.aval))
        run.totals.append(output.adjoint)
    for step in reversed(run.steps):
        y_bars = [y.adjoint for y in step.outputs]
        if step.linear is None or not jx.present(y_bars):
            continue
        formulas = _adjoint_formulas(step)
        for position, x_bar in _pull(step.linear, step.inputs, y_bars).items():
            x = step.inputs[position]
            is_first, x.adjoint = type(x.adjoint) is Zero, jx.add(x.adjoint, x_bar)
            formula = formulas[position]
            step.contributions.append(Contribution(position, formula, x_bar, is_first, x.adjoint))


def _pull(linear: LinearProgram, inputs: Sequence, y_bars: Sequence) -> dict[int, Any]:
    """The cotangents of those inputs that have one, by their positions."""
    moving = [i for i, x in enumerate(inputs) if x.tangent is None]
    symbols = [Linear(inputs[i].aval.to_tangent_aval()) for i in moving]
    given = [y_bar for y_bar, gap in zip(y_bars, linear.gaps, strict=True) if gap is None]
    x_bars = transpose(linear.jaxpr, [*linear.residuals, *symbols], given)
    return {i: x for i, x in zip(moving, x_bars, strict=True) if type(x) is not Zero}


def _forget_values(run: Run) -> None:
    """Put types in the places of tracers, whose trace has ended."""

    def type_of(x: Any) -> Any:
        return x if x is None or isinstance(x, Zero | AbstractValue) else jx.typeof(x)

    for variable in [*run.inputs, *run.constants, *(v for s in run.steps for v in s.outputs)]:
        variable.value, variable.tangent = type_of(variable.value), type_of(variable.tangent)
        variable.adjoint = type_of(variable.adjoint)
    run.totals = list(map(type_of, run.totals))
    for step in run.steps:
        step.linear = None
        for use in step.contributions:
            use.amount, use.total = type_of(use.amount), type_of(use.total)


# ---- formulas of derivatives ---------------------------------------------------------------------

LONGEST = 48
"""A formula with more letters is given in general terms."""


def _tangent_formulas(step: Step, tangents: Sequence) -> dict[str, str]:
    """For each output that moves its tangent, as the forward interpreter computes it."""
    positions: list[int] = []
    moving, gaps = _moving(step.inputs, tangents)

    def push(*xs: Any) -> list:
        dots = _push(step.equation, _given(step.inputs, xs), jx.fill(gaps, xs[-len(moving) :]))[1]
        positions.extend(i for i, dot in enumerate(dots) if type(dot) is not Zero)
        return jx.present(dots)

    dots = [(x.aval.to_tangent_aval(), marked(x.name, DOT)) for x in moving]
    written = _written(step, push, dots, positions)
    terms = [f"∂{{}}/∂{x.name} · {marked(x.name, DOT)}" for x in moving]
    general = " + ".join(terms if len(terms) <= 2 else [terms[0], "…", terms[-1]])
    return {
        y.name: written.get(i) or general.format(*[y.name] * 2) for i, y in enumerate(step.outputs)
    }


def _adjoint_formulas(step: Step) -> dict[int, str]:
    """For each input that moves what it is given, as the reverse interpreter computes it."""
    positions: list[int] = []
    moving, gaps = _moving(step.inputs, [x.tangent for x in step.inputs])
    pulled = [y for y in step.outputs if type(y.adjoint) is not Zero]
    y_gaps = [None if y in pulled else y.adjoint for y in step.outputs]

    def pull(*xs: Any) -> list:
        linear = _linearize(step.equation, _given(step.inputs, xs), gaps)[2]
        x_bars = _pull(linear, step.inputs, jx.fill(y_gaps, xs[-len(pulled) :]))
        positions.extend(x_bars)
        return list(x_bars.values())

    bars = [(y.aval.to_tangent_aval(), marked(y.name, BAR)) for y in pulled]
    written = _written(step, pull, bars, positions)
    terms = [f"{marked(y.name, BAR)} · ∂{y.name}/∂{{}}" for y in pulled]
    general = " + ".join(terms if len(terms) <= 2 else [terms[0], "…", terms[-1]])
    return {
        i: written.get(i) or general.format(*[x.name] * 2)
        for i, x in enumerate(step.inputs)
        if x in moving
    }


def _moving(inputs: Sequence, tangents: Sequence) -> tuple[list, list]:
    """The inputs that move, and the gaps that their tangents leave."""
    pairs = list(zip(inputs, tangents, strict=True))
    return [x for x, t in pairs if type(t) is not Zero], jx.gaps_for(
        [x.aval for x in inputs], [type(t) is not Zero for t in tangents]
    )


def _given(inputs: Sequence, xs: Sequence) -> list:
    """The inputs: numbers as they are, and the first of `xs` for the variables."""
    rest = iter(xs)
    return [x.value if isinstance(x, Number) else next(rest) for x in inputs]


def _written(step: Step, fun: Callable, more: Sequence, positions: list[int]) -> dict[int, str]:
    """Stage a function of the step's inputs and `more`, pairs `(type, name)`; write its results.

    The function puts in `positions` which results they are. Those that are too long are left out.
    """
    if notation.is_call(step.equation):
        return {}
    variables = [x for x in step.inputs if isinstance(x, Variable)]
    avals = [*(x.aval for x in variables), *(aval for aval, _ in more)]
    program = stage(fun, avals, jx.debug_info("formula", fun))
    names = [*(x.text for x in variables), *(Text(name) for _, name in more)]
    texts: dict = dict(zip(program.jaxpr.invars, names, strict=True))

    def find(atom: Any) -> Text | None:
        if isinstance(atom, Literal):
            return Number(atom.val, atom.aval).text
        return texts.get(atom)

    for equation in program.jaxpr.eqns:
        given = [find(atom) for atom in equation.invars]
        if given == [x.text for x in step.inputs] and _is_same(equation, step.equation):
            texts.update(zip(equation.outvars, [y.text for y in step.outputs], strict=True))
        elif None not in given and len(equation.outvars) == 1 and not notation.is_call(equation):
            text = notation.expression(equation, [text for text in given if text])
            if len(text.text) <= LONGEST:
                texts[equation.outvars[0]] = text
    results = map(find, program.jaxpr.outvars)
    return {i: text.text for i, text in zip(positions, results, strict=True) if text}


def _is_same(one: JaxprEqn, other: JaxprEqn) -> bool:
    return one.primitive is other.primitive and str(one.params) == str(other.params)
