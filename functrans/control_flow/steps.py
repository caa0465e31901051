"""Programs of one step of a loop: the step of pairs, and the step back.

    f : k, c -> c'        pairs:     k, k_dot, c, c_dot  ->  c', c_dot'
                          back:      k, c, c_bar'        ->  c_bar,  and what is added to k_bar

The step back is the transpose of the linear part of a step, for given values of the other inputs:
of the second half of `divided`.  It computes the residuals of the first half again.

Read next: `counted_loops.py`, the loops of these steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.linearize import linearize_jaxpr
from functrans.programs.halves import Address, divided, located, numbered, reached_outputs
from functrans.programs.live import either, giving, reading, settle, taking, trimmed_step
from functrans.programs.loops import evaluate
from functrans.programs.places import added_in_place
from functrans.reverse import transpose_jaxpr
from functrans.tracer import Derived, stage
from functrans.values import Flags

# ---- pairs ---------------------------------------------------------------------------------------


def as_carried(x: Any, aval: Any) -> Any:
    """A tangent or a cotangent, with the same type as in every step."""
    x = values.instantiate(x)
    return x if values.typeof(x).weak_type == aval.weak_type else values.cast(x, aval)


@caches.by_program
def by_halves(program: ClosedJaxpr, moving: Flags) -> Derived:
    """As `jvp_jaxpr`, for a program that we transpose later: the user's backward rule runs
    then."""
    first, second, moved = linearize_jaxpr(program, moving)
    inputs, outputs = len(first.in_avals), len(moved)

    def both(*args):
        outs = evaluate(first, *args[:inputs])
        return [*outs[:outputs], *evaluate(second, *outs[outputs:], *args[inputs:])], None

    dots = map(values.tangent_aval, values.pick(first.in_avals, moving))
    return Derived(stage(both, [*first.in_avals, *dots], program.jaxpr.debug_info)[0], moved)


def settled(
    derive: Callable, program: ClosedJaxpr, fixed: Sequence[bool], flags: Sequence
) -> Flags:
    """Which entries of a carry move in some step; `fixed` are the flags of the inputs before it."""

    def of(flags):
        return derive(program, (*fixed, *flags))

    return settle(of, tuple(flags), lambda *pair: either(pair))[0]


def reached(program: ClosedJaxpr, flags: Flags) -> tuple[Flags]:
    return (reached_outputs(program, flags),)


@caches.by_program
def paired(
    program: ClosedJaxpr, sizes: tuple[int, ...], moving: Flags, moved: Flags, derive: Callable
) -> ClosedJaxpr:
    """A step of pairs. Behind each group of inputs come its moving tangents, and behind the outputs
    come theirs."""
    pushed, own = derive(program, moving)
    avals, out_avals = program.in_avals, program.out_avals
    dot_avals = [*map(values.tangent_aval, values.pick(out_avals, moved))]
    groups, tangents = grouped(avals, sizes), grouped(moving, sizes)
    types = [
        [*xs, *map(values.tangent_aval, values.pick(xs, flags))]
        for xs, flags in zip(groups, tangents, strict=True)
    ]

    def step(*inputs):
        rest, xs, dots = iter(inputs), [], []
        for flags in tangents:
            xs += [next(rest) for _ in flags]
            dots += [next(rest) for flag in flags if flag]
        outs = evaluate(pushed, *xs, *dots)
        ys, y_dots = outs[: len(own)], values.with_zeros(outs[len(own) :], own, out_avals)
        return [*ys, *map(as_carried, values.pick(y_dots, moved), dot_avals)], None

    return stage(step, [aval for group in types for aval in group], program.jaxpr.debug_info)[0]


def grouped(xs: Sequence, sizes: Sequence[int]) -> list[list]:
    rest = iter(xs)
    return [[next(rest) for _ in range(size)] for size in sizes]


def started(dots: Sequence, flags: Sequence[bool], avals: Sequence) -> list:
    """The first tangents of a carry; a zero that moves in a later step becomes an array."""
    kinds = map(values.tangent_aval, values.pick(avals, flags))
    return [*map(as_carried, values.pick(dots, flags), kinds)]


# ---- transposes ----------------------------------------------------------------------------------


class Back(NamedTuple):
    """A step of the known part, and a step back of the cotangents of the linear part."""

    step: ClosedJaxpr
    back: ClosedJaxpr


@caches.by_program
def transposed_step(step: ClosedJaxpr, consts: Flags, carry: Flags) -> Back:
    """The transpose of a step that is linear in the inputs with the flags, for given other inputs.

    The bars are those of the constants, which are summed, and those of the carry.
    """
    first, second, _ = divided(step, (*consts, *carry), carry)
    count, summed = len(carry) - sum(carry), sum(consts)
    pull = _pullback(second, len(first.out_avals) - count)
    own_avals = bar_avals(step, (*consts, *carry))

    def back(*inputs):
        known, bars = inputs[: len(first.in_avals)], inputs[len(first.in_avals) :]
        new = pull(evaluate(first, *known)[count:], bars[summed:])
        sums = map(values.add, bars[:summed], new[:summed])
        return [*map(as_carried, [*sums, *new[summed:]], own_avals)], None

    info = step.jaxpr.debug_info
    whole, _ = stage(back, [*first.in_avals, *own_avals], info)
    return Back(giving(first, first.jaxpr.outvars[:count]), added_in_place(whole))


def bar_avals(program: ClosedJaxpr, linear: Flags) -> list:
    return [*map(values.cotangent_aval, values.pick(program.in_avals, linear))]


def _pullback(second: ClosedJaxpr, residuals: int) -> Callable:
    """From the residuals and the cotangents of a linear program to those of its other inputs."""
    linear = tuple([i >= residuals for i in range(len(second.in_avals))])
    program, moved = transpose_jaxpr(second, linear, (True,) * len(second.out_avals))
    avals = second.in_avals[residuals:]

    def pull(given, bars):
        return values.with_zeros(evaluate(program, *given, *bars), moved, avals)

    return pull


@caches.by_program
def transposed_back(
    step: ClosedJaxpr, back_of: Any, consts: Flags, carry: Flags, bars: Flags
) -> Back:
    """The same for a step and a step back, each with some linear inputs.

        c', b = f(k, c), r(k, c, b')       for the known part of k, c, b'

    In the new loop `u`, the cotangents of b, are carried beside the known c, as they go from b to
    b'. The bars are the known b; and the cotangents of k, which are summed, and of c.
    """
    back = back_of()
    info, known_bars = step.jaxpr.debug_info, len(bars) - sum(bars)
    f, f_dot, _ = divided(step, (*consts, *carry), carry)
    r, r_dot, _ = divided(back, (*consts, *carry, *bars), bars)
    size, ks, cs = len(carry) - sum(carry), sum(consts), sum(carry)
    pull_f = _pullback(f_dot, len(f.out_avals) - size)
    pull_r = _pullback(r_dot, len(r.out_avals) - known_bars)
    b_avals = values.part(back.in_avals[len(consts) + len(carry) :], bars)[0]
    u_avals = bar_avals(back, (*[False] * (len(consts) + len(carry)), *bars))
    own_avals = bar_avals(step, (*consts, *carry))
    inputs, held = [*f.in_avals, *u_avals], len(f.in_avals)

    def along(*args):
        known, u = args[:held], args[held:]
        # The path of u does not depend on b, since r is linear in b.
        residuals = evaluate(r, *known, *map(values.zeros, b_avals))[known_bars:]
        new = map(as_carried, pull_r(residuals, u)[ks + cs :], u_avals)
        return [*evaluate(f, *known)[:size], *new], None

    def backwards(*args):
        known, u, rest = args[:held], args[held : len(inputs)], args[len(inputs) :]
        b, sums, c_bars = grouped(rest, (known_bars, ks, cs))
        outs = evaluate(r, *known, *b)
        of_r = pull_r(outs[known_bars:], u)[: ks + cs]
        of_f = pull_f(evaluate(f, *known)[size:], c_bars)
        new = [*map(values.add, of_r, of_f)]
        new = [*map(values.add, sums, new[:ks]), *new[ks:]]
        return [*outs[:known_bars], *map(as_carried, new, own_avals)], None

    ahead, _ = stage(along, inputs, info)
    whole, _ = stage(backwards, [*inputs, *b_avals, *own_avals], info)
    return Back(ahead, added_in_place(whole))


# ---- unread work ---------------------------------------------------------------------------------


@caches.by_program
def trimmed(step: ClosedJaxpr, consts: int, wanted: Flags) -> tuple:
    step, read, carry = trimmed_step(step, consts, wanted, ())
    return step, read[:consts], carry


@caches.by_program
def trimmed_pair(step: ClosedJaxpr, back_of: Any, sizes: tuple, wanted: Flags) -> tuple:
    """Both programs without unread work; and flags: of the constants that stay, of the carry
    that becomes constant, of the carry that stays, and of the bars that stay."""
    (consts, carry), back = sizes, back_of()
    middle, inputs = consts + carry, step.jaxpr.invars

    def feedback(flags, read):
        return either([flags, read[middle:]])

    bars, (back, of_back) = settle(lambda flags: reading(back, flags), wanted, feedback)
    pairs = zip(inputs[consts:], step.jaxpr.outvars, strict=True)
    unchanged = [before is after for before, after in pairs]

    def needed(flags, read):
        return either([flags, read[consts:]])

    c, (step, of_step) = settle(lambda flags: reading(step, flags), of_back[consts:middle], needed)
    k = either([of_step[:consts], of_back[:consts]])
    fixed = tuple([flag and same for flag, same in zip(c, unchanged, strict=True)])
    stay = tuple([flag and not same for flag, same in zip(c, unchanged, strict=True)])
    step = giving(step, values.pick(step.jaxpr.outvars, values.pick(stay, c)))
    flags = k, fixed, stay, bars
    return _ordered(step, flags[:3]), _ordered(back, flags), flags


def _ordered(program: ClosedJaxpr, flags: Sequence[Flags]) -> ClosedJaxpr:
    """The program with the inputs that have a flag: the constants, the constant part of the carry
    and the rest of it, and the bars."""
    variables = iter(program.jaxpr.invars)
    consts = [next(variables) for _ in flags[0]]
    carry = [next(variables) for _ in flags[1]]
    groups = zip((consts, carry, carry, [*variables]), flags, strict=False)
    inputs = [v for group, own in groups for v in values.pick(group, own)]
    jaxpr, info = program.jaxpr, program.jaxpr.debug_info
    return jx.closed(inputs, jaxpr.outvars, jaxpr.eqns, info, jaxpr.constvars, program.consts)


# ---- the reads of a step back --------------------------------------------------------------------


class Noted(NamedTuple):
    """A step back in two: notes on a carry, and the work on these notes later."""

    outer: ClosedJaxpr
    """From constants and any carry to the values that are the same for every carry."""
    note: ClosedJaxpr
    """From constants and a carry to the notes."""
    back: ClosedJaxpr
    """From constants, these values, notes, and bars, to bars."""


@caches.by_program
def noted(back: ClosedJaxpr, consts: int, carry: int, of_carry_alone: bool) -> Noted:
    """Note the values that the linear part of a step back reads, or, if it is smaller, the part of
    the carry from which to compute them again.

    With `of_carry_alone` it is always the carry, whose axes one knows.
    """
    end, inputs, info = consts + carry, back.jaxpr.invars, back.jaxpr.debug_info
    outputs = (True,) * len(back.out_avals)
    shorter, read = reading(back, outputs)
    of_carry = (*[False] * consts, *read[consts:end])
    bars = (*[False] * end, *[True] * (len(inputs) - end))
    first, second, moved = divided(back, bars, outputs)
    half = located(first, second, moved, 0)
    known, fresh = half.first.jaxpr.invars, half.first.jaxpr.outvars
    changing = reached_outputs(half.first, (*[False] * consts, *[True] * carry))
    noted_in = [i for i in range(consts, end) if Address("in", i) in half.addresses]
    notes = [*(known[i] for i in noted_in), *values.pick(fresh, changing)]
    carried = values.pick(inputs[:end], of_carry)
    if of_carry_alone or back.effects or _bytes(notes) > _bytes(carried):
        taken = (*[True] * consts, *of_carry[consts:], *bars[end:])
        note = jx.closed(inputs[:end], carried, [], info)
        return Noted(jx.closed(inputs[:end], [], [], info), note, taking(shorter, taken))
    same = values.part(fresh, changing)[0]
    sizes = consts, len(same), len(noted_in), len(notes) - len(noted_in), sum(bars)
    numbers = values.part(range(len(fresh)), changing)

    def later(*args):
        fixed, before, of_carry, others, bars = grouped(args, sizes)
        at_hand = numbered("in", fixed) | {
            Address("in", i): x for i, x in zip(noted_in, of_carry, strict=True)
        }
        for at, xs in zip(numbers, (before, others), strict=True):
            at_hand |= {Address("fresh", i): x for i, x in zip(at, xs, strict=True)}
        residuals = [address.read(at_hand) for address in half.addresses]
        return evaluate(second, *residuals, *bars), None

    avals = [v.aval for v in (*known[:consts], *same, *notes)]
    whole, _ = stage(later, [*avals, *values.pick(back.in_avals, bars)], info)
    return Noted(giving(half.first, same), giving(half.first, notes), whole)


def _bytes(variables: Sequence) -> int:
    """The bytes of arrays; numbers do not count."""
    avals = [v.aval for v in variables if v.aval.ndim]
    return sum(aval.size * aval.dtype.itemsize for aval in avals)
