"""Primitives that carry programs: derive these programs, and bind the call with the results.

    y = call[f] x       forward:      call[jvp f]
                        linearize:    call[primal half of f],  then  call[linear half of f]
                        transpose:    call[transpose of f]

A tape must *split* a call if some of its results do not depend on the tape.  Splitting and
linearizing are the same operation: make two programs, `known -> (known outputs, residuals)` and
`(residuals, linear) -> linear outputs`, and bind the call twice.  They differ in how they make the
two programs: linearizing differentiates, splitting follows which values depend on which.

The rule of a primitive states which programs it carries, and how to bind it with other programs.

Read next: `odeint.py`, a solver of JAX in forward mode.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Literal, Var

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.forward import jvp_jaxpr
from functrans.linearize import linearize_jaxpr
from functrans.programs.halves import Address, Halves, divided, located, reached_outputs
from functrans.programs.jitted import Role, roles
from functrans.programs.live import either, reading, taking
from functrans.reverse import transpose_jaxpr
from functrans.rules import NotLinear, Rule, Trimmed
from functrans.tracer import stage
from functrans.values import Flags

Roles = Sequence[Role | None]


class CallRule(Rule):
    """Derives the programs that an equation carries, and binds the equation with the results."""

    may_split = True
    head = 0
    """The number of inputs before those of the programs: 1 for the index of a branch."""

    def bodies(self, params: dict) -> Sequence[ClosedJaxpr]:
        """The programs; all take and give the same types."""
        raise NotImplementedError

    def again(
        self, primitive: Any, params: dict, bodies: Sequence, inputs: list, ins: Roles, outs: Roles
    ) -> list:
        """Bind the equation with other programs; `ins` and `outs` are the roles of the inputs and
        outputs of these."""
        raise NotImplementedError

    def with_bodies(self, params: dict, bodies: Sequence, ins: Flags, outs: Flags) -> dict | None:
        """The params with programs that have only the inputs and outputs with the flags; `None` if
        the params do not allow this."""
        return None

    def derived(self, params: dict) -> dict:
        """The params of equations on tangents or cotangents alone."""
        return params

    def derive(self, params: dict, derivation: Callable, *key: Any) -> Any:
        """Apply a derivation to the programs.

        The cache keeps a derivation as long as the first program lives. It holds the others weakly,
        for one of them may be the first program again, which its own entry must not keep alive.
        """
        first, *others = self.bodies(params)
        return derivation(first, tuple(map(weakref.ref, others)), *key)

    def halves(self, params: dict, moving: Flags) -> Cut:
        """The halves of the derivative."""
        return self.derive(params, linearized_bodies, moving)

    def forward(self, primitive, primals, tangents, params):
        dots = tangents[self.head :]
        moving = values.moving(dots)
        programs, moved = self.derive(params, pushed_bodies, moving)
        ins = [*roles("in", [True] * len(moving)), *roles("in", moving)]
        outs = [*roles("out", [True] * len(moved)), *roles("out", moved)]
        inputs = [*primals, *values.pick(dots, moving)]
        results = self.again(primitive, params, programs, inputs, ins, outs)
        ys, y_dots = results[: len(moved)], results[len(moved) :]
        return ys, values.with_zeros(y_dots, moved, [values.typeof(y) for y in ys])

    def linearize(self, primitive, primals, tangents, params):
        dots = tangents[self.head :]
        moving = values.moving(dots)
        cut = self.halves(params, moving)
        known = [*primals[self.head :]], [True] * len(moving), [True] * len(cut.moved)
        linear = values.pick(dots, moving), moving, cut.moved
        both = params, self.derived(params)
        ys, y_dots = self.twice(primitive, both, cut, primals[: self.head], known, linear)
        return ys, values.with_zeros(y_dots, cut.moved, [values.typeof(y) for y in ys])

    def transpose(self, primitive, cotangents, inputs, params):
        if any(values.linear(inputs[: self.head])):
            raise NotLinear.at(primitive, inputs[: self.head])
        linear = values.linear(inputs[self.head :])
        moving = values.moving(cotangents)
        programs, moved = self.derive(params, transposed_bodies, linear, moving)
        known, symbols = values.part(inputs[self.head :], linear)
        ins = [*roles("in", [not flag for flag in linear]), *roles("out", moving)]
        outs = values.pick(roles("in", linear), moved)
        given = [*inputs[: self.head], *known, *values.pick(cotangents, moving)]
        pulled = self.again(primitive, self.derived(params), programs, given, ins, outs)
        x_bars = values.with_zeros(pulled, moved, [x.aval for x in symbols])
        return [*[None] * self.head, *values.merge([None] * len(known), x_bars, linear)]

    def depends(self, params, inputs):
        if any(inputs[: self.head]):
            return [True] * len(self.bodies(params)[0].out_avals)
        flags = tuple(inputs[self.head :])
        return either([reached_outputs(body, flags) for body in self.bodies(params)])

    def trim(self, params, wanted):
        bodies, read = self.derive(params, trimmed_bodies, tuple(wanted))
        kept = self.with_bodies(params, bodies, read, tuple(wanted))
        return None if kept is None else Trimmed(kept, (*[True] * self.head, *read), wanted)

    def split(self, primitive, inputs, owned, params):
        flags = tuple(owned[self.head :])
        cut = self.derive(params, divided_bodies, flags)
        xs, x_dots = values.part(inputs[self.head :], flags)
        known = xs, [not flag for flag in flags], [not flag for flag in cut.moved]
        linear = x_dots, flags, cut.moved
        both = params, params
        outs = self.twice(primitive, both, cut, inputs[: self.head], known, linear)
        return values.merge(*outs, cut.moved)

    def twice(
        self, primitive: Any, params: tuple, cut: Cut, head: list, known: tuple, linear: tuple
    ) -> tuple[list, list]:
        """Bind the first half, and then the second with the residuals of the first.

        `params` are those of either half. `known` and `linear` are the inputs of a half, with the
        flags of the inputs and outputs of the original equation for which they stand.
        """
        (xs, x_flags, y_flags), (x_dots, dot_flags, moved) = known, linear
        ins, outs, new = roles("in", x_flags), roles("out", y_flags), [None] * len(cut.slots)
        results = self.again(primitive, params[0], cut.first, [*head, *xs], ins, [*outs, *new])
        ys, slots = results[: len(outs)], results[len(outs) :]
        at_hand = {"in": (xs, ins), "out": (ys, outs)}
        read = [[column[at] for column in at_hand[kind]] for kind, at in cut.read]
        inputs = [*head, *(x for x, _ in read), *slots, *x_dots]
        in_roles = [*(role for _, role in read), *new, *roles("in", dot_flags)]
        out_roles = roles("out", moved)
        return ys, self.again(primitive, params[1], cut.second, inputs, in_roles, out_roles)


# ---- derived programs; all bodies give the same types --------------------------------------------


class Bodies(NamedTuple):
    """A derived program for each body, and which of the outputs after the values move."""

    programs: tuple[ClosedJaxpr, ...]
    moved: Flags


class Cut(NamedTuple):
    """Both halves of each body, and the slots between them.

    A first half gives `(y, slots)`; a second takes `(its reads of x and y, slots, x_dot)`.
    """

    first: tuple[ClosedJaxpr, ...]
    second: tuple[ClosedJaxpr, ...]
    read: list[Address]
    slots: list
    """The types of the slots; each body has a slot for each of its fresh residuals."""
    moved: Flags


@caches.by_program
def pushed_bodies(first: ClosedJaxpr, others: tuple, moving: Flags) -> Bodies:
    """The programs of `(x, x_dot) -> (y, y_dot)`."""
    derived = [jvp_jaxpr(body, moving) for body in together(first, others)]
    return _agreeing(derived, len(first.out_avals), first.out_avals)


@caches.by_program
def transposed_bodies(first: ClosedJaxpr, others: tuple, linear: Flags, moving: Flags) -> Bodies:
    """The programs of `(known x, y_bar) -> x_bar`."""
    derived = [transpose_jaxpr(body, linear, moving) for body in together(first, others)]
    return _agreeing(derived, 0, values.pick(first.in_avals, linear))


@caches.by_program
def linearized_bodies(first: ClosedJaxpr, others: tuple, moving: Flags) -> Cut:
    """The halves of the derivative."""
    derived = [linearize_jaxpr(body, moving) for body in together(first, others)]
    moved, avals = either([linearized.moved for linearized in derived]), first.out_avals
    halves = [
        located(primal, giving_zeros(linear, 0, own, moved, avals), moved, len(moved))
        for primal, linear, own in derived
    ]
    return sharing_slots(halves, tangent_avals(first, moving))


@caches.by_program
def divided_bodies(first: ClosedJaxpr, others: tuple, linear: Flags) -> Cut:
    """Two programs: one without the linear inputs, and one that depends on them."""
    bodies = together(first, others)
    moved = either([divided(body, linear).linear for body in bodies])
    parts = [divided(body, linear, moved) for body in bodies]
    count = len(moved) - sum(moved)
    halves = [located(one, two, moved, count) for one, two, _ in parts]
    return sharing_slots(halves, values.pick(first.in_avals, linear))


@caches.by_program
def trimmed_bodies(first: ClosedJaxpr, others: tuple, outputs: Flags) -> tuple[tuple, Flags]:
    """The programs without the work for other outputs, and which inputs they still read."""
    shorter = [reading(body, outputs) for body in together(first, others)]
    read = either([flags for _, flags in shorter])
    return tuple([taking(program, read) for program, _ in shorter]), read


def tangent_avals(program: ClosedJaxpr, moving: Flags) -> list:
    """The types of the tangents of those inputs that move."""
    return [values.tangent_aval(aval) for aval in values.pick(program.in_avals, moving)]


def together(first: ClosedJaxpr, others: tuple) -> list[ClosedJaxpr]:
    return [first, *(other() for other in others)]


def _agreeing(derived: Sequence[tuple], count: int, avals: Sequence) -> Bodies:
    moved = either([own for _, own in derived])
    return Bodies(tuple(giving_zeros(p, count, own, moved, avals) for p, own in derived), moved)


def giving_zeros(
    program: ClosedJaxpr, count: int, own: Flags, wanted: Flags, avals: Sequence
) -> ClosedJaxpr:
    """The program whose results after `count` include zeros for those that move elsewhere."""
    if own == wanted:
        return program

    def written_out(*inputs):
        outs = jx.evaluate(program, *inputs)
        tangents = values.with_zeros(outs[count:], own, avals)
        return [*outs[:count], *map(values.instantiate, values.pick(tangents, wanted))], None

    return stage(written_out, program.in_avals, program.jaxpr.debug_info)[0]


def sharing_slots(halves: Sequence[Halves], linear_avals: Sequence) -> Cut:
    """The halves as programs that take and give the same types."""
    slots, locations = _share([half.fresh for half in halves])
    read = sorted({s for half in halves for s in half.addresses if s.kind in ("in", "out")})
    pairs = list(zip(halves, locations, strict=True))
    first = tuple(_with_slots(half, location, slots) for half, location in pairs)
    second = tuple(_reading(half, location, read, slots) for half, location in pairs)
    return Cut(first, second, read, slots, halves[0].moved)


def _share(residuals: Sequence[list]) -> tuple[list, list[list[int]]]:
    """Slots for the residuals of all bodies, and for each residual the number of its slot."""
    slots: list = []
    located = []
    for avals in residuals:
        free = list(range(len(slots)))
        location = []
        for aval in avals:
            at = next((i for i in free if slots[i] == aval), len(slots))
            if at == len(slots):
                slots.append(aval)
            else:
                free.remove(at)
            location.append(at)
        located.append(location)
    return slots, located


def _with_slots(half: Halves, location: list[int], slots: list) -> ClosedJaxpr:
    """The first half, with zeros in the slots that it does not use."""
    program, count = half.first, half.count
    if location == list(range(len(slots))):
        return program

    def filling(*inputs):
        outs = jx.evaluate(program, *inputs)
        own = dict(zip(location, outs[count:], strict=True))
        rest = [own[i] if i in own else values.zeros(aval) for i, aval in enumerate(slots)]
        return [*outs[:count], *rest], None

    return stage(filling, program.in_avals, program.jaxpr.debug_info)[0]


def _reading(half: Halves, location: list[int], read: list[Address], slots: list) -> ClosedJaxpr:
    """The second half, with inputs for its reads of x and y and for the slots."""
    jaxpr, types = half.second.jaxpr, {"in": half.first.in_avals, "out": half.first.out_avals}
    at_hand = {address: Var(types[address.kind][address.at]) for address in read}
    handed = [Var(aval) for aval in slots]
    at_hand |= {Address("fresh", i): handed[at] for i, at in enumerate(location)}
    residuals, rest = jaxpr.invars[: len(half.addresses)], jaxpr.invars[len(half.addresses) :]
    constants: dict[Var, Any] = {}
    renamed: dict[Var, Any] = {}
    for variable, address in zip(residuals, half.addresses, strict=True):
        if address.kind != "value":
            renamed[variable] = at_hand[address]
        elif np.ndim(address.at) == 0 and np.isscalar(address.at):
            renamed[variable] = Literal(address.at, variable.aval)
        else:
            constants[variable] = address.at

    def rename(atoms: Sequence) -> list:
        return [a if type(a) is Literal else renamed.get(a, a) for a in atoms]

    equations = [e.replace(invars=rename(e.invars)) for e in jaxpr.eqns]
    inputs = [*(at_hand[address] for address in read), *handed, *rest]
    constvars, consts = [*jaxpr.constvars, *constants], [*half.second.consts, *constants.values()]
    return jx.closed(inputs, rename(jaxpr.outvars), equations, jaxpr.debug_info, constvars, consts)
