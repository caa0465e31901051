"""Rows that say of another JAX what the rows before them say: `make test` leaves them out there.

The oldest JAX runs them all, and so does `make test-all`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def repeated(rows: Iterable[Any]) -> list:
    return [pytest.param(row, marks=pytest.mark.repeated) for row in rows]


def repeated_after(first: int, rows: Iterable[Any]) -> list:
    """All rows, of which so many run with each JAX."""
    rows = list(rows)
    return [*rows[:first], *repeated(rows[first:])]
