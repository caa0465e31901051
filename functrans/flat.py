"""Functions of pytrees as functions of flat lists.

    flat : (pytree -> pytree) -> [a] -> [b]

The interpreters take flat lists, and users write functions of pytrees.  This file keeps the
structures of arguments and results, and selects the arguments to differentiate.

Read next: `signatures.py`, the name and the documentation of a transformed function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax import tree

from functrans import jaxpr as jx
from functrans import values
from functrans.errors import checks

Argnums = int | Sequence[int]


class Flat:
    """A function of pytrees as a function of flat lists; it remembers the structures."""

    def __init__(self, fun: Callable, in_tree: Any, has_aux: bool = False):
        self.fun, self.in_tree, self.has_aux = fun, in_tree, has_aux
        self.__name__ = jx.name_of(fun)

    def __call__(self, *leaves: Any) -> tuple[list, list]:
        out, aux = self.fun(*tree.unflatten(self.in_tree, leaves)), None
        if self.has_aux:
            out, aux = checks.pair(out)
        outs, self.out_tree = tree.flatten(out)
        aux, self.aux_tree = tree.flatten(aux)
        checks.are_values(self.fun, outs)
        return outs, aux

    def result(self, outs: Sequence, second: Any, aux: Sequence) -> tuple:
        """`(output, second)`, or `(output, second, aux)`."""
        rest = [tree.unflatten(self.aux_tree, aux)] if self.has_aux else []
        return tree.unflatten(self.out_tree, map(values.result, outs)), second, *rest


def select(name: str, fun: Callable, args: tuple, kwargs: dict, argnums: Any) -> tuple:
    """`fun` as a function of the arguments `argnums` alone, and these arguments."""
    positions = checks.positions(name, argnums, len(args))

    def partial(*selected):
        given = dict(zip(positions, selected, strict=True))
        return fun(*(given.get(i, x) for i, x in enumerate(args)), **kwargs)

    return jx.named_like(fun, partial), tuple(args[i] for i in positions)


def answer(name: str, value: Any, derivative: Any, aux: Sequence) -> Any:
    """The result of the public function of this name: `value_and_...` returns the value too."""
    if name.startswith("value_and_"):
        return (value, *aux) if aux else value, derivative
    return (derivative, *aux) if aux else derivative
