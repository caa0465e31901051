"""Where a derivative starts: `Run, what the user asks for -> Start`.

    forward mode      x_dot = 1 in the arguments `wrt`, or the tangents given
    reverse mode      y_bar = 1 of a real number,       or the cotangent given

Read next: `steps.py`, which goes on from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.core
from jax import lax, tree

from functrans import values
from functrans.errors import checks
from functrans.explain.planning import known
from functrans.explain.records import Run, Variable
from functrans.values import Flags


class Start(NamedTuple):
    """What moves, and in which direction."""

    mode: str | None
    """`"fwd"`, `"rev"`, or `None` if there is no derivative."""
    words: str
    """The tangent or the cotangent, in words for a title."""
    moving: Flags
    """The inputs with respect to which to differentiate."""
    tangents: Sequence = ()
    """The tangents of the inputs that move, in forward mode."""
    cotangents: Sequence = ()
    """The cotangents of the results, in reverse mode."""


def nowhere(run: Run) -> Start:
    """No derivative: nothing moves."""
    return Start(None, "", (False,) * len(run.inputs))


def forward(name: str, run: Run, wrt: int | Sequence[int] | None, tangents: Any) -> Start:
    """Forward mode, with the tangents given, or ones in the arguments `wrt`."""
    if tangents is None:
        moves = pushed(name, run, wrt)
        inputs = values.pick(run.inputs, moves)
        word = "1" if all(v.aval.shape == () for v in inputs) else "ones"
        words = f"tangent {word} in {listed([v.label for v in inputs])}"
        return Start("fwd", words, moves, [_ones(v.aval) for v in inputs])
    if wrt is not None:
        raise TypeError(f"{name}: pass wrt or tangents, not both: the tangents say it all")
    in_tree = run.function.in_tree
    if tree.structure(tangents) != in_tree:
        raise TypeError(
            f"{name}: tangents must be a tuple with one tangent for each argument, "
            f"{len(in_tree.children())} in all, of the same structure, but it is {tangents!r}"
        )
    primals = tree.unflatten(in_tree, [v.value for v in run.inputs])
    given = checks.tangents(primals, tree.map(known, tangents))
    moves = values.moving(given)
    return Start("fwd", "the tangents given", moves, values.pick(given, moves))


def reverse(name: str, run: Run, wrt: int | Sequence[int] | None, cotangent: Any) -> Start:
    """Reverse mode, with the cotangent given, or 1, to the arguments `wrt`, or to all."""
    moves = moving(name, run, wrt)
    avals = [values.tangent_aval(y.source.aval) for y in run.results]
    if cotangent is not None:
        given, out_tree = tree.map(known, cotangent), run.function.out_tree
        cotangents = checks.vectors(checks.PULLBACK, out_tree, avals, given)
        return Start("rev", "the cotangent given", moves, cotangents=cotangents)
    if not _is_one_real_number(avals):
        got = ", ".join(y.source.aval.str_short() for y in run.results) or "nothing"
        raise TypeError(
            f"{name}: {run.name} returns {got}, not one real number, so that reverse mode must "
            "be told where to start. Pass cotangent=, of the structure and the types of the "
            "result, such as jax.tree.map(jnp.ones_like, result); the adjoints are then those of "
            "its inner product with the result."
        )
    words = f"cotangent 1 of {run.results[0].label}"
    return Start("rev", words, moves, cotangents=[_ones(avals[0])])


def moving(name: str, run: Run, wrt: int | Sequence[int] | None) -> Flags:
    """The inputs that move in reverse mode, whatever the function returns."""
    numbers = argument_numbers(run)
    return _with_respect_to(name, run.inputs, numbers, wrt, default=len(numbers))


def pushed(name: str, run: Run, wrt: int | Sequence[int] | None) -> Flags:
    """The inputs that move in forward mode, unless tangents say so."""
    return _with_respect_to(name, run.inputs, argument_numbers(run), wrt, default=1)


def argument_numbers(run: Run) -> list[int]:
    """The number of the argument to which each input belongs."""
    arguments = enumerate(run.function.in_tree.children())
    return [i for i, argument in arguments for _ in range(argument.num_leaves)]


def _with_respect_to(
    name: str, inputs: Sequence[Variable], numbers: Sequence[int], wrt: Any, default: int
) -> Flags:
    """The inputs that belong to the arguments `wrt`, or to the first `default` that can move."""
    can_move = [values.is_differentiable(v.aval) for v in inputs]
    candidates = sorted(set(values.pick(numbers, can_move)))
    if not candidates:
        types = ", ".join(f"{v.label}: {v.aval.str_short()}" for v in inputs) or "none"
        raise TypeError(
            f"{name}: no argument has a derivative ({types}). Pass floating-point numbers, such "
            "as 2.0 for 2."
        )
    chosen = candidates[:default]
    if wrt is not None:
        chosen = list(wrt) if isinstance(wrt, Sequence) else [wrt]
        if wrong := [n for n in chosen if n not in candidates]:
            raise ValueError(
                f"{name}: wrt={wrt!r}, but {wrong[0]!r} is not the number of an argument that has "
                f"a derivative. These are {candidates}, counted from 0; integers have no "
                "derivative: pass 2.0 for 2."
            )
    return tuple([can and n in chosen for can, n in zip(can_move, numbers, strict=True)])


def _is_one_real_number(avals: Sequence) -> bool:
    is_real = len(avals) == 1 and jax.dtypes.issubdtype(avals[0].dtype, jax.numpy.floating)
    return is_real and avals[0].shape == ()


def _ones(aval: Any) -> Any:
    with jax.core.eval_context():  # an array also where a function is being traced
        return lax.full(aval.shape, 1, aval.dtype)


def listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else [*names[:3], f"… ({len(names)} in all)"])
