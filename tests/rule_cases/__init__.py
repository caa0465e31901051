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
from rule_cases.table import BOTH, CASES, Case

__all__ = [
    "BOTH",
    "CASES",
    "Case",
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
