"""No primitive of JAX's is forgotten; what has no rule says so; and what prints, prints once.

What is in JAX's tables depends on what a process has imported, so they are read by a child process,
which is this file run as a script: it imports JAX and functrans, and writes the page.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import checkify, io_callback
from jax.extend.core import Primitive

import functrans as ft
from functrans.explain import exclusions
from functrans.rules import FAILURES, RULES

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.append(str(TOOLS))
tool = importlib.import_module("coverage_table")
ROOMS = tool.formulas()

pytestmark = pytest.mark.usefixtures("quick_compilation")


def child(folder: Path) -> None:
    facts: dict[str, Any] = {
        "at import": [tool.name_of(primitive) for primitive in RULES],
        "modules": [name for name in sys.modules if name.startswith("jax.experimental")],
        "core": sorted(tool.primitives_of_jax()),
        "missing": tool.import_all_of_jax(),
    }
    facts |= {
        "known": {name: rule is not None for name, rule in tool.primitives_of_jax().items()},
        "rules": [tool.name_of(primitive) for primitive in RULES],
        "gaps": tool.gaps(),
        "written": tool.main(folder / "primitives.md") == 0,
        "failures": FAILURES,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def folder(run_once: Callable[[str], Path]) -> Path:
    return run_once(__file__)


@pytest.fixture(scope="module")
def facts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "facts.json").read_text())


# ---- the table -----------------------------------------------------------------------------------


def test_no_primitive_of_jax_is_forgotten(facts: dict[str, Any]) -> None:
    """Also of those that JAX has only once all of `jax.experimental` is imported."""
    assert {"sin", "scan", "cholesky", "psum"} <= set(facts["core"])
    assert {"bcoo_dot_general", "spsolve", "pallas_call", "xla_metadata_call"} <= set(
        facts["known"]
    ) - set(facts["core"])
    forgotten = {name for name, has_rule in facts["known"].items() if not has_rule}
    assert not forgotten - set(tool.excluded()), (
        "each needs a rule, or a reason in functrans/explain/exclusions.py"
    )
    assert not facts["failures"]


def test_what_is_not_imported_is_imported_by_no_rule(facts: dict[str, Any]) -> None:
    """To import functrans imports no large part of JAX; rules for it wait until it is there."""
    assert not {"jax.experimental.sparse", "jax.experimental.pallas"} & set(facts["modules"])
    assert not {"bcoo_todense", "pallas_call", "compute_on"} & set(facts["at import"])
    assert {"bcoo_todense", "pallas_call", "compute_on"} <= set(facts["rules"])


def test_all_of_jax_was_imported(facts: dict[str, Any]) -> None:
    """But for the modules that need another package: TensorFlow, and a format of files."""
    parts = ("jax2tf", "array_serialization")
    assert all(name.split(".")[2] in parts for name in facts["missing"])


def test_no_exclusion_is_needless(facts: dict[str, Any]) -> None:
    """Each is for a primitive that this JAX has, and that has no rule."""
    excluded = set(tool.excluded())
    assert not excluded - set(facts["known"])
    assert not excluded & set(facts["rules"])
    assert not set(exclusions.EXCLUSIONS) & set(exclusions.UNTIL_10)
    assert all(tool.excluded().values())


def test_every_rule_has_a_formula_and_every_formula_a_rule(facts: dict[str, Any]) -> None:
    assert not facts["gaps"]
    names = [name for formulas in ROOMS.values() for name in formulas]
    assert len(names) == len(set(names))


def test_formulas_are_in_the_room_of_their_rule(facts: dict[str, Any]) -> None:
    """A room declares its rules in one go, but for those that wait; so the rooms of the rules in
    their order change just so many times as there are rooms."""
    room_of = {name: room for room, formulas in ROOMS.items() for name in formulas}
    rooms = [room for room, _ in itertools.groupby(room_of[name] for name in facts["at import"])]
    assert len(rooms) == len(set(rooms))
    assert {room_of[name] for name in facts["rules"]} == set(ROOMS)


def test_the_page_is_not_written_with_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(RULES, Primitive("forgotten_here"), RULES[lax.sin_p])
    monkeypatch.setitem(tool.ROOMS["derivatives.random"][2], "removed_there", "`y_dot = 0`")
    assert tool.main(tmp_path / "page.md") == 1
    said = capsys.readouterr().err
    assert "no formula for forgotten_here\n" in said
    assert "a formula for removed_there, which has no rule\n" in said
    assert not list(tmp_path.iterdir())


# ---- the page ------------------------------------------------------------------------------------


def rows(page: str) -> dict[str, list[str]]:
    """For each primitive the cells of the row that tells of it."""
    cells = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    return {name: row for first, *row in cells for name in re.findall("`([^`]+)`", first)}


def version(page: str) -> str:
    found = re.search(r"with JAX ([\d.]*\d)", page)
    assert found is not None
    return found[1]


def test_the_page_is_up_to_date(folder: Path, facts: dict[str, Any]) -> None:
    """If not: `make coverage-table PYTHON=python3.13`.

    With another version of JAX than the page was written with, all that this version has is there,
    with the same kind of rule and the same formula.
    """
    assert facts["written"]
    new, page = ((place / "primitives.md").read_text() for place in (folder, tool.PAGE.parent))
    if version(new) == version(page):
        assert new == page
    here, there = rows(new), rows(page)
    shared = here.keys() & there.keys()
    assert len(shared) > 200
    only_here = tool.UNTIL_10 | set(exclusions.UNTIL_10) if tool.IS_OLD else set()
    assert here.keys() - there.keys() <= only_here
    for name in shared - only_here:
        assert here[name][:2] == there[name][:2]


# ---- the formulas --------------------------------------------------------------------------------

FORMULAS = {
    name: formula.strip("`")
    for room in ("derivatives.elementwise", "derivatives.special", "derivatives.zeta")
    for name, formula in ROOMS[room].items()
    if re.fullmatch(r"`[yz]_dot = [^`]*`", formula) and hasattr(lax, name)
}
NAMES = {
    **{name: getattr(jnp, name) for name in ("sqrt", "exp", "log", "sin", "cos", "sinh", "cosh")},
    **{name: getattr(jnp, name) for name in ("abs", "sign", "conj", "pi")},
    "digamma": jax.scipy.special.digamma,
    "polygamma": jax.scipy.special.polygamma,
    "i0e": lax.bessel_i0e,
    "i1e": lax.bessel_i1e,
    "i": 1j,
    "Re": jnp.real,
    "Im": jnp.imag,
}


def as_python(formula: str) -> str:
    """`2 x (1 + y) x^2` is `2 * x * (1 + y) * x**2`."""
    return re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula).replace("^", "**")


def test_formulas_are_read_as_mathematics() -> None:
    assert as_python("y / (2 x) - sin(x) x_dot^2") == "y / (2 * x) - sin(x) * x_dot**2"
    assert len(FORMULAS) > 35


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula_is_the_derivative(name: str) -> None:
    """The one on the page, evaluated: `z_dot = ...` of two inputs, or `y_dot = ...` of one."""
    result, _, formula = FORMULAS[name].partition(" = ")
    with jax.enable_x64(True):
        # acosh is real from 1 on
        x, y, x_dot, y_dot = map(jnp.float64, (1.4 if name == "acosh" else 0.6, 0.7, 0.3, -0.8))
        values = {"x": x, "x_dot": x_dot}
        if result == "z_dot":
            values |= {"y": y, "y_dot": y_dot}
            values["z"], got = ft.jvp(getattr(lax, name), (x, y), (x_dot, y_dot))
        else:
            values["y"], got = ft.jvp(getattr(lax, name), (x,), (x_dot,))
        want = eval(as_python(formula), NAMES | values)
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "mathematics"),
    [
        ("`y_dot = x_dot / sqrt(1 - x^2)`", r"$\dot y = \dot x / \sqrt{1 - x^{2}}$"),
        ("`c_i_dot x^(i-1)`, `y_(k-1)_dot`", r"$\dot c_{i} x^{i -1}$, $\dot y_{k -1}$"),
        ("`sum_(k >= i) y_k_bar`", r"$\sum_{k \ge i} \bar y_{k}$"),
        ("`S_dot^T = L Phi(C) L^-T`", r"$\dot S^{\mathsf T} = L \Phi (C) L^{-\mathsf T}$"),
        ("`Re<y_bar, x>`, `x > y`", r"$\operatorname{Re} \langle \bar y, x \rangle$, $x \gt y$"),
        ("`low_dot`, by `reduce_scatter`", r"$\dot{\mathit{low}}$, by `reduce_scatter`"),
        ("`abs(f(x))`, `tau_k`, `n`", r"$\lvert f (x)\rvert$, $\tau_{k}$, $n$"),
    ],
)
def test_a_formula_is_set_as_mathematics(text: str, mathematics: str) -> None:
    assert tool.tex(text) == mathematics


# ---- what has no derivative ----------------------------------------------------------------------

SCALAR = jax.ShapeDtypeStruct((), "float32")
HERE = re.escape(Path(__file__).name)

DERIVATIVES: dict[str, Callable] = {
    "grad": lambda fun: ft.grad(fun)(2.0),
    "jvp": lambda fun: ft.jvp(fun, (2.0,), (1.0,)),
    "linearize": lambda fun: ft.linearize(fun, 2.0),
    "grad of jit": lambda fun: ft.grad(ft.jit(fun))(2.0),
    "jit of grad": lambda fun: ft.jit(ft.grad(fun))(2.0),
    "grad of scan": lambda fun: ft.grad(
        lambda x: lax.scan(lambda c, _: (fun(c), None), x, None, length=2)[0]
    )(2.0),
}
every_derivative = pytest.mark.parametrize("derivative", DERIVATIVES)


def stored(x):
    ref = jax.new_ref(x)
    ref[...] = 2 * ref[...]
    return jnp.sin(ref[...])


def frozen(x):
    return jax.freeze(jax.new_ref(x))


def added(x):
    ref = jax.new_ref(jnp.float32(1.0))
    ref[...] += jnp.sin(x)
    return ref[...]


@every_derivative
@pytest.mark.parametrize(
    ("fun", "primitive"), [(stored, "new_ref"), (frozen, "new_ref"), (added, "swap")]
)
def test_mutable_arrays_have_no_derivative(fun: Callable, primitive: str, derivative: str) -> None:
    """They can be compiled and run; to differentiate through one is an error, not a number."""
    np.testing.assert_allclose(ft.jit(fun)(2.0), fun(2.0), rtol=1e-6)
    with pytest.raises(NotImplementedError, match=f"mutable.*'{primitive}' at .*{HERE}:"):
        DERIVATIVES[derivative](fun)


def test_a_mutable_array_around_the_function() -> None:
    ref = jax.new_ref(jnp.float32(1.0))

    def writes(x):
        ref[...] = x
        return x * ref[...]

    with pytest.raises(NotImplementedError, match=f"mutable.*'swap' at .*{HERE}:"):
        ft.grad(writes)(2.0)
    assert ref[...] == 1.0
    with pytest.raises(TypeError, match=r"ref is a mutable array, Ref\{float32\[\]\}.*ref\[...\]"):
        ft.grad(lambda ref: ref[...] ** 2)(ref)
    assert ft.grad(lambda x, ref: x * ref[...])(2.0, ref) == 1.0  # plumbing, as in JAX


def pure(x):
    return jax.pure_callback(np.sin, SCALAR, x)


def impure(x):
    return io_callback(np.sin, SCALAR, x)


def foreign(x):
    return jax.ffi.ffi_call("functrans_none", SCALAR)(x)


@every_derivative
@pytest.mark.parametrize(
    ("fun", "name"), [(pure, "pure_callback"), (impure, "io_callback"), (foreign, "ffi_call")]
)
def test_functions_outside_of_jax_have_no_derivative(
    fun: Callable, name: str, derivative: str
) -> None:
    """Of JAX neither; the error says what to do."""
    with pytest.raises(ValueError, match=f"'{name}' at .*{HERE}:.*custom_jvp"):
        DERIVATIVES[derivative](fun)
    with pytest.raises(ValueError, match=r"JVP|differentiated"):
        jax.grad(fun)(2.0)


@pytest.mark.parametrize("fun", [pure, impure])
def test_what_the_errors_for_them_advise_helps(fun: Callable) -> None:
    def constant(x):
        return x * fun(lax.stop_gradient(x))

    known = jax.custom_jvp(fun)
    known.defjvps(lambda x_dot, y, x: x_dot * jnp.cos(x))
    for transform in (lambda f: f, ft.jit):
        np.testing.assert_allclose(ft.grad(transform(constant))(2.0), np.sin(2.0), rtol=1e-6)
        np.testing.assert_allclose(ft.grad(transform(known))(2.0), np.cos(2.0), rtol=1e-6)


# ---- prints --------------------------------------------------------------------------------------

TRANSFORMS: dict[str, Callable] = {
    "the function": lambda ad, fun: fun(0.5),
    "jit": lambda ad, fun: ad.jit(fun)(0.5),
    "grad": lambda ad, fun: ad.grad(fun)(0.5),
    "jvp": lambda ad, fun: ad.jvp(fun, (0.5,), (1.0,)),
    "linearize": lambda ad, fun: ad.linearize(fun, 0.5)[1](1.0),
    "vjp": lambda ad, fun: ad.vjp(fun, 0.5)[1](jnp.float32(1.0)),
    "grad of jit": lambda ad, fun: ad.grad(ad.jit(fun))(0.5),
    "jit of grad": lambda ad, fun: ad.jit(ad.grad(fun))(0.5),
    "grad of grad": lambda ad, fun: ad.grad(ad.grad(fun))(0.5),
}


def straight(tell: Callable) -> Callable:
    def fun(x):
        tell(x)
        y = jnp.sin(x)
        tell(y)
        return x * y

    return fun


def in_a_loop(tell: Callable) -> Callable:
    def body(carry, x):
        tell(carry)
        return jnp.sin(carry) * x, None

    return lambda x: lax.scan(body, x, jnp.arange(1.0, 4.0))[0]


def in_a_branch(tell: Callable) -> Callable:
    def told(x):
        tell(x)
        return jnp.sin(x)

    return lambda x: lax.cond(x > 0, told, jnp.cos, x)


PROGRAMS = {fun.__name__: fun for fun in (straight, in_a_loop, in_a_branch)}


def called(ad: ModuleType, program: str, transform: str) -> list[float]:
    """What a callback in the program is called with, in order."""
    seen: list[float] = []

    def tell(x):
        jax.debug.callback(lambda x: seen.append(float(x)), x, ordered=True)

    TRANSFORMS[transform](ad, PROGRAMS[program](tell))
    jax.effects_barrier()
    return seen


def printed(ad: ModuleType, program: str, transform: str, capsys: Any) -> str:
    def tell(x):
        jax.debug.print("x = {}", x, ordered=True)

    TRANSFORMS[transform](ad, PROGRAMS[program](tell))
    jax.effects_barrier()
    return capsys.readouterr().out


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_effects_happen_once_and_in_order(
    program: str, transform: str, capsys: pytest.CaptureFixture
) -> None:
    """Where the primals are computed, as with JAX, and nowhere else."""
    seen = called(ft, program, transform)
    assert len(seen) == {"straight": 2, "in_a_loop": 3, "in_a_branch": 1}[program]
    np.testing.assert_allclose(seen, called(jax, program, "the function"), rtol=1e-6)
    assert seen == called(jax, program, transform)
    out = printed(ft, program, transform, capsys)
    assert out.count("x = ") == len(seen)
    assert out == printed(jax, program, transform, capsys)


def test_checks_are_made_where_the_primals_are() -> None:
    def fun(x):
        checkify.check(x > 0, "x is {x}, not positive", x=x)
        lax.dce_sink(x)
        return x * x

    for transform in (lambda f: f, ft.jit):
        derivative = checkify.checkify(transform(ft.grad(fun)))
        error, x_bar = derivative(3.0)
        assert error.get() is None
        assert x_bar == 6.0
        assert "x is -3.0, not positive" in (derivative(-3.0)[0].get() or "")


if __name__ == "__main__":
    child(Path(sys.argv[1]))
