"""Programs that run many times: with them and without, a derivative is the same.

A rule is asked once for each type, and what it writes is kept.  These tests compare everything that
functrans writes with what it writes when each rule is asked each time; and they check what the
memory must not do: change a result, carry a context from one program to another, hold on to a rule
that was replaced, or keep programs whose functions are gone.
"""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.compute_on import compute_on
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Primitive, jaxprs_in_params
from jax.interpreters import mlir

import functrans as ft
from functrans import caches, extend, templates, values
from functrans import jaxpr as jx
from functrans.forward import jvp_jaxpr, pushed_program
from functrans.linearize import linearize_jaxpr, linearized_program
from functrans.programs.live import reached
from functrans.reverse import pulled_program
from tests.jaxpr_difference import difference
from tests.programs import PROGRAMS, Program

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(autouse=True)
def nothing_is_remembered() -> Iterator[None]:
    """Each test derives what it needs, whatever ran before it."""
    ft.clear_caches()
    yield
    ft.clear_caches()


def array(*shape: int, seed: int = 0) -> jax.Array:
    numbers = np.random.default_rng([seed, *shape]).normal(size=shape)
    return jnp.asarray(0.5 * numbers, jnp.float32)


# ---- with templates and without ------------------------------------------------------------------


def mlp(x, w, v):
    return jnp.sum(jax.nn.gelu(x @ w) @ v - x[:, :1] / (2.0 + jnp.cos(x[:, 1:2])) ** 3)


def a_softmax(x, w):
    return jnp.sum(jax.nn.log_softmax(x @ w) * jax.nn.softmax(x, axis=0)[:, :1])


def a_norm(x, w):
    y = (x - x.mean(0)) * lax.rsqrt(x.var(0) + 1e-5)
    return jnp.sum(jnp.sin(y) @ w)


def a_scan(x, w):
    def step(h, row):
        h = jnp.tanh(h @ w + row)
        return h, h * row

    return jnp.sum(lax.scan(step, jnp.ones(x.shape[1]), x)[1] ** 2)


def a_cond(x):
    return jnp.sum(lax.cond(x[0, 0] > 0, lambda y: jnp.sin(y) * y, lambda y: jnp.exp(y[::-1]), x))


def a_checkpoint(x, w):
    def layer(y):
        return jnp.tanh(jax.checkpoint(lambda z: jnp.sin(z @ w))(y)) * jax.nn.sigmoid(y)

    return jnp.sum(jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable)(x))


@jax.custom_jvp
def smooth(x):
    return jnp.sqrt(1 + x * x)


smooth.defjvps(lambda x_dot, y, x: x / y * x_dot)


@jax.custom_vjp
def scaled(x, y):
    return x * jnp.sin(y)


scaled.defvjp(
    lambda x, y: (x * jnp.sin(y), (x, y)),
    lambda saved, z_bar: (z_bar * jnp.sin(saved[1]), z_bar * saved[0] * jnp.cos(saved[1])),
)


def custom_rules(x, y):
    return jnp.sum(smooth(x) * scaled(x, y) + jax.jit(smooth)(y) ** 3)


def linear_systems(a, b):
    matrix = a @ a.T + 3 * jnp.eye(a.shape[0])
    low = jnp.linalg.cholesky(matrix)
    return jnp.sum(jnp.linalg.solve(matrix, b) * jnp.sin(low[:, :1]))


def gather_and_scatter(x, y):
    rows = x[jnp.array([0, 2, 2])] * jnp.take_along_axis(x, jnp.array([[1], [0], [2]]), 1)
    return jnp.sum(jnp.zeros_like(x).at[jnp.array([1, 1, 0])].add(rows) * y.at[0].set(x[1]))


def of_complex_numbers(x, y):
    z = x + 1j * y
    return jnp.sum(jnp.abs(jnp.exp(z) / (2 + z) * jnp.conj(jnp.fft.fft(z))))


def broadcasts(x, b):
    return jnp.sum(jnp.mean(jnp.tanh(x + b), axis=0) * b) + jnp.max(x @ x.T)


def a_while_loop(x):
    return lax.while_loop(lambda c: jnp.sum(c) < 9, lambda c: c * jnp.cosh(c), jnp.abs(x) + 0.1)


def nested_calls(x, w):
    inner = jax.jit(lambda y, w: (jnp.sin(y @ w) * y, w))
    return jnp.sum(ft.jit(lambda y, w: inner(*inner(y, w))[0] / (1 + y * y))(x, w))


X, W = array(3, 3), array(3, 3, seed=1)

OWN: dict[str, tuple[Callable, tuple]] = {
    "mlp": (mlp, (X, W, array(3, 2))),
    "softmax": (a_softmax, (X, W)),
    "norm": (a_norm, (X, W)),
    "scan": (a_scan, (X, W)),
    "cond": (a_cond, (X,)),
    "checkpoint": (a_checkpoint, (X, W)),
    "custom rules": (custom_rules, (X, W)),
    "linear systems": (linear_systems, (X, W)),
    "gather and scatter": (gather_and_scatter, (X, W)),
    "complex numbers": (of_complex_numbers, (X, W)),
    "broadcasts": (broadcasts, (X, array(3))),
    "nested calls": (nested_calls, (X, W)),
}

NOT_DIFFERENTIABLE = {
    *("no_inputs", "integers", "booleans", "an_abstract_argument"),  # of which nothing moves
    *("random_numbers_of_a_seed", "random_keys", "old_random_keys"),
    "collectives_on_a_named_axis",  # the axis is bound by an option of make_jaxpr
    "in_double_precision",  # its tangents are of another type outside
    "a_pure_callback",
    # In these a rule of the user's closes over an argument.
    *("a_custom_rule_made_inside", "custom_jvp_around_the_argument"),
}

REVERSE_ONLY = {"custom_vjp", "custom_rules_under_vmap"}
"""A backward rule that is not linear has no pushforward."""

OF_LITERALS = {
    "dynamic_slices",
    "custom_jvp_with_static_arguments",
    "custom_vjp_with_static_arguments",
}
"""Here a rule is given numbers of the program itself, and computes with them at once; a template
writes down such arithmetic of scalars."""


def of_floats(program: Program) -> tuple[Callable, list]:
    """The program as a function of those of its arguments that have tangents, and these."""
    static = program.options.get("static_argnums", ())
    static = {static} if isinstance(static, int) else {*static}
    kept = [None if i in static else x for i, x in enumerate(program.args)]
    leaves, structure = jax.tree.flatten(kept)
    moves = [values.is_differentiable(jax.typeof(x)) for x in leaves]

    def fun(*xs: Any) -> list:
        args = jax.tree.unflatten(structure, values.merge(values.part(leaves, moves)[0], xs, moves))
        args = [program.args[i] if i in static else x for i, x in enumerate(args)]
        outs = jax.tree.leaves(program.fun(*args))
        return [y for y in outs if values.is_differentiable(jax.typeof(y))]

    return fun, values.pick(leaves, moves)


def pushed(fun: Callable) -> Callable:
    return lambda *xs: ft.jvp(fun, xs, xs)


def linearized(fun: Callable) -> Callable:
    def at(*xs):
        y, pushforward = ft.linearize(fun, *xs)
        return y, pushforward(*xs)

    return at


def pulled(fun: Callable) -> Callable:
    def at(*xs):
        y, pullback = ft.vjp(fun, *xs)
        return pullback(y)

    return at


TRANSFORMS = {"jvp": pushed, "linearize": linearized, "vjp": pulled}

CASES: dict[str, tuple[Callable, Any]] = {
    **{name: of_floats(PROGRAMS[name]) for name in PROGRAMS if name not in NOT_DIFFERENTIABLE},
    **OWN,
    "while": (a_while_loop, (X,)),
}


def applies(transform: str, name: str) -> bool:
    return name not in REVERSE_ONLY or transform != "jvp"


def with_and_without(derive: Callable[[], Any]) -> tuple[Any, Any]:
    ft.clear_caches()
    with_templates = derive()
    ft.clear_caches()
    with extend.without_templates():
        return with_templates, derive()


def folded(program: ClosedJaxpr) -> ClosedJaxpr:
    """The program without arithmetic of literals that gives scalars: it is done, here too."""
    jaxpr = program.jaxpr
    known: dict[Any, Literal] = {}
    equations = []
    for e in jaxpr.eqns:
        inputs = [a if isinstance(a, Literal) else known.get(a, a) for a in e.invars]
        is_known = inputs and all(isinstance(a, Literal) for a in inputs)
        if is_known and not e.effects and not any(v.aval.shape for v in e.outvars):
            results = jx.bind(e, [a.aval.dtype.type(a.val) for a in inputs])
            pairs = zip(e.outvars, results, strict=True)
            known |= {v: Literal(np.asarray(x)[()], v.aval) for v, x in pairs}
            continue
        params = {k: folded(p) if isinstance(p, ClosedJaxpr) else p for k, p in e.params.items()}
        equations.append(e.replace(invars=inputs, params=params))
    outputs = [known.get(a, a) if not isinstance(a, Literal) else a for a in jaxpr.outvars]
    info, consts = jaxpr.debug_info, program.consts
    return jx.closed(jaxpr.invars, outputs, equations, info, jaxpr.constvars, consts)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", CASES)
def test_the_programs_are_the_same(name: str, transform: str) -> None:
    """Equation by equation, up to the names of variables."""
    fun, args = CASES[name]
    derived = TRANSFORMS[transform](fun)
    if not applies(transform, name):
        with pytest.raises((ft.rules.NotLinear, ValueError)):
            ft.make_jaxpr(derived)(*args)
        return
    got, want = with_and_without(lambda: ft.make_jaxpr(derived)(*args))
    if name in OF_LITERALS:
        got, want = folded(got), folded(want)
    assert difference(got, want) == ""


@pytest.mark.parametrize("name", OWN)
def test_the_second_derivatives_are_the_same(name: str) -> None:
    """A gradient, pushed forward: templates of templates."""
    fun, args = OWN[name]
    got, want = with_and_without(lambda: ft.make_jaxpr(pushed(ft.grad(fun)))(*args))
    assert difference(got, want) == ""


@pytest.mark.parametrize("name", OWN)
def test_eager_results_are_the_same(name: str) -> None:
    """To rounding: a template is compiled as a whole."""
    fun, args = OWN[name]
    argnums = tuple(range(len(args)))
    got, want = with_and_without(lambda: ft.value_and_grad(fun, argnums)(*args))
    chex.assert_trees_all_close(got, want, rtol=2e-5, atol=2e-6)
    chex.assert_trees_all_close(got, jax.value_and_grad(fun, argnums)(*args), rtol=2e-5, atol=2e-6)


# ---- one type, one result ------------------------------------------------------------------------


@pytest.fixture
def optimized() -> Iterator[None]:
    """XLA's optimizations, under which a program that is compiled as a whole may round otherwise
    than its equations do one by one."""
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)  # as all other tests here want it
    jax.clear_caches()


def same_bits(x: Any, y: Any) -> bool:
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("name", ["softmax", "mlp", "norm"])
def test_no_result_depends_on_how_often_one_asks(name: str) -> None:
    """The same gradient eight times, bit by bit; and once more after all is forgotten."""
    fun, args = OWN[name]
    x = array(17, 3, seed=2)
    gradients = [ft.grad(fun, (0, 1))(x, *args[1:]) for _ in range(8)]
    assert [same_bits(gradient, gradients[0]) for gradient in gradients] == [True] * 8
    ft.clear_caches()
    assert same_bits(ft.grad(fun, (0, 1))(x, *args[1:]), gradients[0])


# ---- the place of an equation --------------------------------------------------------------------


def equations(program: Any) -> Iterator[Any]:
    """Those of calls and loops included."""
    for equation in program.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(getattr(inner, "jaxpr", inner))


def marks(program: ClosedJaxpr) -> set:
    """What the equations say of where they are computed, and of what they are tagged with."""
    contexts = [e.ctx for e in equations(program.jaxpr)]
    return {(context.compute_type, str(context.xla_metadata)) for context in contexts}


CONTEXTS: dict[str, Callable] = {"metadata": lambda: set_xla_metadata(tag="here")}
if "out_memory_spaces" not in inspect.signature(compute_on).parameters:  # later, it is a call
    CONTEXTS["compute type"] = lambda: compute_on("device_host")


MANY_EQUATIONS: dict[str, Callable] = {
    "atan": lambda x: lax.atan(x) * lax.erf_inv(x),
    "inside of calls": lambda x: jax.jit(lambda y: lax.atan(ft.jit(lax.lgamma)(y)))(x),
    "sums": lambda x: jnp.sum(x * x * lax.logistic(x)),
}

DERIVED: dict[str, Callable] = {
    "jvp": lambda fun: lambda x: ft.jvp(fun, (x,), (x,)),
    "grad": lambda fun: ft.grad(lambda x: jnp.sum(fun(x))),
    "linearize": linearized,
}


@pytest.mark.parametrize("name", MANY_EQUATIONS)
@pytest.mark.parametrize("derived", DERIVED)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("marked_first", [True, False])
def test_a_template_carries_no_context(
    name: str, derived: str, context: str, marked_first: bool
) -> None:
    """Whoever asks first: each program has the context in which it is written, and no other."""
    fun, x = MANY_EQUATIONS[name], array(3)

    def program() -> ClosedJaxpr:
        return ft.make_jaxpr(DERIVED[derived](lambda x: fun(x)))(x)

    def marked() -> ClosedJaxpr:
        with CONTEXTS[context]():
            return program()

    if marked_first:
        there, here = marked(), program()
    else:
        here, there = program(), marked()
    assert len([*equations(here.jaxpr)]) > 4
    assert marks(here) == {(None, "None")}
    assert len(marks(there)) == 1
    assert marks(there) != marks(here)
    assert difference(here, there) == ""


def test_a_template_is_on_the_line_and_in_the_scope_where_it_is_used() -> None:
    def inner(x):
        with jax.named_scope("second"):
            return lax.atan(x)

    def fun(x):
        with jax.named_scope("first"):
            y = lax.atan(x)
        return inner(y)

    pushed_once = ft.make_jaxpr(DERIVED["jvp"](lax.atan))(1.0)
    program = ft.make_jaxpr(DERIVED["jvp"](fun))(1.0)
    scopes = [str(e.source_info.name_stack) for e in program.jaxpr.eqns]
    count = len(pushed_once.jaxpr.eqns)
    assert scopes == ["jvp(first)"] * count + ["jvp(second)"] * count
    frames = [e.source_info.traceback.frames for e in program.jaxpr.eqns]
    lines = [next(f.line_num for f in found if f.file_name == __file__) for found in frames]
    start, begin = (inspect.getsourcelines(f)[1] for f in (fun, inner))
    assert lines == [start + 2] * count + [begin + 2] * count


# ---- rules that are declared again ---------------------------------------------------------------


def primitive(name: str, evaluate: Callable) -> Primitive:
    """An operation of our own, that runs eagerly and compiled."""
    new = Primitive(name)
    new.def_impl(evaluate)
    new.def_abstract_eval(lambda x: x)
    mlir.register_lowering(new, mlir.lower_fun(evaluate, multiple_results=False))
    return new


def times(factor: float) -> Callable:
    """A partial derivative that tells which declaration it comes from."""
    return lambda y, x: factor * lax.cos(x)


def redeclared(prepare: Callable) -> tuple[float, float, float]:
    """The slopes at 0 that `prepare(f)` gives with one rule, a second and a third."""
    sine = primitive("sine", lax.sin)
    ft.rules.elementwise(sine, times(1.0))
    slope = prepare(lambda x: 1.0 * sine.bind(x))
    slopes = [float(slope(0.0))]
    for factor in (2.0, 3.0):
        ft.rules.elementwise(sine, times(factor))
        slopes.append(float(slope(0.0)))
    return tuple(slopes)


def inside(wrap: Callable) -> Callable:
    """The function is wrapped once, and derived anew each time."""

    def prepare(fun):
        wrapped = wrap(fun)
        return lambda x: ft.grad(wrapped)(x)

    return prepare


PREPARED: dict[str, Callable] = {
    "plain": inside(lambda f: f),
    "grad(jax.jit(f))": inside(jax.jit),
    "grad(ft.jit(f))": inside(ft.jit),
    "grad(ft.jit(ft.jit(f)))": inside(lambda f: ft.jit(ft.jit(f))),
    "grad(checkpoint(f))": inside(jax.checkpoint),
    "grad of a jitted scan": inside(
        lambda f: jax.jit(lambda x: lax.scan(lambda c, _: (f(c), None), x, None, length=1)[0])
    ),
    "grad of a jitted cond": inside(
        lambda f: jax.jit(lambda x: lax.cond(x > -1, f, lambda x: 0.0 * x, x))
    ),
    "g = grad(ft.jit(f)), made before": lambda f: ft.grad(ft.jit(f)),
    "g = grad(jax.jit(f)), made before": lambda f: ft.grad(jax.jit(f)),
    "g = ft.jit(ft.grad(f)), made before": lambda f: ft.jit(ft.grad(f)),
    "g = jvp of ft.jit(f)": lambda f: partial(lambda h, x: ft.jvp(h, (x,), (1.0,))[1], ft.jit(f)),
    "g = vjp of ft.jit(f)": lambda f: partial(lambda h, x: ft.vjp(h, x)[1](1.0)[0], ft.jit(f)),
    "g = jacfwd(ft.jit(f))": lambda f: ft.jacfwd(ft.jit(f)),
}


@pytest.mark.parametrize("name", PREPARED)
def test_a_rule_that_is_declared_again_is_used(name: str) -> None:
    assert redeclared(PREPARED[name]) == (1.0, 2.0, 3.0)


def test_a_first_declaration_forgets_nothing() -> None:
    """Only one that takes the place of another does: importing a library costs nothing."""
    program = extend.staged(jnp.sin, 1.0).program
    before = jvp_jaxpr(program, (True,))
    other = primitive("another_sine", lax.sin)
    ft.rules.elementwise(other, times(1.0))
    assert jvp_jaxpr(program, (True,)) is before
    ft.rules.elementwise(other, times(2.0))
    assert jvp_jaxpr(program, (True,)) is not before


# ---- how often a rule is asked -------------------------------------------------------------------


def test_a_rule_is_called_once_with_a_tracer() -> None:
    sine, seen = primitive("sine", lax.sin), []

    def partial_derivative(y, x):
        seen.append(x)
        return lax.cos(x)

    ft.rules.elementwise(sine, partial_derivative)
    slopes = [float(ft.grad(sine.bind)(x)) for x in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose(slopes, np.cos([0.0, 1.0, 2.0]), rtol=1e-6)
    assert [isinstance(x, jax.core.Tracer) for x in seen] == [True]
    ft.make_jaxpr(ft.grad(lambda x: sine.bind(x) * sine.bind(sine.bind(x))))(1.0)
    assert len(seen) == 1
    chex.assert_trees_all_close(ft.jvp(sine.bind, (array(2),), (array(2),))[0], jnp.sin(array(2)))
    assert len(seen) == 2  # of another type, and in another mode
    with extend.without_templates():
        assert float(ft.grad(sine.bind)(0.0)) == 1.0
    assert len(seen) == 3
    assert not isinstance(seen[-1], jax.core.Tracer)


def test_a_rule_that_looks_at_values_is_called_with_values() -> None:
    """It is tried on tracers once; then it is called once for each derivative."""
    size, seen = primitive("size", lax.abs), []

    def jvp(primals, tangents):
        (x,), (x_dot,) = primals, tangents
        seen.append(x)
        return size.bind(x), x_dot if x > 0 else -x_dot

    ft.rules.general(size, jvp)
    points = [2.0, -2.0, 3.0]
    assert [float(ft.grad(size.bind)(x)) for x in points] == [1.0, -1.0, 1.0]
    tried = [x for x in seen if isinstance(x, jax.core.Tracer)]
    asked = [float(x) for x in seen if not isinstance(x, jax.core.Tracer)]
    assert len(tried) <= 1
    assert asked == points
    with pytest.raises(jax.errors.ConcretizationTypeError):
        ft.jit(ft.grad(size.bind))(2.0)


# ---- params that are equal and not the same ------------------------------------------------------

SLOPES: dict[str, dict[Any, float]] = {
    "the sign of zero": {"0.0": 1.0, "-0.0": 2.0},
    "the type of one": {"1": 2.0, "1.0": 3.0, "True": 5.0, "(1+0j)": 7.0},
    "in a tuple": {"(2, (0.0, 1))": 2.0, "(2, (-0.0, 1))": 3.0, "(2, (0.0, True))": 5.0},
    "of NumPy": {"np.float32(0.0)": 2.0, "np.float32(-0.0)": 3.0, "np.int32(0)": 5.0},
}


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("of_result", [False, True])
def test_params_that_are_equal_and_not_the_same(name: str, of_result: bool) -> None:
    """`z = slope(p) x^2`: its rule, and its abstract evaluation, see the param `p`."""
    slopes = {repr(eval(text)): slope for text, slope in SLOPES[name].items()}
    given = [eval(text) for text in SLOPES[name]]
    assert len(set(given)) == 1 and len(slopes) == len(given)
    scaled = Primitive("scaled")
    scaled.def_impl(lambda x, *, p: slopes[repr(p)] * x * x)
    # The type of the result shows the param too: the number of its axes.
    scaled.def_abstract_eval(
        lambda x, *, p: x.update(shape=(1,) * int(slopes[repr(p)])) if of_result else x
    )
    ft.rules.elementwise(scaled, lambda z, x, *, p: 2 * slopes[repr(p)] * x)
    for _ in range(2):  # the second time all is remembered
        for p in given:
            fun = partial(scaled.bind, p=p)
            slope = slopes[repr(p)]
            if of_result:
                (aval,) = ft.make_jaxpr(fun)(1.0).out_avals
                assert aval.ndim == slope
                continue
            chex.assert_trees_all_close(ft.grad(fun)(3.0), 6 * slope)
            chex.assert_trees_all_close(ft.jvp(fun, (3.0,), (1.0,)), (9 * slope, 6 * slope))
            chex.assert_trees_all_close(ft.grad(ft.grad(fun))(3.0), 2 * slope)
            program = ft.make_jaxpr(ft.grad(fun))(3.0)  # as it is written down
            chex.assert_trees_all_close(jx.evaluate(program, 3.0), [6 * slope])


def test_a_param_of_a_call_that_is_equal_and_not_the_same() -> None:
    """`jit` carries a program, and what is kept for it depends on the other params too."""
    program = ft.make_jaxpr(ft.jit(jnp.sin))(1.0)
    (equation,) = program.jaxpr.eqns

    def kept(p):
        params = {**equation.params, "name": p}
        operation = jx.Operation(equation.primitive, params, tuple(program.in_avals))
        return templates.templates_of(pushed_program, operation, (True,))

    made = [kept(p) for p in (0.0, -0.0, False, 0)]
    assert len(set(map(id, made))) == 4
    assert all(kept(p) is m for p, m in zip((0.0, -0.0, False, 0), made, strict=True))


def test_options_of_jit_that_are_equal_and_not_the_same() -> None:
    def fun(x):
        return x * x

    first, second = (
        ft.jit(fun, compiler_options={"xla_llvm_disable_expensive_passes": on}) for on in (True, 1)
    )
    assert first._compiled() is not second._compiled()
    again = ft.jit(fun, compiler_options={"xla_llvm_disable_expensive_passes": True})
    assert again._compiled() is first._compiled()


# ---- what is remembered --------------------------------------------------------------------------


def memories() -> list:
    """All that the caches by types and by program hold."""
    holders = [getattr(empty, "__self__", None) for empty in caches.TO_EMPTY]
    return [memory for memory in holders if isinstance(memory, dict | weakref.WeakKeyDictionary)]


def templates_by_types() -> dict:
    return inspect.getclosurevars(templates._by_types).nonlocals["memory"]


def test_a_cache_drops_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "SIZE", 3)
    monkeypatch.setattr(caches, "TO_EMPTY", [])
    made = []

    @caches.by_types
    def remembered(params: tuple, key: int, _: None) -> tuple:
        made.append(key)
        return (params, key)

    for key in (0, 1, 2, 3, 3, 2, 1, 0, 0):
        assert remembered((("a", 1),), key) == ((("a", 1),), key)
    assert made == [0, 1, 2, 3, 0]
    caches.clear_caches()
    remembered((("a", 1),), 3)
    assert made[-1] == 3
    assert remembered((("a", []),), 1) is None  # not hashable
    assert remembered((("a", 1),), 1) is not None
    assert remembered((("a", print),), 1) is None  # a function, which is not to be kept


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients at thirty shapes; what is dropped is made again."""
    monkeypatch.setattr(caches, "SIZE", 8)
    gradient = ft.make_jaxpr(ft.grad(lambda x: jnp.sum(lax.sin(x) * x)))
    for size in range(1, 31):
        gradient(jnp.ones(size))
    plain = [memory for memory in memories() if isinstance(memory, dict)]
    assert max(map(len, plain)) == 8
    assert len(templates_by_types()) == 8
    shapes = {key[1][3][0].shape for key in templates_by_types()}
    assert (30,) in shapes
    assert (1,) not in shapes
    (slope,) = jx.evaluate(gradient(jnp.ones(1)), jnp.ones(1))
    np.testing.assert_allclose(slope, [np.sin(1) + np.cos(1)], rtol=1e-6)


def test_clear_caches_leaves_nothing_in_memory() -> None:
    def fun(x):
        return jnp.sum(jax.jit(lambda y: lax.atan(y) * jax.nn.gelu(y))(x))

    x = array(7)
    compiled, late = ft.jit(ft.grad(fun)), ft.grad(ft.jit(fun))
    value, pullback = ft.vjp(fun, x)
    _, held = ft.vjp(ft.jit(fun), x)
    want = compiled(x)
    late(x)
    ft.grad(fun)(x)
    kept = [weakref.ref(t) for t in gc.get_objects() if isinstance(t, templates.Template)]
    assert len(kept) > 10
    assert templates_by_types()
    ft.clear_caches()
    jax.clear_caches()  # JAX's own hold the templates that it has compiled
    gc.collect()
    assert [memory for memory in memories() if memory] == []
    assert [ref() for ref in kept if ref() is not None] == []
    # And all that the user holds works as before.
    for again in (compiled, late, ft.grad(fun), ft.grad(jax.jit(fun))):
        chex.assert_trees_all_close(again(x), want, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(pullback(jnp.ones_like(value))[0], want, rtol=1e-6, atol=1e-7)
    chex.assert_trees_all_close(held(jnp.ones_like(value))[0], want, rtol=1e-6, atol=1e-7)
    assert templates_by_types()


# ---- programs die with their functions -----------------------------------------------------------

WRAPS: dict[str, Callable] = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "ft.jit": ft.jit,
    "scan": lambda f: lambda x: lax.scan(lambda c, _: (f(c), c), x, None, length=2)[0],
    "cond": lambda f: lambda x: lax.cond(x[0] > 0, f, lambda x: f(-x), x),
    "one branch twice": lambda f: lambda x: lax.cond(x[0] > 0, f, f, x),
    "checkpoint": jax.checkpoint,
    "jit in checkpoint in scan": lambda f: WRAPS["scan"](jax.checkpoint(jax.jit(f))),
    "custom_jvp": lambda f: _with_its_jvp(f),
}


def _with_its_jvp(fun: Callable) -> Callable:
    wrapped = jax.custom_jvp(fun)
    wrapped.defjvp(lambda primals, tangents: jax.jvp(fun, primals, tangents))
    return wrapped


@pytest.mark.usefixtures("few_objects")
@pytest.mark.parametrize("name", WRAPS)
def test_programs_die(name: str) -> None:
    """Those of a function that is gone, and all that was derived from them."""

    def programs() -> list:
        return [p for p in gc.get_objects() if isinstance(p, ClosedJaxpr | Jaxpr)]

    def derive(factor: float) -> list:
        before = {id(p): p for p in programs()}
        fun = WRAPS[name](lambda x: lax.sin(factor * x) * x)
        ft.jit(ft.hessian(lambda x: jnp.sum(fun(x))))(X[0])
        ft.grad(lambda x: jnp.sum(fun(x)))(X[0])
        ft.jvp(fun, (X[0],), (X[0],))
        return [weakref.ref(p) for p in programs() if id(p) not in before]

    derive(2.0)  # afterwards all templates by types are there, and these stay
    jax.clear_caches()
    gc.collect()
    new = derive(3.0)
    assert len(new) > 10
    jax.clear_caches()
    gc.collect()
    assert [p() for p in new if p() is not None] == []


# ---- what holds of every template, and of every linear program -----------------------------------


def types(avals: Any) -> list[tuple]:
    return [(a.shape, a.dtype) for a in avals]


@pytest.mark.parametrize("name", CASES)
def test_every_equation_of_a_linear_program_depends_on_the_tangents(name: str) -> None:
    """Its residuals come first; then a tangent for each input that moves."""
    fun, args = CASES[name]
    program = extend.staged(lambda *xs: jax.tree.leaves(fun(*xs)), *args).program
    moving = (True,) * len(program.in_avals)
    primal, linear, moved = linearize_jaxpr(program, moving)
    residuals = primal.out_avals[len(program.out_avals) :]
    dots = [values.tangent_aval(a) for a in program.in_avals]
    assert types(linear.in_avals) == types([*residuals, *dots])
    assert len(moved) == len(program.out_avals)
    y_dots = [values.tangent_aval(a) for a in values.pick(program.out_avals, moved)]
    assert types(linear.out_avals) == types(y_dots)
    assert not linear.consts
    tangents = linear.jaxpr.invars[len(residuals) :]
    found = reached(linear.jaxpr.eqns, tangents)
    rest = [e for e in linear.jaxpr.eqns if not found.issuperset(e.outvars)]
    # A factor that meets a broadcast is given its shape before it is copied.
    assert {e.primitive for e in rest} <= {lax.reshape_p}
    assert found.issuperset(a for a in linear.jaxpr.outvars if not isinstance(a, Literal))


def check(made: Any, make: Any, primitive: Any, in_avals: tuple, params: tuple, flags: tuple):
    """Check the types of a template against those of its key."""
    out_avals, _ = jx.abstract_eval(primitive, in_avals, dict(params))
    if make is linearized_program:
        count, (moving, is_apart) = len(out_avals), flags
        assert not is_apart  # only of a program that the equation carries
        assert types(made.primal.out_avals[:count]) == types(out_avals)
        dots = [values.tangent_aval(a) for a in values.pick(in_avals, moving)]
        given = made.primal.out_avals[count:]
        assert types(made.linear.program.in_avals) == types([*given, *dots])
        y_dots = [values.tangent_aval(a) for a in values.pick(out_avals, made.moved)]
        assert types(made.linear.out_avals) == types(y_dots)
    elif make is pushed_program:
        y_dots = [values.tangent_aval(a) for a in values.pick(out_avals, made.moved)]
        assert types(made.program.out_avals) == types([*out_avals, *y_dots])
    else:
        assert make is pulled_program
        linear, moving = flags
        known, symbols = values.part(in_avals, linear)
        y_bars = [values.cotangent_aval(a) for a in values.pick(out_avals, moving)]
        assert types(made.program.program.in_avals) == types([*known, *y_bars])
        x_bars = [values.cotangent_aval(a) for a in values.pick(symbols, made.moved)]
        assert types(made.program.out_avals) == types(x_bars)


def test_templates_have_the_types_of_their_keys() -> None:
    for fun, args in OWN.values():
        ft.make_jaxpr(pushed(ft.grad(fun)))(*args)
    kinds = []
    for (params, key, *_), made in templates_by_types().items():
        _, rule, operation, avals, make, flags = key
        assert rule is ft.rules.RULES[operation]
        check(made, make, operation, avals, params, flags)
        kinds.append(make)
        parts = [t for t in made if isinstance(t, templates.Template)]
        assert not any(isinstance(c, jax.core.Tracer) for t in parts for c in t.consts)
    assert {*kinds} == {pushed_program, linearized_program, pulled_program}
    assert len(kinds) > 100
