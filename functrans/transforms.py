"""The public transforms: pytrees in, pytrees out, and checks of the user's arguments.

    jvp       : (a -> b) -> (a, a_dot) -> (b, b_dot)
    linearize : (a -> b) -> a -> (b, a_dot -> b_dot)
    vjp       : (a -> b) -> a -> (b, b_bar -> a_bar)
    grad      : (a -> R) -> a -> a_bar,           grad f x = vjp f x 1

Read next: `jacobians.py`, whole matrices instead of products with a vector.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import tree
from jax.extend.core import ClosedJaxpr

from functrans import jaxpr as jx
from functrans import values
from functrans.errors import checks
from functrans.errors.structures import arguments
from functrans.errors.tracebacks import with_short_traceback
from functrans.flat import Argnums, Flat, answer, select
from functrans.forward import forward
from functrans.jit import Jitted, transformed, transformed_at_primals
from functrans.linear_functions import LinearFunction, Pullback, Pushforward, Spec, Transposed
from functrans.linearize import linearize as linearize_flat
from functrans.reverse import recorded
from functrans.signatures import of_the_arguments, with_signature_of
from functrans.tracer import stage


def make_jaxpr(
    fun: Callable,
    static_argnums: Argnums = (),
    axis_env: Sequence[tuple[Any, int]] | None = None,
    return_shape: bool = False,
) -> Callable[..., Any]:
    """Stage a function with functrans's own tracer, and return its jaxpr.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      static_argnums: the position, or positions, of arguments that are ordinary Python values.
      axis_env: the name and the size of each axis that collectives in `fun` may use.
      return_shape: whether to return the types of the outputs too.

    Returns:
      A function of the same arguments; a `jax.ShapeDtypeStruct` may stand for an array. It returns
      a `ClosedJaxpr`, or with `return_shape` a pair of that and a pytree of
      `jax.ShapeDtypeStruct`.

    Raises:
      TypeError: if an argument or a result is not an array.
      ValueError: if a static argument cannot be hashed.

    See also:
      `functrans.extend.staged`, which gives the flat arguments and the structure of the result too.

    >>> import functrans as ft
    >>> ft.make_jaxpr(lambda x: 2.0 * x)(3.0)
    { lambda ; a:f32[]. let b:f32[] = mul 2.0:f32[] a in (b,) }
    """
    checks.is_function("make_jaxpr", fun)
    static = [static_argnums] if isinstance(static_argnums, int) else [*static_argnums]

    @with_short_traceback
    @functools.wraps(fun)
    def jaxpr_of(*args: Any, **kwargs: Any) -> Any:
        count, word = len(args), "static_argnums"
        # Each by itself: as in JAX, two of them may name one argument.
        chosen = [checks.positions("make_jaxpr", i, count, word)[0] for i in static]
        checks.are_hashable({i: args[i] for i in chosen})
        flags = [i in chosen for i in range(len(args))]
        free, fixed = values.part(args, flags)
        leaves, in_tree = tree.flatten((free, kwargs))

        def of_free(xs, keywords):
            return fun(*values.merge(xs, fixed, flags), **keywords)

        flat = Flat(jx.named_like(fun, of_free), in_tree)
        avals = [checks.type_of("make_jaxpr", x) for x in leaves]
        programs: list[ClosedJaxpr] = []

        def run():
            programs.append(stage(flat, avals, jx.debug_info("make_jaxpr", fun))[0])

        # JAX binds the names of axes only while it traces something.
        jax.make_jaxpr(run, axis_env=axis_env)() if axis_env else run()
        outs: Any = programs[0].out_avals
        shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outs]
        return (programs[0], tree.unflatten(flat.out_tree, shapes)) if return_shape else programs[0]

    return jaxpr_of


def jvp(fun: Callable, primals: Sequence, tangents: Sequence, has_aux: bool = False) -> Any:
    """Push a tangent forward: compute `y = f(x)` and `y_dot = J_f(x) x_dot` in one pass.

    The pass takes about twice the memory of `f`.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      primals: a tuple or list with its arguments, `x`.
      tangents: a tuple or list with a tangent for each argument, `x_dot`, of the structure, shapes
        and dtypes of `primals` (of dtype `float0` for integers).
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.

    Returns:
      `(output, output_tangent)`, or `(output, output_tangent, aux)`. The tangent has the structure,
      shapes and dtypes of the output (dtype `float0` for integers).

    Raises:
      TypeError: if structures or dtypes differ.
      ValueError: if shapes differ.

    See also:
      `linearize`, which pushes many tangents forward at one point; `vjp`, which pulls cotangents
      back.

    Source: R. E. Wengert, A simple automatic derivative evaluation program, Communications of the
    ACM 7 (1964).

    >>> import jax.numpy as jnp, functrans as ft
    >>> y, y_dot = ft.jvp(jnp.square, (3.0,), (1.0,))
    >>> float(y), float(y_dot)
    (9.0, 6.0)
    """
    checks.sequences("jvp", primals, tangents)
    return transformed_at_primals(fun, _jvp, has_aux=has_aux)(primals, tangents)


def _jvp(fun: Callable, has_aux: bool) -> Callable:
    def jvp_at(primals, tangents):
        leaves, in_tree = tree.flatten(primals)
        flat = Flat(fun, in_tree, has_aux)
        given = checks.tangents(primals, tangents)
        outs, out_tangents, aux = jx.within("jvp", forward)(flat, leaves, given)
        out_tangent = tree.unflatten(flat.out_tree, map(values.result, out_tangents))
        return flat.result(outs, out_tangent, aux)

    return jvp_at


def _linear_part(linearized: Callable, kind: type[LinearFunction], spec: Spec) -> Callable:
    """`kind.apply` as a transform, of which `linearized` lends the name and keeps the result."""
    return jx.named_like(linearized, lambda *inputs: kind.apply(spec, *inputs))


def _linear_function(
    name: str, fun: Callable, primals: Sequence, has_aux: bool, kind: type[LinearFunction]
) -> tuple:
    """`linearize` or `vjp`: evaluate now, and keep a linear function of this kind."""
    settings = {"name": name, "has_aux": has_aux, "kind": kind, "apart": isinstance(fun, Jitted)}
    at = transformed_at_primals(fun, _linearize, **settings)
    out, linear, *aux = at(*primals)
    # Keep the compiled linear part with the function, like its other transforms.
    spec, jitted = linear.spec, isinstance(at, Jitted)
    compiled = transformed(at, _linear_part, kind=kind, spec=spec)._compiled() if jitted else None
    return out, kind(linear.residuals, spec, compiled), *aux


def _linearize(fun: Callable, name: str, has_aux: bool, kind: type, apart=False) -> Callable:
    def linearize_at(*primals):
        leaves, in_tree = tree.flatten(primals)
        types = checks.types(name, leaves, lambda: arguments(fun, enumerate(primals)))
        in_avals = [*map(values.tangent_aval, types)]
        moving = tuple(map(values.is_differentiable, in_avals))
        flat = Flat(fun, in_tree, has_aux)
        outs, aux, (jaxpr, residuals, moved) = linearize_flat(flat, leaves, moving, apart)
        out_avals = [values.tangent_aval(jax.typeof(x)) for x in outs]
        spec = Spec(jaxpr, moving, moved, in_tree, flat.out_tree, in_avals, out_avals)
        return flat.result(outs, kind(residuals, spec), aux)

    return linearize_at


def linearize(fun: Callable, *primals: Any, has_aux: bool = False) -> Any:
    """Compute `f(x)`, and keep the derivative at `x` as a linear function `x_dot -> J_f(x) x_dot`.

    `jvp f (x, x_dot)` gives the same numbers. `linearize` evaluates `f` once for many tangents, and
    keeps the values of `f` that they need in memory.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *primals: its arguments, `x`.
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.

    Returns:
      `(output, pushforward)`, or `(output, pushforward, aux)`. The pushforward takes a tangent for
      each argument, of its structure, shapes and dtypes, and returns a tangent like the output. It
      is a pytree, which passes into and out of `jit`, and shows its program as `.jaxpr`.

    Raises:
      TypeError: if an argument or a result is not an array.

    See also:
      `jvp`, for one tangent; `vjp`, for the transpose.

    >>> import jax.numpy as jnp, functrans as ft
    >>> y, pushforward = ft.linearize(jnp.sin, 0.0)
    >>> float(pushforward(2.0))
    2.0
    """
    return _linear_function("linearize", fun, primals, has_aux, Pushforward)


def vjp(fun: Callable, *primals: Any, has_aux: bool = False, reduce_axes: Sequence = ()) -> Any:
    """Compute `f(x)`, and keep the transposed derivative at `x`: `y_bar -> J_f(x)^T y_bar`.

    `vjp` is `linearize`, with the linear function transposed. It keeps the values of `f` that the
    pullback needs in memory.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      *primals: its arguments, `x`.
      has_aux: whether `fun` returns a pair: its output, and a result without a derivative.
      reduce_axes: must be empty, as in JAX.

    Returns:
      `(output, pullback)`, or `(output, pullback, aux)`. The pullback takes a cotangent of the
      structure, shapes and dtypes of the output, and returns a tuple with a cotangent like each
      argument (of dtype `float0` for integers). It is a pytree, as a pushforward is.

    Raises:
      TypeError: if an argument or a result is not an array.

    See also:
      `grad`, for a function to one number; `jvp`, which pushes a tangent forward.

    Source: S. Linnainmaa, Taylor expansion of the accumulated rounding error, BIT 16 (1976).

    >>> import jax.numpy as jnp, functrans as ft
    >>> y, pullback = ft.vjp(jnp.multiply, 2.0, 3.0)
    >>> tuple(map(float, pullback(1.0)))
    (3.0, 2.0)
    """
    checks.no_reduce_axes(reduce_axes)
    return _linear_function("vjp", fun, primals, has_aux, Pullback)


def linear_transpose(fun: Callable, *primals: Any, reduce_axes: Sequence = ()) -> Callable:
    """Transpose a linear function: `<y_bar, f(x)> = <f^T(y_bar), x>`.

    Args:
      fun: a linear function of arrays, or pytrees of arrays, to the same.
      *primals: arguments of its types, or `jax.ShapeDtypeStruct`; their values do not matter.
      reduce_axes: must be empty, as in JAX.

    Returns:
      A function of a cotangent of the output, of its structure, shapes and dtypes. It returns a
      tuple with a cotangent like each argument.

    Raises:
      TypeError: if `fun` is not linear, or if arguments and results are not all of floating-point
        or complex dtypes, or all integers.

    See also:
      `vjp`, the transpose of the derivative, for a function that is not linear.

    >>> import functrans as ft
    >>> float(ft.linear_transpose(lambda x: 3.0 * x, 1.0)(2.0)[0])
    6.0
    """
    checks.is_function("linear_transpose", fun)
    checks.no_reduce_axes(reduce_axes)
    leaves, in_tree = tree.flatten(primals)
    avals = [checks.type_of("linear_transpose", x) for x in leaves]
    flat = Flat(fun, in_tree)
    # On a tape, so that work on other values runs now.
    jaxpr, residuals = recorded(lambda *xs: flat(*xs)[0], avals)
    out_avals = [atom.aval for atom in jaxpr.outvars]
    checks.linear_types([*avals, *out_avals])
    ins, outs = (True,) * len(avals), (True,) * len(out_avals)
    spec = Spec(jaxpr, ins, outs, in_tree, flat.out_tree, avals, out_avals)
    return Transposed(residuals, spec)


def value_and_grad(
    fun: Callable,
    argnums: Argnums = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    allow_int: bool = False,
    reduce_axes: Sequence = (),
) -> Callable[..., Any]:
    """Make a function that computes `fun`, whose result is one number, and its gradient together.

    Args:
      fun: a function of arrays, or pytrees of arrays, to a real scalar (shape `()`).
      argnums: the position, or positions, of the arguments with respect to which to differentiate.
      has_aux: whether `fun` returns a pair: its value, and a result without a derivative.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      allow_int: whether to allow integer arguments; their gradient is of dtype `float0`.
      reduce_axes: must be empty, as in JAX.

    Returns:
      A function of the same arguments that returns `(value, gradient)`, or
      `((value, aux), gradient)`. The gradient is that of `grad`.

    Raises:
      TypeError: as for `grad`.

    See also:
      `grad`, for the gradient alone; `value_and_jacrev`, for a function to an array.

    >>> import functrans as ft
    >>> value, gradient = ft.value_and_grad(lambda x: x * x)(3.0)
    >>> float(value), float(gradient)
    (9.0, 6.0)
    """
    settings = {"has_aux": has_aux, "holomorphic": holomorphic, "allow_int": allow_int}
    return with_gradient("value_and_grad", fun, argnums, reduce_axes, **settings)


def with_gradient(name: str, fun: Any, argnums: Any, reduce_axes: Any, **settings: Any) -> Any:
    """A function to the gradient, for the public function of this name."""
    checks.no_reduce_axes(reduce_axes)
    settings |= {"name": name, "argnums": checks.argnums(argnums)}
    return transformed(fun, _gradient, **settings)


def _gradient(fun, name, argnums, has_aux=False, holomorphic=False, allow_int=False) -> Callable:
    def gradient_at(*args, **kwargs):
        partial, selected = select(name, fun, args, kwargs, argnums)
        allowed = {"holomorphic": holomorphic, "complex_too": True, "allow_int": allow_int}
        checks.inputs(name, fun, argnums, args, **allowed)
        out, pullback, *aux = _linearize(partial, name, has_aux, Pullback)(*selected)
        checks.scalar(name, out, holomorphic)
        gradient = pullback(values.constant(1, jax.typeof(out)))
        return answer(name, out, gradient[0] if isinstance(argnums, int) else gradient, aux)

    return of_the_arguments(fun, name, "gradient", gradient_at)


@with_signature_of(value_and_grad)
def grad(**given: Any) -> Callable:
    """Make a function that computes the gradient of `fun`, whose result is one number.

    In a formula, `grad f x = vjp f x 1`: one pass of reverse mode, for any number of arguments. The
    gradient of a real function of `z = x + i y` is `df/dx - i df/dy`.

    Args:
      fun: a function of arrays, or pytrees of arrays, to a real scalar (shape `()`).
      argnums: the position, or positions, of the arguments with respect to which to differentiate.
      has_aux: whether `fun` returns a pair: its value, and a result without a derivative.
      holomorphic: whether `fun` is a holomorphic function of complex numbers.
      allow_int: whether to allow integer arguments; their gradient is of dtype `float0`.
      reduce_axes: must be empty, as in JAX.

    Returns:
      A function of the same arguments that returns the gradient, or `(gradient, aux)`. The gradient
      has the structure, shapes and dtypes of the argument; for a sequence of `argnums` it is a
      tuple. If `fun` is jitted, so is this function.

    Raises:
      TypeError: if `fun` does not return a real scalar, if an argument holds integers (pass `2.0`
        for `2`), or if `argnums` asks for an argument that is not there.

    See also:
      `value_and_grad`, for the value too; `vjp`, for several outputs; `hvp`, for second
      derivatives.

    >>> import functrans as ft
    >>> float(ft.grad(lambda x: x ** 3)(2.0))
    12.0
    """
    return with_gradient("grad", **given)
