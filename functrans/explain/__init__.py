"""Tables and pictures of a derivative: its steps, its graph, its residuals, the source of a nan.

    evaluation_table : (a -> b), a -> the steps of forward or reverse mode, as a textbook's table
    graph            : (a -> b), a -> the computation, drawn, with values, tangents, adjoints
    play             : (a -> b), a -> both passes of reverse mode over that graph, step by step
    saved_residuals  : (a -> b), a -> the arrays that reverse mode keeps
    blame            : (a -> b), a -> the equation that first made a nan or an infinity

This folder may import every other part of functrans, and none of them needs it: Python imports each
name at its first use.

Read next: `residuals.py`, the arrays that reverse mode keeps.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functrans.explain.culprits import Blame, Culprit, blame
    from functrans.explain.graphs import Graph, graph
    from functrans.explain.player import Player, play
    from functrans.explain.records import Residual, Residuals
    from functrans.explain.residuals import saved_residuals
    from functrans.explain.table import EvaluationTable, Row, evaluation_table

__all__ = [
    "evaluation_table",
    "graph",
    "play",
    "saved_residuals",
    "blame",
    "EvaluationTable",
    "Row",
    "Graph",
    "Player",
    "Residual",
    "Residuals",
    "Blame",
    "Culprit",
]

_FILES = {
    "culprits": ("Blame", "Culprit", "blame"),
    "graphs": ("Graph", "graph"),
    "player": ("Player", "play"),
    "records": ("Residual", "Residuals"),
    "residuals": ("saved_residuals",),
    "table": ("EvaluationTable", "Row", "evaluation_table"),
}


def __getattr__(name: str) -> Any:
    for file, names in _FILES.items():
        if name in names:
            return getattr(importlib.import_module(f"functrans.explain.{file}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
