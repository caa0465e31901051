"""The table of rules under test, one file for each room of rules; `table.py` says what a row is."""

from rule_cases import (
    calls,
    collectives,
    contraction,
    control_flow,
    elementwise,
    fft,
    indexing,
    kernels,
    linalg,
    random,
    reduction,
    shape,
    sorting,
    sparse,
    special,
    windows,
)
from rule_cases.table import BOTH, CASES, Case, cases_of_series

__all__ = [
    "BOTH",
    "CASES",
    "Case",
    "cases_of_series",
    "calls",
    "collectives",
    "contraction",
    "control_flow",
    "elementwise",
    "fft",
    "indexing",
    "kernels",
    "linalg",
    "random",
    "reduction",
    "shape",
    "sorting",
    "sparse",
    "special",
    "windows",
]
