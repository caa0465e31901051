"""The forward interpreter: each value becomes a pair, the value and its tangent.

    forward : (a -> b) -> (a, a_dot) -> (b, b_dot)

What one equation `y = f(x)` means is said once, in `equation`,

    (x, x_dot)  ->  (f(x), J_f(x) x_dot)

and there are two ways to be given equations: live, from a running Python function
(`process_primitive`), and from a jaxpr (`run_jaxpr`).

Read next: `derivatives/elementwise.py`, the rules; then `linearize.py`, which records the tangents.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.core
from jax.extend.core import ClosedJaxpr, Literal, set_current_trace, take_current_trace

from functrans import jaxpr as jx
from functrans.jaxpr import Zero
from functrans.rules import rule_of
from functrans.tracer import Trace


class ForwardTracer(jax.core.Tracer):
    """A primal and its tangent; Python sees the primal's type, and its value if there is one."""

    __slots__ = ("primal", "tangent")

    def __init__(self, trace: ForwardTrace, primal: Any, tangent: Any):
        super().__init__(trace, jx.typeof(primal))
        self.primal, self.tangent = primal, tangent

    def to_concrete_value(self):
        primal = self.primal
        return primal.to_concrete_value() if isinstance(primal, jax.core.Tracer) else primal


class ForwardTrace(Trace):
    """Gives each operation its pair; `parent` does the arithmetic.

    Where the tangents are recorded (`linearize.py`), `tape` is the trace that records them; it
    hands all work on primals to the parent.
    """

    def __init__(self, parent: Any, tape: Any = None):
        super().__init__()
        self.requires_low = False
        self.parent, self.tape = parent, tape

    def equation(self, primitive: Any, primals: list, tangents: list, params: dict) -> tuple:
        """`(x, x_dot) -> ([y], [y_dot])`, the meaning of one equation."""
        if not jx.present(tangents):
            with set_current_trace(self.parent):
                outs = jx.results(primitive, primitive.bind(*primals, **params))
            return outs, [Zero.like(out) for out in outs]
        rule = rule_of(primitive)
        push = rule.forward if self.tape is None else rule.linearize
        with set_current_trace(self.parent if self.tape is None else self.tape):
            outs, tangents_out = push(primitive, primals, tangents, params)
        # An integer has no tangent, whatever the rule has made of it.
        pairs = zip(outs, tangents_out, strict=True)
        return outs, [t if jx.is_differentiable(jx.typeof(y)) else Zero.like(y) for y, t in pairs]

    # Driver one: a running Python function.

    def split(self, x: Any) -> tuple[Any, Any]:
        if isinstance(x, ForwardTracer) and x._trace is self:
            return x.primal, x.tangent
        return x, Zero.like(x)

    def primal(self, x: Any) -> Any:
        return x.primal if isinstance(x, ForwardTracer) and x._trace is self else x

    def join(self, primal: Any, tangent: Any) -> Any:
        return primal if type(tangent) is Zero else ForwardTracer(self, primal, tangent)

    def process_primitive(self, primitive, args, params, /):
        primals, tangents = _unzip(map(self.split, args))
        outs = list(map(self.join, *self.equation(primitive, primals, tangents, params)))
        return outs if primitive.multiple_results else outs[0]

    def stage_value(self, x, /):
        primal, tangent = self.split(x)
        return self.join(self.parent.stage_value(primal), tangent)

    def run_function(self, fun: Callable, primals: Sequence, tangents: Sequence) -> tuple:
        """Run `fun` on pairs; it takes a flat list and returns two, its outputs and `aux`.

        Returns the outputs, their tangents, and `aux`, of which only the primals count.
        """
        tracers = list(map(self.join, primals, tangents))
        try:
            with set_current_trace(self):
                outs, aux = fun(*tracers)
            return *_unzip(map(self.split, outs)), [self.primal(x) for x in aux]
        finally:
            self.invalidate()

    # Driver two: a jaxpr.

    def run_jaxpr(self, program: ClosedJaxpr, primals: Sequence, tangents: Sequence) -> tuple:
        """Walk the equations of a jaxpr from the first to the last."""
        pairs = {v: (x, Zero.like(x)) for v, x in jx.environment(program, primals).items()}
        pairs.update(zip(program.jaxpr.invars, zip(primals, tangents, strict=True), strict=True))

        def read(atom: Any) -> tuple[Any, Any]:
            return (atom.val, Zero.like(atom.val)) if isinstance(atom, Literal) else pairs[atom]

        for equation in program.jaxpr.eqns:
            primitive, inputs = equation.primitive, _unzip(map(read, equation.invars))
            with jx.context_of(equation):
                outs = self.equation(primitive, *inputs, primitive.get_bind_params(equation.params))
            pairs.update(zip(equation.outvars, zip(*outs, strict=True), strict=True))
        return _unzip(map(read, program.jaxpr.outvars))


def forward(fun: Callable, primals: Sequence, tangents: Sequence) -> tuple[list, list, list]:
    """Push tangents, some of which may be `Zero`, through a function of flat lists.

    The function returns two lists, its outputs and `aux`. The result is the outputs, their
    tangents, and `aux`.
    """
    with take_current_trace() as parent:
        return ForwardTrace(parent).run_function(fun, primals, tangents)


def _unzip(pairs: Any) -> tuple[list, list]:
    pairs = list(pairs)
    return [a for a, _ in pairs], [b for _, b in pairs]
