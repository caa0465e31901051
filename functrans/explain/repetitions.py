"""Find steps that a program repeats: `[step] -> [block of steps]`.

    tanh, matmul, add, tanh, matmul, add, ...      one block of three, and the others of its kind

Two steps are alike if they do the same to values of the same types, in the same round of a loop.

Read next: `player.py`, which plays the passes over the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from functrans.explain import notation
from functrans.explain.records import Run, Step


class Block(NamedTuple):
    """The steps for which one node stands: a single one, or some that are repeated."""

    steps: Sequence[Step]
    times: int


def blocks(steps: Sequence[Step]) -> list[Block]:
    """Find the longest repetition; leave its first round as it is, and put the others together."""
    kinds: dict = {}
    signatures = np.array([kinds.setdefault(_signature(step), len(kinds)) for step in steps])
    start, period, times = max(
        _repetitions(signatures), key=lambda found: (found[2] - 1) * found[1], default=(0, 0, 0)
    )
    if times < 3:
        return [Block([step], 1) for step in steps]
    first, last = start + period, start + times * period
    opened = [Block([step], 1) for step in steps[start:first]]
    repeated = Block(steps[first:last], times - 1)
    return [*blocks(steps[:start]), *opened, repeated, *blocks(steps[last:])]


def _repetitions(signatures: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """The start, the period and the number of rounds of the longest repetition of each period."""
    for period in range(1, len(signatures) // 3 + 1):
        same = signatures[:-period] == signatures[period:]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], same, [0]])))
        starts, ends = edges[::2], edges[1::2]
        if len(starts):
            i = int(np.argmax(ends - starts))
            yield int(starts[i]), period, int(ends[i] - starts[i]) // period + 1


def _signature(step: Step) -> tuple:
    """Equal for two steps that do the same to values of the same types, in one place."""
    types = tuple(x.aval.str_short() for x in [*step.inputs, *step.outputs])
    names = [notation.Text("·")] * len(step.inputs)
    expression = notation.expression(step.equation, names).text
    return str(step.equation.primitive), expression, types, step.place


def read_only_in(blocks: Sequence[Block], run: Run) -> set[int]:
    """The ids of the inputs and constants that nothing but these blocks reads."""
    inside = {id(step) for block in blocks for step in block.steps}
    readers = {id(v): set() for v in run.given}
    for step in run.steps:
        for x in step.inputs:
            readers.get(id(x), set()).add(id(step) in inside)
    for result in run.results:
        readers.get(id(result.source), set()).add(False)
    return {variable for variable, where in readers.items() if where == {True}}
