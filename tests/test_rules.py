"""Every rule, in every way it is used: the table in `rule_cases/`, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from rule_cases import BOTH, CASES, Case

import functrans as ft
from functrans.control_flow.counted_loops import counted_p, reversed_p
from functrans.programs.strong import PRODUCTS
from functrans.rules import RULES, ZeroRule
from functrans.testing import AROUND, DIFFERENCES, JAX, cross_check

DTYPES = {
    ("real", 64): np.float64,
    ("real", 32): np.float32,
    ("complex", 64): np.complex128,
    ("complex", 32): np.complex64,
}


def row_id(case: Case) -> str:
    return f"{CASES.index(case)}-{'-'.join(case.primitives)}"


def rows(kinds: dict[str, list[Case]]) -> Iterator[Any]:
    """For each kind of number the cases; those that a second JAX need not run are marked: the rows
    before them have each of their primitives."""
    seen: set[str] = set()
    for kind, cases in kinds.items():
        for case in cases:
            repeated = seen.issuperset(case.primitives) and not case.newer
            seen.update(case.primitives)
            name = row_id(case) + ("-complex" if kind == "complex" else "")
            yield pytest.param(case, kind, id=name, marks=[pytest.mark.repeated] * repeated)


REAL_ROWS = list(rows({"real": CASES}))
# Complex numbers first: where a primitive takes them, a second JAX gets no others.
ROWS = list(rows({"complex": [case for case in CASES if case.complex], "real": CASES}))
every_row = pytest.mark.parametrize(("case", "kind"), ROWS)


def first_cases() -> Iterator[Case]:
    """The rows that name a primitive that no row before them does."""
    seen: set[str] = set()
    for case in CASES:
        if not seen.issuperset(case.primitives):
            yield case
        seen.update(case.primitives)


FIRST_CASES = list(first_cases())

pytestmark = pytest.mark.usefixtures("quick_compilation")


@every_row
def test_jitted_in_double_precision(case: Case, kind: str) -> None:
    """First and second order, forward and reverse and each of each, against both.

    JAX differentiates what we write: `jax.jvp(ft.vjp(f))` says at once that it is right, and that
    it is right for JAX. Where there are no differences, JAX also does all by itself.
    """
    theirs = [JAX, AROUND] if case.kinks else [AROUND]
    differences = () if case.kinks else (DIFFERENCES,)
    options: Any = {"rtol": case.rtol, "atol": case.atol, "order": case.order, "jitted": True}
    with jax.enable_x64(True):
        args = case.inputs(DTYPES[kind, 64])
        both = {case.jax_modes: theirs}
        both.setdefault(case.modes, []).extend(differences)
        for modes, against in both.items():
            if modes and against:
                cross_check(case.fun, *args, modes=modes, against=against, **options).check()


# What `vmap` and eager evaluation do with a rule is the same for complex numbers.
@pytest.mark.parametrize(("case", "kind"), REAL_ROWS)
def test_vmapped_and_eager_in_single_precision(case: Case, kind: str) -> None:
    """Of a batch of two, against `jax.vmap` of what JAX derives or, where it has none, against our
    own, one by one.

    The first row of each primitive also eagerly: what runs then is the program that `jit` compiles,
    so that one row tells.
    """
    reference, modes = (jax, case.jax_modes) if case.jax_modes else (ft, case.modes)
    ours, theirs = (derivatives(ad, case.fun, modes) for ad in (ft, reference))
    batch = [case.inputs(DTYPES[kind, 32], seed) for seed in (0, 1)]
    vmap = jax.vmap if case.vmap else one_by_one
    # In one program: XLA compiles once what both of them write.
    each = vmap if case.jax_modes else one_by_one
    both = jax.jit(lambda *args: (vmap(ours)(*args), each(theirs)(*args)))
    got, want = both(*stacked(batch))
    assert_close(case, got, want)
    if case in FIRST_CASES:
        assert_close(case, ours(*batch[0]), jax.tree.map(lambda x: x[0], want))


def stacked(batch: list) -> tuple:
    """The batch as arrays of one more dimension; by NumPy, which compiles nothing for it."""

    def stack(*xs):
        if jax.dtypes.issubdtype(xs[0].dtype, jax.dtypes.prng_key):
            return jnp.stack(xs)
        return jax.device_put(np.stack(xs))

    return jax.tree.map(stack, *batch)


def assert_close(case: Case, got: Any, want: Any) -> None:
    rtol = case.rtol or 2e-4
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # The size of an array's largest entry says how exact the others can be.
        size = np.max(np.abs(b), initial=0.0, where=np.isfinite(b))
        chex.assert_trees_all_close(a, b, rtol=rtol, atol=case.atol or 1e-5 + rtol * size)


@pytest.mark.parametrize(("case", "kind"), [row for row in ROWS if row.values[0].jax_modes])
def test_types(case: Case, kind: str) -> None:
    """Shapes, dtypes and weak types of all results are JAX's: float0 for integers and keys, and
    half precision stays half precision."""
    dtypes = [DTYPES[kind, 32]]
    if kind == "real" and case.half:
        dtypes += [jnp.bfloat16, np.float16]
    for dtype in dtypes:
        args = case.inputs(dtype)
        got, want = (
            jax.eval_shape(derivatives(ad, case.fun, case.jax_modes, keep_float0=True), *args)
            for ad in (ft, jax)
        )
        chex.assert_trees_all_equal_structs(got, want)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


@pytest.mark.parametrize(
    "fun",
    [
        jnp.sin,
        lambda x: 2 * x,
        lambda x: x**2 / 3,
        lambda x: jnp.where(x > 0, x, 0.0),
        lambda x: x * jnp.float32(2),
        lambda x: jnp.stack([x, x]).sum(),
        jax.jit(lambda x: jnp.exp(x)),
    ],
)
def test_weak_types(fun: Callable) -> None:
    """A Python number gives way to any array beside it; where JAX's derivatives do, so do these."""
    got, want = (
        (ad.jvp(fun, (1.5,), (1.0,)), ad.value_and_grad(fun)(1.5), ad.grad(ad.grad(fun))(1.5))
        for ad in (ft, jax)
    )
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jax.typeof(a) == jax.typeof(b)  # shape, dtype and weak type
        chex.assert_trees_all_close(a, b, rtol=1e-6)


def test_the_weak_type_of_a_maximum() -> None:
    """A tangent has its primal's type. In this JAX 0.10 agrees, and 0.12 has a strong tangent."""
    y, y_dot = ft.jvp(lambda x: jnp.maximum(x, 0), (1.5,), (1.0,))
    assert jax.typeof(y) == jax.typeof(y_dot)
    assert jax.typeof(y_dot).weak_type


def derivatives(
    ad: Any, fun: Callable, modes: tuple[str, ...] = BOTH, keep_float0: bool = False
) -> Callable:
    """`args -> (tangents of the results, cotangents of the inputs)`, with fixed directions."""

    def evaluate(*args):
        results, tangents = [], jax.tree.map(direction, args)
        if "fwd" in modes:
            results.append(ad.jvp(fun, args, tangents)[1])
            results.append(ad.linearize(fun, *args)[1](*tangents))
        if "rev" in modes:
            answer, pull = ad.vjp(fun, *args)
            results.append(pull(jax.tree.map(direction, answer)))
        return results if keep_float0 else jax.tree.map(without_float0, results)

    return evaluate


def one_by_one(fun: Callable) -> Callable:
    """As `jax.vmap`, for what it cannot vectorize: XLA compiles `fun` once for all of the batch."""
    return lambda *args: jax.lax.map(lambda xs: fun(*xs), args)


def direction(x: Any) -> Any:
    if not has_tangent(x):
        return np.zeros(jnp.shape(x), jax.dtypes.float0)
    numbers = np.cos(np.arange(1.0, jnp.size(x) + 1)).reshape(jnp.shape(x))
    numbers = numbers * (1 - 0.5j) if jnp.iscomplexobj(x) else numbers
    return jax.device_put(numbers.astype(jax.typeof(x).dtype))


def has_tangent(x: Any) -> bool:
    return bool(jnp.issubdtype(jax.typeof(x).dtype, jnp.inexact))


def without_float0(x: Any) -> Any:
    return x if has_tangent(x) else None


# The table itself.


def primitives_of(jaxpr: Any) -> Iterator[str]:
    """The names of the primitives in a jaxpr and in the jaxprs inside it."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for param in jax.tree.leaves(equation.params, is_leaf=is_jaxpr):
            if is_jaxpr(param):
                yield from primitives_of(getattr(param, "jaxpr", param))


def is_jaxpr(x: Any) -> bool:
    return isinstance(x, Jaxpr | ClosedJaxpr)


def primitives_in(case: Case) -> set[str]:
    return set(primitives_of(jax.make_jaxpr(case.fun)(*case.inputs(np.float32)).jaxpr))


@pytest.fixture(scope="module")
def used() -> dict[int, set[str]]:
    """For each row, the primitives in its jaxpr."""
    return {index: primitives_in(case) for index, case in enumerate(CASES)}


def test_every_row_uses_the_primitives_that_it_names(used: dict[int, set[str]]) -> None:
    absent = {row_id(CASES[i]): set(CASES[i].primitives) - names for i, names in used.items()}
    assert not {row: names for row, names in absent.items() if names}


# As they are before any test or doctest declares one of its own. To look for a primitive that has
# no rule is to declare those that wait until their module is imported.
assert RULES[Primitive("nothing")] is None
DECLARED = {primitive.name for primitive in RULES}


def test_every_rule_has_a_row() -> None:
    """Also without the repeated rows, which `make test` leaves out where JAX is the newest."""
    for table in (ROWS, REAL_ROWS):
        few = [row.values for row in table if not row.marks]
        covered = {name for case, _ in few for name in case.primitives}
        assert sorted(DECLARED - covered - ELSEWHERE) == []
        assert covered == {name for case in CASES for name in case.primitives}
        assert {case for case in CASES if case.newer} <= {case for case, _ in few}
        assert len(few) < len(table)
    numbers = {name for case in CASES if case.complex for name in case.primitives}
    assert numbers == {
        name
        for case, kind in (row.values for row in ROWS if not row.marks)
        if kind == "complex"
        for name in case.primitives
    }


# `check` is compiled in functions under `checkify` alone, and a foreign function has to be there:
# both are in `test_coverage.py`. In JAX 0.10 `call` binds a Python function, not a jaxpr. `stage`
# is no equation when something is traced. What reads and writes with a mask is in
# `test_kernels.py`, arrays of several hosts are in `test_sparse.py`, products that a zero absorbs
# in `test_strong_zeros.py`, and loops whose steps are counted in `test_counted_loops.py`.
ELSEWHERE = {strong.primitive.name for strong in PRODUCTS.values()}
ELSEWHERE |= {counted_p.name, reversed_p.name}
ELSEWHERE |= {"global_array_to_host_local_array", "host_local_array_to_global_array"}
ELSEWHERE |= {"check", "ffi_call", "call", "stage", "masked_load", "masked_swap"}

ZERO = {primitive.name for primitive, rule in RULES.items() if isinstance(rule, ZeroRule)}


@pytest.mark.parametrize("name", sorted(ZERO - ELSEWHERE))
def test_zero_rules_give_zero(name: str, used: dict[int, set[str]]) -> None:
    """In a function of such primitives alone, every tangent and cotangent is 0 or has no dtype."""
    cases = [CASES[i] for i, names in used.items() if name in names and names <= ZERO]
    assert cases, f"no row uses {name} without primitives that have derivatives"
    for case in cases:
        results = derivatives(ft, case.fun, case.modes, keep_float0=True)(*case.inputs(np.float32))
        for x in jax.tree.leaves(results):
            assert not has_tangent(x) or not np.any(x)
            assert has_tangent(x) or x.dtype == jax.dtypes.float0
