"""Rules that "hi" primitives bring along: a package's own ones, and JAX's next custom rules.

Each rule gives ten times the derivative of its function, so that one sees who was asked.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import hijax

import functrans as ft

pytestmark = pytest.mark.usefixtures("quick_compilation", "float64")

HiPrim: Any = getattr(hijax, "HiPrim", None) or hijax.VJPHiPrimitive  # the name before JAX 0.11
X, Y = np.asarray([0.3, -0.7, 1.1]), np.asarray([1.2, 0.4, -0.9])


class Product(HiPrim):
    """x y^2, without any rule: its function is differentiated."""

    def __init__(self, aval: Any):
        self.in_avals, self.out_aval, self.params = (aval, aval), aval, {}
        super().__init__()

    def expand(self, x, y):
        return x * y * y

    def batch(self, axis_data, args, dims):
        fronts = [jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
        return type(self)(jax.typeof(fronts[0]))(*fronts), 0


def slope(x: Any, y: Any, x_dot: Any, y_dot: Any) -> Any:
    return 10 * (x_dot * y * y + 2 * x * y * y_dot)


class ByJvp(Product):
    def jvp(self, primals, tangents):
        return self(*primals), slope(*primals, *map(hijax.instantiate_zeros, tangents))


class ByLin(Product):
    def lin(self, moving, x, y):
        return self(x, y), {"x": x, "y": y}

    def linearized(self, residuals, x_dot, y_dot):
        dots = map(hijax.instantiate_zeros, (x_dot, y_dot))
        return slope(residuals["x"], residuals["y"], *dots)


class ByVjp(Product):
    def vjp_fwd(self, moving, x, y):
        seen.append(moving)
        return self(x, y), (x, y)

    def vjp_bwd_retval(self, residuals, z_bar):
        x, y = residuals
        return 10 * z_bar * y * y, 20 * z_bar * x * y


class ByBoth(ByVjp, ByJvp):
    """Reverse mode asks for the one, forward mode for the other."""

    def jvp(self, primals, tangents):
        out, dot = super().jvp(primals, tangents)
        return out, 2 * dot


seen: list[Any] = []


def tenfold(primitive: type) -> Callable:
    return lambda x, y: primitive(jax.typeof(x))(x, jnp.sin(y))


def all_that_one_may_ask(ad: ModuleType, fun: Callable, factor: float = 1.0) -> dict[str, Any]:
    """`factor` is that of the derivative in forward mode."""

    def loss(x, y):
        return jnp.sum(fun(x, y))

    def looped(x):
        return jnp.sum(lax.scan(lambda c, _: (fun(c, x) * 0.1, None), x, length=2)[0])

    def branched(x):
        return lax.cond(x[0] > 0, lambda: jnp.sum(jax.jit(fun)(x, Y)), lambda: 0.0)

    batch = jnp.stack([X, Y])
    gradient = ad.grad(loss, (0, 1))
    return {
        "eager": gradient(X, Y),
        "compiled": ad.jit(gradient)(X, Y),
        "compiled inside": ad.grad(ad.jit(loss), (0, 1))(X, Y),
        "in a loop": ad.grad(looped)(X),
        "in a branch": ad.grad(branched)(X),
        "checkpointed": ad.grad(jax.checkpoint(loss), (0, 1))(X, Y),
        "one argument": ad.grad(loss)(X, Y),
        "vmapped": jax.vmap(gradient)(batch, batch + 1),
        "vmapped, compiled": jax.vmap(ad.jit(gradient))(batch, batch + 1),
        "of a vmapped": ad.grad(lambda x: jnp.sum(jax.vmap(ad.jit(fun))(x, x + 1)))(batch),
        "twice": ad.grad(lambda x: jnp.sum(ad.grad(loss)(x, Y) * x))(X),
        "forward": ad.jvp(fun, (X, Y), (factor * Y, factor * X))[1],
        "forward, compiled": ad.jvp(ad.jit(fun), (X, Y), (factor * Y, factor * X)),
        "linearized": ad.linearize(fun, X, Y)[1](Y, X),
    }


@jax.custom_jvp
def reference(x: Any, y: Any) -> Any:
    return x * y * y


reference.defjvp(lambda primals, tangents: (reference(*primals), slope(*primals, *tangents)))


@pytest.mark.parametrize("primitive", [ByJvp, ByLin, ByVjp, ByBoth])
def test_the_rules_of_a_package(primitive: type) -> None:
    factor = 2.0 if primitive is ByBoth else 1.0
    got = all_that_one_may_ask(ft, tenfold(primitive))
    want = all_that_one_may_ask(jax, lambda x, y: reference(x, jnp.sin(y)), factor)
    got["forward, compiled"], want["forward, compiled"] = (
        tree["forward, compiled"][1] for tree in (got, want)
    )
    chex.assert_trees_all_close(got, want, rtol=1e-12)


def test_what_does_not_move_is_said() -> None:
    seen.clear()
    ft.grad(lambda x: jnp.sum(tenfold(ByVjp)(x, Y)))(X)
    assert seen == [(True, False)]


def test_without_a_rule_the_function_is_differentiated() -> None:
    got = ft.jit(ft.grad(lambda *args: jnp.sum(tenfold(Product)(*args)), (0, 1)))(X, Y)
    want = jax.grad(lambda x, y: jnp.sum(x * jnp.sin(y) ** 2), (0, 1))(X, Y)
    chex.assert_trees_all_close(got, want, rtol=1e-12)


def test_a_linear_one_has_a_transpose() -> None:
    product = Product(jax.typeof(jnp.asarray(X)))
    transposed = ft.linear_transpose(lambda x: ft.jit(product)(x, Y), X)
    np.testing.assert_allclose(transposed(X)[0], X * Y * Y, rtol=1e-12)


# JAX's next custom_jvp and custom_vjp. The configuration holds for a process.

NEXT = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
import chex, jax
import jax.numpy as jnp
from functools import partial
import functrans as ft
from test_hi import X, all_that_one_may_ask, slope

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
NAMES = [name for name in ("jax_custom_vjp3", "jax_custom_jvp3") if hasattr(jax.config, name)]
assert "jax_custom_vjp3" in NAMES


def made():
    @jax.custom_jvp
    def j(x, y):
        return x * y * y

    @jax.custom_vjp
    def v(x, y):
        return x * y * y

    @partial(jax.custom_vjp, nondiff_argnums=(0,))
    def n(f, x, y):
        return f(x) * y

    def kept(x, y):
        return x * jnp.sin(y), (x, y)

    @jax.custom_vjp
    def z(x, y):
        return x * jnp.sin(y), y

    j.defjvp(lambda p, t: (j(*p), slope(*p, *t)))
    v.defvjp(lambda x, y: (v(x, y), (x, y)), lambda r, g: (10 * g * r[1] ** 2, None))
    n.defvjp(lambda f, x, y: (n(f, x, y), (x, y)), lambda f, r, g: (10 * g * f(r[1]), g * 3))

    def forward(x, y):
        return z(x.value, y.value), (x.value, y.value)

    def backward(r, g):
        second = 0.0 if isinstance(g[1], jax.custom_derivatives.SymbolicZero) else g[1]
        return 10 * g[0] * jnp.sin(r[1]), second + g[0]

    z.defvjp(forward, backward, symbolic_zeros=True)
    return {"jvp": j, "vjp": v, "nondiff": partial(n, jnp.sin), "zeros": lambda *a: z(*a)[0]}


def reverse(ad, fun):
    found = all_that_one_may_ask(ad, fun) if ad is ft else all_that_one_may_ask(Reverse, fun)
    return {k: v for k, v in found.items() if "forward" not in k and k != "linearized"}


class Reverse:
    grad, jit = jax.grad, jax.jit
    jvp = linearize = staticmethod(lambda f, *args: (0.0, lambda *_: 0.0))


want = {name: reverse(jax, fun) for name, fun in made().items()}
for name in NAMES:
    jax.config.update(name, True)
functions = made()
got = {name: reverse(ft, fun) for name, fun in functions.items()}
chex.assert_trees_all_close(got, want, rtol=1e-11)
text = str(jax.make_jaxpr(functions["vjp"])(X, X))
assert "custom_vjp_call" not in text, text
"""


def test_the_next_custom_rules_of_jax() -> None:
    """The same as of the present ones, in a process of its own."""
    folder = __file__.rpartition("/")[0]
    subprocess.run([sys.executable, "-W", "error", "-c", NEXT, folder], check=True)
