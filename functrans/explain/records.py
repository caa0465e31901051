"""The record of an evaluation: `Run`, the list of steps that textbooks call a Wengert list.

    v_k = f(v_i, v_j)        a step; with each variable its value, its tangent, and its adjoint

    v_i_bar = the sum of the contributions of its uses

Later files fill it: first the names, then the numbers.

Read next: `unfolding.py`, where calls, loops and branches are opened.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jax.core import AbstractValue, Tracer
from jax.extend.core import ClosedJaxpr, JaxprEqn

from functrans import values
from functrans.errors.wording import counted
from functrans.explain import notation
from functrans.explain.notation import Text
from functrans.flat import Flat
from functrans.values import Flags, Zero


class Residual(NamedTuple):
    """One array that the reverse pass keeps."""

    shape: tuple[int, ...]
    dtype: Any
    size: int
    """The size in bytes."""
    origin: str
    """The argument, or the operation that made the array and the line of the user's code."""
    what: str = ""
    """In a graph: the variable that it is, or the operation that made it."""

    def __str__(self) -> str:
        dimensions = ",".join(map(str, self.shape))
        return f"{self.dtype.name}[{dimensions}] ({counted(self.size, 'byte')}): {self.origin}"


class Residuals(list[Residual]):
    """A list of `Residual` that prints with each array's share of the total."""

    @property
    def total(self) -> int:
        """The size of all arrays together, in bytes."""
        return sum(residual.size for residual in self)

    def __repr__(self) -> str:
        lines = [f"{residual.size / (self.total or 1):4.0%}  {residual}" for residual in self]
        whole = f"{counted(self.total, 'byte')} in {counted(len(self), 'array')}"
        return "\n".join([*lines, whole])


@dataclass(eq=False)
class Variable:
    """An input, a constant, or an output of a step."""

    name: str
    aval: Any
    label: str = ""
    """What the user calls an input."""
    value: Any = None
    """An array; its type, if the value is not known (inside `jit`)."""
    moves: bool = False
    """Whether it depends on the inputs that move; if not, it has no adjoint in reverse mode."""

    def __post_init__(self):
        zero = Zero(values.tangent_aval(self.aval))
        self.tangent: Any = zero
        """In forward mode; a `Zero` unless the variable moves."""
        self.adjoint: Any = zero
        """In reverse mode; a `Zero` until a use contributes to it."""
        self.residuals: list[Residual] = []
        """An input or a constant itself, if the reverse pass keeps it."""

    @property
    def text(self) -> Text:
        return Text(self.name)


@dataclass(eq=False)
class Number:
    """A literal, in the place of a variable: it never moves."""

    value: Any
    aval: Any

    moves = False

    @property
    def text(self) -> Text:
        return Text(notation.value(self.value))

    @property
    def tangent(self) -> Zero:
        return Zero.like(self.value)


class Contribution(NamedTuple):
    """What one use of a variable adds to its adjoint."""

    amount: Any
    is_first: bool
    total: Any
    """The adjoint after this."""


@dataclass(eq=False, frozen=True)
class Place:
    """The round of a loop, the branch, or the call from which an equation comes."""

    text: str
    is_call: bool = False


Places = tuple[Place, ...]
"""The places around an equation, the outermost first."""


@dataclass(eq=False)
class Step:
    """One equation."""

    equation: JaxprEqn
    inputs: list[Variable | Number]
    outputs: list[Variable]
    expression: str
    places: Places = ()
    """The opened rounds and branches in which the step is."""
    residuals: list[Residual] = field(default_factory=list)
    """The arrays of it that the reverse pass keeps."""
    contributions: dict[int, Contribution] = field(default_factory=dict)
    """The contribution of each use to an adjoint, by the position of the input (reverse mode)."""

    @property
    def place(self) -> str:
        return ", ".join(place.text for place in self.places)

    @property
    def moving(self) -> Flags:
        """Which inputs move."""
        return tuple([x.moves for x in self.inputs])

    @property
    def shown(self) -> list[Variable]:
        """The outputs that have a name: those that something reads, or all if nothing does."""
        return [y for y in self.outputs if y.name]

    @property
    def name(self) -> str:
        return ", ".join(y.name for y in self.shown)


@dataclass(eq=False)
class Result:
    """One leaf of what the function returns."""

    label: str
    source: Variable | Number
    seed: Contribution | None = None
    """The contribution of its cotangent to the adjoint of its source (reverse mode)."""


@dataclass(eq=False)
class Run:
    """A function, evaluated step by step."""

    function: Flat
    inputs: list[Variable]
    constants: list[Variable]
    steps: list[Step]
    results: list[Result]
    program: ClosedJaxpr
    jits: int = 0
    """How many times the function is jitted as a whole."""
    residuals: Residuals = field(default_factory=Residuals)
    """The arrays that the reverse pass keeps, if the user has asked for them."""

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def given(self) -> list[Variable]:
        """The variables that no step computes."""
        return [*self.inputs, *self.constants]

    @property
    def variables(self) -> list[Variable]:
        return [*self.given, *(y for step in self.steps for y in step.outputs)]

    @property
    def is_abstract(self) -> bool:
        """Whether values are not known, as inside `jit`."""
        return any(is_abstract(v.value) for v in self.variables)

    def notes(self, summary: str = "type, ‖norm‖") -> list[str]:
        """The omissions of a picture of this run; `summary` says how it shows a large array."""
        notes = []
        calls = [step.equation for step in self.steps if notation.is_folded(step.equation)]
        if folded := sum(map(notation.inside, calls)):
            names = ", ".join(dict.fromkeys(map(notation.called, calls)))
            what = f"{counted(folded, 'equation')} inside {counted(len(calls), 'folded call')}"
            notes.append(f"Not shown: {what} ({names}).")
        if unread := sum(len(step.outputs) - len(step.shown) for step in self.steps):
            notes.append(f"Not shown: {counted(unread, 'result')} that nothing reads.")
        if self.is_abstract:
            notes.append("Types stand for values that are not known here, as inside jit and vmap.")
        elif summary and any(notation.is_summarised(v.aval) for v in self.variables if v.name):
            notes.append(f"Arrays of more than {notation.SMALL} elements: {summary}.")
        return notes


def moving_variables(xs: Iterable[Variable | Number]) -> list[Variable]:
    """The variables that move; one that is several inputs comes as often."""
    return [x for x in xs if isinstance(x, Variable) and x.moves]


def is_abstract(x: Any) -> bool:
    """Whether `x` stands for a value that is not known."""
    return isinstance(x, Tracer | AbstractValue | jax.ShapeDtypeStruct)
