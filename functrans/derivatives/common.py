"""Shared by the rules: arithmetic with numbers, and the search for primitives without a name.

    mul : (number or array, number or array) -> array

where a Python number takes the type of the array beside it, so that `mul(2, x)` has the type of
`x`, such as bfloat16 or complex.  (`2 * x` has the same value, and costs three times as much to
trace.)

Read next: `elementwise.py`, the table of the textbooks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.experimental
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Primitive, primitives

from functrans.rules import (
    FAILURES,
    FALLBACKS,
    RULES,
    Absent,
    Linear,
    broadcast_to,
    cast,
    constant,
    full,
)


def _with_numbers(operation: Callable) -> Callable:
    def lifted(x: Any, y: Any) -> Any:
        return operation(*_alike(x, y))

    return lifted


def _alike(x: Any, y: Any) -> tuple[Any, Any]:
    """A Python number takes the type of the array beside it."""
    x_is_number, y_is_number = type(x) in (int, float), type(y) in (int, float)
    if x_is_number and y_is_number:
        return float(x), float(y)
    if x_is_number:
        return number(x, y), y
    return (x, number(y, x)) if y_is_number else (x, y)


def number(value: float, like: Any) -> Any:
    """A scalar constant of the type of an array."""
    return constant(value, jax.typeof(like))


add = _with_numbers(lax.add)
sub = _with_numbers(lax.sub)
mul = _with_numbers(lax.mul)
div = _with_numbers(lax.div)


def along(tangents: Sequence, *slopes: Callable[[], Any]) -> Any:
    """`sum_i slope_i x_i_dot`, in a custom_jvp rule; only the slopes of moving inputs run."""
    pairs = zip(slopes, tangents, strict=True)
    terms = [mul(slope(), dot) for slope, dot in pairs if type(dot) is not SymbolicZero]
    return functools.reduce(add, terms)


eq = _with_numbers(lax.eq)
gt = _with_numbers(lax.gt)


def aval_of(x: Any) -> Any:
    """The type of a value or of a `Linear`."""
    return x.aval if type(x) is Linear else jax.typeof(x)


def is_complex(x: Any) -> bool:
    return aval_of(x).dtype.kind == "c"


def indicator(mask: Any, like: Any) -> Any:
    """1 where the mask is true and 0 elsewhere, in the type of `like`."""
    return cast(mask, jax.typeof(like))


def zeros_like(x: Any) -> Any:
    """An array of zeros of the type and sharding of `x`, which may be `Linear`."""
    return full(0, aval_of(x))


def cast_like(x_bar: Any, x: Any) -> Any:
    """The transpose of a conversion from the type of `x`: to a real type, the real part."""
    if is_complex(x_bar) and not is_complex(x):
        x_bar = lax.real(x_bar)
    return cast(x_bar, aval_of(x))


def where(mask: Any, value: float, x: Any) -> Any:
    """A number where the mask is true, and `x` elsewhere."""
    return lax.select_n(mask, x, lax.full_like(x, value))


def with_full_operands(partial: Callable) -> Callable:
    """A partial derivative whose arguments all have the shape of the result."""
    return lambda y, *xs: partial(y, *(broadcast_to(x, jax.typeof(y)) for x in xs))


def named(name: str) -> Primitive:
    """The primitive of this name, or `Absent` if this version of JAX has none."""
    variable = f"{name}_p"
    found = getattr(primitives, variable, None) or getattr(lax, variable, None)
    return Absent(name) if found is None else found


def emitted(function: Callable, shape: tuple = (), dtype: Any = "float32") -> list[Primitive]:
    """The primitives that a function of one array binds, for those that have no public name."""
    program = jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype))
    return [equation.primitive for equation in program.jaxpr.eqns]


def unnamed(
    name: str,
    function: Callable,
    shape: tuple = (),
    dtype: Any = "float32",
    find: Callable = emitted,
    optional: bool = False,
) -> Primitive:
    """The primitive of this name among those that a function binds: JAX has no public name for it.

    An import must not fail for a rule that nobody uses. If the primitive is not found, the result
    is `Absent`, and a test complains, unless some versions of JAX are known not to have it.
    """
    try:
        found = [p for p in find(function, shape, dtype) if p.name in (name, f"{name}_p")]
    except Exception as error:
        found, reason = [], repr(error)
    else:
        reason = "no such primitive"
    if not found and not optional:
        FAILURES.append(f"{name}: {reason}")
    return found[0] if found else Absent(name)


def without_name(declare: Callable[[], None]) -> Callable[[], None]:
    """Declare primitives that JAX's public interface does not name.

    `declare` finds them: it traces a function that binds them. If it fails with some version of
    JAX, they have no rule; then an error says so where a program uses one, and not where a program
    imports functrans.
    """
    try:
        declare()
    except Exception as error:
        FAILURES.append(f"{declare.__module__}.{declare.__qualname__}: {error!r}")
    return declare


def when_met(name: str) -> Callable[[Callable[[Primitive], None]], Callable[[Primitive], None]]:
    """Declare a primitive of JAX that has no public name, and that no function is known to bind.

    We call the function below with the primitive, when we first meet one of this name.
    """

    def register(declare: Callable[[Primitive], None]) -> Callable[[Primitive], None]:
        def fallback(primitive: Primitive) -> bool:
            if primitive.name == name:
                declare(primitive)
            return primitive in RULES

        FALLBACKS.append(fallback)
        return declare

    return register


def when_imported(name: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Declare the primitives of a module of `jax.experimental` once it has been imported.

    We call the function below with the module, when we first meet a primitive without a rule: so
    importing functrans imports no such module.
    """

    def register(declare: Callable[[Any], None]) -> Callable[[Any], None]:
        def fallback(primitive: Primitive) -> bool:
            module: Any = jax.experimental
            for part in name.split("."):
                module = module and vars(module).get(part)
            if module and not declared:
                declared.append(module)
                without_name(functools.wraps(declare)(lambda: declare(module)))
            return primitive in RULES

        declared: list = []
        FALLBACKS.append(fallback)
        return declare

    return register
