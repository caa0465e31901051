"""The pieces that programs are taken apart and put together with, each on a program of a few lines.

What depends on what, which outputs are new, how a template is spliced, and what a loop hoists,
stacks, makes again, or sums afterwards.  Each is checked by its structure, and by numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.experimental import io_callback
from jax.extend.core import ClosedJaxpr, Literal, Var

from functrans import jaxpr as jx
from functrans import values
from functrans.control_flow import base
from functrans.forward import jvp_jaxpr
from functrans.linearize import linearize_jaxpr
from functrans.programs import halves
from functrans.programs.bases import first_products
from functrans.programs.broadcasts import broadcast_last
from functrans.programs.halves import Address, divided, hoist, located
from functrans.programs.live import any_input, depends, giving, live, live_and_free, reached, settle
from functrans.programs.outputs import new_outputs
from functrans.programs.sums import sums_after
from functrans.templates import Template
from functrans.tracer import StagingTrace, stage

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

X = np.asarray([0.3, 0.7, 1.1])
Y = np.asarray([2.0, -1.0, 0.5])
TABLE = np.asarray([1.0, 4.0, 9.0])


def staged(fun: Callable, *args: Any) -> ClosedJaxpr:
    """The program of a function that returns a list or a tuple."""
    avals = [jax.typeof(x) for x in args]
    return stage(lambda *xs: (list(fun(*xs)), None), avals, jx.debug_info("test", fun))[0]


def names(equations: Any) -> list[str]:
    return [equation.primitive.name for equation in equations]


def names_of(program: ClosedJaxpr) -> list[str]:
    return names(program.jaxpr.eqns)


def close(got: Any, want: Any) -> None:
    chex.assert_trees_all_close([*got], [*want], rtol=1e-12)


# ---- what depends on what ------------------------------------------------------------------------


def five_equations(x, y):
    a = lax.sin(x)
    b = lax.mul(a, y)
    c = lax.exp(y)
    d = lax.cos(c)
    return a, b, c, lax.add(d, 1.0)


def test_live_equations_are_those_that_the_outputs_need() -> None:
    program = staged(five_equations, X, Y)
    a, b, c, _ = program.jaxpr.outvars
    assert names(live(program.jaxpr.eqns, [b])) == ["sin", "mul"]
    assert names(live(program.jaxpr.eqns, [c, a])) == ["sin", "exp"]
    assert live(program.jaxpr.eqns, []) == []
    assert live(program.jaxpr.eqns, [Literal(1.0, c.aval), program.jaxpr.invars[0]]) == []


def test_what_has_an_effect_is_live() -> None:
    def printing(x, y):
        a = lax.sin(x)
        jax.debug.callback(lambda a: None, a)
        return a, lax.cos(y)

    program = staged(printing, X, Y)
    assert names(live(program.jaxpr.eqns, [])) == ["sin", "debug_callback"]


def test_free_variables_are_read_and_given_by_no_equation() -> None:
    program = staged(five_equations, X, Y)
    (x, y), (_, b, c, d) = program.jaxpr.invars, program.jaxpr.outvars
    assert live_and_free(program.jaxpr.eqns, [b])[1] == [x, y]
    kept, free = live_and_free(program.jaxpr.eqns[3:], [d])
    assert names(kept) == ["cos", "add"]
    assert free == [c]
    assert live_and_free([], [x]) == ([], [x])


def test_a_program_with_other_outputs() -> None:
    program = staged(five_equations, X, Y)
    _, b, _, _ = program.jaxpr.outvars
    shorter = giving(program, [b, program.jaxpr.invars[1]])
    assert names_of(shorter) == ["sin", "mul"]
    assert shorter.jaxpr.invars == program.jaxpr.invars
    close(jx.evaluate(shorter, X, Y), [np.sin(X) * Y, Y])


def test_reached_variables_depend_on_the_seeds() -> None:
    program = staged(five_equations, X, Y)
    (x, y), outs = program.jaxpr.invars, program.jaxpr.outvars

    def flags(*seeds: Var) -> list[bool]:
        found = reached(program.jaxpr.eqns, seeds)
        return [out in found for out in outs]

    assert flags(x) == [True, True, False, False]
    assert flags(y) == [False, True, True, True]
    assert flags(x, y) == [True] * 4
    assert flags(outs[2]) == [False, False, True, True]
    assert flags() == [False] * 4


def three_results(x, y, z):
    return lax.sin(x), lax.mul(x, y), lax.exp(z)


def in_scan(x, y, z):
    """What is in the last place is in the first two steps later."""
    (a, b, c), ys = lax.scan(lambda c, _: ((c[1], c[2], c[2]), lax.cos(c[1])), (x, y, z), None, 3)
    return a, b, c, ys


def in_scan_with_constants(x, y, z):
    c, ys = lax.scan(lambda c, s: (c * x, (s * y, s)), x, z)
    return c, *ys


def in_cond(x, y, z):
    return lax.cond(True, three_results, lambda x, y, z: (z, y, z), x, y, z)


def in_cond_of_a_value(x, y, z):
    return lax.cond(x[0] > 0, lambda: (y, z), lambda: (z, 2.0 * z))


def in_while(x, y, z):
    """The second is added to the first; the condition reads the third."""

    def body(c):
        return c[0] + c[1], 2.0 * c[1], c[2] + 1.0

    return lax.while_loop(lambda c: jnp.sum(c[2]) < 0, body, (x, y, z))


def in_while_that_counts(x, y, z):
    def body(c):
        i, x, y, z = c
        return i + 1, x + y, y, z * z

    return lax.while_loop(lambda c: c[0] < 3, body, (0, x, y, z))[1:]


def nested(x, y, z):
    """A call in a branch in a step."""
    call = jax.jit(lambda x, y: (lax.sin(x), lax.cos(y)))

    def step(c, _):
        return lax.cond(True, call, lambda x, y: (x, y), *c), None

    return *lax.scan(step, (x, y), None, 2)[0], jax.checkpoint(lambda z: z * 2.0)(z)


DEPENDENCE: dict[str, tuple[Callable, dict[tuple, list]]] = {
    "jit": (
        lambda *xs: jax.jit(three_results)(*xs),
        {(1, 0, 0): [1, 1, 0], (0, 1, 0): [0, 1, 0], (0, 0, 1): [0, 0, 1], (0, 0, 0): [0, 0, 0]},
    ),
    "checkpoint": (
        lambda *xs: jax.checkpoint(three_results)(*xs),
        {(1, 0, 0): [1, 1, 0], (0, 1, 1): [0, 1, 1]},
    ),
    "scan": (in_scan, {(1, 0, 0): [1, 0, 0, 0], (0, 1, 0): [1, 1, 0, 1], (0, 0, 1): [1, 1, 1, 1]}),
    "scan with constants": (
        in_scan_with_constants,
        {(1, 0, 0): [1, 0, 0], (0, 1, 0): [0, 1, 0], (0, 0, 1): [0, 1, 1]},
    ),
    "cond": (
        in_cond,
        {(1, 0, 0): [1, 1, 0], (0, 1, 0): [0, 1, 0], (0, 0, 1): [1, 0, 1]},
    ),
    "cond of a value": (
        in_cond_of_a_value,
        {(1, 0, 0): [1, 1], (0, 1, 0): [1, 0], (0, 0, 1): [1, 1]},
    ),
    "while": (in_while, {(1, 0, 0): [1, 0, 0], (0, 1, 0): [1, 1, 0], (0, 0, 1): [1, 1, 1]}),
    "while that counts": (
        in_while_that_counts,
        {(1, 0, 0): [1, 0, 0], (0, 1, 0): [1, 1, 0], (0, 0, 1): [0, 0, 1]},
    ),
    "nested": (nested, {(1, 0, 0): [1, 0, 0], (0, 1, 0): [0, 1, 0], (0, 0, 1): [0, 0, 1]}),
}


@pytest.mark.parametrize("name", DEPENDENCE)
def test_dependence_goes_through_what_is_inside(name: str) -> None:
    """Exactly: an output has the flag if its derivative is not zero, and no other has."""
    fun, cases = DEPENDENCE[name]
    program = jax.make_jaxpr(lambda *xs: list(fun(*xs)))(X, Y, X + Y)
    for inputs, want in cases.items():
        flags = tuple(map(bool, inputs))
        assert halves.reached_outputs(program, flags) == tuple(map(bool, want))


@pytest.mark.parametrize("name", ["jit", "checkpoint"])
def test_an_equation_says_which_of_its_outputs_depend_on_which_inputs(name: str) -> None:
    fun, cases = DEPENDENCE[name]
    (equation,) = jax.make_jaxpr(lambda *xs: list(fun(*xs)))(X, Y, X + Y).jaxpr.eqns
    for inputs, want in cases.items():
        assert [*depends(equation, [*map(bool, inputs)])] == [*map(bool, want)]
        assert any_input(equation, [*map(bool, inputs)]) == [any(inputs)] * len(want)


def test_other_equations_depend_on_each_input() -> None:
    (equation,) = staged(lambda x, y: [lax.mul(x, y)], X, Y).jaxpr.eqns
    assert [*depends(equation, [False, True])] == [True]
    assert [*depends(equation, [False, False])] == [False]


# ---- outputs that are new ------------------------------------------------------------------------


def test_outputs_that_are_inputs_or_other_outputs_are_not_new() -> None:
    def fun(x, y):
        s = lax.sin(y)
        return x, s, y, s, 2.0, lax.mul(s, x), x

    program = staged(fun, X, Y)
    new = new_outputs(program)
    assert new.positions == [1, 4, 5]
    assert new.addresses == [
        ("in", 0), ("new", 0), ("in", 1), ("new", 0), ("new", 1), ("new", 2), ("in", 0)
    ]  # fmt: skip
    assert names_of(new.program) == ["sin", "mul"]
    outs = new.all_outputs([X, Y], jx.evaluate(new.program, X, Y))
    close(outs, jx.evaluate(program, X, Y))
    assert outs[0] is X
    assert outs[1] is outs[3]


def test_a_program_all_of_whose_outputs_are_new_is_kept() -> None:
    new = new_outputs(staged(five_equations, X, Y))
    assert new.program is None
    assert new.positions == [0, 1, 2, 3]


# ---- templates -----------------------------------------------------------------------------------


def with_a_table(x, y):
    with jax.named_scope("inner"):
        a = lax.mul(x, jnp.asarray(TABLE))
    return lax.add(lax.sin(a), 2.0), y, a


def spliced(program: ClosedJaxpr, at: jx.Place | None) -> tuple[StagingTrace, list, list]:
    """Splice a template into a new trace; the trace, the atoms handed in, and the outputs."""
    trace, template = StagingTrace(), Template(program)
    inputs = [trace.new_input(aval).atom for aval in program.in_avals]
    registers = [*map(trace.atom, template.consts), *template.literals, *inputs]
    handed_in = [*registers]
    return trace, handed_in, template.splice(registers, trace.equations, at)


def test_a_template_is_spliced() -> None:
    """The same equations, with new variables; literals and constants as they are."""
    program = staged(with_a_table, X, Y)
    trace, handed_in, outputs = spliced(program, None)
    mine, theirs = trace.equations, program.jaxpr.eqns
    assert names(mine) == names(theirs) == ["mul", "sin", "add"]
    assert [e.params for e in mine] == [e.params for e in theirs]
    assert [v.aval for e in mine for v in e.outvars] == [v.aval for e in theirs for v in e.outvars]
    made = {v for e in mine for v in e.outvars}
    assert len(made) == 3
    assert made.isdisjoint(v for e in theirs for v in e.outvars)
    table, literal, x, y = handed_in
    assert mine[0].invars == [x, table]
    assert mine[1].invars == mine[0].outvars
    assert mine[2].invars == [mine[1].outvars[0], literal]
    assert literal.val == 2.0
    assert outputs == [mine[2].outvars[0], y, mine[0].outvars[0]]
    jaxpr, consts = trace.finish([trace.value(a) for a in outputs], program.jaxpr.debug_info)
    assert len(consts) == 1
    want = [np.sin(X * TABLE) + 2, Y, X * TABLE]
    close(jx.evaluate(jx.with_constants(jaxpr, consts), X, Y), want)


def test_a_template_is_spliced_twice() -> None:
    """Into one trace, where the second reads what the first gives."""
    template = Template(staged(lambda x: [lax.mul(lax.sin(x), 3.0)], X))
    trace = StagingTrace()
    atoms = [trace.new_input(jax.typeof(X)).atom]
    for _ in range(2):
        atoms = template.splice([*template.literals, *atoms], trace.equations, None)
    jaxpr, _ = trace.finish([*map(trace.value, atoms)], jx.debug_info("test", spliced))
    assert names(jaxpr.eqns) == ["sin", "mul"] * 2
    assert len({v for e in jaxpr.eqns for v in e.outvars}) == 4
    close(jx.evaluate(jx.with_constants(jaxpr, []), X), [3 * np.sin(3 * np.sin(X))])


def scopes(equations: Any) -> list[str]:
    return [str(e.source_info.name_stack) for e in equations]


def test_the_scopes_of_what_is_spliced() -> None:
    """Each equation in its own scope, within the one that is open; or all at one place."""
    program = staged(with_a_table, X, Y)
    assert scopes(program.jaxpr.eqns) == ["inner", "", ""]
    with jax.named_scope("outer"):
        each, _, _ = spliced(program, None)
        place = jx.place_of(None)
    assert scopes(each.equations) == ["outer/inner", "outer", "outer"]
    assert [e.ctx for e in each.equations] == [e.ctx for e in program.jaxpr.eqns]
    with jax.named_scope("elsewhere"):
        at_one, _, _ = spliced(program, place)
    assert scopes(at_one.equations) == ["outer"] * 3
    assert all(e.ctx is place.context for e in at_one.equations)
    assert all(e.source_info is place.source for e in at_one.equations)


def test_the_place_of_an_equation() -> None:
    (first, *_) = staged(with_a_table, X, Y).jaxpr.eqns
    assert jx.place_of(first) == (first.source_info, first.ctx)
    with jax.named_scope("outer"):
        source, context = jx.place_of(first)
        assert str(source.name_stack) == "outer/inner"
        assert source.traceback is first.source_info.traceback
        assert context is first.ctx
        with jx.in_place_of(first):
            (inside,) = staged(lambda x: [lax.sin(x)], X).jaxpr.eqns  # a stage has its own scopes
            (written,) = jax.make_jaxpr(lax.sin)(X).jaxpr.eqns
    assert str(inside.source_info.name_stack) == ""
    assert written.source_info.traceback is not None


def test_a_template_is_evaluated() -> None:
    """Equation by equation, and compiled."""
    template = Template(staged(with_a_table, X, Y))
    want = [np.sin(X * TABLE) + 2, Y, X * TABLE]
    close(template.evaluate(X, Y), want)
    outs = template.compiled(X, Y)
    close(outs, want)
    assert outs[1] is Y  # an output that is an input is not copied
    assert [a.shape for a in template.out_avals] == [(3,)] * 3


def test_a_template_without_work_compiles_nothing() -> None:
    template = Template(staged(lambda x, y: [y, x, y], X, Y))
    x, y = jnp.asarray(X), jnp.asarray(Y)
    outs = template.compiled(x, y)
    assert [out is want for out, want in zip(outs, [y, x, y], strict=True)] == [True] * 3
    assert not hasattr(template.compiled, "lower")


# ---- residuals, and where they are ---------------------------------------------------------------


def test_residuals_that_are_at_hand_are_not_fresh() -> None:
    table = jnp.asarray(TABLE)

    def first(x, y):
        a = lax.sin(x)
        b = lax.mul(a, y)
        return a, b, x, a, table, 2.0, lax.cos(x), lax.cos(x), y, lax.mul(b, table)

    program = staged(first, X, Y)
    second = staged(lambda *xs: xs, *program_outputs(program, 2), X)
    half = located(program, second, (True, True), 2)
    kinds = [(s.kind, s.at) for s in half.addresses if s.kind != "value"]
    assert kinds == [("in", 0), ("out", 0), ("fresh", 0), ("fresh", 1), ("in", 1), ("fresh", 2)]
    array, number = (s.at for s in half.addresses if s.kind == "value")
    assert array is table
    assert number == 2.0
    assert half.count == 2
    assert names_of(half.first) == ["sin", "mul", "cos", "cos", "mul"]
    assert [a.shape for a in half.fresh] == [(3,)] * 3
    read_back(half, program)


def program_outputs(program: ClosedJaxpr, start: int) -> list:
    return [np.zeros(a.shape, a.dtype) for a in program.out_avals[start:]]


def read_back(half: halves.Halves, program: ClosedJaxpr) -> None:
    """At the addresses is what the whole program has given as residuals."""
    outs = jx.evaluate(half.first, X, Y)
    at_hand = halves.numbered("in", [X, Y]) | halves.numbered("out", outs[: half.count])
    at_hand |= halves.numbered("fresh", outs[half.count :])
    got = [address.read(at_hand) for address in half.addresses]
    close(got, jx.evaluate(program, X, Y)[half.count :])


def test_residuals_that_are_not_at_hand_are_fresh() -> None:
    """A loop does not stack its carry: neither the one that comes in, nor the one that goes out."""

    def first(x, y):
        a, b = lax.sin(x), lax.cos(y)
        return a, b, x, y, a, b

    program = staged(first, X, Y)
    half = located(program, program, (True,), 2, [False, True], [False, True])
    assert [*half.addresses] == [
        Address("fresh", 0), Address("in", 1), Address("fresh", 1), Address("out", 1)
    ]  # fmt: skip
    read_back(half, program)


def test_equal_residuals_are_one() -> None:
    def first(x, y):
        a = lax.sin(x)
        return y, a, a, a

    half = located(staged(first, X, Y), staged(first, X, Y), (True,), 1)
    assert half.addresses == [Address("fresh", 0)] * 3
    assert len(half.fresh) == 1


# ---- a program, divided --------------------------------------------------------------------------


def mixed(x, t):
    """Known, linear, linear as it came, known as it came, and a linear one of both."""
    a = lax.sin(x)
    return a, lax.mul(lax.cos(x), t), t, x, lax.mul(a, lax.mul(t, 2.0))


def in_a_scan(fun: Callable) -> Callable:
    def looped(x, t):
        stacked = lax.scan(lambda c, _: (c, fun(x, t)), 0, None, length=1)[1]
        return [y[0] for y in stacked]

    return looped


def in_a_cond(fun: Callable) -> Callable:
    return lambda x, t: lax.cond(x[0] > 0, fun, lambda x, t: (x, x * t, t, x, t), x, t)


WRAPS = {"plain": lambda f: f, "jit": jax.jit, "scan": in_a_scan, "cond": in_a_cond}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_program_is_divided(wrap: str) -> None:
    """What does not depend on `t`, from `x` alone; and what does, from that and `t`."""
    program = staged(WRAPS[wrap](mixed), X, Y)
    first, second, linear = divided(program, (False, True))
    assert linear == (False, True, True, False, True)
    assert len(first.in_avals) == 1
    sine, same, *residuals = jx.evaluate(first, X)
    close([sine, same], [np.sin(X), X])
    close(jx.evaluate(second, *residuals, Y), [np.cos(X) * Y, Y, 2 * np.sin(X) * Y])
    found = reached(second.jaxpr.eqns, second.jaxpr.invars[len(residuals) :])
    assert second.jaxpr.eqns
    assert all(found.issuperset(e.outvars) for e in second.jaxpr.eqns)


def test_an_output_may_be_forced_into_the_second_half() -> None:
    program = staged(mixed, X, Y)
    forced = (True, False, False, True, False)
    first, second, linear = divided(program, (False, True), forced)
    assert linear == (True, True, True, True, True)
    residuals = jx.evaluate(first, X)
    want = [np.sin(X), np.cos(X) * Y, Y, X, 2 * np.sin(X) * Y]
    close(jx.evaluate(second, *residuals, Y), want)


# ---- loops: what is done before, in, and after a step --------------------------------------------


def of_a_step(first: Callable, count: int, carry: int, consts: int, *args: Any) -> halves.Halves:
    """The halves of a body that has `count` results, the first `carry` of which are the carry."""
    program = staged(first, *args)
    inputs = [not consts <= i < consts + carry for i in range(len(args))]
    outputs = [i >= carry for i in range(count)]
    return located(program, program, (True,), count, inputs, outputs)


def test_what_depends_on_constants_alone_is_hoisted() -> None:
    def first(k, c, x):
        s = lax.sin(k)
        return lax.mul(c, s), x, s, lax.exp(s), lax.mul(s, x), lax.cos(c), k

    half = of_a_step(first, 2, 1, 1, X, Y, X + Y)
    outer, moved = hoist(half, 1)
    assert moved.addresses == [
        Address("outer", 0), Address("outer", 1), Address("fresh", 0), Address("fresh", 1),
        Address("in", 0),
    ]  # fmt: skip
    assert names_of(outer) == ["sin", "exp"]
    close(jx.evaluate(outer, X), [np.sin(X), np.exp(np.sin(X))])
    assert names_of(moved.first) == ["sin", "mul", "mul", "cos"]  # of the sine the carry is made
    z = X + Y
    close(jx.evaluate(moved.first, X, Y, z), [Y * np.sin(X), z, np.sin(X) * z, np.cos(Y)])


def test_what_has_an_effect_is_not_hoisted() -> None:
    """Nor what is made of it, for it may be different in each step."""

    def first(k, c):
        asked = io_callback(lambda k: k + 1, jax.ShapeDtypeStruct(k.shape, k.dtype), k)
        return c, asked, lax.sin(asked), lax.sin(k)

    half = of_a_step(first, 1, 1, 1, X, Y)
    outer, moved = hoist(half, 1)
    assert moved.addresses == [Address("fresh", 0), Address("fresh", 1), Address("outer", 0)]
    assert names_of(outer) == ["sin"]
    assert not outer.jaxpr.effects
    assert names_of(moved.first) == ["io_callback", "sin"]
    close(jx.evaluate(moved.first, X, Y), [Y, X + 1, np.sin(X + 1)])


class Rotated(NamedTuple):
    """What is derived, and which of three carries moves after the step."""

    calls: int
    moved: tuple


def test_a_fixed_point_is_found_step_by_step() -> None:
    """Each step moves what moves by one place to the right."""
    asked = []

    def derive(moving: tuple) -> Rotated:
        asked.append(moving)
        return Rotated(len(asked), (False, *moving[:-1]))

    def feedback(moving: tuple, moved: tuple) -> tuple:
        return tuple(a or b for a, b in zip(moving, moved, strict=True))

    moving, derived = settle(derive, (True, False, False), feedback)
    assert moving == (True, True, True)
    assert asked == [(True, False, False), (True, True, False), (True, True, True)]
    assert derived.calls == 3
    assert settle(derive, (False, False, True), feedback)[0] == (False, False, True)
    assert len(asked) == 4


# ---- sums over the steps -------------------------------------------------------------------------


def product(x: Any, y: Any) -> Any:
    """`x^T y`."""
    return lax.dot_general(x, y, (((0,), (0,)), ((), ())))


def test_sums_of_products_are_made_after_the_loop() -> None:
    """Those of which the factors are stacked, or may be: there is memory for two of them."""

    def body(k, c, x, z):
        a = lax.sin(c)
        return (
            product(k, c),  # of a factor that is the same in each step
            lax.transpose(lax.add(product(x, c), product(x, a)), (1, 0)),
            lax.neg(product(x, c)),  # whose factors are stacked already
            lax.mul(c, k),  # no product
            product(lax.cos(c), c),  # of a factor for which there is no memory left
            lax.add(c, x),
            lax.mul(z, lax.concatenate([c] * 4, 1)),
        )

    k, carries, xs, zs = random(2, 5), random(4, 2, 5), random(4, 2, 5), random(4, 2, 20)
    program = staged(body, k, carries[0], xs[0], zs[0])
    sums = sums_after(program, ["const", "carry", "step", "step"], 5, 4)
    assert sums.stay == [True, False, False, True, True]
    assert sums.pick_stay("abcde") == ["a", "d", "e"]
    steps = [(carries[i], xs[i], zs[i]) for i in range(4)]
    want = [[*map(np.asarray, jx.evaluate(program, k, *step))] for step in steps]
    outs = [[*map(np.asarray, jx.evaluate(sums.body, k, *step))] for step in steps]
    assert names_of(sums.body).count("dot_general") == 2
    for got, whole in zip(outs, want, strict=True):
        close(got[:5], [whole[0], *whole[3:]])
    assert {len(got) for got in outs} == {7}  # three sums, two results, and two factors
    stacked = [xs, zs, *(np.stack(column) for column in list(zip(*outs, strict=True))[5:])]
    close(sums.later(stacked), [sum(column) for column in list(zip(*want, strict=True))[1:3]])


def test_sums_of_blocks() -> None:
    """Where the factors of all steps are larger than what is stacked, a block of them is made."""

    def body(c, x):
        return product(c, lax.sin(c)), lax.mul(lax.cos(c), jnp.broadcast_to(x, c.shape))

    program = staged(body, random(3, 40), random(1, 40)[0])
    start, xs = random(3, 40), random(48, 40)
    sums = sums_after(program, ["carry", "step"], 1, 48)
    # A product has 1,600 entries, and its factors 240: five steps would be too short a block.
    assert sums.block == 48
    assert sums.stay == [True]
    narrow = staged(body, random(1, 40), random(1, 40)[0])
    sums = sums_after(narrow, ["carry", "step"], 1, 48)
    assert sums.block == 16  # of 20 that there might be, as it divides 48
    assert sums.stay == [False]
    start = start[:1]

    def step(state, x):
        after, *factors = jx.evaluate(sums.body, state, x)
        return after, ([], factors)

    options = {"length": 48, "reverse": False, "unroll": 1}
    last, _, (total,) = sums.scan(step, start, xs, options)
    c, want = start, 0.0
    for x in xs:
        want, c = want + c.T @ np.sin(c), np.cos(c) * x
    close([last, total], [c, want])


def test_a_sum_whose_factors_are_larger_than_it_stays() -> None:
    """Though there is memory for them, beside what else is stacked."""

    def body(c, x, z):
        return product(x, c), lax.add(c, x), lax.sin(z)

    tall = random(20, 3)
    program = staged(body, tall, tall, random(60, 3))
    sums = sums_after(program, ["carry", "step", "step"], 1, 4)
    assert sums.stay == [True]
    assert sums.products == []
    assert names_of(sums.body) == names_of(program)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape)


# ---- a basis, and what is copied -----------------------------------------------------------------


def test_of_a_matrix_and_a_basis_the_products_are_columns() -> None:
    matrix, scale = random(4, 3), random(3)

    def linear(xs):
        (x, y) = xs
        return [lax.sin(jnp.asarray(scale)) * (jnp.asarray(matrix) @ (x * scale))[:3] + y]

    types = [jax.typeof(X), jax.typeof(Y)]
    whole = staged(lambda x, y: linear([x, y]), X, Y)
    rest, products = first_products(linear, types)
    assert "dot_general" in names_of(whole)
    assert "dot_general" not in names_of(rest)
    assert [p.shape for p in products] == [(6, 4)]
    for i, vector in enumerate(np.eye(6)):
        got = jx.evaluate(rest, vector[:3], vector[3:], *[p[i] for p in products])
        close(got, jx.evaluate(whole, vector[:3], vector[3:]))


def test_a_product_of_what_is_no_longer_a_basis_stays() -> None:
    matrix = jnp.asarray(random(3, 3))
    rest, products = first_products(lambda xs: [matrix @ jnp.cumsum(xs[0])], [jax.typeof(X)])
    assert products == []
    assert names_of(rest).count("dot_general") == 1


def test_what_is_broadcast_is_multiplied_before() -> None:
    matrix, row, full = (jnp.asarray(random(*shape)) for shape in [(3, 2), (1, 3), (4, 3)])

    def linear(x):
        wide = lax.broadcast_in_dim(x, (4, 3), (1,))
        same = lax.broadcast_in_dim(
            lax.mul(lax.broadcast_in_dim(x, (1, 3), (1,)), row), (4, 3), (0, 1)
        )
        return lax.neg(lax.dot(wide, matrix)), lax.mul(wide, full), same

    program = staged(linear, X)
    assert names_of(program)[0] == "broadcast_in_dim"
    rewritten = jx.with_constants(
        broadcast_last(jx.constants_first(program, [])[0]), program.consts
    )
    shapes: dict[str, list] = {}
    for equation in rewritten.jaxpr.eqns:
        shapes.setdefault(equation.primitive.name, []).append(equation.outvars[0].aval.shape)
    assert shapes["dot_general"] == shapes["neg"] == [(2,)]
    # The second factor of one product is not the same along the copies.
    assert sorted(shapes["mul"]) == [(3,), (4, 3)]
    assert [a.shape for a in rewritten.out_avals] == [(4, 2), (4, 3), (4, 3)]
    close(jx.evaluate(rewritten, X), jx.evaluate(program, X))


# ---- lists in which some are zero ----------------------------------------------------------------

FLAGGED = st.lists(st.tuples(st.integers(), st.booleans()))


@given(FLAGGED)
def test_merge_is_the_inverse_of_part(pairs: list) -> None:
    xs, flags = [x for x, _ in pairs], [flag for _, flag in pairs]
    rest, some = values.part(xs, flags)
    assert some == values.pick(xs, flags) == [x for x, flag in pairs if flag]
    assert rest == [x for x, flag in pairs if not flag]
    assert values.merge(rest, some, flags) == xs
    assert values.part(values.merge(rest, some, flags), flags) == (rest, some)
    assert values.part(iter(xs), flags) == (rest, some)


@given(FLAGGED)
def test_with_zeros_is_the_inverse_of_pick(pairs: list) -> None:
    xs, flags = [x for x, _ in pairs], tuple(flag for _, flag in pairs)
    avals = [jax.typeof(np.zeros(i)) for i in range(len(pairs))]
    tangents = values.with_zeros(values.pick(xs, flags), flags, avals)
    assert values.moving(tangents) == flags
    assert values.pick(tangents, flags) == values.pick(xs, flags)
    zeros = values.part(tangents, flags)[0]
    assert [zero.shape for zero in zeros] == [(i,) for i, flag in enumerate(flags) if not flag]


def test_with_zeros_asks_for_a_flag_and_a_type_for_each() -> None:
    with pytest.raises(ValueError, match="zip"):
        values.with_zeros([X], (True, False), [jax.typeof(X)])
    (integer,) = values.with_zeros([], (False,), [jax.typeof(np.arange(3))])
    assert integer.dtype == jax.dtypes.float0


# ---- branches ------------------------------------------------------------------------------------


def test_zeros_are_written_out_where_another_branch_moves() -> None:
    def own(x, x_dot):
        return lax.sin(x), x, lax.mul(lax.cos(x), x_dot)

    program, avals = staged(own, X, Y), [jax.typeof(np.zeros(n)) for n in (2, 5, 3)]
    count, own_flags, wanted = 2, (False, False, True), (True, False, True)
    same = base.giving_zeros(program, count, own_flags, own_flags, avals)
    assert same is program
    more = base.giving_zeros(program, count, own_flags, wanted, avals)
    close(jx.evaluate(more, X, Y), [np.sin(X), X, np.zeros(2), np.cos(X) * Y])
    assert more.in_avals == program.in_avals


def test_branches_share_slots() -> None:
    """A slot is for residuals of one type, those of any branch."""
    small, large = jax.typeof(np.zeros(2)), jax.typeof(X)
    slots, locations = base._share([[large, large], [small, large], [large, small, small]])
    assert slots == [large, large, small, small]
    assert locations == [[0, 1], [2, 0], [0, 2, 3]]


def test_both_halves_of_two_branches() -> None:
    """All first halves give the same types, and all second halves take the same."""

    def one(x, y):
        return lax.mul(lax.sin(x), y), x

    def other(x, y):
        return lax.exp(x), lax.mul(x, lax.add(y, x)[:1])

    branches = [staged(f, X, Y) for f in (one, other)]
    moving = (True, False)
    derived = [linearize_jaxpr(branch, moving) for branch in branches]
    moved = base.either([d.moved for d in derived])
    assert moved == (True, True)
    parts = [
        located(d.primal, base.giving_zeros(d.linear, 0, d.moved, moved, branches[0].out_avals),
                moved, 2)
        for d in derived
    ]  # fmt: skip
    dot = jax.typeof(X)
    cut = base.sharing_slots(parts, [dot])
    for programs in (cut.first, cut.second):
        assert len({(*map(str, p.in_avals), *map(str, p.out_avals)) for p in programs}) == 1
    assert {address.kind for address in cut.read} <= {"in", "out"}
    assert {address for half in parts for address in half.addresses} >= {*cut.read}
    assert cut.moved == moved
    # Each has one residual that is not at hand, of a type that the other has not.
    assert [slot.shape for slot in cut.slots] == [(3,), (1,)]
    x_dot = X + Y
    for i, (branch, first, second) in enumerate(zip(branches, cut.first, cut.second, strict=True)):
        outs = jx.evaluate(first, X, Y)
        ys, slots = outs[:2], outs[2:]
        close(ys, jx.evaluate(branch, X, Y))
        assert [bool(np.any(slot)) for slot in slots] == [i == 0, i == 1]
        at_hand = {"in": [X, Y], "out": ys}
        read = [at_hand[address.kind][address.at] for address in cut.read]
        y_dots = jx.evaluate(second, *read, *slots, x_dot)
        pushed, moved_here = jvp_jaxpr(branch, moving)
        want = values.with_zeros(jx.evaluate(pushed, X, Y, x_dot)[2:], moved_here, branch.out_avals)
        close(y_dots, [*map(values.instantiate, want)])
