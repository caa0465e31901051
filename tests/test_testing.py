"""The cross-check can fail: it passes on right derivatives, and says so where one is wrong."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, mlir

import functrans as ft
from functrans.rules import RULES, Elementwise
from functrans.testing import AROUND, DIFFERENCES, JAX, Report, check_grads, cross_check

FIRST = ["jvp", "linearize", "vjp"]
SECOND = ["jvp of jvp", "jvp of vjp", "vjp of jvp", "vjp of vjp"]


def wrong(report: Report, against: str) -> list[str]:
    return [row.transform for row in report.rows if row.against == against and not row.ok]


def named(report: Report, against: str) -> list[str]:
    return [row.transform for row in report.rows if row.against == against]


def with_jvp(fun: Callable, derivative: Callable) -> Callable:
    """A function with this derivative, right or not."""
    wrapped = jax.custom_jvp(fun)
    wrapped.defjvps(lambda tangent, answer, x: tangent * derivative(x))
    return wrapped


def test_a_row_for_each_transform() -> None:
    report = cross_check(jnp.sin, 1.0)
    assert report.ok
    assert sorted(named(report, DIFFERENCES)) == sorted(FIRST + SECOND)
    assert sorted(named(report, JAX)) == sorted(["primal", *FIRST, *SECOND])
    assert report.check() is report


@pytest.mark.parametrize(
    ("modes", "order", "rows"),
    [
        (("fwd",), 1, ["jvp", "linearize"]),
        (("rev",), 1, ["vjp"]),
        (("fwd",), 2, ["jvp", "linearize", "jvp of jvp"]),
        (("rev",), 3, ["vjp", "vjp of vjp", "vjp of vjp of vjp"]),
    ],
)
def test_modes_and_orders(modes: tuple[str, ...], order: int, rows: list[str]) -> None:
    report = cross_check(jnp.tanh, 0.3, modes=modes, order=order).check()
    assert named(report, DIFFERENCES) == rows


def test_the_differences_are_good_to_nine_digits() -> None:
    report = cross_check(lambda x: jnp.exp(jnp.sin(x)), jnp.arange(3.0), against=(DIFFERENCES,))
    assert all(0 < row.max_rel < 1e-8 for row in report.rows)


def test_the_report_is_a_table() -> None:
    lines = str(cross_check(jnp.cos, 1.0, order=1, against=(JAX,))).splitlines()
    assert lines[0] == "functrans on cos, order 1"
    assert " ".join(lines[1].split()) == "transform against max abs diff max rel diff"
    assert [line.split()[0] for line in lines[2:]] == ["primal", *FIRST]
    assert all(line.endswith(" ok") for line in lines[2:])


def test_a_wrong_first_derivative_is_found() -> None:
    fun = with_jvp(jnp.sin, lambda x: 1.001 * jnp.cos(x))
    report = cross_check(fun, 1.0, order=1)
    assert not report.ok
    assert wrong(report, JAX) == []  # JAX believes the same wrong rule
    assert wrong(report, DIFFERENCES) == FIRST
    with pytest.raises(AssertionError, match="derivatives disagree") as error:
        report.check()
    (line,) = [x for x in str(error.value).splitlines() if x.startswith("vjp")][1:]
    assert "differences" in line and "1.0e-03" in line and line.endswith("WRONG")


def test_a_wrong_second_derivative_is_found() -> None:
    fun = with_jvp(jnp.sin, lambda x: lax.stop_gradient(jnp.cos(x)))
    report = cross_check(fun, jnp.ones(3))
    assert wrong(report, DIFFERENCES) == SECOND


def test_a_wrong_third_derivative_is_found() -> None:
    slope = with_jvp(jnp.cos, lambda x: -lax.stop_gradient(jnp.sin(x)))
    fun = with_jvp(jnp.sin, slope)
    check_grads(fun, (1.0,), order=2)
    with pytest.raises(AssertionError, match=r"vjp of jvp of vjp +differences .* WRONG"):
        check_grads(fun, (1.0,), order=3)


def test_a_wrong_transpose_is_found() -> None:
    fun = jax.custom_vjp(lambda x, y: x * y)
    fun.defvjp(lambda x, y: (x * y, (x, y)), lambda saved, z: (z * saved[1], z * saved[1]))
    report = cross_check(fun, 2.0, 3.0, modes=("rev",), order=1)
    assert wrong(report, DIFFERENCES) == ["vjp"]


def test_a_wrong_rule_of_functrans_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, lax.sin_p, Elementwise([lambda y, x: lax.sin(x)]))
    report = cross_check(lambda x: lax.sin(x), jnp.ones(2), order=1)
    assert wrong(report, JAX) == wrong(report, DIFFERENCES) == FIRST


def test_another_dtype_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def jvp(fun, primals, tangents):
        answer, tangent = jax.jvp(fun, primals, tangents)
        return answer, tangent.astype(jnp.bfloat16)

    monkeypatch.setattr(ft, "jvp", jvp)
    report = cross_check(lambda x: x * 2, jnp.ones(2), order=1, against=(JAX,))
    assert wrong(report, JAX) == ["jvp"]
    assert "WRONG bfloat16[2], not float32[2]" in str(report)


def test_another_structure_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ft, "jvp", lambda f, xs, ts: [(y := jax.jvp(f, xs, ts)[0]), [y]])
    report = cross_check(lambda x: x * 2, jnp.ones(2), order=1, against=(JAX,))
    assert wrong(report, JAX) == ["jvp"]
    assert "WRONG structure" in str(report)


def test_a_nan_is_found_and_two_agree() -> None:
    fun = with_jvp(jnp.sin, lambda x: x * jnp.nan)
    report = cross_check(fun, jnp.ones(2), order=1)
    assert wrong(report, JAX) == []
    assert wrong(report, DIFFERENCES) == FIRST


def test_a_kink_is_found() -> None:
    assert wrong(cross_check(jnp.abs, 0.0, order=1), DIFFERENCES) == FIRST
    assert wrong(cross_check(jax.nn.relu, 0.0, order=1), DIFFERENCES) == FIRST


def test_pytrees() -> None:
    def fun(params, x, *, flag=True):
        hidden = jnp.tanh(x @ params["w"] + params["b"][0])
        return {"sum": hidden.sum(), "all": [hidden, None, x > 0], "n": 3 if flag else 4}

    params = {"w": jnp.ones((3, 2)), "b": (jnp.arange(2.0), None)}
    report = cross_check(fun, params, jnp.ones((4, 3)), jitted=True)
    assert report.ok and report.title == "functrans on fun, order 2"


def test_complex_numbers_need_not_be_holomorphic() -> None:
    z = jnp.array([1 + 2j, -0.5 + 0.1j])
    cross_check(lambda z: jnp.abs(z) * jnp.exp(z), z, jitted=True).check()
    cross_check(lambda x: jnp.exp(1j * x) * x, jnp.arange(2.0), jitted=True).check()
    cross_check(lambda z: jnp.real(z * z), z, jitted=True).check()
    conjugated = with_jvp(jnp.exp, lambda z: jnp.conj(jnp.exp(z)))
    assert wrong(cross_check(conjugated, z, order=1), DIFFERENCES) == FIRST


def test_integers_and_keys_have_no_tangents() -> None:
    def fun(n, x, key, flags):
        noise = jax.random.normal(key, x.shape, jnp.float32)
        return x**2 * n * noise, n + 1, jnp.where(flags, x, 0), flags

    args = jnp.arange(3), jnp.ones(3), jax.random.key(1), jnp.array([True, False, True])
    assert cross_check(fun, *args, jitted=True).ok
    assert cross_check(lambda n: n + 1, 3).ok
    assert cross_check(lambda x: x, jnp.zeros((0, 2))).ok


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "complex64"])
def test_any_precision(dtype: str) -> None:
    report = cross_check(lambda x: jnp.sin(x) * x, jnp.array([0.3, 1.2], dtype), jitted=True)
    report.check()
    differences = [row.max_rel for row in report.rows if row.against == DIFFERENCES]
    assert max(differences) < 1e-7  # these are taken in float64 all the same


def test_low_precision_inside_is_allowed_for() -> None:
    """The differences of a function that rounds to float32 have a longer step and tolerance."""
    fun = lambda x: jnp.sin(jnp.asarray(x, jnp.float32))  # noqa: E731
    cross_check(fun, jnp.arange(3.0), jitted=True).check()
    sine = with_jvp(jnp.sin, lambda x: 1.1 * jnp.cos(x))
    assert not cross_check(lambda x: sine(fun(x)), jnp.arange(3.0), order=1, jitted=True).ok


def test_python_control_flow_and_closures() -> None:
    scale = 3.0

    def fun(x):
        return x * scale if x > 0 else -x

    cross_check(fun, 2.0).check()
    cross_check(fun, -2.0).check()


def test_the_jitted_check_is_the_same_check() -> None:
    eager, jitted = (cross_check(jnp.sin, jnp.ones(3), jitted=jitted) for jitted in (False, True))
    assert eager.ok and jitted.ok
    assert [row[:2] for row in eager.rows] == [row[:2] for row in jitted.rows]


def test_tolerances_and_steps_are_used() -> None:
    fun = with_jvp(jnp.sin, lambda x: 1.001 * jnp.cos(x))
    assert cross_check(fun, 1.0, order=1, rtol=1e-2).ok
    assert cross_check(fun, 1.0, order=1, atol=1e-2).ok
    exact, rough = (cross_check(jnp.exp, 1.0, order=1, eps=eps).rows[-1] for eps in (1e-5, 0.5))
    assert exact.max_rel < 1e-8 and rough.max_rel > 1e-5
    check_grads(jnp.exp, [1.0], 1, ("fwd",), 0.1, 0.1, 0.5)


def test_the_seed_chooses_the_directions() -> None:
    numbers = [cross_check(jnp.exp, jnp.ones(3), order=1, seed=seed).rows for seed in (0, 0, 1)]
    assert numbers[0] == numbers[1] != numbers[2]


def test_check_grads() -> None:
    check_grads(lambda x, y: jnp.sin(x) @ y, (jnp.ones((2, 3)), np.ones(3)), order=2)
    check_grads(lambda x: x**3, (2.0,), order=3, modes=["rev"])
    with pytest.raises(AssertionError, match=r"derivatives disagree(.|\n)* WRONG"):
        check_grads(with_jvp(jnp.sin, jnp.sin), (1.0,), order=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 0}, "order must be at least 1, not 0"),
        ({"modes": ("forward",)}, r"modes must be a sequence with some of \('fwd', 'rev'\)"),
        ({"modes": "fwd"}, "modes must be .*, not 'fwd'"),
        ({"modes": ()}, "modes must be"),
        ({"against": ("jax",)}, r"against must be .* \('JAX', .*, 'differences'\), not \('jax',\)"),
    ],
)
def test_bad_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_check(jnp.sin, 1.0, **options)


def test_jax_around_functrans(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rule writes may be right for us and wrong for JAX, where it has another rule."""
    cosine_p = Primitive("cosine")
    cosine_p.def_impl(jnp.cos)
    cosine_p.def_abstract_eval(lambda x: x)
    mlir.register_lowering(cosine_p, mlir.lower_fun(jnp.cos, multiple_results=False))
    ad.defjvp(cosine_p, lambda x_dot, x: 0 * x_dot)
    ft.rules.elementwise(cosine_p, lambda y, x: -lax.sin(x))
    monkeypatch.setitem(RULES, lax.sin_p, Elementwise([lambda y, x: cosine_p.bind(x)]))
    against = (JAX, AROUND, DIFFERENCES)
    report = cross_check(lambda x: lax.sin(x), jnp.ones(2), against=against, jitted=True)
    assert named(report, AROUND) == named(report, JAX) == ["primal", *FIRST, *SECOND]
    assert wrong(report, AROUND) == SECOND
    assert wrong(report, JAX) == wrong(report, DIFFERENCES) == []
