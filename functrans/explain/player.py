"""Both passes of reverse mode, played over one graph: `(a -> b), a -> a page of HTML`.

    forward:   v_k = f(v_i, v_j), the first equation first
    reverse:   v_i_bar += v_k_bar df/dv_i, the last equation first

A page is a list of *frames*, one for each equation of each pass.  A frame lists the lit parts:
nodes and edges of the graph, rows of the table, and the user's line.  It depends on its number
alone.

Read next: `culprits.py`, which finds where a nan comes from.
"""

from __future__ import annotations

import inspect
import json
import os
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from functrans.explain import notation, starts
from functrans.explain.graphs import Graph
from functrans.explain.notation import BAR, Line, marked
from functrans.explain.pictures import DERIVATIVE, VALUE, Picture, Shown, equated
from functrans.explain.planning import Unfold, planned
from functrans.explain.records import Run, Step, Variable, moving_variables
from functrans.explain.steps import evaluate
from functrans.explain.table import Row, forward_rows, reverse_rows


class Page(string.Template):
    """A page with gaps, `%%name`: a dollar sign belongs to the script."""

    delimiter = "%%"


PAGE = Page(Path(__file__).with_name("player.html").read_text(encoding="utf-8"))
OF_REVERSE = ("seed", "reverse", "gradient")
PARTS = ("input", "constant", "step", "output", *OF_REVERSE)


@dataclass
class Frame:
    """One moment: the lit parts, and a text about them (in HTML)."""

    said: str
    nodes: list[str] = field(default_factory=list)
    edges: list[str] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    line: str = ""


@dataclass(frozen=True, repr=False)
class Player:
    """The page that `play` returns; a notebook shows it, and `save` writes it to a file."""

    title: str
    html: str
    """The whole page; it needs no other file, and no network."""

    def save(self, path: str | os.PathLike) -> None:
        """Write the page to a file, for a browser to open."""
        Path(path).write_text(self.html, encoding="utf-8")

    def _repr_html_(self) -> str:
        frame = "width: 100%; height: 44em; border: 1px solid #d0d7de; border-radius: 6px"
        return f'<iframe style="{frame}" srcdoc="{escape(self.html)}"></iframe>'

    def __repr__(self) -> str:
        return f"Player({self.title})"


def play(
    fun: Callable,
    *args: Any,
    wrt: int | Sequence[int] | None = None,
    cotangent: Any = None,
    unfold: Unfold = False,
) -> Player:
    """Play the forward pass of `fun(*args)`, and then the reverse pass, over one graph.

    Each step lights the node of the graph, the row of the table and the line of the source
    together. The slider, the arrow keys and the play button move on. Under the mouse a node shows
    which values it reads, and which steps read it.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *args: its arguments.
      wrt: as in `evaluation_table`.
      cotangent: as in `evaluation_table`.
      unfold: as in `evaluation_table`.

    Returns:
      A `Player`, which a notebook shows; `save("page.html")` writes a page that needs no server, no
      other file and no network.

    Raises:
      TypeError: as for `evaluation_table`.
      ValueError: as for `evaluation_table`.

    See also:
      `graph` and `evaluation_table`, the two parts, each by itself.

    >>> import jax.numpy as jnp
    >>> from functrans.explain import play
    >>> play(lambda w: w * jnp.log(w), 2.0)
    Player(<lambda>: reverse mode, cotangent 1 of y)
    """
    run = planned("play", fun, args, unfold)
    start = starts.reverse("play", run, wrt, cotangent)
    evaluate(run, start)
    title = f"{run.name}: reverse mode, {start.words}"
    picture = Picture(run, Shown(values=True, adjoints=True))
    graph = Graph(title, picture.draw(""), picture.notes)
    rows = [*forward_rows(run, "rev"), *reverse_rows(run, cotangent is None)]
    source = _source(fun, run)
    frames = [*_frames(run, picture, rows, source)]
    data = {
        "frames": [asdict(frame) for frame in frames],
        "values": [*_values(run, picture)],
        "adjoints": [*_adjoints(run, picture)],
    }
    page = PAGE.substitute(
        title=escape(title),
        svg=graph._repr_svg_(),
        source=_source_html(source),
        tables=_tables(rows),
        notes="".join(f"<p><i>{escape(note)}</i></p>" for note in picture.notes),
        data=json.dumps(data, ensure_ascii=False).replace("</", "<\\/"),
        value=VALUE,
        derivative=DERIVATIVE,
    )
    return Player(title, page)


# ---- the user's source ---------------------------------------------------------------------------


def _source(fun: Callable, run: Run) -> dict[str, str]:
    """Lines of code under their `file:number`: the function, and the lines that it calls."""
    lines = [notation.line_of(step.equation) for step in run.steps]
    elsewhere = {str(line): line.code for line in lines if line.number}
    try:
        code, first = inspect.getsourcelines(inspect.unwrap(fun))
    except (OSError, TypeError):
        return elsewhere
    of_function = {i: text.rstrip() for i, text in enumerate(code, first)}
    # A cell of a notebook has another name as a file: it is found by its text.
    file = next((x.file for x in lines if of_function.get(x.number, "").strip() == x.code), "")
    own = {str(Line(file, i, text)): text for i, text in of_function.items()}
    return own | {at: text for at, text in elsewhere.items() if at not in own}


def _source_html(source: dict[str, str]) -> str:
    numbered = {at: f"{at.rpartition(':')[2]:>4}  {text}" for at, text in source.items()}
    spans = [f'<span id="{escape(at)}">{escape(text)}</span>' for at, text in numbered.items()]
    return f"<pre>{''.join(spans)}</pre>" if spans else ""


# ---- tables --------------------------------------------------------------------------------------


def _tables(rows: Sequence[Row]) -> str:
    reverse = [row.part in OF_REVERSE for row in rows]
    parts = ["forward pass", "reverse pass, the last equation first"]
    tables = []
    for is_reverse, title in zip((False, True), parts, strict=True):
        chosen = [(i, row) for i, row in enumerate(rows) if reverse[i] == is_reverse]
        body = "".join(f'<tr data-row="{i}">{_cells(row, is_reverse)}</tr>' for i, row in chosen)
        tables.append(f"<table><caption>{title}</caption>{body}</table>")
    return "".join(tables)


def _cells(row: Row, is_reverse: bool) -> str:
    if is_reverse:
        texts = (row.derivative_step, row.derivative_expression)
        number, kind = notation.value(row.derivative, is_brief=True), "derivative"
    else:
        texts = (row.step, row.expression)
        number, kind = notation.value(row.value), "value"
    where = f" <small>{escape(row.place)}</small>" if row.place else ""
    cells = "<td>{}</td><td>{}{}</td>".format(*map(escape, texts), where)
    return f'{cells}<td class="{kind}">{escape(number)}</td>'


# ---- frames --------------------------------------------------------------------------------------


def _frames(run: Run, picture: Picture, rows: Sequence[Row], source: dict) -> Iterator[Frame]:
    """The inputs; each step; the results; their seeds; each step again; the gradient."""
    numbers = {part: iter([i for i, r in enumerate(rows) if r.part == part]) for part in PARTS}

    def take(part: str, count: int) -> list[int]:
        return [next(numbers[part]) for _ in range(count)]

    def of_step(step: Step, word: str, part: str, count: int, edges: list[str]) -> Frame:
        line = str(notation.line_of(step.equation))
        lit = take(part, count)
        place = f"<i>{escape(step.place)}</i> " if step.place else ""
        said = f"<b>{word}</b> {place}" + "; ".join(_said(rows[i]) for i in lit)
        return Frame(said, [picture.node_of(step)], edges, lit, line if line in source else "")

    given = take("input", len(run.inputs)) + take("constant", len(run.constants))
    yield Frame("<b>the inputs</b>", [picture.home[id(v)] for v in run.given], [], given)
    for step in run.steps:
        yield of_step(step, "forward", "step", max(1, len(step.shown)), [])
    ends = [picture.home[id(result)] for result in run.results if id(result) in picture.home]
    yield Frame("<b>the result</b>", ends, [], take("output", len(run.results)))
    seeds = [result for result in run.results if result.seed]
    lit = take("seed", len(seeds))
    said = "<b>reverse: the seed</b> " + "; ".join(_said(rows[i]) for i in lit)
    edges = [f"{picture.home[id(result)]}_0" for result in seeds if id(result) in picture.home]
    yield Frame(said, ends, edges, lit)
    for step in reversed(run.steps):
        if step.contributions:
            edges = [f"{picture.node_of(step)}_{i}" for i in step.contributions]
            yield of_step(step, "reverse", "reverse", len(step.contributions), edges)
    moving = moving_variables(run.inputs)
    said = "<b>the gradient</b>" if rows[-1].derivative_step.startswith("∂") else "<b>done</b>"
    lit = take("gradient", len(moving))
    said += " " + "; ".join(_said(rows[i]) for i in lit)
    yield Frame(said, [picture.home[id(v)] for v in moving if id(v) in picture.home], [], lit)


def _said(row: Row) -> str:
    if row.derivative_step:
        number = notation.value(row.derivative, is_brief=True)
        parts = (row.derivative_step, row.derivative_expression, number)
    else:
        parts = (row.step, row.expression, notation.value(row.value))
    return escape(" = ".join(part for part in parts if part))


def _values(run: Run, picture: Picture) -> Iterator[tuple[str, int]]:
    """From which frame on a node shows its value."""
    for v in run.given:
        if id(v) in picture.home:
            yield picture.home[id(v)], 0
    for i, step in enumerate(run.steps):
        yield picture.node_of(step), i + 1


def _adjoints(run: Run, picture: Picture) -> Iterator[dict]:
    """For each adjoint where it stands in the graph, and its totals, each from some frame on."""
    totals: dict[int, list] = {}
    frame = len(run.steps) + 2  # that of the seeds
    for result in run.results:
        if result.seed:
            totals.setdefault(id(result.source), []).append((frame, result.seed.total))
    for step in reversed(run.steps):
        if step.contributions:
            frame += 1
            for position, use in step.contributions.items():
                totals.setdefault(id(step.inputs[position]), []).append((frame, use.total))
    for variables in [*([v] for v in run.given), *(step.shown for step in run.steps)]:
        for at, v in enumerate(moving_variables(variables)):
            if id(v) in picture.home:
                yield _adjoint(v, picture.home[id(v)], at, totals.get(id(v), []))


def _adjoint(v: Variable, node: str, at: int, totals: Sequence) -> dict:
    known = [(frame, equated(marked(v.name, BAR), total)) for frame, total in totals]
    return {"node": node, "at": at, "totals": known}
