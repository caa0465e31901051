"""The primitives of other packages, with the rules that these packages registered for JAX.

    jax.interpreters.ad :   primitive -> (x, x_dot) -> (y, y_dot),    primitive -> y_bar -> x_bar

A package with a primitive of its own declares the derivative through the public module
`jax.interpreters.ad`, and functrans uses this declaration.  It never does so for JAX's own
primitives: the modules of the functions in a declaration tell them apart.  Through the same module
functrans offers JAX the rules of its own primitives, since JAX may differentiate our derivatives.

Read next: `appearance.py`, how other packages see a tracer.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import ad

from functrans import jaxpr as jx
from functrans.control_flow.counted_loops import counted_p, reversed_p
from functrans.control_flow.while_loop import until_p
from functrans.rules import FALLBACKS, RULES, Linear, NotLinear, Rule, Zero, call

_WRAPPERS = ad.defjvp.__module__
"""The module of the functions in which JAX wraps the declarations of a package."""

_KEPT = vars(sys.modules[_WRAPPERS])
LINEARIZATIONS: dict = _KEPT.get("primitive_linearizations", {})
ACCUMULATING: dict = _KEPT.get("fancy_transposes", {})
"""Kinds of rules that JAX asks before the others, in tables without a public name: a pushforward in
two parts, and a transpose that adds to the cotangents of the inputs."""


def adopt(primitive: Primitive) -> bool:
    """Declare the rule that another package registered, if one did."""
    tables = (ad.primitive_jvps, ad.primitive_transposes, LINEARIZATIONS, ACCUMULATING)
    packages = {name for table in tables for name in _packages(table.get(primitive))}
    # If a part of the rule is JAX's, so is the primitive; another package added the rest.
    is_foreign = bool(packages) and "jax" not in packages
    if is_foreign:
        call(primitive, ForeignRule())
    return is_foreign


def _packages(rule: Any) -> Iterator[str]:
    """The packages that wrote the functions of a declaration."""
    if isinstance(rule, functools.partial):
        is_wrapped = rule.func.__module__ == _WRAPPERS
        parts: Iterable = (*rule.args, *rule.keywords.values()) if is_wrapped else (rule.func,)
    elif isinstance(rule, tuple | list):
        parts = rule
    elif callable(rule) and rule.__module__ == _WRAPPERS:
        parts = [cell.cell_contents for cell in getattr(rule, "__closure__", None) or ()]
    else:
        parts = ()
        if callable(rule):
            yield rule.__module__.partition(".")[0]
    for part in parts:
        yield from _packages(part)


class ForeignRule(Rule):
    """Calls the registered functions as JAX calls them."""

    def forward(self, primitive, primals, tangents, params):
        if primitive not in ad.primitive_jvps:
            if primitive in LINEARIZATIONS:
                return self.linearize(primitive, primals, tangents, params)
            raise NotImplementedError(
                f"the package that defines the primitive '{primitive}' has registered a transpose "
                "for it in jax.interpreters.ad, but no jvp. Declare one: help(functrans.rules)"
            )
        outs, dots = ad.primitive_jvps[primitive](tuple(primals), _to_jax(tangents), **params)
        return jx.results(primitive, outs), [*map(_from_jax, jx.results(primitive, dots))]

    def linearize(self, primitive, primals, tangents, params):
        if primitive not in LINEARIZATIONS:
            return self.forward(primitive, primals, tangents, params)
        moving = [type(t) is not Zero for t in tangents]
        # `False`: we evaluate the second part, and do not only transpose it. Since JAX 0.11 there
        # are two kinds of residuals.
        rule = LINEARIZATIONS[primitive]
        outs, _, *residuals, second = rule(False, moving, *primals, **params)
        dots = second(*residuals, *_to_jax(tangents))
        return jx.results(primitive, outs), [*map(_from_jax, jx.results(primitive, dots))]

    def transpose(self, primitive, cotangents, inputs, params):
        y_bar = list(_to_jax(cotangents)) if primitive.multiple_results else _to_jax(cotangents)[0]
        if primitive in ACCUMULATING:
            return self.accumulate(primitive, y_bar, inputs, params)
        if primitive not in ad.primitive_transposes:
            raise NotLinear.at(primitive)
        given = [ad.UndefinedPrimal(x.aval) if type(x) is Linear else x for x in inputs]
        x_bars = ad.primitive_transposes[primitive](y_bar, *given, **params)
        # A rule returns the class itself if all cotangents are zero.
        return [None] * len(inputs) if x_bars is ad.Zero else [_from_jax(x_bar) for x_bar in x_bars]

    def accumulate(self, primitive, y_bar, inputs, params):
        sums = [_KEPT["ValAccum"](x.aval.to_ct_aval()) if type(x) is Linear else x for x in inputs]
        ACCUMULATING[primitive](y_bar, *sums, **params)
        pairs = zip(inputs, sums, strict=True)
        return [_from_jax(x_bar.freeze()) if type(x) is Linear else None for x, x_bar in pairs]


def _to_jax(tangents: Sequence) -> tuple:
    return tuple([ad.Zero(t.aval) if type(t) is Zero else t for t in tangents])


def _from_jax(tangent: Any) -> Any:
    return Zero(tangent.aval) if type(tangent) is ad.Zero else tangent


FALLBACKS.append(adopt)


# ---- the other way -------------------------------------------------------------------------------


def offer(primitive: Primitive, rule: Rule) -> None:
    """Let JAX ask our rule of our primitive."""

    def push(primals, tangents, **params):
        outs, dots = rule.linearize(primitive, [*primals], [*map(_from_jax, tangents)], params)
        return outs, [*_to_jax(dots)]

    def pull(cotangents, *inputs, **params):
        symbols = [Linear(x.aval) if ad.is_undefined_primal(x) else x for x in inputs]
        y_bars = [*map(_from_jax, cotangents)]
        return [*_to_jax(rule.transpose(primitive, y_bars, symbols, params))]

    ad.primitive_jvps[primitive], ad.primitive_transposes[primitive] = push, pull


for _primitive in (until_p, counted_p, reversed_p):
    offer(_primitive, RULES[_primitive])
