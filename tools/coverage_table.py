"""Write `docs/primitives.md`: every primitive of JAX, with its derivative.

    make coverage-table        or        python tools/coverage_table.py [file]

The rules and their kinds come from `functrans.rules`, the checks from `tests/rule_cases/`, and the
formulas from `formulas.py`.  The tool fails if a rule has no formula, or a formula no rule.
"""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.experimental
from formulas import ROOMS, SINCE_11, UNTIL_10
from jax.interpreters import ad
from tex import tex

import functrans as ft
from functrans.explain import exclusions
from functrans.rules import RULES

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "primitives.md"
IS_OLD = jax.__version_info__ < (0, 11)
HEAD = ("primitive", "rule", "derivative", "checked")

INTRO = """\
# Every primitive and its derivative

JAX runs a function as a sequence of primitive operations, and the derivative of the function
follows from their derivatives.  This page lists all of them.
"""

MEANING = """\
`x_dot` is the tangent of `x`, and `x_bar` its cotangent.  For `y = f(x)`, forward mode computes
`y_dot = J_f(x) x_dot`, and reverse mode `x_bar = J_f(x)^T y_bar`.

Each primitive has one formula.  If it gives `y_dot`, the transpose follows, since the formula is
linear in `x_dot`.  If it gives `x_bar`, the operation itself is linear in `x`, so that
`y_dot = f(x_dot)`.  The inputs are called `x`, or `x, y` with the result `z`, unless the formula
names them.  A transpose conjugates nothing, even for complex numbers:
`Re<y_bar, J x_dot> = Re<J^T y_bar, x_dot>` with `<a, b> = sum a b`.  `A^H` is the conjugate of
the matrix `A^T`.
"""

COLUMNS = """\
The column **rule** shows the kind of declaration (`functrans/rules.py`).  *Linear in part* is a
pushforward with a transpose in the inputs in which it is linear.  A *call* has a class of its own,
as every primitive that carries jaxprs.  The column **checked** marks the checks of the table in
`tests/rule_cases/`; it is empty for a primitive without a row there:

| mark | meaning |
| --- | --- |
| `F2` `R2` | tested in forward and reverse mode to second order, against differences and JAX |
| `T8` | tested in Taylor mode to eighth order |
| `ℂ` | tested with complex numbers |
| `V` | tested under `jax.vmap` |
| `JAX` | JAX has an entry for the primitive in `jax.interpreters.ad` |
"""

EXCLUDED = """\
## Without a rule

These primitives have an entry in `jax.interpreters.ad`.  To differentiate through one raises a
`NotImplementedError` that names it.
"""


def name_of(primitive: Any) -> str:
    """Two names end in `_p` in JAX 0.10."""
    return primitive.name.removesuffix("_p")


def import_all_of_jax() -> list[str]:
    """Import all of `jax.experimental`; some modules define primitives of their own.

    Returns the names of the modules for which another package is missing.
    """
    missing: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated modules warn
        for module in pkgutil.walk_packages(jax.experimental.__path__, "jax.experimental."):
            try:
                importlib.import_module(module.name)
            except ImportError:
                missing.append(module.name)
    return missing


def primitives_of_jax() -> dict[str, Any]:
    """The primitives for which JAX has a derivative, in all imported modules; and our rule, if any.

    Looking up a primitive declares the rules that wait for it.
    """
    parts = ("jvps", "transposes", "linearizations")
    found = {p: None for part in parts for p in getattr(ad, f"primitive_{part}", ())}
    return {name_of(primitive): RULES[primitive] for primitive in found}


def excluded() -> dict[str, str]:
    """The exclusions of this version of JAX, with the reasons."""
    return exclusions.EXCLUSIONS | (exclusions.UNTIL_10 if IS_OLD else exclusions.SINCE_11)


def formulas() -> dict[str, dict[str, str]]:
    """For each room the formulas of the primitives that this version of JAX has."""
    absent = SINCE_11 if IS_OLD else UNTIL_10
    return {
        room: {name: formula for name, formula in table.items() if name not in absent}
        for room, (_, _, table) in ROOMS.items()
    }


def gaps() -> list[str]:
    """The rules without a formula, and the formulas without a rule."""
    rules, written = set(map(name_of, RULES)), {name for t in formulas().values() for name in t}
    return [f"tools/formulas.py has no formula for {name}" for name in sorted(rules - written)] + [
        f"tools/formulas.py has a formula for {name}, which has no rule"
        for name in sorted(written - rules)
    ]


def kind_of(rule: Any) -> str:
    """The kind of a rule's declaration."""
    kinds = (
        (ft.rules.Multilinear, "multilinear"),
        (ft.rules.Elementwise, "elementwise"),
        (ft.rules.LinearRule, "linear in part" if "forward" in vars(rule) else "linear"),
        (ft.rules.ZeroRule, "zero"),
        (ft.rules.General, "general"),
    )
    return next((kind for cls, kind in kinds if isinstance(rule, cls)), "call")


def checked(name: str) -> str:
    """A mark for each thing that the rows of `tests/rule_cases/` put a primitive through."""
    sys.path.append(str(REPOSITORY / "tests"))
    table = importlib.import_module("rule_cases")

    def of_this(cases):
        names = [{primitive.removesuffix("_p") for primitive in c.primitives} for c in cases]
        return [case for case, known in zip(cases, names, strict=True) if name in known]

    cases, series = of_this(table.CASES), of_this(table.cases_of_series())
    modes = sorted({mode for case in cases for mode in case.modes})
    marks = [f"{mode[0].upper()}{max(case.order for case in cases)}" for mode in modes]
    marks += [f"T{table.TAYLOR}"] if series else []
    marks += ["ℂ"] if any(case.complex for case in cases) else []
    marks += ["V"] if any(case.vmap for case in cases) else []
    return " ".join(f"`{mark}`" for mark in marks)


def table(head: Sequence[str], cells: Mapping[str, Sequence[str]]) -> str:
    """A table of Markdown; neighbours with the same cells share a row."""
    rows = [head, ["---"] * len(head)]
    for shared, names in itertools.groupby(cells, key=cells.__getitem__):
        rows.append([" ".join(f"`{name}`" for name in names), *shared])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def sections() -> Iterator[str]:
    """The page, piece by piece."""
    known = primitives_of_jax()
    rules = {name_of(primitive): rule for primitive, rule in RULES.items()}
    yield from (INTRO, tex(MEANING), COLUMNS)
    yield (
        f"There are {len(rules)} rules.  `make coverage-table` wrote this page with JAX "
        f"{jax.__version__}, from\nthe rules, their tests, and `tools/formulas.py`.\n"
    )
    for room, written in formulas().items():
        title, sentence, _ = ROOMS[room]
        path = f"functrans/{room.replace('.', '/')}"
        place = f"`{path}/`" if (REPOSITORY / path).is_dir() else f"`{path}.py`"
        yield f"## {title}\n\n{tex(sentence)} ({place})\n"
        cells = {
            name: (
                kind_of(rules[name]),
                tex(formula),
                f"{checked(name)} {'`JAX`' if name in known else ''}".strip(),
            )
            for name, formula in written.items()
        }
        yield table(HEAD, cells)
    yield EXCLUDED
    yield table(("primitive", "reason"), {name: (why,) for name, why in excluded().items()})


def main(path: Path = PAGE) -> int:
    """Write the page; return 1 if it cannot be written, else 0."""
    import_all_of_jax()
    primitives_of_jax()
    wrong = gaps()
    if IS_OLD and path == PAGE:
        wrong.append("the page is for the newest JAX: make coverage-table PYTHON=python3.13")
    if wrong:
        print(*wrong, sep="\n", file=sys.stderr)
        return 1
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(sections()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
