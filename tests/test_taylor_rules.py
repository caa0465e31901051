"""Taylor mode through every rule: the table in `rule_cases/`, to order 8 in most rows.

As in `test_taylor.py`, one first derivative of a jet tells whether all of its orders are right. The
programs run equation by equation: so what is compiled is shared by all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun
from rule_cases import Case, cases_of_series

import functrans as ft

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
        out, rows = ft.jet(case.fun, unflatten(full), unflatten(series), order=case.taylor)
        outs, out_tree = jax.tree.flatten(out)
        pairs = zip(outs, out_tree.flatten_up_to(rows), strict=True)
        return [[y, *ys] for y, ys in pairs if jnp.issubdtype(jnp.result_type(y), jnp.inexact)]

    def pushed(*xs):
        return ft.jvp(columns, xs, tuple(along))

    program, shapes = ft.make_jaxpr(pushed, return_shape=True)(*start)
    run = jaxpr_as_fun(program)
    if any(e.primitive.name == "shard_map" for e in program.jaxpr.eqns):  # which needs its mesh
        run = jax.jit(run)
    outs = run(*start)
    jets, tangents = jax.tree.unflatten(jax.tree.structure(shapes), outs)
    for jet, dot in zip(jets, tangents, strict=True):
        scale = np.max(np.abs(jet[0]), initial=0.0)
        for k in range(1, case.taylor + 1):
            scale = np.max(np.abs(jet[k]), initial=scale)
            want = np.asarray(dot[k - 1]) / k
            np.testing.assert_allclose(jet[k], want, rtol=1e-12, atol=1e-12 * scale, err_msg=f"{k}")
