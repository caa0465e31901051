"""What reverse mode keeps: `(a -> b), a -> [residual]`.

    f(x + x_dot) = f(x) + L(c1, c2, ...) x_dot + ...        the residuals are c1, c2, ...

`../linearize.py` finds them.

Read next: `exclusions.py`, what has no derivative.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal

from functrans import jaxpr as jx
from functrans import values
from functrans.control_flow.checkpoint import inlined
from functrans.errors import checks
from functrans.errors.lines import user_line
from functrans.explain import notation
from functrans.explain.planning import staged
from functrans.linearize import linearize_jaxpr


class Residual(NamedTuple):
    """One array that the reverse pass keeps."""

    shape: tuple[int, ...]
    dtype: Any
    size: int
    """In bytes."""
    origin: str
    """The argument that it is, or the operation that made it and the line of the user's code."""

    def __str__(self) -> str:
        dimensions = ",".join(map(str, self.shape))
        return f"{self.dtype.name}[{dimensions}] ({self.size:,} bytes): {self.origin}"


class Residuals(list[Residual]):
    """A list of `Residual` that prints with each array's share of the total."""

    @property
    def total(self) -> int:
        """The size of all arrays together, in bytes."""
        return sum(residual.size for residual in self)

    def __repr__(self) -> str:
        lines = [f"{residual.size / (self.total or 1):4.0%}  {residual}" for residual in self]
        return "\n".join([*lines, f"{self.total:,} bytes in {len(self)} arrays"])


def saved_residuals(fun: Callable, *args: Any, **kwargs: Any) -> Residuals:
    """List the arrays that reverse mode keeps from the forward pass of a function.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *args: its arguments, or `jax.ShapeDtypeStruct`; functrans computes nothing.
      **kwargs: its keyword arguments.

    Returns:
      A list with a `Residual` for each array: its `shape`, its `dtype`, its `size` in bytes and its
      `origin`. It counts no literal numbers. The list prints with the share of each array in the
      `total`.

    Raises:
      TypeError: if an argument or a result is not an array.

    See also:
      `jax.checkpoint`, which computes residuals again instead of keeping them.

    >>> import jax.numpy as jnp, functrans as ft
    >>> ft.saved_residuals(lambda x: jnp.sum(jnp.sin(x) ** 2), jnp.ones(3))  # doctest: +ELLIPSIS
     50%  float32[3] (12 bytes): cos at ...
     50%  float32[3] (12 bytes): ... at ...
    24 bytes in 2 arrays
    """
    checks.is_function("saved_residuals", fun)
    whole = jx.named_like(fun, lambda args, kwargs: fun(*args, **kwargs))
    _, paths, _, program = staged("saved_residuals", whole, (args, kwargs))
    moving = tuple(map(values.is_differentiable, program.in_avals))
    first, _, moved = linearize_jaxpr(program, moving, True)
    jaxpr = inlined(first).jaxpr
    origins = {
        var: f"the argument {jax.tree_util.keystr(path[1:])} of {jx.name_of(fun)}"
        for var, path in zip(jaxpr.invars, paths, strict=True)
    }
    origins.update((var, "a constant") for var in jaxpr.constvars)
    for equation in jaxpr.eqns:
        origin = f"{notation.called(equation)} at {user_line(equation.source_info)}"
        origins.update((var, origin) for var in equation.outvars)
    kept = dict.fromkeys(v for v in jaxpr.outvars[len(moved) :] if not isinstance(v, Literal))
    return Residuals(_residual(var.aval, origins[var]) for var in kept)


def _residual(aval: Any, origin: str) -> Residual:
    return Residual(aval.shape, aval.dtype, aval.size * aval.dtype.itemsize, origin)
