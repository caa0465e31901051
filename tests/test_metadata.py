"""What a profile shows: compiled programs name the user's lines and scopes, as JAX's do.

The metadata of an operation in the compiled program must give the line that wrote it, and the
`jax.named_scope`s around that line, under `jit` and in a gradient, and must blame no other file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import source_info_util

import functrans as ft

X = np.linspace(0.5, 1.5, 4, dtype=np.float32)


@pytest.fixture(scope="module", autouse=True)
def metadata_tell_programs_apart() -> Iterator[None]:
    """Of programs that differ in nothing else, each is compiled.

    (To switch the cache off does nothing, once a process has used it.)
    """
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)


@jax.jit
def inner_function(x):
    with jax.named_scope("inner scope"):
        return jnp.tanh(x)  # line of tanh


@jax.custom_jvp
def own_rule(x):
    return jnp.log(x)  # line of log


@own_rule.defjvp
def own_rule_jvp(primals, tangents):
    return own_rule(primals[0]), jax.lax.rsqrt(primals[0]) * tangents[0]  # line of rsqrt


def user_function(x):
    x = jnp.sin(x)  # line of sine
    with jax.named_scope("first scope"):
        x = x * jnp.exp(x)  # line of exponential
        with jax.named_scope("second scope"):
            x = jnp.arctan2(x, 2.0)  # line of atan2
    x = own_rule(inner_function(x))  # line of own_rule
    return jnp.sum(jnp.cbrt(x))  # line of cbrt


def lines() -> dict[str, int]:
    """The line of each operation, as the comments above say."""
    written = Path(__file__).read_text().splitlines()
    found = [(re.search(r"  # line of (\w+)$", line), i + 1) for i, line in enumerate(written)]
    return {match[1]: i for match, i in found if match}


LINES = lines()
SCOPES = {
    "exponential": "/first scope/exp",
    "atan2": "/first scope/second scope/atan2",
    "tanh": "/jit(inner_function)/inner scope/tanh",
}


class Operation(NamedTuple):
    """An operation of a compiled program: its kind, its scopes, and what wrote it."""

    kind: str
    name: str
    file: str
    line: int


def compiled(fun: Callable) -> str:
    return fun.lower(X).compile().as_text()


def operations(text: str) -> list[Operation]:
    """Read the metadata, which give the number of a stack frame; tables say what that is."""
    files = table(text, "FileNames", '()"(.*)"')
    locations = table(text, "FileLocations", r"\{file_name_id=(\d+) .*? line=(\d+)")
    frames = table(text, "StackFrames", r"\{file_location_id=(\d+) parent_frame_id=(\d+)")
    pattern = r' ([\w-]+)\([^\n]*metadata=\{op_name="([^"]*)" stack_frame_id=(\d+)'
    found = []
    for kind, name, frame in re.findall(pattern, text):
        file, line = locations[frames[frame][0]]
        found.append(Operation(kind, name, files[file][1], int(line)))
    return found


def table(text: str, title: str, row: str) -> dict[str, tuple[str, str]]:
    section = re.search(rf"^{title}\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
    assert section, f"the compiled program has no {title}"
    rows = re.findall(rf"^(\d+) {row}", section[1], re.MULTILINE)
    return {number: (first, second) for number, first, second in rows}


def user_gradient(x):
    return ft.grad(user_function)(x)


def push(jvp: Callable, fun: Callable) -> Callable:
    return lambda x: jvp(fun, (x,), (x,))


# What functrans compiles, and what JAX compiles for the same.
COMPILED = {
    "jit": (ft.jit(user_function), jax.jit(user_function)),
    "jit of jvp": (ft.jit(push(ft.jvp, user_function)), jax.jit(push(jax.jvp, user_function))),
    "jit of grad": (ft.jit(ft.grad(user_function)), jax.jit(jax.grad(user_function))),
    "grad of jit": (ft.grad(ft.jit(user_function)), jax.jit(jax.grad(jax.jit(user_function)))),
    "jax's jit of grad": (jax.jit(user_gradient), jax.jit(jax.grad(user_function))),
}
every_way = pytest.mark.parametrize("way", COMPILED)


def lines_by_kind(text: str) -> dict[str, set]:
    """The lines of the operations of which each has its own line."""
    found = operations(text)
    return {kind: {op.line for op in found if op.kind == kind} for kind in LINES}


@every_way
def test_an_operation_has_the_line_that_wrote_it(way):
    ours, theirs = (lines_by_kind(compiled(fun)) for fun in COMPILED[way])
    if way != "jit":  # the slope of tanh, as functrans computes it, contains an exponential
        ours["exponential"].remove(LINES["tanh"])
    assert ours == theirs
    plain = {"sine", "exponential", "atan2", "tanh", "cbrt"}
    assert {kind: ours[kind] for kind in plain} == {kind: {LINES[kind]} for kind in plain}


def first_to_ask(x):
    return jnp.tanh(x)  # line of first_tanh


def second_to_ask(x):
    return jnp.tanh(x)  # line of second_tanh


@pytest.mark.parametrize("jit", [ft.jit, jax.jit])
def test_what_a_rule_calls_has_the_line_of_its_own_operation(jit):
    """The slope of tanh is a function of its own: JAX would keep where it was called first."""
    for fun, name in ((first_to_ask, "first_tanh"), (second_to_ask, "second_tanh")):
        derived = jit(lambda x, fun=fun: ft.jvp(fun, (x,), (x,))[1])
        text = derived.lower(X).compile().as_text()
        assert {op.line for op in operations(text) if op.kind == "exponential"} == {LINES[name]}


@every_way
def test_derivatives_have_the_lines_that_they_are_of(way):
    """What a rule writes has the line of the operation that is differentiated."""
    arithmetic = ("multiply", "add", "divide", "cosine")
    ours, theirs = (
        {op.line for op in operations(compiled(fun)) if op.kind in arithmetic}
        for fun in COMPILED[way]
    )
    assert ours == theirs
    assert ours <= set(LINES.values())


@every_way
def test_scopes(way):
    found = operations(compiled(COMPILED[way][0]))
    named = {op.kind: re.sub(r"jvp\((.*?)\)(?=/)", r"\1", op.name) for op in found}
    for kind, scope in SCOPES.items():
        assert named[kind].endswith(scope)


def test_the_parts_of_a_gradient_have_the_scopes_of_the_function():
    names = [op.name for op in operations(compiled(ft.grad(ft.jit(user_function))))]
    for scope in ("/first scope/mul", "/second scope/div", "/inner scope/mul", "scope/add_any"):
        assert any(name.endswith(scope) for name in names), scope


@every_way
def test_no_file_but_the_user_s_is_blamed(way):
    text = compiled(COMPILED[way][0])
    assert {op.file for op in operations(text)} == {__file__}
    files = [name for _, name in table(text, "FileNames", '()"(.*)"').values()]
    assert __file__ in files
    assert not any(name.startswith(os.path.dirname(ft.__file__)) for name in files)


def test_an_inlined_function_is_blamed_where_it_is_called():
    """`jnp.sinc` is traced once for both calls, and yet each has its own line."""

    def calls(x):
        y = jnp.sinc(x)
        return jnp.sinc(x + y)

    first = calls.__code__.co_firstlineno + 1
    for make_jaxpr in (ft.make_jaxpr, jax.make_jaxpr):
        equations = make_jaxpr(calls)(X).eqns
        places = [source_info_util.summarize(equation.source_info) for equation in equations]
        assert f"{__file__}:{first}:" in places[0]
        assert f"{__file__}:{first + 1}:" in places[-1]
    assert {int(re.search(r":(\d+):", place)[1]) for place in places} == {first, first + 1}


# ---- the names of transforms ---------------------------------------------------------------------


def scoped_model(w, x):
    """Every kind of call, each in a scope of its own, with another inside."""

    def named(scope, fun):
        def inside(*args):
            with jax.named_scope(scope):
                return fun(*args)

        return inside

    with jax.named_scope("layer"):
        x = jnp.tanh(x @ w)
    with jax.named_scope("loop"):
        step = named("step", lambda x: jnp.sin(x @ w))
        x, _ = jax.lax.scan(lambda x, _: (step(x), None), x, None, length=3)
    with jax.named_scope("again"):
        x = jax.checkpoint(named("kept", lambda x: jnp.cos(jnp.sin(x) @ w)))(x)
    with jax.named_scope("choice"):
        x = jax.lax.cond(x.sum() > 0, named("one", jnp.exp), named("other", jnp.sinh), x)
    with jax.named_scope("call"):
        x = jax.jit(named("deep", lambda x: jnp.sin(x) * x))(x)
    return jnp.sum(x)


TRANSFORMS: dict[str, Callable] = {
    "grad": lambda lib: lib.grad(scoped_model),
    "grad of jit": lambda lib: lib.grad(jax.jit(scoped_model)),
    "jvp": lambda lib: lambda *xs: lib.jvp(scoped_model, xs, xs),
    "linearize": lambda lib: lambda *xs: lib.linearize(scoped_model, *xs)[1](*xs),
    "hvp": lambda lib: lambda *xs: lib.jvp(lib.grad(scoped_model), xs, xs),
    "jacrev": lambda lib: lib.jacrev(scoped_model),
    "vjp in a scope": lambda lib: lambda *xs: pulled_back_elsewhere(lib, *xs),
    "linear_transpose": lambda lib: lambda w, x: lib.linear_transpose(transposable(x), w)(1.0),
}


def pulled_back_elsewhere(lib, *xs):
    with jax.named_scope("here"):
        y, pullback = lib.vjp(scoped_model, *xs)
    with jax.named_scope("there"):
        return pullback(y)


def transposable(x):
    def fun(w):
        with jax.named_scope("product"):
            return jnp.sum(x @ w)

    return fun


def halves_named(text: str) -> set[tuple]:
    """For each operation the transforms that made it, and the named scopes in which it stands.

    JAX writes the known part of a checkpoint without a call, and repeats its scope in the rest. A
    pushforward computes again too, and only functrans says so.
    """
    found = set()
    for name in re.findall(r'op_name="(jit[^"]*)"', text):
        parts = [p for p in name.split("/")[:-1] if not re.match(r"jit\(|checkpoint$", p)]
        made = [p for p in parts if "(" in p]
        scopes = ["step", "kept", "one", "other", "deep", "product", "rematted_computation"]
        inner = [p for p in parts if p in scopes]
        if made and (made[0], inner[:1]) != ("jvp(again)", ["rematted_computation"]):
            found.add((made[0], *inner))
    return found


@pytest.mark.parametrize("name", TRANSFORMS)
def test_profiles_show_which_transform_made_an_operation(name):
    """`jvp(layer)`, `transpose(jvp(layer))`: as JAX writes it, in loops, branches and calls too."""
    inputs = np.eye(3, dtype=np.float32), np.ones((2, 3), np.float32)
    ours, theirs = (
        halves_named(str(jax.jit(TRANSFORMS[name](lib)).lower(*inputs).compile().as_text()))
        for lib in (ft, jax)
    )
    assert ours == theirs
    assert len(ours) > 1 or name == "linear_transpose"
