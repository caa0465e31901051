"""A jitted call inside a differentiated function stays one call in each half.

    jit f          forward:     jit (jvp f)
                   linearize:   jit (primal half),  then  jit (linear half)
                   transpose:   jit (transpose of the linear half)

Each derived jaxpr is made once for a jaxpr and for which of its inputs move.

Read next: `custom.py`, calls whose derivative the user has written.
"""

from __future__ import annotations

from collections.abc import Iterable

from jax.extend.core.primitives import jit_p

from functrans import jaxpr as jx
from functrans.jaxpr import Linear, Zero
from functrans.linearize import jvp_jaxpr, linearize_jaxpr
from functrans.reverse import transpose_jaxpr
from functrans.rules import Rule, call


def _places(side: str, flags: Iterable[bool]) -> list:
    return [(side, i) for i, flag in enumerate(flags) if flag]


class JitRule(Rule):
    """Derive the jaxpr that is inside, and bind the result as a `jit` equation again.

    A tangent or a cotangent has the sharding of its primal; a residual has its own.
    """

    def forward(self, primitive, primals, tangents, params):
        moving = [type(t) is not Zero for t in tangents]
        program, zeros = jvp_jaxpr(params["jaxpr"], tuple(moving))
        outs = jx.bind_jit(
            program,
            [*primals, *(t for t in tangents if type(t) is not Zero)],
            params["name"],
            like=params,
            inputs=[*_places("in", [True] * len(primals)), *_places("in", moving)],
            outputs=[
                *_places("out", [True] * len(zeros)),
                *_places("out", [zero is None for zero in zeros]),
            ],
        )
        return outs[: len(zeros)], jx.fill(zeros, outs[len(zeros) :])

    def linearize(self, primitive, primals, tangents, params):
        moving = [type(t) is not Zero for t in tangents]
        first, second, zeros = linearize_jaxpr(params["jaxpr"], tuple(moving))
        count = len(first.out_avals) - len(zeros)
        outs = jx.bind_jit(
            first,
            primals,
            params["name"],
            like=params,
            inputs=_places("in", [True] * len(primals)),
            outputs=[*_places("out", [True] * len(zeros)), *[None] * count],
        )
        outs, residuals = outs[: len(zeros)], outs[len(zeros) :]
        tangents_out = jx.bind_jit(
            second,
            [*residuals, *(t for t in tangents if type(t) is not Zero)],
            params["name"],
            like=params,
            inputs=[*[None] * count, *_places("in", moving)],
            outputs=_places("out", [zero is None for zero in zeros]),
        )
        return outs, jx.fill(zeros, tangents_out)

    def transpose(self, primitive, cotangents, inputs, params):
        linear = [type(x) is Linear for x in inputs]
        moving = [type(y_bar) is not Zero for y_bar in cotangents]
        program, zeros = transpose_jaxpr(params["jaxpr"], tuple(linear), tuple(moving))
        places = _places("in", linear)
        pulled = jx.bind_jit(
            program,
            [
                *(x for x in inputs if type(x) is not Linear),
                *(y_bar for y_bar in cotangents if type(y_bar) is not Zero),
            ],
            params["name"],
            like=params,
            inputs=[*_places("in", [not flag for flag in linear]), *_places("out", moving)],
            outputs=[place for place, zero in zip(places, zeros, strict=True) if zero is None],
        )
        pulled = iter(jx.fill(zeros, pulled))
        return [next(pulled) if flag else None for flag in linear]


call(jit_p, JitRule())
