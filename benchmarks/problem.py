"""A function to differentiate, with where to and with what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """`fun(x, *data)` is to be differentiated in `x`, a pytree.

    A function of plain operations takes also `np`, the module that has them (`jax.numpy` if it is
    left out), so that other libraries can differentiate it.
    """

    fun: Callable[..., Any]
    x: Any
    data: tuple = ()
