"""The README's code does what the README says, and its picture and its figures are true."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest

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


def test_its_budget() -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "loc.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (stated,) = re.findall(r"under ([\d,]+) lines of code", README)
    assert f"(budget: under {stated.replace(',', '')}, and no file over 300)" in printed


def test_its_links() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    local = [urllib.parse.unquote(t) for t in targets if not t.startswith("http")]
    assert len(local) > 8
    assert not [target for target in local if not (REPOSITORY / target).exists()]
