"""The main job, `python -m functrans`: it trains, cross-checks, shows, and fails when it should."""

from __future__ import annotations

import importlib.util
import pathlib

import pytest

from functrans import __main__ as job
from functrans.__main__ import main

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def few_timed_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """One timed call for the demo's twenty: no test looks at the times."""
    monkeypatch.setattr(job, "TIMED_CALLS", 1)


def test_the_main_job_trains_a_model_and_cross_checks_it(capsys):
    assert main(["--no-progress"]) == 0
    said = capsys.readouterr().out
    for part in ("hvp of the loss", "vmap(jacrev(model))", "lambda", "mul"):
        assert part in said


def test_a_model_that_is_not_trained_is_a_failure(capsys):
    assert main(["--no-progress", "--epochs", "1"]) == 1
    assert "under 97%" in "".join(capsys.readouterr())


def test_help_explains_the_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--epochs" in capsys.readouterr().out


def test_lines_of_code_are_counted_without_comments_and_docstrings():
    path = pathlib.Path(__file__).parent.parent / "tools" / "loc.py"
    spec = importlib.util.spec_from_file_location("loc", path)
    loc = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loc)
    source = '"""A module."""\n\n# why\nx = [\n    1,\n]  # so\n\n\ndef f():\n    """Doc."""\n'
    source += "    return x\n"
    assert loc.lines_of_code(source) == 5
