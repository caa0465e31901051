"""How a workload is measured: `measure : Workload -> rows`, one row for each metric.

JAX and functrans take turns, JAX first in one round and functrans in the next, and

    ratio = median over the rounds of  (functrans's time / JAX's time in the same round)

so that what else the machine does falls on both.  The times shown are medians too.  Results are
waited for, the garbage collector is off, and whatever is traced, lowered or compiled is a function
that no cache has seen.  Operations and memory are counted, not timed.

Read next: `budgets.py`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

import functrans as ft
from benchmarks import fields, series
from benchmarks.others import gradients, imported
from benchmarks.problem import Problem
from benchmarks.workloads import Workload

Job = Callable[[], Sequence[float]]  # does something once, and says what its parts took

SECONDS, ROUNDS = 0.7, 9  # for which one comparison takes turns, and how often at the least
SAMPLE = 1e-3  # a sample of calls lasts at least so long: a single one may be over in 5 us


# What is compiled to be counted only: as simple as else, translated to slow machine code.
QUICK: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}


class Row(NamedTuple):
    """One line of the table: seconds, bytes or a count, and the ratio of functrans's to JAX's."""

    workload: str
    metric: str
    unit: str
    jax: float
    functrans: float
    ratio: float
    equations: int  # of the function, as JAX traces it
    others: dict[str, float]  # the same of other libraries, by name


class Pair(NamedTuple):
    """The same quantity of JAX and functrans."""

    jax: float
    functrans: float
    ratio: float


# ---- taking turns --------------------------------------------------------------------------------


def alternate(
    jobs: Sequence[Job], seconds: float = SECONDS, least: int = ROUNDS
) -> list[list[Pair]]:
    """Let two jobs take turns for a while; for each round and part what the two took."""
    rounds = []
    deadline = time.perf_counter() + seconds
    with uncollected():
        while len(rounds) < least or time.perf_counter() < deadline:
            turns = range(2) if len(rounds) % 2 == 0 else range(1, -1, -1)
            took = {i: jobs[i]() for i in turns}
            rounds.append([pair(a, b) for a, b in zip(took[0], took[1], strict=True)])
    return rounds


def pair(a: float, b: float) -> Pair:
    """Two counts, or times of one round; nothing beside nothing is 1."""
    return Pair(a, b, b / a if a else (1.0 if not b else math.inf))


def medians(rounds: Sequence[Sequence[Pair]]) -> list[Pair]:
    """For each part the median of each figure."""
    return [
        Pair(*(median(x) for x in zip(*part, strict=True))) for part in zip(*rounds, strict=True)
    ]


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected meanwhile, but before."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def calls(fun: Callable, *args: Any) -> Job:
    """The time of one call, its result waited for, from as many as a sample needs."""

    def many(n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            jax.block_until_ready(fun(*args))
        return (time.perf_counter() - start) / n

    many(1)  # compiles, fills the caches
    n = max(1, int(SAMPLE / many(1)))
    return lambda: [many(n)]


# ---- derivatives ---------------------------------------------------------------------------------


def fresh(fun: Callable) -> Callable:
    """The same function, unknown to every cache."""
    return lambda *args: fun(*args)


def derivative(ad: Any, kind: str, fun: Callable) -> Callable:
    """The transform `kind` of either library; one along a direction takes `x, v, *data`."""
    if kind in ("jet", "derivatives"):
        return getattr(series, kind)(ad, fun)
    if kind == "jvp":
        return lambda x, v, *data: ad.jvp(lambda x: fun(x, *data), (x,), (v,))
    if kind == "hvp":
        return lambda x, v, *data: hvp(ad, lambda x: fun(x, *data), x, v)
    if kind == "laplacian":
        return fields.at_each(ft.laplacian if ad is ft else fields.nested, fun)
    return getattr(ad, kind)(fun)


def hvp(ad: Any, fun: Callable, x: Any, v: Any) -> Any:
    """The Hessian times a vector, as each library has it: JAX's documentation writes it so."""
    return ft.hvp(fun, x, v) if ad is ft else jax.jvp(jax.grad(fun), (x,), (v,))[1]


def arguments(kind: str, problem: Problem) -> tuple:
    """Those of the derivative; the direction is one in every coordinate."""
    along = kind in ("jvp", "hvp", "jet", "derivatives")
    direction = (jax.tree.map(jnp.ones_like, problem.x),) if along else ()
    return (problem.x, *direction, *problem.data)


# ---- what is counted -----------------------------------------------------------------------------


def inner(equation: Any) -> list:
    """The jaxprs that an equation carries."""
    leaves = jax.tree.leaves(list(equation.params.values()))
    return [leaf for leaf in leaves if hasattr(leaf, "eqns")]


def equations(jaxpr: Any) -> int:
    """How many there are, those of loops and calls included."""
    return sum(sum(map(equations, inner(e))) or 1 for e in jaxpr.eqns)


def scans(jaxpr: Any) -> Iterator[Any]:
    """The loops of a program that are in no other loop."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation
        else:
            yield from (loop for program in inner(equation) for loop in scans(program))


def operations(jaxpr: Any, compiled: Any = None) -> float:
    """The operations of a compiled program, transcendental functions among them.

    XLA counts the body of a loop once; the other passes are added, from the body compiled alone.
    """
    if compiled is None:
        types = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in jaxpr.in_avals]
        compiled = jax.jit(jaxpr_as_fun(jaxpr)).lower(*types).compile(compiler_options=QUICK)
    costs = compiled.cost_analysis() or {}
    costs = costs[0] if isinstance(costs, list) else costs  # one for each device, in some versions
    once = costs.get("flops", 0.0) + costs.get("transcendentals", 0.0)
    loops = ((e.params["length"] - 1, e.params["jaxpr"]) for e in scans(jaxpr))
    return once + sum(passes * operations(body) for passes, body in loops if passes)


# ---- the steps -----------------------------------------------------------------------------------


class Subject:
    """A workload at work: its function and data, and the rows that say something of it."""

    def __init__(self, workload: Workload, sizes: dict[str, Any]):
        self.workload, self.problem = workload, workload.problem(sizes)
        self.f = self.jitted(jax, "f").trace(self.problem.x, *self.problem.data)
        self.equations = equations(self.f.jaxpr)

    def jitted(self, ad: Any, kind: str) -> Any:
        """`jit` of the derivative of a function that is new; of the function itself, for `f`.

        JAX differentiates another function if it cannot do this one.
        """
        fun, rivals = self.problem.fun, self.problem.rivals
        fun = fresh(rivals.get("JAX", fun) if ad is jax else fun)
        fun = fun if kind == "f" else derivative(ad, kind, fun)
        return ad.jit(jax.vmap(fun) if self.workload.is_batched else fun)

    def row(self, metric: str, unit: str, figures: Pair, **others: float) -> Row:
        return Row(self.workload.name, metric, unit, *figures, self.equations, others)

    @functools.cached_property
    def others(self) -> dict[str, float]:
        """The time of one gradient by each other library that is installed and can do it."""
        if not self.workload.is_plain and not self.problem.rivals:
            return {}
        jobs = {name: calls(call) for name, call in gradients(self.problem).items()}
        with uncollected():
            return {name: median(job()[0] for _ in range(5)) for name, job in jobs.items()}


def run(subject: Subject, kind: str) -> Iterator[Row]:
    """Compile a derivative, count what it does, and call it."""
    args = arguments(kind, subject.problem)
    programs: dict[Any, Any] = {}

    def compilation(ad):
        def compile() -> list[float]:
            traced = subject.jitted(ad, kind).trace(*args)
            lowered = traced.lower()
            start = time.perf_counter()
            programs[ad] = traced.jaxpr, lowered.compile()
            return [time.perf_counter() - start]

        return compile

    repeated = kind == "grad"  # of the others the compilation is not a figure
    seconds, least = (1.0, subject.workload.compilations) if repeated else (0.0, 1)
    rounds = alternate([compilation(jax), compilation(ft)], seconds, least)
    jaxprs, compiled = zip(programs[jax], programs[ft], strict=True)
    took = alternate([calls(program, *args) for program in compiled])
    yield subject.row(f"run {kind}", "s", *medians(took), **(subject.others if repeated else {}))
    if repeated:
        yield subject.row(f"compile {kind}", "s", *medians(rounds))
    if kind == "laplacian":
        for name, other in fields.others(subject.problem).items():
            jobs = [calls(jax.jit(other), *args), calls(compiled[1], *args)]
            yield subject.row(f"run laplacian vs {name}", "s", *medians(alternate(jobs)))
    memory = [program.memory_analysis().temp_size_in_bytes for program in compiled]
    yield subject.row(f"memory {kind}", "B", pair(*memory))
    if subject.problem.rivals:  # XLA does not know how many steps a loop without end takes
        return
    counts = [operations(*both) for both in zip(jaxprs, compiled, strict=True)]
    yield subject.row(f"operations {kind}", "", pair(*counts))
    if kind == "grad":
        of_f = operations(subject.f.jaxpr, subject.f.lower().compile(compiler_options=QUICK))
        yield subject.row("operations grad / f", "", pair(*(n / of_f for n in counts)))


def staging(subject: Subject) -> Iterator[Row]:
    """Trace the gradient and lower it, beside the function alone."""

    def job(ad):
        def stage() -> list[float]:
            gradient, f = subject.jitted(ad, "grad"), subject.jitted(ad, "f")
            start = time.perf_counter()
            traced = gradient.trace(subject.problem.x, *subject.problem.data)
            traced_at = time.perf_counter()
            traced.lower()
            lowered_at = time.perf_counter()
            f.trace(subject.problem.x, *subject.problem.data)
            trace, alone = traced_at - start, time.perf_counter() - lowered_at
            return [trace, lowered_at - traced_at, lowered_at - start, trace / alone]

        return stage

    jobs = [job(jax), job(ft)]
    for warm_up in jobs:
        warm_up()
    parts = medians(alternate(jobs, 2 * SECONDS))
    for metric, unit, part in zip(STAGES, ("s", "s", "s", ""), parts, strict=True):
        yield subject.row(metric, unit, part)


STAGES = ("trace grad", "lower grad", "trace+lower grad", "trace grad / f")


def jitted_calls(subject: Subject) -> Iterator[Row]:
    """Call transforms of a jitted function: beside JAX's of one, and beside JAX's `jit` of them."""
    problem, x = subject.problem, subject.problem.x
    ones = jax.tree.map(jnp.ones_like, x)

    def g(x):
        return problem.fun(x, *problem.data)

    def transform(ad, kind, fun):
        return partial(hvp, ad, fun) if kind == "hvp" else getattr(ad, kind)(fun)

    for kind in ("grad", "value_and_grad", "hvp"):
        args = (x, ones) if kind == "hvp" else (x,)
        ours = calls(transform(ft, kind, ft.jit(g)), *args)
        outside = calls(transform(jax, kind, jax.jit(g)), *args)
        inside = calls(jax.jit(transform(jax, kind, g)), *args)
        for theirs, name in ((outside, f"{kind} of jit"), (inside, f"jit of {kind}")):
            took = medians(alternate([theirs, ours]))
            yield subject.row(f"call {kind} vs {name}", "s", *took)
    jobs = [calls(partial(ad.vjp, ad.jit(g)), x) for ad in (jax, ft)]
    yield subject.row("vjp of jit", "s", *medians(alternate(jobs)))
    one = jnp.ones_like(g(x))
    jobs = [calls(ad.vjp(ad.jit(g), x)[1], one) for ad in (jax, ft)]
    yield subject.row("pullback of jit", "s", *medians(alternate(jobs)))


def residuals(subject: Subject) -> Iterator[Row]:
    """What a compiled function hands to its pullback."""
    fun, args = subject.problem.fun, (subject.problem.x, *subject.problem.data)
    kept = [jax.tree.leaves(ad.vjp(ad.jit(fun), *args)[1]) for ad in (jax, ft)]
    figures = pair(*(float(sum(leaf.nbytes for leaf in leaves)) for leaves in kept))
    yield subject.row("residuals of vjp of jit", "B", figures)


def eager(subject: Subject) -> Iterator[Row]:
    """Differentiate a function that nothing compiles, one operation after the other."""
    fun, args = subject.problem.fun, (subject.problem.x, *subject.problem.data)
    took = alternate([calls(ad.grad(fun), *args) for ad in (jax, ft)], 2 * SECONDS)
    yield subject.row("eager grad", "s", *medians(took), **subject.others)


def sparse(subject: Subject) -> Iterator[Row]:
    """A sparse Jacobian or Hessian: to find and color its pattern, and to evaluate it, beside the
    dense one, beside the function, and beside what asdex makes of it."""
    workload, problem = subject.workload, subject.problem
    kind = workload.sparse
    fun, x, data = problem.fun, problem.x, problem.data

    def f(x):
        return fun(x, *data)

    evaluate: dict[str, Any] = {}

    def finding(name: str, find: Callable) -> Job:
        def job() -> list[float]:
            start = time.perf_counter()
            evaluate[name] = find(fresh(f))
            return [time.perf_counter() - start]

        job()  # what is compiled for any function is compiled
        return job

    ours = finding("functrans", lambda f: getattr(ft.sparse, kind)(ft.jit(f), x))
    times = medians([[pair(0.0, ours()[0])] for _ in range(3)])
    yield subject.row(f"find and color {kind}", "s", times[0]._replace(ratio=0.0))
    if asdex := imported("asdex"):
        theirs = finding("asdex", lambda f: jax.jit(getattr(asdex, kind)(f, x)))
        times = medians(alternate([theirs, ours], 0.0, 3))
        yield subject.row(f"find and color {kind} vs asdex", "s", *times)
    jobs = {name: calls(function, x) for name, function in evaluate.items()}
    if not workload.is_large:
        jobs["dense"] = calls(jax.jit(getattr(jax, DENSE[kind])(f)), x)
    jobs["f"] = calls(jax.jit(f), x)
    mine = jobs.pop("functrans")
    for name, job in jobs.items():
        metric = {"dense": f"sparse / dense {kind}", "f": f"sparse {kind} / f"}
        times = medians(alternate([job, mine]))
        yield subject.row(metric.get(name, f"sparse {kind} vs {name}"), "s", *times)


DENSE = {"jacobian": "jacfwd", "hessian": "hessian"}


def strong_zeros(subject: Subject) -> Iterator[Row]:
    """Run the gradient with strong zeros and without, which JAX cannot."""
    args, programs = arguments("grad", subject.problem), []
    for on in (False, True):
        with ft.strong_zeros(on):
            programs.append(subject.jitted(ft, "grad").trace(*args).lower().compile())
    ((_, _, ratio),) = medians(alternate([calls(program, *args) for program in programs]))
    yield subject.row("strong zeros / grad", "", pair(1.0, ratio))


def steps(workload: Workload) -> dict[str, Callable[[Subject], Iterator[Row]]]:
    """What is measured of a workload, by name."""
    found: dict[str, Callable] = {kind: partial(run, kind=kind) for kind in workload.kinds}
    if "grad" in workload.kinds:
        found["trace and lower"] = staging
    if workload.has_calls:
        found["calls"] = jitted_calls
    if workload.has_strong_zeros:
        found["strong zeros"] = strong_zeros
    if workload.hands_over:
        found["residuals"] = residuals
    if workload.is_eager:
        found["eager"] = eager
    if workload.sparse:
        found["sparse"] = sparse
    return found


def measure(
    workload: Workload, begin: Callable[[str], object], sizes: dict[str, Any] | None = None
) -> list[Row]:
    """The rows of a workload; `begin` hears of each step before it is taken."""
    with jax.enable_x64(workload.is_double):
        subject = Subject(workload, workload.sizes if sizes is None else sizes)
        rows = []
        for name, step in steps(workload).items():
            begin(name)
            rows += step(subject)
    return rows
