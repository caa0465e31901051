"""The table of a textbook: `(a -> b), a -> [step, expression, value, derivative, line]`.

    v₁ = log(v₀)      forward mode:    v̇₁ = v̇₀ / v₀        reverse mode:    v̄₀ = v̄₁ / v₀

as in tables 2 and 3 of Baydin, Pearlmutter, Radul and Siskind, "Automatic differentiation in
machine learning: a survey", 2018.

Read next: `terminal.py`, the table in a terminal.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax.core
from jax import lax

from functrans.explain import export, notation, starts, terminal
from functrans.explain.formulas import adjoint_formulas, tangent_formulas
from functrans.explain.notation import BAR, DOT, Line, marked
from functrans.explain.planning import Unfold, planned
from functrans.explain.records import Number, Run, Variable, moving_variables
from functrans.explain.steps import evaluate
from functrans.values import Zero, is_differentiable

HEADERS = {
    "fwd": [["in", "step", "expression", "value", "tangent", "", "line"]],
    "rev": [["in", "step", "expression", "value", "line"], ["in", "of", "adjoint", "", "line"]],
}


class Row(NamedTuple):
    """One row of an evaluation table; `None` or an empty text fills a gap."""

    part: str
    """`"input"`, `"constant"`, `"step"` or `"output"`; of a reverse pass `"seed"`, `"reverse"` or
    `"gradient"`."""
    step: str
    """The variable that the step computes; in a reverse step, the one that it pulls back."""
    expression: str
    value: Any
    """An array; if it is not known (inside `jit`), its type."""
    derivative_step: str
    """The tangent that the step computes; in a reverse step, the adjoint to which it adds."""
    derivative_expression: str
    derivative: Any
    line: Line
    """The user's `file`, the `number` of the line in it, and its `code`."""
    place: str = ""
    """The round of an opened loop, or the branch, in which the step is."""


@dataclass(frozen=True, repr=False)
class EvaluationTable:
    """The table that `evaluation_table` returns; a terminal and a notebook show it."""

    title: str
    mode: str
    rows: list[Row]
    notes: list[str]
    """The omissions of the table."""
    layout: str = "stacked"
    """How the two passes of reverse mode stand: `"stacked"`, or `"side by side"`."""

    def save(self, path: str | os.PathLike) -> None:
        """Write the table to a file; its ending (`.html`, `.md`, `.tex`) chooses the format."""
        export.save(self, path)

    def grids(self) -> list[export.Grid]:
        """The texts of all cells: one table in forward mode, two in reverse mode."""
        reverse = [row for row in self.rows if row.part in ("seed", "reverse", "gradient")]
        forward = self.rows[: len(self.rows) - len(reverse)]
        titles = ["forward pass", "reverse pass, the last equation first"]
        grids = []
        for title, headers, rows in zip(
            titles, HEADERS[self.mode], (forward, reverse), strict=False
        ):
            has_places = any(row.place for row in rows)
            headers = [header for header in headers if header != "in" or has_places]
            cells = [self._cells(row, headers) for row in rows]
            caption = title if self.mode == "rev" else ""
            grids.append(export.Grid(caption, headers, cells, [row.part for row in rows]))
        return grids

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The table for `rich.print`."""
        return terminal.written(self, console, options)

    def __str__(self) -> str:
        width = shutil.get_terminal_size((120, 40)).columns
        console = terminal.rich("console").Console(
            file=io.StringIO(), width=width, color_system=None, force_jupyter=False
        )
        console.print(self)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return export.html(self)

    def _cells(self, row: Row, headers: Sequence[str]) -> list[str]:
        derivative = row.derivative_step
        if row.derivative_expression:
            derivative += " = " + row.derivative_expression
        files = {r.line.file for r in self.rows if r.line.file}
        line = f"{row.line.file}:" if len(files) > 1 and row.line.file else ""
        line += f"{row.line.number}  {row.line.code}" if row.line.number else ""
        cells = {
            "in": row.place,
            "step": row.step,
            "expression": row.expression,
            "value": notation.value(row.value),
            "of": f"{row.step} = {row.expression}" if row.expression else row.step,
            "tangent": derivative,
            "adjoint": derivative,
            "": notation.value(row.derivative, is_brief=True),
            "line": line,
        }
        return [cells[header] for header in headers]


def evaluation_table(
    fun: Callable,
    *args: Any,
    mode: str = "fwd",
    wrt: int | Sequence[int] | None = None,
    tangents: Sequence | None = None,
    cotangent: Any = None,
    unfold: Unfold = False,
    layout: str = "stacked",
) -> EvaluationTable:
    """Evaluate a function and its derivative step by step, and show them as a textbook does.

    In forward mode each step has a value and a tangent, `v̇`; a function of several inputs takes
    one pass for each of them, which `wrt` chooses. Reverse mode evaluates the steps first. Then,
    from the last equation to the first, each gives its inputs their adjoints, `v̄`.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *args: its arguments. If they have no values (inside `jit`), the table shows types.
      mode: `"fwd"` or `"rev"`.
      wrt: the position, or positions, of the arguments with respect to which to differentiate. In
        forward mode every element of their tangents is one; by default it is the first argument
        with a derivative. In reverse mode it is by default all arguments.
      tangents: in forward mode, instead of `wrt`, a tuple with a tangent for each argument.
      cotangent: in reverse mode, the cotangent of the result, of its structure, shapes and dtypes;
        by default 1, if the result is one real number.
      unfold: what to open: `True` for calls, loops and branches, or some of `"calls"`,
        `"loops"`, `"branches"` and `"indices"`. The table then shows the equations of a jitted
        function instead of a call, those of the first, a middle and the last round of a loop, and
        those of the branch that a `cond` takes. `"indices"` stands for the arithmetic of
        `x[i, j]`. A `fun` that is itself jitted is always open, and a `checkpoint` never.
      layout: how the two passes of reverse mode stand: `"stacked"`, the pass back below the pass
        forward, or `"side by side"`.

    Returns:
      An `EvaluationTable`: it prints as a table, `rich.print` shows it in color, and a notebook
      shows it as HTML. Its `rows` are the data, and `save` writes HTML, Markdown or LaTeX.

    Raises:
      TypeError: if an argument is not an array, if none has a derivative, or if in reverse mode
        the result is not one real number and there is no `cotangent`.
      ValueError: if `mode`, `wrt`, `unfold` or `layout` has no such value, or if the function
        returns nothing.

    See also:
      `graph`, a drawing of the same steps; `play`, both together, step by step.

    Source: A. G. Baydin and others, Automatic differentiation in machine learning: a survey,
    Journal of Machine Learning Research 18 (2018), tables 2 and 3.

    >>> import jax.numpy as jnp
    >>> from functrans.explain import evaluation_table
    >>> table = evaluation_table(lambda w: w * jnp.log(w), 2.0, mode="rev")
    >>> for row in table.rows:
    ...     print(row.part, row.step, row.expression, row.derivative_step, row.derivative)
    input v₀ w  None
    step v₁ log(v₀)  None
    step v₂ v₀ × v₁  None
    output y v₂  None
    seed y  v̄₂ 1.0
    reverse v₂ v₀ × v₁ v̄₀ 0.693147...
    reverse v₂ v₀ × v₁ v̄₁ 2.0
    reverse v₁ log(v₀) v̄₀ 1.693147...
    gradient w  ∂y/∂w 1.693147...
    """
    terminal.rich("table")
    if mode not in HEADERS:
        raise ValueError(f"evaluation_table: mode must be 'fwd' or 'rev', but it is {mode!r}")
    if layout not in ("stacked", "side by side"):
        raise ValueError(
            f"evaluation_table: layout must be 'stacked' or 'side by side', but it is {layout!r}"
        )
    if (mode == "fwd" and cotangent is not None) or (mode == "rev" and tangents is not None):
        given, right = ("cotangent", "rev") if mode == "fwd" else ("tangents", "fwd")
        raise ValueError(f"evaluation_table: {given} is for mode={right!r}, but mode is {mode!r}")
    name = "evaluation_table"
    run = planned(name, fun, args, unfold)
    if mode == "fwd":
        start, word = starts.forward(name, run, wrt, tangents), "forward"
    else:
        start, word = starts.reverse(name, run, wrt, cotangent), "reverse"
    evaluate(run, start)
    rows = list(forward_rows(run, mode))
    if mode == "rev":
        rows += reverse_rows(run, cotangent is None)
    title = f"{run.name}: {word} mode, {start.words}"
    return EvaluationTable(title, mode, rows, run.notes(), layout)


NOWHERE = Line("", 0, "")


def forward_rows(run: Run, mode: str) -> Iterator[Row]:
    def row(part: str, name: str, text: str, x: Variable | Number, dot: str, *at: Any) -> Row:
        if mode == "rev" or part == "constant" or not is_differentiable(x.aval):
            return Row(part, name, text, x.value, "", "", None, *at)
        formula = dot if x.moves else ""
        return Row(part, name, text, x.value, marked(name, DOT), formula, _array(x.tangent), *at)

    for x in run.inputs:
        yield row("input", x.name, x.label, x, "", NOWHERE)
    for x in run.constants:
        yield row("constant", x.name, "a constant", x, "", NOWHERE)
    for step in run.steps:
        at = notation.line_of(step.equation), step.place
        formulas = tangent_formulas(step) if mode == "fwd" else {}
        for y in step.shown:
            place = f"[{step.outputs.index(y)}]" if len(step.outputs) > 1 else ""
            yield row("step", y.name, step.expression + place, y, formulas.get(y, ""), *at)
        if not step.shown:
            yield Row("step", "", step.expression, None, "", "", None, *at)
    for result in run.results:
        y = result.source
        yield row("output", result.label, y.text.text, y, marked(y.text.text, DOT), NOWHERE)


def reverse_rows(run: Run, is_gradient: bool) -> Iterator[Row]:
    def row(part: str, name: str, text: str, bar: str, formula: str, total: Any, *at: Any) -> Row:
        return Row(part, name, text, None, bar, formula, _array(total), *at)

    for result in run.results:
        if use := result.seed:
            bar, seed = marked(result.source.text.text, BAR), marked(result.label, BAR)
            formula = seed if use.is_first else f"{bar} + {seed}"
            yield row("seed", result.label, "", bar, formula, use.total, NOWHERE)
    for step in reversed(run.steps):
        at = notation.line_of(step.equation), step.place
        formulas = adjoint_formulas(step) if step.contributions else {}
        for position, use in step.contributions.items():
            bar = marked(step.inputs[position].text.text, BAR)
            formula = formulas[position] if use.is_first else f"{bar} + {formulas[position]}"
            yield row("reverse", step.name, step.expression, bar, formula, use.total, *at)
    for x in moving_variables(run.inputs):
        name = f"∂{run.results[0].label}/∂{x.label}" if is_gradient else f"adjoint of {x.label}"
        yield row("gradient", x.label, "", name, marked(x.name, BAR), x.adjoint, NOWHERE)


def _array(derivative: Any) -> Any:
    """A `Zero` as the array that it is; an integer has no derivative."""
    if type(derivative) is not Zero:
        return derivative
    aval = derivative.aval
    with jax.core.eval_context():  # an array also where a function is being traced
        return lax.full(aval.shape, 0, aval.dtype) if is_differentiable(aval) else None
