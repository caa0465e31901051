"""The computation as a graph: `(a -> b), a -> picture`.

    w  --->  v₁ = log(v₀)  --->  y          nodes are steps, edges are the values that they read

In reverse mode an edge carries the amount that its use adds to the adjoint of the node where it
begins.  The adjoint of a node is the sum over the edges that leave it:

    v_i_bar = sum over edges i -> k of  v_k_bar dv_k/dv_i

Graphviz, which PyGraphviz brings along, finds the layout and draws.

Read next: `pictures.py`, the nodes and edges.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from functrans.errors.wording import counted
from functrans.explain import residuals as kept
from functrans.explain import starts
from functrans.explain.pictures import Picture, Shown, graphviz
from functrans.explain.planning import Unfold, planned
from functrans.explain.steps import evaluate
from functrans.sparse import Pattern, jacobian_pattern
from functrans.sparse.checks import real_input
from functrans.values import pick


@dataclass(frozen=True, repr=False)
class Graph:
    """The drawing that `graph` returns; a notebook shows it, and `save` writes it to a file."""

    title: str
    dot: str
    """The graph in Graphviz's language."""
    notes: list[str]
    """The omissions of the picture, and how to read it."""

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
        drawing = graphviz().AGraph(string=self.dot)
        if kind == "png":
            drawing.graph_attr["dpi"] = "192"
        return drawing.draw(format=kind, prog="dot")

    def __repr__(self) -> str:
        return f"Graph({self.title})"


def graph(
    fun: Callable,
    *args: Any,
    values: bool = False,
    tangents: bool | Sequence = False,
    adjoints: bool = False,
    residuals: bool = False,
    wrt: int | Sequence[int] | None = None,
    cotangent: Any = None,
    unfold: Unfold = False,
    pattern: bool = False,
) -> Graph:
    """Draw the computation of `fun(*args)`: its steps, and which values each of them reads.

    Each node shows the type of an array. If `unfold` opens a loop or a branch, each round of the
    loop and the branch have a box around them.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *args: its arguments. If they have no values (inside `jit`), the graph shows types.
      values: whether each node shows its value.
      tangents: whether each node shows its tangent, and along which direction: a tuple with a
        tangent for each argument, or `True` for ones in the arguments `wrt`.
      adjoints: whether each node shows its adjoint, and in a small graph each edge its share of it.
      residuals: whether each node shows which of its values the reverse pass keeps, and in how many
        bytes: the arrays that `saved_residuals` lists. A call that `unfold` opens keeps the arrays
        that its equations keep one by one.
      wrt: as in `evaluation_table`.
      cotangent: as in `evaluation_table`.
      unfold: as in `evaluation_table`.
      pattern: whether to draw the pattern of the Jacobian beside the graph: which elements of the
        results depend on which elements of the arguments `wrt`; by default, of the first argument
        that has a derivative.

    Returns:
      A `Graph`, which a notebook shows as SVG. `save("x.svg")` draws to a file, also `.png` and
      `.pdf`; `dot` is its source.

    Raises:
      TypeError: as for `evaluation_table`.
      ValueError: as for `evaluation_table`.

    See also:
      `evaluation_table`, the same steps as a table; `play`, both together, step by step.

    >>> import jax.numpy as jnp
    >>> from functrans.explain import graph
    >>> graph(lambda w: w * jnp.log(w), 2.0, values=True, adjoints=True)
    Graph(<lambda>: 2 steps, cotangent 1 of y)
    """
    if cotangent is not None and not adjoints:
        raise ValueError("graph: cotangent is for adjoints=True")
    run = planned("graph", fun, args, unfold)
    shown = Shown(values, tangents is not False, adjoints)
    given = None if isinstance(tangents, bool) else tangents
    begun = []
    if shown.tangents:
        begun.append(starts.forward("graph", run, wrt if given is None else None, given))
    if adjoints:
        begun.append(starts.reverse("graph", run, wrt, cotangent))
    for start in begun or [starts.nowhere(run)]:
        evaluate(run, start)
    if residuals:
        kept.mark(run, starts.moving("graph", run, wrt))
    count = len(run.steps)
    words = [counted(count, "step"), *(start.words for start in begun)]
    title = f"{run.name}: {', '.join(words)}"
    picture = Picture(run, shown)
    if pattern:
        moves = starts.pushed("graph", run, wrt)
        numbers = sorted({*pick(starts.argument_numbers(run), moves)})
        picture.show_pattern(_pattern(fun, args, numbers), moves)
    return Graph(title, picture.draw(title), picture.notes)


def _pattern(fun: Callable, args: Sequence, numbers: Sequence[int]) -> Pattern:
    """Which elements of the results depend on which of the arguments of these numbers."""
    for i in numbers:
        real_input(fun, args, i, "wrt")

    def chosen(xs):
        given = dict(zip(numbers, xs, strict=True))
        return fun(*(given.get(i, x) for i, x in enumerate(args)))

    return jacobian_pattern(chosen, [args[i] for i in numbers])
