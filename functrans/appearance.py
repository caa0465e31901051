"""How a tracer looks to JAX, and to packages that ask what an array is.

    type(x).__module__          begins with `jax`, so that a package chooses its backend for JAX
    jax.closure_convert         asks whether a value that a function closes over may move

Read next: `errors/__init__.py`, the messages about mistakes.
"""

from __future__ import annotations

import sys
from typing import Any

import jax.core
from jax.interpreters import ad

from functrans import values
from functrans.errors import operations

_MOVES: Any = ad.JVPTracer(None, 0.0, 0.0)
"""The simplest value that JAX takes for differentiable; nobody computes with it."""


def in_jax(module: str) -> str:
    """The name of a module, as if it belonged to JAX; `inspect` and `pickle` find it there too."""
    name = f"jax.{module}"
    sys.modules[name] = sys.modules[module]
    return name


class Tracer(jax.core.Tracer):
    """The base class of functrans's tracers."""

    __slots__ = ()

    def _contents(self):
        # In a tracer that it does not know, JAX looks for one that it knows.
        return [("moves", _MOVES)] if values.is_differentiable(self.aval) else []

    def _origin_msg(self):
        if hasattr(self, "_line_info"):
            return operations.staged_value(self._line_info)
        return operations.dual_value()
