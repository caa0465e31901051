"""Tables as text for other programs: `rows of cells -> HTML, Markdown, LaTeX`.

    v̄₁ × (1 − v₁²)      in LaTeX:      \\bar{v}_{1} \\times (1 - v_{1}^{2})

Read next: `graphs.py`, which draws the same steps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from functrans.explain.notation import BAR, DOT


class Grid(NamedTuple):
    """One table: its caption (may be empty), the titles of its columns, and its rows."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    parts: Sequence[str]
    """The part of the table to which each row belongs."""


def save(table: Any, path: str | os.PathLike) -> None:
    """Write a table (with `title`, `mode`, `layout`, `notes` and `grids()`) to a file."""
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending not in WRITERS:
        raise ValueError(
            f"evaluation_table: cannot save to {os.fspath(path)!r}: the name must end in "
            f"{', '.join(WRITERS)}"
        )
    Path(path).write_text(WRITERS[ending](table), encoding="utf-8")


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
.functrans-table.fwd td.derivative { color: #0550ae; }
.functrans-table td.line, .functrans-table td.in { white-space: pre; opacity: 0.65; }
.functrans-table td.line { font: 90% monospace; }
.functrans-table .side-by-side { display: flex; flex-wrap: wrap; gap: 2em; }
.functrans-table p { margin: 0.3em 0; }
</style>"""
"""Lines as in the tables of a book: none between columns."""


def html(table: Any) -> str:
    """The table for a page that has others on it."""
    tables = []
    for grid in table.grids():
        caption = f"<caption>{escape(grid.caption)}</caption>" if grid.caption else ""
        head = "".join(f'<th class="{_css(h)}">{escape(h)}</th>' for h in grid.headers)
        before = ["", *grid.parts]
        body = "".join(
            _html_row(row, grid.headers, part != then)
            for row, part, then in zip(grid.rows, grid.parts, before, strict=False)
        )
        tables.append(f"<table>{caption}<thead><tr>{head}</tr></thead>{body}</table>")
    notes = "".join(f"<p><i>{escape(note)}</i></p>" for note in table.notes)
    title = f"<p><b>{escape(table.title)}</b></p>"
    both = f'<div class="{table.layout.replace(" ", "-")}">{"".join(tables)}</div>'
    return f'<div class="functrans-table {table.mode}">{STYLE}{title}{both}{notes}</div>'


def _html_row(cells: Sequence[str], headers: Sequence[str], is_new_part: bool) -> str:
    row = "".join(
        f'<td class="{_css(header)}">{escape(cell)}</td>'
        for cell, header in zip(cells, headers, strict=True)
    )
    return f'<tr class="part">{row}</tr>' if is_new_part else f"<tr>{row}</tr>"


def _css(header: str) -> str:
    return header if header in ("value", "line", "in") else "formula" if header else "derivative"


def _html(table: Any) -> str:
    head = f'<meta charset="utf-8"><title>{escape(table.title)}</title>'
    return f"<!DOCTYPE html>\n<html><head>{head}</head><body>{html(table)}</body></html>\n"


def _markdown(table: Any) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"

    parts = [f"**{table.title}**"]
    for grid in table.grids():
        rule = "|---" * len(grid.headers) + "|"
        parts += [f"*{grid.caption}*"] if grid.caption else []
        parts.append("\n".join([line(grid.headers), rule, *map(line, grid.rows)]))
    parts += [f"*{note}*" for note in table.notes]
    return "\n\n".join(parts) + "\n"


def _latex(table: Any) -> str:
    parts = [rf"\textbf{{{plain_latex(table.title)}}}"]
    for grid in table.grids():
        lines = [r"\begin{tabular}{" + "l" * len(grid.headers) + "}", r"\hline"]
        lines.append(" & ".join(map(plain_latex, grid.headers)) + r" \\ \hline")
        for row in grid.rows:
            pairs = zip(grid.headers, row, strict=True)
            texts = ("line", "in")
            cells = [plain_latex(x) if title in texts else f"${latex(x)}$" for title, x in pairs]
            lines.append(" & ".join(cell if cell != "$$" else "" for cell in cells) + r" \\")
        lines += [r"\hline", r"\end{tabular}"]
        parts += [rf"\textit{{{plain_latex(grid.caption)}}}"] if grid.caption else []
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


WRITERS: dict[str, Callable[[Any], str]] = {".html": _html, ".md": _markdown, ".tex": _latex}

SUBSCRIPTS, SUPERSCRIPTS = "₋₀₁₂₃₄₅₆₇₈₉", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"
SIGNS = {"×": r"\times ", "−": "-", "·": r"\cdot ", "∂": r"\partial ", "…": r"\dots "}
SIGNS |= {"ᵀ": r"^{\mathsf T}", "‖": r"\| ", "≥": r"\ge ", "≤": r"\le ", "≠": r"\ne "}
SPECIAL = re.compile(r"[&%#_$]")


def latex(text: str) -> str:
    """A formula, for the mathematics of LaTeX."""
    text = re.sub(r"(?<=[\w…]) (?=\w)", r"\\ ", SPECIAL.sub(r"\\\g<0>", text))
    text = re.sub(r"[A-Za-z][A-Za-z\d]+(?:\\_\w+)*", r"\\mathrm{\g<0>}", text)
    for mark, accent in ((DOT, r"\\dot"), (BAR, r"\\bar")):
        text = re.sub(rf"(\w){mark}", rf"{accent}{{\1}}", text)
    for letters, sign in ((SUBSCRIPTS, "_"), (SUPERSCRIPTS, "^")):
        text = re.sub(f"([{letters}]+)", rf"{sign}{{\1}}", text)
        text = text.translate(str.maketrans(letters, "-0123456789"))
    return re.sub("|".join(SIGNS), lambda m: SIGNS[m[0]], text).replace("  ", " ")


def plain_latex(text: str) -> str:
    """A text, for the prose of LaTeX."""
    text = SPECIAL.sub(r"\\\g<0>", text.replace("\\", r"\textbackslash "))
    return text.replace("^", r"\textasciicircum ").replace("~", r"\textasciitilde ")
