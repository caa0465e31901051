"""Primitives of other packages: those of this file are declared through `jax.interpreters.ad`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive, primitives
from jax.interpreters import ad, batching, mlir

import functrans as ft
from functrans import foreign, rules
from functrans.testing import cross_check

pytestmark = pytest.mark.usefixtures("float64")


def declared(name: str, fun: Callable, multiple_results: bool = False) -> Primitive:
    """A primitive that is evaluated by other ones, and has no derivative yet."""
    primitive = Primitive(name)
    primitive.multiple_results = multiple_results
    primitive.def_impl(fun)
    shapes = functools.partial(jax.eval_shape, fun)

    def abstract_eval(*avals):
        out = jax.tree.map(lambda s: jax.core.ShapedArray(s.shape, s.dtype), shapes(*avals))
        return list(out) if multiple_results else out

    primitive.def_abstract_eval(abstract_eval)
    mlir.register_lowering(primitive, mlir.lower_fun(fun, multiple_results=multiple_results))

    def batched(args, axes):
        outs = jax.vmap(fun, in_axes=axes)(*args)
        return outs, [0] * len(outs) if multiple_results else 0

    batching.primitive_batchers[primitive] = batched
    return primitive


cube_p = declared("test_cube", lambda x: x**3)
ad.defjvp(cube_p, lambda x_dot, x: 3 * x * x * x_dot)

twice_p = declared("test_twice", lambda x: 2 * x)
ad.deflinear2(twice_p, lambda y_bar, x: [twice_p.bind(y_bar)])

times_p = declared("test_times", lambda x, y: x * y)
ad.defbilinear(
    times_p,
    lambda z_bar, x, y: times_p.bind(z_bar, y),
    lambda z_bar, x, y: times_p.bind(x, z_bar),
)

# (x, y) -> (x y, x, how many elements): by hand, with zeros where nothing moves.
several_p = declared("test_several", lambda x, y: [x * y, 3 * x, jnp.size(x)], True)
seen: list[list[bool]] = []


def several_jvp(primals, tangents):
    (x, y), (x_dot, y_dot) = primals, tangents
    seen.append([type(t) is ad.Zero for t in tangents])
    outs = several_p.bind(x, y)
    product = ad.instantiate_zeros(x_dot) * y + x * ad.instantiate_zeros(y_dot)
    triple = x_dot if type(x_dot) is ad.Zero else thrice_p.bind(x_dot)[0]
    return outs, [product, triple, ad.Zero(jax.typeof(outs[2]).to_tangent_aval())]


ad.primitive_jvps[several_p] = several_jvp

# x -> (3 x, 2 x): linear, with several results, some of whose cotangents are zero.
thrice_p = declared("test_thrice", lambda x: [3 * x, 2 * x], True)
pulled: list[list[bool]] = []


def thrice_transpose(y_bars, x):
    assert ad.is_undefined_primal(x)
    pulled.append([type(y_bar) is ad.Zero for y_bar in y_bars])
    factors = zip((3, 2), y_bars, strict=True)
    return [sum(factor * y_bar for factor, y_bar in factors if type(y_bar) is not ad.Zero)]


ad.primitive_jvps[thrice_p] = lambda primals, tangents: (
    thrice_p.bind(*primals),
    thrice_p.bind(*tangents),
)
ad.primitive_transposes[thrice_p] = thrice_transpose

# x -> x^2, with a pushforward in two parts; and its linear part, whose transpose adds.
square_p = declared("test_square", lambda x: x * x)
scaled_p = declared("test_scaled", lambda x, t: 2 * x * t)
has_two_kinds_of_residuals = jax.__version_info__ >= (0, 11)


def square_linearized(for_reverse_mode, moving, x):
    assert not for_reverse_mode and moving == [True]
    if has_two_kinds_of_residuals:
        return square_p.bind(x), True, [x], None, lambda xs, _, t: scaled_p.bind(*xs, t)
    return square_p.bind(x), True, [x], lambda xs, t: scaled_p.bind(*xs, t)


def scaled_transpose(y_bar, x, t):
    t.accum(scaled_p.bind(x, y_bar))


foreign.LINEARIZATIONS[square_p] = square_linearized
foreign.ACCUMULATING[scaled_p] = scaled_transpose
ad.defjvp(scaled_p, lambda x_dot, x, t: 2 * x_dot * t, lambda t_dot, x, t: scaled_p.bind(x, t_dot))

X, Y = jnp.array([0.5, -1.2, 2.0]), jnp.array([1.5, 0.7, -0.3])

PROGRAMS: dict[str, Callable] = {
    "defjvp": lambda x, y: cube_p.bind(x) * y,
    "deflinear2": lambda x, y: jnp.sin(twice_p.bind(x)) * y,
    "defbilinear": lambda x, y: jnp.sin(times_p.bind(x, y)),
    "one factor": lambda x, y: times_p.bind(x, 2.0 * jnp.ones(3)) * y,
    "several results": lambda x, y: several_p.bind(jnp.sin(x), y),
    "linear, several results": lambda x, y: jnp.sin(thrice_p.bind(x * y)[1]),
    "in two parts": lambda x, y: square_p.bind(jnp.sin(x)) * y,
    "in a loop": lambda x, y: lax.scan(lambda c, _: (cube_p.bind(c) * 0.1 + y, None), x, length=2)[
        0
    ],
    "jitted": lambda x, y: jax.jit(times_p.bind)(cube_p.bind(x), y),
}


NOT_OF_JAX = {"in two parts"}
"""JAX's `jvp` does not ask for a linearization."""


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_registered_is_used(name: str) -> None:
    """In both modes, to the second order, in one program and operation by operation."""
    against = ("differences",) if name in NOT_OF_JAX else ("JAX", "differences")
    cross_check(PROGRAMS[name], X, Y, jitted=True, against=against).check()
    cross_check(PROGRAMS[name], X, Y, order=1, against=against[:1]).check()


def test_under_vmap() -> None:
    points = jnp.stack([X, Y])
    for name in ("defjvp", "defbilinear", "several results"):
        scalar = functools.partial(lambda f, x: jnp.sum(f(x, Y)[0]), PROGRAMS[name])
        got, want = jax.vmap(ft.grad(scalar))(points), jax.vmap(jax.grad(scalar))(points)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_zero_tangents_are_those_of_jax() -> None:
    """A rule is told what does not move, and may say that a result does not."""
    seen.clear()
    outs, tangents = ft.jvp(lambda y: several_p.bind(X, y), (Y,), (Y,))
    assert seen == [[True, False]]
    np.testing.assert_allclose(tangents[0], X * Y)
    np.testing.assert_array_equal(tangents[1], np.zeros(3))
    assert tangents[2].dtype == jax.dtypes.float0
    assert outs[2] == 3


def test_zero_cotangents_are_those_of_jax() -> None:
    pulled.clear()
    gradient = ft.grad(lambda x: jnp.sum(thrice_p.bind(x)[0]))(X)
    np.testing.assert_allclose(gradient, np.full(3, 3.0))
    assert pulled == [[False, True]]


def test_a_rule_may_return_the_class_of_zeros() -> None:
    """So says a transpose that all cotangents are zero."""
    cut_p = declared("test_cut", lambda x: x)
    ad.deflinear2(cut_p, lambda y_bar, x: ad.Zero)
    x_bar = ft.grad(lambda x: jnp.sum(cut_p.bind(x) + x))(X)
    np.testing.assert_array_equal(x_bar, np.ones(3))


def test_a_transpose_alone_is_not_a_derivative() -> None:
    lonely_p = declared("test_lonely", lambda x: x)
    ad.primitive_transposes[lonely_p] = lambda y_bar, x: [y_bar]
    np.testing.assert_array_equal(ft.linear_transpose(lonely_p.bind, X)(Y)[0], Y)
    with pytest.raises(NotImplementedError, match="'test_lonely' has registered a transpose"):
        ft.grad(lambda x: jnp.sum(lonely_p.bind(x)))(X)


def test_what_is_not_linear_has_no_transpose() -> None:
    with pytest.raises(rules.NotLinear, match="test_cube"):
        ft.linear_transpose(cube_p.bind, X)(Y)


def test_nothing_registered() -> None:
    unknown_p = declared("test_unknown", lambda x: x)
    with pytest.raises(NotImplementedError, match="test_unknown"):
        ft.jvp(unknown_p.bind, (X,), (X,))


def test_a_rule_is_given_tuples() -> None:
    """It may hand them to `jax.vmap`, whose `in_axes` tells tuples from lists."""
    each_p = declared("test_each", lambda x, y: x * y)

    def jvp(primals, tangents):
        assert type(primals) is type(tangents) is tuple
        assert type(tangents[1]) is ad.Zero
        product = jax.vmap(lambda pair: pair[0] * pair[1], in_axes=((0, 0),))
        return product(primals), product((tangents[0], primals[1]))

    ad.primitive_jvps[each_p] = jvp
    x_bar = ft.grad(lambda x: jnp.sum(jax.vmap(each_p.bind)(x, x[::-1] * 0 + 2.0)))(X)
    np.testing.assert_array_equal(x_bar, np.full(3, 2.0))


# Those of JAX.


@pytest.mark.parametrize("primitive", [lax.sin_p, lax.neg_p, lax.mul_p, lax.sort_p], ids=str)
def test_a_rule_of_jax_is_never_adopted(
    primitive: Primitive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a rule of functrans there is an error, although JAX has one."""
    assert primitive in ad.primitive_jvps
    monkeypatch.delitem(rules.RULES, primitive)
    with pytest.raises(NotImplementedError, match=f"'{primitive}'"):
        rules.rule_of(primitive)
    assert primitive not in rules.RULES


def test_an_error_and_not_the_derivative_of_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(rules.RULES, lax.sin_p)
    with pytest.raises(NotImplementedError, match="'sin'"):
        ft.grad(jnp.sin)(1.0)


def test_no_primitive_of_jax_is_foreign() -> None:
    """Whatever its declaration is made of; also if a package has added a transpose to it."""
    own: dict[Any, str] = {
        primitive: name
        for module in (lax, primitives, jax.lax.linalg)
        for name, primitive in vars(module).items()
        if isinstance(primitive, Primitive)
    }
    with_rules = [p for p in own if p in ad.primitive_jvps or p in ad.primitive_transposes]
    assert len(with_rules) > 100
    assert not [own[p] for p in with_rules if foreign.adopt(p)]


def test_a_transpose_added_to_a_primitive_of_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ad.primitive_transposes, lax.sin_p, lambda y_bar, x: [y_bar])
    monkeypatch.delitem(rules.RULES, lax.sin_p)
    assert not foreign.adopt(lax.sin_p)
    assert lax.sin_p not in rules.RULES
