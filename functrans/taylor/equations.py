"""One equation on streams: coefficient `k` of its results from those before it.

Let `y = f(x)`, and `x` move: `x(t) = x_0 + x_1 t + x_2 t^2 + ...`.  The derivative rule of `f` says

    y'(t) = J_f(x(t)) x'(t),        and so        y_k = 1/k (J_f(x) x')_(k-1)

where `J_f(x) x'` is the *derivative program* of the equation.  It consists of equations, so we can
evaluate it on streams too.  It may read `y` itself, as that of `exp` does: `y' = y x'`.  Nothing
more is needed, for any primitive with a rule; but some equations have cheaper formulas.  We take
the first case that fits:

    nothing moves        y_0 = f(x_0), and no others
    it carries programs  the same call, of columns of coefficients
    a product            (x y)_k = sum_i x_i y_(k-i)
    a power              is a product of powers, or  x y' = p x' y,  or  z' = z (y log x)'
    a quotient           A y = x   =>   A_0 y_k = x_k - sum_(i>0) A_i y_(k-i)
    constant slopes      y_k = J x_k;  and J takes x' to y', and an integral of x to one of y
    any other            y_k = 1/k (J_f(x) x')_(k-1)

Sources: A. Griewank and A. Walther, Evaluating Derivatives (2008), chapter 13; M. D. McIlroy, Power
Series, Power Serious, J. Functional Programming 9 (1999).

Read next: `jets.py`, the transforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial, reduce
from typing import Any

import jax.core
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr
from jax.lax.linalg import triangular_solve_p, tridiagonal_solve_p

from functrans import extend
from functrans.extend import Zero, pick
from functrans.rules import LINEAR, broadcast_to, constant, full
from functrans.taylor.nodes import Later, Node, Run, partials_of
from functrans.taylor.streams import Derivative, Integral, Stream, divided, scaled


def coefficients(program: ClosedJaxpr, columns: Sequence[Sequence], order: int) -> list[list]:
    """Evaluate a program on series, as far as the coefficient `order`.

    Args:
      program: a closed jaxpr.
      columns: for each of its inputs the first coefficients; `None` stands for zero, and missing
        ones are zero too.
      order: the last coefficient to compute.

    Returns:
      For each of its outputs `order + 1` coefficients, in the same way; one, if it does not move.
    """
    run = Run(order, coefficients, CASES)
    inputs = [Stream(v.aval, c) for v, c in zip(program.jaxpr.invars, columns, strict=True)]

    def meaning(equation, xs):
        node = Node(run, equation, xs)
        node.reach(order)
        return node.outputs

    outs = extend.interpret(program, inputs, meaning, run.constant, own_rules=True)
    return [y.column(order) for y in outs]


# ---- the cases -----------------------------------------------------------------------------------


def total(terms: Sequence, zero: Zero) -> Any:
    return reduce(extend.add, terms, zero)


# (x y)_k = sum_i x_i y_(k-i).  For x = y the terms come in equal pairs, around a middle one if k is
# even.  And  x x' = (x^2 / 2)'.
def product(node: Node) -> Later | None:
    """An operation that is linear in each of two inputs that move."""
    rule = extend.rule_of(node.equation.primitive)
    if [*pick(partials_of(rule), node.flags)] != [LINEAR, LINEAR]:
        return None
    x, y = pick(node.inputs, node.flags)
    zero = node.outputs[0].zero

    def term(i, j):
        if type(x[i]) is Zero or type(y[j]) is Zero:
            return zero
        others = [c.value for c in node.inputs if not c.moves]
        given = extend.merge(others, (x[i], y[j]), node.flags)
        return extend.bind(node.equation, given)[0]

    def halves_of_square(k, n):
        """`n / 2` times coefficient `k` of `x^2`, for `n` = 1 or 2."""
        half = total([term(i, k - i) for i in range((k + 1) // 2)], zero)
        middle = term(k // 2, k // 2) if k % 2 == 0 else zero
        return [total([scaled(half, n), divided(middle, 2 // n)], zero)]

    if rule.is_diagonal and x is y:
        return lambda k: halves_of_square(k, 2)
    if rule.is_diagonal and (x.derivative is y or y.derivative is x):
        x = y = x if x.derivative is y else y
        return differentiated(node, lambda k: halves_of_square(k, 1))
    return lambda k: [total([term(i, k - i) for i in range(k + 1)], zero)]


def power(node: Node) -> Later | None:
    """A whole power, which is a product of powers, or the inverse of one."""
    primitive, n = node.equation.primitive, node.equation.params.get("y", 2)
    if primitive not in (lax.square_p, lax.integer_pow_p) or n in (0, 1):
        return None
    program = power_program(node.inputs[0].aval, n)
    nodes, (answer,) = node.run.expanded(program, node.inputs)

    def later(k):
        for inner in nodes:
            inner.reach(k)
        return [answer[k]]

    return later


@lru_cache(maxsize=256)
def power_program(aval: Any, n: int) -> ClosedJaxpr:
    def written(x):
        if n < 0:
            return lax.div(constant(1, aval), lax.integer_pow(x, -n))
        half = lax.integer_pow(x, n // 2) if n > 3 else x
        return lax.mul(half, lax.integer_pow(x, n - n // 2) if n % 2 else half)

    return extend.staged(written, like(aval)).program


# Of y = x^p the rule says  x y' = p x' y,  and so
#
#     k x_0 y_k = sum_(i>0) (p i - (k - i)) x_i y_(k-i)
#
# Near x_0 = 0 the y_k are huge, or too small for a number.  So we take  u(t) = x(c t) / x_0,  which
# begins with 1, compute (u^p)_k, and multiply by x_0^p / c^k; here c = x_0, or 1 if |x_0| > 1.
# Close to p = 0, 1, 2, ... the terms cancel, as y has no pole at x_0 = 0: we take the last case.
def fixed_power(node: Node) -> Later | None:
    """`x^p` for one fixed number `p` that is not close to 0, 1, 2, ..."""
    if node.equation.primitive is not lax.pow_p or node.flags != (True, False):
        return None
    (x, _), p = node.inputs, node.inputs[1][0]
    if isinstance(p, jax.core.Tracer) or np.ndim(p):
        return None
    p = np.asarray(p).astype(complex).item()
    p = p if p.imag else p.real
    if p.real > -0.5 and abs(p - round(p.real)) < 2**-6:
        return None
    one, start = full(1, x.aval), x.value
    is_far = lax.gt(lax.abs(start), lax.abs(one))
    scales, moved, found = [one], [one], [one]
    inverse = lax.div(one, lax.select(is_far, start, one))

    def raised(power):
        return extend.bind(node.equation, [start, full(power, x.aval)])[0]

    def later(k):
        scales.append(lax.mul(scales[-1], start) if k > 1 else one)  # x_0^(k-1)
        factor = lax.select(is_far, inverse, scales[k])
        moved.append(x[k] if type(x[k]) is Zero else lax.mul(factor, x[k]))
        terms = [
            scaled(lax.mul(moved[i], found[k - i]), p * i - (k - i))
            for i in range(1, k + 1)
            if Zero not in (type(moved[i]), type(found[k - i]))
        ]
        found.append(divided(total(terms, x.zero), k))
        if type(found[k]) is Zero:
            return [found[k]]
        return [lax.mul(lax.select(is_far, node.outputs[0].value, raised(p - k)), found[k])]

    return later


# For x^y the last case is exact even where z is too small for a number.  But if y moves, its slopes
# form a family with two indices; one recurrence is cheaper:  z' = z w'  with  w = y log x.  If x is
# the constant 0, we take log x = 0: then z does not move.
def real_power(node: Node) -> Later | None:
    """A power whose exponent moves; nan where `z_0` is 0 or subnormal and the base moves too."""
    if node.equation.primitive is not lax.pow_p or not node.flags[1]:
        return None
    (x, y), (z,) = node.inputs, node.outputs
    logarithm = logarithm_program(x.aval, y.aval, z.aval, x.moves)
    inner, (w,) = node.run.expanded(logarithm, node.inputs)
    outer, (slope,) = node.run.expanded(product_program(z.aval), [z, w.derivative])

    def later(k):
        for each, last in [*((n, k) for n in inner), *((n, k - 1) for n in outer)]:
            each.reach(last)
        found = divided(slope[k - 1], k)
        if not x.moves or type(found) is Zero:
            return [found]
        tiny = jnp.finfo(z.aval.dtype).tiny
        is_normal = lax.ge(lax.abs(z[0]), lax.full_like(lax.abs(z[0]), tiny))
        return [lax.select(is_normal, found, lax.full_like(found, jnp.nan))]

    return later


def logarithm_program(x: Any, y: Any, z: Any, moves: bool) -> ClosedJaxpr:
    def written(x, y):
        x, y = (broadcast_to(v, z) for v in (x, y))
        if not moves:
            is_zero = lax.eq(x, lax.full_like(x, 0))
            x = lax.select(is_zero, lax.full_like(x, 1), x)
        return lax.mul(y, lax.log(x))

    return extend.staged(written, like(x), like(y)).program


def product_program(aval: Any) -> ClosedJaxpr:
    return extend.staged(lax.mul, like(aval), like(aval)).program


def like(aval: Any) -> Any:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)


# A y = x, where A and x move, has the coefficients  sum_i A_i y_(k-i) = x_k.  The rule knows A:
# its derivative program gives  A_0^-1 x_dot  of a tangent of x, and  -A_0^-1 A_dot y  of one of A.
# In a `linear_solve` the matrix may be a nonlinear function of moving values: then A_i does not
# follow from x_i alone, and we take the last case.
def quotient(node: Node) -> Later | None:
    """A quotient, or the solution of a linear system."""
    if node.equation.primitive not in QUOTIENTS:
        return None
    divides = [moves and reads_results(node, i) for i, moves in enumerate(node.flags)]
    if not any(divides) or bends(node):
        return None

    def later(k):
        dividend = [x.zero if d else x[k] for x, d in zip(node.inputs, divides, strict=True)]
        terms = [node.pushed([y[0] for y in node.outputs], dividend)]
        for i in range(1, k + 1):
            results = [y[k - i] for y in node.outputs]
            if any(extend.moving(results)):
                dots = [x[i] if d else x.zero for x, d in zip(node.inputs, divides, strict=True)]
                terms.append(node.pushed(results, dots))
        pairs = zip(zip(*terms, strict=True), node.outputs, strict=True)
        return [total(of_one, y.zero) for of_one, y in pairs]

    return later


QUOTIENTS = {lax.div_p, triangular_solve_p, tridiagonal_solve_p, lax.linear_solve_p}


def reads_results(node: Node, i: int) -> bool:
    """Whether the derivative in one input depends on the results."""
    flags = [j == i for j in range(len(node.inputs))]
    jaxpr, count = node.run.derivative(node.equation, flags).program.jaxpr, len(node.inputs)
    results = jaxpr.invars[count : count + len(node.outputs)]
    read = [a for e in jaxpr.eqns for a in e.invars] + jaxpr.outvars
    return not {*map(id, results)}.isdisjoint(map(id, read))


def bends(node: Node) -> bool:
    """Whether the matrix of a `linear_solve` is a nonlinear function of the moving values."""
    if node.equation.primitive is not lax.linear_solve_p:
        return False
    params, known = node.equation.params, node.flags
    moving = known[: params["const_lengths"].matvec]
    matvec = params["jaxprs"].matvec
    still = [False] * (len(matvec.in_avals) - len(moving))
    slopes, _ = extend.tangents_of(matvec, (*moving, *still))
    return any(extend.tangents_of(slopes, (*moving, *still, *[False] * sum(moving))).moved)


# J also takes x' to y', and an integral of x to one of y.  We push whichever an earlier equation
# has computed, so that nothing is multiplied by k and then divided by k.
def constant_slopes(node: Node) -> Later | None:
    """Where `J` does not move: `y_k = J x_k`."""
    if slopes_move(node):
        return None
    moving = pick(node.inputs, node.flags)
    still = [x.zero for x in node.inputs if not x.moves]

    def through(streams: Sequence[Stream]) -> Later:
        def later(k):
            dots = extend.merge(still, [x[k] for x in streams], node.flags)
            return node.pushed([y[0] for y in node.outputs], dots)

        return later

    if all(type(x.integral) is not Integral for x in moving):
        return differentiated(node, through([x.integral for x in moving]))
    if all(type(x.derivative) is not Derivative for x in moving):
        return integrated(node, node.streams(through([x.derivative for x in moving])))
    return through(moving)


def slopes_move(node: Node) -> bool:
    """Whether the derivative program multiplies tangents by what moves."""
    program, _ = node.run.derivative(node.equation, node.flags)
    known = [*node.flags, *(y.moves for y in node.outputs)]
    values = [(moves, False) for moves in known] + [(False, True)] * sum(node.flags)
    products = []

    def meaning(equation, inputs):
        moves, is_tangent = map(any, zip(*inputs, strict=True)) if inputs else (False, False)
        if is_tangent:
            products.append(moves)
            return [(False, True)] * len(equation.outvars)
        flags = [moves for moves, _ in inputs]
        moved = extend.tangent_program(equation, flags).moved if any(flags) else ()
        return [(m, False) for m in moved] or [(False, False)] * len(equation.outvars)

    extend.interpret(program, values, meaning, lambda _: (False, False), own_rules=True)
    return any(products)


def integral(node: Node) -> Later:
    """`y_k = 1/k (J_f(x) x')_(k-1)`"""
    program, moved = node.run.derivative(node.equation, node.flags)
    dots = [x.derivative for x in pick(node.inputs, node.flags)]
    nodes, slopes = node.run.expanded(program, [*node.inputs, *node.outputs, *dots])
    still = [Stream(y.aval) for y in node.outputs if not y.moves]
    later = integrated(node, extend.merge(still, slopes, moved))

    def after(k):
        for inner in nodes:
            inner.reach(k - 1)
        return later(k)

    return after


def integrated(node: Node, slopes: Sequence[Stream]) -> Later:
    """`y_k = 1/k y'_(k-1)`, where these are the derivatives of the results."""
    for y, slope in zip(node.outputs, slopes, strict=True):
        y.derivative = slope

    def later(k):
        for slope in slopes:
            slope.reach(k - 1)
        if k == 1:  # the slope may not have chosen its case yet, and with it its integral
            return [slope[0] for slope in slopes]
        return [partial(slope.integral.__getitem__, k) for slope in slopes]

    return later


def differentiated(node: Node, later: Later) -> Later:
    """`y_k = (k + 1) z_(k+1)`, where `later` gives the coefficients of the integrals `z`."""
    # z_1 = y_0; and z_0 is arbitrary, and nobody reads it.
    areas = node.streams(lambda k: later(k) if k > 1 else [y[0] for y in node.outputs])
    for y, area in zip(node.outputs, areas, strict=True):
        y.integral = area

    def after(k):
        for area in areas:
            area.reach(k + 1)
        return [partial(area.derivative.__getitem__, k) for area in areas]

    return after


CASES = (product, power, fixed_power, real_power, quotient, constant_slopes, integral)
