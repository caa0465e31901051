"""Count the engine's lines of code, and fail if it outgrows its budget.

The engine is everything in `functrans/` but the rules for single primitives and the extras. A line
of code is a line that holds a token other than a comment or a docstring.

    python tools/loc.py
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

ENGINE = Path(__file__).resolve().parent.parent / "functrans"
EXTRAS = ("derivatives", "control_flow", "errors", "explain", "testing.py", "__main__.py")
FILE_BUDGET, TOTAL_BUDGET = 300, 1300  # at most, less than

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


def main() -> int:
    """Print the count for each file and in all; return 1 if a budget is exceeded, else 0."""
    counts = {
        str(path.relative_to(ENGINE)): lines_of_code(path.read_text(encoding="utf-8"))
        for path in sorted(ENGINE.rglob("*.py"))
        if path.relative_to(ENGINE).parts[0] not in EXTRAS
    }
    for name, count in counts.items():
        print(f"{count:5}  {name}" + "  over the budget" * (count > FILE_BUDGET))
    total = sum(counts.values())
    print(f"{total:5}  in all (budget: under {TOTAL_BUDGET}, and no file over {FILE_BUDGET})")
    return int(total >= TOTAL_BUDGET or max(counts.values(), default=0) > FILE_BUDGET)


if __name__ == "__main__":
    sys.exit(main())
