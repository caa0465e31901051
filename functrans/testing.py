"""Cross-checks: `(fun, inputs) -> report`, functrans against JAX and against finite differences.

We compare forward mode with a central difference along a direction `u`, and reverse mode with
forward mode by the equation that defines the transpose:

    J u ~ (f(x + h u) - f(x - h u)) / 2h            Re<w, J u> = Re<J^T w, u>

with random `u` and `w`, in float64, where both sides agree to about nine digits.  We compare a
derivative of order `k` with the difference of the one of order `k - 1`, which passed the same test
before.  As in JAX, `<w, y>` is the sum of `w * y` without a conjugate, even for complex numbers.

Only this file and the demo call JAX's own transforms, and only to compare with them.

Read next: `__main__.py`, all of it at work; or `tests/test_rules.py`, which sends every rule
through this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import functrans as ft

JAX = "JAX"
AROUND = "JAX around"
DIFFERENCES = "differences"

Tree = Any


class Row(NamedTuple):
    """One comparison; the relative difference refers to the largest entry of the same array."""

    transform: str
    against: str
    max_abs: float
    max_rel: float
    ok: bool
    note: str = ""


@dataclass(frozen=True, repr=False)
class Report:
    """The findings of `cross_check`: a row for each transform and each reference."""

    title: str
    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every row agrees within its tolerance."""
        return all(row.ok for row in self.rows)

    def check(self) -> Report:
        """Return the report, or raise an `AssertionError` that shows it."""
        if not self.ok:
            raise AssertionError(f"derivatives disagree\n{self}")
        return self

    def __str__(self) -> str:
        lines = [("transform", "against", "max abs diff", "max rel diff", "")]
        for row in self.rows:
            verdict = "ok" if row.ok else f"WRONG {row.note}".rstrip()
            numbers = f"{row.max_abs:.1e}", f"{row.max_rel:.1e}"
            lines.append((row.transform, row.against, *numbers, verdict))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        body = ["  ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)) for x in lines]
        return "\n".join([self.title, *(line.rstrip() for line in body)])

    __repr__ = __str__


def cross_check(
    fun: Callable,
    *args: Tree,
    order: int = 2,
    modes: Sequence[str] = ("fwd", "rev"),
    against: Sequence[str] = (JAX, DIFFERENCES),
    jitted: bool = False,
    rtol: float | None = None,
    atol: float | None = None,
    eps: float | None = None,
    seed: int = 0,
) -> Report:
    """Compare functrans's derivatives with those of JAX and with finite differences.

    Args:
      fun: the function. It takes and returns pytrees of arrays, real, complex or integer.
      *args: the arguments at which to differentiate.
      order: the highest order; 2 also compares `jvp of vjp` and the like.
      modes: `"fwd"`, `"rev"` or both.
      against: `"JAX"` (in the dtypes of `args`), `"differences"` (in float64), or both; or
        `"JAX around"`, JAX's derivative of functrans's derivative of one order less. Leave out
        `"JAX"` where it has no derivative, such as for a `while_loop` in reverse mode.
      jitted: whether to evaluate everything in one compiled program.
      rtol: the relative tolerance. An array passes if it differs by at most `atol + rtol * (its
        largest entry)`. By default the tolerances depend on the dtypes.
      atol: the absolute tolerance.
      eps: the step of the differences; by default it depends on the precision of the result.
      seed: an integer that chooses the random directions `u` and `w`.

    Returns:
      A `Report`, which prints as a table; its `check()` raises an `AssertionError` if a row
      disagrees.

    Raises:
      ValueError: if `order` is less than 1, or if `modes` or `against` has an unknown entry.

    See also:
      `check_grads`, which compares with finite differences alone, and raises at once.

    >>> import jax.numpy as jnp
    >>> from functrans.testing import cross_check
    >>> report = cross_check(lambda x: jnp.sin(x) * x, jnp.arange(3.0), order=1)
    >>> report.ok, [row.transform for row in report.rows if row.against == "JAX"]
    (True, ['primal', 'jvp', 'linearize', 'vjp'])
    """
    _check_options(order, modes, against)
    ours = _tower(ft, fun, order, modes, seed)
    evaluate = _evaluator(ft, ours, jitted)
    rows: list[Row] = []
    towers = {JAX: _tower(jax, fun, order, modes, seed), AROUND: _around(ours, modes, seed)}
    references = {name: _evaluator(jax, towers[name], jitted) for name in towers if name in against}
    if references:
        both = _both(evaluate, references, jitted)
        mine, theirs = both(*args)
        rows += [
            _compare(d.name, name, mine[d.name], theirs[name][d.name], rtol, atol)
            for name in references
            for d in towers[name][1:]
        ]
    if DIFFERENCES in against:
        types = _types(args)
        with jax.enable_x64(True):
            wide = _widen(args)
            if references and jitted and types == _types(wide):
                # It is compiled already, and JAX's part of it costs less than compiling again.
                evaluate = lambda *xs: both(*xs)[0]  # noqa: E731
            rows += _rows_against_differences(ours, evaluate, wide, seed, rtol, atol, eps)
    name = getattr(fun, "__name__", type(fun).__name__)
    return Report(f"functrans on {name}, order {order}", tuple(rows))


def check_grads(
    fun: Callable,
    args: Sequence[Tree],
    order: int,
    modes: Sequence[str] = ("fwd", "rev"),
    atol: float | None = None,
    rtol: float | None = None,
    eps: float | None = None,
) -> None:
    """Check functrans's derivatives against finite differences in float64.

    The signature is that of `jax.test_util.check_grads`.

    Args:
      fun: the function. It takes and returns pytrees of arrays, real, complex or integer.
      args: a tuple or list with the arguments at which to differentiate.
      order: the highest order.
      modes: `"fwd"`, `"rev"` or both.
      atol: the absolute tolerance. An array passes if it differs by at most `atol + rtol * (its
        largest entry)`. By default the tolerances depend on the dtypes.
      rtol: the relative tolerance.
      eps: the step of the differences; by default it depends on the precision of the result.

    Raises:
      AssertionError: if a derivative is wrong; it shows the table of comparisons.
      ValueError: if `order` is less than 1, or if `modes` has an unknown entry.

    See also:
      `cross_check`, which compares with JAX too, and returns a report.

    >>> import jax.numpy as jnp
    >>> from functrans.testing import check_grads
    >>> check_grads(lambda x, y: jnp.tanh(x) @ y, (jnp.ones((2, 3)), jnp.ones(3)), order=2)
    """
    against = (DIFFERENCES,)
    options: dict = {"order": order, "modes": modes, "rtol": rtol, "atol": atol, "eps": eps}
    cross_check(fun, *args, against=against, **options).check()


def _check_options(order: int, modes: Sequence[str], against: Sequence[str]) -> None:
    if order < 1:
        raise ValueError(f"order must be at least 1, not {order}")
    for name, given, known in (
        ("modes", modes, MODES),
        ("against", against, (JAX, AROUND, DIFFERENCES)),
    ):
        if isinstance(given, str) or not given or not set(given) <= set(known):
            raise ValueError(
                f"{name} must be a sequence with some of {tuple(known)}, not {given!r}"
            )


# The derivatives. `ad` is functrans or JAX: the two have the same signatures.


def _jvp(ad: ModuleType, fun: Callable, key: tuple) -> Callable:
    return lambda *xs: _inexact(ad.jvp(fun, xs, _tangents(xs, key))[1])


def _linearize(ad: ModuleType, fun: Callable, key: tuple) -> Callable:
    return lambda *xs: _inexact(ad.linearize(fun, *xs)[1](*_tangents(xs, key)))


def _vjp(ad: ModuleType, fun: Callable, key: tuple) -> Callable:
    def pull(*xs):
        answer, pullback = ad.vjp(fun, *xs)
        return _inexact(pullback(_cotangents(answer, key)))

    return pull


def _primal(ad: ModuleType, fun: Callable, modes: Sequence[str]) -> Callable:
    if "rev" in modes:
        return lambda *xs: ad.vjp(fun, *xs)[0]
    return lambda *xs: ad.linearize(fun, *xs)[0]


MODES = {"fwd": {"jvp": _jvp, "linearize": _linearize}, "rev": {"vjp": _vjp}}


class _Derivative(NamedTuple):
    """The transform `outer` of the derivative named `inner`, one level lower."""

    name: str
    level: int
    outer: str
    inner: str
    function: Callable


def _tower(
    ad: ModuleType, fun: Callable, order: int, modes: Sequence[str], seed: int
) -> list[_Derivative]:
    """Every transform of every transform of ... of `fun`, `order` high."""
    lower = [_Derivative("value", 0, "", "", fun)]
    tower = [*lower, _Derivative("primal", 0, "", "", _primal(ad, fun, modes))]
    for level in range(1, order + 1):
        transforms = {name: t for mode in modes for name, t in MODES[mode].items()}
        here = [
            _Derivative(
                outer if level == 1 else f"{outer} of {inner.name}",
                level,
                outer,
                inner.name,
                transform(ad, inner.function, (seed, level)),
            )
            for outer, transform in transforms.items()
            for inner in lower
            if level == 1 or outer != "linearize"  # like jvp, which goes on to higher orders
        ]
        tower += here
        lower = [d for d in here if d.outer != "linearize"]
    return tower


def _around(ours: list[_Derivative], modes: Sequence[str], seed: int) -> list[_Derivative]:
    """JAX's transform in place of each outermost one of ours."""
    functions = {derivative.name: derivative.function for derivative in ours}
    transforms = {name: t for mode in modes for name, t in MODES[mode].items()}

    def around(d: _Derivative) -> _Derivative:
        inner = functions[d.inner]
        return d._replace(function=transforms[d.outer](jax, inner, (seed, d.level)))

    value, primal, *derivatives = ours
    return [value, primal._replace(function=value.function), *map(around, derivatives)]


def _evaluator(ad: ModuleType, tower: list[_Derivative], jitted: bool) -> Callable:
    """`args -> {name: derivative}`, in one program if `jitted`."""

    def evaluate(*args):
        return {derivative.name: derivative.function(*args) for derivative in tower}

    return ad.jit(evaluate) if jitted else evaluate


def _both(ours: Callable, theirs: dict[str, Callable], jitted: bool) -> Callable:
    """All results; in one program if `jitted`, where XLA compiles common parts once."""

    def evaluate(*args):
        return ours(*args), {name: reference(*args) for name, reference in theirs.items()}

    return jax.jit(evaluate) if jitted else evaluate


def _rows_against_differences(
    tower: list[_Derivative],
    evaluate: Callable,
    args: tuple,
    seed: int,
    rtol: float | None,
    atol: float | None,
    eps: float | None,
) -> list[Row]:
    here = evaluate(*args)
    outputs = jax.tree.leaves(_inexact(here["value"]))
    precision = max((float(jnp.finfo(_dtype(y)).eps) for y in outputs), default=1e-16)
    # A quotient is wrong by about h^2 + (rounding error) / h, which is least for this step.
    step = precision ** (1 / 3) if eps is None else eps
    rtol = 2 * precision**0.4 if rtol is None else rtol
    rows = []
    for level in range(1, tower[-1].level + 1):
        u = _tangents(args, (seed, level))
        right, left = evaluate(*_move(args, step, u)), evaluate(*_move(args, -step, u))
        for name, _, outer, inner, _ in (d for d in tower if d.level == level):
            ends = _inexact(right[inner]), _inexact(left[inner])
            got, want = here[name], jax.tree.map(partial(_quotient, step), *ends)
            if outer == "vjp":
                want = _pair(_cotangents(here[inner], (seed, level)), want)
                got = _pair(got, u)
            size = max(map(_largest, _leaves(here[inner])), default=0.0)
            absolute = 10 * step**2 + 100 * precision / step * size if atol is None else atol
            rows.append(_compare(name, DIFFERENCES, got, want, rtol, absolute))
    return rows


# Arrays, and pytrees of them, of which some have no tangents.


def _dtype(x: Any) -> Any:
    return jax.typeof(x).dtype


def _types(tree: Tree) -> tuple:
    """The types and options on which a compiled program depends."""
    config: Any = jax.config
    leaves, structure = jax.tree.flatten(tree)
    return config.jax_enable_x64, structure, *map(jax.typeof, leaves)


def _is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(_dtype(x), jnp.inexact))


def _inexact(tree: Tree) -> Tree:
    """Put `None` for each array that has no tangent: integers, keys, and `float0` tangents."""
    return jax.tree.map(lambda x: x if _is_inexact(x) else None, tree)


def _leaves(tree: Tree) -> list[np.ndarray]:
    """The arrays that have a tangent, in the widest dtype of their kind."""
    arrays = jax.tree.leaves(_inexact(tree))
    wide = (np.complex128 if jnp.iscomplexobj(x) else np.float64 for x in arrays)
    return [np.asarray(x).astype(dtype) for x, dtype in zip(arrays, wide, strict=True)]


def _widen(tree: Tree) -> Tree:
    def widen(x):
        wide = np.complex128 if jnp.iscomplexobj(x) else np.float64
        return _placed_as(x, np.asarray(x).astype(wide)) if _is_inexact(x) else x

    return jax.tree.map(widen, tree)


# With NumPy, since JAX would compile a program for each operation and shape.


def _move(tree: Tree, step: float, direction: Tree) -> Tree:
    def move(x, u):
        return _placed_as(x, np.asarray(x) + step * u) if _is_inexact(x) else x

    return jax.tree.map(move, tree, direction)


def _quotient(step: float, right: Any, left: Any) -> np.ndarray:
    right, left = np.asarray(right), np.asarray(left)
    return ((right - left) / (2 * step)).astype(right.dtype)


def _placed_as(x: Any, y: np.ndarray) -> jax.Array:
    is_placed = isinstance(x, jax.Array) and x.committed
    return jax.device_put(y, x.sharding if is_placed else None)


def _random(tree: Tree, key: tuple) -> Tree:
    """A random array for each array of the tree, the same for every precision of it."""
    rng = np.random.default_rng(key)

    def draw(x):
        if not _is_inexact(x):
            return np.zeros(jnp.shape(x), jax.dtypes.float0)
        sample = rng.standard_normal((2, *jnp.shape(x)))
        sample = sample[0] + 1j * sample[1] if jnp.iscomplexobj(x) else sample[0]
        return np.asarray(sample).astype(_dtype(x))

    return jax.tree.map(draw, tree)


def _tangents(tree: Tree, key: tuple) -> Tree:
    return _random(tree, (*key, 0))


def _cotangents(tree: Tree, key: tuple) -> Tree:
    return _random(tree, (*key, 1))


def _pair(left: Tree, right: Tree) -> float:
    """`Re <left, right>`."""
    pairs = zip(_leaves(left), _leaves(right), strict=True)
    return sum((float(np.sum(a * b).real) for a, b in pairs), 0.0)


def _largest(x: np.ndarray) -> float:
    return float(np.max(np.abs(x), initial=0.0, where=np.isfinite(x)))


# The largest allowed difference of two programs for one number, as a multiple of the number.
_RTOL = {"float64": 1e-9, "float32": 2e-4, "float16": 2e-2, "bfloat16": 1e-1}


def _compare(
    name: str, against: str, got: Tree, want: Tree, rtol: float | None, atol: float | None
) -> Row:
    note = _mismatch(got, want)
    if note:
        return Row(name, against, math.inf, math.inf, False, note)
    worst_abs, worst_rel, ok = 0.0, 0.0, True
    exact = jax.tree.leaves(_inexact(want))
    for x, a, b in zip(exact, _leaves(got), _leaves(want), strict=True):
        precision, size, difference = jnp.finfo(_dtype(x)), _largest(b), _difference(a, b)
        relative = _RTOL[str(precision.dtype)] if rtol is None else rtol
        absolute = 10 * float(precision.eps) if atol is None else atol
        ok = ok and difference <= absolute + relative * size
        worst_abs = max(worst_abs, difference)
        worst_rel = max(worst_rel, difference / size if size else math.inf if difference else 0.0)
    return Row(name, against, worst_abs, worst_rel, ok)


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """The largest `|a - b|`, where equal infinities and two NaNs are equal, one NaN is not."""
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(a - b))
    return float(np.max(np.where(np.isnan(difference), math.inf, difference), initial=0.0))


def _mismatch(got: Tree, want: Tree) -> str:
    """How the two differ in structure, shape or dtype; empty if they do not."""
    if jax.tree.structure(got) != jax.tree.structure(want):
        return f"structure {jax.tree.structure(got)}, not {jax.tree.structure(want)}"
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        types = [f"{_dtype(x)}{list(jnp.shape(x))}" for x in (a, b)]
        if types[0] != types[1]:
            return f"{types[0]}, not {types[1]}"
    return ""
