"""The tracer against JAX's: what `make_jaxpr` writes is what `jax.make_jaxpr` writes.

Checked for every program in `programs.py`: the two jaxprs are equal up to the names of variables
(or the difference is in `DIFFERENCES`, with its reason, and both evaluate to the same bits); JAX
checks, prints, compiles, maps and differentiates ours as it does its own; tracers of an outer
transform may be closed over; nothing is left behind by an exception; a tracer that leaks says so.
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

DIFFERENCES: dict[str, str] = {}
if jax.__version_info__ >= (0, 11):
    # JAX's own staging keeps such an operation whole when it stages for `jax.make_jaxpr`, and
    # lowers it before anything is compiled.
    DIFFERENCES = {
        "a_binary_search": "functrans writes the loop that the operation `SearchSorted` stands for",
        "a_custom_root": "functrans writes the loop that the operation `CustomRoot` stands for",
    }


pytestmark = pytest.mark.usefixtures("quick_compilation")


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
    assert len(DIFFERENCES) <= 2


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
    # A double-precision literal is one only where there is double precision.
    with jax.enable_x64(name == "in_double_precision"):
        within_axes(name, lambda: check_jaxpr(ours.jaxpr))
    assert isinstance(ours, type(theirs))
    assert ours.in_avals == theirs.in_avals
    assert ours.out_avals == theirs.out_avals
    if name not in DIFFERENCES:
        assert printed(ours) == printed(theirs)


def within_axes(name: str, check: Callable) -> None:
    jax.make_jaxpr(check, axis_env=PROGRAMS[name].options.get("axis_env"))()


def printed(jaxpr: ClosedJaxpr) -> str:
    return re.sub("0x[0-9a-f]+", "0x", str(jaxpr))


def test_a_difference_is_found():
    """The comparison that all of this rests on sees a change of each part of a jaxpr."""

    def jaxpr_of(fun, *args):
        return jax.make_jaxpr(fun)(*args)

    def loop(fun):
        return lambda x: jax.lax.scan(lambda c, _: (fun(c), None), x, None, length=2)

    same = jaxpr_of(lambda x, y: (2.0 * x, y + ARRAY), X, X)
    assert not difference(same, jaxpr_of(lambda x, y: (2.0 * x, y + ARRAY), X, X))
    pairs = [
        (lambda x: x, lambda x: x * 1),
        (jnp.sin, jnp.cos),
        (lambda x: 2.0 * x, lambda x: 2.5 * x),
        (lambda x: (x + 1, 1.0), lambda x: (x + 1, np.float32(1.0))),
        (lambda x: x + ARRAY, lambda x: x + (ARRAY + 1)),
        (lambda x: jax.lax.cumsum(x), lambda x: jax.lax.cumsum(x, reverse=True)),
        (lambda x: x[0] - x[1], lambda x: x[1] - x[0]),
        (loop(jnp.sin), loop(jnp.cos)),
        (loop(lambda c: 2 * c), loop(lambda c: 3 * c)),
    ]
    for one, other in pairs:
        assert difference(jaxpr_of(one, X), jaxpr_of(other, X))
    assert difference(jaxpr_of(jnp.sin, 1.0), jaxpr_of(jnp.sin, np.float32(1.0)))


# ---- the jaxpr under JAX's transforms ------------------------------------------------------------

# These cover what a jaxpr can hold: constants, calls, custom rules, control flow, keys, gathers.
TRANSFORMED = [
    "polynomial",
    "pytrees",
    "weak_meets_strong",
    "closure_over_arrays",
    "closure_over_scalars",
    "arrays_made_inside",
    "updates_of_constants",
    "contractions",
    "nested_jits",
    "inner_jits_that_are_inlined",
    "a_functrans_jit",
    "a_functrans_gradient",
    "a_gradient",
    "activations",
    "custom_jvp",
    "custom_jvp_with_static_arguments",
    "custom_vjp",
    "custom_vjp_with_static_arguments",
    "nested_custom_rules",
    "custom_rules_under_vmap",
    "a_custom_root",
    "checkpoints",
    "stopped_gradients",
    "scans",
    "branches",
    "maps",
    "control_flow_within_control_flow",
    "random_numbers_of_a_constant",
    "named_scopes",
    "precisions",
    "shard_maps",
]
transformed = pytest.mark.parametrize("name", TRANSFORMED)


def both(name: str) -> tuple[Callable, Callable, list]:
    """The program as functrans staged it, the program itself, and the arguments; as flat lists."""
    program = PROGRAMS[name]
    structure = jax.tree.structure(program.args)

    def itself(*leaves):
        return jax.tree.leaves(program.fun(*jax.tree.unflatten(structure, leaves)))

    return jaxpr_as_fun(stage(ft.make_jaxpr, name)), itself, program.dynamic


def is_float(x: Any) -> bool:
    return jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating)


@pytest.mark.parametrize("name", TRANSFORMED[::4])
def test_jax_evaluates_it(name):
    staged, itself, args = both(name)
    chex.assert_trees_all_close(staged(*args), itself(*args), rtol=1e-6)


@transformed
def test_jax_compiles_it(name):
    staged, itself, args = both(name)
    assert_same_bits(jax.jit(staged)(*args), jax.jit(itself)(*args))


@pytest.mark.parametrize("name", [name for name in TRANSFORMED if name != "shard_maps"])
def test_jax_maps_it(name):
    staged, itself, args = both(name)
    args = [jnp.stack([x, x]) * (2.0 if is_float(x) else 1) for x in map(jnp.asarray, args)]
    assert_same_bits(jax.jit(jax.vmap(staged))(*args), jax.jit(jax.vmap(itself))(*args))


@transformed
def test_jax_differentiates_it(name):
    staged, itself, args = both(name)

    moving = [i for i, x in enumerate(args) if is_float(x)]

    def total(fun, *args):
        return sum(jnp.sum(y) for y in fun(*args) if is_float(y))

    def gradient(fun):
        return jax.jit(jax.grad(partial(total, fun), argnums=moving))(*args)

    chex.assert_trees_all_close(gradient(staged), gradient(itself), rtol=1e-6)


def test_a_custom_rule_is_not_forgotten():
    """The rule disagrees with the function on purpose, so that one sees which of them was used."""

    @jax.custom_jvp
    def doubled(x):
        return 2 * x

    doubled.defjvps(lambda x_dot, y, x: 5 * x_dot)

    @jax.custom_vjp
    def tripled(x):
        return 3 * x

    tripled.defvjp(lambda x: (3 * x, None), lambda saved, y_bar: (7 * y_bar,))
    staged = jaxpr_as_fun(ft.make_jaxpr(lambda x: doubled(tripled(x)))(1.0))
    assert staged(1.0) == [6]
    assert jax.grad(lambda x: staged(x)[0])(1.0) == 35
    assert jax.grad(lambda x: jax.jit(jax.checkpoint(staged))(x)[0])(1.0) == 35
    assert ft.grad(lambda x: staged(x)[0])(1.0) == 35


# ---- arguments of `make_jaxpr` -------------------------------------------------------------------


def test_static_arguments_count_from_the_end_too():
    def power(x, *, scale, n=2):
        return scale * x**n

    def call(x, n):
        return power(x, scale=2.0, n=n)

    for static in (-1, (1, 1), (1, -1)):
        ours, theirs = (ad.make_jaxpr(call, static_argnums=static)(X, 3) for ad in (ft, jax))
        assert not difference(ours, theirs)


def test_keyword_arguments_are_inputs():
    def scaled(x, *, scale):
        return x * scale["by"]

    ours = ft.make_jaxpr(scaled)(X, scale={"by": 2.0})
    assert not difference(ours, jax.make_jaxpr(scaled)(X, scale={"by": 2.0}))
    assert len(ours.in_avals) == 2


def test_shapes_of_the_results():
    def fun(x):
        return {"y": (x[:2], None), "z": jnp.argmax(x)}

    _, ours = ft.make_jaxpr(fun, return_shape=True)(X)
    _, theirs = jax.make_jaxpr(fun, return_shape=True)(X)
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


# ---- closures over the tracers of other transforms -----------------------------------------------

OUTER = {
    "jax.jit": jax.jit,
    "jax.grad": jax.grad,
    "jax.jacfwd": jax.jacfwd,
    "jax.vmap": lambda fun: lambda y: jax.vmap(fun)(jnp.array([y, 1.0, 3.0])),
    "jax.checkpoint": lambda fun: jax.grad(jax.checkpoint(fun)),
    "jax.linearize": lambda fun: lambda y: jax.linearize(fun, y)[1](1.0),
    "jax.make_jaxpr": lambda fun: lambda y: jaxpr_as_fun(jax.make_jaxpr(fun)(y))(y),
    "ft.jit": ft.jit,
    "ft.grad": ft.grad,
    "ft.jacfwd": ft.jacfwd,
    "ft.jvp": lambda fun: lambda y: ft.jvp(fun, (y,), (1.0,)),
    "ft.linearize": lambda fun: lambda y: ft.linearize(fun, y)[1](1.0),
    "ft.make_jaxpr": lambda fun: lambda y: jaxpr_as_fun(ft.make_jaxpr(fun)(y))(y),
    "ft.grad of ft.grad": lambda fun: ft.grad(ft.grad(fun)),
    "ft.grad of jax.jit": lambda fun: ft.grad(jax.jit(fun)),
    "jax.vmap of ft.grad": lambda fun: lambda y: jax.vmap(ft.grad(fun))(jnp.array([y, 1.0])),
}


@pytest.mark.parametrize("outer", OUTER)
def test_closure_over_outer_tracers(outer):
    found = []

    def direct(y):
        return jnp.sum(jnp.sin(X * y) * ARRAY) * y

    def staged(y):
        def closed(x):
            z = y * SCALAR  # an equation without an input of ours, staged like every other
            return jnp.sum(jnp.sin(x * y) * ARRAY) * y, z

        ours, theirs = ft.make_jaxpr(closed)(X), jax.make_jaxpr(closed)(X)
        found.append(difference(ours, theirs))
        assert any(isinstance(x, jax.core.Tracer) for x in ours.consts)
        return evaluate(ours, X)[0]

    transform = OUTER[outer]
    chex.assert_trees_all_close(transform(staged)(2.0), transform(direct)(2.0), rtol=1e-6)
    assert found
    assert not any(found)


# ---- what is left behind -------------------------------------------------------------------------

TRANSFORMS = {
    "make_jaxpr": ft.make_jaxpr,
    "jit": lambda fun: ft.jit(fun),
    "grad": ft.grad,
    "jvp": lambda fun: lambda x: ft.jvp(fun, (x,), (1.0,)),
    "linearize": lambda fun: lambda x: ft.linearize(fun, x),
    "vjp": lambda fun: lambda x: ft.vjp(fun, x),
    "grad of jit": lambda fun: ft.grad(ft.jit(fun)),
    "jit of grad": lambda fun: ft.jit(ft.grad(fun)),
}
every_transform = pytest.mark.parametrize("transform", TRANSFORMS)


@every_transform
def test_an_exception_leaves_nothing_set(transform):
    class Unexpected(Exception):
        pass

    def fails(x):
        with jax.named_scope("a scope that must end"):
            jnp.sin(x)
            raise Unexpected

    with pytest.raises(Unexpected):
        TRANSFORMS[transform](fails)(2.0)
    two = jnp.add(1.0, 1.0)
    assert not isinstance(two, jax.core.Tracer)
    assert float(two) == 2
    assert not str(jax.make_jaxpr(jnp.sin)(1.0).eqns[0].source_info.name_stack)
    assert float(ft.grad(jnp.square)(3.0)) == 6


@pytest.mark.usefixtures("few_objects")
@every_transform
def test_no_tracer_outlives_its_transform(transform):
    seen: list = []

    def fun(x):
        y = jnp.sin(x) * jax.nn.relu(x)
        seen.extend(weakref.ref(value) for value in (x, y) if isinstance(value, jax.core.Tracer))
        return jax.lax.cond(x > 0, jnp.cos, jnp.sin, y) if transform == "make_jaxpr" else y * 2

    with jax.checking_leaks():
        result = TRANSFORMS[transform](fun)(2.0)
    gc.collect()
    assert seen
    assert not any(reference() is not None for reference in seen)
    del result


@every_transform
def test_a_leaked_tracer_says_so(transform):
    leaked = []

    def leaks(x):
        leaked.append(jnp.sin(x))
        return x * x

    TRANSFORMS[transform](leaks)(2.0)
    assert isinstance(leaked[0], jax.core.Tracer)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        jnp.cos(leaked[0])
    with pytest.raises(jax.errors.UnexpectedTracerError):
        jax.jit(lambda x: x + leaked[0])(1.0)


def test_a_tracer_that_leaks_from_the_tape_says_so():
    """Tangents, which a custom rule sees, are tracers of the trace that `linearize` records."""
    leaked = []

    @jax.custom_jvp
    def sine(x):
        return jnp.sin(x)

    @sine.defjvp
    def sine_jvp(primals, tangents):
        leaked.append(tangents[0])
        return jnp.sin(primals[0]), jnp.cos(primals[0]) * tangents[0]

    ft.linearize(sine, 2.0)
    assert isinstance(leaked[0], jax.core.Tracer)
    with pytest.raises(jax.errors.UnexpectedTracerError):
        leaked[0] * 2.0


def test_what_is_computed_while_a_function_is_staged() -> None:
    """`jax.ensure_compile_time_eval` computes what has no tracers, and stages the rest."""

    def scaled(x):
        with jax.ensure_compile_time_eval():
            n = jnp.sum(jnp.arange(4.0))
            assert n > 5  # a number, and no tracer
            return x * x * n

    for fun in (scaled, ft.jit(scaled)):
        assert ft.jit(fun)(2.0) == 24 and ft.grad(fun)(2.0) == 24
        assert ft.jit(ft.grad(fun))(2.0) == 24 and ft.grad(ft.grad(fun))(2.0) == 12
        assert jax.jit(ft.grad(fun))(2.0) == 24 and ft.jvp(jax.jit(fun), (2.0,), (1.0,))[1] == 24
