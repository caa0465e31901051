"""A stream: the Taylor coefficients of one value, each computed at its first use.

    x(t) = x_0 + x_1 t + x_2 t^2 + ...            x'(t) = x_1 + 2 x_2 t + 3 x_3 t^2 + ...

These are the coefficients themselves, not derivatives: the product of two functions then has the
coefficients `sum_i x_i y_(k-i)`, without binomials.  A coefficient that is known to be zero is a
`Zero`, and costs nothing.

The derivative of a stream is *one* stream, however many readers it has.  An equation computes a
stream, its derivative or its integral, and the others follow by scaling, when somebody reads them.

Read next: `nodes.py`, the equations that compute them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from math import inf
from typing import Any

from jax import lax, typeof

from functrans.extend import Zero, instantiate
from functrans.rules import constant


class Stream:
    """Coefficients, and how to get more of them."""

    def __init__(self, aval: Any, known: Sequence = (), source: Callable | None = None):
        self.aval = aval
        self.zero = Zero(aval.to_tangent_aval())
        self.known: list[Any] = [self.zero if x is None else x for x in known]
        """Arrays and zeros; or a `partial`, which computes the coefficient at its first use."""
        self.source = source
        """Makes coefficients known, up to the one that it is called with; without it all others are
        zero."""
        self.moves = source is not None or any(type(x) is not Zero for x in self.known[1:])
        """Whether a coefficient after the first may differ from zero."""

    def __getitem__(self, k: int) -> Any:
        self.reach(k)
        x = self.known[k] if k < len(self.known) else self.zero
        if isinstance(x, partial):  # computed at its first use
            x = self.known[k] = x()
        return x

    @property
    def value(self) -> Any:
        """The first coefficient, as an array."""
        return instantiate(self[0])

    def reach(self, k: int) -> None:
        """Let all coefficients up to this one be known."""
        if self.source is not None and len(self.known) <= k:
            self.source(k)

    def available(self) -> float:
        """How many coefficients are known without computing."""
        return inf if self.source is None else len(self.known)

    def column(self, k: int) -> list:
        """The coefficients up to this one, with `None` for zero; only the first if none moves."""
        return [
            None if type(x) is Zero else x for x in map(self.__getitem__, range(k * self.moves + 1))
        ]

    @cached_property
    def derivative(self) -> Stream:
        """`x'`, whose coefficient `k` is `(k + 1) x_(k+1)`."""
        return Derivative(self)

    @cached_property
    def integral(self) -> Stream:
        """A stream with this one as its derivative; its first coefficient has no meaning."""
        return Integral(self)


class Derivative(Stream):
    """The derivative of a stream."""

    def __init__(self, of: Stream):
        super().__init__(of.zero.aval, source=self.compute)
        self.moves, self.integral = of.moves, of

    def compute(self, k: int) -> None:
        self.integral.reach(k + 1)
        self.known += [partial(self.at, i) for i in range(len(self.known), k + 1)]

    def at(self, k: int) -> Any:
        return scaled(self.integral[k + 1], k + 1)

    def available(self) -> float:
        return self.integral.available() - 1


class Integral(Stream):
    """The integral of a stream, from 0."""

    def __init__(self, of: Stream):
        super().__init__(of.aval, [None], self.compute)
        self.derivative = of

    def compute(self, k: int) -> None:
        self.derivative.reach(k - 1)
        self.known += [partial(self.at, i) for i in range(len(self.known), k + 1)]

    def at(self, k: int) -> Any:
        return divided(self.derivative[k - 1], k)


def scaled(x: Any, k: int) -> Any:
    """`k x`"""
    return x if k == 1 or type(x) is Zero else lax.mul(x, constant(k, typeof(x)))


def divided(x: Any, k: int) -> Any:
    """`x / k`"""
    return x if k == 1 or type(x) is Zero else lax.div(x, constant(k, typeof(x)))
