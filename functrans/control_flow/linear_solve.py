"""The solution of a linear system by the user's function: `jax.lax.custom_linear_solve`.

    A x = b          =>    A x_dot = b_dot - A_dot x         (differentiate both sides)
    A x_dot = r      =>    A^T r_bar = x_bar                 (transpose)

Both are linear solves again, by the same functions: bind the equation with another right hand
side, or with the roles of `A` and `A^T` exchanged.

Read next: `reflections.py`, a matrix reduced column by column.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from jax import lax
from jax.extend.core import Primitive

from functrans import jaxpr as jx
from functrans import values
from functrans.derivatives.common import is_complex, zeros_like
from functrans.errors import operations
from functrans.forward import jvp_jaxpr
from functrans.programs.halves import reached_outputs
from functrans.rules import NotLinear, Rule, call
from functrans.values import Linear, Zero

PARTS = ("matvec", "vecmat", "solve", "transpose_solve")
TRANSPOSED = dict(zip(PARTS, ("vecmat", "matvec", "transpose_solve", "solve"), strict=True))


def parts_of(inputs: Sequence, lengths: Any) -> tuple[dict[str, list], list]:
    """The constants of each of the user's functions, and the right hand side."""
    rest = list(inputs)
    consts = {}
    for part in PARTS:
        consts[part], rest = rest[: getattr(lengths, part)], rest[getattr(lengths, part) :]
    return consts, rest


def exchanged(parts: Any) -> Any:
    """Exchange `A` and its solver with `A^T` and its solver."""
    return parts._replace(**{part: getattr(parts, TRANSPOSED[part]) for part in PARTS})


def together(tangents: list) -> list:
    """Arrays for all. JAX cannot differentiate a solve of several operands of which one is a
    constant to it. So each depends on all, by a choice that is none and that XLA removes."""
    arrays = [*map(values.instantiate, tangents)]
    if not arrays[1:]:
        return arrays
    sums = [lax.reduce_sum(lax.real(x) if is_complex(x) else x, range(x.ndim)) for x in arrays]

    def depending(x):
        zeros = zeros_like(x)
        others = [lax.add(zeros, lax.convert_element_type(total, x.dtype)) for total in sums]
        return lax.select(lax.eq(zeros, zeros), x, functools.reduce(lax.add, others))

    return [*map(depending, arrays)]


class LinearSolveRule(Rule):
    """Solve again."""

    may_split = True

    def forward(self, primitive: Primitive, primals: list, tangents: list, params: dict) -> tuple:
        outs = primitive.bind(*primals, **params)
        (consts, b), (consts_dot, b_dot) = (
            parts_of(part, params["const_lengths"]) for part in (primals, tangents)
        )
        x = outs[: len(b)]  # the solver's `aux` follows
        right = self._right(params["jaxprs"].matvec, consts["matvec"], consts_dot["matvec"], x)
        r = [values.add(new, minus) for new, minus in zip(b_dot, right, strict=True)]
        x_dot: list = [Zero.like(out) for out in outs]
        if any(values.moving(r)):
            given = [x for part in PARTS for x in consts[part]]
            right = together(r)
            x_dot[: len(b)] = primitive.bind(*given, *right, **params)[: len(b)]
        return outs, x_dot

    def _right(self, matvec: Any, consts: list, consts_dot: list, x: list) -> list:
        """`-A_dot x`."""
        moving = values.moving(consts_dot)
        program, moved = jvp_jaxpr(matvec, (*moving, *[False] * len(x)))
        dots = jx.evaluate(program, *consts, *x, *values.pick(consts_dot, moving))[len(moved) :]
        return values.with_zeros(map(lax.neg, dots), moved, matvec.out_avals)

    def transpose(self, primitive: Primitive, cotangents: list, inputs: list, params: dict) -> list:
        lengths, jaxprs = params["const_lengths"], params["jaxprs"]
        consts, b = parts_of(inputs, lengths)
        if any(type(x) is Linear for part in consts.values() for x in part):
            raise NotLinear.at(primitive, inputs[: len(inputs) - len(b)])
        if jaxprs.transpose_solve is None:
            raise operations.no_transpose_solve()
        given = [x for part in PARTS for x in consts[TRANSPOSED[part]]]
        x_bar = together(cotangents[: len(b)])
        swapped = {"const_lengths": exchanged(lengths), "jaxprs": exchanged(jaxprs)}
        r_bar = primitive.bind(*given, *x_bar, **params | swapped)[: len(b)]
        return [*[None] * (len(inputs) - len(b)), *r_bar]

    def depends(self, params: dict, inputs: Sequence[bool]) -> Sequence[bool]:
        consts, b = parts_of(inputs, params["const_lengths"])
        if any(any(part) for part in consts.values()):
            return [True] * len(params["jaxprs"].solve.out_avals)
        return reached_outputs(params["jaxprs"].solve, (*[False] * len(consts["solve"]), *b))

    def split(
        self, primitive: Primitive, inputs: list, owned: Sequence[bool], params: dict
    ) -> list:
        """A system of independent parts: solve the known ones now, with zeros for the others."""
        known = [values.zeros(x.aval) if flag else x for x, flag in zip(inputs, owned, strict=True)]
        outs = primitive.bind(*known, **params)
        written = jx.current_trace().write(primitive, inputs, params)
        linear = self.depends(params, owned)
        return values.merge(values.part(outs, linear)[0], values.pick(written, linear), linear)


call(lax.linear_solve_p, LinearSolveRule())
