"""The computation as a graph: `(a -> b), a -> picture`.

    w  --->  v₁ = log(v₀)  --->  y          nodes are steps, edges are the values that they read

In reverse mode an edge carries what that use adds to the adjoint of the node where it begins, so
that the adjoint of a node is the sum over the edges that leave it:

    v_i_bar = sum over edges i -> k of  v_k_bar dv_k/dv_i

Graphviz finds the layout and draws; PyGraphviz brings it along.

Read next: `player.py`, which plays the passes over the graph.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np

from functrans.explain import notation, starts
from functrans.explain.notation import BAR, DOT, marked
from functrans.explain.planning import Unfold, planned
from functrans.explain.records import Contribution, Result, Run, Step, Variable
from functrans.explain.steps import evaluate
from functrans.sparse import Pattern, jacobian_pattern
from functrans.values import Zero, is_differentiable

FEW, SOME = 8, 16
"""A graph of few steps runs from left to right; one of some steps has labels on its edges."""
PATTERN = 32, 32
"""The most dots in a row and in a column of the picture of a Jacobian."""
MANY = 60
"""Of a graph with more steps those that are repeated are drawn once."""

VALUE, DERIVATIVE, NOTE = "#1a7f37", "#c0392b", "#57606a"
FILL = {"input": "#ddf4ff", "constant": "#eaeef2", "output": "#dafbe1", "step": "#ffffff"}
FILL |= {"call": "#fff8c5", "repeated": "#f3e8ff"}


@dataclass(frozen=True, repr=False)
class Graph:
    """The drawing that `graph` returns; a notebook shows it, and `save` writes it to a file."""

    title: str
    dot: str
    """The graph in Graphviz's language."""
    notes: list[str]
    """What the picture leaves out, and how to read it."""

    def save(self, path: str | os.PathLike) -> None:
        """Draw to a file; its ending (`.svg`, `.png`, `.pdf`, `.dot`) chooses the format."""
        ending = os.path.splitext(os.fspath(path))[1][1:].lower()
        if ending not in ("svg", "png", "pdf", "dot"):
            raise ValueError(
                f"graph: cannot save to {os.fspath(path)!r}: the name must end in .svg, .png, "
                ".pdf or .dot"
            )
        drawn = self.dot.encode() if ending == "dot" else self._draw(ending)
        with open(path, "wb") as file:
            file.write(drawn)

    def _repr_svg_(self) -> str:
        text = self._draw("svg").decode()
        # No wider than the page.
        style = '<svg style="max-width: 100%; height: auto" '
        return text[text.index("<svg") :].replace("<svg ", style, 1)

    def _draw(self, kind: str) -> bytes:
        drawing = _pygraphviz().AGraph(string=self.dot)
        if kind == "png":
            drawing.graph_attr["dpi"] = "192"
        return drawing.draw(format=kind, prog="dot")

    def __repr__(self) -> str:
        return f"Graph({self.title})"


def _pygraphviz() -> Any:
    try:
        import pygraphviz
    except ImportError as error:
        raise ImportError(
            "functrans.explain.graph needs PyGraphviz: pip install 'functrans[explain]'"
        ) from error
    return pygraphviz


def graph(
    fun: Callable,
    *args: Any,
    values: bool = False,
    tangents: bool | Sequence = False,
    adjoints: bool = False,
    wrt: int | Sequence[int] | None = None,
    cotangent: Any = None,
    unfold: Unfold = False,
    pattern: bool = False,
) -> Graph:
    """Draw the computation of `fun(*args)`: its steps, and which values each of them reads.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *args: its arguments. If they have no values (inside `jit`), the graph shows types.
      values: whether each node shows its value.
      tangents: whether each node shows its tangent, and along which direction: a tuple with a
        tangent for each argument, or `True` for ones in the arguments `wrt`.
      adjoints: whether each node shows its adjoint, and in a small graph each edge its share of it.
      wrt: as in `evaluation_table`.
      cotangent: as in `evaluation_table`.
      unfold: as in `evaluation_table`.
      pattern: whether to draw the pattern of the Jacobian beside the graph: which elements of the
        results depend on which elements of the arguments `wrt`, or of the first one.

    Returns:
      A `Graph`, which a notebook shows as SVG. `save("x.svg")` draws to a file, also `.png` and
      `.pdf`; `dot` is its source.

    Raises:
      TypeError: as for `evaluation_table`.
      ValueError: as for `evaluation_table`, and if you ask for both tangents and adjoints.

    See also:
      `evaluation_table`, the same steps as a table; `play`, both together, step by step.

    >>> import jax.numpy as jnp
    >>> from functrans.explain import graph
    >>> graph(lambda w: w * jnp.log(w), 2.0, values=True, adjoints=True)
    Graph(<lambda>: 2 steps, cotangent 1 of y)
    """
    if tangents is not False and adjoints:
        raise ValueError("graph: ask for tangents or for adjoints, not for both in one picture")
    if cotangent is not None and not adjoints:
        raise ValueError("graph: cotangent is for adjoints=True")
    run = planned("graph", fun, args, unfold)
    if adjoints:
        start = starts.reverse("graph", run, wrt, cotangent)
    elif tangents is not False:
        start = starts.forward("graph", run, wrt, None if tangents is True else tangents)
    else:
        start = starts.nowhere(run)
    evaluate(run, start)
    count = len(run.steps)
    title = f"{run.name}: {count} step{'s' * (count != 1)}"
    title += f", {start.words}" if start.words else ""
    picture = Picture(run, values, start.mode)
    if pattern:
        picture.show_pattern(_pattern(fun, args, wrt))
    return Graph(title, picture.draw(title), picture.notes)


# ---- drawing -------------------------------------------------------------------------------------

FONT = "Helvetica,Arial,sans-serif"
STYLE = {"fontname": FONT, "color": NOTE, "penwidth": "0.8"}
NODE = STYLE | {"shape": "box", "style": "rounded,filled", "margin": "0.12,0.06", "height": "0.3"}
EDGE = STYLE | {"fontcolor": DERIVATIVE, "fontsize": "10", "arrowsize": "0.7"}
PAGE = {"fontname": FONT, "fontsize": "10", "labelloc": "b", "labeljust": "l", "nodesep": "0.3"}


class Picture:
    """Nodes and edges in Graphviz's terms."""

    def __init__(self, run: Run, values: bool, mode: str | None):
        self.run, self.values, self.mode, self.notes = run, values, mode, run.notes()
        self.has_labels = mode == "rev" and len(run.steps) <= SOME
        self.page = _pygraphviz().AGraph(directed=True, strict=False, **PAGE)
        self.page.graph_attr.update(bgcolor="white")
        self.page.graph_attr["rankdir"] = "LR" if len(run.steps) <= FEW else "TB"
        self.page.node_attr.update(fontsize="12", **NODE)
        self.page.edge_attr.update(EDGE)
        self.home: dict[int, str] = {}
        """By the id of a variable the node that it leaves; of a step or a result, its own."""

    def draw(self, title: str) -> str:
        """The picture, with a title and the notes below it; without a title, without both."""
        blocks = _blocks(self.run.steps) if len(self.run.steps) > MANY else None
        blocks = blocks or [Block([step], 1) for step in self.run.steps]
        hidden = _read_only_in([block for block in blocks if block.times > 1], self.run)
        self._givens(hidden)
        for block in blocks:
            (self._step if block.times == 1 else self._repeated)(block.steps, block.times)
        self._outputs()
        if hidden:
            self.notes.append(f"Not shown: {len(hidden)} inputs that only repeated steps read.")
        if self.has_labels:
            self.notes.append("On an edge: what this use adds to the adjoint.")
        if title:
            lines = [(line, NOTE) for line in (title, *self.notes)]
            self.page.graph_attr["label"] = _html(lines, "LEFT")
        return self.page.to_string()

    def show_pattern(self, found: Pattern) -> None:
        """A table of dots, in a node of its own."""
        self.page.add_node(
            "pattern", shape="plain", style="solid", label=_dots(found.picture(*PATTERN))
        )
        self.notes.append(f"Dots: the Jacobian, {found!r}.")

    def _givens(self, hidden: set[int]) -> None:
        for kind, variables in (("input", self.run.inputs), ("constant", self.run.constants)):
            for v in variables:
                if id(v) not in hidden:
                    self._node(kind, [v], f"{v.name} = {v.label or v.aval.str_short()}")

    def _step(self, steps: Sequence[Step], _: int) -> None:
        (step,) = steps
        is_folded, line = notation.is_folded(step.equation), notation.line_of(step.equation)
        count = notation.inside(step.equation) if is_folded else 0
        lines = [f"{step.name} = {step.expression}" if step.shown else step.expression]
        lines += [f"({count} equation{'s' * (count > 1)} inside)"] if count else []
        tip = f"{line}  {line.code}"
        node = self._node("call" if count else "step", step.shown, *lines, tip=tip)
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
        name = self._node("repeated", [], *lines)
        own = set(map(id, variables))
        read = {id(x) for step in steps for x in step.inputs}
        homes = Counter(self.home[i] for i in read if i in self.home and i not in own)
        for home, count in homes.items():
            label = f" {count} values " if count > 1 else ""
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
                lines = f"{first.label} … {last.label}", f"({len(pairs)} results)"
                self._edge(y, self._node("output", [], *lines))
                continue
            for y, result in pairs:
                self.home[id(result)] = self._node("output", [], result.label)
                self._edge(y, self.home[id(result)], result.seed)

    def _node(self, kind: str, variables: Sequence[Variable], *lines: str, tip: str = " ") -> str:
        name = f"n{len(self.page)}"
        self.home.update((id(v), name) for v in variables)
        colored = [(line, "black") for line in lines]
        for v in variables:
            colored += self._numbers(v, f"{v.name} = " if len(variables) > 1 else "")
        self.page.add_node(name, id=name, label=_html(colored), fillcolor=FILL[kind], tooltip=tip)
        return name

    def _numbers(self, v: Variable, name: str) -> Iterator[tuple[str, str]]:
        if self.values:
            yield name + notation.value(v.value), VALUE
        if self.mode == "fwd" and is_differentiable(v.aval):
            yield equated(marked(v.name, DOT), v.tangent), DERIVATIVE
        if self.mode == "rev" and v.moves:
            yield equated(marked(v.name, BAR), v.adjoint), DERIVATIVE

    def _edge(
        self, x: Variable, node: str, use: Contribution | None = None, position: int = 0
    ) -> None:
        label = f" {number(use.amount)} " if use and self.has_labels else ""
        self.page.add_edge(self.home[id(x)], node, label=label, id=f"{node}_{position}")


def number(derivative: Any) -> str:
    return "0" if type(derivative) is Zero else notation.value(derivative, is_brief=True)


def equated(name: str, derivative: Any) -> str:
    """`v̄ = 2`, or of a large array `‖v̄‖ = 2`."""
    text = number(derivative)
    return f"‖{name}‖ = {text.strip('‖')}" if text.startswith("‖") else f"{name} = {text}"


def _html(lines: Sequence[tuple[str, str]], align: str = "CENTER") -> str:
    """Lines, each with its color, as a label of Graphviz."""
    text = "".join(
        f'<FONT COLOR="{color}">{escape(line)}</FONT><BR ALIGN="{align}"/>' for line, color in lines
    )
    return f"<{text}>"


def _pattern(fun: Callable, args: Sequence, wrt: int | Sequence[int] | None) -> Pattern:
    """Which elements of the results depend on which of the arguments `wrt`."""
    numbers = [wrt or 0] if wrt is None or isinstance(wrt, int) else [*wrt]

    def chosen(xs):
        given = dict(zip(numbers, xs, strict=True))
        return fun(*(given.get(i, x) for i, x in enumerate(args)))

    return jacobian_pattern(chosen, [args[i] for i in numbers])


def _dots(dots: np.ndarray) -> str:
    """A table with a colored cell for each dot, as a label of Graphviz."""
    cell = '<TD FIXEDSIZE="TRUE" WIDTH="{0}" HEIGHT="{0}" BGCOLOR="{1}"></TD>'
    size = max(4, 96 // max(dots.shape))
    on, off = (cell.format(size, color) for color in (DERIVATIVE, FILL["constant"]))
    rows = ("<TR>" + "".join(on if dot else off for dot in row) + "</TR>" for row in dots)
    return f'<<TABLE BORDER="0" CELLSPACING="1" CELLPADDING="0">{"".join(rows)}</TABLE>>'


# ---- repeated steps ------------------------------------------------------------------------------


class Block(NamedTuple):
    """Steps that one node stands for: a single one, or some that are done several times."""

    steps: Sequence[Step]
    times: int


def _blocks(steps: Sequence[Step]) -> list[Block]:
    """Find the longest repetition; leave its first round as it is, and put the others together."""
    kinds: dict = {}
    signatures = np.array([kinds.setdefault(_signature(step), len(kinds)) for step in steps])
    start, period, times = max(
        _repetitions(signatures), key=lambda found: (found[2] - 1) * found[1], default=(0, 0, 0)
    )
    if times < 3:
        return [Block([step], 1) for step in steps]
    first, last = start + period, start + times * period
    opened = [Block([step], 1) for step in steps[start:first]]
    repeated = Block(steps[first:last], times - 1)
    return [*_blocks(steps[:start]), *opened, repeated, *_blocks(steps[last:])]


def _repetitions(signatures: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """For each period the start and the number of rounds of the longest repetition."""
    for period in range(1, len(signatures) // 3 + 1):
        same = signatures[:-period] == signatures[period:]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], same, [0]])))
        starts, ends = edges[::2], edges[1::2]
        if len(starts):
            i = int(np.argmax(ends - starts))
            yield int(starts[i]), period, int(ends[i] - starts[i]) // period + 1


def _signature(step: Step) -> tuple:
    """What two steps have in common that do the same to values of the same types."""
    types = tuple(x.aval.str_short() for x in [*step.inputs, *step.outputs])
    names = [notation.Text("·")] * len(step.inputs)
    return str(step.equation.primitive), notation.expression(step.equation, names).text, types


def _read_only_in(blocks: Sequence[Block], run: Run) -> set[int]:
    """The ids of the inputs and constants that nothing but these blocks reads."""
    inside = {id(step) for block in blocks for step in block.steps}
    readers = {id(v): set() for v in run.given}
    for step in run.steps:
        for x in step.inputs:
            readers.get(id(x), set()).add(id(step) in inside)
    for result in run.results:
        readers.get(id(result.source), set()).add(False)
    return {variable for variable, where in readers.items() if where == {True}}
