"""The README's code does what the README says, and its picture and its figures are true.

So do the examples of the cookbook, and of the page on what JAX does not have.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import runpy
import urllib.parse
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("quick_compilation")

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", README, re.DOTALL)


def without_figures(text: str) -> str:
    """Differences from what is right differ from machine to machine."""
    return re.sub(r"\d\.\de[+-]\d\d", "~", text).strip()


def texts(svg: str) -> list[str]:
    """What a picture says: where it says it depends on the fonts of a machine."""
    return re.findall(r">([^<>]*\S[^<>]*)<", svg)


def test_its_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(PROGRAMS) == 3
    names: dict = {}
    for program, output in PROGRAMS:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(program, names)  # the point of this file
        assert without_figures(printed.getvalue()) == without_figures(output)
    stored = (REPOSITORY / "docs/_static/loss.svg").read_text(encoding="utf-8")
    assert texts((tmp_path / "loss.svg").read_text(encoding="utf-8")) == texts(stored)


def test_its_line_counts() -> None:
    """The README rounds to tens; `make loc` prints the counts of today."""
    loc = runpy.run_path(str(REPOSITORY / "tools" / "loc.py"))
    files = loc["counts"]()
    tour, engine, longest = loc["budgets"](files)
    rows = re.findall(r"^\| the (\w+): .* \| ([\d,]+) \| *([\d,]*) *\|$", README, re.MULTILINE)
    numbers = {part: [int(n.replace(",", "") or 0) for n in stated] for part, *stated in rows}
    counted = {
        "tour": (tour.count, tour.limit),
        "engine": (engine.count, engine.limit),
        "package": (sum(files.values()), 0),
    }
    assert numbers.keys() == counted.keys()
    for part, (count, limit) in counted.items():
        stated, stated_limit = numbers[part]
        assert stated_limit == limit
        assert abs(stated - count) <= 0.02 * count, f"the {part} has {count} lines of code"
    assert f"No file has more than {longest.limit} lines of code." in README


def test_its_links() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [urllib.parse.unquote(t) for t in targets if not t.startswith("http")]
    assert len(local) > 8
    assert not [target for target in local if not (REPOSITORY / target).exists()]


@pytest.mark.parametrize("name", ["beyond-jax", "cookbook"])
def test_the_examples_of_a_page(name: str) -> None:
    page = str(REPOSITORY / f"docs/{name}.md")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, run = doctest.testfile(page, module_relative=False, optionflags=flags)
    assert run > 5
    assert not failed
