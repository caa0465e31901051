"""The table of a textbook: `(a -> b), a -> [step, expression, value, derivative, line]`.

    v₁ = log(v₀)      forward mode:    v̇₁ = v̇₀ / v₀        reverse mode:    v̄₀ = v̄₁ / v₀

as in tables 2 and 3 of Baydin, Pearlmutter, Radul and Siskind, "Automatic differentiation in
machine learning: a survey", 2018.

Read next: `export.py`, the table as a file.
"""

from __future__ import annotations

import importlib
import io
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import jax.core
from jax import lax

from functrans.explain import export, notation, starts
from functrans.explain.formulas import adjoint_formulas, tangent_formulas
from functrans.explain.notation import BAR, DOT, Line, marked
from functrans.explain.planning import planned
from functrans.explain.records import Number, Run, Variable, moving_variables
from functrans.explain.steps import evaluate
from functrans.values import Zero, is_differentiable

HEADERS = {
    "fwd": [["step", "expression", "value", "tangent", "", "line"]],
    "rev": [["step", "expression", "value", "line"], ["of", "adjoint", "", "line"]],
}
NUMBER: dict[str, Any] = {"justify": "right", "no_wrap": True}
COLUMNS: dict[str, dict[str, Any]] = {
    "step": {"no_wrap": True},
    "value": {**NUMBER, "style": "green"},
    "": {**NUMBER, "style": "red"},
    "line": {"style": "dim", "no_wrap": True, "overflow": "ellipsis"},
}
"""How rich sets the columns."""


class Row(NamedTuple):
    """One row of an evaluation table. What a row does not have is `None`, or an empty text."""

    part: str
    """`"input"`, `"constant"`, `"step"` or `"output"`; of a reverse pass `"seed"`, `"reverse"` or
    `"gradient"`."""
    step: str
    """The variable that is computed; of a reverse step, the one that is pulled back."""
    expression: str
    value: Any
    """An array; where it is not known (inside `jit`), its type."""
    derivative_step: str
    """The tangent that is computed; in a reverse step, the adjoint that is added to."""
    derivative_expression: str
    derivative: Any
    line: Line
    """The user's `file`, the `number` of the line in it, and its `code`."""


@dataclass(frozen=True, repr=False)
class EvaluationTable:
    """The table that `evaluation_table` returns; a terminal and a notebook show it."""

    title: str
    mode: str
    rows: list[Row]
    notes: list[str]
    """What the table leaves out."""
    layout: str = "stacked"
    """Of both passes of reverse mode: `"stacked"`, or `"side by side"`."""

    def save(self, path: str | os.PathLike) -> None:
        """Write the table to a file; its ending (`.html`, `.md`, `.tex`) chooses the format."""
        export.save(self, path)

    def grids(self) -> list[export.Grid]:
        """The texts of all cells: one table in forward mode, two in reverse mode."""
        return [
            export.Grid(
                title * (self.mode == "rev"), headers, [self._cells(r, headers) for r in rows]
            )
            for title, headers, rows in self._tables()
        ]

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """The table for `rich.print`."""
        table, text = map(_rich, ("table", "text"))
        yield text.Text(self.title, style="bold")
        tables = [*self._rich_tables(options)]
        if self.layout == "side by side":
            both = table.Table.grid(padding=(0, 4))
            both.add_row(*tables)
            tables = [both]
        yield from tables
        for note in self.notes:
            yield text.Text(note, style="italic")

    def _rich_tables(self, options: Any) -> Iterator[Any]:
        box, table, text = map(_rich, ("box", "table", "text"))
        for title, headers, rows in self._tables():
            caption = text.Text(title, style="italic") if self.mode == "rev" else None
            grid = table.Table(box=box.HORIZONTALS, title=caption, title_justify="left")
            for header in headers:
                grid.add_column(text.Text(header), **COLUMNS.get(header, {"overflow": "fold"}))
                if header == "line":  # the formulas come first
                    grid.columns[-1].max_width = 3 * options.max_width // 10
            for row, following in zip(rows, [*rows[1:], rows[-1]], strict=True):
                cells = map(text.Text, self._cells(row, headers))
                grid.add_row(*cells, end_section=row.part != following.part)
            yield grid

    def __str__(self) -> str:
        width = shutil.get_terminal_size((120, 40)).columns
        console = _rich("console").Console(
            file=io.StringIO(), width=width, color_system=None, force_jupyter=False
        )
        console.print(self)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        tables = []
        for title, headers, rows in self._tables():
            caption = f"<caption>{escape(title)}</caption>" if self.mode == "rev" else ""
            head = "".join(f'<th class="{_css(h)}">{escape(h)}</th>' for h in headers)
            parts = ["", *(row.part for row in rows)]
            body = "".join(
                _html_row(self._cells(row, headers), headers, row.part != before)
                for row, before in zip(rows, parts, strict=False)
            )
            tables.append(f"<table>{caption}<thead><tr>{head}</tr></thead>{body}</table>")
        notes = "".join(f"<p><i>{escape(note)}</i></p>" for note in self.notes)
        title = f"<p><b>{escape(self.title)}</b></p>"
        both = f'<div class="{self.layout.replace(" ", "-")}">{"".join(tables)}</div>'
        return f'<div class="functrans-table">{STYLE}{title}{both}{notes}</div>'

    def _tables(self) -> Iterator[tuple[str, list[str], list[Row]]]:
        reverse = [row for row in self.rows if row.part in ("seed", "reverse", "gradient")]
        forward = self.rows[: len(self.rows) - len(reverse)]
        titles = ["forward pass", "reverse pass, the last equation first"]
        yield from zip(titles, HEADERS[self.mode], (forward, reverse), strict=False)

    def _cells(self, row: Row, headers: Sequence[str]) -> list[str]:
        derivative = row.derivative_step
        if row.derivative_expression:
            derivative += " = " + row.derivative_expression
        files = {r.line.file for r in self.rows if r.line.file}
        line = f"{row.line.file}:" if len(files) > 1 and row.line.file else ""
        line += f"{row.line.number}  {row.line.code}" if row.line.number else ""
        cells = {
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


STYLE = """<style>
.functrans-table { overflow-x: auto; }
.functrans-table table { border-collapse: collapse; margin: 0.5em 0 1em; border: 0;
  border-top: 2px solid; border-bottom: 2px solid; font-variant-numeric: tabular-nums; }
.functrans-table caption { text-align: left; font-style: italic; caption-side: top; }
.functrans-table td, .functrans-table th { padding: 0.15em 0.8em; white-space: nowrap;
  background: none; border: 0; text-align: left; }
.functrans-table th { border-bottom: 1px solid #888; font-weight: 600; }
.functrans-table tr.part td { border-top: 1px solid #888; }
.functrans-table .value, .functrans-table .derivative { text-align: right; }
.functrans-table td.value { color: #1a7f37; }
.functrans-table td.derivative { color: #c0392b; }
.functrans-table td.line { white-space: pre; opacity: 0.65; font: 90% monospace; }
.functrans-table .side-by-side { display: flex; flex-wrap: wrap; gap: 2em; }
.functrans-table p { margin: 0.3em 0; }
</style>"""
"""Rules as in a book's tables: none between columns."""


def _html_row(cells: Sequence[str], headers: Sequence[str], is_new_part: bool) -> str:
    row = "".join(
        f'<td class="{_css(header)}">{escape(cell)}</td>'
        for cell, header in zip(cells, headers, strict=True)
    )
    return f'<tr class="part">{row}</tr>' if is_new_part else f"<tr>{row}</tr>"


def _css(header: str) -> str:
    return header if header in ("value", "line") else "formula" if header else "derivative"


def _rich(module: str) -> Any:
    try:
        return importlib.import_module(f"rich.{module}")
    except ImportError as error:
        raise ImportError(
            "functrans.explain.evaluation_table needs rich: pip install 'functrans[explain]'"
        ) from error


def evaluation_table(
    fun: Callable,
    *args: Any,
    mode: str = "fwd",
    wrt: int | Sequence[int] | None = None,
    tangents: Sequence | None = None,
    cotangent: Any = None,
    unfold: bool = False,
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
      unfold: whether to show the equations of a jitted function in the place of a call of it. A
        `fun` that is itself jitted is always opened. Other calls, loops and branches always have
        one row.
      layout: of reverse mode: `"stacked"`, the pass back below the pass forward, or `"side by
        side"`.

    Returns:
      An `EvaluationTable`: it prints as a table, `rich.print` shows it in color, and a notebook
      shows it as HTML. Its `rows` are the data, and `save` writes HTML, Markdown or LaTeX.

    Raises:
      TypeError: if an argument is not an array, if none has a derivative, or if in reverse mode
        the result is not one real number and there is no `cotangent`.
      ValueError: if `mode`, `wrt` or `layout` has no such value.

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
    _rich("table")
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
    def row(part: str, name: str, text: str, x: Variable | Number, dot: str, line: Line) -> Row:
        if mode == "rev" or part == "constant" or not is_differentiable(x.aval):
            return Row(part, name, text, x.value, "", "", None, line)
        formula = dot if x.moves else ""
        return Row(part, name, text, x.value, marked(name, DOT), formula, _array(x.tangent), line)

    for x in run.inputs:
        yield row("input", x.name, x.label, x, "", NOWHERE)
    for x in run.constants:
        yield row("constant", x.name, "a constant", x, "", NOWHERE)
    for step in run.steps:
        line = notation.line_of(step.equation)
        formulas = tangent_formulas(step) if mode == "fwd" else {}
        for y in step.shown:
            place = f"[{step.outputs.index(y)}]" if len(step.outputs) > 1 else ""
            yield row("step", y.name, step.expression + place, y, formulas.get(y, ""), line)
        if not step.shown:
            yield Row("step", "", step.expression, None, "", "", None, line)
    for result in run.results:
        y = result.source
        yield row("output", result.label, y.text.text, y, marked(y.text.text, DOT), NOWHERE)


def reverse_rows(run: Run, is_gradient: bool) -> Iterator[Row]:
    def row(part: str, name: str, text: str, bar: str, formula: str, total: Any, line: Line) -> Row:
        return Row(part, name, text, None, bar, formula, _array(total), line)

    for result in run.results:
        if use := result.seed:
            bar, seed = marked(result.source.text.text, BAR), marked(result.label, BAR)
            formula = seed if use.is_first else f"{bar} + {seed}"
            yield row("seed", result.label, "", bar, formula, use.total, NOWHERE)
    for step in reversed(run.steps):
        line = notation.line_of(step.equation)
        formulas = adjoint_formulas(step) if step.contributions else {}
        for position, use in step.contributions.items():
            bar = marked(step.inputs[position].text.text, BAR)
            formula = formulas[position] if use.is_first else f"{bar} + {formulas[position]}"
            yield row("reverse", step.name, step.expression, bar, formula, use.total, line)
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
