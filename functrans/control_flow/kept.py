"""The number of carries that reverse mode of a loop keeps, and a `scan` that keeps so many.

    with carries_kept(16):        a loop of a million steps, in the memory of 16

The number holds for the loops that a program writes, and for the derivatives that it takes, inside
the context.  So it goes into the context of each equation, where JAX keeps metadata for XLA, and
from there to the loop, wherever that is differentiated.

A `scan` stacks the residuals that its transpose reads.  To keep a few carries instead, linearize it
as a counted loop: the arrays that it runs over are constants, and the carry holds the tangents of
the ys, each written in its place.

Read next: `checkpoint.py`, a function to compute again.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from jax import lax

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.control_flow.counted_loops import Counted, counted_loop
from functrans.control_flow.steps import as_carried, by_halves, grouped
from functrans.programs.loops import evaluate
from functrans.programs.revolve import KEPT, LEAST
from functrans.tracer import stage
from functrans.values import Flags

NAME = "carries_kept"


def carries_kept(count: int) -> Any:
    """Set how many carries reverse mode of a loop keeps; it computes the others again from these.

    By default a `while_loop`, or a `fori_loop` with traced bounds, keeps 64 carries. A `scan`, or a
    `fori_loop` between Python integers, stores the residuals of each step, unless this function
    says otherwise. With K carries reverse mode computes each of N steps so many times on average,
    the first run and the step back included:

    ==  =========  ======  =======
    K   N = 1,000  10,000  100,000
    ==  =========  ======  =======
    64  4.0        4.9     5.8
    32  4.7        5.6     6.6
    16  5.2        6.7     8.4
    8   6.7        9.7     14.0
    4   14.2       29.9    63.8
    ==  =========  ======  =======

    Args:
      count: an integer, at least 2 (with 2 it computes each step N / 2 times).

    Returns:
      A context manager, for the derivatives taken in it and for the loops in it; or a decorator,
      for the loops of one function.

    Raises:
      TypeError: if `count` is not an integer.
      ValueError: if `count` is less than 2.

    Sources: A. Griewank, A. Walther, Algorithm 799: Revolve, ACM Trans. Math. Softw. 26 (2000); for
    loops of unknown length, P. Stumm, A. Walther, New algorithms for optimal online checkpointing,
    SIAM J. Sci. Comput. 32 (2010).

    >>> import functrans as ft
    >>> from jax import lax
    >>> def power(x):
    ...     return lax.while_loop(lambda c: c < 100.0, lambda c: c * x, x)
    >>> with ft.carries_kept(16):
    ...     float(ft.grad(power)(2.0))  # of x ** 7
    448.0
    >>> float(ft.grad(ft.carries_kept(16)(power))(2.0))
    448.0
    """
    if callable(count):
        raise TypeError("carries_kept expects a number before it decorates: carries_kept(16)(fun)")
    count = operator.index(count)
    if count < LEAST:
        raise ValueError(f"carries_kept expects at least {LEAST}, but got {count}")
    return _kept(count)


@contextlib.contextmanager
def _kept(count: int) -> Iterator[None]:
    # Imported here: with it at the top, functrans would declare the rules of that part of JAX.
    from jax.experimental.xla_metadata import set_xla_metadata

    with caches.CARRIES_KEPT(count), set_xla_metadata(**{NAME: count}):
        yield


def said() -> int | None:
    """The number for the equation that is derived now, or else for the derivative."""
    metadata = jx.place_of(None).context.xla_metadata or {}
    return metadata.get(NAME) or caches.CARRIES_KEPT.value


def counted_of(step: Any, consts: int, wanted: Flags) -> Counted:
    """The loop of such steps."""
    return Counted(step, consts, wanted, (True,) * len(wanted), said() or KEPT)


def keeps_few(loop: Any) -> bool:
    """Whether a `scan` keeps fewer carries than it takes steps."""
    count = said()
    return count is not None and count < loop.options["length"]


def linear_scan(loop: Any, moving: Flags, primals: tuple, tangents: tuple) -> list:
    """The tangents of a `scan` that keeps a few carries: of the moving carry, and of the ys.

    Args:
      loop: the static part of the `scan`.
      moving: which inputs move in some step.
      primals, tangents: constants, carry and xs of the loop; only the moving tangents.
    """
    pushed, moved = by_halves(loop.program, moving)
    out_avals, length, size = loop.program.out_avals, loop.options["length"], loop.carry
    (consts, carry, xs), (k_dots, c_dots, x_dots) = primals, tangents
    c = loop.parts(moving)[1]
    dot_avals = [*map(values.tangent_aval, values.pick(out_avals[:size], c))]
    y_avals = map(values.tangent_aval, values.pick(out_avals[size:], moved[size:]))
    y_dots = [_stack(aval, length) for aval in y_avals]
    lists = consts, xs, k_dots, x_dots, [np.int32(0)], carry, c_dots, y_dots
    sizes = [*map(len, lists)]

    def step(*inputs):
        consts, xs, k_dots, x_dots, (t,), carry, c_dots, y_dots = grouped(inputs, sizes)
        at = length - 1 - t if loop.options["reverse"] else t
        x, x_dot = (
            [lax.dynamic_index_in_dim(a, at, 0, False) for a in part] for part in (xs, x_dots)
        )
        outs = evaluate(pushed, *consts, *carry, *x, *k_dots, *c_dots, *x_dot)
        outs_dot = values.with_zeros(outs[len(moved) :], moved, out_avals)
        c_dots = map(as_carried, values.pick(outs_dot[:size], c), dot_avals)
        new = values.pick(outs_dot[size:], moved[size:])
        pairs = zip(y_dots, new, strict=True)
        y_dots = [lax.dynamic_update_index_in_dim(a, y_dot, at, 0) for a, y_dot in pairs]
        return [t + 1, *outs[:size], *c_dots, *y_dots], None

    avals = [values.typeof(x) for part in lists for x in part]
    program, _ = stage(step, avals, loop.program.jaxpr.debug_info)
    fixed, carried = ([x for part in half for x in part] for half in (lists[:4], lists[4:]))
    wanted = (*[False] * (1 + size), *[True] * (len(c_dots) + len(y_dots)))
    return counted_loop(np.int32(length), counted_of(program, len(fixed), wanted), fixed, carried)


def _stack(aval: Any, length: int) -> Any:
    shape = (length, *aval.shape)
    sharding = values.sharding_of(aval, [None, *range(aval.ndim)])
    zeros = lax.full(shape, 0, aval.dtype, sharding=sharding)
    return values.varying_as(zeros, aval)
