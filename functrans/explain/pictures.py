"""The graph of a run in Graphviz's terms: `Run -> nodes, edges`.

    a node     a step: what it computes, its type, value, tangent, adjoint, and what is kept of it
    a box      a round of a loop, or a branch, that has been opened
    an edge    a value that is read; in reverse mode, what this use adds to the adjoint

Read next: `repetitions.py`, which finds the steps that are drawn once for many.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from functrans.errors.wording import counted
from functrans.explain import notation
from functrans.explain.notation import BAR, DOT, marked
from functrans.explain.records import (
    Contribution,
    Place,
    Residual,
    Result,
    Run,
    Step,
    Variable,
    is_abstract,
)
from functrans.explain.repetitions import Block, blocks, read_only_in
from functrans.explain.starts import listed
from functrans.sparse import Pattern
from functrans.values import Flags, Zero, is_differentiable, pick

FEW, SOME = 8, 16
"""A graph of few steps runs from left to right; one of some steps has labels on its edges."""
PATTERN = 32, 32
"""The most dots in a row and in a column of the picture of a Jacobian."""
MANY = 60
"""In a graph with more steps we draw repeated ones once."""

VALUE, TANGENT, DERIVATIVE, NOTE = "#1a7f37", "#0550ae", "#c0392b", "#57606a"
KEPT = "#9a6700"
FILL = {"input": "#ddf4ff", "constant": "#eaeef2", "output": "#dafbe1", "step": "#ffffff"}
FILL |= {"call": "#fff8c5", "repeated": "#f3e8ff"}


FONT = "Helvetica,Arial,sans-serif"
STYLE = {"fontname": FONT, "color": NOTE, "penwidth": "0.8"}
NODE = STYLE | {"shape": "box", "style": "rounded,filled", "margin": "0.12,0.06", "height": "0.3"}
EDGE = STYLE | {"fontcolor": DERIVATIVE, "fontsize": "10", "arrowsize": "0.7"}
BOX = {"fontname": FONT, "fontsize": "10", "fontcolor": NOTE, "color": "#afb8c1"}
BOX |= {"style": "rounded,dashed", "labeljust": "l", "labelloc": "t"}
PAGE = {"fontname": FONT, "fontsize": "10", "labelloc": "b", "labeljust": "l", "nodesep": "0.3"}


class Shown(NamedTuple):
    """What a node shows besides what it computes."""

    values: bool = False
    tangents: bool = False
    adjoints: bool = False


class Picture:
    """Nodes and edges in Graphviz's terms."""

    def __init__(self, run: Run, shown: Shown):
        self.run, self.shown = run, shown
        self.notes = run.notes("‖norm‖" if any(shown) else "")
        self.has_labels = shown.adjoints and len(run.steps) <= SOME
        self.page = graphviz().AGraph(directed=True, strict=False, **PAGE)
        self.page.graph_attr.update(bgcolor="white")
        self.page.graph_attr["rankdir"] = "LR" if len(run.steps) <= FEW else "TB"
        self.page.node_attr.update(fontsize="12", **NODE)
        self.page.edge_attr.update(EDGE)
        self.home: dict[int, str] = {}
        """The node that a variable leaves, by its id; and the node of a step or a result."""

    def draw(self, title: str) -> str:
        """The picture, with a title and the notes below it; without a title, without both."""
        parts = blocks(self.run.steps) if len(self.run.steps) > MANY else None
        parts = parts or [Block([step], 1) for step in self.run.steps]
        hidden = read_only_in([block for block in parts if block.times > 1], self.run)
        self._givens(hidden)
        for block in parts:
            (self._step if block.times == 1 else self._repeated)(block.steps, block.times)
        self._outputs()
        self._boxes()
        if hidden:
            self.notes.append(
                f"Not shown: {counted(len(hidden), 'input')} that only repeated steps read."
            )
        if self.has_labels:
            self.notes.append("On an edge: what this use adds to the adjoint.")
        if kept := self.run.residuals:
            arrays = counted(len(kept), "array")
            self.notes.append(f"Kept for the reverse pass: {kept.total:,} B in {arrays}.")
        if title:
            lines = [(line, NOTE) for line in (title, *self.notes)]
            self.page.graph_attr["label"] = _html(lines, "LEFT")
        return self.page.to_string()

    def show_pattern(self, found: Pattern, moves: Flags) -> None:
        """A table of squares, in a node of its own; the inputs that move have its columns."""
        self.page.add_node(
            "pattern", shape="plain", style="solid", label=_dots(found.picture(*PATTERN))
        )
        rows = listed([y.label for y in self.run.results])
        columns = listed([x.label for x in pick(self.run.inputs, moves)])
        self.notes.append(f"Squares: the Jacobian, rows {rows}, columns {columns}; {found!r}.")

    def _givens(self, hidden: set[int]) -> None:
        for kind, variables in (("input", self.run.inputs), ("constant", self.run.constants)):
            for v in variables:
                if id(v) not in hidden:
                    text = f"{v.name} = {v.label}" if v.label else f"{v.name}, a constant"
                    self._node(kind, [v], text, kept=v.residuals)

    def _step(self, steps: Sequence[Step], _: int) -> None:
        (step,) = steps
        is_folded, line = notation.is_folded(step.equation), notation.line_of(step.equation)
        count = notation.inside(step.equation) if is_folded else 0
        lines = [f"{step.name} = {step.expression}" if step.shown else step.expression]
        lines += [f"({counted(count, 'equation')} inside)"] if count else []
        tip = f"{line}  {line.code}"
        kind, kept = "call" if count else "step", step.residuals
        node = self._node(kind, step.shown, *lines, tip=tip, kept=kept)
        self.home[id(step)] = node
        for position, x in enumerate(step.inputs):
            if isinstance(x, Variable):
                self._edge(x, node, step.contributions.get(position), position)

    def _repeated(self, steps: Sequence[Step], times: int) -> None:
        """One node for steps that do what those before them do."""
        variables = [v for step in steps for v in step.shown]
        period = len(steps) // times
        what = f"the {period} steps before this" if period > 1 else "the step before this"
        lines = (f"{variables[0].name} … {variables[-1].name}", f"{what}, {times} times more")
        kept = [residual for step in steps for residual in step.residuals]
        name = self._node("repeated", [], *lines, kept=kept)
        own = set(map(id, variables))
        read = {id(x) for step in steps for x in step.inputs}
        homes = Counter(self.home[i] for i in read if i in self.home and i not in own)
        for home, count in homes.items():
            label = f" {counted(count, 'value')} " if count > 1 else ""
            self.page.add_edge(home, name, label=label, fontcolor=NOTE)
        self.home.update(dict.fromkeys([*own, *map(id, steps)], name))

    def node_of(self, step: Step) -> str:
        return self.home[id(step)]

    def _outputs(self) -> None:
        by_home: dict[str, list[tuple[Variable, Result]]] = {}
        for result in self.run.results:
            y = result.source
            if isinstance(y, Variable):
                by_home.setdefault(self.home[id(y)], []).append((y, result))
            else:
                self._node("output", [], f"{result.label} = {y.text.text}")
        for pairs in by_home.values():
            if len(pairs) > 4:  # of repeated steps, or of a loop
                (_, first), (y, last) = pairs[0], pairs[-1]
                lines = f"{first.label} … {last.label}", f"({counted(len(pairs), 'result')})"
                self._edge(y, self._node("output", [], *lines))
                continue
            for y, result in pairs:
                self.home[id(result)] = self._node("output", [], result.label)
                self._edge(y, self.home[id(result)], result.seed)

    def _boxes(self) -> None:
        """A box around the steps of each round and branch that has been opened."""
        inside: dict[Place, list[Step]] = {}
        parents: dict[Place, Place | None] = {}
        for step in self.run.steps:
            for parent, place in zip((None, *step.places), step.places, strict=False):
                inside.setdefault(place, []).append(step)
                parents[place] = parent
        drawn: dict[Place | None, Any] = {None: self.page}
        for i, (place, steps) in enumerate(inside.items()):
            nodes = dict.fromkeys(map(self.node_of, steps))
            box = {"label": place.text, **BOX}
            drawn[place] = drawn[parents[place]].add_subgraph([*nodes], f"cluster_{i}", **box)

    def _node(
        self,
        kind: str,
        variables: Sequence[Variable],
        *lines: str,
        tip: str = " ",
        kept: Sequence[Residual] = (),
    ) -> str:
        name = f"n{len(self.page)}"
        self.home.update((id(v), name) for v in variables)
        colored = [(line, "black") for line in lines]
        for v in variables:
            colored += self._numbers(v, v.name if len(variables) > 1 else "")
        style = {"fillcolor": FILL[kind], "tooltip": tip}
        if kept:
            what = ", ".join(dict.fromkeys(residual.what for residual in kept))
            what = what if len(kept) <= 2 else counted(len(kept), "array")
            colored.append((f"keeps {what}: {sum(r.size for r in kept):,} B", KEPT))
            style |= {"color": KEPT, "penwidth": "2.2"}
        self.page.add_node(name, id=name, label=_html(colored), **style)
        return name

    def _numbers(self, v: Variable, name: str) -> Iterator[tuple[str, str]]:
        is_known = self.shown.values and not is_abstract(v.value)
        if v.aval.shape or (self.shown.values and not is_known):
            yield (f"{name}: " if name else "") + notation.type_of(v.aval), NOTE
        if is_known:
            yield (f"{name} = " if name else "") + notation.value(v.value, is_brief=True), VALUE
        if self.shown.tangents and is_differentiable(v.aval):
            yield equated(marked(v.name, DOT), v.tangent), TANGENT
        if self.shown.adjoints and v.moves:
            yield equated(marked(v.name, BAR), v.adjoint), DERIVATIVE

    def _edge(
        self, x: Variable, node: str, use: Contribution | None = None, position: int = 0
    ) -> None:
        label = f" {number(use.amount)} " if use and self.has_labels else ""
        self.page.add_edge(self.home[id(x)], node, label=label, id=f"{node}_{position}")


def number(derivative: Any) -> str:
    return "0" if type(derivative) is Zero else notation.value(derivative, is_brief=True)


def equated(name: str, derivative: Any) -> str:
    """`v̄ = 2`, or `‖v̄‖ = 2` for a large array."""
    text = number(derivative)
    return f"‖{name}‖ = {text.strip('‖')}" if text.startswith("‖") else f"{name} = {text}"


def _html(lines: Sequence[tuple[str, str]], align: str = "CENTER") -> str:
    """Lines, each with its color, as a label of Graphviz."""
    text = "".join(
        f'<FONT COLOR="{color}">{escape(line)}</FONT><BR ALIGN="{align}"/>' for line, color in lines
    )
    return f"<{text}>"


def _dots(dots: np.ndarray) -> str:
    """A table with a colored cell for each dot, as a label of Graphviz."""
    cell = '<TD FIXEDSIZE="TRUE" WIDTH="{0}" HEIGHT="{0}" BGCOLOR="{1}"></TD>'
    size = max(4, 96 // max(dots.shape))
    on, off = (cell.format(size, color) for color in (DERIVATIVE, FILL["constant"]))
    rows = ("<TR>" + "".join(on if dot else off for dot in row) + "</TR>" for row in dots)
    return f'<<TABLE BORDER="0" CELLSPACING="1" CELLPADDING="0">{"".join(rows)}</TABLE>>'


def graphviz() -> Any:
    try:
        import pygraphviz
    except ImportError as error:
        raise ImportError(
            "functrans.explain.graph needs PyGraphviz: pip install 'functrans[explain]'"
        ) from error
    return pygraphviz
