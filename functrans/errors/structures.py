"""Pytrees in messages, shown as a user writes them, and the names of their leaves.

    shown :  structure -> "{'w': *, 'b': (*, *)}"           named : argument, leaf -> "p['w']"

Read next: `tracebacks.py`, the frames that an error shows.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
from jax import tree
from jax.tree_util import keystr, tree_flatten_with_path

LONGEST = 160
"""A message shows a structure up to this many characters; of a longer one, the difference."""


class _Leaf:
    def __repr__(self) -> str:
        return "*"


def shown(structure: Any) -> str:
    """A structure, with a star for each leaf."""
    try:
        text = repr(tree.unflatten(structure, [_Leaf()] * structure.num_leaves))
    except Exception:  # from a node that takes only arrays
        text = str(structure).removeprefix("PyTreeDef(").removesuffix(")")
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def described(x: Any) -> str:
    """A value that was passed or returned: its text if that is short, else its type."""
    if isinstance(x, jax.Array) or (getattr(x, "ndim", 0) and hasattr(x, "dtype")):
        return f"an array, {x.dtype}[{','.join(map(str, x.shape))}]"  # also if not of numbers
    return "None" if x is None else f"{reprlib.repr(x)} of type {type(x).__name__}"


def compared(wanted: Any, given: Any) -> str:
    """Two structures, the one that is needed and the one that was given."""
    both = f"{shown(wanted)}, but got {shown(given)}"
    if len(both) < LONGEST:
        return both
    first, second = (dict.fromkeys(_paths(structure)) for structure in (wanted, given))
    missing, extra = ([p for p in a if p not in b] for a, b in ((first, second), (second, first)))
    kinds = (("missing", missing), ("unexpected", extra))
    said = [f"{word}: {', '.join(paths[:3])}" for word, paths in kinds if paths]
    return f"{both} ({'; '.join(said)})" if said else both


def _paths(structure: Any) -> list[str]:
    try:
        whole = tree.unflatten(structure, [_Leaf()] * structure.num_leaves)
    except Exception:
        return []
    return [keystr(path) for path, _ in tree_flatten_with_path(whole)[0]]


def leaves(name: str, argument: Any) -> Iterator[tuple[str, Any]]:
    """The leaves of a pytree of this name, each with its own name."""
    for path, leaf in tree_flatten_with_path(argument)[0]:
        yield name + keystr(path), leaf


def arguments(fun: Callable, given: Iterable[tuple[int, Any]]) -> Iterator[tuple[str, Any]]:
    """The leaves of the arguments at some positions of a function, each with its name."""
    for position, argument in given:
        yield from leaves(parameter(fun, position), argument)


def parameter(fun: Callable, position: int) -> str:
    """The name that a function gives to the argument at a position."""
    try:
        parameters = inspect.signature(fun).parameters.values()
    except (TypeError, ValueError):  # from a function that is not written in Python
        parameters = ()
    for i, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            return f"{parameter.name}[{position - i}]"
        if i == position:
            return parameter.name
    return f"args[{position}]"
