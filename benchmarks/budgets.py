"""The budgets: for each metric an upper bound for a figure of a row.

A figure is the ratio to JAX, functrans's own value (where that is a ratio already: the cost of a
gradient to that of its function), or the ratio to another library.  If several budgets cover one
figure, the first holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from benchmarks.measure import Row

RATIO, OWN, AUTOGRAD, EQUINOX = "ratio", "own", "Autograd", "Equinox"


@dataclass(frozen=True)
class Budget:
    """`figure` is to be at most `at_most` in the rows that match."""

    metric: str
    at_most: float
    workload: str = "*"
    figure: str = RATIO
    least_equations: int = 0  # functions with fewer equations have no such budget

    def covers(self, row: Row) -> bool:
        """Whether the budget applies to a row."""
        return (
            fnmatchcase(row.metric, self.metric)
            and fnmatchcase(row.workload, self.workload)
            and row.equations >= self.least_equations
            and self.value(row) is not None
        )

    def value(self, row: Row) -> float | None:
        """The figure of a row, if the row has it."""
        if self.figure in (AUTOGRAD, EQUINOX):
            return row.functrans / row.others[self.figure] if self.figure in row.others else None
        return row.functrans if self.figure == OWN else row.ratio

    def is_met(self, row: Row) -> bool:
        """Whether a row keeps the budget."""
        value = self.value(row)
        return value is not None and value <= self.at_most

    def __str__(self) -> str:
        # A small fraction is easier to read as 1/70 than as 0.0143.
        at_most = f"1/{1 / self.at_most:.0f}" if self.at_most < 0.1 else f"{self.at_most:g}"
        return at_most if self.figure == RATIO else f"{at_most} ({self.figure})"


BUDGETS = (
    # Compiled programs.
    Budget("run grad", 0.85, workload="transformer-6"),
    Budget("run grad", 0.6, workload="three-layers-scan"),
    Budget("run grad", 0.95, workload="transformer-12-scan"),
    Budget("run grad", 0.6, workload="lstm"),
    Budget("run grad", 0.4, workload="adbench-gmm"),
    Budget("run jacfwd", 0.4, workload="matvec-10000"),  # the mode that JAX does well
    Budget("run jacrev", 1 / 100, workload="matvec-10000"),
    Budget("run laplacian", 0.6),
    Budget("run laplacian vs by hand", 1.1),
    Budget("run jet", 0.7),
    Budget("run derivatives", 0.2, workload="series-scan"),
    Budget("run derivatives", 1.1),
    Budget("run grad", 1.0, workload="until-product"),  # beside a scan that stores every step
    Budget("run grad", 1.0, workload="until-cheap"),
    Budget("run grad", 2.5, workload="until-small"),
    Budget("run grad", 0.5, workload="until-*", figure=EQUINOX),
    Budget("memory grad", 70 * 64 * 64 * 4, workload="until-product", figure=OWN),  # 70 carries
    Budget("memory grad", 70 * 64 * 64 * 4, workload="until-cheap", figure=OWN),
    Budget("run *", 1.03),
    Budget("memory grad", 0.35, workload="three-layers-scan"),
    Budget("memory grad", 0.45, workload="transformer-12-scan"),
    Budget("memory grad", 0.8, workload="lstm"),
    Budget("memory *", 1.0),
    Budget("operations grad / f", 4.0, figure=OWN),  # the cheap gradient
    Budget("operations derivatives", 1.1),
    Budget("operations *", 1.0),
    # On the way there.
    Budget("compile grad", 0.75, workload="transformer-6"),
    Budget("trace grad / f", 1.6, figure=OWN, least_equations=50),
    Budget("trace grad", 0.28, least_equations=50),
    Budget("trace+lower grad", 0.5, least_equations=50),
    # Sparse Jacobians and Hessians; "/ f" has the time of the function in JAX's place.
    Budget("sparse / dense jacobian", 1 / 8),
    Budget("sparse / dense hessian", 1 / 80),
    Budget("sparse * / f", 2.5, workload="sparse-bratu"),
    Budget("sparse * / f", 2.5, workload="sparse-bratu-energy"),
    Budget("sparse * vs asdex", 1.0),
    Budget("find and color * vs asdex", 1.0),
    Budget("find and color *", 2.0, figure=OWN),
    # Calls.
    Budget("strong zeros / grad", 1.1, figure=OWN),
    Budget("call * vs * of jit", 1 / 70, workload="scalar"),
    Budget("call * vs * of jit", 1 / 15, workload="perceptron"),
    Budget("call * vs jit of *", 1.1),
    Budget("residuals of vjp of jit", 0.5),
    Budget("vjp of jit", 0.4),
    Budget("pullback of jit", 0.4),
    Budget("eager grad", 0.25),
    Budget("eager grad", 1.0, figure=AUTOGRAD),
)

# Why a budget that is not met says nothing.
LAPACK = "XLA does not count the operations of LAPACK; nearly all others belong to the gradient."
FLOOR = "XLA writes this dense Hessian in one pass: `f` itself takes more than 1/80 of its time."
THIRD = "We take three products a step, one to compute the carry again; the stored scan takes two."
BY_HAND = "The same written by hand takes as long: see `run laplacian vs by hand`."
EXPLAINED = {
    ("svd", "operations grad / f"): LAPACK,
    ("gaussian-process", "operations grad / f"): LAPACK,
    ("sparse-chain", "sparse / dense hessian"): FLOOR,
    ("until-product", "run grad"): THIRD,
    **{(f"laplacian-{name}", "run laplacian"): BY_HAND for name in ("tanh", "gelu", "softplus")},
}


def budgets_of(row: Row) -> list[Budget]:
    """Those that hold for a row, one for each figure."""
    found: dict[str, Budget] = {}
    for budget in BUDGETS:
        if budget.covers(row) and (row.metric, budget.figure) != ("operations grad / f", RATIO):
            found.setdefault(budget.figure, budget)
    return list(found.values())
