"""The messages about names of values that do not exist, or that no derivative reaches.

Read next: `lines.py`, the user's line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jax.extend.core import Primitive

from functrans import jaxpr as jx
from functrans import values
from functrans.errors.lines import user_line

HOW = 'jax.ad_checkpoint.checkpoint_name(h, "h") gives h a name'


def present(name: str, fun: Callable, asked: Sequence | None, there: Sequence[str]) -> Sequence:
    """The names asked for, all of which occur in the function."""
    known, asked = [*dict.fromkeys(there)], there if asked is None else asked
    missing = [label for label in asked if label not in known]
    if missing or not asked:
        what = f"no value is named {missing[0]!r}" if missing else "no names are asked for"
        said = f"{what}. The names are {', '.join(map(repr, known))}"
        said = said if known else f"no value has a name; {HOW}"
        raise ValueError(f"{name}: in {jx.name_of(fun)} {said}")
    return asked


def have_tangents(name: str, labels: Sequence[str], avals: Sequence) -> None:
    for label, aval in zip(labels, avals, strict=True):
        if not values.is_differentiable(aval):
            raise TypeError(
                f"{name}: the value named {label!r} is of type {aval.str_short()}, which has no "
                "derivative"
            )


def hidden(labels: Sequence[str], primitive: Primitive) -> ValueError:
    """The error for a name inside an equation that does not take other programs."""
    said, line = ", ".join(map(repr, labels)), user_line()
    if str(primitive) == "while":
        return ValueError(
            f"the value named {said} is inside the while_loop at {line}, whose number of steps is "
            "not known, so that its values cannot be stacked. Name what goes in or comes out; or "
            "use a fori_loop between Python integers, or a scan of the most steps that there may "
            "be, with the body lax.cond(goes_on, step, stay, carry)"
        )
    return ValueError(
        f"the value named {said} is inside '{primitive}', whose derivative is not that of the "
        f"program inside, at {line}. Name what goes in or comes out"
    )
