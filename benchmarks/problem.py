"""A function to differentiate, with where to and with what."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """`fun(x, *data)` is to be differentiated in `x`, a pytree.

    A function of plain operations takes also `np`, the module that has them (`jax.numpy` if it is
    left out), so that other libraries can differentiate it.
    """

    fun: Callable[..., Any]
    x: Any
    data: tuple = ()
    rivals: Mapping[str, Callable[..., Any]] = MappingProxyType({})
    """What JAX differentiates in its place, under its name, if it has no derivative of `fun`; and
    what other libraries have for it, under theirs, which JAX differentiates too."""
