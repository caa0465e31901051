"""Which outputs of a program are new: neither an input, nor another output.

    (y, x, y) = f(x)        ->        (y,) = f'(x)

A call that returned one of its inputs would copy the array.

Read next: `jitted.py`, a program as one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jax.extend.core import ClosedJaxpr, Literal, Var

from functrans import caches
from functrans.programs.live import giving


class NewOutputs(NamedTuple):
    """A program without the outputs that are inputs, or other outputs: no array is copied."""

    program: ClosedJaxpr | None
    """`None` if no output is new."""
    positions: list[int]
    """The positions of the new outputs."""
    addresses: list[tuple[str, int]]
    """For each output of the whole program, the place of its value: `("in", i)` or `("new", i)`."""

    def all_outputs(self, inputs: Sequence, new: Sequence) -> list:
        """The outputs of the whole program."""
        at_hand = {"in": inputs, "new": new}
        return [at_hand[kind][i] for kind, i in self.addresses]


@caches.by_program
def new_outputs(program: ClosedJaxpr) -> NewOutputs:
    """Find the outputs that are neither inputs nor other outputs."""
    jaxpr = program.jaxpr
    found = {var: ("in", i) for i, var in enumerate(jaxpr.invars)}
    positions: list[int] = []
    addresses = []
    for i, atom in enumerate(jaxpr.outvars):
        if isinstance(atom, Literal) or atom not in found:
            address = ("new", len(positions))
            positions.append(i)
            if isinstance(atom, Var):
                found[atom] = address
        else:
            address = found[atom]
        addresses.append(address)
    # An entry of the cache must not keep its program alive.
    shorter = len(positions) < len(addresses)
    kept = giving(program, [jaxpr.outvars[i] for i in positions]) if shorter else None
    return NewOutputs(kept, positions, addresses)
