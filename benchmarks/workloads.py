"""The workloads: `name -> a function, its data, and what is measured of it`.

Read next: `measure.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import adbench, fields, models, numerics, series, sparsity
from benchmarks.problem import Problem

OF_SCALARS = ("grad", "value_and_grad", "jvp", "hvp")
JACOBIANS = ("jacfwd", "jacrev")


@dataclass(frozen=True)
class Workload:
    """`make(**sizes)` is the problem, and `kinds` are the derivatives that are compiled and run."""

    name: str
    make: Callable[..., Problem]
    sizes: dict[str, Any]
    small: dict[str, Any] = field(default_factory=dict)  # what differs in a quick check
    kinds: tuple[str, ...] = OF_SCALARS
    has_calls: bool = False  # transforms of the jitted function are called
    has_strong_zeros: bool = False  # the gradient is run with strong zeros as well
    hands_over: bool = False  # the residuals between `vjp(jit(f))` and its pullback are counted
    is_eager: bool = False  # the gradient is computed without `jit`, too
    is_plain: bool = False  # the function takes `np`: other libraries can run it
    is_batched: bool = False  # the derivative is taken for each entry of a batch, by `jax.vmap`
    is_double: bool = False  # float64
    sparse: str = ""  # "jacobian" or "hessian": it is evaluated by `ft.sparse`, too
    is_large: bool = False  # the dense matrix has no place in memory
    compilations: int = 1  # at least so many times the gradient is compiled

    def problem(self, sizes: dict[str, Any]) -> Problem:
        """The problem with arrays of JAX, in the precision of the context."""
        made = self.make(**sizes)
        x, data = jax.tree.map(jnp.asarray, (made.x, made.data))
        return made._replace(x=x, data=data)


TRANSFORMER = {"d": 64, "heads": 4, "batch": 8, "time": 32}
SMALL_TRANSFORMER = {"d": 8, "heads": 2, "batch": 2, "time": 3}

# fmt: off
WORKLOADS = (
    Workload("scalar", numerics.scalar, {}, kinds=(*OF_SCALARS, "hessian"),
             has_calls=True, is_eager=True, is_plain=True),
    Workload("perceptron", models.perceptron, {"widths": (32, 64, 64, 10), "batch": 16},
             {"widths": (3, 4, 4, 2), "batch": 2},
             has_calls=True, is_eager=True, is_plain=True),
    Workload("perceptron-50", models.perceptron, {"widths": (64,) * 51, "batch": 32},
             {"widths": (3,) * 5, "batch": 2},
             is_eager=True, is_plain=True),
    Workload("network-gelu", models.network, {"width": 64, "layers": 4, "batch": 512},
             {"width": 3, "layers": 2, "batch": 2}, kinds=("grad",), hands_over=True),
    Workload("three-layers-scan", models.three_layers, {"width": 64, "batch": 64, "steps": 200},
             {"width": 3, "batch": 2, "steps": 3}, kinds=("grad", "hvp")),
    Workload("transformer-6", models.transformer,
             {"layers": 6, "scanned": False, **TRANSFORMER}, {"layers": 1, **SMALL_TRANSFORMER},
             has_strong_zeros=True, compilations=3),
    Workload("transformer-12", models.transformer,
             {"layers": 12, "scanned": False, **TRANSFORMER}, {"layers": 2, **SMALL_TRANSFORMER},
             kinds=("grad",)),
    Workload("transformer-12-scan", models.transformer,
             {"layers": 12, "scanned": True, **TRANSFORMER}, {"layers": 2, **SMALL_TRANSFORMER},
             kinds=("grad", "hvp"), has_strong_zeros=True),
    Workload("lstm", models.lstm, {"steps": 100, "batch": 16, "hidden": 128},
             {"steps": 3, "batch": 2, "hidden": 4}),
    Workload("convnet", models.convnet, {"batch": 16, "size": 28, "channels": (1, 16, 32)},
             {"batch": 2, "size": 8, "channels": (1, 2, 3)}),
    Workload("neural-ode", models.neural_ode,
             {"steps": 40, "batch": 16, "state": 16, "hidden": 64},
             {"steps": 3, "batch": 2, "state": 3, "hidden": 4}),
    Workload("sin-1000", numerics.chained_sin, {"length": 1000}, {"length": 5},
             kinds=("grad", "jvp"), is_plain=True),
    Workload("gaussian-process", numerics.gaussian_process, {"points": 200, "dimensions": 8},
             {"points": 6, "dimensions": 2}, kinds=(*OF_SCALARS, "hessian")),
    Workload("svd", numerics.svd, {"rows": 60, "columns": 40}, {"rows": 4, "columns": 3},
             is_plain=True),
    Workload("until-product", numerics.until, {"body": "product", "size": 64, "steps": 1000},
             {"size": 3, "steps": 50}, kinds=("grad",)),
    Workload("until-cheap", numerics.until, {"body": "cheap", "size": 64, "steps": 1000},
             {"size": 3, "steps": 50}, kinds=("grad",)),
    Workload("until-small", numerics.until, {"body": "cheap", "size": 2, "steps": 1000},
             {"steps": 50}, kinds=("grad",)),
    *(Workload(f"matvec-{m}", numerics.matrix_times_vector, {"m": m, "n": 100},
               {"m": m % 7, "n": 4}, kinds=JACOBIANS)
      for m in (1, 10, 100, 1000, 10000)),
    Workload("adbench-gmm", adbench.gaussian_mixture, {"d": 20, "k": 50, "n": 1000},
             {"d": 3, "k": 2, "n": 5}, is_plain=True, is_double=True),
    Workload("adbench-ba", adbench.bundle_adjustment,
             {"cameras": 49, "points": 7776, "observations": 31843},
             {"cameras": 2, "points": 3, "observations": 5},
             kinds=JACOBIANS, is_batched=True, is_double=True),
    Workload("adbench-lstm", adbench.lstm, {"layers": 2, "characters": 1024, "bits": 14},
             {"layers": 2, "characters": 4, "bits": 3}, is_double=True),
    Workload("adbench-hand", adbench.hand_tracking, {"vertices": 544, "correspondences": 100},
             {"vertices": 10, "correspondences": 4}, kinds=JACOBIANS, is_double=True),
    *(Workload(f"laplacian-{name}", fields.field,
               {"activation": name, "dimensions": 64, "width": 256, "layers": 4, "batch": 16},
               {"dimensions": 3, "width": 4, "layers": 2, "batch": 2}, kinds=("laplacian",))
      for name in ("tanh", "gelu", "softplus")),
    Workload("sparse-line", sparsity.line, {"n": 2000}, {"n": 9},
             kinds=("jacfwd",), sparse="jacobian"),
    Workload("sparse-chain", sparsity.chain, {"n": 2000}, {"n": 9},
             kinds=("hessian",), sparse="hessian"),
    Workload("sparse-rod", sparsity.rod, {"n": 2000}, {"n": 9},
             kinds=("hessian",), sparse="hessian"),
    Workload("sparse-bratu", sparsity.bratu, {"n": 256}, {"n": 4},
             kinds=("jvp",), sparse="jacobian", is_large=True),
    Workload("sparse-bratu-energy", sparsity.bratu_energy, {"n": 256}, {"n": 4},
             kinds=("hvp",), sparse="hessian", is_large=True),
    Workload("sparse-graph", sparsity.graph, {"nodes": 2000, "edges": 6000, "width": 4},
             {"nodes": 5, "edges": 7, "width": 2}, kinds=("jvp",), sparse="jacobian"),
    Workload("series-perceptron", series.perceptron, {"width": 64, "layers": 3, "batch": 64},
             {"width": 3, "layers": 1, "batch": 2}, kinds=("jet", "derivatives")),
    Workload("series-scan", series.recurrent, {"width": 32, "steps": 20, "batch": 16},
             {"width": 3, "steps": 2, "batch": 2}, kinds=("derivatives",)),
)
# fmt: on


def chosen(prefix: str) -> list[Workload]:
    """The workloads of this name, or whose names begin with it."""
    exact = [w for w in WORKLOADS if w.name == prefix]
    found = exact or [w for w in WORKLOADS if w.name.startswith(prefix)]
    if not found:
        raise SystemExit(
            f"no workload {prefix!r}; there are {', '.join(w.name for w in WORKLOADS)}"
        )
    return found
