"""The house is in order: what imports what, what is public and explained, and what leaks.

The source is read with `ast`; nothing here depends on how the files look.
"""

from __future__ import annotations

import ast
import gc
import graphlib
import importlib.util
import inspect
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import functrans as ft
from functrans.errors.wording import counted

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


# Imports point one way. The unit is a file beside `functrans/__init__.py`, or a folder; in a folder
# one file may import another. Each layer may import those before it. What stands beside the layers
# may import what is said here, and no layer imports it: rules reach the interpreters through the
# table in `rules.py`.

LAYERS = ["values", "caches", "jaxpr", "errors", "rules", "programs.live", "appearance", "tracer"]
LAYERS += ["programs.outputs", "templates", "programs"]
LAYERS += [
    "forward",
    "linearize",
    "reverse",
    "jit",
    "flat",
    "signatures",
    "linear_functions",
    "transforms",
    "jacobians",
]
BESIDE = {
    "derivatives": {"rules", "errors"},
    "staging": {"rules", "derivatives"},
    "foreign": {"jaxpr", "rules", "control_flow"},
    "control_flow": {*LAYERS[: LAYERS.index("jit")], "derivatives"},
    "adjoints": {*LAYERS, "derivatives", "control_flow"},
    "extend": {*LAYERS, "control_flow"},
    "taylor": {"extend", "rules", "errors", "flat", "signatures"},
    "sparse": {"caches", "extend", "rules", "transforms", "programs", "errors"},
    "explain": {*LAYERS, "control_flow", "sparse"},
    "": {
        *LAYERS,
        "derivatives",
        "staging",
        "foreign",
        "control_flow",
        "extend",
        "taylor",
        "sparse",
        "explain",
        "adjoints",
    },
    "testing": {""},
    "__main__": {""},
}
"""`testing` and `__main__` use the package as anyone would."""


def unit(name: str) -> str:
    """`functrans.derivatives.shape` is in the unit `derivatives`; `functrans` itself is in `""`.

    `programs.live` and `programs.outputs` are units of their own: the tracer and `templates` need
    them, and the rest of their folder needs `templates`.
    """
    inner = name.partition(".")[2]
    return inner if inner in LAYERS else inner.partition(".")[0]


def may_import(name: str) -> set[str]:
    of = unit(name)
    others = set(LAYERS[: LAYERS.index(of)]) if of in LAYERS else BESIDE[of]
    is_folder = (PACKAGE / of).is_dir() and of
    return others | ({of} if is_folder else set())


@every_module
def test_imports_point_one_way(name: str) -> None:
    wrong = {m for m in modules_imported(name) if unit(m) not in may_import(name)}
    assert not wrong, f"{name} imports {wrong}, which come later"


def test_the_first_layers_import_nothing() -> None:
    assert not modules_imported("functrans.values")
    assert not modules_imported("functrans.caches")


def test_imports_have_no_circle() -> None:
    order = graphlib.TopologicalSorter({name: modules_imported(name) for name in SOURCES})
    assert len(list(order.static_order())) == len(SOURCES)


def test_the_import_graph_is_seen() -> None:
    """The tests above would pass if nothing were found."""
    assert "functrans.jaxpr" in modules_imported("functrans.tracer")
    assert "functrans.reverse" in modules_imported("functrans.linear_functions")
    assert "functrans.derivatives.elementwise" in modules_imported("functrans.derivatives")
    assert {unit(name) for name in SOURCES} == {*LAYERS, *BESIDE}


def test_the_picture_of_imports_is_of_this_code() -> None:
    imports = load_tool("imports")
    assert imports.stored() == imports.arrows(), "run `make picture`"


@pytest.mark.parametrize("name", [name for name in SOURCES if unit(name) == "derivatives"])
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
    # Which read what other packages say there, and show a tracer to them.
    # One tells JAX the derivatives of products that are ours.
    if name not in ("functrans.foreign", "functrans.appearance", "functrans.control_flow.strong"):
        assert not {full for full in used if full.startswith("jax.interpreters.ad")}
    assert not {full for full in used if full.startswith("jax.ad_")}
    if unit(name) not in ("testing", "__main__"):  # which compare with JAX
        assert not used & DERIVATIVES_OF_JAX


# What one reads.


def files_named(name: str) -> list[Path]:
    """The files that a module's docstring names after "Read next:", in order."""
    _, _, after = (ast.get_docstring(SOURCES[name]) or "").partition("Read next:")
    folders = (FILES[name].parent, PACKAGE, REPOSITORY)
    found = []
    for mentioned in re.findall(r"`([\w./]+\.py)`", after):
        places = [(folder / mentioned).resolve() for folder in folders]
        there = [place for place in places if place.is_file()]
        assert there, f"{name} sends the reader to {mentioned}"
        found.append(there[0])
    return found


@every_module
def test_every_module_says_what_it_is(name: str) -> None:
    docstring = ast.get_docstring(SOURCES[name]) or ""
    assert len(docstring.splitlines()[0]) > 20


def test_read_next_visits_every_file_once() -> None:
    """The first file that is named is the next; others are for those who read less."""
    names = {path: name for name, path in FILES.items()}
    chain = ["functrans"]
    while (following := files_named(chain[-1])) and len(chain) <= len(FILES):
        assert following[0] in names, f"{chain[-1]} leads out of the package"
        chain.append(names[following[0]])
    assert len(set(chain)) == len(chain), "it comes back to a file"
    assert set(chain) == set(FILES), f"it ends with {chain[-1]}"
    assert chain[-1] == "functrans.__main__"


def load_tool(name: str) -> Any:
    """A file of `tools/`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_line_budgets() -> None:
    loc = load_tool("loc")
    budgets = loc.budgets(loc.counts())
    assert [budget.limit for budget in budgets] == [800, 1800, 300]
    over = [str(budget) for budget in budgets if budget.count > budget.limit]
    assert not over, over


# What is printed.


@pytest.mark.parametrize("name", [name for name in SOURCES if name != "functrans.__main__"])
def test_a_count_agrees_with_its_noun(name: str) -> None:
    """A text with a count and a plural would say "1 passes": `errors.wording.counted` writes it."""
    texts = [node.values for node in ast.walk(SOURCES[name]) if isinstance(node, ast.JoinedStr)]
    for number, word in (pair for parts in texts for pair in itertools.pairwise(parts)):
        if not isinstance(number, ast.FormattedValue) or not isinstance(word, ast.Constant):
            continue
        value, has_commas = ast.unparse(number.value), "','" in ast.dump(number)
        is_count = has_commas or value.startswith("len(") or value == "count"
        assert not (is_count and re.match(r" (\w+ )?\w+s\b", str(word.value))), (
            f"{value}{word.value}"
        )


def test_the_plural_of_a_count() -> None:
    assert counted(1, "step") == "1 step" and counted(0, "step") == "0 steps"
    assert counted(1000, "reverse pass") == "1,000 reverse passes"
    assert counted(2, "branch") == "2 branches"


# What is public.

API = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")


def names_on_the_api_page() -> set[str]:
    """`functrans.grad` for `autofunction:: grad` below `currentmodule:: functrans`, and so on."""
    module, names = "", set()
    for directive, argument in re.findall(r"^\.\. (\w+):: ([\w.]+)", API, re.MULTILINE):
        if directive == "currentmodule":
            module = argument
        elif directive in ("autofunction", "autoclass", "autodata", "autoexception"):
            names.add(argument if argument.startswith("functrans.") else f"{module}.{argument}")
    return names


ON_THE_PAGE = names_on_the_api_page()
PUBLIC_MODULES = [
    "functrans",
    *(f"functrans.{n}" for n in ("rules", "extend", "explain", "sparse", "testing")),
]


def value_of(full: str) -> Any:
    module, _, name = full.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("full", sorted(ON_THE_PAGE))
def test_a_name_on_the_api_page_exists_and_is_explained(full: str) -> None:
    assert full.rpartition(".")[0] in PUBLIC_MODULES
    assert inspect.getdoc(value_of(full))
    assert not inspect.ismodule(value_of(full)), "a file stands in the place of its function"


@pytest.mark.parametrize(
    "name", ["functrans", "functrans.extend", "functrans.explain", "functrans.sparse"]
)
def test_the_api_page_has_what_is_public_and_no_more(name: str) -> None:
    module = importlib.import_module(name)
    assert len(module.__all__) == len(set(module.__all__))
    public = {n for n in module.__all__ if f"{name}.{n}" not in PUBLIC_MODULES}
    public -= {"jacobian"} if module is ft else set()  # `jacrev`, as the page says
    if module is not ft:
        public -= {n for n in ft.__all__ if getattr(ft, n) is getattr(module, n, None)}
    pairs = (full.rpartition(".") for full in ON_THE_PAGE)
    assert {n for of, _, n in pairs if of == name} == public


# What a tutorial may use besides. The fifth shows the engine by its own source.
OF_THE_ENGINE = {
    "05_inside_functrans": {
        "functrans.forward": {"ForwardTrace", "push", "pushed_program"},
        "functrans.jaxpr": {"Operation", "current_trace"},
        "functrans.jit": {"transformed"},
        "functrans.linearize": {"LinearizeTrace", "_record", "linearized_program"},
        "functrans.reverse": {"Cotangents", "pull", "pulled_program", "transpose"},
        "functrans.rules": {"RULES", "Elementwise"},
        "functrans.templates": {"Template", "templates_of"},
        "functrans.tracer": {"RecordingTrace", "StagingTrace", "Tracer", "stage"},
        "functrans.values": {"Linear", "Zero"},
    }
}


def names_in_notebook(path: Path) -> set[str]:
    """The names of functrans that its code uses, in full."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [line for c in cells if c["cell_type"] == "code" for line in [*c["source"], "\n"]]
    tree = ast.parse("".join(line for line in code if not line.lstrip().startswith(("%", "!"))))
    called = {"ft": "functrans"}  # from a name in the notebook to what it stands for
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            called |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    used = names_imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            used.add(".".join([called.get(first, ""), *rest]))
    ours = {full for full in used if f"{full}.".startswith("functrans.")}
    # Of `functrans.grad.__doc__` the name is `functrans.grad`.
    modules = {*PUBLIC_MODULES, *SOURCES}
    return {n for n in ours if n in modules or n.rpartition(".")[0] in modules}


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "colab").glob("*.ipynb")), ids=lambda p: p.stem
)
def test_tutorials_use_what_is_public(path: Path) -> None:
    besides = OF_THE_ENGINE.get(path.stem, {})
    allowed = {*PUBLIC_MODULES, *ON_THE_PAGE}
    allowed |= {f"{module}.{name}" for module, names in besides.items() for name in names}
    used = names_in_notebook(path)
    assert len(used) > 2
    others = sorted(used - allowed)
    assert not others, "not public"


def test_every_rule_of_an_unnamed_primitive_is_declared() -> None:
    assert not ft.rules.FAILURES


PUBLIC = [name for name in ft.__all__ if not inspect.ismodule(getattr(ft, name))]


def test_public_names_are_there() -> None:
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


# Words.

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md"]
PAGES += sorted((REPOSITORY / "docs").glob("*.md"))
VOCABULARY = re.findall(
    r"^\| `?([\w ]+?)`? \| (.+) \| `([\w./]+)` \|$",
    (REPOSITORY / "docs" / "vocabulary.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize("word, meaning, file", VOCABULARY, ids=[word for word, *_ in VOCABULARY])
def test_a_word_of_the_vocabulary_occurs_where_it_is_defined(word, meaning, file) -> None:
    pattern = re.compile(r"(\b|_)" + word.replace(" ", "[ _]"), re.IGNORECASE)
    is_there = bool(pattern.search((PACKAGE / file).read_text(encoding="utf-8")))
    assert is_there, f"{file} does not say {word}"
    assert meaning.endswith(".")


def test_the_vocabulary_says_each_word_once() -> None:
    words = [word for word, *_ in VOCABULARY]
    assert len(words) == len(set(words)) > 50


def words_in(text: str) -> set[str]:
    return {word for name in re.findall(r"\w+", text) for word in [name, *name.split("_")]}


# Words of former versions, which nobody could know.
PRIVATE_WORDS = {"room", "rooms", "STAGED", "ADOPTED", "SIMPLIFIED", "Worker", "for_moving"}
# As names in the engine; in a sentence they are words like others.
PRIVATE_NAMES = {"gap", "gaps", "alone", "parted", "merged"}


@pytest.mark.parametrize("path", [*FILES.values(), *PAGES], ids=lambda path: path.name)
def test_no_private_words(path: Path) -> None:
    found = words_in(path.read_text(encoding="utf-8")) & PRIVATE_WORDS
    assert not found


@pytest.mark.parametrize("name", [name for name in SOURCES if unit(name) in LAYERS])
def test_no_private_names_in_the_engine(name: str) -> None:
    nodes = list(ast.walk(SOURCES[name]))
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    names |= {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert not names & PRIVATE_NAMES


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


@pytest.mark.usefixtures("few_objects")
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
