"""The house is in order: what imports what, what is public and explained, and what leaks.

The source is read with `ast`; nothing here depends on how the files look.
"""

from __future__ import annotations

import ast
import gc
import graphlib
import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import functrans as ft

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "functrans"


def module_name(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
SOURCES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}
every_module = pytest.mark.parametrize("name", SOURCES)


def names_imported(tree: ast.Module) -> set[str]:
    """`a.b` for `import a.b`, and `a.b.c` for `from a.b import c`, wherever it stands."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def modules_imported(name: str) -> set[str]:
    """Those modules of functrans that a module of functrans imports."""
    ours = {full for full in names_imported(SOURCES[name]) if f"{full}.".startswith("functrans.")}
    return {full if full in SOURCES else full.rpartition(".")[0] for full in ours}


def names_used(tree: ast.Module) -> set[str]:
    """Imported names, and dotted names such as `jax.numpy.sin`."""
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names_imported(tree) | attributes


# Imports point one way: each room of the tour may import those before it. The side rooms may import
# what is said here. In the rooms of `ITSELF` there are several modules, and one may import another.

TOUR = ["jaxpr", "rules", "tracer", "forward", "linearize", "reverse", "control_flow"]
TOUR += ["jit", "transforms", "jacobians"]
SIDE_ROOMS = {"derivatives": {"rules", "errors"}, "errors": {"jaxpr"}}
ITSELF = {"derivatives", "errors", "control_flow"}
ENTRANCES = {"", "testing", "explain", "__main__"}
"""The package, and what uses it as anyone would."""


def room(name: str) -> str:
    """`functrans.derivatives.shape` is in the room `derivatives`; the package is in no room."""
    return name.split(".")[1] if "." in name else ""


def may_import(name: str) -> set[str]:
    if room(name) in ENTRANCES:
        return {room(n) for n in SOURCES} - ({""} if room(name) == "" else set())
    if room(name) in SIDE_ROOMS:
        return SIDE_ROOMS[room(name)] | {room(name)}
    before = set(TOUR[: TOUR.index(room(name))]) | {"errors"}
    before |= {"derivatives"} if room(name) == "control_flow" else set()
    return before | ({room(name)} & ITSELF)


@every_module
def test_imports_point_one_way(name: str) -> None:
    if room(name) == "jaxpr":  # the first, which everything else may import
        assert not modules_imported(name)
    wrong = {m for m in modules_imported(name) if room(m) not in may_import(name)}
    assert not wrong, f"{name} imports {wrong}, which come later"


def test_imports_have_no_circle() -> None:
    order = graphlib.TopologicalSorter({name: modules_imported(name) for name in SOURCES})
    assert len(list(order.static_order())) == len(SOURCES)


def test_the_import_graph_is_seen() -> None:
    """The tests above would pass if nothing were found."""
    assert "functrans.jaxpr" in modules_imported("functrans.tracer")
    assert "functrans.reverse" in modules_imported("functrans.transforms")
    assert "functrans.derivatives.elementwise" in modules_imported("functrans.derivatives")
    assert {room(name) for name in SOURCES} >= {*TOUR, *SIDE_ROOMS}


@pytest.mark.parametrize("name", [name for name in SOURCES if room(name) == "derivatives"])
def test_rules_need_jax_and_nothing_else(name: str) -> None:
    tops = {full.split(".")[0] for full in names_imported(SOURCES[name])}
    standard = {"__future__", "collections", "functools", "itertools", "math", "operator", "typing"}
    assert tops <= {"functrans", "jax", "numpy", "dataclasses"} | standard


# Whose derivatives they are.

DERIVATIVES_OF_JAX = {
    f"jax.{name}"
    for name in [
        *("grad", "value_and_grad", "jvp", "vjp", "linearize", "linear_transpose"),
        *("jacfwd", "jacrev", "jacobian", "hessian", "vjp3", "fwd_and_bwd"),
    ]
}


@every_module
def test_only_the_public_interface_of_jax(name: str) -> None:
    used = names_used(SOURCES[name])
    assert not {full for full in used if full.startswith("jax._src")}
    assert "jax._src" not in FILES[name].read_text(encoding="utf-8")


@every_module
def test_no_derivative_is_that_of_jax(name: str) -> None:
    used = names_used(SOURCES[name])
    if name != "functrans.derivatives.foreign":  # which reads what other packages say there
        assert not {full for full in used if full.startswith("jax.interpreters.ad")}
    assert not {full for full in used if full.startswith("jax.ad_")}
    if room(name) not in ("testing", "__main__"):  # which compare with JAX
        assert not used & DERIVATIVES_OF_JAX


# What one reads.


@every_module
def test_every_module_says_what_it_is_and_what_to_read_next(name: str) -> None:
    docstring = ast.get_docstring(SOURCES[name]) or ""
    assert len(docstring.splitlines()[0]) > 20
    tour = re.search(r"(Read next:|end of the tour|To learn how it works read)", docstring)
    assert tour, f"{name} does not say what to read next"
    for mentioned in re.findall(r"`([\w./]+\.py)`", docstring[tour.start() :]):
        places = [FILES[name].parent / mentioned, PACKAGE / mentioned, REPOSITORY / mentioned]
        assert any(place.is_file() for place in places), f"{name} sends the reader to {mentioned}"


def test_line_budgets(capsys: pytest.CaptureFixture) -> None:
    spec = importlib.util.spec_from_file_location("loc", REPOSITORY / "tools" / "loc.py")
    assert spec is not None and spec.loader is not None
    loc = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loc)
    assert (loc.FILE_BUDGET, loc.TOTAL_BUDGET) == (300, 1300)
    assert loc.main() == 0, capsys.readouterr().out


PUBLIC = [name for name in ft.__all__ if not inspect.ismodule(getattr(ft, name))]


def test_public_names_are_there_once() -> None:
    assert len(ft.__all__) == len(set(ft.__all__))
    assert {"jvp", "vjp", "grad", "jit", "hvp", "make_jaxpr", "linear_transpose"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_documented_and_typed(name: str) -> None:
    function = getattr(ft, name)
    documentation = inspect.getdoc(function) or ""
    assert ">>>" in documentation, f"{name} shows no example"
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for parameter in signature.parameters.values():
        assert parameter.annotation is not inspect.Parameter.empty, f"{name}: {parameter}"


@pytest.mark.parametrize("name", [name for name in ft.__all__ if name not in PUBLIC])
def test_public_modules_are_documented(name: str) -> None:
    module = getattr(ft, name)
    assert module.__name__ == f"functrans.{name}"
    assert inspect.getdoc(module)


# Nothing leaks.

pytestmark = pytest.mark.usefixtures("quick_compilation")

X = jnp.arange(1.0, 4.0)


def fun(x):
    inner = jax.jit(lambda y: jnp.cumsum(y) * jax.nn.silu(y))
    return jnp.sum(inner(x) * jax.vmap(jnp.sin)(x))


TRANSFORMS: dict[str, Callable] = {
    "make_jaxpr": lambda f: ft.make_jaxpr(f)(X),
    "jvp": lambda f: ft.jvp(f, (X,), (X,)),
    "vjp": lambda f: ft.vjp(f, X)[1](jnp.float32(1.0)),
    "linearize": lambda f: ft.linearize(f, X)[1](X),
    "linear_transpose": lambda f: ft.linear_transpose(lambda x: jnp.cumsum(2 * x), X)(X),
    "grad": lambda f: ft.grad(f)(X),
    "jacfwd": lambda f: ft.jacfwd(f)(X),
    "jacrev": lambda f: ft.jacrev(f)(X),
    "hessian": lambda f: ft.hessian(f)(X),
    "hvp": lambda f: ft.hvp(f, X, X),
    "vmap of grad": lambda f: jax.vmap(ft.grad(f))(jnp.stack([X, X])),
    "grad of jax.grad": lambda f: ft.grad(lambda x: jnp.sum(jax.grad(f)(x)))(X),
    "jax.grad of grad": lambda f: jax.grad(lambda x: jnp.sum(ft.grad(f)(x)))(X),
}


def live_tracers() -> int:
    gc.collect()
    return sum(isinstance(x, jax.core.Tracer) for x in gc.get_objects())


@pytest.mark.parametrize("jit", [lambda f: f, ft.jit], ids=["eager", "jitted"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_no_tracer_leaks(name: str, jit: Callable) -> None:
    before = live_tracers()
    with jax.checking_leaks():
        # A function of its own, so that nothing comes from a cache.
        result = TRANSFORMS[name](jit(lambda x: fun(x)))
    assert jax.tree.leaves(result)
    assert live_tracers() <= before


def test_leaks_are_seen() -> None:
    """The test above would pass if nothing were found."""
    leaked = []

    def leaking(x):
        leaked.append(x)
        return x

    ft.make_jaxpr(leaking)(1.0)
    assert live_tracers() > 0
    with pytest.raises(jax.errors.UnexpectedTracerError):
        jnp.sin(leaked[0])
