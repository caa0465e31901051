"""Operations on each element by itself, and conversions."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import primitives as extended

from rule_cases.table import (
    POSITIVE,
    F,
    apart,
    bits,
    booleans,
    case,
    distinct,
    integers,
    values,
)

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
in_single = partial(lax.mul_p.bind, out_dtype=np.dtype(np.float32))
case("mul", in_single, F(3), F(3), kinks=True)
case("mul", in_single, F(3), F(), kinks=True)
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

if hasattr(lax, "log2_p"):  # 0.12 has primitives for these, 0.10 composes them
    case("log2", jnp.log2, POSITIVE, complex=True)
    case("polynomial", lambda x, *a: lax.polynomial(x, a), F(3), F(3), F(3), F(3), complex=True)
    case("polynomial", lambda x: lax.polynomial(x, [1.0, -2.0, 0.5, 3.0]), F(3), newer=True)
    case("one_minus_square", lax.one_minus_square, F(3, 2), complex=True)

# Trigonometric and hyperbolic functions, and their inverses.

INSIDE = F(3, 2, low=-0.8, high=0.8)

case("sin", lax.sin, F(3, 2), complex=True)
case("div", jnp.sinc, values(0.3, -1.0, 2.5))
# At 0 it is not `sin(x) / x`; near 0 JAX's formula loses digits, and differences with them.
case("div", jnp.sinc, values(0.0, 0.3), kinks=True)
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
case("nextafter", lax.nextafter, F(3), F(3), newer=True)
case("sign", lax.sign, apart(3, 2), complex=True, newer=True)
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
