"""The primitives of other packages, with the rules that these have registered for JAX.

    jax.interpreters.ad :   primitive -> (x, x_dot) -> (y, y_dot),    primitive -> y_bar -> x_bar

A package that brings a primitive of its own declares its derivative through `jax.interpreters.ad`,
JAX's public door for that; functrans takes the declaration over.  It never does so for a primitive
of JAX's: what tells them apart is where the functions in the declaration come from.

Read next: `../control_flow/__init__.py`, the primitives that carry jaxprs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import ad

from functrans.rules import ADOPTED, Linear, NotLinear, Rule, Zero, call, results


def adopt(primitive: Primitive) -> bool:
    """Declare the rule that another package has registered, if one has."""
    tables = (ad.primitive_jvps, ad.primitive_transposes)
    functions = [f for table in tables for f in _functions(table.get(primitive))]
    is_foreign = any(f.__module__.partition(".")[0] not in ("jax", "functools") for f in functions)
    if is_foreign:
        call(primitive, ForeignRule())
    return is_foreign


def _functions(rule: Any) -> Iterator[Any]:
    """The functions that a declaration is made of; JAX wraps what it is given."""
    if hasattr(rule, "func"):  # a functools.partial
        for part in (rule.func, *rule.args, *rule.keywords.values()):
            yield from _functions(part)
    elif isinstance(rule, tuple | list):
        for part in rule:
            yield from _functions(part)
    elif hasattr(rule, "__closure__"):
        yield rule
        for cell in rule.__closure__ or ():
            yield from _functions(cell.cell_contents)


class ForeignRule(Rule):
    """What is registered, called in the way in which JAX calls it."""

    def forward(self, primitive, primals, tangents, params):
        if primitive not in ad.primitive_jvps:
            raise NotImplementedError(
                f"the package that defines the primitive '{primitive}' has registered a transpose "
                "for it in jax.interpreters.ad, but no jvp. Declare one: help(functrans.rules)"
            )
        given = [ad.Zero(t.aval) if type(t) is Zero else t for t in tangents]
        outs, tangents_out = ad.primitive_jvps[primitive](primals, given, **params)
        pairs = results(primitive, outs), results(primitive, tangents_out)
        return pairs[0], [_from_jax(t) for t in pairs[1]]

    def transpose(self, primitive, cotangents, inputs, params):
        if primitive not in ad.primitive_transposes:
            raise NotLinear.at(primitive)
        given = [ad.UndefinedPrimal(x.aval) if type(x) is Linear else x for x in inputs]
        y_bars = [ad.Zero(t.aval) if type(t) is Zero else t for t in cotangents]
        y_bar = y_bars if primitive.multiple_results else y_bars[0]
        x_bars = ad.primitive_transposes[primitive](y_bar, *given, **params)
        return [None if x_bar is None else _from_jax(x_bar) for x_bar in x_bars]


def _from_jax(tangent: Any) -> Any:
    return Zero(tangent.aval) if type(tangent) is ad.Zero else tangent


ADOPTED.append(adopt)
