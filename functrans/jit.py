"""Compilation: stage a function once, lower it through XLA, dispatch from C++.

    jit : (a -> b) -> (a -> b)

functrans's tracer stages the function, and its jaxpr goes to `jax.jit` as *one* equation.  So JAX
traces nothing again, and a call takes JAX's path in C++.  A transform of a jitted function is
itself jitted,

    grad(jit(g)) = jit(grad(g))

and functrans makes it once for `g`: a table keeps the compiled functions of `g`, and drops them
when `g` dies (`caches.py`).

Read next: `flat.py`, which leads from pytrees to flat lists and back.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import jax.core

from functrans import caches, values
from functrans import jaxpr as jx
from functrans.errors import checks
from functrans.errors.tracebacks import shorten, with_short_traceback
from functrans.programs.jitted import bind_jit
from functrans.tracer import stage

# A transform of a jitted function inherits the options that concern the arguments or the compiler.
# Those that concern the results do not fit, and a derivative gets no donations.
_OF_ARGUMENTS = ("static_argnums", "static_argnames", "in_shardings", "keep_unused")
_INHERITED = (*_OF_ARGUMENTS, "compiler_options", "device", "backend")


def _method(name: str) -> Callable:
    return lambda self, *args, **kwargs: getattr(self._compiled(), name)(*args, **kwargs)


class Jitted:
    """A function compiled by `jit`; call it as you call the function.

    `__wrapped__` is the user's function. `trace`, `lower`, `eval_shape` and `clear_cache` work as
    they do for a function compiled by `jax.jit`.
    """

    def __init__(self, root: Callable, key: tuple, make: Callable[[], Any], options: dict):
        # First, since it copies `root`'s `__dict__`, which may already hold the fields below.
        functools.update_wrapper(self, root)
        # `_call` holds the user's function weakly; `_root` keeps it alive as long as this object.
        self._root, self._key, self._make, self._options = root, key, make, options
        self._has_options_of_arguments = any(map(options.get, _OF_ARGUMENTS))
        self._version: int | None = None
        self.__doc__ = self._compiled().__doc__  # for a derivative, that of the derivative

    def _compiled(self) -> Any:
        """The compiled function, with the current rules."""
        if self._version != caches.Version.rules:
            self._version = caches.Version.rules
            self._call = caches.by_function(self._root, (*self._key, self._version), self._make)
            self._transforms: dict[tuple, Jitted] = {}
        return self._call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # A call adds one Python frame, this one.
        call = self._call if self._version == caches.Version.rules else self._compiled()
        try:
            return call(*args, **kwargs)
        except Exception as error:
            shorten(error)
            raise

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<functrans.jit of {self._root!r}>"

    def _transform(self, transform: Callable, settings: dict) -> Jitted:
        self._compiled()
        transforms, key = self._transforms, (transform, *settings.items())
        if key not in transforms:
            options = {k: v for k, v in self._options.items() if k in _INHERITED}

            def make():
                call = self._compiled()
                # Compiler options apply to a whole program: give them to the derivative, and not
                # to the function inside.
                call = call.__wrapped__ if options.get("compiler_options") else call
                return _compile(transform(call, **settings), options)

            transforms[key] = Jitted(self._root, (*self._key, *key), make, options)
        return transforms[key]

    # Methods, so that `self`, and with it the function, lives through `jit(fun).lower(x)`.
    trace, lower = _method("trace"), _method("lower")
    eval_shape, clear_cache = _method("eval_shape"), _method("clear_cache")


def transformed(fun: Callable, transform: Callable, **settings: Any) -> Callable:
    """Apply a transform to a function: `transform(fun, **settings)`, compiled if `fun` is.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      transform: a function of `fun` and the settings. It returns a function of the same arguments
        as `fun`.
      **settings: keyword arguments of `transform`. They must be hashable; a `name` is used in error
        messages.

    Returns:
      The transformed function. If `fun` is jitted, so is this function, and it is kept with `fun`.

    Raises:
      TypeError: if `fun` is not callable.

    See also:
      `transformed_at_primals`, for a transform that takes primals, as `jvp` does.

    >>> import functrans as ft
    >>> from functrans import extend
    >>> def _twice(fun, name):
    ...     return lambda *args: 2.0 * fun(*args)
    >>> float(extend.transformed(ft.jit(lambda x: x * x), _twice, name="twice")(3.0))
    18.0
    """
    if isinstance(fun, Jitted):
        return fun._transform(transform, settings)
    checks.is_function(settings.get("name") or transform.__name__.strip("_"), fun)
    return with_short_traceback(transform(fun, **settings))


def transformed_at_primals(fun: Callable, transform: Callable, **settings: Any) -> Callable:
    """Apply a transform whose result takes primals, all of them arrays: as `transformed` does.

    A function with options for its arguments, such as static ones, stays compiled inside, and the
    transform is not compiled.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      transform: a function of `fun` and the settings. It returns a function of primals, as `jvp`
        takes them.
      **settings: keyword arguments of `transform`. They must be hashable; a `name` is used in error
        messages.

    Returns:
      The transformed function.

    Raises:
      TypeError: if `fun` is not callable.

    See also:
      `transformed`, for a transform that keeps the arguments of its function.

    >>> import functrans as ft
    >>> from functrans import extend
    >>> def _along(fun, name):
    ...     return lambda primals, tangents: ft.jvp(fun, primals, tangents)[1]
    >>> along = extend.transformed_at_primals(lambda x: x * x, _along, name="along")
    >>> float(along((3.0,), (1.0,)))
    6.0
    """
    if isinstance(fun, Jitted) and fun._has_options_of_arguments:
        return transform(fun, **settings)
    return transformed(fun, transform, **settings)


def jit(fun: Callable | None = None, /, **options: Any) -> Any:
    """Compile a function with XLA; functrans traces it once for each type of input.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      **options: those of `jax.jit`, by name:

        - `static_argnums` (an int or several): positions of arguments that are Python values. They
          must be hashable, and each new value compiles the function again.
        - `static_argnames` (a str or several): the same, by name.
        - `donate_argnums` (an int or several): positions of arguments whose memory XLA may use for
          the results; the caller must not read them again.
        - `donate_argnames` (a str or several): the same, by name.
        - `in_shardings` (a `jax.sharding.Sharding`, or a pytree of them): how the arguments are
          spread over devices.
        - `out_shardings` (a `jax.sharding.Sharding`, or a pytree of them): how the results are.
        - `keep_unused` (a bool): whether the compiled program takes arguments that it does not use.
        - `inline` (a bool): whether a trace around the function gets its equations, and not one
          call.
        - `compiler_options` (a dict from str): options of XLA.
        - `device` (a `jax.Device`): where the program runs.
        - `backend` (a str, `"cpu"`, `"gpu"` or `"tpu"`): for which kind of device to compile.

    Returns:
      A function that computes the same. Every transform of it is compiled too,
      `grad(jit(fun)) = jit(grad(fun))`. A transform takes over the options that concern the
      arguments or the compiler; it donates nothing. Without `fun`, `jit` returns a decorator.

    Raises:
      TypeError: if `fun` is not callable, if an argument is neither an array nor static, or if
        there is no such option.
      jax.errors.TracerBoolConversionError: if Python control flow depends on a traced value.

    >>> import functrans as ft
    >>> f = ft.grad(ft.jit(lambda x: x ** 3))
    >>> float(f(2.0))
    12.0
    >>> @ft.jit(static_argnums=1)
    ... def power(x, n):
    ...     return x**n
    >>> float(ft.grad(power)(2.0, 3))
    12.0
    """
    if fun is None:
        return functools.partial(jit, **options)
    checks.is_function("jit", fun)
    leaves, structure = jax.tree.flatten(options)
    key = ("jit", *leaves, caches.kinds(leaves), structure)
    if isinstance(fun, Jitted):
        inner_key = (*fun._key, *key)
        return Jitted(fun._root, inner_key, lambda: _compile(fun._compiled(), options), options)
    late = caches.held_weakly(fun)
    return Jitted(fun, key, lambda: _compile(late, options), options)


def _compile(fun: Callable, options: dict) -> Any:
    """`jax.jit` of a function that binds the jaxpr of `fun` as one equation."""

    @functools.wraps(fun, updated=())
    def staged(*args, **kwargs):
        config: Any = jax.config
        if config.jax_disable_jit:
            return fun(*args, **kwargs)
        flat, tree = jax.tree.flatten((args, kwargs))
        # JAX passes traced arguments as tracers, and static ones unchanged.
        traced = [isinstance(x, jax.core.Tracer) for x in flat]
        static, arrays = values.part(flat, traced)

        def body(*tracers):
            leaves = values.merge(static, tracers, traced)
            inner_args, inner_kwargs = jax.tree.unflatten(tree, leaves)
            return jax.tree.flatten(fun(*inner_args, **inner_kwargs))

        avals = [jax.typeof(x) for x in arrays]
        program, out_tree = stage(body, avals, jx.debug_info("jit", fun))
        if options.get("inline"):
            outs = jx.evaluate(program, *arrays)
        else:
            outs = bind_jit(program, arrays, staged.__name__)
        return jax.tree.unflatten(out_tree, outs)

    return jax.jit(staged, **options)
