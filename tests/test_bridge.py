"""The table of `docs/bridge.md` names what there is, in functrans and in the installed JAX."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import jax
import pytest

PAGE = (Path(__file__).parent.parent / "docs" / "bridge.md").read_text(encoding="utf-8")
ROWS = [row.split("\n  - ") for row in PAGE.split("\n* - ")[2:]]
NAME = re.compile(r"`([\w.]+\.\w+)`")
PRIVATE = jax.__name__ + "._src"


def found(package: str, name: str) -> Any:
    """The object of a dotted name: a module, then its attributes."""
    parts = name.split(".")
    for i in range(len(parts), -1, -1):
        try:
            module = importlib.import_module(".".join([package, *parts[:i]]))
        except ModuleNotFoundError:
            continue
        value = module
        for attribute in parts[i:]:
            value = getattr(value, attribute)
        return value
    raise ModuleNotFoundError(name)


def names(column: int) -> list[str]:
    return sorted({name for row in ROWS for name in NAME.findall(row[column])})


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 20 and {len(row) for row in ROWS} == {3}


@pytest.mark.parametrize("name", names(0))
def test_our_names(name: str) -> None:
    assert found("functrans", name)


@pytest.mark.parametrize("name", names(1))
def test_the_names_of_jax(name: str) -> None:
    assert found(PRIVATE, name) is not None


@pytest.mark.parametrize("name", names(2))
def test_names_in_the_text(name: str) -> None:
    package, _, public = name.partition(".")
    where = {"jax": "jax", "interpreters": PRIVATE, "custom_derivatives": PRIVATE, "api": PRIVATE}
    assert found(where.get(package, "functrans"), public if package == "jax" else name) is not None
