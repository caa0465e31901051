"""Linear functions that an evaluation leaves behind: pytrees whose leaves are residuals.

    Pushforward :  x_dot -> J x_dot           of `linearize`
    Pullback    :  y_bar -> J^T y_bar         of `vjp`
    Transposed  :  y_bar -> A^T y_bar         of `linear_transpose`

As pytrees they pass into and out of a compiled function.

Read next: `transforms.py`, the public functions.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.tree_util import register_dataclass

from functrans import jaxpr as jx
from functrans import values
from functrans.errors import checks
from functrans.errors.tracebacks import with_short_traceback
from functrans.reverse import transpose
from functrans.tracer import stage
from functrans.values import Flags, Linear

_config: Any = jax.config
_WIDE = {*map(np.dtype, ("float64", "complex128", "int64", "uint64"))}


@dataclass(frozen=True, eq=False)
class Spec:
    """The static part of a linear function: its jaxpr, the structures of input and output."""

    jaxpr: Jaxpr
    moving: Flags
    """Which inputs have tangents: all but the integers."""
    moved: Flags
    """Which outputs depend on these."""
    in_tree: Any
    out_tree: Any
    in_avals: Sequence
    out_avals: Sequence

    @functools.cached_property
    def is_wide(self) -> bool:
        """Whether the jaxpr computes in 64 bits."""
        made = (v for equation in self.jaxpr.eqns for v in equation.outvars)
        return any(getattr(v.aval, "dtype", None) in _WIDE for v in (*self.jaxpr.invars, *made))


@dataclass(frozen=True, repr=False, eq=False)
class LinearFunction:
    """A linear function that an evaluation left behind; a pytree whose leaves are residuals."""

    residuals: list
    spec: Spec = field(metadata={"static": True})
    compiled: Callable | None = field(default=None, metadata={"static": True})
    apply: ClassVar[Callable]  # `spec, residuals, vector -> vector`

    @property
    def jaxpr(self) -> ClosedJaxpr:
        """The linear jaxpr, `tangents in -> tangents out`, with the residuals as constants.

        The equations of small calls stand in their place.
        """
        program = jx.with_constants(self.spec.jaxpr, self.residuals)

        def run(*tangents):
            return jx.evaluate(program, *tangents), None

        return stage(run, program.in_avals, program.jaxpr.debug_info)[0]

    @with_short_traceback
    def at(self, vector: Any) -> Any:
        """The value at a tangent or a cotangent, checked."""
        apply = self.compiled or functools.partial(self.apply, self.spec)
        if self.spec.is_wide and not _config.jax_enable_x64:
            plain = (float, complex)  # a Python number gets the type that it has without 64 bits
            vector = tree.map(lambda x: jnp.asarray(x) if type(x) in plain else x, vector)
        with self.width():
            return apply(self.residuals, vector)

    def width(self) -> AbstractContextManager:
        """A context with 64 bits, if the function computed in 64 bits."""
        return jax.enable_x64(True) if self.spec.is_wide else nullcontext()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.jaxpr})"


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class Pushforward(LinearFunction):
    """`x_dot -> J x_dot`, from `linearize`; call it with a tangent for each argument."""

    def __call__(self, *tangents: Any) -> Any:
        return self.at(tangents)

    @staticmethod
    def apply(spec, residuals, vector):
        given = checks.vectors(checks.PUSHFORWARD, spec.in_tree, spec.in_avals, vector)
        x_dots = values.pick(given, spec.moving)
        outs = jx.evaluate(jx.with_constants(spec.jaxpr, residuals), *x_dots)
        y_dots = values.with_zeros(outs, spec.moved, spec.out_avals)
        return tree.unflatten(spec.out_tree, map(values.result, y_dots))


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class Pullback(LinearFunction):
    """`y_bar -> J^T y_bar`, from `vjp`; call it with a cotangent of the output."""

    expected: ClassVar[checks.Expected] = checks.PULLBACK

    def __call__(self, cotangent: Any) -> Any:
        return self.at(cotangent)

    @classmethod
    def apply(cls, spec, residuals, vector):
        given = checks.vectors(cls.expected, spec.out_tree, spec.out_avals, vector)
        inputs = map(Linear, values.pick(spec.in_avals, spec.moving))
        y_bars = values.pick(given, spec.moved)
        x_bars = jx.within("transpose", transpose)(spec.jaxpr, [*residuals, *inputs], y_bars)
        x_bars = values.with_zeros(x_bars, spec.moving, spec.in_avals)
        return tree.unflatten(spec.in_tree, map(values.result, x_bars))


@register_dataclass
@dataclass(frozen=True, repr=False, eq=False)
class Transposed(Pullback):
    """`y_bar -> A^T y_bar`, from `linear_transpose` of `A`; its `jaxpr` is that of `A`."""

    expected = checks.TRANSPOSE
