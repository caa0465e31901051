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


def save(table: Any, path: str | os.PathLike) -> None:
    """Write a table (with `title`, `notes`, `grids()` and `_repr_html_`) to a file."""
    ending = os.path.splitext(os.fspath(path))[1].lower()
    if ending not in WRITERS:
        raise ValueError(
            f"evaluation_table: cannot save to {os.fspath(path)!r}: the name must end in "
            f"{', '.join(WRITERS)}"
        )
    Path(path).write_text(WRITERS[ending](table), encoding="utf-8")


def _html(table: Any) -> str:
    head = f'<meta charset="utf-8"><title>{escape(table.title)}</title>'
    return f"<!DOCTYPE html>\n<html><head>{head}</head><body>{table._repr_html_()}</body></html>\n"


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
            cells = [plain_latex(x) if title == "line" else f"${latex(x)}$" for title, x in pairs]
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
    text = SPECIAL.sub(r"\\\g<0>", text)
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
