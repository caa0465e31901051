"""The table of rules under test: for every primitive, functions that use it and where to try them.

`case("sin", lax.sin, F(3, 2), complex=True)` names the primitives that the row is there for (they
must appear in the function's jaxpr), the function, and a maker for each input.  Inputs stay away
from kinks, so that finite differences exist there, unless the row says `kinks=True`: at a kink
several answers are right, and the row is there to see that functrans gives JAX's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax

Maker = Callable[[np.random.Generator, Any], Any]


@dataclass(frozen=True)
class Case:
    """One row: see `case`."""

    primitives: tuple[str, ...]
    fun: Callable
    makers: tuple[Maker, ...]
    complex: bool
    order: int
    kinks: bool
    modes: tuple[str, ...]
    jax_modes: tuple[str, ...]
    half: bool
    vmap: bool
    newer: bool
    rtol: float | None
    atol: float | None

    def inputs(self, dtype: Any, seed: int = 0) -> tuple:
        """The same numbers in each precision, up to rounding."""
        rng = np.random.default_rng(seed)
        return tuple(make(rng, dtype) for make in self.makers)


def array(x: Any, dtype: Any) -> jax.Array:
    """Made by NumPy: each shape is a program to compile for `jnp.asarray`."""
    return jax.device_put(np.asarray(x).astype(dtype))


BOTH = ("fwd", "rev")
IS_12 = hasattr(lax, "log2_p")

CASES: list[Case] = []

TAYLOR = 8
"""The order to which Taylor mode is checked."""


def case(
    primitives: str,
    fun: Callable,
    *makers: Maker,
    complex: bool = False,
    order: int = 2,
    kinks: bool = False,
    modes: tuple[str, ...] = BOTH,
    jax_modes: tuple[str, ...] | None = None,
    half: bool = True,
    vmap: bool = True,
    newer: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
) -> None:
    """Add a row to the table.

    Args:
      primitives: the names of the primitives that it tests, separated by blanks.
      fun: a function of arrays.
      *makers: one for each array.
      complex: whether the row is also tried with complex numbers.
      order: the highest derivative that is checked.
      kinks: whether to compare with JAX alone, as finite differences do not exist there.
      modes: the modes that functrans has: both, where there are both.
      jax_modes: those of them that JAX has, and has right; the reason for leaving out one is in a
        comment at the row. Finite differences are there for all that functrans has.
      half: whether the function takes bfloat16 and float16.
      vmap: whether JAX can vectorize it.
      newer: whether only JAX 0.12 has the primitive, or has its right derivative.
      rtol, atol: tolerances other than `cross_check`'s, with the reason in a comment.
    """
    names = tuple(primitives.split())
    theirs = () if newer and not IS_12 else modes if jax_modes is None else jax_modes
    options = (complex, order, kinks, modes, theirs, half, vmap, newer, rtol, atol)
    CASES.append(Case(names, fun, makers, *options))


def cases_of_series() -> list[Case]:
    """The rows on which Taylor mode is tried: those that name a primitive that none before does."""
    seen: set[str] = set()
    found = []
    for case in CASES:
        if "fwd" in case.modes and not seen.issuperset(case.primitives):
            found.append(case)
        seen.update(case.primitives)
    return found


def F(*shape: int, low: float = -2.0, high: float = 2.0) -> Maker:
    """Uniform in `[low, high)`, and so is the imaginary part of a complex number."""

    def make(rng, dtype):
        parts = rng.uniform(low, high, (2, *shape))
        is_complex = np.issubdtype(dtype, np.complexfloating)
        return array(parts[0] + 1j * parts[1] if is_complex else parts[0], dtype)

    return make


def distinct(*shape: int, low: float = -2.0, high: float = 2.0) -> Maker:
    """A permutation of evenly spaced numbers: the order survives a small step."""

    def make(rng, dtype):
        numbers = np.linspace(low, high, int(np.prod(shape)))
        x = rng.permutation(numbers).reshape(shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.permutation(numbers).reshape(shape)
        return array(x, dtype)

    return make


def apart(*shape: int, high: float = 2.0) -> Maker:
    """Uniform with either sign, at least 0.2 away from zero and, for `round`, from `n + 1/2`."""

    def make(rng, dtype):
        sign = rng.choice([-1, 1], (2, *shape))
        parts = sign * (rng.integers(0, int(high), (2, *shape)) + rng.uniform(0.2, 0.4, sign.shape))
        is_complex = np.issubdtype(dtype, np.complexfloating)
        return array(parts[0] + 1j * parts[1] if is_complex else parts[0], dtype)

    return make


def values(*numbers: Any) -> Maker:
    """Exactly these numbers."""
    return lambda rng, dtype: array(numbers, dtype)


def integers(low: int, high: int, *shape: int) -> Maker:
    """Integers in `[low, high)`."""
    return lambda rng, dtype: array(rng.integers(low, high, shape), np.int32)


def indices(*numbers: Any) -> Maker:
    """Exactly these integers."""
    return lambda rng, dtype: array(numbers, np.int32)


def booleans(*shape: int) -> Maker:
    """Random booleans."""
    return lambda rng, dtype: array(rng.integers(0, 2, shape), bool)


def real(maker: Maker) -> Maker:
    """The same maker, real in a complex row as well."""
    return lambda rng, dtype: maker(rng, np.zeros(0, dtype).real.dtype)


def keys(*shape: int) -> Maker:
    """Typed random keys."""
    return lambda rng, dtype: jax.random.split(jax.random.key(int(rng.integers(99))), shape)


def bits(*shape: int) -> Maker:
    """Unsigned integers of 32 bits."""
    return lambda rng, dtype: array(rng.integers(0, 2**32, shape), np.uint32)


POSITIVE = F(3, 2, low=0.3, high=3.0)

POSITIVE = F(3, 2, low=0.3, high=3.0)
