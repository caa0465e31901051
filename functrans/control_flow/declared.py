"""The rules that a "hi" primitive has of its own, called as JAX calls them.

    jvp         (x, x_dot) -> (y, y_dot)
    lin         x -> (y, r),      linearized    (r, x_dot) -> y_dot
    vjp_fwd     x -> (y, r),      vjp_bwd       (r, y_bar) -> x_bar

A package writes such a primitive with `jax.experimental.hijax`; and JAX's next `custom_jvp` and
`custom_vjp` are primitives of that kind, which carry the user's rules.  We call none of the rules
that JAX wrote for its own primitives.

Read next: `hi.py`, functions under one name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import hijax

from functrans import values
from functrans.control_flow.custom import BackwardRule, from_symbolic, transposed_p
from functrans.values import Zero


def rules_of(primitive: Any) -> list[str]:
    """The rules that somebody other than JAX declared: `jvp`, `lin`, `vjp_fwd`."""
    if _is_of_jax(type(primitive)):
        if hasattr(primitive, "axis_data"):  # JAX 0.10 wraps it under `jax.vmap`
            return rules_of(primitive.prim)
        carried = {"jvp_rule": "jvp", "bwd": "vjp_fwd"}  # for a custom_jvp, and for a custom_vjp
        return [rule for name, rule in carried.items() if hasattr(primitive, name)]
    methods = {name: getattr(type(primitive), name, None) for name in PUSHES}
    return [name for name, method in methods.items() if method and not _is_of_jax(method)]


def _is_of_jax(x: Any) -> bool:
    return x.__module__.partition(".")[0] == "jax"


def _flags(primitive: Any, tangents: Sequence) -> Any:
    return jax.tree.unflatten(primitive.in_tree, values.moving(tangents))


def _with_zeros_of_jax(tree: Any, tangents: Sequence) -> Any:
    given = [hijax.Zero(t.aval) if type(t) is Zero else t for t in tangents]
    return jax.tree.unflatten(tree, given)


def _from_jax(tree: Any, tangents: Any) -> list:
    leaves = tree.flatten_up_to(tangents)
    return [Zero(t.aval) if isinstance(t, hijax.Zero) else from_symbolic(t) for t in leaves]


def by_jvp(primitive: Any, primals: Sequence, tangents: Sequence, _: bool) -> tuple[list, list]:
    x = jax.tree.unflatten(primitive.in_tree, primals)
    outs, dots = primitive.jvp(x, _with_zeros_of_jax(primitive.in_tree, tangents))
    return primitive.out_tree.flatten_up_to(outs), _from_jax(primitive.out_tree, dots)


def by_lin(primitive: Any, primals: Sequence, tangents: Sequence, _: bool) -> tuple[list, list]:
    x = jax.tree.unflatten(primitive.in_tree, primals)
    outs, residuals, *rest = primitive.lin(_flags(primitive, tangents), *x)
    x_dot = _with_zeros_of_jax(primitive.in_tree, tangents)
    dots = primitive.linearized(residuals, *rest[1:], *x_dot)
    return primitive.out_tree.flatten_up_to(outs), _from_jax(primitive.out_tree, dots)


def by_vjp(
    primitive: Any, primals: Sequence, tangents: Sequence, on_a_tape: bool
) -> tuple[list, list]:
    """The pushforward is the transpose of the backward rule."""
    x = jax.tree.unflatten(primitive.in_tree, primals)
    outs, residuals, *rest = primitive.vjp_fwd(_flags(primitive, tangents), *x)
    leaves, tree = jax.tree.flatten((residuals, *rest[1:]))
    rule = Backward(primitive, tree, values.moving(tangents))
    given = values.pick(tangents, rule.moving)
    dots = transposed_p.bind(*leaves, *given, rule=rule) if on_a_tape else rule.push(leaves, given)
    outs = primitive.out_tree.flatten_up_to(outs)
    if rest:  # says which results move
        moved = jax.tree.leaves(jax.tree.broadcast(rest[0], primitive.out_aval))
        dots = [t if flag else Zero.like(y) for y, t, flag in zip(outs, dots, moved, strict=True)]
    return outs, list(dots)


PUSHES: dict[str, Callable] = {"jvp": by_jvp, "lin": by_lin, "vjp_fwd": by_vjp}


class Backward(BackwardRule):
    """The backward rule of a hi primitive."""

    def __init__(self, primitive: Any, tree: Any, moving: Sequence[bool]):
        super().__init__(None, primitive.out_avals_flat, moving, symbolic_zeros=True)
        self.primitive, self.tree = primitive, tree

    def __call__(self, residuals, cotangents):
        primitive = self.primitive
        y_bar = _with_zeros_of_jax(primitive.out_tree, cotangents)
        saved = jax.tree.unflatten(self.tree, residuals)
        if not hasattr(hijax, "ValAccum"):  # before JAX 0.11
            x_bars = _from_jax(primitive.in_tree, primitive.vjp_bwd_retval(*saved, y_bar))
            return values.pick(x_bars, self.moving)
        avals = map(values.cotangent_aval, primitive.in_avals_flat)
        hi: Any = hijax
        kinds = [hi.ValAccum if flag else hi.NullAccum for flag in self.moving]
        sums = [kind(aval) for kind, aval in zip(kinds, avals, strict=True)]
        primitive.vjp_bwd(*saved, y_bar, *jax.tree.unflatten(primitive.in_tree, sums))
        x_bars = [x_bar.freeze() for x_bar in values.pick(sums, self.moving)]
        return [Zero(x.aval) if isinstance(x, hijax.Zero) else from_symbolic(x) for x in x_bars]
