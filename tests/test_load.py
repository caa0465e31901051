"""Correct under load: many functions, many threads, other types and contexts, and exceptions.

`test_jit.py` shows of one function what is compiled, kept and forgotten; here it is a thousand of
them, eight threads at once, and each place where a user's code can fail.
"""

from __future__ import annotations

import functools
import gc
import itertools
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from jax import lax
from jax.extend import source_info_util
from jax.extend.backend import get_backend
from jax.extend.core import Primitive, jaxprs_in_params, take_current_trace
from jax.interpreters import ad
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import functrans as ft
from functrans.caches import OF_FUNCTIONS

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.arange(1.0, 4.0)


# Functions of an array to a number; each call of one of these makes a new one.


def plain(k: float) -> Callable:
    return lambda x: k * jnp.sum(jnp.sin(x))


def with_inner_calls(k: float) -> Callable:
    return lambda x: k * jnp.sum(jax.nn.softmax(jnp.where(x > 2, x, jnp.sin(x))) * jnp.roll(x, 1))


def with_jit(k: float) -> Callable:
    inner = jax.jit(lambda x: k * jnp.sin(x))
    return lambda x: jnp.sum(inner(x) * inner(x))


def with_scan(k: float) -> Callable:
    def step(c, x):
        return jnp.sin(k * c * x), c

    return lambda x: jnp.sum(lax.scan(step, 1.0, x)[1])


def with_cond(k: float) -> Callable:
    """JAX hands over one and the same jaxpr for two branches that are one function."""

    def one(x):
        return k * jnp.sin(x)

    def two(x):
        return jnp.cos(x)

    def fun(x):
        back = lax.cond(True, two, one, x)
        return jnp.sum(lax.switch(1, [one, one], x) + lax.cond(True, one, two, x) + back)

    return fun


def with_checkpoint(k: float) -> Callable:
    return lambda x: jnp.sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(k * x)))(x))


def with_custom_jvp(k: float) -> Callable:
    @jax.custom_jvp
    def sine(x):
        return jnp.sin(k * x)

    sine.defjvp(lambda p, t: (sine(*p), k * jnp.cos(k * p[0]) * t[0]))
    return lambda x: jnp.sum(sine(x))


def with_custom_vjp(k: float) -> Callable:
    @jax.custom_vjp
    def sine(x):
        return jnp.sin(k * x)

    sine.defvjp(lambda x: (sine(x), x), lambda x, y_bar: (k * jnp.cos(k * x) * y_bar,))
    return lambda x: jnp.sum(sine(x))


LOOPS = {"scan": with_scan, "cond": with_cond}
KINDS: dict[str, Callable] = LOOPS | {
    "plain": plain,
    "inner calls": with_inner_calls,
    "jit": with_jit,
    "checkpoint": with_checkpoint,
    "custom_jvp": with_custom_jvp,
    "custom_vjp": with_custom_vjp,
}


# A thousand functions.

MEMORIES = [x for x in gc.get_objects() if type(x) is WeakKeyDictionary]
"""Where our results are kept that live as long as a program does."""


def census() -> Counter:
    """How many objects of each type are alive; and executables, and entries of our caches."""
    for _ in range(3):  # JAX lets go of some when the first has ended
        gc.collect()
    count = Counter(type(x).__name__ for x in gc.get_objects())
    for weak in ("ReferenceType", "builtin_function_or_method"):  # and its callback
        del count[weak]
    count["executables"] = len(get_backend().live_executables())
    count["entries"] = len(OF_FUNCTIONS) + sum(map(len, MEMORIES))
    return count


def growth(use: Callable[[int], Any], warm_up: int, functions: int) -> Counter:
    """What is alive after `use(i)` for so many i that was not alive before."""
    for i in range(warm_up):
        use(i)
    before = census()
    for i in range(warm_up, warm_up + functions):
        use(i)
    return census() - before


TRACED: Sequence[Callable] = (
    lambda f: ft.grad(ft.jit(f)).trace(X),
    lambda f: ft.jit(lambda x: ft.vjp(f, x)[1](jnp.float32(1))).trace(X),
    lambda f: ft.jit(lambda x: ft.hvp(ft.jit(f), x, x)).trace(X),
    lambda f: ft.jacfwd(ft.jit(f)).trace(X),
    lambda f: ft.jit(ft.grad(ft.jit(f))).eval_shape(X),
)
EAGER: Sequence[Callable] = (
    lambda f: ft.grad(f)(X),
    lambda f: ft.vjp(f, X)[1](jnp.float32(1)),
    lambda f: ft.hvp(f, X, X),
    lambda f: ft.jacfwd(f)(X),
)
COMPILED: dict[str, Callable] = {
    "grad": lambda f: ft.grad(ft.jit(f))(X),
    "hvp": lambda f: ft.hvp(ft.jit(f), X, X),
    "vjp": lambda f: ft.vjp(ft.jit(f), X)[1](jnp.float32(1)),
    "linearize": lambda f: ft.linearize(ft.jit(f), X)[1](X),
}


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("kind", KINDS)
def test_functions_are_forgotten(kind: str) -> None:
    """With all that was derived from them: a thousand functions in all, of which each is traced.
    Those that compile nothing when they run eagerly do so, too.

    (JAX keeps a loop, or a call, that runs eagerly, as one of its last 4096 operations.)
    """

    def use(i: int) -> None:
        function = KINDS[kind](float(i))
        TRACED[i % len(TRACED)](function)
        if i < 60 and kind not in ("scan", "cond", "jit", "checkpoint"):
            EAGER[i % len(EAGER)](function)

    functions = 200 if kind == "plain" else 80
    grown = growth(use, 20, functions)
    # One object of some type for each fourth function would be a leak.
    assert max(grown.values(), default=0) < functions / 4, grown.most_common(8)


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("transform", COMPILED)
def test_compiled_functions_are_forgotten(transform: str) -> None:
    """And their executables.

    (Of `vjp` and `linearize`, which return a structure, JAX keeps the last 4096 structures.)
    """
    grown = growth(lambda i: COMPILED[transform](plain(float(i))), warm_up=3, functions=8)
    names = ["executables", "Jitted", "PjitFunction"]
    if transform not in ("vjp", "linearize"):
        names += ["entries", "Jaxpr", "ClosedJaxpr", "JaxprEqn", "Var", "PyTreeDef"]
    assert not {name: grown[name] for name in names if grown[name] > 3}


@pytest.mark.usefixtures("every_object")
def test_every_cache_is_weak_or_bounded() -> None:
    caches = [x for x in gc.get_objects() if isinstance(x, functools._lru_cache_wrapper)]
    ours = {x.__name__: x for x in caches if x.__module__.startswith("functrans")}
    assert ours
    for name, cache in ours.items():
        assert cache.cache_info().maxsize is not None, name


# Threads.


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Python changes threads as often as it can, which is what lets them meet."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def at_once(works: Sequence[Callable[[], Any]]) -> list:
    """Each in a thread of its own, which begin together; the results, or the first exception."""
    barrier = threading.Barrier(len(works))
    results: list = [None] * len(works)
    errors: list[BaseException] = []

    def run(i: int) -> None:
        barrier.wait()
        try:
            results[i] = works[i]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.usefixtures("busy_threads")
@pytest.mark.parametrize("transform", [ft.jit, lambda f: ft.grad(ft.jit(f))])
def test_threads_that_wrap_a_function_share_what_is_compiled(transform: Callable) -> None:
    for k in range(12):
        fun = plain(k)
        wrapped = at_once([lambda fun=fun: transform(fun)] * 8)
        with compilations() as compiled:
            for call in wrapped:
                call(X)
        assert len(compiled) == 1


def operations(jaxpr: Any) -> Counter:
    """How often a program has each operation, at any depth."""
    count = Counter(str(equation.primitive) for equation in jaxpr.eqns)
    for equation in jaxpr.eqns:
        for inner in jaxprs_in_params(equation.params):
            count += operations(inner)
    return count


@pytest.mark.usefixtures("busy_threads")
@pytest.mark.parametrize("kind", KINDS)
def test_threads_derive_the_same_from_one_program(kind: str) -> None:
    """The jaxprs inside the function are the same objects in all threads, and new in each round."""
    for k in (2, 3):
        inner = jax.jit(KINDS[kind](float(k)))
        inner.trace(X)

        def derive(inner=inner):
            fun = ft.grad(lambda x: jnp.sin(inner(x)))
            return operations(ft.make_jaxpr(lambda x: ft.jvp(fun, (x,), (x,)))(X).jaxpr)

        derived = at_once([derive] * 8)
        jax.clear_caches()
        assert derived == [derive()] * 8


@pytest.mark.usefixtures("busy_threads")
def test_threads_differentiate_different_functions_eagerly() -> None:
    kinds = [name for name in KINDS if name not in LOOPS]
    wanted = {(kind, k): jax.grad(KINDS[kind](k))(X) for kind in kinds for k in (2.0, 3.0)}
    works = [lambda kind=kind, k=k: ft.grad(KINDS[kind](k))(X) for kind, k in wanted]
    for case, got in zip(wanted, at_once(works), strict=True):
        chex.assert_trees_all_close(got, wanted[case], rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("busy_threads")
@pytest.mark.parametrize("kind", ["scan", "custom_vjp"])
def test_threads_transform_one_jitted_function(kind: str) -> None:
    """Two threads for each transform, all of which are called for the first time."""

    def transforms(ad: Any, fun: Callable) -> list[Callable]:
        return [
            lambda: ad.grad(ad.jit(fun))(X),
            lambda: ad.vjp(ad.jit(fun), X)[1](jnp.float32(1))[0],
            lambda: ad.jacfwd(ad.jit(ad.grad(ad.jit(fun))))(X),
            lambda: ad.jit(ad.grad(ad.jit(fun)))(X),
        ]

    # JAX has no forward derivative of a custom_vjp.
    want = [f() for f in transforms(jax, (plain if kind == "custom_vjp" else KINDS[kind])(1.0))]
    got = at_once(2 * transforms(ft, KINDS[kind](1.0)))
    chex.assert_trees_all_close(got, 2 * want, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("busy_threads")
def test_a_function_is_not_taken_for_another_that_had_its_place_in_memory() -> None:
    def work(i: int) -> None:
        for k in range(25):
            size = 1 + (i + k) % 5
            fun = ft.jit(lambda x, size=size: lax.broadcast(x[0], (size,)))
            assert fun.eval_shape(X).shape == (size,)
            if k % 10 == i:
                gc.collect()

    before = len(OF_FUNCTIONS)
    at_once([functools.partial(work, i) for i in range(8)])
    gc.collect()
    assert len(OF_FUNCTIONS) <= before


@pytest.mark.usefixtures("busy_threads")
def test_threads_meet_a_primitive_of_another_package() -> None:
    """Its rule is taken over when it is first seen."""
    for _ in range(10):
        cube = Primitive("cube")
        cube.def_impl(lambda x: x**3)
        cube.def_abstract_eval(lambda x: x)
        ad.defjvp(cube, lambda x_dot, x: 3 * x_dot * x**2)
        got = at_once([lambda cube=cube: ft.grad(lambda x: jnp.sum(cube.bind(x)))(X)] * 8)
        chex.assert_trees_all_close(got, [3 * X**2] * 8)


@pytest.mark.usefixtures("busy_threads")
def test_a_context_is_that_of_one_thread() -> None:
    """Half of the threads compute in float64, the others do not, with one compiled function.

    (Eager operations of threads that differ in this get wrong types from JAX, without us too.)
    """
    gradient, x = ft.grad(ft.jit(plain(2.0))), np.arange(1.0, 4.0)

    def work(wide: bool) -> Any:
        with jax.enable_x64(wide):
            return gradient(x)

    for wide in (True, False):
        work(wide)
    for _ in range(20):
        for wide, got in enumerate(
            at_once([functools.partial(work, i % 2 == 1) for i in range(8)])
        ):
            assert got.dtype == (np.float64 if wide % 2 else np.float32)
            np.testing.assert_allclose(got, 2 * np.cos(x), rtol=1e-14 if wide % 2 else 1e-6)


# What compiles again, and what does not.


def scaled(k: float) -> Callable:
    """A decorator as users write them."""

    def decorate(fun):
        @functools.wraps(fun)
        def wrapper(*args):
            return k * fun(*args)

        return wrapper

    return decorate


@scaled(3.0)
def decorated(x):
    return jnp.sum(x**2)


class Energy:
    """An object that can be called, and whose class has functions."""

    @classmethod
    def of_class(cls, x):
        return 3 * jnp.sum(x**2)

    @staticmethod
    def of_nothing(x):
        return 3 * jnp.sum(x**2)

    def __call__(self, x):
        return 3 * jnp.sum(x**2)

    @functools.partial(ft.jit, static_argnums=0)
    def jitted(self, x):
        return 3 * jnp.sum(x**2)


ENERGY = Energy()
MENTIONS: dict[str, Callable] = {
    "decorated": lambda: ft.jit(decorated),
    "classmethod": lambda: ft.jit(ENERGY.of_class),
    "staticmethod": lambda: ft.jit(ENERGY.of_nothing),
    "object": lambda: ft.jit(ENERGY),
    "method of an object": lambda: ft.jit(ENERGY.__call__),
    "jitted method": lambda: ENERGY.jitted,
    "jit of jit": lambda: ft.jit(ft.jit(decorated)),
    "options": lambda: ft.jit(decorated, static_argnums=(), keep_unused=True),
    "jax.jit": lambda: jax.jit(decorated),
}


@pytest.mark.parametrize("name", MENTIONS)
@pytest.mark.parametrize("order", [1, 2])
def test_wrapping_again_compiles_nothing_again(name: str, order: int) -> None:
    def evaluate():
        fun = ft.grad(MENTIONS[name]())
        return fun(X) if order == 1 else ft.jacfwd(fun)(X)

    want = 6 * X if order == 1 else 6 * jnp.eye(3)
    chex.assert_trees_all_close(evaluate(), want)
    with compilations() as compiled:
        for _ in range(3):
            chex.assert_trees_all_close(evaluate(), want)
    assert not compiled


def power(n, x):
    return jnp.sum(jnp.sin(x) ** n) * 1.0


def wide() -> Any:
    return jax.enable_x64(True)


CHANGES: dict[str, Sequence[tuple[Callable, tuple]]] = {
    "a static argument": [(nullcontext, (2, X)), (nullcontext, (3, X)), (nullcontext, (1, X))],
    "a shape": [(nullcontext, (2, X)), (nullcontext, (2, X[:2])), (nullcontext, (2, X[:, None]))],
    "a dtype": [(nullcontext, (2, X)), (nullcontext, (2, X.astype(jnp.bfloat16)))],
    "a weak type": [(nullcontext, (2, jnp.float32(0.5))), (nullcontext, (2, 0.5))],
    "float64": [(nullcontext, (2, np.arange(3.0))), (wide, (2, np.arange(3.0)))],
    "float64 of a number": [(nullcontext, (2, 0.5)), (wide, (2, 0.5))],
}
EVALUATIONS: dict[str, Callable] = {
    "grad of jit": lambda ad, fun: ad.grad(fun, argnums=1),
    "jit of grad": lambda ad, fun: ad.jit(ad.grad(fun, argnums=1), static_argnums=0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_a_change_compiles_again(change: str, evaluation: str) -> None:
    """Once; what was before is not compiled again when it comes back, and all of it is right."""
    make = EVALUATIONS[evaluation]
    ours = make(ft, ft.jit(lambda n, x: power(n, x), static_argnums=0))
    theirs = make(jax, jax.jit(lambda n, x: power(n, x), static_argnums=0))
    for programs in (1, 0):
        for context, args in CHANGES[change]:
            with context():
                with compilations() as compiled:
                    got = ours(*args)
                assert len(compiled) == programs
                want = theirs(*args)
            assert (got.dtype, got.weak_type) == (want.dtype, want.weak_type)
            chex.assert_trees_all_close(got, want, rtol=1e-6 if got.dtype != jnp.bfloat16 else 0.1)


def precisions(text: str) -> set[str]:
    """Those that the products of a program are computed with."""
    lines = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert lines
    return {name for name in ("DEFAULT", "HIGHEST") for line in lines if name in line}


@pytest.mark.parametrize("wrap", [ft.jit, jax.jit])
def test_a_change_of_the_precision_of_products(wrap: Callable) -> None:
    """In the function and in the transpose, with the function's jaxprs derived before."""
    weights = jnp.ones((3, 3))
    fun = wrap(lambda w: jnp.sum(jnp.sin(X @ w) @ w))
    gradient = ft.grad(fun)
    lower = gradient.lower if wrap is ft.jit else lambda w: jax.jit(gradient).lower(w)
    for name in ("highest", "default", "highest"):
        with jax.default_matmul_precision(name):
            assert precisions(lower(weights).as_text()) <= {name.upper()}
            assert ("HIGHEST" in lower(weights).as_text()) == (name == "highest")
            chex.assert_trees_all_close(gradient(weights), jax.grad(fun)(weights), rtol=1e-5)
    pull = {}
    for name in ("default", "highest"):
        with jax.default_matmul_precision(name):
            text = str(ft.vjp(fun, weights)[1].jaxpr)
            pull[name] = "HIGHEST" in text
    assert pull == {"default": False, "highest": True}


def test_a_change_of_a_sharding() -> None:
    """In a child process in which the CPU is eight devices."""
    devices = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-W", "error", __file__]
    done = subprocess.run(command, env=devices, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def on_eight_devices() -> None:
    """Each placement of the argument is compiled once, and the gradient is placed as it is."""
    assert len(jax.devices()) == 8
    mesh = jax.make_mesh((8,), ("i",), axis_types=(AxisType.Auto,))
    x = np.arange(16.0, dtype=np.float32)
    placements = [
        NamedSharding(mesh, PartitionSpec("i")),
        NamedSharding(mesh, PartitionSpec()),
        jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        jax.sharding.SingleDeviceSharding(jax.devices()[3]),
    ]
    placed = [jax.device_put(x, placement) for placement in placements]
    for gradient in (ft.grad(ft.jit(plain(2.0))), ft.jit(ft.grad(plain(2.0)))):
        for programs in (1, 0):
            for x in placed:
                with compilations() as compiled:
                    got = gradient(x)
                assert len(compiled) == programs, (x.sharding, len(compiled))
                assert got.sharding.is_equivalent_to(x.sharding, 1), (got.sharding, x.sharding)
                np.testing.assert_allclose(got, 2 * np.cos(np.asarray(x)), rtol=1e-6)


# Exceptions.


class Oops(Exception):
    """What the user's code raises."""


class Failing:
    """A user's code that fails until it is mended, at a place that a test chooses."""

    def __init__(self, error: type[BaseException]):
        self.error: type[BaseException] | None = error

    def __call__(self, x: Any) -> Any:
        if self.error:
            raise self.error
        return x


def in_the_function(fail: Callable) -> Callable:
    return lambda x: jnp.sum(fail(jnp.sin(x)))


def in_a_jitted_call(fail: Callable) -> Callable:
    return lambda x: jnp.sum(jax.jit(lambda y: fail(jnp.sin(y)))(x))


def in_a_call_jitted_here(fail: Callable) -> Callable:
    return lambda x: jnp.sum(ft.jit(lambda y: fail(jnp.sin(y)))(x))


def in_a_scan(fail: Callable) -> Callable:
    return lambda x: lax.scan(lambda c, x: (fail(jnp.sin(x)) + c, None), 0.0, x)[0]


def in_a_branch(fail: Callable) -> Callable:
    return lambda x: jnp.sum(lax.cond(x[0] > 0, lambda x: fail(jnp.sin(x)), jnp.cos, x))


def in_a_checkpoint(fail: Callable) -> Callable:
    return lambda x: jnp.sum(jax.checkpoint(lambda x: fail(jnp.sin(x)))(x))


def in_a_batched_function(fail: Callable) -> Callable:
    return lambda x: jnp.sum(jax.vmap(lambda x: fail(jnp.sin(x)))(x))


def in_an_inner_gradient(fail: Callable) -> Callable:
    """The derivative of `-cos` is `sin`."""
    return lambda x: jnp.sum(jax.vmap(ft.grad(lambda x: fail(-jnp.cos(x))))(x))


def in_a_pushforward_rule(fail: Callable) -> Callable:
    sine = jax.custom_jvp(jnp.sin)
    sine.defjvp(lambda p, t: (jnp.sin(p[0]), fail(jnp.cos(p[0])) * t[0]))
    return lambda x: jnp.sum(sine(x))


def in_a_forward_rule(fail: Callable) -> Callable:
    sine = jax.custom_vjp(jnp.sin)
    sine.defvjp(lambda x: (fail(jnp.sin(x)), x), lambda x, y_bar: (jnp.cos(x) * y_bar,))
    return lambda x: jnp.sum(sine(x))


def in_a_backward_rule(fail: Callable) -> Callable:
    sine = jax.custom_vjp(jnp.sin)
    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, y_bar: (fail(jnp.cos(x)) * y_bar,))
    return lambda x: jnp.sum(sine(x))


def in_a_rule_inside_a_scan(fail: Callable) -> Callable:
    sine = jax.custom_vjp(jnp.sin)
    sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, y_bar: (fail(jnp.cos(x)) * y_bar,))
    return lambda x: lax.scan(lambda c, x: (sine(x) + c, None), 0.0, x)[0]


def in_a_rule_of_a_primitive(fail: Callable) -> Callable:
    sine = Primitive("sine")
    sine.def_impl(jnp.sin)
    sine.def_abstract_eval(lambda x: x)
    jax.interpreters.mlir.register_lowering(
        sine, jax.interpreters.mlir.lower_fun(jnp.sin, multiple_results=False)
    )
    ft.rules.elementwise(sine, lambda y, x: fail(jnp.cos(x)))
    return lambda x: jnp.sum(sine.bind(x))


def in_a_generator(fail: Callable) -> Callable:
    def pieces(x):
        with jax.named_scope("pieces"):
            for i in range(3):
                yield jnp.sin(x[i])
            fail(x)

    return lambda x: sum(pieces(x))


PLACES = [
    in_the_function,
    in_a_jitted_call,
    in_a_call_jitted_here,
    in_a_scan,
    in_a_branch,
    in_a_checkpoint,
    in_a_batched_function,
    in_an_inner_gradient,
    in_a_pushforward_rule,
    in_a_forward_rule,
    in_a_backward_rule,
    in_a_rule_inside_a_scan,
    in_a_rule_of_a_primitive,
    in_a_generator,
]
WAYS: dict[str, Callable] = {
    "grad": ft.grad,
    "grad of jit": lambda fun: ft.grad(ft.jit(fun)),
}


def tracers() -> list:
    gc.collect()
    return [x for x in gc.get_objects() if isinstance(x, jax.core.Tracer)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS)
def test_an_exception_leaves_nothing_behind(place: Callable, way: str) -> None:
    """Neither a trace nor a name; and the same function works once it is mended."""
    fail = Failing(Oops if way == "grad" else KeyboardInterrupt)
    gradient = WAYS[way](place(fail))
    with take_current_trace() as before:
        pass
    for _ in range(2):
        with pytest.raises((Oops, KeyboardInterrupt)):
            gradient(X)
    with take_current_trace() as after:
        assert after is before
    assert not str(source_info_util.current_name_stack())
    assert not isinstance(jnp.sin(X), jax.core.Tracer)
    fail.error = None
    chex.assert_trees_all_close(gradient(X), jnp.cos(X), rtol=1e-6)


@pytest.mark.usefixtures("few_objects")
def test_nothing_leaks_after_exceptions() -> None:
    """No tracer is alive, and JAX's own check finds nothing in the gradients that come next."""
    alive = len(tracers())
    for place, derive in itertools.product(PLACES, (ft.grad, ft.jacfwd, ft.hessian)):
        with pytest.raises(Oops):
            derive(place(Failing(Oops)))(X)
    assert len(tracers()) == alive
    with jax.checking_leaks():
        for wrap in (lambda fun: fun, ft.jit):
            gradient = ft.grad(wrap(in_a_backward_rule(lambda x: x)))
            chex.assert_trees_all_close(gradient(X), jnp.cos(X), rtol=1e-6)


if __name__ == "__main__":
    on_eight_devices()
