"""How a tracer looks to JAX, and to packages that ask what an array is.

    type(x).__module__          begins with `jax`: a package that chooses a backend chooses JAX's
    jax.closure_convert         asks of what a function has closed over whether it may move

Read next: `errors/__init__.py`, what functrans says of mistakes.
"""

from __future__ import annotations

import sys
from typing import Any

import jax.core
from jax.interpreters import ad

from functrans import values
from functrans.errors import operations

_MOVES: Any = ad.JVPTracer(None, 0.0, 0.0)
"""Of what JAX takes for differentiable the simplest: nobody computes with it."""


def in_jax(module: str) -> str:
    """The name of a module as if it were one of JAX; `inspect` and `pickle` find it there too."""
    name = f"jax.{module}"
    sys.modules[name] = sys.modules[module]
    return name


class Tracer(jax.core.Tracer):
    """A tracer of functrans, whatever it stands for."""

    __slots__ = ()

    def _contents(self):
        # JAX looks into a tracer that it does not know for one that it does.
        return [("moves", _MOVES)] if values.is_differentiable(self.aval) else []

    def _origin_msg(self):
        if hasattr(self, "_line_info"):
            return operations.staged_value(self._line_info)
        return operations.dual_value()
