"""Functions whose Jacobians and Hessians are sparse: `sizes -> Problem`.

    a line, a chain, a rod three nonzeros in each row
    Bratu's equation       -(u_xx + u_yy) = exp(u) on a square, with five points; and its energy
    a graph                one round of messages

Read next: `series.py`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problem import Problem


def line(n: int) -> Problem:
    def fun(x):
        x = jnp.pad(x, 1)
        return x[2:] * x[:-2] + jnp.sin(x[1:-1]) * x[1:-1] ** 2

    return Problem(fun, np.linspace(0.1, 1, n, dtype=np.float32))


def chain(n: int) -> Problem:
    """Rosenbrock's function in many variables."""

    def fun(x):
        return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)

    return Problem(fun, np.linspace(0.1, 1, n, dtype=np.float32))


def rod(n: int) -> Problem:
    """The energy of Bratu's equation in one dimension."""

    def fun(u):
        return jnp.sum(jnp.diff(jnp.pad(u, 1)) ** 2) / 2 - jnp.sum(jnp.exp(u)) / n**2

    return Problem(fun, np.linspace(0, 1, n, dtype=np.float32))


def bratu(n: int) -> Problem:
    def fun(u):
        p = jnp.pad(u.reshape(n, n), 1)
        around = p[2:, 1:-1] + p[:-2, 1:-1] + p[1:-1, 2:] + p[1:-1, :-2]
        return (4 * p[1:-1, 1:-1] - around).ravel() - jnp.exp(u) / n**2

    return Problem(fun, np.linspace(0, 1, n * n, dtype=np.float32))


def bratu_energy(n: int) -> Problem:
    def fun(u):
        p = jnp.pad(u.reshape(n, n), 1)
        slopes = jnp.sum((p[1:] - p[:-1]) ** 2) + jnp.sum((p[:, 1:] - p[:, :-1]) ** 2)
        return slopes / 2 - jnp.sum(jnp.exp(u)) / n**2

    return Problem(fun, np.linspace(0, 1, n * n, dtype=np.float32))


def graph(nodes: int, edges: int, width: int) -> Problem:
    rng = np.random.default_rng(0)
    ends = rng.integers(0, nodes, (2, edges))
    weights = rng.normal(size=(width, width)).astype(np.float32)

    def fun(x):
        h = x.reshape(nodes, width)
        sent = jnp.tanh(h[ends[0]] @ weights)
        return (h**2 + jax.ops.segment_sum(sent, ends[1], nodes)).ravel()

    return Problem(fun, rng.normal(size=nodes * width).astype(np.float32))
