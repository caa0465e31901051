"""The transforms by their names: pytrees in, pytrees out, and the checks of what a user may pass.

    jvp       : (a -> b) -> (a, a_dot) -> (b, b_dot)
    linearize : (a -> b) -> a -> (b, a_dot -> b_dot)
    vjp       : (a -> b) -> a -> (b, b_bar -> a_bar)
    grad      : (a -> R) -> a -> a_bar,           grad f x = vjp f x 1

Read next: `jacobians.py`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import tree
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.tree_util import register_pytree_node_class

from functrans import checks
from functrans import jaxpr as jx
from functrans.forward import forward
from functrans.jaxpr import Linear, Zero
from functrans.jit import Jitted, jit
from functrans.linearize import LinearProgram
from functrans.linearize import linearize as linearize_flat
from functrans.reverse import transpose
from functrans.tracer import stage


def of_jitted(transform: Callable) -> Callable:
    """A transform of functions; the transform of a jitted function is jitted."""
    signature = inspect.signature(transform)

    @functools.wraps(transform)
    def wrapper(fun, *args, **kwargs):
        if not isinstance(fun, Jitted):
            return transform(fun, *args, **kwargs)
        settings = signature.bind(fun, *args, **kwargs).arguments
        return fun.transformed(transform, **dict(list(settings.items())[1:]))

    return wrapper


class Flat:
    """A function of pytrees as one of flat lists; it remembers the structures that it met."""

    def __init__(self, fun: Callable, in_tree: Any, has_aux: bool):
        self.fun = fun
        self.in_tree = in_tree
        self.has_aux = has_aux
        self.__name__ = getattr(fun, "__name__", type(fun).__name__)
        self.out_tree: Any = None
        self.aux_tree: Any = None

    def __call__(self, *leaves: Any) -> tuple[list, list]:
        out, aux = self.fun(*tree.unflatten(self.in_tree, leaves)), None
        if self.has_aux:
            out, aux = checks.pair(out)
        outs, self.out_tree = tree.flatten(out)
        aux, self.aux_tree = tree.flatten(aux)
        checks.are_values(self.fun, outs)
        return outs, aux


def make_jaxpr(
    fun: Callable,
    static_argnums: int | Sequence[int] = (),
    axis_env: Sequence[tuple[Any, int]] | None = None,
    return_shape: bool = False,
) -> Callable[..., Any]:
    """Write down the jaxpr of a function, with functrans's own tracer.

    Args:
      fun: a function of pytrees of arrays.
      static_argnums: positions of arguments that are ordinary Python values.
      axis_env: names and sizes of axes that collectives in `fun` may use.
      return_shape: whether to return also the types of the outputs, as a pytree.

    Returns:
      A function of the same arguments (or of `jax.ShapeDtypeStruct`s) that returns a `ClosedJaxpr`.

    Raises:
      TypeError: if an argument or a result is not an array.

    >>> import functrans as ft
    >>> ft.make_jaxpr(lambda x: 2.0 * x)(3.0)
    { lambda ; a:f32[]. let b:f32[] = mul 2.0:f32[] a in (b,) }
    """
    checks.is_function("make_jaxpr", fun)
    static = {static_argnums} if isinstance(static_argnums, int) else set(static_argnums)

    @functools.wraps(fun)
    def jaxpr_of(*args: Any, **kwargs: Any) -> Any:
        fixed = {i % len(args): args[i] for i in static}
        checks.are_hashable(fixed)
        dynamic = [x for i, x in enumerate(args) if i not in fixed]

        def of_dynamic(dynamic, kwargs):
            rest = iter(dynamic)
            full = [fixed[i] if i in fixed else next(rest) for i in range(len(args))]
            return fun(*full, **kwargs)

        leaves, in_tree = tree.flatten((dynamic, kwargs))
        flat = Flat(of_dynamic, in_tree, has_aux=False)
        avals = [checks.type_of("make_jaxpr", x) for x in leaves]
        found: list = []

        def run():
            found.append(stage(lambda *xs: flat(*xs)[0], avals, jx.debug_info("make_jaxpr", fun)))

        if axis_env:
            jax.make_jaxpr(run, axis_env=axis_env)()
        else:
            run()
        program: ClosedJaxpr = found[0]
        if not return_shape:
            return program
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in program.out_avals]
        return program, tree.unflatten(flat.out_tree, shapes)

    return jaxpr_of


def jvp(fun: Callable, primals: Sequence, tangents: Sequence, has_aux: bool = False) -> Any:
    """Push a tangent forward: `f(x)` and `J_f(x) x_dot`, in one pass and constant memory.

    Args:
      fun: a function of arrays or pytrees of arrays.
      primals: a tuple or list with its arguments.
      tangents: the same structure, shapes and dtypes as `primals` (`float0` where these are
        integers).
      has_aux: whether `fun` returns a pair of its output and something not differentiated.

    Returns:
      `(output, output_tangent)`, or `(output, output_tangent, aux)`.

    Raises:
      TypeError: if structures or dtypes differ. ValueError: if shapes do.

    >>> import jax.numpy as jnp, functrans as ft
    >>> y, y_dot = ft.jvp(jnp.square, (3.0,), (1.0,))
    >>> float(y), float(y_dot)
    (9.0, 6.0)
    """
    checks.is_function("jvp", fun)
    primals, tangents = checks.sequences("jvp", primals, tangents)
    if isinstance(fun, Jitted) and fun.has_plain_arguments:
        return fun.transformed(_jvp_of, has_aux=has_aux)(primals, tangents)
    leaves, in_tree = tree.flatten(primals)
    tangent_leaves = checks.tangents("jvp", leaves, in_tree, tangents)
    flat = Flat(fun, in_tree, has_aux)
    outs, out_tangents, aux = forward(flat, leaves, tangent_leaves)
    out = tree.unflatten(flat.out_tree, outs)
    out_tangent = tree.unflatten(flat.out_tree, map(jx.instantiate, out_tangents))
    return (out, out_tangent, tree.unflatten(flat.aux_tree, aux)) if has_aux else (out, out_tangent)


def _jvp_of(fun: Callable, has_aux: bool) -> Callable:
    def jvp_at(primals, tangents):
        return jvp(fun, primals, tangents, has_aux=has_aux)

    return jvp_at


class _Spec:
    """What is static in a linear function: its jaxpr, and the structures of input and output."""

    def __init__(self, program: LinearProgram, moving: Sequence[bool], flat: Flat, leaves: Sequence,
                 outs: Sequence, compiled: bool = False):
        self.jaxpr: Jaxpr = program.jaxpr
        self.zeros = program.zeros
        self.moving = tuple(moving)
        self.in_tree, self.out_tree = flat.in_tree, flat.out_tree
        self.in_avals = [jx.typeof(x).to_tangent_aval() for x in leaves]
        self.out_avals = [jx.typeof(x).to_tangent_aval() for x in outs]


class LinearFunction:
    """A linear function that an evaluation has left behind; a pytree whose leaves are residuals."""

    def __init__(self, spec: _Spec, residuals: Sequence, compiled: bool = False):
        self.spec = spec
        self.residuals = list(residuals)
        self.compiled = compiled

    def tree_flatten(self):
        return self.residuals, (self.spec, self.compiled)

    @classmethod
    def tree_unflatten(cls, static, residuals):
        spec, compiled = static
        return cls(spec, residuals, compiled)

    @property
    def jaxpr(self) -> ClosedJaxpr:
        """The linear jaxpr, `tangents in -> tangents out`, with the residuals as constants."""
        program, split = self.spec.jaxpr, len(self.residuals)
        return jx.closed(
            program.invars[split:],
            program.outvars,
            program.eqns,
            program.debug_info,
            program.invars[:split],
            self.residuals,
        )

    def __repr__(self):
        return f"{type(self).__name__}({self.jaxpr})"


@register_pytree_node_class
class Pushforward(LinearFunction):
    """`x_dot -> J x_dot`, what `linearize` returns; call it with a tangent for each argument."""

    def __call__(self, *tangents: Any) -> Any:
        spec = self.spec
        given = checks.linear_input("the pushforward", spec.in_tree, spec.in_avals, tangents)
        moving = [t for t, moves in zip(given, spec.moving, strict=True) if moves]
        outs = jx.evaluate(jx.closed_again(spec.jaxpr), *self.residuals, *moving)
        return tree.unflatten(spec.out_tree, map(jx.instantiate, jx.fill(spec.zeros, outs)))


@register_pytree_node_class
class Pullback(LinearFunction):
    """`y_bar -> J^T y_bar`, what `vjp` returns; call it with a cotangent of the output."""

    def __call__(self, cotangent: Any) -> Any:
        if self.compiled:
            return _pull_compiled(self, cotangent)
        return self.pull(cotangent)

    def pull(self, cotangent: Any) -> Any:
        spec = self.spec
        given = checks.linear_input("the pullback", spec.out_tree, spec.out_avals, cotangent)
        written = [y for y, zero in zip(given, spec.zeros, strict=True) if zero is None]
        linear = [Linear(a) for a, m in zip(spec.in_avals, spec.moving, strict=True) if m]
        x_bars = transpose(spec.jaxpr, [*self.residuals, *linear], written)[len(self.residuals) :]
        rest = iter(x_bars)
        filled = [
            next(rest) if moves else Zero(aval)
            for moves, aval in zip(spec.moving, spec.in_avals, strict=True)
        ]
        return tree.unflatten(spec.in_tree, map(jx.instantiate, filled))


def _linearize(fun: Callable, primals: Sequence, has_aux: bool, kind: type) -> tuple:
    leaves, in_tree = tree.flatten(tuple(primals))
    moving = [jx.is_differentiable(checks.type_of("linearize", x)) for x in leaves]
    flat = Flat(fun, in_tree, has_aux)
    outs, aux, program = linearize_flat(flat, leaves, moving)
    spec = _Spec(program, moving, flat, leaves, outs)
    out = tree.unflatten(flat.out_tree, outs)
    linear = kind(spec, program.residuals)
    return (out, linear, tree.unflatten(flat.aux_tree, aux)) if has_aux else (out, linear)


def linearize(fun: Callable, *primals: Any, has_aux: bool = False) -> Any:
    """Evaluate a function and keep its derivative there, as a linear function of the tangents.

    Args:
      fun: a function of arrays or pytrees of arrays.
      *primals: its arguments.
      has_aux: whether `fun` returns a pair of its output and something not differentiated.

    Returns:
      `(output, pushforward)` or `(output, pushforward, aux)`. The pushforward can be called many
      times, passes into and out of `jit`, and shows its `.jaxpr`.

    >>> import jax.numpy as jnp, functrans as ft
    >>> y, pushforward = ft.linearize(jnp.sin, 0.0)
    >>> float(pushforward(2.0))
    2.0
    """
    checks.is_function("linearize", fun)
    if isinstance(fun, Jitted) and fun.has_plain_arguments:
        return fun.transformed(_linearize_of, has_aux=has_aux)(*primals)
    return _linearize(fun, primals, has_aux, Pushforward)


def _linearize_of(fun: Callable, has_aux: bool) -> Callable:
    return lambda *primals: _linearize(fun, primals, has_aux, Pushforward)


def vjp(fun: Callable, *primals: Any, has_aux: bool = False, reduce_axes: Sequence = ()) -> Any:
    """Evaluate a function and keep its transposed derivative, `y_bar -> J^T y_bar`.

    Args:
      fun: a function of arrays or pytrees of arrays.
      *primals: its arguments.
      has_aux: whether `fun` returns a pair of its output and something not differentiated.
      reduce_axes: must be empty, as in JAX.

    Returns:
      `(output, pullback)` or `(output, pullback, aux)`; the pullback takes a cotangent of the
      output and returns a tuple with one for each argument.

    >>> import jax.numpy as jnp, functrans as ft
    >>> y, pullback = ft.vjp(jnp.multiply, 2.0, 3.0)
    >>> tuple(map(float, pullback(1.0)))
    (3.0, 2.0)
    """
    checks.is_function("vjp", fun)
    checks.no_reduce_axes(reduce_axes)
    if isinstance(fun, Jitted) and fun.has_plain_arguments:
        out, pullback, *aux = fun.transformed(_vjp_of, has_aux=has_aux)(*primals)
        return out, Pullback(pullback.spec, pullback.residuals, compiled=True), *aux
    return _linearize(fun, primals, has_aux, Pullback)


def _vjp_of(fun: Callable, has_aux: bool) -> Callable:
    return lambda *primals: _linearize(fun, primals, has_aux, Pullback)


_pull_compiled = jit(Pullback.pull)


def linear_transpose(fun: Callable, *primals: Any, reduce_axes: Sequence = ()) -> Callable:
    """Transpose a linear function: `<y_bar, f(x)> = <f^T(y_bar), x>`.

    Args:
      fun: a linear function of arrays or pytrees of arrays.
      *primals: arguments of the types it takes (or `jax.ShapeDtypeStruct`s); values do not matter.
      reduce_axes: must be empty, as in JAX.

    Returns:
      A function of a cotangent of the output that returns a tuple of cotangents of the inputs.

    Raises:
      TypeError: if `fun` is not linear, or an argument or result is not of floating-point type.

    >>> import functrans as ft
    >>> float(ft.linear_transpose(lambda x: 3.0 * x, 1.0)(2.0)[0])
    6.0
    """
    checks.is_function("linear_transpose", fun)
    checks.no_reduce_axes(reduce_axes)
    leaves, in_tree = tree.flatten(primals)
    avals = [checks.type_of("linear_transpose", x) for x in leaves]
    flat = Flat(fun, in_tree, has_aux=False)
    program = stage(lambda *xs: flat(*xs)[0], avals, jx.debug_info("linear_transpose", fun))
    checks.have_tangents("linear_transpose", [*avals, *program.out_avals])

    def transposed(cotangent: Any) -> Any:
        given = checks.linear_input("the transpose", flat.out_tree, program.out_avals, cotangent)
        jaxpr, consts = jx.opened(program)
        linear = [Linear(aval) for aval in avals]
        x_bars = transpose(jaxpr, [*consts, *linear], given)[len(consts) :]
        return tree.unflatten(in_tree, map(jx.instantiate, x_bars))

    return transposed


def value_and_grad(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence = (),
) -> Callable[..., tuple[Any, Any]]:
    """A function that evaluates `fun`, which returns a scalar, together with its gradient.

    The arguments are those of `grad`.

    Returns:
      A function of the same arguments that returns `(value, gradient)`, or
      `((value, aux), gradient)`.

    >>> import functrans as ft
    >>> value, gradient = ft.value_and_grad(lambda x: x * x)(3.0)
    >>> float(value), float(gradient)
    (9.0, 6.0)
    """
    return _value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, reduce_axes)


@of_jitted
def _value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, reduce_axes):
    checks.is_function("value_and_grad", fun)
    checks.no_reduce_axes(reduce_axes)
    argnums = checks.argnums(argnums)

    @functools.wraps(fun, assigned=("__name__", "__qualname__"), updated=())
    def value_and_gradient(*args: Any, **kwargs: Any) -> Any:
        partial, selected = select("grad", fun, args, kwargs, argnums)
        for leaf in tree.leaves(selected):
            checks.grad_input("grad", leaf, holomorphic, allow_int)
        out, pullback, *aux = _linearize(partial, selected, has_aux, Pullback)
        checks.grad_output(out, holomorphic)
        gradient = pullback(jx.one(jx.typeof(out)))
        gradient = gradient[0] if isinstance(argnums, int) else gradient
        return ((out, *aux) if has_aux else out), gradient

    return value_and_gradient


def grad(
    fun: Callable,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence = (),
) -> Callable:
    """A function that evaluates the gradient of `fun`, which returns a scalar.

    Args:
      fun: a function of arrays or pytrees of arrays to a real scalar.
      argnums: the position, or positions, of the arguments with respect to which to differentiate.
      has_aux: whether `fun` returns a pair of its value and something not differentiated.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      allow_int: whether integers may be differentiated with respect to; their gradient is `float0`.
      reduce_axes: must be empty, as in JAX.

    Returns:
      A function of the same arguments that returns the gradient, with the structure, shapes and
      dtypes of the argument (a tuple, if `argnums` is a sequence), or `(gradient, aux)`.

    Raises:
      TypeError: if `fun` does not return a scalar, or an argument is not of a real dtype.
      ValueError: if there are fewer arguments than `argnums` says.

    >>> import functrans as ft
    >>> float(ft.grad(lambda x: x ** 3)(2.0))
    12.0
    """
    return _grad(fun, argnums, has_aux, holomorphic, allow_int, reduce_axes)


@of_jitted
def _grad(fun, argnums, has_aux, holomorphic, allow_int, reduce_axes):
    both = _value_and_grad(fun, argnums, has_aux, holomorphic, allow_int, reduce_axes)

    @functools.wraps(fun, assigned=("__name__", "__qualname__", "__doc__"), updated=())
    def gradient(*args: Any, **kwargs: Any) -> Any:
        value, grads = both(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return gradient


def select(
    name: str, fun: Callable, args: tuple, kwargs: dict, argnums: int | tuple[int, ...]
) -> tuple[Callable, tuple]:
    """`fun` as a function of the arguments `argnums` alone; and these arguments."""
    positions = checks.positions(name, argnums, len(args))

    def partial(*selected):
        full = list(args)
        for i, x in zip(positions, selected, strict=True):
            full[i] = x
        return fun(*full, **kwargs)

    partial.__name__ = getattr(fun, "__name__", type(fun).__name__)
    return partial, tuple(args[i] for i in positions)
