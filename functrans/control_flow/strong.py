"""The products that a zero absorbs, as primitives; and the programs of calls with such products.

    x * y  =  0,  where x = 0 or y = 0          x / y  =  0,  where x = 0 or 1/y = 0

In a contraction the zeros of one factor absorb, the linear one.  An entry of the other factor
counts as zero if it meets only zeros:

    y = x W          W_bar = sum_n x_n^T y_bar_n        without the rows n in which y_bar is zero

This is enough, and costs a reduction where the exact sum of absorbing products would cost another
contraction: if x_n has an entry that is not finite, no entry of y_n is finite, and for the result
to be finite all of y_bar_n must be zero.  A solution of a linear system is 0 where its right side
is 0.

The derivative of a strong product is that of the plain one, with strong products again.

Read next: `tagged.py`, a function that runs in a place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jax.lax.linalg import triangular_solve_p, tridiagonal_solve_p

from functrans import values
from functrans.control_flow.base import CallRule
from functrans.control_flow.calls import InlinedRule
from functrans.control_flow.counted_loops import Counted, CountedRule, Reversed, ReversedRule
from functrans.control_flow.linear_solve import PARTS, LinearSolveRule, parts_of
from functrans.control_flow.scan import Loop as Scan
from functrans.control_flow.scan import ScanRule
from functrans.control_flow.steps import reached, settled
from functrans.control_flow.while_loop import Loop as While
from functrans.control_flow.while_loop import WhileRule
from functrans.derivatives.contraction import ragged_dot_general_p
from functrans.programs.halves import reached_outputs
from functrans.programs.passing import exchanged
from functrans.programs.strong import INSIDE, PRODUCTS, Strong, on_a_tape, strong_program
from functrans.rules import RULES, Linear, Rule, Zero, call

# ---- values --------------------------------------------------------------------------------------


def product(plain: Primitive, x: Any, y: Any, **params: Any) -> Any:
    """A product, or a quotient, of numbers."""
    z = plain.bind(x, y, **params)
    masks = is_zero(x), is_infinite(y) if plain is lax.div_p else is_zero(y)
    aval = jax.typeof(z)
    absorbed = lax.bitwise_or(*(values.broadcast_to(mask, aval) for mask in masks))
    return lax.select_n(absorbed, z, values.zeros(aval))


def is_zero(x: Any) -> Any:
    return lax.eq(x, jnp.zeros_like(x))


def is_infinite(x: Any) -> Any:
    size = lax.abs(x)
    return lax.eq(size, lax.full_like(size, jnp.inf))


def contraction(plain: Primitive, *inputs: Any, zeros: Sequence[int], **params: Any) -> Any:
    """A sum of products of two factors; the zeros of the factors `zeros` absorb."""
    factors = [*inputs]
    for i in zeros:
        meets = is_met(plain, i, inputs, params)
        factors[1 - i] = jnp.where(meets, inputs[1 - i], 0)
    return plain.bind(*factors, **params)


def is_met(plain: Primitive, i: int, inputs: Sequence, params: dict) -> Any:
    """Which elements of the other factor meet a nonzero of factor `i`."""
    other, is_nonzero = inputs[1 - i], ~is_zero(inputs[i])
    if plain is lax.dot_general_p:
        contracted, batch = params["dimension_numbers"]
        own, target = ((*batch[k], *contracted[k]) for k in (i, 1 - i))
        free = [d for d in range(is_nonzero.ndim) if d not in own]
        # XLA is quick at counting on a CPU; a disjunction takes several times as long.
        counts = jnp.sum(is_nonzero.astype(jnp.float32), axis=free, keepdims=True)
        counts = lax.squeeze(lax.transpose(counts, (*own, *free)), range(len(own), counts.ndim))
        order = sorted(range(len(target)), key=target.__getitem__)
        counts = lax.transpose(counts, order)
        return lax.broadcast_in_dim(~is_zero(counts), other.shape, sorted(target))
    # The transpose in the other factor, applied to ones, counts them.
    given: list = [*inputs]
    given[i], given[1 - i] = is_nonzero.astype(inputs[i].dtype), Linear(jax.typeof(other))
    out = jax.eval_shape(partial(plain.bind, **params), *inputs)
    ones = jnp.ones(out.shape, out.dtype)
    return ~is_zero(RULES[plain].transpose(plain, [ones], given, params)[1 - i])


def solution(plain: Primitive, *inputs: Any, **params: Any) -> Any:
    """The solution of a linear system whose right side is linear."""
    right, x = inputs[PRODUCTS[plain].factors[0]], plain.bind(*inputs, **params)
    axis = -2 if params.get("left_side", True) else -1
    is_absorbed = jnp.max(~is_zero(right), axis=axis, keepdims=True)
    return jnp.where(is_absorbed, x, 0)


# ---- primitives ----------------------------------------------------------------------------------


def with_strong_products(function: Callable, *args: Any, zeros: Sequence[int] = (0, 1)) -> Any:
    """Call a function and make all of its products strong; in a contraction the zeros of these
    factors absorb."""

    def strong(primitive, params):
        if primitive not in PRODUCTS:
            return primitive, params
        primitive, _, one_sided = PRODUCTS[primitive]
        return primitive, {**params, "zeros": zeros} if one_sided else params

    with exchanged(strong):
        return function(*args)


class StrongRule(Rule):
    """The rule of the plain product, with strong products and quotients."""

    depends_on_types_only = True

    def __init__(self, plain: Primitive):
        self.plain = plain
        self.is_diagonal = RULES[plain].is_diagonal

    def forward(self, primitive, primals, tangents, params):
        given = self.plain, primals, tangents, params
        return with_strong_products(RULES[self.plain].forward, *given)

    def transpose(self, primitive, cotangents, inputs, params):
        given = self.plain, cotangents, inputs, params
        return with_strong_products(RULES[self.plain].transpose, *given)


class StrongContractionRule(StrongRule):
    """The zeros of the same factors absorb, and so do those of a tangent or a cotangent."""

    def forward(self, primitive, primals, tangents, params):
        y = primitive.bind(*primals, **params)
        total: Any = Zero.like(y)
        for i, x_dot in enumerate(tangents):
            if type(x_dot) is not Zero:
                given = [*primals[:i], x_dot, *primals[i + 1 :]]
                zeros = tuple(sorted({*params["zeros"], i}))
                total = values.add(total, primitive.bind(*given, **params | {"zeros": zeros}))
        return [y], [total]

    def transpose(self, primitive, cotangents, inputs, params):
        rule, plain = RULES[self.plain], {**params}
        if any(type(inputs[i]) is not Linear for i in plain.pop("zeros")):
            return with_strong_products(rule.transpose, self.plain, cotangents, inputs, plain)
        return on_a_tape(lambda y: rule.transpose(self.plain, [y], inputs, plain), *cotangents)


def declare(plain: Primitive, evaluate: Callable, rule: type, *factors: int) -> None:
    """Declare the strong form of a product: to us, and to JAX."""
    strong = Primitive(f"strong_{plain.name}")
    run = partial(evaluate, plain)

    def typed(*avals, zeros=None, **params):
        return plain.abstract_eval(*avals, **params)[0]

    strong.def_impl(run)
    strong.def_abstract_eval(typed)
    mlir.register_lowering(strong, mlir.lower_fun(run, multiple_results=False))
    batching.primitive_batchers[strong] = partial(_batched, plain)
    ad.primitive_jvps[strong] = partial(_pushed_by_jax, strong)
    ad.primitive_transposes[strong] = partial(_pulled_by_jax, strong)
    PRODUCTS[plain] = Strong(strong, factors, rule is StrongContractionRule)
    call(strong, rule(plain))


def _batched(plain: Primitive, inputs: Sequence, axes: Sequence, **params: Any) -> tuple:
    zeros = params.pop("zeros", ())
    operation = jax.vmap(partial(plain.bind, **params), in_axes=tuple(axes))
    return with_strong_products(operation, *inputs, zeros=zeros), 0


def _pushed_by_jax(
    strong: Primitive, primals: Sequence, tangents: Sequence, **params: Any
) -> tuple:
    given = [Zero(t.aval) if type(t) is ad.Zero else t for t in tangents]
    y, y_dot = RULES[strong].forward(strong, [*primals], given, params)
    (y,), (y_dot,) = (x if isinstance(x, list) else [x] for x in (y, y_dot))
    return y, ad.Zero(y_dot.aval) if type(y_dot) is Zero else y_dot


def _pulled_by_jax(strong: Primitive, y_bar: Any, *inputs: Any, **params: Any) -> Sequence:
    if type(y_bar) is ad.Zero:
        return [None] * len(inputs)
    given = [Linear(x.aval) if ad.is_undefined_primal(x) else x for x in inputs]
    return RULES[strong].transpose(strong, [y_bar], given, params)


declare(lax.mul_p, product, StrongRule, 0, 1)
declare(lax.div_p, product, StrongRule, 0)
declare(triangular_solve_p, solution, StrongRule, 1)
declare(tridiagonal_solve_p, solution, StrongRule, 3)
for contraction_p in (lax.dot_general_p, lax.conv_general_dilated_p, ragged_dot_general_p):
    declare(contraction_p, contraction, StrongContractionRule, 0, 1)

# ---- programs inside -----------------------------------------------------------------------------


def in_calls(rule: CallRule, params: dict, linear: Sequence[bool]) -> dict:
    bodies, flags = rule.bodies(params), tuple(linear[rule.head :])
    strong = tuple([strong_program(body, flags) for body in bodies])
    ins, outs = (True,) * len(flags), (True,) * len(bodies[0].out_avals)
    return rule.with_bodies(params, strong, ins, outs) or params


def in_scan(rule: ScanRule, params: dict, linear: Sequence[bool]) -> dict:
    loop = Scan.of(params)
    consts, carry, xs = loop.parts(linear)
    # On a tape all results are linear, and so is the carry.
    flags = (*consts, *[True] * len(carry), *xs)
    return params | {"jaxpr": strong_program(loop.program, flags)}


def in_while(rule: WhileRule, params: dict, linear: Sequence[bool]) -> dict:
    loop = While.of(params)
    _, consts, carry = loop.parts(linear)
    moving, _ = loop.settle(lambda *key: (reached_outputs(*key),), consts, carry)
    return params | {"body_jaxpr": strong_program(loop.body, (*consts, *moving))}


def in_counted(rule: CountedRule, params: dict, linear: Sequence[bool]) -> dict:
    loop = Counted(**params)
    _, consts, carry = loop.parts(linear)
    moving = settled(reached, loop.step, consts, carry)
    return params | {"step": strong_program(loop.step, (*consts, *moving))}


def in_reversed(rule: ReversedRule, params: dict, linear: Sequence[bool]) -> dict:
    loop = Reversed(**params)
    _, k, c, b = loop.parts(linear)
    c = settled(reached, loop.step, k, c)
    b = settled(reached, loop.back, (*k, *c), b)
    step, back = strong_program(loop.step, (*k, *c)), strong_program(loop.back, (*k, *c, *b))
    return params | {"step": step, "back": back}


def in_place(rule: InlinedRule, params: dict, linear: Sequence[bool]) -> dict:
    name = next(name for name in rule.names if name in params)
    strong = strong_program(rule.program(params), tuple(linear))
    return params | {name: strong if hasattr(params[name], "consts") else strong.jaxpr}


def in_solver(rule: LinearSolveRule, params: dict, linear: Sequence[bool]) -> dict:
    consts, right = parts_of(linear, params["const_lengths"])
    programs = {part: getattr(params["jaxprs"], part) for part in PARTS}
    strong = {
        part: program and strong_program(program, (*consts[part], *[True] * len(right)))
        for part, program in programs.items()
    }
    return params | {"jaxprs": params["jaxprs"]._replace(**strong)}


INSIDE |= {
    CallRule: in_calls,
    ScanRule: in_scan,
    WhileRule: in_while,
    CountedRule: in_counted,
    ReversedRule: in_reversed,
    LinearSolveRule: in_solver,
    InlinedRule: in_place,
}
