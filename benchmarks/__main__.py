"""Measure the workloads, print the table, write the page: `python -m benchmarks [name]`.

A run of all of them is written to `docs/benchmarks.md`; one of some is only printed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.measure import Row, measure, steps
from benchmarks.report import HEAD, cells, finished, load, page, plot, tally
from benchmarks.workloads import WORKLOADS, Workload, chosen

DOCS = Path(__file__).resolve().parent.parent / "docs"
COLORS = {"yes": "green", "no": "red", "explained": "yellow"}


def measured(workloads: list[Workload], console: Console) -> list[Row]:
    """The rows of some workloads; a progress bar shows what is being measured."""
    rows: list[Row] = []
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        task = progress.add_task("", total=sum(len(steps(w)) for w in workloads))
        for workload in workloads:

            def begin(step: str, name: str = workload.name) -> None:
                progress.update(task, advance=1, description=f"{name}: {step}")

            rows += measure(workload, begin)
    return rows


def table(rows: list[Row]) -> Table:
    """The table for the terminal; a line is drawn under each workload."""
    found = Table(*HEAD)
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        is_last = following is None or following.workload != row.workload
        line = cells(row)
        color = COLORS.get(line[HEAD.index("met")])
        found.add_row(*line, style=color, end_section=is_last)
    return found


def write(rows: list[Row], seconds: float, docs: Path = DOCS) -> None:
    """Keep the run, draw its plots, and write the page of all runs."""
    folder = docs / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    run = finished(rows, seconds)
    run.save(folder)
    plot(run, folder)
    (docs / "benchmarks.md").write_text(page(load(folder)), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Do it; return the exit status, which says nothing of the budgets."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", help="a workload, or how the names of some begin")
    name = parser.parse_args(arguments).name
    workloads = chosen(name) if name else list(WORKLOADS)
    # Where the output goes to a file there is no width to fit.
    console = Console(width=None if sys.stdout.isatty() else 160)
    start = time.perf_counter()
    rows = measured(workloads, console)
    seconds = time.perf_counter() - start
    console.print(table(rows))
    console.print(f"{tally(rows)}; {seconds / 60:.1f} minutes")
    if not name:
        write(rows, seconds)
        console.print(f"written: {DOCS / 'benchmarks.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
