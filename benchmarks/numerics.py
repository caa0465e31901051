"""Numerical programs: from a scalar function to a Gaussian process, each `sizes -> Problem`.

Read next: `adbench.py`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.linalg import solve_triangular

from benchmarks.problem import Problem


def scalar() -> Problem:
    def f(x: Any, np: Any = jnp) -> Any:
        return np.sin(x) * np.exp(-x * x) + x / (1.0 + x * x)

    return Problem(f, 0.7)


def chained_sin(length: int) -> Problem:
    """Of a number: XLA takes minutes to compile it for an array."""

    def f(x: Any, np: Any = jnp) -> Any:
        for _ in range(length):
            x = np.sin(x)
        return x

    return Problem(f, 0.7)


def matrix_times_vector(m: int, n: int) -> Problem:
    """`f(x) = A x` from `R^n` to `R^m`: its Jacobian is there already."""
    rng = np.random.default_rng(0)
    return Problem(lambda x, a: a @ x, rng.normal(size=n), (rng.normal(size=(m, n)),))


def until(body: str, size: int, steps: int) -> Problem:
    """A loop that ends when it likes, of so many steps, with a matrix for its carry.

    JAX differentiates a `scan` of as many steps, which stores them all, and Equinox's loop with
    checkpoints, which takes twice the memory of these.
    """
    rng = np.random.default_rng(0)

    def step(c: Any, a: Any) -> Any:
        return {"product": jnp.tanh(c @ a) + 0.1 * c, "cheap": a * c * (2.0 - c)}[body]

    def loop(c: Any, a: Any, n: Any) -> Any:
        def more(state):
            return state[0] < n

        return jnp.sum(lax.while_loop(more, lambda s: (s[0] + 1, step(s[1], a)), (0, c))[1])

    def stored(c: Any, a: Any, n: Any) -> Any:
        return jnp.sum(lax.scan(lambda c, _: (step(c, a), None), c, length=steps)[0])

    def checkpointed(c: Any, a: Any, n: Any) -> Any:
        from equinox.internal import while_loop

        def more(state):
            return state[0] < n

        def body(state):
            return state[0] + 1, step(state[1], a)

        end = while_loop(more, body, (0, c), kind="checkpointed", checkpoints=32)
        return jnp.sum(end[1])

    rivals = {"JAX": stored, "Equinox": checkpointed}
    a = rng.normal(size=(size, size)) / size**0.5 if body == "product" else np.full(size, 0.9)
    return Problem(loop, rng.uniform(0.2, 0.8, (size, size)), (a, steps), rivals)


def svd(rows: int, columns: int) -> Problem:
    """A loss of the singular values and of the first pair of singular vectors.

    The vectors come as a product: each alone may have either sign.
    """
    rng = np.random.default_rng(0)

    def f(x: Any, left: Any, right: Any, np: Any = jnp) -> Any:
        u, s, v = np.linalg.svd(x, full_matrices=False)
        return np.sum(np.log(1.0 + s)) + (left @ u[:, 0]) * (v[0] @ right)

    left, right = rng.normal(size=rows), rng.normal(size=columns)
    return Problem(f, rng.normal(size=(rows, columns)), (left, right))


def gaussian_process(points: int, dimensions: int) -> Problem:
    """The negative log marginal likelihood of `y ~ N(0, K)`, with a length for each dimension.

    K = s^2 exp(-|x - x'|^2 / 2) + e^2 I = L L^T:   |L^-1 y|^2 / 2 + sum log diag L + n/2 log 2 pi
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(points, dimensions))
    y = np.sin(x.sum(axis=1)) + 0.1 * rng.normal(size=points)
    params = {"lengths": np.zeros(dimensions), "scale": np.array(0.0), "noise": np.array(-1.0)}

    def f(params: dict[str, Any], x: Any, y: Any) -> Any:
        x = x * jnp.exp(-params["lengths"])
        squares = jnp.sum(x**2, axis=1)
        distances = squares[:, None] + squares[None, :] - 2.0 * x @ x.T
        kernel = jnp.exp(2.0 * params["scale"] - 0.5 * distances)
        cholesky = jnp.linalg.cholesky(kernel + jnp.exp(2.0 * params["noise"]) * jnp.eye(len(y)))
        white = solve_triangular(cholesky, y, lower=True)
        log_determinant = 2.0 * jnp.sum(jnp.log(jnp.diag(cholesky)))
        return 0.5 * (white @ white + log_determinant + len(y) * np.log(2.0 * np.pi))

    return Problem(f, params, (x, y))
