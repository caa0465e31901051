"""The rows as a table in the terminal, and as the page `docs/benchmarks.md`.

A whole run is kept as a file, `docs/benchmarks/<platform>-jax-<version>.json`; the page shows those
that are there, so that a run with one JAX, or on one machine, leaves the others where they are.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

import functrans as ft
from benchmarks.budgets import EXPLAINED, RATIO, budgets_of
from benchmarks.measure import Row

HEAD = ("workload", "metric", "JAX", "functrans", "ratio", "budget", "met", "others")
UNITS = {"s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")), "B": ((2**20, "MiB"), (2**10, "KiB"))}
COUNTS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))

METHOD = """\
## How it is measured

`make bench` measures and writes this page. `make bench BENCH=lstm` measures one workload, or all
whose names begin with these letters. `benchmarks/workloads.py` has the workloads, and
`benchmarks/measure.py` the method: JAX and functrans take turns in one process, on functions that
no cache knows. Each round gives a ratio, functrans's time divided by JAX's; the tables show the
median over the rounds.

| metric | meaning |
|---|---|
| `run k` | one call of the compiled derivative `k` |
| `run laplacian` | against the sum of a second derivative in each direction |
| `run laplacian vs k` | against one written by hand, and `folx` where it is installed |
| `memory k`, `operations k` | its temporary memory; its operations, counting every pass of a loop |
| `operations grad / f` | the operations of the gradient divided by those of the function |
| `compile grad` | XLA's time to compile the gradient |
| `trace grad`, `lower grad` | `jit(grad(f)).trace(x)`, and `.lower()` of the result |
| `trace grad / f` | `trace grad` divided by the time in which the same library traces `f` |
| `call k vs k of jit` | `ft.k(ft.jit(f))(x)` against `jax.k(jax.jit(f))(x)` |
| `call k vs jit of k` | `ft.k(ft.jit(f))(x)` against `jax.jit(jax.k(f))(x)` |
| `vjp of jit`, `pullback of jit` | `vjp(jit(f), x)`, and one call of the pullback |
| `eager grad` | `grad(f)(x)`, with no `jit` |
| `find and color k` | finding the pattern of a sparse `k` and coloring it; JAX does neither |
| `sparse / dense k` | `ft.sparse.k` against JAX's dense `k` |
| `sparse k / f` | `ft.sparse.k` against the function `f` itself |
| `... vs asdex` | the same with asdex in the place of JAX, where asdex runs |

A budget limits the ratio. A budget marked *own* limits functrans's own figure, and one marked
*Autograd* the ratio to the time of a gradient in HIPS Autograd. The column *others* shows the times
of Autograd and `torch.func` where they are installed.
"""


@dataclass
class Run:
    """The rows of all workloads, with when and where they were measured."""

    date: str
    machine: str
    platform: str
    versions: dict[str, str]
    seconds: float
    rows: list[Row]

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.platform}-jax-{self.versions['jax']}"

    def save(self, folder: Path) -> None:
        """Keep it beside the others."""
        rows = [row._asdict() for row in self.rows]
        text = json.dumps(asdict(self) | {"rows": rows}, indent=0)
        (folder / f"{self.name}.json").write_text(text + "\n", encoding="utf-8")


def finished(rows: list[Row], seconds: float) -> Run:
    """A run that ended now, here."""
    device = jax.devices()[0]
    machine = f"{os.cpu_count()} cores, {_processor()}"
    if device.platform != "cpu":
        machine = f"{device.device_kind}, {machine}"
    today = datetime.date.today().isoformat()
    return Run(today, machine, device.platform, _versions(), seconds, rows)


def load(folder: Path) -> list[Run]:
    """The runs that are kept in a folder."""
    runs = []
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        runs.append(Run(**content | {"rows": [Row(**row) for row in content["rows"]]}))
    return runs


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _versions() -> dict[str, str]:
    found = {"functrans": ft.__version__, "python": platform.python_version()}
    for package in ("jax", "jaxlib", "numpy", "autograd", "torch", "folx"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue  # those that may be there or not
    return found


# ---- one row -------------------------------------------------------------------------------------


def shown(value: float, unit: str) -> str:
    """Three digits, and a unit that suits."""
    scales = UNITS.get(unit, COUNTS)
    factor, name = next(
        (s for s in scales if abs(value) >= s[0]), (1.0, "B" if unit == "B" else "")
    )
    if unit == "s" and not name:  # less than a microsecond
        factor, name = scales[-1]
    return f"{value / factor:.3g} {name}".rstrip()


def cells(row: Row) -> tuple[str, ...]:
    """A row as it stands under `HEAD`."""
    budgets = budgets_of(row)
    others = ", ".join(f"{name} {shown(x, row.unit)}" for name, x in row.others.items())
    figures = shown(row.jax, row.unit), shown(row.functrans, row.unit), f"{row.ratio:.4g}"
    budget = ", ".join(map(str, budgets))
    return (row.workload, row.metric, *figures, budget, verdict(row), others)


def verdict(row: Row) -> str:
    """Whether every budget of a row is met, if it has any."""
    budgets = budgets_of(row)
    if not budgets:
        return ""
    if all(budget.is_met(row) for budget in budgets):
        return "yes"
    return "explained" if (row.workload, row.metric) in EXPLAINED else "no"


def tally(rows: Iterable[Row]) -> str:
    """How many of the rows with a budget keep it."""
    verdicts = [verdict(row) for row in rows if budgets_of(row)]
    return f"{verdicts.count('yes')} of {len(verdicts)} rows with a budget meet it"


# ---- the page ------------------------------------------------------------------------------------


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table."""
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def summary(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """For each metric the median ratio over the workloads, the best, the worst, the budgets."""
    ordered = sorted(rows, key=lambda row: row.metric)
    for metric, group in groupby(ordered, key=lambda row: row.metric):
        found = list(group)
        ratios = [row.ratio for row in found]
        budgeted = [row for row in found if budgets_of(row)]
        kept = sum(verdict(row) == "yes" for row in budgeted)
        figures = (f"{x:.3g}" for x in (median(ratios), min(ratios), max(ratios)))
        yield metric, str(len(found)), *figures, f"{kept} of {len(budgeted)}" if budgeted else ""


IN_RESULT = ("run grad", "memory grad", "run hvp", "memory hvp", "trace grad", "eager grad")


def result(run: Run) -> str:
    """The result in three sentences."""

    def ratio(metric: str) -> str:
        return f"{median(row.ratio for row in run.rows if row.metric == metric):.2f}"

    number = run.versions["jax"]
    return (
        f"With JAX {number}, and compared with it (medians over the workloads), a compiled "
        f"gradient takes {ratio('run grad')} of the time and {ratio('memory grad')} of the memory, "
        f"and a Hessian-vector product {ratio('run hvp')} and {ratio('memory hvp')}. Tracing a "
        f"gradient takes {ratio('trace grad')} of the time, and an eager gradient "
        f"{ratio('eager grad')}. {tally(run.rows)}.\n"
    )


def section(run: Run) -> Iterator[str]:
    """What one run found."""
    packages = ", ".join(f"{name} {number}" for name, number in run.versions.items())
    yield f"## JAX {run.versions['jax']} on {run.platform.upper()}, {run.date}\n"
    yield f"{run.machine}.  {packages}.  {run.seconds / 60:.1f} minutes; {tally(run.rows)}.\n"
    yield f"![Ratios to JAX](benchmarks/{run.name}-ratios.svg)\n"
    yield f"![The Jacobian of A x](benchmarks/{run.name}-matvec.svg)\n"
    yield "### For each metric\n"
    head = ("metric", "workloads", "median ratio", "best", "worst", "budgets met")
    yield markdown(head, summary(run.rows))
    unmet = [row for row in run.rows if verdict(row) in ("no", "explained")]
    if unmet:
        yield "### Budgets that are not met\n"
        yield markdown(HEAD, map(cells, unmet))
    why = {EXPLAINED[key] for row in unmet if (key := (row.workload, row.metric)) in EXPLAINED}
    yield from (f"Explained: {text}\n" for text in sorted(why))
    yield "### For each workload\n"
    yield markdown(HEAD, map(cells, run.rows))


def page(runs: Iterable[Run]) -> str:
    """The whole page."""
    shown_runs = [*runs]
    parts = [part for run in shown_runs for part in section(run)]
    complete = [run for run in shown_runs if {row.metric for row in run.rows} >= set(IN_RESULT)]
    return "\n".join(["# functrans beside JAX\n", *map(result, complete), METHOD, *parts])


# ---- the plots -----------------------------------------------------------------------------------


def plot(run: Run, folder: Path) -> None:
    """Two figures of a run, as SVG."""
    plt = import_module("matplotlib.pyplot")  # here, as only this needs it
    plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "functrans"})
    for name, draw, size in (("ratios", _ratios, (9, 7)), ("matvec", _matvec, (6, 4))):
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        draw(axes, run.rows)
        figure.savefig(folder / f"{run.name}-{name}.svg", metadata={"Date": None})
        plt.close(figure)


MARKS = {"yes": ("o", "#009E73"), "no": ("X", "#D55E00")}
"""The form tells the two apart as well, and the colors differ for all kinds of vision."""


def _ratios(axes: Any, rows: Sequence[Row]) -> None:
    """A point for each row in the line of its metric, on a logarithmic axis; a bar is a budget."""
    metrics = list(dict.fromkeys(row.metric for row in rows))
    for row in rows:
        y = metrics.index(row.metric)
        marker, color = MARKS.get(verdict(row), ("o", "#999999"))
        x = float(np.clip(row.ratio, 1e-4, 1e2))  # nothing in JAX, something here, is infinite
        axes.plot(x, y, marker, color=color, alpha=0.6, markersize=5)
        for budget in budgets_of(row):
            if budget.figure == RATIO:
                axes.plot(budget.at_most, y, "|", color="black", markersize=10, alpha=0.5)
    axes.axvline(1.0, color="gray", linewidth=0.8)
    axes.set(xscale="log", xlabel="functrans / JAX (to the left is better; a bar is a budget)")
    axes.set_yticks(range(len(metrics)), metrics, fontsize=8)
    axes.invert_yaxis()


def _matvec(axes: Any, rows: Sequence[Row]) -> None:
    """The time of the Jacobian of `f(x) = A x` for each number of rows, in both modes."""
    for mode, style in (("jacfwd", "-"), ("jacrev", "--")):
        found = [r for r in rows if r.workload.startswith("matvec-") and r.metric == f"run {mode}"]
        sizes = [int(row.workload.removeprefix("matvec-")) for row in found]
        for library, color in (("jax", "tab:orange"), ("functrans", "tab:blue")):
            times = [getattr(row, library) for row in found]
            axes.plot(sizes, times, style, marker="o", color=color, label=f"{library} {mode}")
    axes.set(xscale="log", yscale="log", xlabel="rows of A (100 columns)", ylabel="seconds")
    axes.legend(fontsize=8)
