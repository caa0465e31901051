"""What a user gives to `ft.sparse`: patterns of functions, which are believed; and mistakes, which
are told with the argument that is wrong and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import functrans as ft
from functrans.sparse import Coloring, Pattern, color, hessian, jacobian, with_pattern

pytestmark = pytest.mark.usefixtures("float64")

X = np.linspace(0.1, 1.0, 6)
PAIRS = np.eye(6) + np.eye(6, k=1)

# ---- patterns that are declared ------------------------------------------------------------------


def ordered(x):
    """Its author knows that `x` increases."""
    return x[jnp.argsort(x)] * jnp.append(x[1:], 1.0)


declared = with_pattern(ordered, PAIRS)


def energy(x):
    return jnp.sum(declared(x) * x)


def in_a_loop(x):
    return lax.fori_loop(0, 2, lambda _, c: declared(c), x)


USES: dict[str, tuple[Callable, Any]] = {
    "alone": (declared, PAIRS),
    "jitted": (ft.jit(declared), PAIRS),
    "jitted by JAX": (jax.jit(declared), PAIRS),
    "inside of another": (lambda x: jnp.sin(declared(x))[::-1], PAIRS[::-1]),
    "twice": (lambda x: declared(declared(x)), PAIRS @ PAIRS),
    "in a scan": (lambda x: lax.scan(lambda c, _: (declared(c), None), x, None, 2)[0],
                  PAIRS @ PAIRS),
    "in a branch": (lambda x: lax.cond(x[0] > 0, declared, declared, x), PAIRS),
    "checkpointed": (jax.checkpoint(declared), PAIRS),
    "batched": (lambda x: jax.vmap(declared)(jnp.stack([x, 2 * x])), np.vstack([PAIRS, PAIRS])),
    "its gradient": (ft.grad(energy), PAIRS.T @ PAIRS),
    "JAX's gradient": (jax.grad(energy), PAIRS.T @ PAIRS),
}  # fmt: skip


@pytest.mark.parametrize("name", USES)
def test_a_declared_pattern(name: str) -> None:
    fun, pattern = USES[name]
    found = jacobian(fun, X, format="dense", check=True)
    assert ft.sparse.jacobian_pattern(fun, X) == Pattern(pattern)
    # Only detection takes the pattern in the place of the program.
    got, want = ft.jit(lambda x: (found(x), ft.jacfwd(fun)(x)))(X)
    np.testing.assert_allclose(got, want.reshape(-1, 6), atol=1e-14)


def test_the_hessian_of_a_declared_function() -> None:
    found = hessian(energy, X, format="dense", check=True)
    assert found.pattern == Pattern(PAIRS.T @ PAIRS)
    got, want = ft.jit(lambda x: (found(x), ft.hessian(energy)(x)))(X)
    np.testing.assert_allclose(got, want, atol=1e-14)
    assert ft.sparse.hessian_pattern(lambda x: jnp.sum(ordered(x) * x), X).nnz == 36


def test_a_declared_function_of_trees() -> None:
    """Columns go through all arguments, integers among them; and what is known keeps its value."""

    def fun(xs, scale, *, places):
        return {"sorted": jnp.sort(xs[0]) * scale, "number": jnp.argmax(xs[0]), "at": xs[1][places]}

    places = np.arange(3) % 2
    pattern = np.zeros((7, 9))  # at, number, sorted; xs, scale, places
    pattern[:3, 3:5], pattern[4:, :3], pattern[4:, 5] = np.eye(2)[places], np.eye(3), 1
    xs = (np.arange(3.0), np.arange(2.0))

    def used(known):
        def product(xs):
            out = known(xs, 2.0, places=places)
            mask = known((np.arange(3.0), np.zeros(2)), 1.0, places=places)["sorted"]
            return out["sorted"] * mask, out["at"]

        return product

    found = ft.sparse.jacobian_pattern(used(with_pattern(fun, pattern)), xs).dense()
    want = np.zeros((6, 5), bool)
    want[3:, 3:] = np.eye(2)[places]
    want[[1, 2], [1, 2]] = True  # the mask is 0, 1, 2
    np.testing.assert_array_equal(found, want)
    with pytest.raises(ValueError, match=r"is \(6, 9\), and the matrix \(7, 9\)"):
        ft.sparse.jacobian_pattern(used(with_pattern(fun, pattern[:6])), xs)


def test_a_declared_pattern_that_lacks_a_nonzero() -> None:
    wrong = with_pattern(ordered, np.eye(6))
    with pytest.raises(ValueError, match="lacks a nonzero of row"):
        jacobian(wrong, X, check=True)(X)


# ---- mistakes ------------------------------------------------------------------------------------


def nothing(x):
    jnp.sin(x)


def total(x):
    return jnp.sum(x**3)


def some_pattern() -> Pattern:
    return Pattern(np.ones((2, 3)))


WRONG: Any = 3
BOTH: Any = (0, 1)
RETURN = "returned None: is a `return` missing?"
MISTAKES: dict[str, tuple[type[Exception], str, Callable]] = {
    # A function without a result.
    "jacobian": (ValueError, RETURN, lambda: jacobian(nothing, X)),
    "jacobian_pattern": (ValueError, RETURN, lambda: ft.sparse.jacobian_pattern(nothing, X)),
    "hessian": (TypeError, RETURN, lambda: hessian(nothing, X)),
    "hessian_pattern": (TypeError, RETURN, lambda: ft.sparse.hessian_pattern(nothing, X)),
    "with_pattern": (
        ValueError, RETURN, lambda: jacobian(with_pattern(nothing, np.eye(6)), X)),
    "jacobian with a pattern": (ValueError, RETURN, lambda: jacobian(nothing, X, pattern=PAIRS)),
    "when it is called": (ValueError, RETURN, lambda: jacobian(nothing, pattern=PAIRS)(X)),
    "by rows": (ValueError, RETURN, lambda: jacobian(nothing, pattern=PAIRS, mode="rows")(X)),
    "hessian with a pattern": (TypeError, RETURN, lambda: hessian(nothing, pattern=np.eye(6))(X)),
    # Numbers that are not real.
    "integers": (
        TypeError, "x must be of real numbers, and is of type int64. Use .astype(float)",
        lambda: jacobian(jnp.sin, np.arange(3))),
    "integers in a tree": (
        TypeError, "p['k'] must be of real numbers, and is of type int32",
        lambda: hessian(lambda p: p["w"], {"w": 1.0, "k": np.int32(2)})),
    "integers when it is called": (
        TypeError, "x must be of real numbers", lambda: jacobian(jnp.sin, X)(np.arange(6))),
    "complex numbers": (
        TypeError, "and is of type complex128. Give its real and its imaginary part",
        lambda: jacobian(jnp.sin, X + 0j)),
    "complex results": (
        TypeError, "the result must be of real numbers, and is of type complex128",
        lambda: jacobian(lambda x: x * 1j, X)),
    "an integer beside": (
        TypeError, "the result[1] must be of real numbers, and is of type int64",
        lambda: jacobian(lambda x: (x, jnp.argmax(x)), X)),
    "no array": (
        TypeError, "x must be an array, or a pytree of arrays, but it is None",
        lambda: jacobian(jnp.sin, None)),
    "no scalar": (
        TypeError, "returned the shape (6,). Reduce it to one number (a sum, a mean), or use "
        "functrans.sparse.jacobian", lambda: hessian(jnp.sin, X)),
    "two scalars": (
        TypeError, "returned (*, *). Reduce it", lambda: hessian(lambda x: (total(x), 1.0), X)),
    "no function": (
        TypeError, "expects a function, but got 3", lambda: jacobian(WRONG, pattern=PAIRS)),
    "no function to declare": (
        TypeError, "sparse.with_pattern expects a function", lambda: with_pattern(WRONG, PAIRS)),
    # Which argument.
    "no argument": (TypeError, "argnum=0, but 0 arguments are given", lambda: jacobian(jnp.sin)),
    "beyond the arguments": (
        TypeError, "argnum=1, but 1 argument is given: pass one for each",
        lambda: jacobian(jnp.sin, X, argnum=1)),
    "no argument when it is called": (
        TypeError, "argnum=0, but 0 arguments are given", lambda: jacobian(jnp.sin, X)()),
    "two arguments": (
        TypeError, "argnum must be an integer, but it is (0, 1). Put several arguments into one",
        lambda: jacobian(jnp.add, X, X, argnum=BOTH)),
    # Patterns.
    "another shape": (
        ValueError, "the pattern is (5, 5), and the matrix (6, 6): the function takes 6 numbers",
        lambda: jacobian(jnp.sin, X, pattern=np.eye(5))),
    "another shape of a Hessian": (
        ValueError, "is (5, 5), and the matrix (6, 6)",
        lambda: hessian(total, X, pattern=np.eye(5))),
    "another shape of a coloring": (
        ValueError, "is (5, 5), and the matrix (6, 6)",
        lambda: jacobian(jnp.sin, X, pattern=color(np.eye(5)))),
    "another shape when it is called": (
        ValueError, "is (6, 6), and the matrix (3, 3)", lambda: jacobian(jnp.sin, X)(X[:3])),
    "another shape is declared": (
        ValueError, "that with_pattern was given is (3, 3), and the matrix (6, 6)",
        lambda: jacobian(with_pattern(jnp.sin, np.eye(3)), X)),
    "too few nonzeros": (
        ValueError, "does not fit the function: it lacks a nonzero of row",
        lambda: jacobian(lambda x: x * x[::-1], X, pattern=np.eye(6), check=True)(X)),
    "too few in a Hessian": (
        ValueError, "Give a pattern that has it; or none, and it is detected",
        lambda: hessian(lambda x: x @ x[::-1], X, pattern=np.eye(6), check=True)(X)),
    "one triangle": (
        ValueError, "must be symmetric, and has (1, 0) but not (0, 1): give the union with its",
        lambda: hessian(total, pattern=np.tri(6))),
    "a rectangle": (ValueError, "2 x 3 cannot be symmetric", lambda: color(some_pattern(),
                                                                           "symmetric")),
    "a vector": (ValueError, "a pattern is made of a matrix", lambda: Pattern(np.ones(6))),
    "a shape": (ValueError, "but got (3, 4) of type tuple", lambda: Pattern((3, 4))),
    "a word": (ValueError, "but got 'band' of type str", lambda: jacobian(jnp.sin, pattern="band")),
    "too few values": (
        ValueError, "the values must be 6, one for each nonzero",
        lambda: some_pattern().csr([1.0])),
    # Colorings.
    "no such mode": (ValueError, "mode must be one of", lambda: color(np.eye(3), "rainbow")),
    "no such format": (
        ValueError, "format must be one of", lambda: jacobian(jnp.sin, X, format="csr")),
    "a color for all": (
        ValueError, "element (0, 0) of the pattern cannot be read: others of its row",
        lambda: Coloring(Pattern(np.ones((2, 2))), [0, 0], [-1, -1])),
    "too few colors": (
        ValueError, "this pattern needs 3 colors of columns",
        lambda: Coloring(some_pattern(), [0, 0], [-1, -1])),
    "fractions": (
        TypeError, "the colors of rows must be integers",
        lambda: Coloring(some_pattern(), [-1] * 3, [0.5, 1.5])),
    "a coloring of a Hessian": (
        ValueError, "a symmetric coloring reads an element in the place of its mirror image",
        lambda: jacobian(lambda x: x * x[::-1], X,
                         pattern=color(np.eye(6) + np.eye(6)[::-1], "symmetric"))),
    "its mode": (
        ValueError, "a symmetric coloring reads", lambda: jacobian(jnp.sin, X, mode="symmetric")),
    # Matrices that are not sparse.
    "sums of all before": (
        ValueError, "the Jacobian is not sparse there",
        lambda: ft.sparse.jacobian_pattern(jnp.cumsum, jax.ShapeDtypeStruct((100_000,), float))),
    "a sum for each": (
        ValueError, "`broadcast_in_dim` at ",
        lambda: ft.sparse.jacobian_pattern(
            lambda x: jnp.broadcast_to(jnp.sum(x), x.shape),
            jax.ShapeDtypeStruct((100_000,), float))),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake(name: str) -> None:
    error, message, call = MISTAKES[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_a_line_of_the_user() -> None:
    with pytest.raises(ValueError, match=r"`cumsum` at .*test_sparsity_given.py"):
        ft.sparse.jacobian_pattern(lambda x: jnp.cumsum(x), jax.ShapeDtypeStruct((100_000,), float))


def test_an_argument_from_the_end() -> None:
    found = jacobian(lambda a, x: a * x**2, 2.0, X, argnum=-1, format="dense")
    np.testing.assert_allclose(found(2.0, X), np.diag(4 * X))
