"""The table of rules under test: for every primitive, functions that use it and where to try them.

`case("sin", lax.sin, F(3, 2), complex=True)` names the primitives that the row is there for (they
must appear in the function's jaxpr), the function, and a maker for each input.  Inputs stay away
from kinks, so that finite differences exist there, unless the row says `kinks=True`: at a kink
several answers are right, and the row is there to see that functrans gives JAX's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import primitives as extended

import functrans as ft

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
    jax_modes: tuple[str, ...]
    half: bool
    vmap: bool
    rtol: float | None
    atol: float | None

    def inputs(self, dtype: Any, seed: int = 0) -> tuple:
        """The same numbers in each precision, up to rounding."""
        rng = np.random.default_rng(seed)
        return tuple(make(rng, dtype) for make in self.makers)


BOTH = ("fwd", "rev")
SINCE_12 = BOTH if hasattr(lax, "log2_p") else ()
"""The modes of a row for which only JAX 0.12 has the right derivative."""

CASES: list[Case] = []


def case(
    primitives: str,
    fun: Callable,
    *makers: Maker,
    complex: bool = False,
    order: int = 2,
    kinks: bool = False,
    jax_modes: tuple[str, ...] = BOTH,
    half: bool = True,
    vmap: bool = True,
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
      jax_modes: the modes that JAX has, and has right; the reason for leaving out one is in a
        comment at the row. functrans has both, and finite differences are there for both.
      half: whether the function takes bfloat16 and float16.
      vmap: whether JAX can vectorize it.
      rtol, atol: tolerances other than `cross_check`'s, with the reason in a comment.
    """
    names = tuple(primitives.split())
    CASES.append(Case(names, fun, makers, complex, order, kinks, jax_modes, half, vmap, rtol, atol))


def F(*shape: int, low: float = -2.0, high: float = 2.0) -> Maker:
    """Uniform in `[low, high)`, and so is the imaginary part of a complex number."""

    def make(rng, dtype):
        parts = rng.uniform(low, high, (2, *shape))
        is_complex = np.issubdtype(dtype, np.complexfloating)
        return jnp.asarray(parts[0] + 1j * parts[1] if is_complex else parts[0], dtype)

    return make


def distinct(*shape: int, low: float = -2.0, high: float = 2.0) -> Maker:
    """A permutation of evenly spaced numbers: the order survives a small step."""

    def make(rng, dtype):
        numbers = np.linspace(low, high, int(np.prod(shape)))
        x = rng.permutation(numbers).reshape(shape)
        if np.issubdtype(dtype, np.complexfloating):
            x = x + 1j * rng.permutation(numbers).reshape(shape)
        return jnp.asarray(x, dtype)

    return make


def apart(*shape: int, high: float = 2.0) -> Maker:
    """Uniform with either sign, at least 0.2 away from zero and, for `round`, from `n + 1/2`."""

    def make(rng, dtype):
        sign = rng.choice([-1, 1], (2, *shape))
        parts = sign * (rng.integers(0, int(high), (2, *shape)) + rng.uniform(0.2, 0.4, sign.shape))
        is_complex = np.issubdtype(dtype, np.complexfloating)
        return jnp.asarray(parts[0] + 1j * parts[1] if is_complex else parts[0], dtype)

    return make


def values(*numbers: Any) -> Maker:
    """Exactly these numbers."""
    return lambda rng, dtype: jnp.asarray(np.asarray(numbers), dtype)


def integers(low: int, high: int, *shape: int) -> Maker:
    """Integers in `[low, high)`."""
    return lambda rng, dtype: jnp.asarray(rng.integers(low, high, shape), jnp.int32)


def indices(*numbers: Any) -> Maker:
    """Exactly these integers."""
    return lambda rng, dtype: jnp.asarray(np.asarray(numbers), jnp.int32)


def booleans(*shape: int) -> Maker:
    """Random booleans."""
    return lambda rng, dtype: jnp.asarray(rng.integers(0, 2, shape), bool)


def real(maker: Maker) -> Maker:
    """The same maker, real in a complex row as well."""
    return lambda rng, dtype: maker(rng, np.zeros(0, dtype).real.dtype)


def keys(*shape: int) -> Maker:
    """Typed random keys."""
    return lambda rng, dtype: jax.random.split(jax.random.key(int(rng.integers(99))), shape)


def bits(*shape: int) -> Maker:
    """Unsigned integers of 32 bits."""
    return lambda rng, dtype: jnp.asarray(rng.integers(0, 2**32, shape), jnp.uint32)


POSITIVE = F(3, 2, low=0.3, high=3.0)

# Arithmetic.

case("neg", lax.neg, F(3, 2), complex=True)
case("add", lax.add, F(3, 2), F(3, 2), complex=True)
case("sub", lax.sub, F(3, 2), F(3, 2), complex=True)
case("mul", lax.mul, F(3, 2), F(3, 2), complex=True)
case("mul", lambda x: lax.mul(x, x), F(3, 2), complex=True)
case("div", lax.div, F(3, 2), apart(3, 2), complex=True)
case("add_any", extended.add_jaxvals_p.bind, F(3, 2), F(3, 2), complex=True)
# A primitive takes a scalar beside an array, and the scalar's cotangent is a sum.
case("add", lax.add_p.bind, F(3), F(), complex=True)
case("add", lax.add_p.bind, F(), F(3), complex=True)
case("sub", lax.sub_p.bind, F(3), F(), complex=True)
case("sub", lax.sub_p.bind, F(), F(3), complex=True)
case("mul", partial(lax.mul_p.bind, out_dtype=None), F(3), F(), complex=True)
case("mul", partial(lax.mul_p.bind, out_dtype=None), F(), F(3), complex=True)
case("div", lax.div_p.bind, F(3), apart(), complex=True)
case("div", lax.div_p.bind, F(), apart(3), complex=True)
case("max", lax.max_p.bind, values(-1.0, 0.5, 2.0), F(low=0.0, high=0.2))
case("min", lax.min_p.bind, F(low=0.0, high=0.2), values(-1.0, 0.5, 2.0))
case("rem", lax.rem, values(5.3, -5.3, 5.3, -0.7), values(2.0, 2.0, -2.0, 1.6))
case("rem", lax.rem_p.bind, values(5.3, -5.3, 0.7), F(low=1.5, high=1.7))
case("max", lax.max, distinct(3, 2), distinct(3, 2, low=-1.9, high=1.7))
case("min", lax.min, distinct(3, 2), distinct(3, 2, low=-1.9, high=1.7))
case("max", lax.max, values(1.0, 2.0, -0.0), values(1.0, 2.0, 0.0), kinks=True)
case("min", lax.min, values(1.0, 2.0, 3.0), values(1.0, 2.0, 0.0), kinks=True)
case("abs", lax.abs, apart(3, 2), complex=True)
case("abs", lax.abs, values(0.0, 1.0), kinks=True)
case("abs", lax.abs, values(0.0, 1.0), complex=True, kinks=True, order=1)
case("square", lax.square, F(3, 2), complex=True)

# Exponentials and powers.

case("exp", lax.exp, F(3, 2), complex=True)
case("exp2", lax.exp2, F(3, 2), complex=True)
case("expm1", lax.expm1, F(3, 2), complex=True)
case("log", lax.log, POSITIVE, complex=True)
case("log1p", lax.log1p, F(3, 2, low=-0.5, high=2.0), complex=True)
case("logistic", lax.logistic, F(3, 2), complex=True)
case("sqrt", lax.sqrt, POSITIVE, complex=True)
case("rsqrt", lax.rsqrt, POSITIVE, complex=True)
case("cbrt", lax.cbrt, apart(3, 2))
for exponent in (-2, -1, 1, 2, 3, 4):
    case("integer_pow", partial(lax.integer_pow_p.bind, y=exponent), apart(3, 2), complex=True)
case("integer_pow", partial(lax.integer_pow_p.bind, y=0), apart(3, 2), complex=True)
case("integer_pow", lambda x: lax.integer_pow(x, 2), values(0.0, 1.0), complex=True)
case("integer_pow", lambda x: lax.integer_pow(x, 3), values(0.0, 1.0), complex=True)
case("pow", lax.pow, POSITIVE, F(3, 2), complex=True)
case("pow", lambda x: lax.pow(x, x), POSITIVE, complex=True)
case("pow", lax.pow_p.bind, POSITIVE, F())
case("pow", lax.pow_p.bind, F(low=0.5, high=2.0), F(3))
case("pow", lax.pow, apart(4), integers(-2, 4, 4), complex=True)
# At a base of 0 the power is smooth for these exponents, its logarithm is not. There JAX has NaN
# for the second derivative of `x ** 1` and for the first of `x ** 0`, which are 0.
case("pow", lambda x: lax.pow(x, jnp.full_like(x, 2.0)), values(0.0, 1.0))
case("pow", lambda x: lax.pow(x, jnp.full_like(x, 1.0)), values(0.0, 1.0), order=1)
case("pow", lambda x: lax.pow(x, jnp.full_like(x, 1.0)), values(0.0, 1.0), jax_modes=())
case("pow", lambda x: lax.pow(x, jnp.full_like(x, 0.0)), values(0.0, 1.0), jax_modes=())
case("pow", lambda x: lax.pow(x, jnp.arange(4)), values(0.0, 0.0, 0.0, 0.0), order=1)
case("pow", lambda x: lax.pow(x, jnp.arange(4)), values(0.0, 0.0, 0.0, 0.0), jax_modes=())
case("pow", lambda y: lax.pow(jnp.zeros_like(y), y), values(1.0, 2.0, 0.5))

# Special functions.

case("erf", lax.erf, F(3, 2))
case("erfc", lax.erfc, F(3, 2))
case("erf_inv", lax.erf_inv, F(3, 2, low=-0.8, high=0.8))
if hasattr(lax, "log2_p"):  # 0.12 has primitives for these, 0.10 composes them
    case("log2", jnp.log2, POSITIVE, complex=True)
    case("polynomial", lambda x, *a: lax.polynomial(x, a), F(3), F(3), F(3), F(3), complex=True)
    case("polynomial", lambda x: lax.polynomial(x, [1.0, -2.0, 0.5, 3.0]), F(3))
    case("one_minus_square", lax.one_minus_square, F(3, 2), complex=True)

# Trigonometric and hyperbolic functions, and their inverses.

INSIDE = F(3, 2, low=-0.8, high=0.8)

case("sin", lax.sin, F(3, 2), complex=True)
case("cos", lax.cos, F(3, 2), complex=True)
case("tan", lax.tan, INSIDE, complex=True)
case("asin", lax.asin, INSIDE, complex=True)
case("acos", lax.acos, INSIDE, complex=True)
case("atan", lax.atan, INSIDE, complex=True)
case("sinh", lax.sinh, F(3, 2), complex=True)
case("cosh", lax.cosh, F(3, 2), complex=True)
case("tanh", lax.tanh, F(3, 2, low=-1.0, high=1.0), complex=True)
case("asinh", lax.asinh, INSIDE, complex=True)
case("acosh", lax.acosh, F(3, 2, low=1.2, high=3.0), complex=True)
case("atanh", lax.atanh, INSIDE, complex=True)
case("atan2", lax.atan2, apart(3, 2), apart(3, 2))
case("atan2", lax.atan2_p.bind, apart(3), apart())
case("atan2", lax.atan2_p.bind, apart(), apart(3))

# Parts of complex numbers.

case("complex", lax.complex, F(3, 2), F(3, 2), half=False)
case("complex", lambda x, y: lax.abs(lax.complex(x, y)), apart(3, 2), apart(3, 2), half=False)
case(
    "complex real imag",
    lambda x, y: [lax.real(z := lax.sin(lax.complex(x, y))), lax.imag(z)],
    F(3),
    F(3),
    half=False,
)
case("conj", lambda x, y: lax.conj(lax.complex(x, y) ** 2), F(3), F(3), half=False)
case("conj", lax.conj, F(3), half=False)

# Piecewise constant functions, and all that has no derivative.

case("floor", lax.floor, apart(3, 2))
case("ceil", lax.ceil, apart(3, 2))
case("round", lax.round, apart(3, 2))
case("round", lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN), apart(3, 2))
case("sign", lax.sign, apart(3, 2))
case("sign", lax.sign, values(0.0, -0.0, 1.0), kinks=True)
case("is_finite", lax.is_finite, F(3, 2))
# JAX 0.10 has no rule for `nextafter`, and a zero one for the sign of a complex number, which
# turns with the number.
case("nextafter", lax.nextafter, F(3), F(3), jax_modes=SINCE_12)
case("sign", lax.sign, apart(3, 2), complex=True, jax_modes=SINCE_12)
for name in ("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"):
    case(name, getattr(lax, f"{name}_p").bind, F(3), F(3))
case("eq ne", lambda x, y: (lax.eq(x, y), lax.ne(x, y)), F(3), F(3), complex=True)
case("and or xor not", lambda a, b: (a & b, a | b, a ^ b, ~a), integers(0, 9, 4), integers(0, 9, 4))
case("and or xor not", lambda a, b: (a & b, a | b, a ^ b, ~a), booleans(4), booleans(4))
case("population_count clz", lambda n: (lax.population_count(n), lax.clz(n)), integers(0, 99, 4))
case("mulhi", lax.mulhi, bits(4), bits(4))
case("shift_left", lax.shift_left, integers(0, 9, 4), integers(0, 4, 4))
case("shift_right_logical", lax.shift_right_logical, integers(0, 99, 4), integers(0, 4, 4))
case("shift_right_arithmetic", lax.shift_right_arithmetic, integers(-9, 99, 4), integers(0, 4, 4))
case("stop_gradient", lax.stop_gradient, F(3), complex=True, kinks=True)
case("stop_gradient", lambda x: x * lax.stop_gradient(x), F(3), complex=True, kinks=True)
case("mul sub neg", lambda n: n * n - (-n), integers(-9, 9, 4))

# Choices and conversions.

case("select_n", lax.select_n, booleans(3, 2), F(3, 2), F(3, 2), complex=True)
case("select_n", lax.select_n, integers(0, 3, 5), F(5), F(5), F(5), complex=True)
case("select_n", lax.select_n, lambda rng, dtype: jnp.asarray(True), F(3), F(3), complex=True)
case(
    "select_n",
    lambda x, y: lax.select(x > y, x * y, x + y),
    distinct(4),
    distinct(4, low=-1.9, high=1.7),
)
case("select_n", lambda p, x: lax.select(p, x, x), booleans(3), F(3))
case("clamp", lax.clamp, F(4, low=-1.0, high=-0.5), values(-2.0, -0.1, 0.2, 3.0), F(4, low=0.5))
# For scalar bounds beside an array, JAX's rule fails: "select cases must have the same shapes".
case(
    "clamp",
    lax.clamp,
    F(low=-1.0, high=-0.5),
    values(-2.0, -0.1, 0.2, 3.0),
    F(low=0.5),
    jax_modes=(),
)
case(
    "clamp",
    lambda x: lax.clamp(-jnp.ones((), x.dtype), x, jnp.ones((), x.dtype)),
    values(-2.0, -0.1, 0.2, 3.0),
)
case("clamp", lax.clamp, values(0.0, 0.0), values(0.0, 1.0), values(1.0, 1.0), kinks=True)
case("convert_element_type", lambda x: lax.convert_element_type(x, jnp.float16), F(3), kinks=True)
case("convert_element_type", lambda x: lax.convert_element_type(x, jnp.bfloat16), F(3), kinks=True)
case("convert_element_type", lambda x: lax.convert_element_type(x * x, jnp.int32), apart(3))
case("convert_element_type", lambda x: x.astype(jnp.complex64) ** 2, F(3), kinks=True)
case(
    "convert_element_type",
    lambda n, x: lax.convert_element_type(n, x.dtype) * x,
    integers(0, 9, 3),
    F(3),
    complex=True,
)
case("bitcast_convert_type", lambda x: lax.bitcast_convert_type(x, jnp.uint8), F(3))
case("reduce_precision", lambda x: lax.reduce_precision(x, 5, 7), F(3), kinks=True)
case("copy", jnp.copy, F(3), complex=True)
case("device_put", lambda x: jax.device_put(x) * x, F(3), complex=True)
case("name", lambda x: checkpoint_name(lax.sin(x), "x"), F(3), complex=True)
case("optimization_barrier", lambda x, y: lax.optimization_barrier((x * y, x)), F(3), F(2, 3))
case("create_token after_all", lambda n: (lax.after_all(lax.create_token()), n)[1], integers(0, 9))
empty2 = partial(extended.empty2_p.bind, memory_space=jax.memory.Space.Device)
case("empty2", lambda n: (empty2(dtype=jnp.dtype("float32")), n)[1], integers(0, 9))
case("empty", lambda n: (lax.empty((2,), jnp.float32), n)[1], integers(0, 9))
if hasattr(lax, "dce_sink_p"):
    case("dce_sink", lambda n: (lax.dce_sink(n), n)[1], integers(0, 9))

# Where an array lies.


def sharding(axis_type: Any) -> jax.sharding.NamedSharding:
    """On one device."""
    mesh = jax.make_mesh((1,), ("axis",), axis_types=(axis_type,))
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


case("layout_constraint", lambda x: with_layout_constraint(x * x, Layout((0, 1))), F(3, 2))
AUTO, EXPLICIT = map(sharding, (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit))
case("sharding_constraint", lambda x: lax.with_sharding_constraint(x * x, AUTO), F(3), complex=True)
case("reshard", lambda x: jax.sharding.reshard(x * x, EXPLICIT), F(3), complex=True)

# Shapes.

case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (1,)), F(3), complex=True)
case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3, 4), (0, 2)), F(2, 1))
case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (2, 3), ()), F())
case("broadcast_in_dim", lambda x: lax.broadcast_in_dim(x, (1, 3), (1,)), F(3))
case("reshape", lambda x: lax.reshape(x, (3, 2)), F(2, 3), complex=True)
case("reshape", lambda x: lax.reshape(x, (12,), dimensions=(2, 0, 1)), F(2, 3, 2))
case("squeeze", lambda x: lax.squeeze(x, (0, 2)), F(1, 3, 1), complex=True)
case("transpose", lambda x: lax.transpose(x, (2, 0, 1)), F(2, 3, 4), complex=True)
case("rev", lambda x: lax.rev(x, (0, 2)), F(2, 3, 2), complex=True)
case("concatenate", lambda x, y: lax.concatenate([x, y, x], 1), F(2, 3), F(2, 1), complex=True)
case("concatenate", lambda x, y: lax.concatenate([x, y], 0), F(2), F(0))
case("pad", lambda x, v: lax.pad(x, v, [(1, 2, 0), (0, 1, 2)]), F(2, 3), F(), complex=True)
case("pad", lambda x, v: lax.pad(x, v, [(-1, 2, 0), (1, -1, 0)]), F(3, 3), F(), complex=True)
case("pad", lambda x, v: lax.pad(x, v, [(-2, -1, 1), (-1, 0, 2)]), F(4, 3), F(), complex=True)
case("pad", lambda x, v: lax.pad(x, v, [(-1, -2, 0)]), F(3), F())
case("pad", lambda x, v: lax.pad(x, v, [(2, 1, 1)]), F(0), F())
case("slice", lambda x: lax.slice(x, (1, 0), (4, 3)), F(5, 3), complex=True)
case("slice", lambda x: lax.slice(x, (1, 0), (6, 4), (2, 3)), F(7, 4), complex=True)
case("slice", lambda x: lax.slice(x, (0,), (6,), (3,)), F(7))
case("split", lambda x: lax.split(x, (1, 0, 3), axis=1), F(2, 4), complex=True)
case("split", lambda x: lax.split(x, (1, 3), axis=0)[1], F(4))
case("stack", lambda x, y: jnp.stack([x, y, x], 1), F(2, 3), F(2, 3), complex=True)
case("unstack", lambda x: jnp.unstack(x, axis=1)[::2], F(2, 3), complex=True)
case("tile", lambda x: lax.tile(x, (2, 1, 3)), F(2, 2, 1), complex=True)
case("tile", lambda x: lax.tile(x, (0, 3)), F(2, 2))
case("iota", lambda x: lax.iota(jnp.int32, 3), F(3))
case("iota", lambda x: x * lax.broadcasted_iota(x.dtype, (2, 3), 1), F(2, 3))

# Reductions.

case("reduce_sum", lambda x: lax.reduce_sum(x, (0, 2)), F(2, 3, 2), complex=True)
case("reduce_sum", lambda x: lax.reduce_sum(x, ()), F(2))
case("reduce_prod", lambda x: lax.reduce_prod(x, (0, 2)), F(2, 3, 2), complex=True)
case("reduce_prod", lambda x: lax.reduce_prod(x, (0,)), values(0.0, 2.0, -3.0), complex=True)
case("reduce_prod", lambda x: lax.reduce_prod(x, (0,)), values(0.0, 2.0, 0.0), complex=True)
case("reduce_prod", lambda x: lax.reduce_prod(x, (0,)), F(1))
case("reduce_prod", lambda x: lax.reduce_prod(x, (1,)), F(2, 0))
case("reduce_max", lambda x: lax.reduce_max(x, (0, 2)), distinct(2, 3, 2))
case("reduce_min", lambda x: lax.reduce_min(x, (1,)), distinct(2, 3, 2))
case("reduce_max", lambda x: lax.reduce_max(x, (1,)), values([1.0, 2, 2], [3, 3, 3]), kinks=True)
case("reduce_min", lambda x: lax.reduce_min(x, (1,)), values([1.0, 1, 2], [3, 3, 3]), kinks=True)
case("reduce_and reduce_or", lambda p: (jnp.all(p, 0), jnp.any(p, 1)), booleans(2, 3))
case("reduce_xor", lambda p: lax.reduce_xor(p, (0,)), booleans(4))
case(
    "argmax argmin",
    lambda x: (lax.argmax(x, 1, jnp.int32), lax.argmin(x, 0, jnp.int32)),
    distinct(2, 3),
)
case("argmax", lambda x: x[lax.argmax(x, 0, jnp.int32)], distinct(3))

CUMULATIVE = {
    "cumsum": (lax.cumsum, F(3, 4), True),
    "cumprod": (lax.cumprod, F(3, 4), True),
    "cummax": (lax.cummax, distinct(3, 4), False),
    "cummin": (lax.cummin, distinct(3, 4), False),
    "cumlogsumexp": (lax.cumlogsumexp, F(1, 3), False),
}
for name, (operation, maker, is_complex) in CUMULATIVE.items():
    for reverse in (False, True):
        case(name, partial(operation, axis=1, reverse=reverse), maker, complex=is_complex)
case("cumsum", lambda x: lax.cumsum(x, 0), F(1))
case("cumprod", lambda x: lax.cumprod(x, 0), values(2.0, 0.0, 3.0, 0.0, 1.0), complex=True)
case("cummax", lambda x: lax.cummax(x, 0), values(1.0, 2.0, 2.0, 1.0, 3.0), kinks=True)
case("cummin", lambda x: lax.cummin(x, 0), values(2.0, 1.0, 1.0, 3.0, 0.0), kinks=True)

# Windows.


def window(init: float, computation: Callable, **options: Any) -> Callable:
    """`lax.reduce_window` with the initial value that makes JAX choose its own primitive for it."""
    settings = {"window_strides": None, "padding": "VALID", **options}
    return lambda x: lax.reduce_window(x, np.asarray(init, x.dtype), computation, **settings)


WINDOWS = (
    {"window_dimensions": (2, 2)},
    {"window_dimensions": (1, 3), "window_strides": (2, 1), "padding": "SAME"},
    {"window_dimensions": (3, 2), "window_strides": (2, 3), "padding": ((1, 2), (0, 1))},
)
DILATIONS = (
    {"window_dimensions": (2, 2), "window_dilation": (2, 1), "padding": ((1, 0), (1, 1))},
    {"window_dimensions": (2, 3), "base_dilation": (2, 2), "window_strides": (1, 2)},
    {"window_dimensions": (2, 2), "base_dilation": (1, 2), "window_dilation": (2, 3)},
)
for options in WINDOWS + DILATIONS:
    case("reduce_window_sum", window(0.0, lax.add, **options), F(4, 5), complex=True)
for options in WINDOWS:
    case("reduce_window_max", window(-np.inf, lax.max, **options), distinct(4, 5))
    case("reduce_window_min", window(np.inf, lax.min, **options), distinct(4, 5))
    case(
        "reduce_window_max",
        window(-np.inf, lax.max, **options),
        values(*[[1.0] * 5] * 4),
        kinks=True,
    )

# What the extrema of windows become: select by the second array, from or into the first.
SELECT = {"window_dimensions": (2, 2), "window_strides": (1, 2), "padding": ((0, 1), (1, 0))}
GATHER = {**SELECT, "base_dilation": (1, 1), "window_dilation": (1, 1)}
for name in ("ge", "le"):
    select = getattr(lax, f"{name}_p")
    bind = partial(lax.select_and_gather_add_p.bind, select_prim=select, **GATHER)
    case("select_and_gather_add", bind, F(3, 4), distinct(3, 4))
    bind = partial(lax.select_and_scatter_add_p.bind, select_prim=select, **SELECT)
    case("select_and_scatter_add", bind, F(3, 2), distinct(3, 4))

# Contractions.


def dot(batch: Any, contract: Any, **options: Any) -> Callable:
    """`lax.dot_general` with these dimensions."""
    return lambda x, y: lax.dot_general(x, y, (contract, batch), **options)


NONE = ((), ())
case("dot_general", dot(NONE, ((1,), (0,))), F(2, 3), F(3, 4), complex=True)
case("dot_general", dot(NONE, ((0,), (1,))), F(3, 2), F(4, 3), complex=True)
case("dot_general", dot(NONE, ((0,), (0,))), F(3), F(3), complex=True)
case("dot_general", dot(NONE, NONE), F(2), F(3), complex=True)
case("dot_general", dot(NONE, ((1, 2), (2, 0))), F(2, 3, 4), F(4, 5, 3), complex=True)
case("dot_general", dot(NONE, ((2, 1), (0, 2))), F(2, 3, 4), F(4, 5, 3))
case("dot_general", dot(((0,), (0,)), ((2,), (1,))), F(2, 3, 4), F(2, 4, 5), complex=True)
case("dot_general", dot(((2,), (1,)), ((0,), (2,))), F(4, 3, 2), F(5, 2, 4), complex=True)
case("dot_general", dot(((0, 3), (3, 1)), ((1,), (0,))), F(2, 3, 4, 5), F(3, 5, 2, 2))
case("dot_general", dot(((3, 0), (1, 3)), ((2, 1), (0, 2))), F(2, 3, 4, 5), F(4, 5, 3, 2))
case("dot_general", dot(((1, 0), (0, 1)), NONE), F(2, 3, 4), F(3, 2))
case("dot_general", lambda x: x @ x, F(3, 3), complex=True)
case(
    "dot_general",
    dot(NONE, ((1,), (0,)), preferred_element_type=jnp.float32),
    F(2, 3),
    F(3, 2),
    kinks=True,
)
case("dot_general", dot(NONE, ((1,), (0,))), F(2, 0), F(0, 3))


def conv(
    dimensions: Any = None, strides: Any = (1, 1), padding: Any = "VALID", **options: Any
) -> Callable:
    """`lax.conv_general_dilated` with these options."""
    options["dimension_numbers"] = dimensions
    return lambda x, y: lax.conv_general_dilated(x, y, strides, padding, **options)


case("conv_general_dilated", conv(), F(2, 3, 4, 4), F(2, 3, 2, 2), complex=True)
case(
    "conv_general_dilated",
    conv(("NHWC", "HWIO", "NHWC"), (2, 1), "SAME"),
    F(2, 5, 4, 2),
    F(3, 2, 2, 3),
)
case(
    "conv_general_dilated",
    conv(("NHWC", "OIHW", "NCHW"), (3, 2), ((1, 2), (2, 0))),
    F(1, 5, 4, 2),
    F(2, 2, 2, 3),
)
case(
    "conv_general_dilated",
    conv(padding=((0, 0), (0, 0)), lhs_dilation=(2, 1), rhs_dilation=(1, 2)),
    F(1, 2, 3, 5),
    F(2, 2, 2, 2),
)
case(
    "conv_general_dilated",
    conv(None, (2, 3), ((2, 1), (1, 3)), lhs_dilation=(2, 3), rhs_dilation=(2, 1)),
    F(1, 2, 3, 3),
    F(2, 2, 2, 3),
)
case("conv_general_dilated", conv(None, (1, 2), ((-1, 2), (0, -1))), F(1, 1, 5, 5), F(1, 1, 2, 2))
case(
    "conv_general_dilated", conv(feature_group_count=2), F(1, 4, 3, 3), F(4, 2, 2, 2), complex=True
)
case(
    "conv_general_dilated",
    conv(None, (2, 1), "SAME", feature_group_count=3),
    F(2, 3, 4, 3),
    F(6, 1, 2, 2),
)
case("conv_general_dilated", conv(batch_group_count=2), F(4, 2, 3, 3), F(4, 2, 2, 2), complex=True)
case(
    "conv_general_dilated",
    conv(("HWNC", "HWIO", "HWNC"), (2, 2), ((1, 1), (0, 1)), batch_group_count=3),
    F(4, 3, 3, 2),
    F(2, 2, 2, 3),
)
case("conv_general_dilated", conv(None, (2,), "SAME", rhs_dilation=(2,)), F(2, 2, 6), F(3, 2, 2))
case("conv_general_dilated", conv(None, (), ()), F(2, 3), F(4, 3))

# Gather, scatter, dynamic slices.

MODES = ("clip", "fill", "promise_in_bounds")
INDICES = indices([0, 2], [2, 0], [0, 2])  # one of them twice


def rows(x: jax.Array, i: jax.Array, mode: str) -> jax.Array:
    """`x[i]` for an `i` of any shape."""
    numbers = lax.GatherDimensionNumbers(
        offset_dims=(i.ndim,), collapsed_slice_dims=(0,), start_index_map=(0,)
    )
    return lax.gather(x, i[..., None], numbers, (1, x.shape[1]), mode=mode)


for mode in MODES:
    case("gather", partial(rows, mode=mode), F(3, 2), INDICES, complex=True)
    case(
        "gather",
        lambda x, i, mode=mode: x.at[i, :, i[0]].get(mode=mode),
        F(3, 2, 3),
        indices(0, 2, 2),
    )
for mode in ("clip", "fill"):
    # What is filled in is NaN, which has no differences.
    filled = mode == "fill"
    case("gather", partial(rows, mode=mode), F(3, 2), indices(-1, 5, 1), kinks=filled)
    case(
        "gather",
        lambda x, i, mode=mode: x.at[i].get(mode=mode),
        F(3, 2),
        indices(-4, 7, 1),
        kinks=filled,
    )
case("gather", lambda x, i: x.at[i].get(mode="fill", fill_value=7.0), F(3), indices(5, 1))
case(
    "gather",
    lambda x, i: x.at[i].get(unique_indices=True, indices_are_sorted=True),
    F(4),
    indices(0, 2),
)
case("gather", lambda x, i: jnp.take_along_axis(x, i, axis=1), F(3, 4), integers(0, 4, 3, 2))
case("gather", lambda x, i: jax.vmap(lambda a, j: a[j])(x, i), F(3, 4), integers(0, 4, 3, 2))
case("gather", lambda x: x[jnp.array([2, 0, 2]), :, None, 1:], F(3, 2, 3), complex=True)


def update(method: str, mode: str | None = None, **options: Any) -> Callable:
    """`x.at[i].add(y)` and the like."""
    return lambda x, i, y: getattr(x.at[i], method)(y, mode=mode, **options)


SCATTERS = {
    "scatter": "set",
    "scatter-add": "add",
    "scatter-sub": "subtract",
    "scatter-mul": "multiply",
    "scatter-min": "min",
    "scatter-max": "max",
}
for name, method in SCATTERS.items():
    is_complex = method not in ("min", "max")
    for mode in ("clip", "drop", "promise_in_bounds"):
        # JAX has no derivative of a product for indices that may repeat.
        options = {"unique_indices": True} if method == "multiply" else {}
        scattered = update(method, mode, **options)
        case(
            name,
            scattered,
            distinct(4, 2),
            indices(3, 0),
            distinct(2, 2, low=-1.9, high=1.7),
            complex=is_complex,
        )
    for mode in ("clip", "drop"):
        outside = indices(-7, 1) if method == "multiply" else indices(-7, 9, 1)
        updates = distinct(2 if method == "multiply" else 3, 2, low=-1.9, high=1.7)
        # JAX 0.10 has NaN for the derivative of an extremum with an update whose index is clipped.
        modes = SINCE_12 if mode == "clip" and method in ("min", "max") else BOTH
        scattered = update(method, mode, **options)
        case(name, scattered, distinct(4, 2), outside, updates, jax_modes=modes)
for method in ("add", "subtract"):
    name = "scatter-sub" if method == "subtract" else "scatter-add"
    case(name, update(method), F(3, 2), indices(0, 2, 0), F(3, 2), complex=True)
# With `set`, which of two updates of one place wins is up to XLA; functrans decides as JAX does.
case("scatter", update("set"), F(3, 2), indices(0, 2, 0), F(3, 2), complex=True)
case("scatter", lambda x, y: x.at[1:3, ::2].set(y), F(4, 3), F(2, 2), complex=True)
case("scatter", lambda x, y: x.at[..., 0].set(y), F(2, 3), F())
case(
    "scatter-min",
    update("min"),
    values(1.0, 2.0, 3.0),
    indices(0, 1, 0),
    values(1.0, 0.5, 1.0),
    kinks=True,
)
case(
    "scatter-max",
    update("max"),
    values(1.0, 2.0, 3.0),
    indices(0, 1, 0),
    values(1.0, 2.5, 1.0),
    kinks=True,
)
case("scatter-max", update("max"), distinct(3), indices(0, 1, 0), distinct(3, low=-1.9, high=1.7))
case(
    "scatter-add",
    lambda x, i, y: jax.vmap(lambda a, j, b: a.at[j].add(b))(x, i, y),
    F(2, 4),
    integers(0, 4, 2, 3),
    F(2, 3),
)
case(
    "scatter-add",
    lambda x, i: jax.ops.segment_sum(x, i, 4),
    F(5, 2),
    integers(0, 4, 5),
    complex=True,
)

case(
    "dynamic_slice",
    lambda x, i, j: lax.dynamic_slice(x, (i, j), (2, 2)),
    F(4, 3),
    integers(1, 2),
    integers(0, 2),
    complex=True,
)
case("dynamic_slice", lambda x, i: lax.dynamic_slice(x, (i,), (2,)), F(4), integers(7, 9))
case(
    "dynamic_slice",
    lambda x, i: lax.dynamic_slice_in_dim(x, i, 2, axis=1) * x[:, 1:3],
    F(2, 4),
    integers(-1, 0),
)
case(
    "dynamic_update_slice",
    lambda x, y, i, j: lax.dynamic_update_slice(x, y, (i, j)),
    F(4, 3),
    F(2, 2),
    integers(1, 2),
    integers(0, 2),
    complex=True,
)
case(
    "dynamic_update_slice",
    lambda x, y, i: lax.dynamic_update_slice(x, y, (i,)),
    F(4),
    F(2),
    integers(7, 9),
)

# Sorting.

case("sort", lambda x: lax.sort(x, dimension=0), distinct(4, 2))
case("sort", lambda x: lax.sort(x, dimension=1, is_stable=False), distinct(2, 4))
case("sort", lambda x, y: lax.sort((x, y), num_keys=1), distinct(2, 4), F(2, 4))
case(
    "sort",
    lambda x, y, n: lax.sort((n, x, y), dimension=0, num_keys=2),
    distinct(4),
    F(4),
    indices(1, 0, 1, 0),
)
case(
    "sort", lambda x, y: lax.sort((x, y), num_keys=1), values(1.0, 0.0, 1.0, 0.0), F(4), kinks=True
)
case("sort", lambda x: lax.sort(x), distinct(4), complex=True)
case("top_k", lambda x: lax.top_k(x, 2), distinct(2, 5))
case("top_k", lambda x: lax.top_k(x * x, 3)[0], distinct(4, low=0.5))
case("approx_top_k", lambda x: lax.approx_max_k(x, 2), distinct(2, 5))

# Random numbers: constant where they come from, differentiable in what is done with them.

case("random_bits", jax.random.bits, keys())
case("random_fold_in", jax.random.fold_in, keys(), bits())
case("random_split", jax.random.split, keys())
case("random_seed", jax.random.key, integers(0, 9))
case("random_wrap", jax.random.wrap_key_data, bits(2))
case("random_clone", jax.random.clone, keys())
case("random_unwrap", jax.random.key_data, keys())
case("rng_bit_generator", lambda b: lax.rng_bit_generator(b, (3,)), bits(4))
case("threefry2x32", extended.threefry2x32_p.bind, bits(), bits(), bits(3), bits(3))
case("random_bits", lambda k, x: x * jax.random.normal(k, (3,), "float32"), keys(), F(3))

# Calls.


@jax.custom_jvp
def sine_by_rule(x: jax.Array, y: jax.Array) -> jax.Array:
    """`sin(x) y`."""
    return jnp.sin(x) * y


sine_by_rule.defjvps(lambda t, z, x, y: t * jnp.cos(x) * y, lambda t, z, x, y: t * jnp.sin(x))


@jax.custom_vjp
def cube_by_rule(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x^3 y`."""
    return x**3 * y


cube_by_rule.defvjp(
    lambda x, y: (x**3 * y, (x, y)),
    lambda saved, z: (z * 3 * saved[0] ** 2 * saved[1], z * saved[0] ** 3),
)

case("jit", jax.jit(lambda x, y: lax.sin(x) * y), F(3), F(3), complex=True)
case("jit", jax.jit(lambda x, n: (lax.sin(x), n, x * n)), F(3), integers(0, 9, 3))
case("jit", lambda x: jax.jit(lambda y: jax.jit(lax.sin)(y) * x)(x), F(3))
case("custom_jvp_call", sine_by_rule, F(3), F(3), complex=True)
case("custom_jvp_call", jax.nn.relu, apart(4))
# JAX has no forward mode for `custom_vjp`; functrans transposes the backward rule to get it.
case("custom_vjp_call", cube_by_rule, F(3), F(3), complex=True, jax_modes=("rev",))
case(
    "transposed_backward_rule",
    lambda x, y: ft.linearize(cube_by_rule, x, y)[1](y, x),
    F(3),
    F(3),
    complex=True,
    jax_modes=(),
)


def loop(w: jax.Array, c: jax.Array, xs: jax.Array, **options: Any) -> Any:
    """A carry of a number and an integer, a constant, and something stacked at each step."""

    def body(carry: Any, x: Any) -> Any:
        i, c = carry
        c = c * w + lax.sin(x) * (i + 1)
        return (i + 1, c), (c * x, i)

    (_, c), (ys, _) = lax.scan(body, (0, c), xs, **options)
    return c, ys


case("scan", loop, F(3), F(3), F(4, 3), complex=True)
case("scan", partial(loop, reverse=True, unroll=2), F(3), F(3), F(4, 3))
# The carry starts from a constant: its tangent is zero at the first step and moves from then on.
case("scan", lambda w, xs: loop(w, jnp.ones_like(w), xs)[0], F(3), F(4, 3), half=False)
case("scan", lambda x: lax.map(lambda y: y * lax.sin(y), x, batch_size=2), F(5))

case("remat2", jax.checkpoint(lambda x, y: lax.sin(lax.sin(x) * y)), F(3), F(3), complex=True)
case("remat2", lambda x: jax.checkpoint(lambda y: (y * x, y**3))(lax.cos(x)), F(3))
