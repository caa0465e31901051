"""Patterns of the primitives that other detectors name, and of programs as users write them: none
has too few nonzeros at points at random, and those that say so have none too many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.ode import odeint
from jax.extend.core import jaxprs_in_params
from jax.scipy import special

import functrans as ft

pytestmark = pytest.mark.usefixtures("float64", "quick_compilation")

RNG = np.random.default_rng(3)
POINTS = RNG.uniform(0.2, 0.8, (3, 12))


def flat(fun: Callable) -> Callable:
    """The results as one vector."""
    return lambda x: jnp.concatenate([*map(jnp.ravel, jax.tree.leaves(fun(x)))])


def nonzeros(programs: dict[str, Callable]) -> dict[str, np.ndarray]:
    """Which elements of the Jacobian differ from zero at one of the points; all are one program."""
    functions = {name: flat(fun) for name, fun in programs.items()}

    @jax.jit
    def all_of(x):
        def column(v):
            return {name: ft.jvp(fun, (x,), (v,))[1] for name, fun in functions.items()}

        return jax.vmap(column, out_axes=1)(jnp.eye(12))

    found = [all_of(x) for x in POINTS]
    return {name: np.any([np.asarray(f[name]) != 0 for f in found], 0) for name in programs}


def assert_right(programs: dict[str, Callable], exact: set[str]) -> None:
    few, many = [], []
    for name, differs in nonzeros(programs).items():
        pattern = ft.sparse.jacobian_pattern(programs[name], POINTS[0]).dense()
        few += [name] if differs[~pattern].any() else []
        many += [name] if name in exact and pattern[~differs].any() else []
    assert not few and not many


# ---- primitives ----------------------------------------------------------------------------------


def bits(x):
    return lax.bitcast_convert_type(x.astype(np.float32), np.int32)


def pairs(x):
    return x.reshape(6, 2)


def matrices(x):
    m = x.reshape(3, 2, 2)
    return m @ m.swapaxes(1, 2) + 2 * jnp.eye(2)


def along_rows(primitive: str) -> Callable:
    return lambda x: getattr(lax, primitive)(x.reshape(3, 4), axis=1)


def called_back(x):
    @jax.custom_jvp
    def sine(x):
        return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)

    sine.defjvp(lambda xs, dots: (sine(xs[0]), jnp.cos(xs[0]) * dots[0]))
    return sine(x)


@jax.custom_jvp
def with_jvp(x):
    return x * jnp.roll(x, 1)


with_jvp.defjvp(lambda xs, dots: (with_jvp(xs[0]), 2 * dots[0]))


@jax.custom_vjp
def with_vjp(x):
    return x * jnp.roll(x, 1)


with_vjp.defvjp(
    lambda x: (with_vjp(x), x),
    lambda x, y_bar: (y_bar * jnp.roll(x, 1) + jnp.roll(y_bar * x, -1),),
)

UNARY = [
    "neg",
    "exp",
    "log",
    "sin",
    "cos",
    "tan",
    "sqrt",
    "abs",
    "sinh",
    "cosh",
    "tanh",
    "log1p",
    "expm1",
    "acos",
    "asin",
    "asinh",
    "atan",
    "atanh",
    "cbrt",
    "exp2",
    "logistic",
    "rsqrt",
    "erf",
    "erfc",
    "erf_inv",
    "square",
    "digamma",
    "lgamma",
    "bessel_i0e",
    "bessel_i1e",
    "floor",
    "ceil",
    "round",
    "sign",
]
BINARY = ["mul", "add", "sub", "div", "pow", "max", "min", "atan2", "rem", "nextafter"]
COMPARED = ["eq", "ne", "lt", "le", "gt", "ge"]
ROWS = ["cumsum", "cumprod", "cummax", "cummin"]


PRIMITIVES: dict[str, Callable] = {
    **{name: getattr(lax, name) for name in UNARY},
    **{name: lambda x, name=name: getattr(lax, name)(x, x[::-1] + 0.01) for name in BINARY},
    **{name: lambda x, name=name: jnp.where(getattr(lax, name)(x, x[::-1]), x, 2 * x)
       for name in COMPARED},
    **{name: along_rows(name) for name in ROWS},
    "acosh": lambda x: lax.acosh(x + 1),
    "argmax": lambda x: x * jnp.argmax(x),
    "argmin": lambda x: x * jnp.argmin(x),
    "is_finite": lambda x: x * lax.is_finite(x),
    "clz": lambda x: x * lax.clz(bits(x)),
    "population_count": lambda x: x * lax.population_count(bits(x)),
    "reduce_and": lambda x: x * jnp.all(x > 0),
    "reduce_or": lambda x: x * jnp.any(x > 0.5),
    "reduce_xor": lambda x: x * lax.reduce_xor(bits(x), (0,)),
    "not": lambda x: x * ~(x > 0.5),
    "and": lambda x: x * ((x > 0.3) & (x < 0.7)),
    "or": lambda x: x * ((x < 0.3) | (x > 0.7)),
    "xor": lambda x: x * ((x > 0.3) ^ (x > 0.7)),
    "shift_left": lambda x: x * lax.shift_left(bits(x), np.int32(1)),
    "shift_right_arithmetic": lambda x: x * lax.shift_right_arithmetic(bits(x), np.int32(1)),
    "shift_right_logical": lambda x: x * lax.shift_right_logical(bits(x), np.int32(1)),
    "clamp": lambda x: lax.clamp(x[0], x, 0.7),
    "jit": jax.jit(lambda x: x * x[::-1]),
    "checkpoint": jax.checkpoint(lambda x: jnp.sin(x) * x[::-1]),
    "slice": lambda x: x[1:9:2] ** 2,
    "pad": lambda x: jnp.pad(x, 2) ** 2,
    "squeeze": lambda x: x.reshape(12, 1).squeeze() ** 2,
    "broadcast_in_dim": lambda x: jnp.broadcast_to(x[:, None], (12, 2)),
    "concatenate": lambda x: jnp.concatenate([x, x[:2]]),
    "reshape": lambda x: x.reshape(3, 4) ** 2,
    "transpose": lambda x: pairs(x).T ** 2,
    "rev": lambda x: x[::-1] * x[0],
    "integer_pow": lambda x: x**3,
    "add_any": ft.grad(lambda x: jnp.sum(jnp.sin(x) * x)),
    "complex": lambda x: jnp.abs(lax.complex(x, x[::-1])),
    "conj": lambda x: jnp.real(jnp.conj(x + 2j * x[0]) * 1j),
    "real": lambda x: jnp.real((x + 1j) ** 2),
    "imag": lambda x: jnp.imag((x + 1j) ** 2),
    "polygamma": lambda x: special.polygamma(1, x + 1),
    "copy": jnp.copy,
    "regularized_incomplete_beta": lambda x: lax.betainc(x[:6], x[6:], np.full(6, 0.5)),
    "reduce_sum": lambda x: pairs(x).sum(1),
    "reduce_max": lambda x: pairs(x).max(1),
    "reduce_min": lambda x: pairs(x).min(1),
    "reduce_prod": lambda x: pairs(x).prod(1),
    "convert_element_type": lambda x: x.astype(np.float32) ** 2,
    "bitcast_convert_type": lambda x: x * bits(x),
    "reduce_precision": lambda x: lax.reduce_precision(x, 8, 10),
    "conv_general_dilated": lambda x: jnp.convolve(x, np.array([1.0, -2, 1]), "same"),
    "custom_jvp_call": with_jvp,
    "custom_vjp_call": with_vjp,
    "gather": lambda x: x[np.array([3, 1, 1])] ** 2,
    "scatter": lambda x: x.at[np.array([0, 2])].set(x[5:7]),
    "scatter-add": lambda x: x.at[np.array([0, 2])].add(x[5:7]),
    "scatter-mul": lambda x: x.at[np.array([0, 2])].multiply(x[5:7], unique_indices=True),
    "scatter-min": lambda x: x.at[np.array([0, 2])].min(x[5:7]),
    "scatter-max": lambda x: x.at[np.array([0, 2])].max(x[5:7]),
    "select_n": lambda x: jnp.where(x < 0.5, x, x[::-1]),
    "iota": lambda x: x * lax.iota(float, 12),
    "random_bits": lambda x: x * jax.random.uniform(jax.random.key(0), (12,)),
    "random_seed": lambda x: x * jax.random.bits(jax.random.key(bits(x[:1])[0]), (12,)),
    "random_split": lambda x: x * jax.random.bits(jax.random.split(jax.random.key(0))[0], (12,)),
    "random_fold_in": lambda x: x * jax.random.bits(
        jax.random.fold_in(jax.random.key(0), jnp.argmax(x)), (12,)),
    "random_wrap": lambda x: x * jax.random.bits(jax.random.wrap_key_data(
        jnp.zeros(2, np.uint32)), (12,)),
    "random_unwrap": lambda x: x * jax.random.key_data(jax.random.key(0))[0],
    "while": lambda x: lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] ** 2), (0, x))[1],
    "cond": lambda x: lax.cond(x[0] > 0.5, jnp.sin, lambda x: x[::-1], x),
    "platform_index": lambda x: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
    "dynamic_slice": lambda x: lax.dynamic_slice(x, (jnp.argmax(x),), (3,)),
    "dynamic_update_slice": lambda x: lax.dynamic_update_slice(x, x[:2] ** 2, (jnp.argmax(x),)),
    "top_k": lambda x: lax.top_k(x.reshape(3, 4), 2)[0],
    "scan": lambda x: lax.scan(lambda c, a: (c * a, c), 1.0, x),
    "dot_general": lambda x: x[:6].reshape(3, 2) @ x[6:].reshape(2, 3),
    "split": lambda x: [part**2 for part in jnp.split(x, [4, 7])],
    "stack": lambda x: jnp.stack([x[:6], x[6:]], 1),
    "unstack": lambda x: jnp.unstack(pairs(x))[1],
    "tile": lambda x: jnp.tile(x, 2),
    "sort": lambda x: jnp.sort(x.reshape(3, 4)),
    "qr": lambda x: jnp.linalg.qr(matrices(x))[1],
    "lu": lambda x: lax.linalg.lu(matrices(x))[0],
    "cholesky": lambda x: jnp.linalg.cholesky(matrices(x)),
    "svd": lambda x: jnp.linalg.svd(matrices(x), compute_uv=False),
    "eigh": lambda x: jnp.linalg.eigvalsh(matrices(x)),
    "pure_callback": called_back,
    "nonbatchable": lambda x: x * eqxi.nonbatchable(bits(x)),
    "unvmap_any": lambda x: x * eqxi.unvmap_any(x > 0.5),
    "unvmap_max": lambda x: x * eqxi.unvmap_max(bits(x)),
    "select_if_vmap": lambda x: eqxi.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, c[1] * x), (0, x), max_steps=3, kind="bounded")[1],
}  # fmt: skip
"""For each primitive that asdex 0.5 has a handler for a program that binds it."""

OF_ONE_LINE = {"split", "stack", "unstack", "tile", "platform_index", "square", "clamp", "round"}
OF_ONE_LINE |= {"select_if_vmap", "random_unwrap", "polygamma", "copy"}
"""Some versions of JAX have no such primitive, or give its function another."""

ABOVE = {"max", "min", "rem", "clamp", "conj", "reduce_max", "reduce_min", "cummax", "cummin"}
ABOVE |= {"select_n", "cond", "dynamic_slice", "dynamic_update_slice", "sort", "top_k", "cholesky"}
ABOVE |= {"scatter-min", "scatter-max", "lu", "qr", "sign", "not", "and", "or", "xor"}
"""What depends on values, for which three points do not suffice."""


def bound(jaxpr: Any) -> Iterator[str]:
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for program in jaxprs_in_params(equation.params):
            yield from bound(program)


def test_each_primitive() -> None:
    for name, fun in PRIMITIVES.items():
        names = {*bound(jax.make_jaxpr(fun)(POINTS[0]).jaxpr)}
        met = {name, name.replace("checkpoint", "remat2"), name.replace("jit", "pjit")}
        assert met & names or name in OF_ONE_LINE, (name, names)
    assert_right(PRIMITIVES, PRIMITIVES.keys() - ABOVE)


# ---- programs ------------------------------------------------------------------------------------

LINES = np.array([[i, i + 1, i + 2] for i in range(0, 10, 2)])
SENDERS, RECEIVERS = np.array([0, 1, 2, 3, 4, 5, 0]), np.array([1, 2, 3, 4, 5, 0, 3])
STIFFNESS = np.array([[2.0, -1, 0], [-1, 2, -1], [0, -1, 2]])


def assembled(u):
    of_elements = u[LINES] @ STIFFNESS + u[LINES] ** 3
    return jnp.zeros(12).at[LINES].add(of_elements)


def assembled_by_energies(u):
    forces = jax.vmap(ft.grad(lambda v: jnp.sum(jnp.diff(v) ** 4)))(u[LINES])
    return jnp.zeros(12).at[LINES.ravel()].add(forces.ravel())


def assembled_in_a_scan(u):
    return lax.scan(lambda r, e: (r.at[e].add(u[e] ** 2 * u[e][::-1]), None), jnp.zeros(12), LINES)


def assembled_in_a_loop(u):
    def step(i, r):
        e = jnp.asarray(LINES)[i]
        return r.at[e].add(u[e] ** 2)

    return lax.fori_loop(0, len(LINES), step, jnp.zeros(12))


def attention_on_a_graph(x):
    h = pairs(x)
    scores = jnp.sum(h[SENDERS] * h[RECEIVERS], 1)
    weights = jnp.exp(scores - jax.ops.segment_max(scores, RECEIVERS, 6)[RECEIVERS])
    total = jax.ops.segment_sum(weights, RECEIVERS, 6)
    sent = (weights / total[RECEIVERS])[:, None] * h[SENDERS]
    return jax.ops.segment_sum(sent, RECEIVERS, 6)


def springs(x):
    h = pairs(x)
    force = (h[SENDERS] - h[RECEIVERS]) ** 3
    return jnp.zeros((6, 2)).at[SENDERS].add(force).at[RECEIVERS].add(-force)


def relaxed(x):
    return lax.fori_loop(1, 11, lambda i, c: c.at[i].set((c[i - 1] + c[i + 1]) / 2), x)


def roots(x):
    def newton(f, y):
        return lax.fori_loop(0, 20, lambda i, y: y - f(y) / (3 * y**2), y)

    def root(a):
        return lax.custom_root(lambda y: y**3 - a, 1.0, newton, lambda g, y: y / g(1.0))

    return jax.vmap(root)(x)


PROGRAMS: dict[str, Callable] = {
    "finite elements": assembled,
    "and their boundary": lambda u: assembled(u).at[np.array([0, 11])].set(u[np.array([0, 11])]),
    "forces of energies": assembled_by_energies,
    "one element after another": lambda u: assembled_in_a_scan(u)[0],
    "in a loop": assembled_in_a_loop,
    "springs": springs,
    "means over messages": lambda x: jax.ops.segment_sum(pairs(x)[SENDERS], RECEIVERS, 6) / 2,
    "products of messages": lambda x: jax.ops.segment_prod(pairs(x)[SENDERS], RECEIVERS, 6),
    "counts": lambda x: jnp.bincount(np.arange(12) % 3, weights=x, length=3),
    "a tridiagonal system": lambda x: lax.linalg.tridiagonal_solve(
        jnp.zeros(12).at[1:].set(x[1:]), x + 3, jnp.zeros(12).at[:-1].set(x[:-1]), x[:, None]),
    "filtered": lambda x: jnp.fft.irfft(jnp.fft.rfft(x) * np.exp(-np.arange(7)), 12),
    "complex in a scan": lambda x: lax.scan(lambda c, a: (c, jnp.abs(jnp.exp(a) * c)), 1j, x)[1],
    "sums of sums": lambda x: jnp.cumsum(jnp.cumsum(x.reshape(3, 4), 0), 1),
    "slopes": lambda x: jnp.gradient(x),
    "a product of polynomials": lambda x: jnp.convolve(x[3:], x[:3]),
    "patches": lambda x: lax.conv_general_dilated_patches(
        x.reshape(1, 1, 3, 4), (2, 2), (1, 1), "VALID"),
    "resized": lambda x: jax.image.resize(x.reshape(3, 4), (3, 8), "linear"),
    "a Kronecker product": lambda x: jnp.kron(x[:2], x[2:5]),
    "factors and solutions": lambda x: jax.vmap(
        lambda a: jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(a), a[0]))(matrices(x)),
    "cross products": lambda x: jnp.cross(x.reshape(4, 3), x.reshape(4, 3)[::-1]),
    "elimination": lambda x: lax.scan(lambda c, a: (a / (2 - c), a * c), 0.1, x)[1],
    "Gauss and Seidel": relaxed,
    "two from behind": lambda x: lax.scan(
        lambda c, a: (a, c + a[0] * a[1]), x[:2], pairs(x), reverse=True)[1],
    "a carry that counts": lambda x: lax.scan(lambda c, a: (c + 1, x[c] * a), 0, x)[1],
    "a loop in a map": lambda x: lax.map(lambda a: lax.fori_loop(0, 3, lambda i, c: c * a, a), x),
    "an associative scan": lambda x: lax.associative_scan(jnp.multiply, pairs(x)),
    "a checkpointed step": lambda x: lax.scan(
        jax.checkpoint(lambda c, a: (c * a, jnp.sin(a) * a)), 1.0, x),
    "a known permutation": lambda x: x[(jnp.arange(12) * 5) % 12] * x,
    "known rows and columns": lambda x: x.reshape(3, 4)[
        jnp.arange(3)[:, None], (jnp.arange(4) * 3) % 4],
    "filled": lambda x: jnp.take(x, np.array([0, 20, -1]), mode="fill", fill_value=0.0),
    "dropped": lambda x: x.at[np.array([1, 50])].set(x[0], mode="drop"),
    "windows are written": lambda x: jnp.zeros((4, 4)).at[1:3, 1:3].add(x[:4].reshape(2, 2)),
    "slices under vmap": lambda x: jax.vmap(lambda i: lax.dynamic_slice(x, (i,), (2,)))(
        np.arange(0, 10, 2)),
    "written under vmap": lambda x: jax.vmap(lambda r, i: r.at[i].set(0.0))(
        x.reshape(4, 3), np.arange(4) % 3),
    "a Hessian inside": lambda x: ft.hvp(lambda x: jnp.sum(jnp.diff(x) ** 4), x, np.arange(12.0)),
    "roots": roots,
    "an equation of motion": lambda x: odeint(lambda y, t: -y * y, x, jnp.array([0.0, 0.1]))[1],
    "a wave on a circle": lambda x: jnp.pad(x, 1, mode="wrap")[2:] * x,
    "reflected": lambda x: jnp.pad(x.reshape(3, 4), 1, mode="reflect") ** 2,
    "normalized": lambda x: jax.nn.standardize(x.reshape(4, 3), axis=1),
    "a Jacobian inside": lambda x: jax.vmap(lambda a: ft.jacfwd(jnp.sin)(a) @ a)(x.reshape(4, 3)),
    "triangular systems": lambda x: jax.scipy.linalg.solve_triangular(
        matrices(x), jnp.sin(x).reshape(3, 2, 2), lower=True),
    "attention on a graph": attention_on_a_graph,
    "attention in a band": lambda x: jax.nn.softmax(
        jnp.where(np.tri(4) - np.tri(4, k=-2) > 0, x[:4, None] * x[4:8], -jnp.inf)) @ x[8:],
    "a transform of rows": lambda x: jnp.real(
        jnp.fft.ifft(1j * np.arange(4) * jnp.fft.fft(x.reshape(3, 4)))) ** 2,
    "quantiles": lambda x: jnp.quantile(x.reshape(4, 3), 0.3, axis=1),
    "in order of keys": lambda x: x[jnp.lexsort((x, jnp.round(x)))],
    "the largest so far": lambda x: lax.cummax(x),
    "interpolated": lambda x: jnp.interp(np.linspace(0.1, 0.9, 5), np.linspace(0, 1, 12), x),
    "in between": lambda x: jax.scipy.ndimage.map_coordinates(
        x.reshape(3, 4), [2 * x[:2], 3 * x[2:4]], 1),
    "neighbors": lambda x: lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.minimum(c[1], jnp.roll(c[1], 1))), (0, x))[1],
    "halved": lambda x: lax.while_loop(lambda c: jnp.max(c) > 0.1, lambda c: c * 0.5, x),
    "a branch in a scan": lambda x: lax.scan(
        lambda c, a: (c, lax.cond(a > 0.5, lambda a: a * c, lambda a: 2 * a, a)), x[0], x)[1],
    "a branch under vmap": lambda x: jax.vmap(
        lambda a, b: lax.cond(a > 0.5, lambda: a * b, lambda: a))(x, x[::-1]),
    "a loop under vmap": lambda x: jax.vmap(
        lambda a: lax.while_loop(lambda c: c > 0.2, lambda c: c * 0.7, a))(x),
    "unknown slices under vmap": lambda x: jax.vmap(
        lambda i: lax.dynamic_slice(x, (i,), (2,)))(jnp.argsort(x)[:2]),
    "the nearest": lambda x: x[jnp.argmin(jnp.abs(x[:, None] - x + 10 * np.eye(12)), 1)],
    "the largest of each row": lambda x: jnp.take_along_axis(
        x.reshape(4, 3), jnp.argmax(x.reshape(4, 3), 1)[:, None], 1),
    "the largest alone": lambda x: jax.nn.one_hot(jnp.argmax(x), 12) * x,
    "in pieces": lambda x: jnp.piecewise(x, [x < 0.5], [lambda x: x**2, lambda x: x]),
    "noise by a value": lambda x: x + jax.random.normal(
        jax.random.fold_in(jax.random.key(0), jnp.argmax(x)), (12,)),
    "rolled by a value": lambda x: jnp.roll(x, jnp.argmax(x)),
    "rows in unknown order": lambda x: x.reshape(3, 4)[jnp.argsort(x[:3])],
    "added in unknown order": lambda x: jnp.zeros((3, 4)).at[jnp.argsort(x[:3])].add(
        x.reshape(3, 4)),
    "each row in its own order": lambda x: jax.vmap(lambda v: v[jnp.argsort(v)])(x.reshape(3, 4)),
    "a column is written": lambda x: jnp.zeros((3, 4)).at[:, jnp.argmax(x[:4])].set(x[:3]),
    "segments by values": lambda x: jax.ops.segment_sum(pairs(x), (5 * x[::2]).astype(int), 5),
    "a histogram": lambda x: jnp.histogram(x, bins=3, weights=x)[0],
}  # fmt: skip

UP_TO = 41  # from "triangular systems" on, nonzeros depend on values, or cancel


def test_programs_of_users() -> None:
    exact = [*PROGRAMS][:UP_TO]
    assert exact[-1] == "a Jacobian inside"
    assert_right(PROGRAMS, {*exact} - {"elimination", "a product of polynomials"})


def test_hessians_of_programs() -> None:
    """No pair of inputs is missing that meets somewhere in a program."""
    names = ["finite elements", "springs", "patches", "elimination", "Gauss and Seidel", "roots"]
    names += ["attention on a graph", "attention in a band", "quantiles", "a branch in a scan"]
    energies = {name: lambda x, fun=PROGRAMS[name]: jnp.sum(jnp.sin(flat(fun)(x)))
                for name in names}  # fmt: skip
    found = nonzeros({name: ft.grad(energy) for name, energy in energies.items()})
    for name, differs in found.items():
        pattern = ft.sparse.hessian_pattern(energies[name], POINTS[0]).dense()
        assert not differs[~pattern].any(), name
    assert ft.sparse.hessian_pattern(energies["finite elements"], POINTS[0]).nnz < 80
