"""Operations that are handed on, some of them as others.

    with exchanged(other): f(x)        f, with `other(primitive, params)` for each operation

What JAX writes for us, such as the loop of `lax.scan` or of a batch, is changed on its way to the
trace that records it.

Read next: `loops.py`, where the body of a loop is changed in this way.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from jax.extend.core import Primitive, set_current_trace

from functrans import jaxpr as jx
from functrans.tracer import Trace

Exchange = Callable[[Primitive, dict], tuple[Primitive, dict]]
"""From a primitive and its params to those that are bound in their place."""


class _PassingTrace(Trace):
    """Hands each operation to its parent."""

    def __init__(self, parent: Any, exchange: Exchange):
        super().__init__()
        self.requires_low = False
        self.parent, self.exchange = parent, exchange

    def process_primitive(self, primitive, args, params, /):
        primitive, params = self.exchange(primitive, params)
        with set_current_trace(self.parent):
            return primitive.bind(*args, **params)

    def stage_value(self, x, /):
        return self.parent.stage_value(x)


def exchanged(exchange: Exchange) -> AbstractContextManager:
    """In this context, operations are others."""
    return set_current_trace(_PassingTrace(jx.current_trace(), exchange))
