"""Programs for `test_tracer.py`: small functions that together use what JAX's tracing has to offer.

Each is a row of `PROGRAMS`: a function, its arguments, and the options of `make_jaxpr`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import functrans as ft


class Program(NamedTuple):
    """A function, with the arguments at which it is staged and evaluated."""

    fun: Callable
    args: tuple
    options: dict[str, Any]

    @property
    def dynamic(self) -> list:
        """The arguments that are not static, as a flat list."""
        static = self.options.get("static_argnums", ())
        static = {static} if isinstance(static, int) else set(static)
        return jax.tree.leaves([x for i, x in enumerate(self.args) if i not in static])


PROGRAMS: dict[str, Program] = {}


def program(*args: Any, **options: Any) -> Callable[[Callable], Callable]:
    """List the function, by its name."""

    def register(fun: Callable) -> Callable:
        assert fun.__name__ not in PROGRAMS
        PROGRAMS[fun.__name__] = Program(fun, args, options)
        return fun

    return register


X = np.linspace(0.5, 2.0, 4, dtype=np.float32)
Y = np.linspace(-1.0, 1.0, 4, dtype=np.float32)
A = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
SQUARE = (np.eye(3) * 4 + np.arange(9).reshape(3, 3) / 9).astype(np.float32)
POSITIVE = (SQUARE @ SQUARE.T).astype(np.float32)
INTS = np.array([3, 1, 2, 1], np.int32)
COMPLEX = np.array([1 + 2j, -0.5 - 1j, 3j], np.complex64)
IMAGE = np.linspace(-1.0, 1.0, 2 * 6 * 6 * 3, dtype=np.float32).reshape(2, 6, 6, 3)
KERNEL = np.linspace(-1.0, 1.0, 3 * 3 * 3 * 4, dtype=np.float32).reshape(3, 3, 3, 4)
OLD_KEY = np.array([0, 7], np.uint32)
ARRAY = jnp.asarray(Y) * 3
SCALAR = jnp.float32(1.5)


# ---- arguments and results -----------------------------------------------------------------------


@program(X)
def polynomial(x):
    return 2.0 * x**3 - x / 7 + 1


@program({"w": X, "b": (Y, 2.0)}, [X, None])
def pytrees(params, rest):
    w, (b, scale) = params["w"], params["b"]
    return {"sum": w + b, "none": None, "rest": (rest[0] * scale, rest[1])}


@program(X, Y, 1.0)
def unused_inputs(x, y, z):
    del x, z
    return jnp.sin(y)


@program(X, Y)
def outputs_that_are_inputs(x, y):
    return y, x, x, jnp.negative(y)


@program(X)
def outputs_that_are_constants(x):
    return x, 1, 2.5, np.float32(3.0), np.float64(3), np.arange(3), ARRAY, SCALAR, True, 1j


@program()
def no_inputs():
    return jnp.ones(3) + jnp.arange(3)


@program(X)
def no_outputs(x):
    jnp.sin(x)


@program(X)
def an_output_twice(x):
    y = jnp.cos(x)
    return y, y, -y


@program(X)
def a_dead_equation(x):
    jnp.exp(x)
    return jnp.cos(x)


@program(2.0, 3, True, 1j)
def weakly_typed_inputs(x, n, flag, z):
    return x * n, n + 1, ~jnp.asarray(flag), z * x


@program(X, 2.0)
def weak_meets_strong(x, scale):
    return x * scale, scale * 3, jnp.asarray(scale) + 1, x * jnp.float32(2)


@program(np.float32(2.0), np.int32(3), np.bool_(True))
def numpy_scalars(x, n, flag):
    return x * np.float32(3), n * np.int32(2) + x, flag & np.bool_(False)


@program(X, 3, "relu", static_argnums=(1, 2))
def static_arguments(x, n, name):
    assert isinstance(n, int)
    for _ in range(n):
        x = getattr(jax.nn, name)(x) * n
    return x


@program((2, 3), X, static_argnums=0)
def a_static_shape(shape, x):
    return jnp.broadcast_to(x[0], shape)


@program(X, return_shape=True)
def the_shapes_too(x):
    return {"y": (x[:2], None), "z": jnp.argmax(x)}


@program(X, axis_env=[("i", 4)])
def collectives_on_a_named_axis(x):
    return lax.psum(x, "i"), lax.axis_index("i"), lax.pmax(x, "i"), lax.all_gather(x, "i")


@program(jax.ShapeDtypeStruct((4,), np.float32))
def an_abstract_argument(x):
    return jnp.tanh(x).sum()


# ---- constants -----------------------------------------------------------------------------------


@program(X)
def closure_over_arrays(x):
    return x * ARRAY + Y - ARRAY


@program(X)
def closure_over_scalars(x):
    return x * SCALAR + np.float32(2) + 3 + SCALAR


@program(X)
def an_array_made_of_a_scalar(x):
    return x * jnp.array(2.0) + jnp.float32(1) + jnp.asarray(3)


@program(X)
def arrays_made_inside(x):
    return x + jnp.zeros(4) + jnp.ones_like(x) + jnp.full(4, 2.0) + jnp.arange(4.0) + jnp.eye(4)[0]


@program(X)
def a_list_of_numbers(x):
    return x + jnp.array([1.0, 2.0, 3.0, 4.0]) + np.array([1, 2, 3, 4])


@program(X)
def python_literals(x):
    return 1 + x, x - 1.0, 2**x, x // 2, x % 0.75, x > 1, x == 1


@program(X)
def numpy_literals(x):
    return x * np.pi, x + np.float64(2), x * np.int64(3), x * np.float16(0.5)


@program(X)
def a_stack_of_numbers_and_tracers(x):
    return jnp.array([x[0], 1.0, x[1]]), jnp.stack([x, Y])


# ---- types ---------------------------------------------------------------------------------------


@program(INTS)
def integers(n):
    return n * 2 + 1, n // 2, n % 3, n << 1, n & 3, ~n, abs(-n), lax.population_count(n)


@program(X > 1, Y > 0)
def booleans(p, q):
    return p & q, p | ~q, p ^ q, jnp.all(p), jnp.any(q), jnp.logical_and(p, q), p.sum()


@program(COMPLEX)
def complex_numbers(z):
    return z * 1j, jnp.conj(z), z.real, jnp.imag(z), jnp.abs(z), jnp.exp(z) / 2, jnp.angle(z)


@program(X.astype(jnp.bfloat16), X)
def bfloat16(h, x):
    return h * 2, h + x, (h @ h).astype(jnp.float32), jax.nn.softmax(h), h.astype(jnp.bfloat16)


@program(X, INTS)
def conversions(x, n):
    same = x.astype(jnp.float32)
    return same, x.astype(int), n.astype(jnp.float32), lax.convert_element_type(n, n.dtype), n + x


@program(X, 2.0)
def conversions_of_scalars(x, s):
    return (
        jnp.float32(s) * x,
        jnp.asarray(1, np.float32),
        jnp.array(s),
        lax.convert_element_type(1, x.dtype),
    )


@program(X)
def bitcasts(x):
    return lax.bitcast_convert_type(x, jnp.int32), x.view(jnp.uint32)


@program(X)
def a_reduced_precision(x):
    return lax.reduce_precision(x, 5, 10), jnp.finfo(x.dtype).eps * x


# ---- arrays --------------------------------------------------------------------------------------


@program(X, A)
def broadcasts(x, a):
    same = jnp.broadcast_to(x, x.shape)
    return (
        same,
        a + x,
        jnp.broadcast_to(x, (3, 4)),
        lax.broadcast(x, ()),
        x[None, :],
        x[:, None] * 1,
    )


@program(A)
def shapes(a):
    same = a.reshape(a.shape)
    return same, a.T, a.ravel(), a.reshape(2, 6), jnp.squeeze(a[None]), jnp.moveaxis(a, 0, 1)


@program(A)
def pieces(a):
    b, c = jnp.split(a, 2, axis=1)
    return jnp.concatenate([c, b]), jnp.pad(a, 1), jnp.flip(a), jnp.roll(a, 1), jnp.tile(a, (2, 1))


@program(A)
def static_indices(a):
    return a[0], a[-1, 2], a[1:, ::2], a[..., 1], a[::-1], a[np.array([0, 2])], a[None, 1]


@program(A, INTS, 1)
def dynamic_indices(a, n, i):
    return a[i], a[:, n], a[i, 2], jnp.take(a, n, axis=1), jnp.take_along_axis(a, n[None] % 4, 1)


@program(A)
def boolean_indices(a):
    mask = np.array([True, False, True])
    return a[mask], jnp.where(a > 0, a, 0.0), jnp.where(mask[:, None], a, 1)


@program(X, Y)
def updates(x, y):
    return (
        x.at[0].set(1.0),
        x.at[1:3].add(y[:2]),
        x.at[jnp.array([0, 2])].multiply(2),
        x.at[0].get(),
    )


@program(X)
def updates_of_constants(x):
    return ARRAY.at[1].set(x[0]), jnp.zeros(4).at[::2].add(x[:2]), jnp.asarray(Y).at[2].max(x[2])


@program(A, 1)
def dynamic_slices(a, i):
    row = lax.dynamic_slice(a, (i, 0), (1, 4))
    column = lax.dynamic_index_in_dim(a, i, axis=1)
    return lax.dynamic_update_slice(a, row * 2, (i + 1, 0)), column


@program(A, X)
def contractions(a, x):
    both = jnp.einsum("ij,kj->ik", a, a)
    return a @ x, jnp.dot(x, x), both, jnp.einsum("ij,j,i->", a, x, a[:, 0]), jnp.outer(x, x)


@program(A)
def mixed_precision(a):
    return lax.dot(a, a.T, preferred_element_type=jnp.float32, precision="highest")


@program(IMAGE, KERNEL)
def convolutions(image, kernel):
    dims = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=dims)
    return y, jnp.convolve(image[0, 0, :, 0], kernel[0, 0, :, 0])


@program(IMAGE)
def windows(image):
    most = lax.reduce_window(image, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return most, lax.reduce_window(image, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


@program(A)
def reductions(a):
    return a.sum(), a.mean(0), a.max(1), a.prod(), jnp.var(a), a.argmin(1), jnp.linalg.norm(a)


@program(A)
def cumulations(a):
    return jnp.cumsum(a, 0), jnp.cumprod(a, 1), lax.cummax(a), lax.cumlogsumexp(a), jnp.diff(a)


@program(X, A)
def orders(x, a):
    return jnp.sort(a, 0), jnp.argsort(x), lax.top_k(a, 2), jnp.median(x), jnp.lexsort((x, Y))


@program(X)
def a_binary_search(x):
    return jnp.searchsorted(x, 1.0)


@program(X, Y)
def elementwise(x, y):
    clipped = jnp.clip(x, 0.75, 1.5)
    return clipped, jnp.where(x > 1, x, y), jnp.maximum(x, 0), jnp.logaddexp(x, y), jnp.sinc(y)


@program(X)
def special_functions(x):
    return jax.scipy.special.gammaln(x), lax.erf(x), jax.scipy.special.logsumexp(x), lax.rsqrt(x)


@program(POSITIVE, X[:3])
def linear_algebra(a, b):
    return jnp.linalg.cholesky(a), jnp.linalg.solve(a, b), jnp.linalg.det(a), jnp.linalg.eigh(a)


@program(POSITIVE, X[:3])
def matrix_factors(a, b):
    low = jax.scipy.linalg.solve_triangular(a, b, lower=True)
    return low, jnp.linalg.qr(a)[1], jnp.linalg.svd(a, compute_uv=False), jnp.linalg.inv(a)


@program(X)
def fourier_transforms(x):
    return jnp.fft.fft(x), jnp.fft.rfft(x), jnp.fft.irfft(jnp.fft.rfft(x)), jnp.fft.fftshift(x)


# ---- functions within ----------------------------------------------------------------------------


@jax.jit
def _square(x):
    return x * x


@partial(jax.jit, static_argnames=("power",))
def _power(x, power):
    return x**power


@partial(jax.jit, inline=True)
def _inlined(x, y):
    return _square(x) + y, x, ARRAY


@program(X)
def an_inner_jit(x):
    return _square(_square(x)) + _square(2.0 * x)


@program(X)
def inner_jits_that_are_inlined(x):
    a, b, c = _inlined(x, 1.0)
    return a * c, b, jax.jit(partial(_inlined, x))(x)


@program(X)
def inner_jits_with_static_arguments(x):
    return _power(x, 3), _power(x, power=2), jax.jit(lambda x, n: x * n, static_argnums=1)(x, 2)


@program(X)
def nested_jits(x):
    @jax.jit
    def outer(x):
        @jax.jit
        def inner(y):
            return y + x * ARRAY

        return inner(x) + inner(1.0)

    return outer(x)


@program(X, Y)
def a_jit_with_pytrees(x, y):
    @jax.jit
    def named(tree, scale=2.0):
        return {"first": tree[0] * scale, "same": tree[1]}

    return named((x, y)), named((x, None), scale=3)


@program(X)
def a_jit_that_closes_over_the_argument(x):
    return jax.jit(lambda y: x * y + ARRAY)(1.0), jax.jit(lambda: x)()


@program(X)
def a_jit_that_donates(x):
    return jax.jit(lambda y: y + 1, donate_argnums=0)(x * 2)


@program(X)
def a_functrans_jit(x):
    return ft.jit(lambda y: jnp.sin(y) * ARRAY)(x)


@program(X)
def a_functrans_jit_that_is_inlined(x):
    return ft.jit(lambda y: jnp.sin(y) * 2.0, inline=True)(x)


@program(A, X)
def a_vmap(a, x):
    return jax.vmap(jnp.dot, (0, None))(a, x), jax.vmap(jax.vmap(jnp.sin))(a)


@program(A, X)
def a_vmap_with_a_named_axis(a, x):
    return jax.vmap(lambda row: row * x - lax.pmean(row, "rows"), axis_name="rows")(a)


@program(X)
def a_gradient(x):
    return jax.grad(lambda y: jnp.sum(jnp.sin(y) * y**2))(x)


@program(2.0)
def a_second_derivative(x):
    return jax.grad(jax.grad(lambda y: jnp.tanh(y) * x))(x), jax.jvp(jnp.exp, (x,), (1.0,))


@program(X)
def a_jacobian(x):
    return jax.jacfwd(jnp.cumsum)(x), jax.hessian(lambda y: jnp.prod(y))(x)


@program(X)
def a_functrans_gradient(x):
    return ft.grad(lambda y: jnp.sum(jnp.sin(y) * y))(x)


@program(X)
def activations(x):
    return jax.nn.relu(x), jax.nn.softplus(x), jax.nn.gelu(x), jax.nn.silu(x), jax.nn.relu6(x)


@program(X)
def losses(x):
    return jax.nn.softmax(x), jax.nn.log_softmax(x), jax.nn.one_hot(jnp.argmax(x), 4)


@jax.custom_jvp
def _sine(x):
    return jnp.sin(x)


_sine.defjvp(lambda primals, tangents: (_sine(primals[0]), jnp.cos(primals[0]) * tangents[0]))


@partial(jax.custom_jvp, nondiff_argnums=(0, 2))
def _apply(fun, x, scale):
    return fun(x) * scale


@_apply.defjvp
def _apply_jvp(fun, scale, primals, tangents):
    y, y_dot = jax.jvp(fun, primals, tangents)
    return y * scale, y_dot * scale


@jax.custom_vjp
def _clipped(x, y):
    return x * y, {"x": x}


_clipped.defvjp(
    lambda x, y: (_clipped(x, y), (x, y)),
    lambda saved, bars: (jnp.clip(bars[0] * saved[1], -1, 1) + bars[1]["x"], 2 * bars[0]),
)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scaled(scale, x):
    return scale * x


_scaled.defvjp(lambda scale, x: (scale * x, None), lambda scale, saved, bar: (scale * bar,))


@program(X)
def custom_jvp(x):
    return _sine(x), _sine(2.0)


@program(X)
def custom_jvp_with_static_arguments(x):
    return _apply(jnp.exp, x, 2.0), _apply(lambda y: y * ARRAY, x, 3)


@program(X, Y)
def custom_vjp(x, y):
    return _clipped(x, y), _clipped(jnp.sum(x), 2.0)


@program(X)
def custom_vjp_with_static_arguments(x):
    return _scaled(2.0, x), _scaled(3, jnp.sum(x))


@program(X, Y)
def a_custom_rule_made_inside(x, y):
    @jax.custom_jvp
    def shifted(z):
        return jnp.cos(z) + ARRAY

    shifted.defjvps(lambda z_dot, out, z: -jnp.sin(z) * z_dot * y)
    return shifted(x)


@program(X, Y)
def custom_jvp_around_the_argument(x, y):
    @jax.custom_jvp
    def shifted(z):
        return jnp.cos(z) + y

    shifted.defjvps(lambda z_dot, out, z: -jnp.sin(z) * z_dot)
    return shifted(x)


@program(X)
def nested_custom_rules(x):
    @jax.custom_jvp
    def outer(z):
        return _sine(z) * jax.nn.relu(z)

    outer.defjvps(lambda z_dot, out, z: z_dot * _sine(z))
    return outer(x), jax.jit(_sine)(x)


@program(X)
def custom_rules_under_vmap(x):
    return jax.vmap(_sine)(x), jax.vmap(partial(_scaled, 2.0))(x), jax.vmap(_clipped)(x, x)


@program(X)
def a_custom_root(x):
    def newton(f, guess):
        return lax.fori_loop(0, 5, lambda _, y: y - f(y) / (2 * y), guess)

    return lax.custom_root(lambda y: y**2 - x, x, newton, lambda g, y: y / g(jnp.ones_like(y)))


@program(X)
def checkpoints(x):
    policy = jax.checkpoint_policies.dots_saveable
    return jax.checkpoint(jnp.sin)(x), jax.checkpoint(lambda y: (y @ y) * y, policy=policy)(x)


@program(X)
def stopped_gradients(x):
    return lax.stop_gradient(x) * x, lax.optimization_barrier((x, x * 2))


@program(X)
def a_pure_callback(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


# ---- control flow --------------------------------------------------------------------------------


@program(A, X)
def scans(a, x):
    def body(carry, row):
        return carry * 0.5 + row, carry @ ARRAY

    return lax.scan(body, x, a), lax.scan(body, x, a, reverse=True, unroll=2)


@program(X)
def a_scan_over_nothing(x):
    return lax.scan(lambda c, _: (c * x, None), x, None, length=3)


@program(2.0)
def a_weakly_typed_carry(x):
    return lax.scan(lambda c, n: (c * n, c), x, jnp.arange(3.0))[1], lax.map(jnp.sin, jnp.ones(3))


@program(X, 5)
def loops(x, n):
    fixed = lax.fori_loop(0, 3, lambda i, y: y + i, x)
    limit = lax.fori_loop(0, n, lambda i, y: y * X, x)
    return fixed, limit, lax.while_loop(lambda y: y.sum() < 100, lambda y: y * 2 + ARRAY, x)


@program(X, 1)
def branches(x, i):
    chosen = lax.cond(x[0] > 0, jnp.sin, lambda y: y * ARRAY, x)
    switched = lax.switch(i, [jnp.sin, jnp.cos, lambda y: 1.0 * y], x)
    return chosen, switched, lax.cond(i == 0, lambda: x, lambda: jnp.zeros(4))


@program(X)
def branches_known_now(x):
    return lax.cond(True, jnp.sin, jnp.cos, x), lax.switch(1, [jnp.sin, jnp.cos], x)


@program(X, A)
def maps(x, a):
    return lax.map(lambda y: y**2, x), lax.map(jnp.sum, a, batch_size=2)


@program(A)
def associative_scans(a):
    return lax.associative_scan(jnp.add, a), lax.associative_scan(jnp.maximum, a, axis=1)


@program(A, X)
def control_flow_within_control_flow(a, x):
    def body(carry, row):
        carry = lax.cond(row.sum() > 0, lambda c: c + row, lambda c: _square(c), carry)
        return lax.fori_loop(0, 2, lambda i, c: jax.nn.relu(c), carry), jnp.where(row > 0, row, 0.0)

    return lax.scan(jax.checkpoint(body), x, a)


@program(X)
def a_jitted_loop(x):
    return jax.jit(lambda y: lax.fori_loop(0, 3, lambda i, z: jnp.sin(z), y))(x)


# ---- random numbers ------------------------------------------------------------------------------


@program(3)
def random_numbers_of_a_seed(seed):
    key = jax.random.key(seed)
    return jax.random.normal(key, (2,)), jax.random.uniform(jax.random.fold_in(key, 2))


@program(jax.random.key(1))
def random_keys(key):
    first, second = jax.random.split(key)
    return first, jax.random.bernoulli(second, 0.3, (3,)), jax.random.key_data(key)


@program(OLD_KEY)
def old_random_keys(key):
    first, *rest = jax.random.split(key, 3)
    return jax.random.normal(first, (2,)), jax.random.randint(rest[0], (2,), 0, 9), rest[1]


@program(jax.random.key(2), X)
def random_choices(key, x):
    return jax.random.permutation(key, x), jax.random.choice(key, x), jax.random.categorical(key, x)


@program(X)
def random_numbers_of_a_constant(x):
    dropped = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
    return jnp.where(dropped, x, 0.0), jax.random.normal(jax.random.PRNGKey(1)) * x


# ---- names, effects, devices ---------------------------------------------------------------------


@program(X)
def named_scopes(x):
    with jax.named_scope("outer"):
        y = jnp.sin(x)
        with jax.named_scope("inner"):
            return _square(y)


@program(X)
def debug_prints(x):
    jax.debug.print("x = {}", x[0])
    jax.debug.callback(lambda y: None, x)
    return x * 2


@program(X)
def ordered_effects(x):
    jax.debug.print("{}", x.sum(), ordered=True)
    return lax.cond(x[0] > 9, lambda: jax.debug.print("much"), lambda: None)


@program(X)
def sharding_constraints(x):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    there = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("i"))
    return lax.with_sharding_constraint(x * 2, there), jax.device_put(x, there)


@program(X)
def shard_maps(x):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("i")
    return jax.shard_map(lambda y: lax.psum(y, "i"), mesh=mesh, in_specs=spec, out_specs=spec)(x)


@program(X)
def device_puts(x):
    return jax.device_put(x), jax.device_put(X) + x, jax.device_put(x, jax.devices()[0])


@program(X)
def precisions(x):
    with jax.default_matmul_precision("float32"):
        y = x @ x
    with jax.numpy_rank_promotion("allow"):
        return y + jnp.ones((2, 4)) * x


@program(X)
def in_double_precision(x):
    with jax.enable_x64(True):
        return x.astype(jnp.float64) * np.pi
