"""Taylor mode through every rule: the table in `rule_cases/`, to order 8.

As in `test_taylor.py`, one first derivative of a jet tells whether all of its orders are right. The
programs run equation by equation: so what is compiled is shared by all rows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal, jaxprs_in_params
from rule_cases import TAYLOR, Case, cases_of_series

import functrans as ft
from functrans import extend
from functrans import jaxpr as jx
from functrans.control_flow.scan import Loop
from functrans.taylor.laplacian import acts_on_elements

pytestmark = pytest.mark.usefixtures("float64")


def rows() -> Iterator[Any]:
    """What follows from a rule of both versions of JAX is the same in both."""
    for case in cases_of_series():
        marks = [] if case.newer else [pytest.mark.repeated]
        yield pytest.param(case, id="-".join(case.primitives), marks=marks)


def direction(rng: Any, x: Any) -> Any:
    """Numbers of the type of an array; an integer has none."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return None
    return jnp.asarray(rng.uniform(-1, 1, x.shape), x.dtype)


NOT_EAGER = {"shard_map", "relayout"}
"""The first needs its mesh; JAX evaluates the second in compiled programs alone."""


def step_by_step(program: ClosedJaxpr, *inputs: Any) -> list:
    """The results of a program, equation by equation, also in the steps of a `scan`: XLA takes half
    a minute for a body of ten thousand equations, and other rows have compiled each of them."""
    known = jx.environment(program, inputs)

    def read(atoms: Sequence) -> list:
        return [a.val if isinstance(a, Literal) else known[a] for a in atoms]

    for equation in program.jaxpr.eqns:
        xs = read(equation.invars)
        is_scan = equation.primitive.name == "scan"
        outs = scanned(Loop.of(equation.params), xs) if is_scan else extend.bind(equation, xs)
        known.update(zip(equation.outvars, outs, strict=True))
    return read(program.jaxpr.outvars)


def scanned(loop: Loop, inputs: list) -> list:
    consts, carry, xs = loop.parts(inputs)

    def step(c, x):
        outs = step_by_step(loop.program, *consts, *c, *x)
        return outs[: loop.carry], outs[loop.carry :]

    with jax.disable_jit():
        carry, ys = lax.scan(step, carry, xs, **loop.options)
    return [*carry, *ys]


@pytest.mark.parametrize("case", list(rows()))
def test_each_order_is_the_derivative_of_the_one_before(case: Case) -> None:
    args, rng = case.inputs(np.float64), np.random.default_rng(1)
    dots = jax.tree.map(lambda x: direction(rng, x), args)
    leaves, tree = jax.tree.flatten(args)
    given = tree.flatten_up_to(dots)
    moving = [dot is not None for dot in given]
    start = [x for x, moves in zip(leaves, moving, strict=True) if moves]
    along = [dot for dot in given if dot is not None]

    def columns(*xs):
        rest = iter(xs)
        full = [next(rest) if moves else x for x, moves in zip(leaves, moving, strict=True)]
        series = [[] if dot is None else [dot] for dot in given]
        unflatten = tree.unflatten
        out, rows = ft.jet(case.fun, unflatten(full), unflatten(series), order=TAYLOR)
        outs, out_tree = jax.tree.flatten(out)
        pairs = zip(outs, out_tree.flatten_up_to(rows), strict=True)
        return [[y, *ys] for y, ys in pairs if jnp.issubdtype(jnp.result_type(y), jnp.inexact)]

    def pushed(*xs):
        return ft.jvp(columns, xs, tuple(along))

    program, shapes = ft.make_jaxpr(pushed, return_shape=True)(*start)
    run = functools.partial(step_by_step, program)
    if not NOT_EAGER.isdisjoint(e.primitive.name for e in program.jaxpr.eqns):
        run = jax.jit(run)
    outs = run(*start)
    jets, tangents = jax.tree.unflatten(jax.tree.structure(shapes), outs)
    for jet, dot in zip(jets, tangents, strict=True):
        scale = np.max(np.abs(jet[0]), initial=0.0)
        for k in range(1, TAYLOR + 1):
            scale = np.max(np.abs(jet[k]), initial=scale)
            want = np.asarray(dot[k - 1]) / k
            np.testing.assert_allclose(jet[k], want, rtol=1e-12, atol=1e-12 * scale, err_msg=f"{k}")


# ---- how the cost grows with the order -----------------------------------------------------------

# Their slopes are families of functions, and no equation closes them: that of x^p in x, as p may be
# a whole number, with which the recurrence of x^p would cancel; and that of zeta in both arguments.
CUBIC = {("pow", (True, False)), ("zeta", (True, True))}


def elementwise_rows() -> Iterator[Any]:
    """Each with those of its inputs that move: all together, and each by itself."""
    for case in cases_of_series():
        if not case.newer and (inexact := acting_on_elements(case)):
            moving = [inexact, *([i] for i in inexact if len(inexact) > 1)]
            for which in moving:
                name = "-".join([*case.primitives, *map(str, which)])
                yield pytest.param(case, which, id=name, marks=pytest.mark.repeated)


def acting_on_elements(case: Case) -> list[int]:
    """Which inputs may move; none if some operation does not act on each element by itself."""
    with jax.enable_x64(True):
        args = case.inputs(np.float64)
        if not all(isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, np.number) for x in args):
            return []
        equations = extend.staged(case.fun, *args).program.jaxpr.eqns
    if not all(acts_on_elements(e, [False] * len(e.invars)) for e in equations):
        return []
    return [i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, np.inexact)]


def operations(program: Any) -> int:
    inner = [p for e in program.eqns for p in jaxprs_in_params(e.params)]
    return len(program.eqns) + sum(operations(getattr(p, "jaxpr", p)) for p in inner)


@pytest.mark.parametrize(("case", "which"), list(elementwise_rows()))
def test_growth(case: Case, which: Sequence[int]) -> None:
    """At most quadratic, along a curve all of whose coefficients differ from zero."""
    args = case.inputs(np.float64)

    def count(order):
        series = [[np.ones_like(x)] * order if i in which else [] for i, x in enumerate(args)]
        program = ft.make_jaxpr(lambda *xs: ft.jet(case.fun, xs, tuple(series), order=order))(*args)
        return operations(program.jaxpr)

    few, some, many = map(count, (2, 4, 8))
    moves = tuple(i in which for i in range(len(args)))
    factor = 8.5 if (case.primitives[0], moves) in CUBIC else 4.5
    assert many - some <= factor * (some - few)
