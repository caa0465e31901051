"""The Laplacian: beside traces of Hessians, ours and JAX's; and at work in physics.

Many functions are one compiled program, which gives for each the Laplacian and the trace.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax, nn, tree
from jax.flatten_util import ravel_pytree
from repeated import repeated_after
from rule_cases import CASES, Case

import functrans as ft
from functrans import extend
from functrans.taylor.laplacian import acts_on_elements

pytestmark = pytest.mark.usefixtures("float64", "quick_compilation")


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng([7, *shape]).normal(size=shape)


X = normal(4)
W = 0.5 * normal(4, 4)


def trace(fun: Callable, ad: Any = jax) -> Callable:
    """The trace of the Hessian, in forward mode twice, which every program has."""

    def at(x):
        hessian = ad.jacfwd(ad.jacfwd(fun))(x)
        return tree.map(lambda h: jnp.trace(h, axis1=-2, axis2=-1), hessian)

    return at


# ---- the functions -------------------------------------------------------------------------------


def scanned(x):
    """A carry that moves, another that does not, slices that move, and outputs of each step."""

    def step(carry, slices):
        c, i = carry
        w, s = slices
        return (jnp.tanh(W @ c + w) * s, i + 1), (jnp.sum(c**3), i, jnp.ones(2))

    (c, _), (ys, _, ones) = lax.scan(step, (x, 0), (normal(3, 4), jnp.exp(x[:3])))
    return {"carry": c**2, "ys": jnp.prod(ys), "ones": ones}


def doubled_until_large(x):
    return lax.while_loop(lambda c: c < 2.0, lambda c: 1.5 * c + x * x, x * x)


def repeated(x):
    """In the first step the second carry does not move."""
    return lax.fori_loop(
        0, 3, lambda i, c: (jnp.sin(W @ c[0]) * x[i], jnp.sum(c[0]) * c[1]), (x, 1.0)
    )


@jax.custom_jvp
def sine(x):
    return jnp.sin(x)


# Of the cube: so that the user's own derivative is seen to be used.
sine.defjvp(lambda primals, tangents: (sine(*primals), 3 * primals[0] ** 2 * tangents[0]))


@jax.custom_vjp
def cosine(x):
    return jnp.cos(x)


cosine.defvjp(lambda x: (jnp.cos(x), x), lambda x, y_bar: (-jnp.sin(x) * y_bar,))


@jax.custom_jvp
def two_results(x):
    return jnp.sin(x), x**2


two_results.defjvp(
    lambda xs, x_dots: (two_results(*xs), (jnp.cos(xs[0]) * x_dots[0], 2 * xs[0] * x_dots[0]))
)


@jax.custom_jvp
def mixing(x):
    return W @ x


mixing.defjvp(lambda xs, x_dots: (mixing(*xs), W @ (jnp.sin(xs[0]) * x_dots[0])))


@jax.custom_jvp
def latter(x, y):
    return y + 0 * x


latter.defjvp(lambda xs, x_dots: (latter(*xs), x_dots[1]))


def of_one_base(x):
    y = W @ x
    return latter(jnp.sin(y), jnp.cos(y))


def layer_norm(x):
    return jnp.sum(((x - x.mean()) / jnp.sqrt(x.var() + 1e-3)) ** 3)


def attention(x):
    return nn.softmax(jnp.outer(x, x)) @ x


def determinant(x):
    return jnp.linalg.slogdet(jnp.outer(x, x) + jnp.diag(jnp.exp(x)))[1]


def wave(x):
    """Complex functions of real numbers, in runs from a real base and from a complex one."""
    spectrum, phase = jnp.fft.fft(jnp.tanh(x)), jnp.exp(1j * x)
    of_complex = jnp.exp(1j * jnp.sum(x)) * spectrum, jnp.abs(spectrum) ** 2, spectrum.conj().imag
    return *of_complex, jnp.abs(phase + x) * jnp.real(phase**2), lax.complex(x**3, x).conj() ** 2


def network(activation):
    return lambda x: activation(W @ activation(W @ x + 0.1)) @ X


# fmt: off
FUNCTIONS: dict[str, dict[str, Callable]] = {
    "arithmetic": {
        "square": lambda x: x @ x, "products": jnp.prod, "linear": lambda x: W @ x,
        "constant": lambda x: jnp.ones(3), "two bases": lambda x: x * (W @ x),
        "scalar by array": lambda x: jnp.sum(x * x[0] ** 2), "norm": lambda x: jnp.sqrt(x @ x),
        "sort": lambda x: jnp.sort(x) ** 3, "max": lambda x: jnp.max(x**3),
        "select": lambda x: jnp.where(x > 0, x**3, jnp.sin(x)) * jnp.sign(x),
        "integers": lambda x: jnp.sum(x**2) * jnp.argmax(x),
        "gather": lambda x: x[np.array([0, 0])] ** 3,
    },
    "networks": {
        **{f.__name__: network(f) for f in (jnp.tanh, nn.gelu, nn.softplus, nn.silu, nn.elu)},
        "mish": network(lambda x: x * jnp.tanh(nn.softplus(x))),
        "layer norm": layer_norm, "attention": attention,
        "log sum exp": lambda x: nn.logsumexp(W @ x),
    },
    "calls": {
        "scan": scanned, "fori": repeated,
        "while": lambda x: jax.vmap(doubled_until_large)(x),
        "cond": lambda x: lax.cond(x[0] > 0, jnp.prod, lambda x: jnp.cos(W @ x)[0], x),
        "switch": lambda x: lax.switch(1, [lambda x: x[0], lambda x: x @ W @ x], x),
        "jit": lambda x: jax.jit(lambda x: jnp.tanh(W @ x))(x) * x,
        "checkpoint": lambda x: jax.checkpoint(lambda x: jnp.tanh(W @ jnp.tanh(W @ x)))(x),
    },
    "rules": {
        "custom_jvp": lambda x: sine(W @ x) * sine(x), "not elementwise": lambda x: mixing(x * x),
        "of two in a run": of_one_base, "of two results": lambda x: sum(two_results(W @ x)),
        "gradient": jax.grad(lambda x: jnp.sum(jnp.tanh(W @ x) ** 3)),
        "our gradient": ft.grad(lambda x: jnp.sum(jnp.tanh(W @ x) ** 3)),
        "determinant": determinant, "solve": lambda x: jnp.linalg.solve(W + jnp.diag(x), x),
        "complex": wave,
    },
}
# fmt: on


@pytest.mark.parametrize("family", FUNCTIONS)
def test_is_the_trace_of_the_hessian(family: str) -> None:
    functions = FUNCTIONS[family]

    def both(x):
        return [(ft.laplacian(f)(x), trace(f)(x), trace(f, ft)(x)) for f in functions.values()]

    for name, (ours, theirs, traced) in zip(functions, jax.jit(both)(X), strict=True):
        chex.assert_trees_all_close(ours, theirs, rtol=1e-12, atol=1e-12, custom_message=name)
        chex.assert_trees_all_close(ours, traced, rtol=1e-12, atol=1e-12, custom_message=name)


def test_of_a_backward_rule() -> None:
    def fun(x):
        return jnp.sum(cosine(W @ x) * x)

    found = ft.laplacian(fun)(X)
    for hessian in (jax.hessian(fun), ft.hessian(fun)):
        chex.assert_trees_all_close(found, jnp.trace(jax.jit(hessian)(X)), rtol=1e-12)


@cache
def elementwise_rows() -> list[tuple[Case, tuple, list]]:
    """Of the table of rules, the first row of each elementwise operation, with its arguments."""
    rows, seen = [], set()
    for case in CASES:
        if case.kinks or case.order < 2 or case.newer:
            continue
        with jax.enable_x64(True):
            args = case.inputs(np.float64)
            equations = extend.staged(case.fun, *args).program.jaxpr.eqns
        moving = [jax.dtypes.issubdtype(x.dtype, np.floating) for x in args]
        outs: list[Any] = [v.aval for e in equations for v in e.outvars]
        fits = all(acts_on_elements(e, [False] * len(e.invars)) for e in equations)
        fits = fits and all(jnp.issubdtype(aval.dtype, np.inexact) for aval in outs)
        key = case.primitives, sum(moving), len({x.shape for x in args})
        if equations and fits and any(moving) and key not in seen:
            seen.add(key)
            rows.append((case, args, moving))
    return rows


def along(case: Case, args: tuple, moving: list, one_base: bool) -> Callable:
    """The function of a row on a line through its arguments; they may differ by one array."""

    def fun(t):
        new = []
        for k, (arg, moves) in enumerate(zip(args, moving, strict=True)):
            direction = np.cos((1 if one_base else k + 1) * np.arange(arg.size)).reshape(arg.shape)
            new.append(arg + (k + 1) * (0.01 * direction * t) if moves else arg)
        return case.fun(*new)

    return fun


def second(fun: Callable) -> Callable:
    """The second derivative of a function of one number."""

    def first(t):
        return ft.jvp(fun, (t,), (1.0,))[1]

    return lambda t: ft.jvp(first, (t,), (1.0,))[1]


def test_there_are_rows() -> None:
    """The test below would pass if none were found."""
    found = {name for case, *_ in elementwise_rows() for name in case.primitives}
    assert found >= {"exp", "tanh", "logistic", "div", "pow", "erf", "lgamma", "select_n", "atan2"}
    assert len(elementwise_rows()) > 50


@pytest.mark.parametrize("start", repeated_after(1, range(4)))
def test_of_elementwise_rules(start: int) -> None:
    functions = []
    for case, args, moving in elementwise_rows()[start::4]:
        functions.append(along(case, args, moving, True))
        if sum(moving) > 1:
            functions.append(along(case, args, moving, False))

    def both(t):
        return [(ft.laplacian(f)(t), second(f)(t)) for f in functions]

    for ours, nested in jax.jit(both)(0.5):
        chex.assert_trees_all_close(ours, nested, rtol=1e-12, atol=1e-15)


# ---- together with other transforms --------------------------------------------------------------


def energy(x):
    return jnp.sum(jnp.tanh(W @ jnp.sin(W @ x)) * x)


def test_in_every_order_with_jit_and_vmap() -> None:
    xs = normal(3, 4)
    expected = jax.jit(jax.vmap(trace(energy)))(xs)
    for fun in (
        jax.vmap(ft.laplacian(energy)),
        ft.jit(jax.vmap(ft.laplacian(energy))),
        jax.vmap(ft.laplacian(ft.jit(energy))),
        jax.vmap(jax.jit(ft.laplacian(jax.jit(energy)))),
    ):
        chex.assert_trees_all_close(fun(xs), expected, rtol=1e-12)
    assert type(ft.laplacian(ft.jit(energy))) is type(ft.jit(energy))


def test_in_every_order_with_derivatives() -> None:
    def loop(x):
        return jnp.sum(scanned(x)["carry"])

    def both(x):
        ours, theirs = ft.laplacian, trace
        pairs = [(ft.grad, jax.grad), (jax.grad, jax.grad), (ft.jacfwd, jax.jacfwd)]
        found = [(d(ours(f))(x), e(theirs(f))(x)) for d, e in pairs for f in (energy, loop)]
        return [*found, (ours(ours(energy))(x), theirs(theirs(energy))(x))]

    for ours, theirs in jax.jit(both)(X):
        chex.assert_trees_all_close(ours, theirs, rtol=1e-11)
    chex.assert_trees_all_close(
        ft.grad(ft.laplacian(energy))(X), jax.jit(jax.grad(trace(energy)))(X), rtol=1e-11
    )


def test_as_one_pass_gives_all_three() -> None:
    def fun(x):
        return {"a": jnp.outer(x, x) * energy(x), "b": x[0], "c": jnp.ones(2)}

    found = ft.laplacian(fun, with_value_and_gradient=True)(X)
    want = jax.jit(lambda x: (fun(x), jax.jacfwd(fun)(x), trace(fun)(x)))(X)
    chex.assert_trees_all_close(found, want, rtol=1e-12)


def test_operators_with_weights() -> None:
    hessian = jax.jit(jax.hessian(energy))(X)
    diagonal, matrix = normal(4), normal(4, 4) + normal(1, 4)

    @jax.jit
    def operator(weights):
        return ft.laplacian(energy, weights=weights)(X)

    chex.assert_trees_all_close(operator(diagonal), diagonal @ jnp.diag(hessian), rtol=1e-12)
    chex.assert_trees_all_close(operator(matrix), jnp.sum(matrix * hessian), rtol=1e-12)
    chex.assert_trees_all_close(ft.grad(operator)(matrix), hessian, rtol=1e-12)
    jitted = ft.laplacian(ft.jit(energy), weights=matrix)(X)
    chex.assert_trees_all_close(jitted, jnp.sum(matrix * hessian), rtol=1e-12)

    def loop(x):
        return jnp.sum(scanned(x)["carry"])

    in_loop = jax.jit(ft.laplacian(loop, weights=matrix))(X)
    expected = jnp.sum(matrix * jax.jit(jax.hessian(loop))(X))
    chex.assert_trees_all_close(in_loop, expected, rtol=1e-12)


def test_of_pytrees_and_several_arguments() -> None:
    point = {"u": X[:2].reshape(1, 2), "v": X[2]}

    def fun(point, scale):
        return energy(jnp.append(jnp.ravel(point["u"]), jnp.array([point["v"], scale])))

    flat = jax.jit(jax.hessian(lambda x: fun({"u": x[:2].reshape(1, 2), "v": x[2]}, x[3])))
    hessian = flat(X)
    found = ft.laplacian(fun)(point, X[3])
    chex.assert_trees_all_close(found, jnp.trace(hessian[:3, :3]), rtol=1e-12)
    value, gradient, both = ft.laplacian(fun, (1, 0), with_value_and_gradient=True)(point, X[3])
    chex.assert_trees_all_close(both, jnp.trace(hessian), rtol=1e-12)
    expected = jax.jit(jax.value_and_grad(fun, (1, 0)))(point, X[3])
    chex.assert_trees_all_close((value, gradient), expected, rtol=1e-12)
    weights = jax.jit(jax.hessian(fun))(point, X[3])
    found = ft.laplacian(fun, weights=weights)(point, X[3])
    chex.assert_trees_all_close(found, jnp.sum(hessian[:3, :3] ** 2), rtol=1e-12)
    found = ft.laplacian(fun, weights=point)(point, X[3])
    chex.assert_trees_all_close(found, X[:3] @ jnp.diag(hessian)[:3], rtol=1e-12)


def test_what_is_beside_the_output() -> None:
    def fun(x):
        return energy(x), {"at": jnp.argmax(x), "name": "energy", "twice": 2 * x}

    total, aux = ft.laplacian(fun, has_aux=True)(X)
    chex.assert_trees_all_close(total, trace(energy)(X), rtol=1e-12)
    assert (int(aux["at"]), aux["name"]) == (int(np.argmax(X)), "energy")
    chex.assert_trees_all_close(aux["twice"], 2 * X)
    (value, aux), gradient, _ = ft.laplacian(fun, has_aux=True, with_value_and_gradient=True)(X)
    chex.assert_trees_all_close((value, gradient), jax.value_and_grad(energy)(X), rtol=1e-12)
    assert aux["at"].dtype.kind == "i"


def test_of_holomorphic_functions() -> None:
    z = X + 1j * X[::-1]

    def fun(z):
        return jnp.sum(jnp.sin(W @ z) ** 3) * jnp.prod(z)

    expected = jnp.trace(jax.jit(jax.hessian(fun, holomorphic=True))(z))
    found = jax.jit(ft.laplacian(fun, holomorphic=True))(z)
    chex.assert_trees_all_close(found, expected, rtol=1e-12)


def test_of_no_numbers_and_of_python_numbers() -> None:
    assert float(ft.laplacian(lambda x: x**3)(2.0)) == 12.0
    assert float(ft.laplacian(lambda x: jnp.sum(x**2))(jnp.zeros((0, 3)))) == 0.0


def test_strong_zeros() -> None:
    """Where a factor of the chain rule is infinite, and what it is multiplied by is zero."""

    def masked(x):
        root = jnp.sqrt(x[0] * jnp.zeros(3) @ jnp.ones(3))
        return root + jnp.where(x[0] > 0, jnp.log(x[0]) * x[1], 0.0) + x @ x

    x = jnp.array([0.0, 4.0])
    both = ft.strong_zeros()(lambda x: (ft.laplacian(masked)(x), ft.hessian(masked)(x)))
    found, hessian = jax.jit(both)(x)
    chex.assert_trees_all_close((found, jnp.trace(hessian)), (4.0, 4.0), rtol=1e-12)
    assert np.isnan(ft.laplacian(masked)(x))


def test_effects_happen_once(capfd: pytest.CaptureFixture) -> None:
    def fun(x):
        y, _ = lax.scan(lambda c, _: (jax.debug.print("step"), c**2)[1:] * 2, x, length=2)
        jax.debug.print("once")
        return jnp.sum(y)

    chex.assert_trees_all_close(ft.laplacian(fun)(X), jnp.sum(12 * X**2), rtol=1e-12)
    jax.effects_barrier()
    printed = capfd.readouterr().out.split()
    assert sorted(printed) == ["once", "step", "step"]


# ---- what it costs -------------------------------------------------------------------------------


def products(program: Any, size: int) -> int:
    """The products with a matrix of this size, one for each vector that is multiplied."""
    count = 0
    for equation in program.eqns:
        if equation.primitive.name == "dot_general" and equation.invars[1].aval.shape == (
            size,
            size,
        ):
            count += equation.invars[0].aval.size // size
    return count


@pytest.mark.parametrize("activation", [jnp.tanh, nn.gelu, nn.softplus])
def test_each_layer_multiplies_one_vector_more_than_there_are_directions(activation) -> None:
    def fun(x):
        for _ in range(3):
            x = activation(x @ np.ones((4, 4)) + 1.0)
        return jnp.sum(x)

    # In the last layers the values, the derivatives and the Laplacian; the input has none.
    found = products(ft.make_jaxpr(ft.laplacian(fun))(X), 4)
    assert found == 3 * (1 + 4 + 1) - 1


# ---- mistakes ------------------------------------------------------------------------------------

# fmt: off
NUMBER: Any = 3.0
MISTAKES: list[tuple[Callable, type, str]] = [
    (lambda: ft.laplacian(NUMBER), TypeError, "laplacian expects a function, but got 3.0"),
    (lambda: ft.laplacian(energy)(np.arange(4)), TypeError, "x is int64"),
    (lambda: ft.laplacian(energy)(1j * X), TypeError, "holomorphic=True"),
    (lambda: ft.laplacian(energy, holomorphic=True)(X), TypeError, "needs complex inputs"),
    (lambda: ft.laplacian(jnp.argmax)(X), TypeError, "laplacian needs outputs of a real"),
    (lambda: ft.laplacian(lambda x: None)(X), ValueError, "is a `return` missing"),
    (lambda: ft.laplacian(lambda x: "text")(X), TypeError, "not an array or a number"),
    (lambda: ft.laplacian(energy, argnums=1)(X), ValueError, "argnums=1 is out of range"),
    (lambda: ft.laplacian(energy, has_aux=True)(X), TypeError, "must return a pair"),
    (lambda: ft.laplacian(energy, weights=np.ones(3))(X), ValueError,
     "The argument is an array, float64.4., and the weights are an array, float64.3."),
    (lambda: ft.laplacian(energy, weights=1j * X)(X), TypeError, "weights must be real"),
    (lambda: ft.laplacian(lambda x: x if x[0] > 0 else -x)(X), TypeError, "jax.lax.cond"),
]
# fmt: on


@pytest.mark.parametrize(("make", "kind", "message"), MISTAKES)
def test_of_mistakes(make: Callable, kind: type, message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


# ---- at work -------------------------------------------------------------------------------------


def test_a_network_learns_the_solution_of_poissons_equation() -> None:
    """-Lu = f on the unit square, u = 0 on its boundary, with the solution sin(pi x) sin(pi y).

    The residual at some points is least by the method of Levenberg and Marquardt: its Jacobian in
    the parameters is taken through the Laplacian, forward and in reverse.
    """

    def network(params, x):
        hidden = jnp.tanh(params["w"] @ x + params["b"])
        return jnp.prod(x * (1 - x)) * (params["v"] @ hidden)

    def residual(params, x):
        source = 2 * jnp.pi**2 * jnp.prod(jnp.sin(jnp.pi * x))
        return ft.laplacian(partial(network, params))(x) + source

    size, points = 16, (np.stack(np.meshgrid(*[np.arange(8)] * 2), -1).reshape(-1, 2) + 0.5) / 8
    start = {"w": 2 * normal(size, 2), "b": normal(size), "v": normal(size) / 4}
    flat, unflatten = ravel_pytree(start)

    def residuals(flat):
        return jax.vmap(partial(residual, unflatten(flat)))(points)

    def step(state, _):
        flat, damping, loss = state
        jacobian = ft.jacrev(residuals)(flat)
        gram = jacobian.T @ jacobian + damping * jnp.eye(flat.size)
        new = flat - jnp.linalg.solve(gram, jacobian.T @ residuals(flat))
        new_loss = jnp.sum(residuals(new) ** 2)
        better = new_loss < loss
        state = (
            jnp.where(better, new, flat),
            damping * jnp.where(better, 0.3, 4),
            jnp.minimum(loss, new_loss),
        )
        return state, None

    @jax.jit
    def train(flat):
        state = flat, 1.0, jnp.sum(residuals(flat) ** 2)
        return lax.scan(step, state, length=60)[0]

    flat, *_ = train(flat)
    columns, rows = jax.jit(lambda x: (ft.jacfwd(residuals)(x), ft.jacrev(residuals)(x)))(flat)
    chex.assert_trees_all_close(columns, rows, rtol=1e-9, atol=1e-9)
    test = np.random.default_rng(1).uniform(size=(50, 2))
    u = jax.jit(jax.vmap(partial(network, unflatten(flat))))(test)
    error = np.max(np.abs(u - np.prod(np.sin(np.pi * test), axis=1)))
    assert error < 1e-4


def local_energy(log_psi: Callable, potential: Callable, x: Any) -> Any:
    """`H psi / psi` with `H = -L / 2 + V`, from the logarithm of `psi`, in one pass."""
    _, gradient, laplacian = ft.laplacian(log_psi, with_value_and_gradient=True)(x)
    return -0.5 * (laplacian + jnp.sum(gradient**2)) + potential(x)


def distances(x: Any) -> tuple:
    """Of two electrons from the nucleus, and from one another."""
    first, second = x.reshape(2, 3)
    return tuple(jnp.sqrt(jnp.sum(r**2)) for r in (first, second, first - second))


def test_the_energy_of_two_electrons_in_a_trap() -> None:
    """Hooke's atom with the spring constant 1/4: psi = (1 + r12 / 2) exp(-(r1^2 + r2^2) / 4) is
    exact, and its energy is 2 everywhere. (S. Kais and others, J. Chem. Phys. 99, 1993.)"""

    def log_psi(x):
        r1, r2, r12 = distances(x)
        return jnp.log1p(r12 / 2) - (r1**2 + r2**2) / 4

    def potential(x):
        r1, r2, r12 = distances(x)
        return (r1**2 + r2**2) / 8 + 1 / r12

    energies = jax.jit(jax.vmap(partial(local_energy, log_psi, potential)))(normal(100, 6))
    chex.assert_trees_all_close(energies, np.full(100, 2.0), rtol=1e-11)


def test_the_variational_energy_of_helium() -> None:
    """psi = exp(-z (r1 + r2)) has the energy z^2 - 27/8 z, least for z = 27/16 (Hylleraas).

    The density is sampled exactly: z r has a gamma distribution. So the samples have a derivative
    in z, and Newton's method finds the least energy.
    """
    rng, count = np.random.default_rng(0), 20_000
    directions = rng.normal(size=(count, 2, 3))
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    samples = rng.gamma(3.0, size=(count, 2, 1)) / 2 * directions

    def energy(z):
        def log_psi(x):
            r1, r2, _ = distances(x)
            return -z * (r1 + r2)

        def potential(x):
            r1, r2, r12 = distances(x)
            return -2 / r1 - 2 / r2 + 1 / r12

        x = samples.reshape(count, 6) / z
        return jnp.mean(jax.vmap(partial(local_energy, log_psi, potential))(x))

    @jax.jit
    def at(z):
        return energy(z), ft.grad(energy)(z)

    value, slope = at(2.0)
    assert abs(value - (2.0**2 - 27 / 8 * 2.0)) < 0.02
    assert abs(slope - (2 * 2.0 - 27 / 8)) < 0.02
    # E is a parabola in z, E'' = 2: one step of Newton's method leads to its lowest point.
    best = 2.0 - slope / 2
    assert abs(best - 27 / 16) < 0.01
    assert abs(at(best)[0] + (27 / 16) ** 2) < 0.02
