"""Count the lines of code of the package, and fail if a part of it outgrows its budget.

A line of code is a line that holds a token other than a comment or a docstring. The *tour* is the
seven files that turn a function into its derivative; the *engine* is the tour and what it stands
on. Rules, control flow, rewritten programs and what is shown to people are counted too, by folder.

    python tools/loc.py
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parent.parent / "functrans"

TOUR = (
    *("tracer.py", "forward.py", "linearize.py", "reverse.py"),
    *("jit.py", "transforms.py", "jacobians.py"),
)
ENGINE = (
    *TOUR,
    *("values.py", "caches.py", "jaxpr.py", "rules.py", "templates.py", "flat.py"),
    *("appearance.py", "signatures.py", "linear_functions.py"),
    "errors/checks.py",
)

NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def lines_of_code(source: str) -> int:
    """Count the lines of `source` without blank lines, comments and docstrings."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    code = {
        line
        for token in tokens
        if token.type not in NOT_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    # A string that stands alone is a docstring: of a module, class, function or attribute.
    docstrings = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    return len(code - docstrings)


def counts() -> dict[str, int]:
    """The lines of code of each file of the package, the files before the folders."""
    files = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
    files.sort(key=lambda path: (path.parent.parts, path.name))
    return {
        path.as_posix(): lines_of_code((PACKAGE / path).read_text(encoding="utf-8"))
        for path in files
    }


class Budget(NamedTuple):
    """A part of the package, its lines of code, and how many it may have."""

    part: str
    count: int
    limit: int

    def __str__(self) -> str:
        excess = self.count - self.limit
        verdict = f", {excess} over the budget" if excess > 0 else ""
        return f"{self.count:5}  {self.part} (at most {self.limit}{verdict})"


def budgets(files: dict[str, int]) -> list[Budget]:
    """Each budget, with the lines of code that count against it."""
    longest = max(files, key=lambda name: files[name])
    return [
        Budget("the tour", sum(files[name] for name in TOUR), 800),
        Budget("the engine", sum(files[name] for name in ENGINE), 1800),
        Budget(f"the longest file, {longest}", files[longest], 300),
    ]


def main() -> int:
    """Print the count for each file, folder and budget; return 1 if a budget is exceeded."""
    files = counts()
    for folder, names in groupby(files, key=lambda name: name.rpartition("/")[0]):
        members = list(names)
        total = sum(files[name] for name in members)
        print(f"{total:5}  {folder}/" if folder else f"{total:5}  functrans/*.py")
        for name in members:
            print(f"{files[name]:11}  {name}")
    print(f"{sum(files.values()):5}  in all\n")
    result = budgets(files)
    print(*result, sep="\n")
    return int(any(budget.count > budget.limit for budget in result))


if __name__ == "__main__":
    sys.exit(main())
