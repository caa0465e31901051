"""How equations and values are written for people: `(equation, names of its inputs) -> text`.

    c:f32[] = mul a b      is written      a × b          (`a`, `b`: the texts of the inputs)

A text knows how tightly it binds, so that it can stand inside another one: with `a = u + v` the
product is `(u + v) × b`.

Read next: `table.py`, which shows the steps as a table.
"""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import AbstractValue, Tracer
from jax.dtypes import issubdtype
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn, jaxprs_in_params

from functrans.errors.wording import counted

RELATION, SUM, PRODUCT, POWER, ATOM = range(5)
"""How tightly a text binds."""


class Text(NamedTuple):
    """A mathematical expression."""

    text: str
    rank: int = ATOM

    def inside(self, rank: int) -> str:
        """The expression as an operand of one that binds with `rank`."""
        return self.text if self.rank >= rank else f"({self.text})"


# ---- names ---------------------------------------------------------------------------------------

DOT, BAR = "\u0307", "\u0304"
"""Over a letter: the tangent v̇, the adjoint v̄."""


def subscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "₋₀₁₂₃₄₅₆₇₈₉"))


def superscript(number: int) -> str:
    return str(number).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def marked(name: str, mark: str) -> str:
    """`v₁` with a dot or a bar over its letter."""
    return name[0] + mark + name[1:]


# ---- equations -----------------------------------------------------------------------------------

INFIX = {
    "add": (" + ", SUM),
    "add_any": (" + ", SUM),
    "sub": (" − ", SUM),
    "mul": (" × ", PRODUCT),
    "div": (" / ", PRODUCT),
    "rem": (" mod ", PRODUCT),
    "and": (" & ", RELATION),
    "or": (" | ", RELATION),
    "gt": (" > ", RELATION),
    "ge": (" ≥ ", RELATION),
    "lt": (" < ", RELATION),
    "le": (" ≤ ", RELATION),
    "eq": (" = ", RELATION),
    "ne": (" ≠ ", RELATION),
}
ASSOCIATIVE = {"add", "add_any", "mul"}
REDUCTIONS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod"}


def expression(equation: JaxprEqn, inputs: Sequence[Text]) -> Text:
    """The text of an equation, from the texts of its inputs."""
    name = str(equation.primitive)
    if name in INFIX and len(inputs) == 2:
        sign, rank = INFIX[name]
        # a - (b - c) is not a - b - c
        right = rank if name in ASSOCIATIVE and inputs[1].text.find(" / ") < 0 else rank + 1
        return Text(inputs[0].inside(rank) + sign + inputs[1].inside(right), rank)
    if name in WRITERS and (written := WRITERS[name](equation, *inputs)):
        return written
    if called(equation) == "[]":
        return Text(f"{inputs[0].inside(ATOM)}[{inputs[1].text}]")
    return function(called(equation), [x.text for x in inputs])


def function(name: str, args: Sequence[str]) -> Text:
    """`f(x, y)`; of many arguments the first."""
    shown = [*args] if len(args) <= 4 else [*args[:3], "…"]
    return Text(f"{name}({', '.join(shown)})")


def called(equation: JaxprEqn) -> str:
    """The name of an operation, or of the function that it calls."""
    name, params = str(equation.primitive), equation.params
    if name == "scan":
        return f"scan[{counted(params['length'], 'step')}]"
    if name == "cond":
        return f"cond[{counted(len(params['branches']), 'branch')}]"
    if name == "while" or not is_call(equation):
        return name
    inner = next(iter(jaxprs_in_params(params))).debug_info.func_name
    inner = name if inner.startswith("<") else inner.replace("\u00a0", " ")
    return str(params.get("name") or inner).lstrip("_")


def is_call(equation: JaxprEqn) -> bool:
    """Whether the equation has equations of its own inside."""
    return any(True for _ in jaxprs_in_params(equation.params))


UNFOLDED = "unfolded"
"""The purpose of a call that reads or joins the rows of an opened loop."""


def is_folded(equation: JaxprEqn) -> bool:
    """Whether the equation hides equations that the user, or a library, has written."""
    jaxprs = [*jaxprs_in_params(equation.params)]
    return bool(jaxprs) and jaxprs[0].debug_info.traced_for != UNFOLDED


def inside(equation: JaxprEqn) -> int:
    """The number of equations in what an equation calls; a loop's body counts once."""
    jaxprs = jaxprs_in_params(equation.params)
    return sum(1 + inside(inner) for jaxpr in jaxprs for inner in jaxpr.eqns)


def _reduction(equation: Any, x: Text) -> Text:
    axes, name = equation.params["axes"], REDUCTIONS[str(equation.primitive)]
    if len(axes) == equation.invars[0].aval.ndim:
        return function(name, [x.text])
    axis = axes[0] if len(axes) == 1 else axes
    return function(name, [x.text, f"axis={axis}"])


def _reshaped(name: str) -> Callable:
    def write(equation: Any, x: Text, *sizes: Text) -> Text:
        return function(name, [x.text, str(equation.outvars[0].aval.shape)])

    return write


def _product(equation: Any, x: Text, y: Text) -> Text | None:
    """`A @ B`, with a sign of transposition on a factor whose other dimension is contracted."""
    contracted, batch = equation.params["dimension_numbers"]
    ndims = [var.aval.ndim for var in equation.invars]
    if any(batch[0]) or max(ndims) > 2 or len(contracted[0]) != 1:
        return None
    (i,), (j,) = contracted
    left = x.inside(ATOM) + ("ᵀ" if ndims[0] == 2 and i == 0 else "")
    right = y.inside(ATOM) + ("ᵀ" if ndims[1] == 2 and j == 1 else "")
    return Text(f"{left} @ {right}", PRODUCT)


def _power(equation: JaxprEqn, x: Text) -> Text:
    exponent = {"square": 2}.get(str(equation.primitive)) or equation.params["y"]
    return x if exponent == 1 else Text(x.inside(ATOM) + superscript(exponent), POWER)


def _transposed(equation: JaxprEqn, x: Text) -> Text | None:
    is_matrix = tuple(equation.params["permutation"]) == (1, 0)
    return Text(x.inside(ATOM) + "ᵀ", POWER) if is_matrix else None


WRITERS: dict[str, Callable] = {
    **dict.fromkeys(REDUCTIONS, _reduction),
    **dict.fromkeys(("integer_pow", "square"), _power),
    "broadcast_in_dim": _reshaped("broadcast"),
    "reshape": _reshaped("reshape"),
    "dot_general": _product,
    "transpose": _transposed,
    "neg": lambda _, x: Text("−" + x.inside(POWER), PRODUCT),
    "pow": lambda _, x, y: Text(f"{x.inside(ATOM)}^{y.inside(ATOM)}", POWER),
    "convert_element_type": lambda e, x: function(str(e.params["new_dtype"]), [x.text]),
    "select_n": lambda _, which, *cases: (
        function("where", [which.text, cases[1].text, cases[0].text]) if len(cases) == 2 else None
    ),
}
"""A function of the equation and its inputs for a primitive. It returns `None` where it knows
nothing better than `name(inputs)`."""


# ---- the user's line -----------------------------------------------------------------------------


class Line(NamedTuple):
    """A line of the user's code."""

    file: str
    number: int
    code: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" if self.number else ""


def line_of(equation: JaxprEqn) -> Line:
    """The line that wrote an equation; a cell of a notebook is a file named "cell"."""
    found = re.match(r"(.*?):(\d+)\b", source_info_util.summarize(equation.source_info) or "")
    if not found:
        return Line("", 0, "")
    path, number = found[1], int(found[2])
    is_cell = path.startswith("<ipython-input") or f"{os.sep}ipykernel_" in path
    name = "cell" if is_cell else os.path.basename(path)
    return Line(name, number, linecache.getline(path, number).strip())


# ---- values --------------------------------------------------------------------------------------

SMALL = 4
"""We print an array of at most so many elements."""


def is_summarised(aval: Any) -> bool:
    return aval.size > SMALL


def value(x: Any, is_brief: bool = False) -> str:
    """A number, a small array, or the type and the norm of a large array.

    A value that is not known has only a type. A derivative has the type of its value, and so we
    leave the type out.
    """
    if x is None:
        return ""
    aval: Any = x if isinstance(x, AbstractValue) else jax.typeof(x)
    is_numeric = issubdtype(aval.dtype, np.number) or aval.dtype == bool
    if isinstance(x, Tracer | AbstractValue) or not is_numeric:
        return type_of(aval)
    array = np.asarray(x)
    if array.dtype != bool:  # what NumPy's own types can hold, in which bfloat16 can be printed
        kinds = {np.complexfloating: complex, np.floating: float, np.integer: int}
        array = array.astype(next(t for kind, t in kinds.items() if issubdtype(aval.dtype, kind)))
    if not is_summarised(aval):
        return _listed(array.tolist())
    return _summary(array) if is_brief else f"{type_of(aval)} {_summary(array)}"


def type_of(aval: Any) -> str:
    return aval.str_short(short_dtypes=True)


def _listed(x: Any) -> str:
    return f"[{', '.join(map(_listed, x))}]" if isinstance(x, list) else number(x)


def _summary(array: np.ndarray) -> str:
    if array.dtype == bool:
        return f"{array.sum()}\u00a0true"
    if array.dtype == int:
        return f"{array.min()}…{array.max()}"
    return f"‖{np.linalg.norm(array):.4g}‖"


def number(x: Any) -> str:
    """Five digits; an integer as it is."""
    return format(x, ".5g") if isinstance(x, float | complex) else str(x)
