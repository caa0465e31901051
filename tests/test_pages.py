"""The pages of `docs/` and the stored tutorials say what is true."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
NOTEBOOKS = sorted((REPOSITORY / "colab").glob("*.ipynb"))


def test_many_devices() -> None:
    page = (DOCS / "many-devices.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"^```python\n(.*?)^```", page, re.M | re.S))
    printed = "".join(re.findall(r"^```text\n(.*?)^```", page, re.M | re.S))
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed


@pytest.mark.parametrize(
    "page", [*sorted(DOCS.glob("*.md")), *NOTEBOOKS], ids=lambda path: path.stem
)
def test_its_links_work_on_github(page: Path) -> None:
    """`docs/conf.py` makes links between pages of those to and from notebooks."""
    for target in re.findall(
        r"\]\((?!https?:)([^)#\s]+\.(?:md|ipynb|svg|json))", page.read_text(encoding="utf-8")
    ):
        assert (page.parent / target).exists(), target


def cells(notebook: Path, kind: str) -> list[dict]:
    stored = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in stored if cell["cell_type"] == kind]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_stored_tutorial_has_all_its_results(notebook: Path) -> None:
    """Every cell has run, in order, with every library that it shows, and without a warning."""
    codes = cells(notebook, "code")
    assert [cell["execution_count"] for cell in codes] == list(range(1, len(codes) + 1))
    outputs = json.dumps([cell["outputs"] for cell in codes])
    assert "not installed" not in outputs
    for output in (output for cell in codes for output in cell["outputs"]):
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr", output["text"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_an_answer_follows_its_exercise(notebook: Path) -> None:
    stored = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in stored]
    answers = [k for k, text in enumerate(texts) if text.startswith("# @title Answer")]
    assert len(answers) >= 3
    for number, k in enumerate(answers, start=1):
        assert texts[k].startswith(f"# @title Answer {number}\n")
        assert f"\n**{number}." in "\n" + texts[k - 1]
        assert stored[k]["metadata"]["mystnb"]["code_prompt_show"] == f"Answer {number}"


SHOWS_CODE = [path for path in NOTEBOOKS if "getsource(" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("notebook", SHOWS_CODE, ids=lambda path: path.stem)
def test_the_code_that_a_tutorial_prints_is_that_of_today(notebook: Path) -> None:
    """We run the statements that print sources, and no others. If this fails, run the notebook."""
    shown: list[dict] = []
    names: dict[str, Any] = {"Markdown": lambda text: {"text/markdown": text}, "pathlib": pathlib}
    names["display"] = lambda data, raw=False: shown.append(data)
    count = 0
    for cell in cells(notebook, "code")[1:]:  # the first one installs, and imports `pathlib`
        shown.clear()
        for statement in ast.parse("".join(cell["source"])).body:
            if prints_sources(statement, names):
                exec(compile(ast.unparse(statement), str(notebook), "exec"), names)
        stored = [output["data"] for output in cell["outputs"] if "data" in output]
        stored = [data for data in stored if "```python" in "".join(data.get("text/markdown", ""))]
        assert len(shown) == len(stored), cell["source"]
        count += len(shown)
        for today, before in zip(shown, stored, strict=True):
            assert {kind: "".join(before[kind]) for kind in today} == today
    assert count > 0


def prints_sources(statement: ast.stmt, names: dict) -> bool:
    """What prints a source, or what it needs: an import, a function that reads sources."""
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        modules = [getattr(statement, "module", None) or statement.names[0].name]
        return modules[0].partition(".")[0] in ("functrans", *sys.stdlib_module_names)
    text = ast.unparse(statement)
    if text.startswith(("def show(", "source = ")):
        return "getsource(" in text
    return text.startswith("display(Markdown(f'```python") or (
        text.startswith("show(") and "show" in names
    )


def test_the_first_tutorial_shows_five_libraries() -> None:
    tables = [
        "".join(output["data"]["text/html"])
        for cell in cells(NOTEBOOKS[0], "code")
        for output in cell["outputs"]
        if "by hand" in "".join(output.get("data", {}).get("text/html", ""))
    ]
    (table,) = tables
    for library in ("functrans", "JAX", "HIPS Autograd", "PyTorch", "TensorFlow"):
        assert f">{library}</th>" in table
    for number in ("-13.53890802", "2.71828183", "109.19630007"):
        assert table.count(f">{number}</td>") == 6, number  # by hand, and by five libraries


def test_the_tutorials_install_in_one_way() -> None:
    """Their first cells differ in the packages that they ask for, and in nothing else."""
    first = ["".join(cells(notebook, "code")[0]["source"]) for notebook in NOTEBOOKS]
    layout = {re.sub(r"\s", "", re.sub(r"\([^()]*\"functrans\"[^()]*\)", "", s)) for s in first}
    assert len(layout) == 1, layout


def test_a_library_that_the_readme_names_is_in_the_tutorial() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^1\. \[.*\]\((colab/.*)\): (.*)$", readme, re.M)
    assert len(lines) == len(NOTEBOOKS)
    for path, about in lines:
        text = (REPOSITORY / path).read_text(encoding="utf-8")
        for name in re.findall(r"\b(?:Equinox|Flax|Optax|Diffrax|NIST)\b", about):
            assert name.lower() in text.lower(), (path, name)
