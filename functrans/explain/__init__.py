"""What one may want to see of a derivative: its steps, its graph, what it keeps, and what has none.

    evaluation_table : (a -> b), a -> the steps of forward or reverse mode, as a textbook's table
    graph            : (a -> b), a -> the computation, drawn, with values, tangents or adjoints
    saved_residuals  : (a -> b), a -> what reverse mode keeps

A room for guests: it may import every other one, and none of them needs it.

Read next: `steps.py`.
"""

from functrans.explain.graph import Graph, graph
from functrans.explain.residuals import Residual, saved_residuals
from functrans.explain.table import EvaluationTable, Row, evaluation_table

__all__ = [
    "evaluation_table",
    "graph",
    "saved_residuals",
    "EvaluationTable",
    "Row",
    "Graph",
    "Residual",
]
