r"""The formulas of `formulas.py` as mathematics, for KaTeX and for GitHub.

    tex : "`y_dot = x_dot / (2 y)` where `y > 0`"  ->  "$\dot y = \dot x / (2 y)$ where $y \gt 0$"

Between backticks stands a formula, or the name of a function, which stays as it is. The formulas
stay text, because the tests evaluate them.
"""

from __future__ import annotations

import re

INSIDE = r"(?:[^()]|\([^()]*\))*"
GROUP = rf"\({INSIDE}\)"  # parentheses, with one more inside at most
NAME = (
    r"(?P<base>[A-Za-z][A-Za-z0-9]*(?:_[a-z]{3,}(?<!_dot)(?<!_bar))*)"
    rf"(?:_(?P<index>{GROUP}|(?!dot|bar)\w\w?(?![A-Za-z0-9])))?"
    r"(?:_(?P<accent>dot|bar))?"
)
SIGNS = {
    "->": r"\mapsto ",
    "<=": r"\le ",
    ">=": r"\ge ",
    "/=": r"\ne ",
    "+=": r"\mathrel{+}= ",
    "-=": r"\mathrel{-}= ",
    "...": r"\dots ",
    " < ": r" \lt ",
    " > ": r" \gt ",
    "<": r"\langle ",
    ">": r"\rangle ",
    "√": r"\sqrt",
    "|(": r"\lvert ",
    ")|": r"\rvert ",
}
TOKEN = re.compile(
    rf"{NAME}|\^(?P<power>{GROUP}|-?\w+)|(?P<sign>{'|'.join(map(re.escape, SIGNS))}|.)"
)
GREEK = {"alpha", "beta", "tau", "psi", "pi", "Gamma", "Phi"}
KNOWN = GREEK | {"exp", "log", "sin", "cos", "sinh", "cosh", "sum", "prod", "in"}
VARIABLES = {"low", "high", "value"}
"""Words that stand for arrays; every other word is the name of a function."""


def tex(text: str) -> str:
    """A sentence with formulas between backticks, as Markdown with formulas between dollars."""
    return re.sub("`([^`]*)`", lambda found: piece(found[1]), text)


def piece(text: str) -> str:
    """A formula between dollars; the name of a function stays between backticks."""
    name = re.fullmatch(NAME, text)
    is_function = re.fullmatch(r"[\w-]+", text) and not (
        name and (len(re.sub(r"\d", "", name["base"])) == 1 or name["base"] in GREEK | VARIABLES)
    )
    return f"`{text}`" if is_function else f"${formula(text)}$"


def formula(text: str) -> str:
    """A formula without the dollars."""
    text = re.sub(rf"\bsqrt\(({INSIDE})\)", r"√{\1}", text)
    text = re.sub(rf"\babs\(({INSIDE})\)", r"|(\1)|", text)
    written = "".join(map(token, TOKEN.finditer(text)))
    return re.sub(r" +(?=[ )\]},^]|$)", "", written)


def token(found: re.Match[str]) -> str:
    """A variable, a function, a power, or a sign."""
    if found["base"]:
        return variable(**found.groupdict()) + " "
    if found["power"]:
        power = re.sub("[TH]", r"\\mathsf \g<0>", inside(found["power"]))
        return f"^{{{power}}} "
    return SIGNS.get(found["sign"], found["sign"])


def inside(text: str) -> str:
    """An index or a power, which may be a formula between parentheses."""
    return formula(text[1:-1] if text.startswith("(") else text)


def variable(base: str, index: str | None, accent: str | None, **_: str | None) -> str:
    r"""`x_i_dot` is `\dot x_{i}`, and so on."""
    if re.fullmatch(r"[a-z]\d", base):
        base, index = base[0], base[1]
    if base in KNOWN:
        shown = rf"\{base}"
    elif re.fullmatch("d[a-z]", base):
        shown = rf"\mathrm d{base[1]}"
    elif len(base) == 1:
        shown = base
    else:
        escaped = base.replace("_", r"\_")
        shown = rf"\mathit{{{base}}}" if base in VARIABLES else rf"\operatorname{{{escaped}}}"
    if accent:
        shown = rf"\{accent}{{{shown}}}" if len(base) > 1 else rf"\{accent} {shown}"
    return shown + (f"_{{{index if index.isalnum() else inside(index)}}}" if index else "")
