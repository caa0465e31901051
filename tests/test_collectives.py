"""Functions of several devices: `shard_map`, `pmap` and the collectives, on eight simulated CPUs.

The number of devices is fixed when JAX starts, so that all of it runs in one child process, which
is this file run as a script; the tests below look at what it found.
"""

from __future__ import annotations

import functools
import pickle
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import functrans as ft
from functrans.testing import DIFFERENCES, JAX, cross_check

CHECKS: dict[str, Callable[[], None]] = {}
ALONG = P("i")


def mesh(**sizes: int) -> jax.sharding.Mesh:
    count = int(np.prod([*sizes.values()]))
    automatic = (AxisType.Auto,) * len(sizes)
    devices = jax.devices()[:count]
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), automatic, devices=devices)


def array(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(list(shape)).uniform(0.5, 2, shape))


# Derivatives of one function of global arrays: against JAX's, against finite differences, and its
# value against that of the same function without devices.


def function(
    name: str,
    body: Callable,
    plain: Callable | None,
    *shapes: tuple,
    in_specs: Any = ALONG,
    out_specs: Any = ALONG,
    sizes: dict | None = None,
    vma: tuple[bool, ...] = (True, False),
    order: int = 1,
    jax_too: bool = True,
    **options: Any,
) -> None:
    """Declare the checks of `shard_map(body)` of arrays of these shapes.

    Args:
      plain: the same function of the same arrays, for one device.
      sizes: the axes of the mesh; four devices along `i` if left out.
      vma: with which values of `check_vma`.
      order: the highest derivative that is checked with types; without, it is the first.
      jax_too: whether JAX has the derivatives; if not, the reason is in a comment at the function.
    """
    against = (JAX, DIFFERENCES) if jax_too else (DIFFERENCES,)
    for checked in vma:

        def run(checked=checked):
            on = mesh(**(sizes or {"i": 4}))
            specs = {"in_specs": in_specs, "out_specs": out_specs}
            mapped = jax.shard_map(body, mesh=on, check_vma=checked, **specs, **options)
            args = [array(*shape) for shape in shapes]
            if plain is not None:
                same(jax.jit(mapped)(*args), plain(*args))
            # JAX's jit fails where the tangent of an argument of shard_map is a NumPy array.
            fun, highest = lambda *xs: mapped(*(1 * x for x in xs)), order if checked else 1
            cross_check(fun, *args, order=highest, against=against, jitted=True).check()

        CHECKS[f"{name}-{'checked' if checked else 'unchecked'}"] = run


def same(got: Any, want: Any, rtol: float = 1e-9) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, b.shape, a.dtype, b.dtype)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


def blocks(x: jax.Array) -> jax.Array:
    """The shards of four devices along the first dimension."""
    return x.reshape(4, -1, *x.shape[1:])


def joined(x: jax.Array) -> jax.Array:
    return x.reshape(-1, *x.shape[2:])


# Each collective, of a function that is not linear before it and after it.

function(
    "psum",
    lambda x: jnp.sin(lax.psum(x**2, "i")),
    lambda x: jnp.sin(blocks(x**2).sum(0)),
    (8, 3),
    out_specs=P(),
    order=2,
)
function(
    "pmean",
    lambda x: x * lax.pmean(x**2, "i"),
    lambda x: joined(blocks(x) * blocks(x**2).mean(0)),
    (8, 3),
)
function(
    "all_gather",
    lambda x: jnp.sin(x) @ lax.all_gather(x**2, "i", axis=1).reshape(-1, 3).T,
    lambda x: joined(
        jnp.einsum("dia,eja->dije", jnp.sin(blocks(x)), blocks(x**2)).reshape(4, 2, 8)
    ),
    (8, 3),
)
function(
    "all_gather-tiled",
    lambda x: jnp.sin(x) @ lax.all_gather(x**2, "i", axis=0, tiled=True).T,
    lambda x: jnp.sin(x) @ (x**2).T,
    (8, 3),
    order=2,
)
function(
    "all_gather-invariant",
    lambda x: jnp.sin(lax.all_gather(x**2, "i", tiled=True, to="invarying")),
    lambda x: jnp.sin(x**2),
    (8, 3),
    out_specs=P(),
    vma=(True,),
    order=2,
)
function(
    "all_gather-invariant-untiled",
    lambda x: jnp.sin(lax.all_gather(x**2, "i", axis=1, to="invarying")),
    lambda x: jnp.sin(jnp.moveaxis(blocks(x**2), 0, 1)),
    (8, 3),
    out_specs=P(),
    vma=(True,),
)
# JAX's pullback of this one fails: it gives the cotangent another shape.
function(
    "all_to_all",
    lambda x: jnp.sin(lax.all_to_all(x**2, "i", 1, 0)),
    lambda x: jnp.sin(jnp.moveaxis(blocks(x**2), 2, 0)).reshape(16, 2, 3),
    (8, 4, 3),
    jax_too=False,
)
function(
    "all_to_all-tiled",
    lambda x: jnp.sin(lax.all_to_all(x**2, "i", 1, 0, tiled=True)),
    lambda x: jnp.sin(jnp.moveaxis(x.reshape(8, 4, 2) ** 2, 1, 0).reshape(32, 2)),
    (8, 8),
    order=2,
)
function(
    "ppermute",
    lambda x: x * jnp.sin(lax.ppermute(x**2, "i", [(0, 1), (1, 2), (3, 0)])),
    lambda x: x * jnp.sin(x[jnp.array([3, 0, 1, 0])] ** 2 * jnp.array([[1], [1], [1], [0]])),
    (4, 3),
    order=2,
)
function(
    "pshuffle",
    lambda x: x * jnp.sin(lax.pshuffle(x**2, "i", [1, 2, 3, 0])),
    lambda x: joined(blocks(x) * jnp.sin(jnp.roll(blocks(x**2), -1, 0))),
    (4, 3),
)
function(
    "psum_scatter",
    lambda x: jnp.sin(lax.psum_scatter(x**2, "i", scatter_dimension=1)),
    lambda x: joined(jnp.moveaxis(jnp.sin(blocks(x**2).sum(0)), 1, 0)),
    (8, 4),
)
function(
    "psum_scatter-tiled",
    lambda x: jnp.sin(lax.psum_scatter(x**2, "i", tiled=True)),
    lambda x: jnp.sin(blocks(x**2).sum(0)),
    (16, 3),
    order=2,
)
function(
    "axis_index",
    lambda x: jnp.sin(x * lax.axis_index("i") / lax.axis_size("i")),
    lambda x: jnp.sin(joined(blocks(x) * jnp.arange(4)[:, None, None] / 4)),
    (4, 3),
)

# Replication: which values are one number, and which are several.

function(
    "replicated-input",
    lambda x, w: jnp.sin(x @ w) * w[0],
    lambda x, w: jnp.sin(x @ w) * w[0],
    (8, 3),
    (3, 2),
    in_specs=(P("i"), P()),
    order=2,
)
function(
    "replicated-scalar",
    lambda x, s: (lax.psum(jnp.sum(jnp.sin(x * s)), "i"), s**3, x * s),
    lambda x, s: (jnp.sum(jnp.sin(x * s)), s**3, x * s),
    (8, 3),
    (),
    in_specs=(P("i"), P()),
    out_specs=(P(), P(), P("i")),
)
function(
    "two-axes",
    lambda x, w: (lax.psum(jnp.sin(x) * w, "i"), lax.psum(x * w**2, ("i", "j"))),
    lambda x, w: (
        (jnp.sin(x) * jnp.tile(w, (4, 2))).reshape(2, 2, 4).sum(0),
        (x * jnp.tile(w, (4, 2)) ** 2).reshape(2, 2, 2, 2).sum((0, 2)),
    ),
    (4, 4),
    (1, 2),
    in_specs=(P("i", "j"), P()),
    out_specs=(P(None, "j"), P()),
    sizes={"i": 2, "j": 2},
)
function(
    "one-axis-of-two",
    lambda x: jnp.cumsum(lax.psum(jnp.sin(x), "i"), axis=1) * x,
    lambda x: joined(jnp.cumsum(jnp.sin(x).reshape(2, 2, 4).sum(0), axis=1) * x.reshape(2, 2, 4)),
    (4, 4),
    sizes={"i": 2, "j": 2},
    axis_names={"i"},
)
function(
    "a-shard-over-both",
    lambda x: jnp.sin(x) * lax.psum(x**2, "j"),
    None,
    (8, 3),
    in_specs=P(("i", "j")),
    out_specs=P(("i", "j")),
    sizes={"i": 2, "j": 2},
)

# What may be inside.


def looped(x: jax.Array, w: jax.Array) -> Any:
    def step(carry, row):
        total, count = carry
        total = total + jnp.sin(row * w)
        return (total, count + 1), lax.psum(total, "i") * count

    start = jnp.zeros(3) + 0 * x[0], 0
    (total, _), ys = lax.scan(step, start, x)
    return total[None], ys


function(
    "scan",
    looped,
    None,
    (8, 3),
    (3,),
    in_specs=(P("i"), P()),
    out_specs=(P("i"), P()),
    order=2,
)


def branches(x: jax.Array) -> jax.Array:
    is_even = lax.axis_index("i") % 2 == 0
    return lax.cond(is_even, jnp.sin, lambda y: y**2, x)


function("cond", branches, None, (4, 3))
function(
    "jit",
    lambda x, w: jax.jit(lambda y: lax.psum(jnp.sin(y) * w, "i"))(x) * jax.nn.silu(x),
    None,
    (4, 3),
    (3,),
    in_specs=(P("i"), P()),
)
function(
    "checkpoint",
    jax.checkpoint(lambda x: lax.psum(jnp.sin(jnp.sin(x)), "i") * x),
    None,
    (4, 3),
)
function(
    "custom_jvp",
    lambda x: jax.nn.relu(x - 1) * lax.pmean(jax.nn.gelu(x), "i"),
    None,
    (4, 3),
)
# XLA refuses the program that JAX makes of this one's pullback.
function(
    "nested",
    lambda x: jax.shard_map(
        lambda y: lax.psum(jnp.sin(y), ("i", "j")) * y,
        out_specs=P(None, "j"),
        in_specs=P(None, "j"),
        axis_names={"j"},
    )(x**2),
    None,
    (4, 4),
    in_specs=P("i"),
    sizes={"i": 2, "j": 2},
    axis_names={"i"},
    vma=(True,),
    jax_too=False,
)
function(
    "integers",
    lambda x: (x * jnp.arange(3), lax.psum(jnp.arange(3), "i"), jnp.argmax(x)[None]),
    None,
    (4, 3),
    out_specs=(P("i"), P(), P("i")),
    vma=(False,),
)


# Everything else is compared with what JAX does, on four devices along `i`.


def like_jax(evaluate: Callable) -> Callable:
    """Declare a program `ad -> arrays`; results and their shardings are to be the same."""

    def run():
        got, want = evaluate(ft), evaluate(jax)
        same(got, want)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert a.sharding.is_equivalent_to(b.sharding, a.ndim), (a.sharding, b.sharding)

    CHECKS[evaluate.__name__] = run
    return evaluate


def at_once(evaluate: Callable) -> Callable:
    """The program compiled as one, which is quicker than operation by operation."""

    @functools.wraps(evaluate)
    def compiled(ad):
        return jax.jit(lambda: evaluate(ad))()

    return compiled


def mapped(body: Callable, in_specs: Any, out_specs: Any, checked: bool = True) -> Callable:
    return jax.shard_map(
        body, mesh=mesh(i=4), in_specs=in_specs, out_specs=out_specs, check_vma=checked
    )


X, W = (8, 3), (3,)


@like_jax
def pmap(ad):
    f = jax.pmap(
        lambda x, w: (lax.psum(jnp.sin(x) * w, "d") * x, w),
        axis_name="d",
        in_axes=(0, None),
        out_axes=(0, None),
    )
    x, w = array(*X), array(*W)
    y, pull = ad.vjp(f, x, w)
    return pull(y), ad.jvp(f, (x, w), (x, w)), ad.jit(ad.grad(lambda x: f(x, w)[0].sum()))(x)


@like_jax
def gradients_inside_of_pmap(ad):
    def step(w, x):
        gradient = ad.grad(lambda w: jnp.mean(jnp.sin(x * w)))(w)
        return w - 0.1 * lax.pmean(gradient, "d")

    return jax.pmap(step, axis_name="d", in_axes=(None, 0))(array(*W), array(*X))


@like_jax
@at_once
def closures(ad):
    """A value that is differentiated, and that the function on each device closes over."""

    def loss(x, w):
        root = jnp.sqrt(w)
        return mapped(lambda x: lax.psum(jnp.sum(jnp.sin(x * root) * w), "i"), P("i"), P())(x)

    x, w = array(*X), array(*W)
    return (
        ad.grad(loss, (0, 1))(x, w),
        ad.jit(ad.grad(loss, (0, 1)))(x, w),
        ad.jvp(ad.grad(loss, 1), (x, w), (x, w)),
        ad.hessian(loss, 1)(x, w),
    )


@like_jax
def a_linear_function_transposed(ad):
    x = array(*X)
    f = mapped(lambda x, v: lax.psum(x @ v, "i"), (P("i"), P()), P())
    return ad.linear_transpose(lambda v: f(x, v), array(*W))(array(2))


def gradients_inside(checked: bool) -> Callable:
    """Transforms of what one device sees; with types, a gradient that all share is summed."""

    def evaluate(ad):
        def body(x, w):
            def loss(w, x):
                return lax.psum(jnp.sum(jnp.sin(x * w) ** 2), "i")

            def local(x):
                start = 0 * x[0]
                total, _ = lax.scan(lambda c, row: (c + jnp.sin(row * w), c), start, x)
                even = lax.cond(lax.axis_index("i") % 2 == 0, jnp.sin, jnp.cos, x)
                return jnp.sum(total) + jnp.sum(even * jax.nn.relu(x - 1).at[0].set(2 * x[1]))

            w_bar, x_bar = ad.grad(loss, (0, 1))(w, x)
            bent = ad.jvp(ad.grad(loss, 1), (w, x), (w, x))[1]
            return w_bar[None], x_bar, ad.grad(local)(x), bent

        specs = P(None if checked else "i"), P("i"), P("i"), P("i")
        return mapped(body, (P("i"), P()), specs, checked)(array(*X), array(*W))

    evaluate.__name__ = f"gradients_inside-{'checked' if checked else 'unchecked'}"
    return evaluate


like_jax(at_once(gradients_inside(True)))
like_jax(at_once(gradients_inside(False)))


@like_jax
@at_once
def vmap_of_gradients(ad):
    f = mapped(lambda x, w: lax.psum(jnp.sum(jnp.sin(x * w)), "i"), (P("i"), P()), P())
    x, ws = array(*X), array(2, *W)
    inner = jax.vmap(ad.grad(f, (0, 1)), (None, 0))(x, ws)
    outer = ad.grad(lambda x: jnp.sum(jax.vmap(f, (None, 0))(x, ws)))(x)
    return inner, outer


@like_jax
@at_once
def an_axis_of_vmap(ad):
    """A collective along it sums over a dimension of the array."""

    def f(x):
        total = lax.psum(jnp.sin(x), "v") * x + lax.all_gather(x, "v").sum(0)
        return total + lax.axis_index("v") * x**2

    x = array(*X)
    return (
        jax.vmap(ad.grad(lambda x: f(x).sum()), axis_name="v")(x),
        ad.grad(lambda x: jnp.sum(jax.vmap(f, axis_name="v")(x) ** 2))(x),
        jax.vmap(lambda x: ad.jvp(f, (x,), (x,)), axis_name="v")(x),
    )


@like_jax
def a_residual_of_a_reduced_type(ad):
    explicit = jax.make_mesh((4,), ("i",), (AxisType.Explicit,), devices=jax.devices()[:4])

    def body(x):
        shared = jnp.sin(lax.pcast(lax.psum(x**2, "i"), "i", to="reduced"))
        return jnp.sin(lax.pcast(shared, "i", to="varying")) * x

    with jax.set_mesh(explicit):
        x = jax.device_put(array(*X), NamedSharding(explicit, P("i")))
        f = jax.shard_map(body, in_specs=P("i"), out_specs=P("i"))
        return jax.jit(ad.grad(lambda x: jnp.sum(f(x) ** 2)))(x)


@like_jax
def a_laplacian(ad):
    """What a value carries is divided among the devices as the value is."""

    def body(x):
        return jnp.sin(x) * lax.psum(x**3, "i")

    found = []
    for checked in (True, False):
        f = jax.shard_map(body, mesh=mesh(i=4), in_specs=ALONG, out_specs=ALONG, check_vma=checked)
        weights = jnp.outer(array(4), array(4))
        if ad is ft:
            weighted = jax.jit(ft.laplacian(f, weights=weights))
            found += [ft.laplacian(f)(array(4)), weighted(array(4))]
        else:
            hessian = jax.jit(jax.hessian(f))(array(4))
            found += [jnp.trace(hessian, axis1=-2, axis2=-1), jnp.sum(weights * hessian, (-2, -1))]
    return jax.device_put(found, jax.devices()[0])  # where they lie is another question


# Training in parallel on the data: each device has a part of the batch, and all have the weights.


def loss(weights, x, y):
    hidden = jnp.tanh(x @ weights["in"])
    return jnp.mean((hidden @ weights["out"] - y) ** 2)


def batch():
    weights = {"in": array(3, 4), "out": array(4)}
    return weights, array(8, 3), array(8)


@like_jax
def training_with_sharded_arrays(ad):
    """The compiler sees to the communication; a gradient lies as what it belongs to."""
    weights, x, y = batch()
    along, everywhere = (NamedSharding(mesh(i=4), spec) for spec in (P("i"), P()))
    x, y = jax.device_put((x, y), along)
    weights = jax.device_put(weights, everywhere)
    w_bar, x_bar = ad.jit(ad.grad(loss, (0, 1)))(weights, x, y)
    assert x_bar.sharding.is_equivalent_to(along, 2)
    assert w_bar["in"].sharding.is_equivalent_to(everywhere, 2)
    return w_bar, x_bar, ad.grad(loss, (0, 1))(weights, x, y)


def training_with_psum(checked: bool) -> Callable:
    def evaluate(ad):
        weights, x, y = batch()

        def step(weights, x, y):
            gradient = ad.grad(loss)(weights, x, y)
            # With types, weights that all share have the sum for their gradient already.
            count = lax.axis_size("i")
            mean = (lambda g: g / count) if checked else (lambda g: lax.pmean(g, "i"))
            return jax.tree.map(lambda w, g: w - 0.1 * mean(g), weights, gradient)

        parallel = jax.jit(mapped(step, (P(), P("i"), P("i")), P(), checked))(weights, x, y)
        gradient = ad.grad(loss)(weights, x, y)
        same(parallel, jax.tree.map(lambda w, g: w - 0.1 * g, weights, gradient))
        return parallel

    evaluate.__name__ = f"training_with_psum-{'checked' if checked else 'unchecked'}"
    return evaluate


like_jax(training_with_psum(True))
like_jax(training_with_psum(False))


def an_extremum_has_no_derivative():
    """Nor has it in JAX, of which this is the exception."""
    f = mapped(lambda x: lax.pmax(x, "i"), P("i"), P())
    g = mapped(lambda x: x - lax.pmax(lax.stop_gradient(x), "i"), P("i"), P("i"))
    for ad in (ft, jax):
        with pytest.raises(NotImplementedError, match="pmax"):
            ad.grad(lambda x: jnp.sum(f(x)))(array(4))
        assert np.all(ad.grad(lambda x: jnp.sum(g(x)))(array(4)) == 1)


CHECKS["an_extremum_has_no_derivative"] = an_extremum_has_no_derivative


def child(folder: Path) -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    results = {}
    for name, run in CHECKS.items():
        try:
            run()
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
    (folder / "results").write_bytes(pickle.dumps(results))


@pytest.fixture(scope="module")
def results(run_once: Callable[[str], Path]) -> dict[str, str]:
    """For each check the traceback of its failure, or nothing."""
    return pickle.loads((run_once(__file__) / "results").read_bytes())


@pytest.mark.parametrize("name", CHECKS)
def test_on_several_devices(name: str, results: dict[str, str]) -> None:
    assert results[name] == "", results[name]


@pytest.mark.parametrize("ad", [ft, jax])
def test_a_collective_outside_of_its_axis(ad: Any) -> None:
    """The error is JAX's, and the traceback ends on the user's line."""

    def fun(x):
        return lax.psum(x, "i")

    with pytest.raises(NameError, match="unbound axis name: i") as caught:
        ad.grad(fun)(1.0)
    assert fun.__name__ in [frame.name for frame in traceback.extract_tb(caught.tb)]


def test_two_processes() -> None:
    """Each with a device and half of the batch; the script checks the gradient in both."""
    script = Path(__file__).with_name("distributed_training.py")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(port), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [child.communicate(timeout=120)[0] for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 0], "\n".join(outputs)
    assert all("the gradients agree" in output for output in outputs)


if __name__ == "__main__":
    child(Path(sys.argv[1]))
