"""Tables in a terminal: `(tables, width) -> lines`, each row on one line, if it fits.

    wide:      v₁ = v₀ × w      v̄₀ = v̄₁ × w      2.5      7  y = x * w
    narrow:    v₁               v̄₀ = v̄₁ × w      2.5      7

We never cut a number.  In a narrow terminal we first leave out texts that stand elsewhere as well:
the code of a line, the expression of a step that is pulled back, the number of the line, the name
of a tangent; and `step 3 of scan` becomes `scan 3`.  Then we move the columns closer together, and
at last we break formulas.

Read next: `export.py`, the table as a file.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from functrans.explain.export import Grid

NUMBER: dict[str, Any] = {"justify": "right", "no_wrap": True}
COLUMNS: dict[str, dict[str, Any]] = {
    "step": {"no_wrap": True},
    "in": {"style": "dim", "no_wrap": True},
    "value": {**NUMBER, "style": "green"},
    "": NUMBER,
    "line": {"style": "dim", "no_wrap": True},
}
"""The settings of the columns in rich; it may break a formula."""
COLORS = {"tangent": "blue", "adjoint": "red"}
"""The color of the numbers that follow such a header."""
BETWEEN = 4
"""Columns between two tables side by side."""
SHORTEST = 12
"""We show at least so much of the code of a line, or nothing."""


def written(table: Any, console: Any, options: Any) -> Iterator[Any]:
    """A table (with `title`, `notes`, `layout` and `grids()`), in pieces that rich prints."""
    text, width = rich("text"), options.max_width
    yield text.Text(table.title, style="bold")
    grids = table.grids()
    least = [_width(console, _brief(grid, "line", "of")) for grid in grids]
    spare = width - sum(least) - BETWEEN * (len(grids) - 1)
    if table.layout == "side by side" and spare >= 0:
        both = rich("table").Table.grid(padding=(0, BETWEEN))
        widths = [size + spare // len(grids) for size in least]
        pairs = zip(grids, widths, strict=True)
        both.add_row(*(_set(_fitted(console, *pair)) for pair in pairs))
        yield both
    else:
        for shorter in (_fitted(console, grid, width) for grid in grids):
            yield _set(shorter, padding=int(_width(console, shorter) <= width))
    for note in table.notes:
        yield text.Text(note, style="italic")


def rich(module: str) -> Any:
    try:
        return importlib.import_module(f"rich.{module}")
    except ImportError as error:
        raise ImportError(
            "functrans.explain.evaluation_table needs rich: pip install 'functrans[explain]'"
        ) from error


def _fitted(console: Any, grid: Grid, width: int) -> Grid:
    """The table with as much in each row as fits."""
    if _width(console, grid) <= width:
        return grid
    without_code = _brief(grid, "line")
    spare = width - _width(console, without_code)
    if spare >= SHORTEST:
        longest = spare + max(len(row[-1]) for row in [without_code.headers, *without_code.rows])
        return _changed(grid, "line", lambda cell: _cut(cell, longest))
    for shorter in (without_code, _brief(grid, "line", "of")):
        if _width(console, shorter) <= width:
            return shorter
    headers, rows = grid.headers[:-1], [row[:-1] for row in grid.rows]  # without the lines
    shorter = grid._replace(headers=headers, rows=rows)
    return shorter if _width(console, shorter) <= width else _brief(shorter, *BRIEF)


BRIEF: dict[str, Callable[[str], str]] = {
    "in": lambda cell: re.sub(r"\w+ (\d+) of (\w+)", r"\2 \1", cell),
    "line": lambda cell: cell.partition("  ")[0],
    "of": lambda cell: cell.partition(" = ")[0],
    "tangent": lambda cell: cell.partition(" = ")[2],
}
"""Shorter cells: the loop and the number of a round, the number of a line, the name of a step, the
formula of a tangent."""


def _brief(grid: Grid, *headers: str) -> Grid:
    for header in headers:
        grid = _changed(grid, header, BRIEF[header])
    return grid


def _changed(grid: Grid, header: str, change: Callable[[str], str]) -> Grid:
    at = [name == header for name in grid.headers]
    rows = [
        [change(cell) if flag else cell for cell, flag in zip(row, at, strict=True)]
        for row in grid.rows
    ]
    return grid._replace(rows=rows)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _width(console: Any, grid: Grid) -> int:
    """The width of a table in which nothing is broken."""
    measure = rich("measure").Measurement.get
    return measure(console, console.options.update(max_width=10_000), _set(grid)).maximum


def _set(grid: Grid, padding: int = 1) -> Any:
    box, table, text = map(rich, ("box", "table", "text"))
    caption = text.Text(grid.caption, style="italic") if grid.caption else None
    whole = table.Table(box=box.HORIZONTALS, title=caption, title_justify="left")
    whole.padding = (0, padding)
    for before, header in zip(("", *grid.headers), grid.headers, strict=False):
        style = COLUMNS.get(header, {"overflow": "fold"})
        style = style if header else {**style, "style": COLORS[before]}
        whole.add_column(text.Text(header), **style)
    following: Sequence[str] = [*grid.parts[1:], *grid.parts[-1:]]
    for row, part, then in zip(grid.rows, grid.parts, following, strict=True):
        whole.add_row(*map(text.Text, row), end_section=part != then)
    return whole
