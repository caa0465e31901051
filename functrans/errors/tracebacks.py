"""Tracebacks with the user's frames, without those of functrans and of JAX.

    shorten : error -> error, whose path from the mistake to the call is the user's own code

JAX does so for its own frames. As there, `JAX_TRACEBACK_FILTERING=off` in the environment (or
`jax.config.update("jax_traceback_filtering", "off")`) shows all of them.

Read next: `../explain/__init__.py`, tables and pictures of derivatives.
"""

from __future__ import annotations

import functools
import os
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")

_LEFT_OUT = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep
    for path in (jax.__file__, os.path.dirname(__file__))
)


ENDED = (
    "It may be one of the nondiff_argnums of a custom_jvp or custom_vjp function, or a value that "
    "its rule closes over, which a jit, scan or other call around traces: the rule runs after that "
    "has ended. Pass it as an ordinary argument."
)
"""What to do about a value whose tracing has ended."""


def shorten(error: BaseException) -> None:
    """Leave our frames out of the traceback of an exception, and of its causes."""
    if isinstance(error, jax.errors.UnexpectedTracerError) and "nondiff_argnums" not in str(error):
        noted = getattr(error, "__notes__", [])
        if ENDED not in noted:
            error.add_note(ENDED)
    if getattr(jax.config, "jax_traceback_filtering", None) == "off":
        return
    caused: BaseException | None = error
    while caused is not None:
        kept: TracebackType | None = None
        for frame, line in reversed(list(traceback.walk_tb(caused.__traceback__))):
            if not frame.f_code.co_filename.startswith(_LEFT_OUT):
                kept = TracebackType(kept, frame, frame.f_lasti, line)
        caused.__traceback__ = kept
        caused = caused.__cause__


def with_short_traceback(fun: Callable[P, R]) -> Callable[P, R]:
    """The function; the traceback of an error in it is short."""

    @functools.wraps(fun)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fun(*args, **kwargs)
        except Exception as error:
            shorten(error)
            raise

    # If the function says that it wraps another one, so does the wrapper.
    wrapper.__wrapped__ = getattr(fun, "__wrapped__", fun)
    return wrapper
