"""Draw which files of the package import which: `docs/_static/imports.svg`, by `make picture`.

A node is a file, or a folder with the files in it; an arrow goes to what is imported. An arrow that
follows from others is left out: where `a` imports `b`, and `b` imports `c`, none goes from `a` to
`c`. The package itself, `testing.py` and `__main__.py` import all of it, and are not drawn.

    python tools/imports.py
"""

from __future__ import annotations

import ast
import graphlib
import html
import re
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "functrans"
PICTURE = REPOSITORY / "docs" / "_static" / "imports.svg"

TOUR = ("tracer", "forward", "linearize", "reverse", "jit", "transforms", "jacobians")
NOT_DRAWN = ("__init__", "testing", "__main__")
APART = (
    "programs/live",
    "programs/outputs",
)  # files that their folder's other files stand on, by way of another

FONT = "Helvetica,Arial,sans-serif"
LINE = "#4a6fa5"


def unit(name: str) -> str:
    """The node of a file: its folder, or its name if it is in none or stands apart."""
    return name if name in APART else name.partition("/")[0]


def imported(path: Path) -> set[str]:
    """The units that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "functrans":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("functrans."):
            names.add(f"{node.module}".partition(".")[2].replace(".", "/"))
    return set(map(unit, names))


def arrows() -> set[tuple[str, str]]:
    """`(importing, imported)` for each arrow of the picture."""
    graph: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        name = unit(path.relative_to(PACKAGE).with_suffix("").as_posix())
        if name not in NOT_DRAWN:
            graph.setdefault(name, set()).update(imported(path) - {name})
    below: dict[str, set[str]] = {}  # all that one imports, also by way of others
    kept = set()
    for name in graphlib.TopologicalSorter(graph).static_order():
        by_way_of_others = set().union(*(below[other] for other in graph[name]))
        below[name] = graph[name] | by_way_of_others
        kept |= {(name, other) for other in graph[name] - by_way_of_others}
    return kept


def stored() -> set[tuple[str, str]]:
    """The arrows in the picture as it is stored: Graphviz writes each as a title."""
    picture = html.unescape(PICTURE.read_text(encoding="utf-8"))
    return set(re.findall(r"<title>([\w/]+)->([\w/]+)</title>", picture))


def draw(found: set[tuple[str, str]], path: Path) -> None:
    """Draw the tour in blue and folders in grey; what is imported stands below."""
    from pygraphviz import AGraph

    page = AGraph(directed=True)
    page.graph_attr.update(bgcolor="white", nodesep="0.25", ranksep="0.32")
    page.node_attr.update(shape="box", style="rounded,filled", fontname=FONT, fontsize="13")
    page.node_attr.update(color=LINE, fillcolor="white", height="0.34", margin="0.14,0.05")
    page.edge_attr.update(color="#57606a", arrowsize="0.7")
    for name in sorted({name for pair in found for name in pair}):
        is_folder = (PACKAGE / name).is_dir()
        fill = "#cfe3fa" if name in TOUR else "#eaeef2" if is_folder else "white"
        page.add_node(name, label=name + ("/" if is_folder else ".py"), fillcolor=fill, tooltip=" ")
    for pair in sorted(found):
        page.add_edge(*pair, tooltip=" ")
    page.draw(str(path), prog="dot")


def main() -> int:
    """Write the picture."""
    draw(arrows(), PICTURE)
    print(PICTURE.relative_to(REPOSITORY))
    return 0


if __name__ == "__main__":
    sys.exit(main())
