"""Every mistake that a user can make: the exception's type, what it says, and how long it is.

The type is that which JAX raises for the same mistake; each case is written once and run with both.
The message says what was wrong and what to do. The traceback is short: it is the user who reads it.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from numpy import add as plus

import functrans as ft
from functrans.errors import lines, structures

pytestmark = pytest.mark.usefixtures("quick_compilation")

V = jnp.arange(3.0)
BY_ARGNUMS = ("grad", "value_and_grad", "jacfwd", "jacrev", "hessian")
BY_ARGNUMS += ("value_and_jacfwd", "value_and_jacrev")
FEW_FRAMES = 12
NO_HELP = r"(?m)PyTreeDef|ArrayImpl|functrans\.values| at [.,:;]| at$"


def error_of(case: Callable, t: Any) -> Exception:
    with pytest.raises(Exception) as caught:
        case(t)
    return caught.value


def check(case: Callable, *words: str, theirs: Any = None) -> Exception:
    """The error has the type of JAX's, or the one named if JAX has none, and says these words."""
    ours = error_of(case, ft)
    if theirs is None:
        assert type(ours) is type(error_of(case, jax))
    else:
        assert isinstance(ours, theirs)
    for word in words:
        assert re.search(word, str(ours)), f"no {word!r} in: {ours}"
    # The names of our classes and an empty place help nobody. Of a custom rule JAX speaks itself.
    if not str(ours).startswith("Custom "):
        assert not re.search(NO_HELP, str(ours))
    assert len(traceback.extract_tb(ours.__traceback__)) <= FEW_FRAMES
    return ours


def cases(table: dict[str, tuple]) -> Any:
    return pytest.mark.parametrize(
        ("case", "words"),
        [pytest.param(case, words, id=name) for name, (case, *words) in table.items()],
    )


# ---- gradients and Jacobians ---------------------------------------------------------------------


@cases(
    {
        "an array": (
            lambda t: t.grad(lambda x: x * 2)(V),
            r"scalar output.*\(3,\)",
            "sum",
            "jacrev",
        ),
        "a tuple": (
            lambda t: t.grad(lambda x: (x, x))(1.0),
            "scalar output",
            r"\(\*, \*\)",
            "has_aux",
        ),
        "a dict": (lambda t: t.grad(lambda x: {"a": x})(1.0), "scalar output", "'a'"),
        "None": (lambda t: t.grad(lambda x: None)(1.0), "it returned None: is a `return` missing"),
        "None, jitted": (lambda t: t.grad(t.jit(lambda x: None))(1.0), "is a `return` missing"),
        "None, value_and_grad": (
            lambda t: t.value_and_grad(lambda x: None)(1.0),
            "value_and_grad needs",
            "None: is a `return` missing",
        ),
        "None beside aux": (
            lambda t: t.grad(lambda x: (None, x), has_aux=True)(1.0),
            "returned None: is a `return` missing",
        ),
        "None for a pair": (
            lambda t: t.grad(lambda x: None, has_aux=True)(1.0),
            r"pair \(output, aux\), but it returned None: is a `return` missing",
        ),
        "None, jacrev": (lambda t: t.jacrev(lambda x: None)(1.0), "jacrev", "return` missing"),
        "None, hessian": (lambda t: t.hessian(lambda x: None)(1.0), "hessian", "return` missing"),
        "None, pullback": (
            lambda t: t.vjp(lambda x: None, 1.0)[1](1.0),
            r"structure None, but got \*",
            "None: is a `return` missing",
        ),
        "nothing": (lambda t: t.jacrev(lambda x: {"a": ()})(1.0), r"returned \{'a': \(\)\}"),
        "a structure": (
            lambda t: t.grad(lambda x: {"w": x, "b": (x, [x])})(1.0),
            r"returned \{'b': \(\*, \[\*\]\), 'w': \*\}\.",
        ),
        "an integer": (lambda t: t.grad(lambda x: jnp.int32(1))(1.0), "outputs", r"int32\[\]"),
        "a string": (lambda t: t.grad(lambda x: "text")(1.0), "'text'", "str", "not an array"),
        "an array, jitted": (lambda t: t.grad(t.jit(lambda x: x * 2))(V), r"scalar output.*\(3,\)"),
        "an object, jvp": (
            lambda t: t.jvp(lambda x: object(), (1.0,), (1.0,)),
            "object",
            "not an array",
        ),
        "a string, vjp": (lambda t: t.vjp(lambda x: "text", 1.0), "'text'", "not an array"),
        "a string, linearize": (lambda t: t.linearize(lambda x: "text", 1.0), "'text'", "has_aux"),
        "a string, make_jaxpr": (
            lambda t: t.make_jaxpr(lambda x: "text")(1.0),
            "'text'",
            "not an array",
        ),
        "a string, jit": (lambda t: t.jit(lambda x: "text")(1.0), "'text'", "not a valid"),
        "an integer, jacrev": (lambda t: t.jacrev(jnp.argmax)(V), "jacrev", "outputs", "int32"),
    }
)
def test_the_function_returns(case, words):
    check(case, *words)


@cases(
    {
        "an integer": (
            lambda t: t.grad(lambda x: x * 2.0)(2),
            r"grad needs inputs .*, but x is int32\[\]",
            r"[Pp]ass 2\.0 for 2",
            "allow_int=True",
            "argnums",
        ),
        "a boolean": (lambda t: t.grad(lambda x: x * 2.0)(True), r"bool\[\]", "1.0 for True"),
        "one of several": (
            lambda t: t.value_and_grad(two, (0, 1))(1.0, np.int32(3)),
            r"value_and_grad .* y is int32",
            "3.0 for 3",
        ),
        "one in a dict": (
            lambda t: t.grad(lambda a, p: a, (0, 1))(1.0, {"w": 1.0, "n": 7}),
            r"p\['n'\] is int32\[\]",
            "7.0 for 7",
        ),
        "an array": (
            lambda t: t.jacrev(lambda p: p["w"][1])({"w": [V, jnp.arange(3)]}),
            r"jacrev .* p\['w'\]\[1\] is int32\[3\]",
            r"p\['w'\]\[1\]\.astype\(float\)",
        ),
        "in several": (lambda t: t.grad(lambda *xs: xs[0])(2), r"xs\[0\] is int32", "2.0 for 2"),
        "of a function without names": (lambda t: t.grad(max)(2, 1.0), "int32", "2.0 for 2"),
        "a static argument": (
            lambda t: t.grad(t.jit(lambda n, x: x * n, static_argnums=0))(3, 1.0),
            r"n is int32\[\]",
            "3.0 for 3",
        ),
        "a traced one": (
            lambda t: t.grad(t.jit(lambda p: p["n"] * 1.0))({"n": 3}),
            r"p\['n'\] is int32\[\]",
            r"p\['n'\]\.astype\(float\)",
        ),
        "a key": (lambda t: t.grad(lambda k: 1.0)(jax.random.key(0)), "k is key", "argnums"),
        "a string": (lambda t: t.grad(lambda x: 1.0)("text"), "'text'", "not an array", "argnums"),
        "a string in a dict": (
            lambda t: t.grad(lambda p: 1.0)({"w": 1.0, "name": "text"}),
            r"p\['name'\] is 'text' of type str",
        ),
        "an integer, jacfwd": (
            lambda t: t.jacfwd(lambda x: x * 2.0)(1),
            r"jacfwd .* x is int32",
            r"1\.0 for 1, or choose other arguments with argnums\.$",  # it has no allow_int
        ),
        "an integer, jacrev": (lambda t: t.jacrev(lambda x: x * 2.0)(1), "jacrev", "allow_int"),
        "an integer, hessian": (lambda t: t.hessian(lambda x: x * 2.0)(1), "hessian", "1.0 for 1"),
        "an integer, jvp": (
            lambda t: t.jvp(lambda p: p["n"] * 1.0, ({"n": 2},), ({"n": 1},)),
            r"jvp: tangents\[0\]\['n'\] must have the type float0",
            "Pass 2.0 for 2",
        ),
        "a string, jacfwd": (lambda t: t.jacfwd(lambda x: 1.0)("text"), "'text'", "not an array"),
        "a string, jvp": (lambda t: t.jvp(lambda x: 1.0, ("text",), ("text",)), "'text'"),
        "a string, make_jaxpr": (lambda t: t.make_jaxpr(lambda x: x)("text"), "'text'"),
        "a string, jit": (lambda t: t.jit(lambda x: x)("text"), "str", "static|abstract array"),
        "a string, grad of jit": (lambda t: t.grad(t.jit(lambda x: 1.0))("text"), "str"),
    }
)
def test_with_respect_to(case, words):
    check(case, *words)


def test_with_respect_to_a_string_in_vjp():
    """JAX raises a class of `jaxlib` here, which is no class of JAX's own interface."""
    check(lambda t: t.vjp(lambda x: 1.0, "text"), "'text'", "not an array", theirs=TypeError)
    check(lambda t: t.linearize(lambda x: 1.0, "text"), "'text'", "close over", theirs=TypeError)


def two(x, y):
    return x * y


@cases(
    {
        "too large": (
            lambda t: t.grad(two, 2)(1.0, 2.0),
            "argnums=2",
            "out of range",
            "2 positional",
        ),
        "too small": (lambda t: t.grad(two, -3)(1.0, 2.0), "argnums=-3", "out of range"),
        "by keyword": (lambda t: t.grad(lambda x: x)(x=1.0), "argnums=0", "passed by position"),
        "no arguments": (lambda t: t.grad(lambda: 1.0)(), "argnums=0", "0 positional"),
        "one of several": (lambda t: t.value_and_grad(two, (0, 2))(1.0, 2.0), "argnums=2"),
        "jacfwd": (lambda t: t.jacfwd(two, 2)(1.0, 2.0), "jacfwd", "argnums=2", "out of range"),
        "jacrev": (lambda t: t.jacrev(two, 2)(1.0, 2.0), "jacrev", "argnums=2", "out of range"),
        "hessian": (lambda t: t.hessian(two, -3)(1.0, 2.0), "argnums=-3", "out of range"),
        "jitted": (lambda t: t.jacrev(t.jit(two), 2)(1.0, 2.0), "argnums=2", "out of range"),
        "a float": (lambda t: t.grad(two, 1.0)(1.0, 2.0), "argnums", "integer", r"1\.0"),
        "a string": (lambda t: t.grad(two, "x")(1.0, 2.0), "argnums", "integer", "'x'"),
        "strings": (lambda t: t.grad(two, ("x",))(1.0, 2.0), "argnums", "integer", "'x'"),
        "None": (lambda t: t.grad(two, None)(1.0, 2.0), "argnums", "integer", "None"),
        "a float, jacfwd": (lambda t: t.jacfwd(two, 1.0)(1.0, 2.0), "argnums", "integer"),
        "empty": (lambda t: t.grad(two, ())(1.0, 2.0), "argnums is empty"),
        "twice": (lambda t: t.grad(two, (0, -2))(1.0, 2.0), "argnums", "more than once"),
    }
)
def test_argnums(case, words):
    check(case, *words)


@cases(
    {
        "grad": (lambda t: t.grad(lambda z: z * z)(1 + 1j), "complex64", "holomorphic=True"),
        "grad of real": (lambda t: t.grad(lambda x: x * 1j)(1.0), "outputs", "complex64"),
        "jacfwd": (lambda t: t.jacfwd(lambda z: z * z)(1 + 1j), "inputs", "holomorphic=True"),
        "jacrev": (lambda t: t.jacrev(lambda z: z * z)(1 + 1j), "outputs", "holomorphic=True"),
        "hessian": (lambda t: t.hessian(lambda z: z * z)(1 + 1j), "complex64", "holomorphic=True"),
    }
)
def test_complex_without_holomorphic(case, words):
    check(case, *words)


@pytest.mark.parametrize("name", ["grad", "value_and_grad", "jacfwd", "jacrev"])
def test_holomorphic_with_real_numbers(name):
    real_input = lambda t: getattr(t, name)(lambda z: z * z, holomorphic=True)(1.0)  # noqa: E731
    check(real_input, "holomorphic=True", "complex inputs", r"float32\[\]")
    real_output = lambda t: getattr(t, name)(jnp.real, holomorphic=True)(1.0j)  # noqa: E731
    check(real_output, "holomorphic=True", "complex outputs", r"float32\[\]")


# ---- tangents and cotangents ---------------------------------------------------------------------


def identity(x):
    return x


HALVES = V.astype(jnp.float16)


@cases(
    {
        "structure": (lambda t: t.jvp(identity, ((1.0, 2.0),), (1.0,)), "structure", r"\(\*, \*\)"),
        "number": (lambda t: t.jvp(identity, (1.0,), (1.0, 1.0)), "structure"),
        "list for tuple": (lambda t: t.jvp(identity, (1.0,), [1.0]), "structure", r"\[\*\]"),
        "shape": (lambda t: t.jvp(identity, (V,), (V[:2],)), r"float32\[3\]", r"float32\[2\]"),
        "dtype": (lambda t: t.jvp(identity, (V,), (HALVES,)), r"float32\[3\]", r"float16\[3\]"),
        "path": (
            lambda t: t.jvp(identity, ({"w": [V, V]},), ({"w": [V, V[:2]]},)),
            r"tangents\[0\]\['w'\]\[1\] must have the type float32\[3\]",
        ),
        "keys": (
            lambda t: t.jvp(identity, ({"w": V},), ({"v": V},)),
            r"\(\{'w': \*\},\), but got \(\{'v': \*\},\)",
        ),
        "integers": (lambda t: t.jvp(identity, (V,), (jnp.arange(3),)), "float32", "int32"),
        "of integers": (lambda t: t.jvp(identity, (jnp.arange(3),), (V,)), "float0", "float32"),
        "no tuples": (lambda t: t.jvp(identity, 1.0, 1.0), "primals must be a tuple or a list"),
        "array for a tuple": (lambda t: t.jvp(identity, V, [V]), r"an array, float32\[3\]"),
        "no tuple": (
            lambda t: t.jvp(identity, (1.0,), 1.0),
            "tangents must be a tuple or a list",
            "1.0 of type float",
        ),
        "string": (lambda t: t.jvp(identity, (1.0,), ("text",)), "tangent", "'text'"),
        "string as a primal": (
            lambda t: t.jvp(lambda x, y: x, (1.0, ["text"]), (1.0, ["text"])),
            r"primals\[1\]\[0\] is 'text'",
        ),
        "jitted": (lambda t: t.jvp(t.jit(identity), (V,), (V[:2],)), r"float32\[3\]"),
    }
)
def test_tangents(case, words):
    check(case, *words)


def pullback(t, fun=identity):
    return t.vjp(fun, V)[1]


def pushforward(t, fun=identity):
    return t.linearize(fun, V)[1]


@cases(
    {
        "structure": (lambda t: pullback(t)((V, V)), "pullback", r"\(\*, \*\)"),
        "part of it": (lambda t: pullback(t, lambda x: (x, x))(V), "pullback", r"\(\*, \*\)"),
        "shape": (lambda t: pullback(t)(V[:2]), "pullback", r"float32\[3\]", r"float32\[2\]"),
        "dtype": (lambda t: pullback(t)(HALVES), "float32", "float16", "dtypes must be equal"),
        "integers": (lambda t: pullback(t)(jnp.arange(3)), "float32", "int32"),
        "path": (
            lambda t: pullback(t, lambda x: {"a": x, "b": (x, x)})({"a": V, "b": (V, V[:2])}),
            r"pullback: cotangent\['b'\]\[1\] must",
        ),
        "keys": (
            lambda t: pullback(t, lambda x: {"w": x, "b": (x, x)})({"w": V}),
            r"structure \{'b': \(\*, \*\), 'w': \*\}, but got \{'w': \*\}",
        ),
        "string": (lambda t: pullback(t)("text"), "pullback", "'text'"),
        "two": (lambda t: pullback(t)(V, V), "argument"),
        "jitted": (lambda t: pullback(t, t.jit(identity))(V[:2]), r"float32\[3\]", r"float32\[2\]"),
    }
)
def test_cotangent_of_a_pullback(case, words):
    check(case, *words)


@cases(
    {
        "structure": (lambda t: pushforward(t)((V, V)), "pushforward", r"\(\*, \*\)"),
        "two": (lambda t: pushforward(t)(V, V), "pushforward", r"\(\*, \*\)"),
        "shape": (lambda t: pushforward(t)(V[:2]), r"float32\[3\]", r"float32\[2\]"),
        "dtype": (lambda t: pushforward(t)(HALVES), "float32", "float16"),
    }
)
def test_tangents_of_a_pushforward(case, words):
    check(case, *words)


@cases(
    {
        "structure": (lambda t: t.linear_transpose(identity, V)((V,)), "transpose", "structure"),
        "shape": (
            lambda t: t.linear_transpose(identity, V)(V[:2]),
            r"float32\[3\]",
            r"float32\[2\]",
        ),
        "dtype": (lambda t: t.linear_transpose(identity, V)(HALVES), "float32", "float16"),
        "string": (lambda t: t.linear_transpose(identity, "text")(1.0), "'text'"),
        "mixed": (lambda t: t.linear_transpose(lambda n: n * 1.0, 1)(1.0), "all integers", "int32"),
    }
)
def test_linear_transpose(case, words):
    check(case, *words)


def line_of(fun: Callable) -> str:
    """The line after the head of a function, as a message names it."""
    return rf"test_bad_input\.py:{fun.__code__.co_firstlineno + 1}\b"


def integer(t):
    return lax.convert_element_type(t, "int32")


# What chooses an element, a branch or a number of steps depends on the input.
DECIDES: dict[str, tuple[Callable, str]] = {
    "where": (lambda t: jnp.where(t > 0, t, 0.0), "select_n"),
    "select": (lambda t: lax.select_n(integer(t), t, 2 * t, 3 * t), "select_n"),
    "cond": (lambda t: lax.cond(t[0] > 0, lambda t: t, lambda t: 2 * t, t), "cond"),
    "switch": (lambda t: lax.switch(integer(t[0]), [lambda t: t, jnp.negative], t), "cond"),
    "index": (lambda t: V[integer(t)], "gather"),
    "index of itself": (lambda t: t + t[integer(t[0])], "(dynamic_slice|gather)"),
    "gather": (lambda t: jnp.take(t, integer(t)), "gather"),
    "slice": (lambda t: lax.dynamic_slice(t, (integer(t[0]),), (3,)), "dynamic_slice"),
    "update": (
        lambda t: lax.dynamic_update_slice(t, V[:1], (integer(t[0]),)),
        "dynamic_update_slice",
    ),
    "scatter": (lambda t: t.at[integer(t)].set(V), "scatter"),
    "scatter_add": (lambda t: jnp.zeros(3).at[integer(t)].add(1.0), "scatter-add"),
    "rounding": (lambda t: integer(t).astype("float32"), "convert_element_type"),
    "floor": (jnp.floor, "floor"),
}
INSIDE: dict[str, Callable] = {
    "by itself": lambda fun: fun,
    "jit": jax.jit,
    "ft.jit": ft.jit,
    "checkpoint": jax.checkpoint,
    "scan": lambda fun: lambda t: lax.scan(lambda c, _: (fun(c), None), t, None, length=2)[0],
    "cond": lambda fun: lambda t: lax.cond(True, fun, lambda t: t, t),
}


@pytest.mark.parametrize("inside", INSIDE)
@pytest.mark.parametrize("name", DECIDES)
def test_linear_transpose_of_a_value_that_decides(name, inside):
    """JAX raises an `AssertionError` that says nothing, a `NotImplementedError`, or nothing."""
    fun, primitive = DECIDES[name]

    def user(t):
        return INSIDE[inside](fun)(t)

    def own_line(t):
        return fun(t)  # for the line below, without another function's

    case = lambda t: t.linear_transpose(user, V)(V)  # noqa: E731
    said = f"'{primitive}' at .*test_bad_input\\.py:"
    check(case, "cannot transpose", said, "not linear in operand", theirs=ft.rules.NotLinear)
    if name != "floor":
        assert "An operand that decides" in str(error_of(case, ft))
    else:
        check(lambda t: t.linear_transpose(own_line, V)(V), line_of(own_line), theirs=TypeError)


def test_linear_transpose_of_an_index_in_a_function_of_integers():
    """Integers have no derivative, and yet functions that are linear in them."""
    n = jnp.arange(3)
    case = lambda t: t.linear_transpose(lambda n: n[n], n)(n)  # noqa: E731
    check(case, "'gather'", r"operand 1 \(int32", theirs=ft.rules.NotLinear)

    def fun(a, b):
        return (2 * a[::-1], jnp.where(n > 1, a, -b), jnp.sum(a[jnp.array([0, 0])]) - jnp.cumsum(b))

    y_bar = fun(n + 1, n)
    want = jax.linear_transpose(fun, n, n)(y_bar)
    for wrap in (ft.jit, jax.checkpoint):
        x_bars = ft.linear_transpose(wrap(fun), n, n)(y_bar)
        chex.assert_trees_all_equal(x_bars, want)
        inner = [sum(map(jnp.vdot, u, v)) for u, v in ((fun(n, n), y_bar), ((n, n), x_bars))]
        assert inner[0] == inner[1] != 0 and x_bars[0].dtype == jnp.int32


@pytest.mark.parametrize("argnums", [0, 1, (0,), slice(1), slice(1, None)])
def test_a_rule_of_a_user_that_is_linear_in_one_of_two_operands(argnums):
    """However the declaration says which."""
    place = argnums if isinstance(argnums, int) else range(2)[argnums][0] if argnums != (0,) else 0
    primitive = Primitive("chosen")
    primitive.def_impl(lambda x, y: x * y)
    primitive.def_abstract_eval(lambda x, y: x)

    def pull(z_bar, *operands):
        x_bar = z_bar * operands[1 - place]
        return x_bar if isinstance(argnums, int) else [x_bar]

    ft.rules.linear(primitive, pull, argnums)
    right, wrong = (lambda x: primitive.bind(x, 2.0)), (lambda y: primitive.bind(2.0, y))
    if place == 1:
        right, wrong = wrong, right
    chex.assert_trees_all_close(ft.linear_transpose(right, 1.0)(3.0), (6.0,))
    case = lambda t: t.linear_transpose(wrong, 1.0)(3.0)  # noqa: E731
    check(case, "'chosen'", f"not linear in operand {1 - place} ", theirs=ft.rules.NotLinear)


@pytest.mark.parametrize("fun", [jnp.sin, lambda x: x * x, lambda x: x / x, lambda x: x @ x])
def test_linear_transpose_of_a_function_that_is_not_linear(fun):
    """JAX raises a `NotImplementedError` for some functions and an `AssertionError` for others."""
    for wrap in (identity, ft.jit, jax.jit):
        case = lambda t, wrap=wrap: t.linear_transpose(wrap(fun), V)(fun(V))  # noqa: E731
        check(case, "cannot transpose", "not linear", "functrans.vjp", theirs=TypeError)
    assert error_of(lambda t: t.linear_transpose(fun, V)(fun(V)), jax)


# ---- the names of what was wrong -----------------------------------------------------------------


class Layer(NamedTuple):
    """A node of a pytree that shows its fields."""

    weight: Any
    bias: Any


@jax.tree_util.register_pytree_node_class
class Box:
    """A node of a pytree that takes nothing but arrays, and so cannot show a star."""

    def __init__(self, x):
        self.x = jnp.asarray(x)

    def tree_flatten(self):
        return [self.x], None

    @classmethod
    def tree_unflatten(cls, _, xs):
        return cls(*xs)


def test_a_structure_is_shown_as_it_is_written():
    for x, words in {
        "a": "*",
        None: "None",
        (1.0, (2.0,)): "(*, (*,))",
        Layer(1.0, (None, 2.0)): "Layer(weight=*, bias=(None, *))",
        (Box(1.0),): "(CustomNode(Box[None], [*]),)",
    }.items():
        assert structures.shown(jax.tree.structure(x)) == words
    deep = {f"layer {i}": {"w": 1.0, "b": 2.0} for i in range(50)}
    shallow = {**deep, "layer 7": {"w": 1.0}}
    case = lambda t: t.jvp(identity, (deep,), (shallow,))  # noqa: E731
    error = check(case, r"missing: \[0\]\['layer 7'\]\['b'\]\)$")
    assert len(str(error)) < 500
    check(lambda t: t.jvp(identity, (shallow,), (deep,)), r"unexpected: \[0\]\['layer 7'\]\['b'\]")


HVP: dict[str, tuple] = {
    "structure": (lambda: ft.hvp(lambda x: x["a"] ** 2, {"a": 1.0}, {"b": 1.0}), TypeError),
    "shape": (lambda: ft.hvp(lambda x: jnp.sum(x**2), V, V[:2]), ValueError, "v must have"),
    "path": (lambda: ft.hvp(lambda x: x[0] ** 2, [1.0], [V]), ValueError, r"v\[0\] must have"),
    "dtype": (lambda: ft.hvp(lambda x: jnp.sum(x**2), V, HALVES), TypeError, "float16"),
    "integer": (lambda: ft.hvp(lambda x: x**2, 3, 1), TypeError, "x is int32", "3.0 for 3"),
    "string": (lambda: ft.hvp(lambda x: 1.0, "text", 1.0), TypeError, "x is 'text'"),
    "no scalar": (lambda: ft.hvp(lambda x: x**2, V, V), TypeError, r"scalar output.*\(3,\)"),
    "no return": (lambda: ft.hvp(lambda x: None, 1.0, 1.0), TypeError, "`return` missing"),
    "compiled": (lambda: ft.hvp(ft.jit(lambda x: jnp.sum(x**2)), V, V[:2]), ValueError),
}


@pytest.mark.parametrize("name", HVP)
def test_hvp(name):
    """JAX has no such function; the types are those of its `jvp` and its `grad`."""
    case, error, *words = HVP[name]
    check(lambda t: case(), "^hvp", *words, theirs=error)


# Each public function, called with a wrong argument.
SPEAKS: dict[str, Callable] = {
    **{name: lambda t, name=name: getattr(t, name)(two, (0, 5))(1.0, 2.0) for name in BY_ARGNUMS},
    "jvp": lambda t: t.jvp(identity, ("text",), ("text",)),
    "linear_transpose": lambda t: t.linear_transpose(identity, "text"),
    "make_jaxpr": lambda t: t.make_jaxpr(identity)("text"),
}


@pytest.mark.parametrize("name", SPEAKS)
def test_each_function_speaks_of_itself(name):
    theirs = None if hasattr(jax, name) else (TypeError, ValueError)
    check(SPEAKS[name], f"^{name}[: ]", theirs=theirs)


@pytest.mark.parametrize("name", ["vjp", "linearize"])
def test_each_function_of_primals_speaks_of_itself(name):
    case = lambda t: getattr(t, name)(lambda p: 1.0, {"w": 1.0, "name": "text"})  # noqa: E731
    check(case, rf"^{name}: p\['name'\] is 'text'", "close over", theirs=TypeError)


TRANSFORMS: dict[str, Callable] = {
    **{name: lambda t, f, name=name: getattr(t, name)(f) for name in (*BY_ARGNUMS, "jit")},
    "make_jaxpr": lambda t, f: t.make_jaxpr(f),
    "jvp": lambda t, f: t.jvp(f, (V,), (V,)),
    "vjp": lambda t, f: t.vjp(f, V),
    "linearize": lambda t, f: t.linearize(f, V),
    "linear_transpose": lambda t, f: t.linear_transpose(f, V),
    "hvp": lambda t, f: t.hvp(f, V, V),
    "saved_residuals": lambda t, f: t.saved_residuals(f, V),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_value_of_a_function_in_its_place(name):
    """`grad(f(x))` for `grad(f)(x)`."""
    theirs = None if hasattr(jax, name) else TypeError
    hint = "Pass the function f, and not its value"
    for value in (jnp.sin(V), 3.0, (V, {"a": V})):
        case = lambda t, value=value: TRANSFORMS[name](t, value)  # noqa: E731
        check(case, f"^{name} expects a function", hint, theirs=theirs)
    case = lambda t: TRANSFORMS[name](t, jnp.sin(V))  # noqa: E731
    check(case, r"an array, float32\[3\]\.", theirs=theirs)
    error = error_of(lambda t: TRANSFORMS[name](t, "sin"), ft)
    assert "'sin'" in str(error) and hint not in str(error)


# ---- what is traced ------------------------------------------------------------------------------


def numpy_sin(x):
    return np.sin(x)


def numpy_norm(x):
    return np.linalg.norm(
        x * 2,
    )


def numpy_by_name(x):
    return plus(x, 1.0)


def math_exp(x):
    return math.exp(x)


NUMPY: dict[str, tuple] = {
    "sin": (numpy_sin, r"np\.sin", r"jnp\.sin\b"),
    "norm": (numpy_norm, r"np\.linalg\.norm", r"jnp\.linalg\.norm"),
    "by name": (numpy_by_name, "plus", r"jnp\.add"),
    "math": (math_exp, r"math\.exp", r"jnp\.exp"),
}
TRACED: dict[str, Callable] = {
    "jit": lambda t, f: t.jit(f)(1.0),
    "grad": lambda t, f: t.grad(f)(1.0),
    "jvp": lambda t, f: t.jvp(f, (1.0,), (1.0,)),
    "grad of jit": lambda t, f: t.grad(t.jit(f))(1.0),
    "jit of grad": lambda t, f: t.jit(t.grad(f))(1.0),
    "make_jaxpr": lambda t, f: t.make_jaxpr(f)(1.0),
}


@pytest.mark.parametrize("how", TRACED)
@pytest.mark.parametrize("name", NUMPY)
def test_a_function_of_numpy(name, how):
    """The line, and what to write there."""
    fun, called, better = NUMPY[name]
    check(lambda t: TRACED[how](t, fun), f"{called} at .*{line_of(fun)}", f"Use {better}")


def test_no_function_of_numpy():
    """Nothing is said of a function that `jax.numpy` has not, or that is not NumPy's."""
    for fun in (lambda x: np.lib.stride_tricks.as_strided(x), lambda x: float(x)):
        for derive in (ft.grad, ft.jit):
            error = error_of(lambda t, fun=derive(fun): fun(1.0), ft)  # noqa: B008
            assert "Use jnp." not in str(error)
        text = str(error_of(lambda t, fun=fun: t.jit(fun)(1.0), ft))
        assert "is traced, and not computed" in text and " at ." not in text


def test_a_place_without_a_line_of_the_users():
    """What a library has written is said to be where the library was called."""
    head = test_a_place_without_a_line_of_the_users.__code__.co_firstlineno
    for fun in (jnp.sort, ft.jit(jnp.sort), jax.jit(jnp.sort), jnp.cumprod):
        origins = [r.origin for r in ft.saved_residuals(fun, V)]
        assert origins and all(" at " not in o or "test_bad_input.py:" in o for o in origins)
        assert any(re.search(rf" at .*test_bad_input\.py:{head + 4}\b", o) for o in origins)

    def user(x):
        return jnp.round(x)  # a jitted function of JAX, whose own equations have no line

    for wrap in (identity, ft.jit, jax.jit):
        case = lambda t, wrap=wrap: t.linear_transpose(wrap(user), V)(V)  # noqa: E731
        check(case, line_of(user), theirs=ft.rules.NotLinear)


def test_a_thread_in_which_no_line_is_the_users():
    with ThreadPoolExecutor(1) as pool:
        line = pool.submit(lines.user_line).result()
    assert line == "a line that is not known"


MUTABLE: dict[str, Callable] = {
    "grad": lambda f: ft.grad(f)(1.0),
    "grad of jit": lambda f: ft.grad(ft.jit(f))(1.0),
    "jvp": lambda f: ft.jvp(f, (1.0,), (1.0,)),
    "hessian of checkpoint": lambda f: ft.hessian(jax.checkpoint(f))(1.0),
}


@pytest.mark.parametrize("how", MUTABLE)
def test_a_mutable_array(how):
    def user(x):
        return jax.new_ref(x)[...]

    error = check(lambda t: MUTABLE[how](user), "mutable", "new_ref", theirs=NotImplementedError)
    assert re.search(line_of(user), str(error)) and "x.at[i].set(y)" in str(error)


# ---- branches ------------------------------------------------------------------------------------


def test_a_branch_on_a_traced_value():
    error = check(
        lambda t: t.jit(lambda x: x if x > 0 else -x)(1.0),
        "boolean",
        "lax.cond",
        "static_argnums",
        "test_bad_input.py",  # the line of the comparison
    )
    assert isinstance(error, jax.errors.TracerBoolConversionError)
    check(lambda t: t.grad(t.jit(lambda x: x if x > 0 else -x))(1.0), "boolean", "lax.cond")
    check(lambda t: t.jit(lambda x: t.grad(lambda y: y if y > 0 else -y)(x))(1.0), "boolean")
    check(lambda t: t.make_jaxpr(lambda x: x if x > 0 else -x)(1.0), "boolean", "lax.cond")


@cases(
    {
        "float": (lambda t: t.jit(lambda x: float(x))(1.0), "float", "concrete"),
        "index": (lambda t: t.jit(lambda n: [1, 2][n])(1), "__index__", "static"),
        "range": (lambda t: t.jit(lambda n: [0 for _ in range(n)])(3), "__index__"),
        "NumPy": (lambda t: t.jit(np.asarray)(1.0), "__array__"),
        "mask": (lambda t: t.jit(lambda x: x[x > 0])(V), "concrete"),
    }
)
def test_the_value_of_what_is_traced(case, words):
    check(case, *words)


LEAKS: dict[str, Callable] = {
    "grad": lambda t, keep: t.grad(keep)(1.0),
    "jvp": lambda t, keep: t.jvp(keep, (1.0,), (1.0,)),
    "vjp": lambda t, keep: t.vjp(keep, 1.0),
    "linearize": lambda t, keep: t.linearize(keep, 1.0)[1](2.0),
    "jit": lambda t, keep: t.jit(keep)(1.0),
    "make_jaxpr": lambda t, keep: t.make_jaxpr(keep)(1.0),
    "linear_transpose": lambda t, keep: t.linear_transpose(keep, 1.0)(1.0),
    "grad of jit": lambda t, keep: t.grad(t.jit(keep))(1.0),
    "jacfwd": lambda t, keep: t.jacfwd(keep)(1.0),
    "hessian": lambda t, keep: t.hessian(keep)(1.0),
}


@pytest.mark.parametrize("then", [lambda x: x + 1, jnp.sin, lambda x: ft.jit(jnp.sin)(x)])
@pytest.mark.parametrize("name", LEAKS)
def test_a_tracer_that_leaked(name, then):
    def case(t):
        kept = []

        def keep(x):
            kept.append(x * 2)
            return x * 3

        LEAKS[name](t, keep)
        return then(kept[0])

    error = check(case, "leak|escape|unexpected tracer")
    assert isinstance(error, jax.errors.UnexpectedTracerError)


@cases(
    {
        "jit": (lambda t: t.jit(two, static_argnums=1)(1.0, [1]), "hash", r"\[1\]"),
        "grad of jit": (lambda t: t.grad(t.jit(two, static_argnums=1))(1.0, [1]), "hash"),
        "make_jaxpr": (
            lambda t: t.make_jaxpr(two, static_argnums=1)(1.0, [1]),
            "hash",
            "argument 1",
            "list",
        ),
    }
)
def test_a_static_argument_that_has_no_hash(case, words):
    check(case, *words)


@cases(
    {
        "jit": (lambda t: t.jit(identity, static_argnums=3)(1.0), "static_argnums", "3"),
        "make_jaxpr": (
            lambda t: t.make_jaxpr(identity, static_argnums=3)(1.0),
            "static_argnums=3",
            "out of range",
        ),
        "no such option": (lambda t: t.jit(identity, nonsense=1)(1.0), "nonsense"),
    }
)
def test_options_of_jit(case, words):
    check(case, *words)


# ---- functions -----------------------------------------------------------------------------------


@cases(
    {
        "grad": (lambda t: t.grad(3), "function", "3"),
        "value_and_grad": (lambda t: t.value_and_grad("text"), "function", "text"),
        "jvp": (lambda t: t.jvp(3, (1.0,), (1.0,)), "function", "3"),
        "vjp": (lambda t: t.vjp(3, 1.0), "function", "3"),
        "linearize": (lambda t: t.linearize(None, 1.0), "function", "None"),
        "linear_transpose": (lambda t: t.linear_transpose(3, 1.0), "function", "3"),
        "jacfwd": (lambda t: t.jacfwd(3), "function", "3"),
        "jacrev": (lambda t: t.jacrev(3), "function", "3"),
        "hessian": (lambda t: t.hessian(3), "function", "3"),
        "jit": (lambda t: t.jit(3), "function", "3"),
        "make_jaxpr": (lambda t: t.make_jaxpr(3), "function", "3"),
        "arguments": (lambda t: t.grad(two)(1.0), "missing 1 required positional argument"),
        "reduce_axes": (lambda t: t.grad(identity, reduce_axes=("i",)), "reduce_axes", "empty"),
    }
)
def test_what_is_transformed(case, words):
    check(case, *words)


@pytest.mark.parametrize("fun", [lambda x: x, lambda x: (x, x, x), lambda x: (x,)])
@pytest.mark.parametrize(
    "call",
    [
        lambda t, f: t.grad(f, has_aux=True)(1.0),
        lambda t, f: t.value_and_grad(f, has_aux=True)(1.0),
        lambda t, f: t.jvp(f, (1.0,), (1.0,), has_aux=True),
        lambda t, f: t.vjp(f, 1.0, has_aux=True),
        lambda t, f: t.linearize(f, 1.0, has_aux=True),
        lambda t, f: t.jacfwd(f, has_aux=True)(1.0),
        lambda t, f: t.jacrev(f, has_aux=True)(1.0),
        lambda t, f: t.grad(t.jit(f), has_aux=True)(1.0),
    ],
)
def test_has_aux_and_no_pair(call, fun):
    check(lambda t: call(t, fun), "has_aux=True", "pair", "aux", theirs=TypeError)
    # Of some transforms of JAX it is an unpacking that fails.
    assert isinstance(error_of(lambda t: call(t, fun), jax), (TypeError, ValueError))


@pytest.mark.parametrize("chunk_size", [0, -1])
@pytest.mark.parametrize("name", ["jacfwd", "jacrev", "hessian", "value_and_jacfwd"])
def test_chunk_size(name, chunk_size):
    fun = lambda x: jnp.sum(x**2)  # noqa: E731
    case = lambda t: getattr(t, name)(fun, chunk_size=chunk_size)(V)  # noqa: E731
    check(case, "chunk_size", "at least 1", str(chunk_size), theirs=ValueError)


# ---- rules ---------------------------------------------------------------------------------------


def operation(name: str, multiple: bool = False) -> Primitive:
    """A new operation that is an identity, or gives its input twice."""
    primitive = Primitive(name)
    primitive.multiple_results = multiple
    primitive.def_impl(lambda x: [x, x] if multiple else x)
    primitive.def_abstract_eval(lambda x: [x, x] if multiple else x)
    return primitive


@pytest.mark.parametrize("wrap", [identity, jax.jit])
@pytest.mark.parametrize("derive", [ft.grad, ft.jacfwd, lambda f: ft.grad(ft.jit(f))])
def test_a_primitive_without_a_rule(derive, wrap):
    primitive = operation("mystery")

    def user(x):
        return primitive.bind(x * 2)  # this line

    error = check(lambda t: derive(wrap(user))(1.0), theirs=NotImplementedError)
    line = user.__code__.co_firstlineno + 1
    assert "'mystery'" in str(error)
    assert re.search(rf"test_bad_input\.py:{line}\b", str(error))
    assert "functrans.rules.elementwise(mystery_p, lambda y, x: ...)" in str(error)
    assert "help(functrans.rules)" in str(error)
    # The declaration that the message shows is one that works.
    ft.rules.elementwise(primitive, lambda y, x: 0 * x + 1)
    chex.assert_trees_all_close(ft.grad(user)(1.0), 2.0)


def test_a_primitive_without_a_transpose():
    primitive = operation("one_way")
    ft.rules.general(primitive, lambda xs, dots: (xs[0], primitive.bind(dots[0])))
    chex.assert_trees_all_close(ft.jvp(primitive.bind, (1.0,), (2.0,)), (1.0, 2.0))
    check(lambda t: t.grad(primitive.bind)(1.0), "one_way", "not linear", theirs=TypeError)


WRONG_RULES: dict[str, tuple] = {
    "shape": (lambda xs, dots: (xs[0], jnp.ones(5)), r"float32\[\]", r"float32\[5\]"),
    "dtype": (lambda xs, dots: (xs[0], jnp.float16(1)), r"float32\[\]", r"float16\[\]"),
    "no pair": (lambda xs, dots: xs[0], "pair", "tangents"),
    "three": (lambda xs, dots: (xs[0], dots[0], dots[0]), "pair", "tangents"),
    "string": (lambda xs, dots: (xs[0], "text"), "'text'", "tangent"),
}


@pytest.mark.parametrize("name", WRONG_RULES)
@pytest.mark.parametrize("derive", [ft.grad, lambda f: lambda x: ft.jvp(f, (x,), (x,))])
def test_a_general_rule_with_a_wrong_tangent(derive, name):
    primitive = operation("wrong")
    rule, *words = WRONG_RULES[name]
    ft.rules.general(primitive, rule)
    for fun in (primitive.bind, jax.jit(primitive.bind)):
        case = lambda t, fun=fun: derive(fun)(jnp.float32(1.0))  # noqa: E731
        check(case, "the rule of 'wrong'", *words, theirs=TypeError)


def test_a_general_rule_with_too_few_tangents():
    primitive = operation("double", multiple=True)
    ft.rules.general(primitive, lambda xs, dots: (primitive.bind(*xs), [dots[0]]))
    case = lambda t: t.grad(lambda x: sum(primitive.bind(x)))(1.0)  # noqa: E731
    check(
        case,
        "the rule of 'double'",
        "one tangent for each result, .* returned 1 for 2",
        theirs=TypeError,
    )


def custom_jvp(rule: Callable) -> Callable:
    fun = jax.custom_jvp(jnp.sin)
    fun.defjvp(rule)
    return fun


@pytest.mark.parametrize(
    "rule",
    [
        lambda xs, dots: (jnp.sin(xs[0]), jnp.ones(5)),
        lambda xs, dots: (jnp.sin(xs[0]), dots[0].astype(jnp.float16)),
        lambda xs, dots: (jnp.sin(xs[0]), (dots[0], dots[0])),
        lambda xs, dots: jnp.sin(xs[0]),
    ],
    ids=["shape", "dtype", "structure", "no pair"],
)
def test_a_custom_jvp_rule_with_a_wrong_tangent(rule):
    fun = custom_jvp(rule)
    check(lambda t: t.grad(fun)(jnp.float32(1)), "(?i)custom JVP rule")
    check(lambda t: t.jvp(fun, (jnp.float32(1),), (jnp.float32(1),)), "(?i)custom JVP rule")
    check(lambda t: t.grad(t.jit(fun))(jnp.float32(1)), "(?i)custom JVP rule")


def custom_vjp(backward: Callable) -> Callable:
    fun = jax.custom_vjp(jnp.sin)
    fun.defvjp(lambda x: (jnp.sin(x), x), backward)
    return fun


@pytest.mark.parametrize(
    "backward",
    [lambda x, bar: (jnp.ones(5),), lambda x, bar: (bar, bar), lambda x, bar: bar],
    ids=["shape", "number", "no tuple"],
)
def test_a_backward_rule_with_a_wrong_cotangent(backward):
    fun = custom_vjp(backward)
    check(lambda t: t.grad(fun)(jnp.float32(1)), "(?i)custom VJP bwd rule")
    check(lambda t: t.grad(t.jit(fun))(jnp.float32(1)), "(?i)custom VJP bwd rule")


@pytest.mark.parametrize("wrap", [identity, jax.jit, ft.jit])
def test_forward_through_a_backward_rule_that_is_not_linear(wrap):
    """JAX cannot do this for any rule, and has a `TypeError` too."""
    fun = wrap(custom_vjp(lambda x, bar: (bar * bar,)))
    case = lambda t: t.jvp(fun, (1.0,), (1.0,))  # noqa: E731
    check(case, "custom_vjp", "not linear in the cotangent", "custom_jvp", theirs=TypeError)
    assert isinstance(error_of(case, jax), TypeError)
    chex.assert_trees_all_close(ft.grad(fun)(1.0), 1.0)  # in reverse it does what it says


# ---- the traceback -------------------------------------------------------------------------------


def outer(x):
    return inner(x) * 2


def inner(x):
    return jnp.sin(x) @ x  # the mistake


def functions_in(error: Exception) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize("name", ["grad", "jacfwd", "jacrev", "hessian", "value_and_grad", "jit"])
@pytest.mark.parametrize("wrap", [identity, ft.grad, ft.jit])
def test_the_traceback_leads_to_the_users_line(name, wrap):
    error = error_of(lambda t: getattr(t, name)(wrap(outer))(1.0), ft)
    named = [f for f in functions_in(error) if f in ("outer", "inner")]
    assert named == ["outer", "inner"]
    assert len(functions_in(error)) <= FEW_FRAMES


def test_the_traceback_has_all_frames_if_asked_for():
    mode = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    try:
        error = error_of(lambda t: t.grad(outer)(1.0), ft)
    finally:
        jax.config.update("jax_traceback_filtering", mode)
    assert "run_function" in functions_in(error)


def test_the_cause_of_an_error_is_kept():
    def fun(x):
        try:
            return x / {}["key"]
        except KeyError as error:
            raise RuntimeError("no key") from error

    error = error_of(lambda t: t.grad(t.grad(fun))(1.0), ft)
    assert isinstance(error, RuntimeError) and isinstance(error.__cause__, KeyError)


@pytest.mark.parametrize(
    "call", ["grad(loss)", "grad(jit(loss))", "jit(grad(loss))", "hessian(loss)"]
)
def test_what_is_printed_is_short(call, tmp_path):
    """A rule with a wrong tangent, deep in a program: the user's lines, and the message."""
    script = tmp_path / "program.py"
    script.write_text(
        "import jax, jax.numpy as jnp\n"
        "from functrans import *\n"
        "sin = jax.custom_jvp(jnp.sin)\n"
        "sin.defjvp(lambda xs, dots: (jnp.sin(xs[0]), jnp.ones(5)))\n"
        "loss = lambda x: sin(x) * 2\n"
        f"{call}(jnp.float32(1))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 1
    assert "TypeError: Custom JVP rule" in run.stderr and "program.py" in run.stderr
    assert len(run.stderr.splitlines()) <= 30


# ---- nothing half done ---------------------------------------------------------------------------


def test_after_an_error_all_is_as_before():
    """No trace stays behind that would see what runs next."""
    for case in (
        lambda: ft.grad(lambda x: x * 2)(V),
        lambda: ft.jit(lambda x: x if x > 0 else -x)(1.0),
        lambda: ft.jacfwd(lambda x: 1 / 0)(1.0),
        lambda: ft.linear_transpose(jnp.sin, 1.0)(1.0),
    ):
        with pytest.raises((TypeError, ZeroDivisionError)):
            case()
        assert isinstance(jnp.sin(1.0), jax.Array) and not isinstance(jnp.sin(1.0), jax.core.Tracer)
        chex.assert_trees_all_close(ft.grad(lambda x: x**2)(3.0), 6.0)
