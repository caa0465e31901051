"""What `help` says of each public function: every argument, the result, the errors, an example."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

import functrans as ft

PAGE = (Path(__file__).parent.parent / "docs" / "api.md").read_text(encoding="utf-8")
ORDER = ["Args", "Attributes", "Returns", "Raises", "See also", "Source", "Sources"]


def public() -> dict[str, Callable]:
    """The functions of the API page, and the classes whose constructors it shows."""
    module, found = "", {}
    for directive, name in re.findall(r"^\.\. (\w+):: ([\w.]+)(?!\S)", PAGE, re.MULTILINE):
        if directive == "currentmodule":
            module = name
        elif directive in ("autofunction", "autoclass"):
            found[f"{module}.{name}"] = getattr(importlib.import_module(module), name)
    return found


PUBLIC = public()
every_function = pytest.mark.parametrize("name", PUBLIC)


def parts(text: str) -> dict[str, str]:
    """The sections of a docstring by their titles; a section is indented."""
    titles = "|".join(ORDER)
    return dict(re.findall(rf"^({titles}):(.*\n(?:(?:  .*)?\n)*)", f"{text}\n", re.MULTILINE))


def entries(section: str) -> dict[str, str]:
    """`name: text` of a section, each name by itself."""
    pieces = re.split(r"^  (\*{0,2}[\w.]+): ", section, flags=re.MULTILINE)[1:]
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def test_all_of_them_are_found() -> None:
    names = {f"functrans.{n}" for n in ft.__all__ if not inspect.ismodule(getattr(ft, n))}
    assert names - {"functrans.jacobian"} <= PUBLIC.keys()
    for module in ("rules", "extend", "explain", "sparse", "testing"):
        assert sum(name.startswith(f"functrans.{module}.") for name in PUBLIC) > 1


def test_the_reader_of_docstrings() -> None:
    text = "One line.\n\nArgs:\n  x: a\n    b.\n  *ys: c.\n\nReturns:\n  d.\n\n>>> 1\n1\n"
    found = parts(text)
    assert {title: section.strip() for title, section in found.items()} == {
        "Args": "x: a\n    b.\n  *ys: c.",
        "Returns": "d.",
    }
    assert entries(found["Args"]).keys() == {"x", "*ys"}


@every_function
def test_it_begins_with_one_sentence(name: str) -> None:
    lines = (inspect.getdoc(PUBLIC[name]) or "").splitlines()
    assert len(lines[0]) <= 100 and lines[0][0].isupper()
    assert lines[0].endswith(".") and not any(lines[1:2]), "the sentence is one line"


@every_function
def test_each_argument_is_explained(name: str) -> None:
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    parameters = inspect.signature(PUBLIC[name]).parameters.values()
    expected = [marks.get(p.kind, "") + p.name for p in parameters]
    explained = entries(parts(inspect.getdoc(PUBLIC[name]) or "").get("Args", ""))
    assert [*explained] == expected
    assert all(len(text.split()) > 1 and text.strip().endswith(".") for text in explained.values())


@every_function
def test_result_errors_and_example(name: str) -> None:
    text = inspect.getdoc(PUBLIC[name]) or ""
    found = parts(text)
    assert [*found] == sorted(found, key=ORDER.index), "in this order"
    if inspect.isfunction(PUBLIC[name]):
        returns = inspect.signature(PUBLIC[name]).return_annotation
        assert ("Returns" in found) == (returns != "None")
    if "Raises" in found:
        assert entries(found["Raises"]), "each error on a line of its own"
    assert ">>>" in text, "an example"


def test_jit_explains_the_options_of_jax() -> None:
    options = set(inspect.signature(jax.jit).parameters) - {"fun"}
    explained = set(re.findall(r"- `(\w+)` \(a", parts(inspect.getdoc(ft.jit) or "")["Args"]))
    assert explained == options


@every_function
def test_what_it_points_to_exists(name: str) -> None:
    """A name in "See also" is that of a function of functrans or JAX."""
    see = parts(inspect.getdoc(PUBLIC[name]) or "").get("See also", "")
    known = {*PUBLIC, *ft.__all__, *dir(jax)}
    own = name.rpartition(".")[0]
    for mentioned in re.findall(r"`([\w.]+)`", see):
        full = mentioned.removeprefix("functrans.").removeprefix("jax.")
        assert known & {full, f"functrans.{full}", f"{own}.{full}"}, mentioned
