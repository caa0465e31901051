"""Loops whose steps have been counted: the linear half of a `while_loop`, and its transpose.

    counted_loop      c_N             where    c_t+1 = f(k, c_t),  N times
    reversed_loop     b_0             where    b_t = r(k, c_t, b_t+1),  back from b_N

Both are primitives of functrans.  Their inputs are N, the constants k, the first carry c_0 and, for
the second, the last b, which stands for bars.  Neither keeps anything else between its two ends: it
computes the carries on the way again (`programs/revolve.py`).  They are closed under
differentiation and transposition.  A derivative of either is one of its kind, with pairs for
values.  Where f is linear in some inputs, for given others, r is the transpose of f, and

    transpose of counted_loop[f]         reversed_loop[f, r],  where b sums the cotangents of k too
    transpose of reversed_loop[f, r]     u_t+1 = (db_t/db_t+1)^T u_t runs along with f, and the
                                         cotangents of c, k run back with r

We transpose the linear part of an equation on a tape.  Since r is linear in b for a given c,
the first line of the second transpose reads no b.

Under `jax.vmap` N may differ between examples.  Then N is an array, all examples take as many steps
as the longest, and each keeps its value after its own last step.

Read next: `batched_loops.py`, which evaluates them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
from jax.extend.core import ClosedJaxpr, Primitive

from functrans import jaxpr as jx
from functrans import values
from functrans.control_flow.steps import (
    as_carried,
    bar_avals,
    by_halves,
    paired,
    reached,
    settled,
    started,
    transposed_back,
    transposed_step,
    trimmed,
    trimmed_pair,
)
from functrans.errors import operations
from functrans.forward import jvp_jaxpr
from functrans.rules import NotLinear, Rule, Trimmed, call
from functrans.values import Flags, Linear, Zero

counted_p, reversed_p = Primitive("counted_loop"), Primitive("reversed_loop")
counted_p.multiple_results = reversed_p.multiple_results = True


class Counted(NamedTuple):
    """The static part of a `counted_loop`, whose inputs are `n, consts, carry`."""

    step: ClosedJaxpr
    """From the constants and the carry to the next carry."""
    consts: int
    wanted: Flags
    """Which entries of the last carry it gives."""
    ends: Flags
    """Which entries of the carry belong to one example each, if n is an array."""
    kept: int
    """How many carries its transpose keeps."""

    def parts(self, inputs: Sequence) -> tuple[Any, list, list]:
        end = 1 + self.consts
        return inputs[0], [*inputs[1:end]], [*inputs[end:]]


class Reversed(NamedTuple):
    """The static part of a `reversed_loop`, whose inputs are `n, consts, carry, bars`."""

    step: ClosedJaxpr
    back: ClosedJaxpr
    """From constants, a carry, and the bars after its step to the bars before it."""
    consts: int
    carry: int
    wanted: Flags
    """Which of the first bars it gives."""
    ends: tuple[Flags, Flags]
    """Which entries of carry and bars belong to one example each, if n is an array."""
    kept: int

    def parts(self, inputs: Sequence) -> tuple[Any, list, list, list]:
        ends = 1 + self.consts, 1 + self.consts + self.carry
        return inputs[0], [*inputs[1 : ends[0]]], [*inputs[slice(*ends)]], [*inputs[ends[1] :]]


def counted_loop(n: Any, loop: Counted, consts: Sequence, carry: Sequence) -> list:
    """Bind a loop without the work for entries that nobody wants; return the wanted ones."""
    if not any(loop.wanted):
        return []
    step, read, stay = trimmed(loop.step, loop.consts, loop.wanted)
    consts, carry = values.pick(consts, read), values.pick(carry, stay)
    wanted, ends = (tuple(values.pick(flags, stay)) for flags in (loop.wanted, loop.ends))
    loop = Counted(step, len(consts), wanted, ends, loop.kept)
    return counted_p.bind(n, *consts, *carry, **loop._asdict())


def reversed_loop(
    n: Any, loop: Reversed, consts: Sequence, carry: Sequence, bars: Sequence
) -> list:
    """Bind a loop back without unread work. A carry that no step changes is a constant."""
    if not any(loop.wanted):
        return []
    sizes = loop.consts, loop.carry
    step, back, flags = trimmed_pair(loop.step, ref(loop.back), sizes, loop.wanted)
    k, fixed, stay, b = flags
    consts = [*values.pick(consts, k), *values.pick(carry, fixed)]
    carry, bars = values.pick(carry, stay), values.pick(bars, b)
    ends = tuple(values.pick(loop.ends[0], stay)), tuple(values.pick(loop.ends[1], b))
    wanted = tuple(values.pick(loop.wanted, b))
    loop = Reversed(step, back, len(consts), len(carry), wanted, ends, loop.kept)
    return reversed_p.bind(n, *consts, *carry, *bars, **loop._asdict())


def _linear_in(primitive: Primitive, inputs: Sequence, flags: Sequence, avals: Sequence) -> None:
    """Complain if an input is not a real number, or is linear by mistake."""
    wrong = [not values.is_differentiable(a) for a in values.pick(avals, flags)]
    if any(wrong) or type(inputs[0]) is Linear:
        raise NotLinear.at(primitive, inputs)


def _sums_once(n: Any, consts: Sequence) -> None:
    """Complain about a sum over devices in a step that some of them do not take."""
    axes = _axes(values.typeof(n))
    if any(axes - _axes(x.aval) for x in consts):
        raise operations.summed_in_each_step(sorted(axes))


def _axes(aval: Any) -> frozenset:
    """The axes of the mesh over which values of this type vary."""
    kind = getattr(aval, "manual_axis_type", None)
    return frozenset(kind.varying if kind else ())


class CountedRule(Rule):
    """A loop of pairs; its transpose runs backwards."""

    may_split = True

    def forward(self, primitive, primals, tangents, params):
        return self._with_tangents(primals, tangents, Counted(**params), jvp_jaxpr, True)

    def linearize(self, primitive, primals, tangents, params):
        loop = Counted(**params)
        n, consts, carry = loop.parts(primals)
        outs = counted_loop(n, loop, consts, carry)
        return outs, self._with_tangents(primals, tangents, loop, by_halves, False)[1]

    def _with_tangents(self, primals, tangents, loop, derive, both):
        (n, consts, carry), (_, k_dots, c_dots) = loop.parts(primals), loop.parts(tangents)
        avals, k = loop.step.out_avals, values.moving(k_dots)
        c = settled(derive, loop.step, k, values.moving(c_dots))
        step = paired(loop.step, (len(k), len(c)), (*k, *c), c, derive)
        consts = [*consts, *values.pick(k_dots, k)]
        carry = [*carry, *started(c_dots, c, avals)]
        moved = values.pick(loop.wanted, c)
        wanted = (*[flag and both for flag in loop.wanted], *moved)
        ends = (*loop.ends, *values.pick(loop.ends, c))
        pairs = Counted(step, len(consts), wanted, ends, loop.kept)
        outs = counted_loop(n, pairs, consts, carry)
        out_avals, count = values.pick(avals, loop.wanted), sum(loop.wanted) * both
        y_dots = values.with_zeros(outs[count:], values.pick(c, loop.wanted), out_avals)
        return outs[:count], y_dots

    def transpose(self, primitive, cotangents, inputs, params):
        loop = Counted(**params)
        n, consts, carry = loop.parts(inputs)
        k, start = values.linear(consts), values.linear(carry)
        c = settled(reached, loop.step, k, start)
        _linear_in(primitive, inputs, (*k, *c), loop.step.in_avals)
        _sums_once(n, values.pick(consts, k))
        step, back = transposed_step(loop.step, k, c)
        (known, k_symbols), (first, _) = values.part(consts, k), values.part(carry, c)
        y_bars = values.with_zeros(cotangents, loop.wanted, loop.step.out_avals)
        bars = [Zero(x.aval) for x in k_symbols] + values.pick(y_bars, c)
        bars = [*map(as_carried, bars, bar_avals(loop.step, (*k, *c)))]
        wanted = (*[True] * sum(k), *values.pick(start, c))
        c_ends, own_ends = values.part(loop.ends, c)
        ends = tuple(c_ends), (*[not np.ndim(n)] * sum(k), *own_ends)
        way_back = Reversed(step, back, len(known), len(first), wanted, ends, loop.kept)
        outs = reversed_loop(n, way_back, known, first, bars)
        k_bars, c_bars = outs[: sum(k)], outs[sum(k) :]
        return [None, *_placed(k_bars, k), *_placed(c_bars, start)]

    def depends(self, params, inputs):
        loop = Counted(**params)
        _, k, c = loop.parts(inputs)
        flags = settled(reached, loop.step, k, c)
        return [inputs[0] or flag for flag in values.pick(flags, loop.wanted)]

    def split(self, primitive, inputs, owned, params):
        loop, flags = Counted(**params), self.depends(params, owned)
        n, consts, carry = loop.parts(_known(inputs, owned))
        rest = iter(flags)
        wanted = tuple([flag and not next(rest) for flag in loop.wanted])
        outs = counted_loop(n, loop._replace(wanted=wanted), consts, carry)
        written = jx.current_trace().write(primitive, inputs, params)
        return values.merge(outs, values.pick(written, flags), flags)

    def trim(self, params, wanted):
        loop = Counted(**params)
        given = iter(wanted)
        wanted_now = tuple([flag and next(given) for flag in loop.wanted])
        step, read, stay = trimmed(loop.step, loop.consts, wanted_now)
        kept = tuple(values.pick(wanted_now, stay)), tuple(values.pick(loop.ends, stay))
        shorter = Counted(step, sum(read), *kept, loop.kept)
        return Trimmed(shorter._asdict(), (True, *read, *stay), wanted)


class ReversedRule(Rule):
    """A loop of pairs, or one that runs forward and then back."""

    may_split = True

    def forward(self, primitive, primals, tangents, params):
        return self._with_tangents(primals, tangents, Reversed(**params), jvp_jaxpr, True)

    def linearize(self, primitive, primals, tangents, params):
        loop = Reversed(**params)
        outs = reversed_loop(*_arranged(loop, primals))
        return outs, self._with_tangents(primals, tangents, loop, by_halves, False)[1]

    def _with_tangents(self, primals, tangents, loop, derive, both):
        n, consts, carry, bars = loop.parts(primals)
        _, k_dots, c_dots, b_dots = loop.parts(tangents)
        k = values.moving(k_dots)
        c = settled(derive, loop.step, k, values.moving(c_dots))
        b = settled(derive, loop.back, (*k, *c), values.moving(b_dots))
        step = paired(loop.step, (len(k), len(c)), (*k, *c), c, derive)
        sizes = len(k), len(c), len(b)
        back = paired(loop.back, sizes, (*k, *c, *b), b, derive)
        b_avals = loop.back.out_avals
        consts = [*consts, *values.pick(k_dots, k)]
        carry = [*carry, *started(c_dots, c, loop.step.out_avals)]
        bars = [*bars, *started(b_dots, b, b_avals)]
        wanted = *[flag and both for flag in loop.wanted], *values.pick(loop.wanted, b)
        c_ends, b_ends = loop.ends
        ends = (*c_ends, *values.pick(c_ends, c)), (*b_ends, *values.pick(b_ends, b))
        pairs = Reversed(step, back, len(consts), len(carry), wanted, ends, loop.kept)
        outs = reversed_loop(n, pairs, consts, carry, bars)
        out_avals, count = values.pick(b_avals, loop.wanted), sum(loop.wanted) * both
        dots = values.with_zeros(outs[count:], values.pick(b, loop.wanted), out_avals)
        return outs[:count], dots

    def transpose(self, primitive, cotangents, inputs, params):
        loop = Reversed(**params)
        n, consts, carry, bars = loop.parts(inputs)
        k, c_start, b_start = map(values.linear, (consts, carry, bars))
        c = settled(reached, loop.step, k, c_start)
        b = settled(reached, loop.back, (*k, *c), b_start)
        _linear_in(primitive, inputs, (*k, *c, *b), loop.back.in_avals)
        ahead, back = transposed_back(loop.step, ref(loop.back), k, c, b)
        known, k_symbols = values.part(consts, k)
        first, last = values.part(carry, c)[0], values.part(bars, b)[0]
        u = values.with_zeros(cotangents, loop.wanted, loop.back.out_avals)
        u_avals = bar_avals(loop.back, (*[False] * (len(k) + len(c)), *b))
        u = [*map(as_carried, values.pick(u, b), u_avals)]
        (c_ends, own_c), (b_ends, own_b) = (
            values.part(ends, flags) for ends, flags in zip(loop.ends, (c, b), strict=True)
        )
        # First forward, with the known carry: to the cotangents of the last bars.
        ends, carried = (*c_ends, *own_b), [*first, *u]
        wanted = (*[False] * len(first), *values.pick(b_start, b))
        along = Counted(ahead, len(known), wanted, ends, loop.kept)
        b_bars = counted_loop(n, along, known, carried)
        # Then back: to the cotangents of the constants and of the first carry.
        given = [*last, *map(values.zeros, bar_avals(loop.step, (*k, *c)))]
        k_ends = [not np.ndim(n)] * len(k_symbols)
        all_ends = ends, (*b_ends, *k_ends, *own_c)
        wanted = (*[False] * len(last), *[True] * sum(k), *values.pick(c_start, c))
        way_back = Reversed(ahead, back, len(known), len(carried), wanted, all_ends, loop.kept)
        outs = reversed_loop(n, way_back, known, carried, given)
        k_bars, c_bars = outs[: sum(k)], outs[sum(k) :]
        return [None, *_placed(k_bars, k), *_placed(c_bars, c_start), *_placed(b_bars, b_start)]

    def depends(self, params, inputs):
        loop = Reversed(**params)
        n, k, c, b = loop.parts(inputs)
        c = settled(reached, loop.step, k, c)
        b = settled(reached, loop.back, (*k, *c), b)
        return [n or flag for flag in values.pick(b, loop.wanted)]

    def split(self, primitive, inputs, owned, params):
        loop, flags = Reversed(**params), self.depends(params, owned)
        rest = iter(flags)
        wanted = tuple([flag and not next(rest) for flag in loop.wanted])
        outs = reversed_loop(*_arranged(loop._replace(wanted=wanted), _known(inputs, owned)))
        written = jx.current_trace().write(primitive, inputs, params)
        return values.merge(outs, values.pick(written, flags), flags)


def _arranged(loop: Reversed, inputs: Sequence) -> tuple:
    n, *rest = loop.parts(inputs)
    return n, loop, *rest


def _known(inputs: Sequence, owned: Sequence[bool]) -> list:
    """The inputs, with zeros for those that a tape owns; the rest does not depend on them."""
    return [values.zeros(x.aval) if flag else x for x, flag in zip(inputs, owned, strict=True)]


def _placed(bars: Sequence, flags: Sequence[bool]) -> list:
    """The bars of the inputs that have the flag."""
    rest = iter(bars)
    return [next(rest) if flag else None for flag in flags]


call(counted_p, CountedRule())
call(reversed_p, ReversedRule())
