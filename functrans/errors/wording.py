"""The message about an argument or a result without a derivative: what it is, and what to do.

Read next: `operations.py`, the messages about an operation without a derivative.
"""

from __future__ import annotations

from typing import Any

import jax.core
import numpy as np
from jax import tree
from jax.dtypes import float0, issubdtype
from jax.ref import AbstractRef

from functrans import values
from functrans.errors.structures import described, shown

NO_RETURN = ": is a `return` missing?"


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`, `1,000 passes`."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{count:,} {noun}{ending}"


def not_a_value(name: str, x: Any, label: str = "") -> TypeError:
    subject = f"{label} is {described(x)}, which" if label else described(x)
    return TypeError(
        f"{name}: {subject} is not an array or a number. If it is not to be differentiated, "
        "close over it, or leave it out of argnums."
    )


def returned(out: Any) -> str:
    return f"None{NO_RETURN}" if out is None else shown(tree.structure(out))


def no_array(name: str, out: Any) -> ValueError:
    return ValueError(
        f"{name} needs a function that returns arrays, but it returned {returned(out)}"
    )


def not_a_scalar(name: str, out: Any) -> TypeError:
    is_array = values.is_value(out)
    got = f"the shape {jax.typeof(out).shape}" if is_array else returned(out)
    advice = (
        ". Reduce it to one number (a sum, a mean), or use functrans.jacrev or functrans.vjp; with "
        "has_aux=True the function returns (number, aux)."
    )
    return TypeError(
        f"{name} needs a function with a scalar output, but it returned {got}"
        f"{'' if out is None else advice}"
    )


def wrong_type(label: str, aval: Any, got: Any) -> str:
    hint = "Shapes and dtypes must be equal."
    if float0 in (got.dtype, aval.dtype):
        hint = "An integer has no derivative: its tangent is of dtype float0. Pass 2.0 for 2."
    return f"{label} must have the type {aval.str_short()}, but got {got.str_short()}. {hint}"


def wrong_number(name: str, what: str, label: str, x: Any, holomorphic: bool) -> TypeError:
    """`what` is "inputs" or "outputs", and `label` the name of `x`."""
    if not values.is_value(x):
        return not_a_value(name, x, label)
    aval = jax.typeof(x)
    if isinstance(aval, AbstractRef):
        return TypeError(
            f"{name}: {label} is a mutable array, {aval.str_short()}, and these are not "
            f"differentiated. Pass its value, {label}[...]"
        )
    if holomorphic:
        return TypeError(
            f"{name} with holomorphic=True needs complex {what}, but {label} is {aval.str_short()}"
        )
    advice = ["choose other arguments with argnums"] if what == "inputs" else []
    if issubdtype(aval.dtype, np.complexfloating):
        advice += ["pass holomorphic=True for a holomorphic function", "use functrans.vjp"]
    elif issubdtype(aval.dtype, np.number) or aval.dtype == bool:
        is_number = aval.shape == () and not isinstance(x, jax.core.Tracer)
        convert = f"{float(x)!r} for {x!s}" if is_number else f"{label}.astype(float)"
        advice = [f"pass {convert}", *advice] if advice else ["convert it with .astype(float)"]
        if what == "inputs" and name in ("grad", "value_and_grad", "jacrev", "value_and_jacrev"):
            advice.append("set allow_int=True (then its derivative is a zero of dtype float0)")
    said = ", or ".join(advice)
    return TypeError(
        f"{name} needs {what} of a real floating-point dtype, but {label} is {aval.str_short()}. "
        f"{said[:1].upper()}{said[1:]}."
    )
