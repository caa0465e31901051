"""`jit`: its options, what is compiled and how often, what is kept and for how long.

No test here measures time: compilations are counted by JAX's own monitoring events, and the path
of a call by the Python functions that it enters.
"""

from __future__ import annotations

import functools
import gc
import itertools
import operator
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import nullcontext

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import compilations
from jax.extend.core import take_current_trace
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import functrans as ft
from functrans.caches import OF_FUNCTIONS

X = jnp.arange(1.0, 4.0)


def cube(x):
    return jnp.sum(x**3)


# Options.


def test_static_argnums() -> None:
    f = ft.jit(lambda n, x: jnp.sum(x**n if n > 1 else jnp.sin(x)), static_argnums=0)
    chex.assert_trees_all_close(f(2, X), jnp.sum(X**2))
    chex.assert_trees_all_close(ft.grad(f, argnums=1)(2, X), 2 * X)
    chex.assert_trees_all_close(ft.grad(f, argnums=1)(1, X), jnp.cos(X))
    chex.assert_trees_all_close(ft.hessian(f, argnums=1)(3, X), jnp.diag(6 * X), rtol=1e-6)


def test_static_argnames() -> None:
    @ft.jit(static_argnames="kind")
    def f(x, *, scale=1.0, kind="sin"):
        return jnp.sum(scale * getattr(jnp, kind)(x))

    chex.assert_trees_all_close(f(X, kind="cos"), jnp.sum(jnp.cos(X)))
    chex.assert_trees_all_close(ft.grad(f)(X, scale=2.0), 2 * jnp.cos(X))
    chex.assert_trees_all_close(ft.grad(f)(X, kind="square"), 2 * X)


@pytest.mark.parametrize("options", [{"donate_argnums": 0}, {"donate_argnames": "x"}])
def test_a_donated_buffer_is_deleted_by_the_call_but_not_by_a_derivative(options: dict) -> None:
    def f(x, y):
        return jnp.sin(x) * y

    x, y = jnp.ones(3), jnp.full(3, 2.0)
    donating = ft.jit(f, **options)
    ft.grad(lambda x: jnp.sum(donating(x, y)))(x)
    ft.jacfwd(donating)(x, y)
    assert not x.is_deleted()
    chex.assert_trees_all_close(donating(x, y), jnp.sin(jnp.ones(3)) * 2)
    assert x.is_deleted() and not y.is_deleted()


def arguments_of_main(lowered) -> int:
    signature = next(line for line in lowered.as_text().splitlines() if "func public @main" in line)
    return signature.split("->")[0].count("%arg")


@pytest.mark.parametrize(("keep", "count"), [(False, 1), (True, 2)])
def test_keep_unused(keep: bool, count: int) -> None:
    f = ft.jit(lambda x, y: jnp.sum(x), keep_unused=keep)
    assert arguments_of_main(f.lower(X, X)) == count
    assert (
        arguments_of_main(ft.grad(ft.jit(lambda x, y: cube(x), keep_unused=keep)).lower(X, X))
        == count
    )


@pytest.mark.parametrize("inline", [False, True])
def test_inline(inline: bool) -> None:
    """A call that is inlined is no call when it is lowered; when it ends is up to JAX's version."""
    ours, theirs = (ad.jit(lambda x: 2.0 * jnp.sin(x), inline=inline) for ad in (ft, jax))
    for make_jaxpr in (ft.make_jaxpr, jax.make_jaxpr):
        got, want = (make_jaxpr(lambda x, f=f: f(x) + 1.0)(1.0) for f in (ours, theirs))
        assert [e.primitive for e in got.eqns] == [e.primitive for e in want.eqns]
    program = jax.jit(lambda x: ours(x) + 1.0).lower(1.0).as_text()
    assert "stablehlo.sine" in program and ("call @" not in program) == inline


def test_compiler_options_reach_xla() -> None:
    f = ft.jit(cube, compiler_options={"xla_embed_ir_in_executable": True})
    chex.assert_trees_all_close(ft.grad(f)(X), 3 * X**2)
    unknown = ft.jit(cube, compiler_options={"no_such_option": True})
    for call in (unknown, ft.grad(unknown)):
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
            call(X)


def test_shardings_on_one_device() -> None:
    here = SingleDeviceSharding(jax.devices()[0])
    f = ft.jit(cube, in_shardings=here, out_shardings=here)
    assert f(X).sharding == here
    gradient = ft.grad(f)(X)
    assert gradient.sharding == here
    chex.assert_trees_all_close(gradient, 3 * X**2)


def test_as_a_decorator() -> None:
    @ft.jit
    def plain(x):
        """The docstring."""
        return cube(x)

    @functools.partial(ft.jit, static_argnums=1)
    def partial(x, n):
        return n * cube(x)

    assert (plain.__name__, plain.__doc__) == ("plain", "The docstring.")
    chex.assert_trees_all_close(ft.grad(plain)(X), 3 * X**2)
    chex.assert_trees_all_close(ft.grad(partial)(X, 2), 6 * X**2)


def test_an_unknown_option() -> None:
    with pytest.raises(TypeError, match="donate_everything"):
        ft.jit(cube, donate_everything=True)


# Stages.


def test_trace_lower_compile() -> None:
    gradient = ft.grad(ft.jit(cube))
    traced = gradient.trace(X)
    assert [str(aval.shape) for aval in traced.jaxpr.out_avals] == ["(3,)"]
    lowered = gradient.lower(X)
    assert "stablehlo.multiply" in lowered.as_text()
    chex.assert_trees_all_close(lowered.compile()(X), 3 * X**2)
    chex.assert_trees_all_close(traced.lower().compile()(X), 3 * X**2)


def test_eval_shape() -> None:
    out = ft.jit(lambda x: {"y": jnp.outer(x, x)}).eval_shape(X)
    assert out["y"].shape == (3, 3) and out["y"].dtype == X.dtype


def test_clear_cache() -> None:
    f = ft.jit(lambda x: jnp.sum(jnp.sin(x)))
    for expected in (1, 0):
        with compilations() as compiled:
            f(X)
        assert len(compiled) == expected
    f.clear_cache()
    with compilations() as compiled:
        f(X)
    assert len(compiled) == 1


@pytest.mark.parametrize(
    "transform", [lambda f: f, ft.grad, ft.value_and_grad, ft.jacfwd, ft.jacrev, ft.hessian]
)
def test_export_for_platforms_that_are_not_here(transform: Callable) -> None:
    def net(x):
        return jnp.sum(jax.nn.softmax(jnp.tanh(x) @ jnp.ones((3, 2))) ** 2)

    exported = jax.export.export(transform(ft.jit(net)), platforms=("cpu", "cuda", "tpu"))(X)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    chex.assert_trees_all_close(exported.call(X), transform(net)(X), atol=1e-6)


# What is compiled, and how often.


class Model:
    """Something with a method, of which Python makes a new object at each mention."""

    def __init__(self, scale: float):
        self.scale = scale

    def loss(self, x):
        return self.scale * cube(x)

    @ft.jit
    def jitted_by_decorator(self, x):
        return self.scale * cube(x)


TRANSFORMS: dict[str, Callable] = {
    "jit": lambda f: ft.jit(f)(X),
    "grad": lambda f: ft.grad(ft.jit(f))(X),
    "value_and_grad": lambda f: ft.value_and_grad(ft.jit(f))(X),
    "argnums": lambda f: ft.grad(ft.jit(f), argnums=(0,))(X),
    "grad of grad": lambda f: ft.grad(lambda x: ft.grad(ft.jit(f))(x)[0])(X),
    "jvp": lambda f: ft.jvp(ft.jit(f), (X,), (X,)),
    "vjp": lambda f: ft.vjp(ft.jit(f), X)[1](jnp.float32(1.0)),
    "linearize": lambda f: ft.linearize(ft.jit(f), X)[1](X),
    "jacfwd": lambda f: ft.jacfwd(ft.jit(f), chunk_size=2)(X),
    "jacrev": lambda f: ft.jacrev(ft.jit(f))(X),
    "hessian": lambda f: ft.hessian(ft.jit(f))(X),
    "hvp": lambda f: ft.hvp(ft.jit(f), X, X),
    "jit of grad of jit": lambda f: ft.jit(ft.grad(ft.jit(f)))(X),
    "static": lambda f: ft.grad(ft.jit(f, static_argnums=()))(X),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_wrapping_again_compiles_nothing_again(name: str) -> None:
    model, partial = Model(2.0), functools.partial(cube)
    for mention in (lambda: cube, lambda: model.loss, lambda: partial):
        TRANSFORMS[name](mention())  # what is eager in them is compiled at once
        with compilations() as compiled:
            for _ in range(3):
                TRANSFORMS[name](mention())
        assert not compiled


@pytest.mark.parametrize(
    "transform", [ft.grad, ft.value_and_grad, ft.jacfwd, ft.jacrev, ft.hessian]
)
def test_a_transform_of_a_jitted_function_is_one_program(transform: Callable) -> None:
    def fun(x):
        y = jnp.cumsum(jnp.where(x > 1, jnp.sin(x), x**2))
        return jnp.sum(jax.nn.softmax(y) * jnp.sort(x)[::-1])

    f = transform(ft.jit(fun))
    with compilations() as compiled:
        f(X)
    assert len(compiled) == 1


def test_other_types_compile_anew() -> None:
    gradient = ft.grad(ft.jit(lambda x, n: jnp.sum(x**n), static_argnums=1))
    calls = {
        "first": (X, 2),
        "shape": (X[:2], 2),
        "dtype": (X.astype(jnp.bfloat16), 2),
        "static": (X, 3),
    }
    for args in calls.values():
        for expected in (1, 0):
            with compilations() as compiled:
                result = gradient(*args)
            assert len(compiled) == expected
            assert (result.shape, result.dtype) == (args[0].shape, args[0].dtype)
    with jax.enable_x64(True):
        assert gradient(np.ones(2), 2).dtype == np.float64


def test_functions_of_c_are_told_apart() -> None:
    """Their `__self__` is the module that they are in, which they share."""
    assert float(ft.jit(operator.add)(2.0, 3.0)) == 5.0
    assert float(ft.jit(operator.mul)(2.0, 3.0)) == 6.0


def test_methods_are_told_apart() -> None:
    one, two = Model(1.0), Model(2.0)
    for model in (one, two, one):
        want = model.scale * 3 * X**2
        chex.assert_trees_all_close(ft.grad(ft.jit(model.loss))(X), want)
    with pytest.raises(TypeError, match="Model"):
        one.jitted_by_decorator(X)  # `self` is an argument as any other, as in JAX


def test_a_wrapper_of_a_jitted_function_is_not_that_function() -> None:
    """`functools.wraps`, which `jax.vmap` uses, copies the attributes of what it wraps."""
    batch = jnp.stack([X, 2 * X])
    got = ft.jit(jax.vmap(ft.grad(ft.jit(cube))))(batch)
    chex.assert_trees_all_close(got, 3 * batch**2)


# How a call goes.


def python_functions_entered(call: Callable) -> list[str]:
    entered: list[str] = []

    def profile(frame, event, _):
        if event == "call":
            entered.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered


@pytest.mark.parametrize("transform", [lambda f: f, ft.grad, ft.value_and_grad, ft.hessian])
def test_a_call_takes_the_path_of_jax_in_c(transform: Callable) -> None:
    runs = []

    def fun(x):
        runs.append(x)
        return cube(x)

    f = transform(ft.jit(fun))
    f(X)
    assert (staged := len(runs)) > 0
    assert python_functions_entered(lambda: f(X)) == ["<lambda>", "__call__"]
    assert len(runs) == staged


# What is kept.


def test_a_function_that_is_dropped_is_forgotten() -> None:
    before = len(OF_FUNCTIONS)

    def make():
        big = jnp.ones(1000)

        def fun(x):
            return jnp.sum(jnp.sin(x) * big[0])

        model = Model(3.0)
        for evaluate in TRANSFORMS.values():
            evaluate(fun)
            evaluate(model.loss)
        return weakref.ref(fun), weakref.ref(model)

    references = make()
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert len(OF_FUNCTIONS) <= before


def test_a_jitted_function_keeps_its_function() -> None:
    gradient = ft.grad(ft.jit(lambda x: cube(x)))
    gc.collect()
    chex.assert_trees_all_close(gradient(X), 3 * X**2)
    gc.collect()
    chex.assert_trees_all_close(gradient(X[:2]), 3 * X[:2] ** 2)


# Threads and exceptions.


def test_eight_threads() -> None:
    """They differentiate one function together, and each one of its own, at once."""
    barrier = threading.Barrier(8)
    results: dict[int, list] = {}

    def shared(x):
        return jnp.sum(jnp.sin(x) ** 2)

    def work(i: int) -> None:
        def own(x):
            return jnp.sum(x ** (i + 1))

        barrier.wait()
        results[i] = [
            ft.grad(ft.jit(shared))(X),
            ft.grad(ft.jit(own))(X),
            ft.grad(own)(X),
            ft.jvp(shared, (X,), (X,))[1],
        ]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        power = (i + 1) * X**i
        want = [jnp.sin(2 * X), power, power, jnp.sum(jnp.sin(2 * X) * X)]
        chex.assert_trees_all_close(results[i], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_an_exception_leaves_nothing_behind(name: str) -> None:
    class Oops(Exception):
        pass

    fail = True

    def fun(x):
        y = jnp.sin(x)
        if fail:
            raise Oops
        return jnp.sum(y)

    with take_current_trace() as before:
        pass
    with pytest.raises(Oops):
        TRANSFORMS[name](fun)
    with take_current_trace() as after:
        assert after is before
    assert not isinstance(jnp.sin(X), jax.core.Tracer)
    fail = False
    chex.assert_trees_all_close(
        TRANSFORMS[name](fun), TRANSFORMS[name](lambda x: jnp.sum(jnp.sin(x)))
    )


# Several devices: a child process in which the CPU is eight of them.


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_eight_devices(kind: str) -> None:
    devices = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-W", "error", __file__, kind]
    done = subprocess.run(command, env=devices, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def on_eight_devices(kind: str) -> None:
    """`grad` of a function jitted with shardings gives what JAX gives, placed where JAX puts it.

    On a mesh with `Auto` axes XLA decides the shardings inside; with `Explicit` ones they are
    part of the types, and JAX asks for the mesh to be set.
    """
    assert len(jax.devices()) == 8
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType[kind], AxisType[kind]))
    with jax.set_mesh(mesh) if kind == "Explicit" else nullcontext():
        compare_on(mesh)


def compare_on(mesh: Mesh) -> None:
    rows = NamedSharding(mesh, PartitionSpec("data", None))
    columns = NamedSharding(mesh, PartitionSpec(None, "model"))
    scalar = NamedSharding(mesh, PartitionSpec())
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=shape).astype(np.float32) for shape in [(8, 6), (6, 4)])

    def loss(w, x):
        return jnp.sum(jnp.tanh(x @ w) ** 2)

    options = {"in_shardings": (columns, rows), "out_shardings": scalar}
    placed = jax.device_put(w, columns), jax.device_put(x, rows)
    # Arguments that are nowhere are placed by `in_shardings`; on an explicit mesh they have the
    # type of a replicated array, and so there has their gradient.
    somewhere = [placed] if mesh.are_all_axes_explicit else [placed, (w, x)]
    for argnums, args in itertools.product([(0, 1), 0], somewhere):
        got, want = (ad.grad(ad.jit(loss, **options), argnums)(*args) for ad in (ft, jax))
        same_placement(got, want)
    for evaluate in (
        lambda ad: ad.jit(loss, **options)(*placed),
        lambda ad: ad.jit(ad.grad(loss), out_shardings=columns)(*placed),
        lambda ad: ad.grad(loss)(*placed),
        lambda ad: ad.jit(ad.grad(ad.jit(loss, **options)))(*placed),
        lambda ad: ad.jvp(ad.jit(loss, **options), placed, placed),
        lambda ad: ad.vjp(ad.jit(loss, **options), *placed)[1](jnp.float32(1)),
        lambda ad: ad.jvp(ad.grad(ad.jit(loss, **options)), placed, placed)[1],
    ):
        same_placement(evaluate(ft), evaluate(jax))


def same_placement(got, want) -> None:
    chex.assert_trees_all_close(got, want, rtol=1e-4, atol=1e-5)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, b.ndim), (a.sharding, b.sharding)


if __name__ == "__main__":
    on_eight_devices(sys.argv[1])


def test_a_compiled_function_may_close_over_what_is_differentiated() -> None:
    """The value of a trace around it is no constant of the compiled program."""
    w, x = jnp.arange(6.0).reshape(3, 2), jnp.arange(12.0).reshape(4, 3)

    def squares(ad, w):
        return jnp.sum(ad.jit(lambda y: (y @ w) ** 2)(x))

    def slopes(ad, w):
        return jnp.sum(ad.grad(lambda y: jnp.sum(ad.jit(lambda y: (y @ w) ** 2)(y)))(x))

    for fun in (squares, slopes):
        want = jax.grad(lambda w, fun=fun: fun(jax, w))(w)
        for transform in (lambda f: f, ft.jit):
            got = ft.grad(transform(lambda w, fun=fun: fun(ft, w)))(w)
            chex.assert_trees_all_close(got, want, rtol=1e-6)
