"""The tracer against JAX's: what `make_jaxpr` writes is what `jax.make_jaxpr` writes.

Checked for every program in `programs.py`: the two jaxprs are equal up to the names of variables
(or the difference is in `DIFFERENCES`, with its reason, and both evaluate to the same bits); JAX
checks, prints, compiles, maps and differentiates ours as it does its own; tracers of an outer
transform may be closed over; nothing is left behind by an exception; and a tracer that leaks says so.
"""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, check_jaxpr, jaxpr_as_fun
from jaxpr_difference import difference, same_bits
from programs import ARRAY, PROGRAMS, SCALAR, X

import functrans as ft

DIFFERENCES = {
    "device_puts": "JAX drops the move of a NumPy array to the default device, functrans writes it",
}
if jax.__version_info__ >= (0, 11):
    # JAX's own staging keeps such an operation whole when it stages for `jax.make_jaxpr`, and
    # lowers it before anything is compiled.
    DIFFERENCES |= {
        "a_binary_search": "functrans writes the loop that the operation `SearchSorted` stands for",
        "a_custom_root": "functrans writes the loop that the operation `CustomRoot` stands for",
    }

every_program = pytest.mark.parametrize("name", PROGRAMS)


def stage(make_jaxpr: Callable, name: str) -> ClosedJaxpr:
    program = PROGRAMS[name]
    staged = make_jaxpr(program.fun, **program.options)(*program.args)
    return staged[0] if program.options.get("return_shape") else staged


def evaluate(jaxpr: ClosedJaxpr, *args: Any) -> list:
    return jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *args)


def assert_same_bits(ours: Any, theirs: Any) -> None:
    ours, theirs = jax.tree.leaves(ours), jax.tree.leaves(theirs)
    assert len(ours) == len(theirs)
    for x, y in zip(ours, theirs, strict=True):
        assert same_bits(x, y), f"{x}\nis not\n{y}"


# ---- the programs --------------------------------------------------------------------------------


def test_there_are_many_programs():
    assert len(PROGRAMS) >= 100
    assert DIFFERENCES.keys() <= PROGRAMS.keys()
    assert len(DIFFERENCES) <= 3


@every_program
def test_the_jaxpr_is_that_of_jax(name):
    ours, theirs = stage(ft.make_jaxpr, name), stage(jax.make_jaxpr, name)
    if name in DIFFERENCES:
        assert difference(ours, theirs), "there is no difference any more: take it off the list"
        args = PROGRAMS[name].dynamic
        assert_same_bits(evaluate(ours, *args), evaluate(theirs, *args))
    else:
        assert not difference(ours, theirs)


@every_program
def test_jax_takes_the_jaxpr_for_its_own(name):
    ours, theirs = stage(ft.make_jaxpr, name), stage(jax.make_jaxpr, name)
    check_jaxpr(ours.jaxpr)
    assert isinstance(ours, type(theirs))
    assert [str(aval) for aval in ours.in_avals] == [str(aval) for aval in theirs.in_avals]
    assert [str(aval) for aval in ours.out_avals] == [str(aval) for aval in theirs.out_avals]
    if name not in DIFFERENCES:
        assert printed(ours) == printed(theirs)


def printed(jaxpr: ClosedJaxpr) -> str:
    return re.sub("0x[0-9a-f]+", "0x", str(jaxpr))
