"""The line of the user's code that a message names, and the function that this line calls.

    user_line : () -> "file:line (function)"

Read next: `structures.py`, how a message names an argument and shows a pytree.
"""

from __future__ import annotations

import ast
import functools
import linecache
import os
import traceback
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util

_STANDARD = os.path.dirname(os.__file__) + os.sep
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_LIBRARIES = tuple(
    folder + os.sep
    for folder in (_OURS, os.path.dirname(jax.__file__), os.path.dirname(np.__file__))
)


def user_line(source: Any = None) -> str:
    """File and line of the user's code that wrote an equation.

    `source` is where the equation was written; left out, the place of the equation being read.
    """
    if line := source_info_util.summarize(source or source_info_util.current()):
        return line
    # An equation that a library wrote has no user's line; the program that runs it has.
    if frame := _user_frame():
        return f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})"
    return "a line that is not known"


def _user_frame() -> FrameType | None:
    """The innermost frame of the user's own code that is running; a thread may have none."""
    frames = (frame for frame, _ in traceback.walk_stack(None))
    return next((frame for frame in frames if _is_users(frame.f_code.co_filename)), None)


def _is_users(file: str) -> bool:
    is_python = file.startswith((_STANDARD, "<frozen ")) and "-packages" not in file
    return not is_python and not file.startswith(_LIBRARIES)


def in_place_of_numpy() -> str:
    """The replacement for a function of NumPy or of `math` that the user's line calls, if any."""
    frame = _user_frame()
    name = _called(frame) if frame else ""
    if not frame or not name:
        return ""
    first, *rest = name.split(".")
    try:
        function = functools.reduce(getattr, rest, {**frame.f_globals, **frame.f_locals}[first])
        package, *path = (getattr(function, "__module__", None) or "numpy").split(".")
        path.append(function.__name__)
        functools.reduce(getattr, path, jnp)
    except (AttributeError, KeyError):
        return ""
    if package not in ("numpy", "math"):
        return ""
    line, better = f"{frame.f_code.co_filename}:{frame.f_lineno}", ".".join(["jnp", *path])
    return f"{name} at {line} takes numbers, and no traced values. Use {better} (of jax.numpy)."


def _called(frame: FrameType) -> str:
    """The dotted name of the function that a frame is calling, if its source is at hand."""
    first, last, start, end = list(frame.f_code.co_positions())[frame.f_lasti // 2]
    lines = linecache.getlines(frame.f_code.co_filename)[(first or 1) - 1 : last]
    if not lines or start is None:
        return ""
    text = [line.encode() for line in lines]
    text[-1] = text[-1][:end]
    text[0] = text[0][start:]
    try:
        call = ast.parse(b"".join(text).decode(), mode="eval").body
    except SyntaxError:
        return ""
    return ast.unparse(call.func) if isinstance(call, ast.Call) else ""
