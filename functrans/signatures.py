"""A transformed function takes over the name, signature and documentation of its function.

    grad f :  takes the arguments of f,  and says so to `inspect.signature` and to `help`

By this signature `jit` finds static arguments, by position or by name.

Read next: `linear_functions.py`, the results of `vjp` and `linearize`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from functrans import jaxpr as jx

P = ParamSpec("P")
T = TypeVar("T")


def with_signature_of(model: Callable[P, T]) -> Callable[[Callable], Callable[P, T]]:
    """Let a function take the arguments of another one; it gets all of them by name."""
    signature = inspect.signature(model)

    def decorator(function: Callable) -> Callable[P, T]:
        def by_name(*args: Any, **kwargs: Any) -> T:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            return function(**given.arguments)

        named: Any = functools.wraps(function)(by_name)
        named.__signature__ = signature
        return named

    return decorator


def of_the_arguments(fun: Callable, transform: str, what: str, derived: Callable) -> Callable:
    """Document `derived`, which takes the arguments of `fun` and computes `what` of it.

    `transform` is the public function that made it: `value_and_...` returns the value too. The name
    and the other attributes are those of `fun`, as with `functools.wraps`. The documentation begins
    with a sentence on the result.
    """
    what = f"value and the {what}" if transform.startswith("value_and_") else what
    name, documented = jx.name_of(fun), fun
    functools.update_wrapper(derived, fun)
    while isinstance(documented, functools.partial):  # it has the documentation of its class
        documented = documented.func
    own: str = getattr(documented, "__doc__", None) or ""
    of_name = f" of `{name}`, as a function of the same arguments."
    if own.partition("\n\n")[0].endswith(of_name):  # the gradient of the gradient of f
        sentence = f"The {what} of the{own.removeprefix('The')}"
    else:
        sentence = f"The {what}{of_name}" + (f"\n\n{own}" if own else "")
    derived.__name__, derived.__doc__ = name, sentence  # not every callable has a name
    return derived
