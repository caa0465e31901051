"""The benchmarks measure what they say: the same derivatives in both libraries, budgets, a page.

No time is asserted here.
"""

from __future__ import annotations

import fnmatch
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from repeated import repeated_after

import functrans as ft
from benchmarks import budgets, fields, measure, report
from benchmarks.adbench import gaussian_mixture
from benchmarks.measure import Row
from benchmarks.workloads import WORKLOADS, chosen

pytestmark = pytest.mark.usefixtures("quick_compilation")


def close(ours, theirs, is_double: bool) -> None:
    """Both agree, up to the rounding of sums in the largest entry."""
    tolerance = 1e-9 if is_double else 1e-4
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        scale = np.max(np.abs(b)) + 1e-3
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


# At a small size the stack of 12 layers is that of 6.
@pytest.mark.parametrize(
    "workload",
    repeated_after(12, [w for w in WORKLOADS if w.name != "transformer-12"]),
    ids=lambda w: w.name,
)
def test_derivatives_are_those_of_jax(workload):
    """The first kind that is measured, at a small size."""
    with jax.enable_x64(workload.is_double):
        subject = measure.Subject(workload, workload.sizes | workload.small)
        kind = workload.kinds[0]
        args = measure.arguments(kind, subject.problem)
        ours, theirs = (subject.jitted(ad, kind)(*args) for ad in (ft, jax))
        close(ours, theirs, workload.is_double)


@pytest.mark.parametrize(
    ("name", "kind"), [("perceptron", "jvp"), ("perceptron", "hvp"), ("scalar", "hessian")]
)
def test_other_kinds(name, kind):
    """Those along a direction are functions of the point, the direction and the data."""
    workload = chosen(name)[0]
    subject = measure.Subject(workload, workload.small)
    args = measure.arguments(kind, subject.problem)
    close(subject.jitted(ft, kind)(*args), subject.jitted(jax, kind)(*args), False)


@pytest.mark.parametrize("workload", [w for w in WORKLOADS if w.is_plain], ids=lambda w: w.name)
def test_plain_functions_take_another_module_of_operations(workload):
    """Their value is the same with NumPy's, which is what HIPS Autograd wraps."""
    with jax.enable_x64(workload.is_double):
        fun, x, data, _ = workload.problem(workload.sizes | workload.small)
        args = jax.tree.map(np.asarray, (x, *data))
        close(fun(*args, np=np), jax.jit(fun)(x, *data), workload.is_double)


def test_gaussian_mixture_is_a_log_density():
    """With one component in two dimensions it is what one writes down by hand."""
    with jax.enable_x64(True):
        fun, params, (x,), _ = gaussian_mixture(d=2, k=1, n=4)
        logs, (below,) = params["logs"][0], params["below"][0]
        factor = np.array([[np.exp(logs[0]), 0.0], [below, np.exp(logs[1])]])
        squares = np.sum(((x - params["means"]) @ factor.T) ** 2, axis=1)
        normal = -0.5 * squares + logs.sum() - np.log(2 * np.pi)
        # Wishart's density with d + 1 = 3 degrees of freedom; ADBench subtracts its logarithm.
        gamma_function = 0.5 * np.log(np.pi) + math.lgamma(1.5) + math.lgamma(1.0)
        prior = 0.5 * np.sum(factor**2) + 3 * 2 * 0.5 * np.log(2.0) + gamma_function
        np.testing.assert_allclose(fun(params, x), normal.sum() + prior, rtol=1e-12)


@pytest.mark.parametrize("workload", chosen("laplacian"), ids=lambda w: w.name)
def test_laplacians_of_others(workload):
    """What is written by hand is the same."""
    problem = workload.problem(workload.sizes | workload.small)
    args = problem.x, *problem.data
    ours = measure.derivative(ft, "laplacian", problem.fun)(*args)
    for other in fields.others(problem).values():
        close(other(*args), ours, False)


def test_operations_count_every_pass_of_a_loop():
    """XLA counts the body once."""

    def f(x, length):
        return jax.lax.scan(lambda x, _: (jnp.sin(x) * x, None), x, None, length=length)[0]

    def count(length):
        traced = jax.jit(f, static_argnums=1).trace(jnp.ones(10), length)
        return measure.operations(traced.jaxpr, traced.lower().compile())

    assert count(8) - count(4) == pytest.approx(4 * 20, abs=8)


def test_a_round_has_a_ratio_of_its_own():
    """One slow round of both changes nothing."""
    times = iter([1.0, 2.0, 200.0, 100.0, 1.0, 2.0])  # the second round begins with functrans
    rounds = measure.alternate([lambda: [next(times)]] * 2, seconds=0.0, least=3)
    assert measure.medians(rounds) == [(1.0, 2.0, 2.0)]


def test_nothing_beside_nothing():
    """A program that needs no memory is not divided by."""
    assert measure.pair(0.0, 0.0).ratio == 1.0
    assert measure.pair(0.0, 4.0).ratio == math.inf


def row(workload="perceptron", metric="run grad", ratio=1.0, equations=60, others=None) -> Row:
    return Row(workload, metric, "s", 1e-3, ratio * 1e-3, ratio, equations, others or {})


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (row(ratio=1.03), "yes"),
        (row(ratio=1.04), "no"),
        (row("lstm", ratio=0.9), "no"),  # the LSTM has a budget of its own
        (row("lstm", "run hvp", ratio=0.9), "yes"),
        (row(metric="trace grad", ratio=0.3), "no"),
        (row(metric="trace grad", ratio=0.3, equations=49), ""),  # too small to ask
        (row("scalar", "call grad vs grad of jit", ratio=0.02), "no"),
        (row("perceptron", "call grad vs grad of jit", ratio=0.02), "yes"),
        (row("perceptron", "call grad vs jit of grad", ratio=1.2), "no"),
        (row(metric="eager grad", ratio=0.2, others={"Autograd": 1e-4}), "no"),
        (row(metric="eager grad", ratio=0.2, others={"Autograd": 1e-2}), "yes"),
        (row("svd", "operations grad / f")._replace(functrans=200.0), "explained"),
        (row("scalar", "operations grad / f")._replace(functrans=3.9, ratio=9.0), "yes"),
        (row(metric="lower grad", ratio=2.0), ""),
        (row("sparse-bratu", "sparse jacobian / f", ratio=2.6), "no"),
        (row("sparse-rod", "sparse / dense hessian", ratio=0.02), "no"),
        (row("sparse-chain", "sparse / dense hessian", ratio=0.02), "explained"),
        (row("sparse-bratu", "sparse jacobian vs asdex", ratio=1.1), "no"),
        (row("laplacian-tanh", "run laplacian", ratio=0.61), "explained"),
        (row("laplacian-tanh", "run laplacian vs by hand", ratio=1.11), "no"),
    ],
)
def test_verdicts(found, verdict):
    assert report.verdict(found) == verdict


def test_what_is_measured_of_a_sparse_jacobian():
    workload = chosen("sparse-line")[0]
    rows = [*measure.sparse(measure.Subject(workload, workload.small))]
    metrics = ["find and color jacobian", "sparse / dense jacobian", "sparse jacobian / f"]
    assert [found.metric for found in rows if "asdex" not in found.metric] == metrics
    assert all(found.functrans > 0 for found in rows)


def test_every_budget_is_for_something():
    """Its metric is one that is measured, its workload is in the table."""
    names = {workload.name for workload in WORKLOADS}
    assert all(fnmatch.filter(names, b.workload) for b in budgets.BUDGETS)
    assert {workload for workload, _ in budgets.EXPLAINED} <= names


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1.5e-5, "s", "15 us"), (2e-8, "s", "0.02 us"), (2.0, "s", "2 s"), (0.0, "B", "0 B"),
     (2048.0, "B", "2 KiB"), (3.25e8, "", "325 M"), (2.5, "", "2.5")],
)  # fmt: skip
def test_quantities_as_they_are_shown(value, unit, text):
    assert report.shown(value, unit) == text


def test_page_has_every_run(tmp_path):
    """What was saved comes back, and each run has its tables."""
    rows = [row(), row("scalar", "memory grad", ratio=math.inf), row("lstm", ratio=0.9)]
    run = report.finished(rows, seconds=90.0)
    run.save(tmp_path)
    other = report.Run("2026-01-01", "a machine", "gpu", {"jax": "0.0"}, 60.0, rows[:1])
    other.save(tmp_path)
    assert report.load(tmp_path) == [run, other]
    text = report.page(report.load(tmp_path))
    assert f"## JAX {jax.__version__} on CPU" in text
    assert "## JAX 0.0 on GPU, 2026-01-01" in text
    assert "1 of 3 rows with a budget meet it" in text
    assert "| lstm | run grad | 1 ms | 900 us | 0.9 | 0.6 | no |  |" in text


def test_names_of_workloads():
    """One name is that workload; the beginning of some is all of them."""
    assert [w.name for w in chosen("perceptron")] == ["perceptron"]
    assert {w.name for w in chosen("matvec")} == {f"matvec-{10**k}" for k in range(5)}
    with pytest.raises(SystemExit, match="no workload 'nothing'; there are scalar"):
        chosen("nothing")
