"""A loop run backwards, with memory for a few of its carries.

    there_and_back : c_0, b_N -> b_0        c_t+1 = f(c_t),      b_t = r(c_t, b_t+1)

The steps back need the carries c_t, the last one first.  A stack keeps some of them,
*checkpoints*, and we compute the others again from the checkpoint before them.  We go back block
by block: from the topmost checkpoint forward to the last remaining block, with new checkpoints on
the way; then write down all carries of this block, and take its steps back.  With few
carries a block is one step, and no schedule computes fewer steps again.

Between a checkpoint and the end of a range of l blocks, with s - 1 free places on the stack, the
next checkpoint divides the range so that we compute no block more than r times, for the least r
that allows it: r times suffice for C(s + r, r) blocks, since the part before the new checkpoint is
such a range for (s, r - 1), and the rest is one for (s - 1, r).

There is no `cond` around the stack, since XLA would copy it; in nested loops it changes in place.

Source: A. Griewank, A. Walther, Algorithm 799: Revolve, ACM Trans. Math. Softw. 26 (2000), 19-45.

Read next: `replay.py`, the equations of another program.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from functrans import values
from functrans.values import Flags

KEPT = 64
"""How many carries a loop keeps by default."""

LEAST = 2
"""The first carry; and that of the step that is taken back."""


def advance(n: Any, step: Callable, carry: Sequence, ends: Flags) -> list:
    """The carry after n steps.

    Args:
      n: how many; an array if there are several examples, each with its own end.
      step: from a carry to the next.
      carry: the first.
      ends: which entries of the carry belong to one example each, and do not change after its end.
        The first axes of these arrays are those of `n`.
    """

    def body(state):
        t, c = state
        return t + 1, _where(t < n, step(c), c, ends)

    return lax.while_loop(lambda state: state[0] < _most(n), body, (_zero(n), [*carry]))[1]


def there_and_back(
    n: Any,
    step: Callable,
    note: Callable,
    back: Callable,
    carry: Sequence,
    bars: Sequence,
    ends: tuple[Flags, Flags],
    kept: int,
) -> list:
    """Take n steps, and n steps back.

    Args:
      n: as for `advance`.
      step: from a carry to the next.
      note: from a carry to the reads of its step back.
      back: from these, and the bars after a step, to the bars before it. It is linear in the bars.
      carry, bars: the first carry; and the last bars.
      ends: which entries of carry and bars belong to one example each.
      kept: how many carries to hold in memory at a time.

    Returns:
      The first bars.
    """
    size = _block(kept)
    places, total = kept - size, _most(n)
    longest = _longest_ranges(places, size)
    stack = [_repeated(c, places) for c in carry]
    first = note(carry)  # from this carry each example takes a step, if it takes any
    block = [_repeated(x, size) for x in first]

    def move(steps, at, c):
        """So many steps, the first of which is the one with the number `at`."""

        def one(state):
            t, c = state
            return t + 1, _where(t < n, step(c), c, ends[0])

        return lax.while_loop(lambda state: state[0] < at + steps, one, (at, c))[1]

    def descend(state):
        """Write down a checkpoint, and go to where the next one will be."""
        last, top, at, here, c, stack = state
        stack, at = [_put(s, x, top) for s, x in zip(stack, c, strict=True)], _put(at, here, top)
        ahead = _split(longest, last - here + 1, places - 1 - top)
        return last, top + 1, at, here + ahead, move(ahead * size, here * size, c), stack

    def fill(at, steps, c, block):
        """Write down the notes of each of these steps."""

        def one(state):
            i, c, block = state
            block = [_put(s, x, i) for s, x in zip(block, note(c), strict=True)]
            return i + 1, _where(at + i < n, step(c), c, ends[0]), block

        # Do not take the last of them: after the end of the loop, a loop inside may not end.
        start, last = (_zero(n), c, block), steps - 1
        _, c, block = lax.while_loop(lambda state: state[0] < last, one, start)
        return [_put(s, x, last) for s, x in zip(block, note(c), strict=True)]

    def reverse(at, steps, block, bars):
        """Take these steps back."""

        def one(state):
            i, bars = state
            c = [_get(s, i) for s in block]
            return i - 1, _backwards(at + i < n, back, c, bars, first, ends[1])

        return lax.while_loop(lambda state: state[0] >= 0, one, (steps - 1, bars))[1]

    def one_block(state):
        left, top, at, stack, block, bars = state
        last, here = left - 1, _get(at, top)
        c = [_get(s, top) for s in stack]
        down = last, top, at, here, c, stack
        down = lax.while_loop(lambda state: state[3] < state[0], descend, down)
        _, top, at, _, c, stack = down  # below `top` are the checkpoints that are still needed
        begin = last * size
        steps = jnp.minimum(size, total - begin)
        block = fill(begin, steps, c, block)
        bars = reverse(begin, steps, block, bars)
        return last, top - 1, at, stack, block, bars

    left = (total + (size - 1)) // size
    at = _repeated(_zero(n), places)
    start = left, _zero(n), at, stack, block, [*bars]
    return lax.while_loop(lambda state: state[0] > 0, one_block, start)[-1]


def _backwards(alive: Any, back: Callable, c: list, bars: list, first: list, ends: Flags) -> list:
    """One step back, of the examples that take it.

    We select entries that belong to one example each among the results, so that no value passes
    from a step that an example does not take. Sums over examples cannot be taken apart afterwards.
    For these the bars of the other examples are zero, and they repeat the step from the first
    carry, which they did take.
    """
    if not alive.ndim or all(ends):
        return _where(alive, back(c, bars), bars, ends)
    given = [jnp.zeros_like(x) if end else x for x, end in zip(bars, ends, strict=True)]
    given = _where(alive, bars, given, ends)
    return _where(alive, back(_where(alive, c, first, [True] * len(c)), given), bars, ends)


def _where(alive: Any, new: Sequence, old: Sequence, ends: Sequence[bool]) -> list:
    """The new values of the examples that are alive, and of the entries that belong to all."""
    if not alive.ndim:
        return [*new]

    def chosen(x, y, end):
        if not end:
            return x
        aval, dims = values.typeof(x), range(alive.ndim)
        mask = lax.broadcast_in_dim(alive, aval.shape, dims, out_sharding=values.sharding_of(aval))
        return lax.select(mask, x, y)

    return [chosen(*triple) for triple in zip(new, old, ends, strict=True)]


def _most(n: Any) -> Any:
    """The steps of the example that takes the most."""
    return lax.reduce_max(n, range(n.ndim)) if n.ndim else n


def _zero(n: Any) -> Any:
    """A counter that varies over the devices as the number of steps does."""
    return _most(n) * 0


def _repeated(x: Any, count: int) -> Any:
    """A stack with this number of places."""
    aval = values.typeof(x)
    order = [None, *range(aval.ndim)]
    sharding = values.sharding_of(aval, order)
    shape = (count, *aval.shape)
    return lax.broadcast_in_dim(x, shape, range(1, len(shape)), out_sharding=sharding)


def _put(stack: Any, x: Any, at: Any) -> Any:
    return lax.dynamic_update_index_in_dim(stack, x, at, 0)


def _get(stack: Any, at: Any) -> Any:
    return lax.dynamic_index_in_dim(stack, at, 0, keepdims=False)


# ---- the places of the checkpoints ---------------------------------------------------------------

_END = np.iinfo(np.int32).max


def _block(kept: int) -> int:
    """How many of the carries are those of a block; the others are checkpoints.

    Blocks of one step take the fewest repetitions, and the most writing of checkpoints. Of 64
    carries half may be a block at the price of a few repetitions; of a few carries not.
    """
    return max(min(kept // 2, kept * kept // 128), 1)


@functools.lru_cache(maxsize=64)
def _longest_ranges(places: int, size: int) -> np.ndarray:
    """In row s and column r, the length of the range for which r repetitions suffice, with s
    checkpoints, the first at its beginning. In row 0 it is one block."""
    blocks, columns = _END // size, 1
    while math.comb(places + columns, columns) < blocks and columns < 1024:
        columns += 1
    rows = range(places + 1)
    table = [[min(math.comb(s + r, r), _END) for r in range(columns + 1)] for s in rows]
    return np.asarray(table, np.int32)


def _split(longest: np.ndarray, length: Any, free: Any) -> Any:
    """The number of blocks before the next checkpoint, in a range of at least two.

    With r the least number of repetitions that suffices: as many as r - 1 suffice for, or all but
    those that the remaining places allow with r - 1.
    """
    table = jnp.asarray(longest)
    row, below = (lax.dynamic_index_in_dim(table, free + i, 0, keepdims=False) for i in (1, 0))
    r = jnp.clip(jnp.sum(row < length), 1, row.size) - 1  # one less repetition than suffices
    ahead = jnp.minimum(row[r], length - below[r])
    return jnp.where(free > 0, ahead, length - 1).astype(jnp.int32)
