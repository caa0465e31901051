"""Compilation: stage a function once, lower it through XLA, dispatch from C++.

    jit : (a -> b) -> (a -> b)

The function is staged by functrans's tracer, and its jaxpr goes to `jax.jit` as *one* equation, so
that JAX re-traces nothing and a call takes JAX's C++ path.  A transform of a jitted function is
itself jitted,

    grad(jit(g)) = jit(grad(g))

and it is made once for `g`: the compiled functions hang on `g`, weakly, and die with it.

Read next: `transforms.py`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax.core

from functrans import jaxpr as jx
from functrans.control_flow.jit import bind_jit
from functrans.errors import checks
from functrans.errors.tracebacks import briefly, shorten
from functrans.tracer import stage

# id of a function -> {how it was wrapped -> the compiled function}, as long as the function lives
_compiled: dict[int, dict] = {}

# What a transform of a jitted function inherits: the options that speak of the arguments or of the
# compiler. Those that speak of the results do not fit, and nothing is donated to a derivative.
_OF_ARGUMENTS = ("static_argnums", "static_argnames", "in_shardings", "keep_unused")
_INHERITED = (*_OF_ARGUMENTS, "compiler_options", "device", "backend")


def _method(name: str) -> Callable:
    return lambda self, *args, **kwargs: getattr(self._call, name)(*args, **kwargs)


class Jitted:
    """A function compiled by `jit`; it is called as the function is.

    `__wrapped__` is the user's function. `trace`, `lower`, `eval_shape` and `clear_cache` are those
    of a function compiled by `jax.jit`.
    """

    def __init__(self, root: Callable, key: tuple, make: Callable[[], Any], options: dict):
        # First, as it copies the attributes of `root`, which may be a wrapper of another `Jitted`.
        functools.update_wrapper(self, root)
        # What the compiled function hangs on is to live as long as it can be called.
        self._root, self._key, self._options = root, key, options
        self._call = _remember(root, key, make)
        self._speaks_of_arguments = any(map(options.get, _OF_ARGUMENTS))
        self._transforms: dict[tuple, Jitted] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._call(*args, **kwargs)
        except Exception as error:
            shorten(error)
            raise

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<functrans.jit of {self._root!r}>"

    def _transform(self, transform: Callable, settings: dict) -> Jitted:
        place = (transform, *settings.items())
        found = self._transforms.get(place)
        if found is None:
            options = {k: v for k, v in self._options.items() if k in _INHERITED}
            # Options of the compiler are those of a whole program, no part of which has its own.
            call = self._call.__wrapped__ if options.get("compiler_options") else self._call

            def make():
                return _compile(transform(call, **settings), options)

            found = Jitted(self._root, (*self._key, *place), make, options)
            self._transforms[place] = found
        return found

    # Methods, so that `self`, and with it the function, lives through `jit(fun).lower(x)`.
    trace, lower = _method("trace"), _method("lower")
    eval_shape, clear_cache = _method("eval_shape"), _method("clear_cache")


def transformed(fun: Callable, transform: Callable, **settings: Any) -> Callable:
    """`transform(fun, **settings)`, compiled if `fun` is; it takes the arguments of `fun`."""
    if isinstance(fun, Jitted):
        return fun._transform(transform, settings)
    checks.is_function(fun)
    return briefly(transform(fun, **settings))


def transformed_at_once(fun: Callable, transform: Callable, **settings: Any) -> Callable:
    """As `transformed`, for a transform that takes primals: all of them arrays, none static."""
    if isinstance(fun, Jitted) and fun._speaks_of_arguments:
        return transform(fun, **settings)
    return transformed(fun, transform, **settings)


def jit(fun: Callable | None = None, /, **options: Any) -> Any:
    """Compile a function with XLA; it is traced, by functrans, once for each type of input.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      **options: those of `jax.jit`: `static_argnums`, `static_argnames`, `donate_argnums`,
        `donate_argnames`, `in_shardings`, `out_shardings`, `keep_unused`, `inline`,
        `compiler_options`, ...

    Returns:
      A function that computes the same. `grad(jit(fun))`, and likewise every other transform of
      it, is compiled too. Without `fun`, a decorator with these options.

    Raises:
      TypeError: if `fun` cannot be called, or an argument is not an array and is not static.
      jax.errors.TracerBoolConversionError: if Python control flow depends on a traced value.

    >>> import functrans as ft
    >>> f = ft.grad(ft.jit(lambda x: x ** 3))
    >>> float(f(2.0))
    12.0
    """
    if fun is None:
        return functools.partial(jit, **options)
    checks.is_function(fun)
    jitted = isinstance(fun, Jitted)
    root, key, call = (fun._root, fun._key, fun._call) if jitted else (fun, (), _late(fun))
    key = (*key, "jit", _hashable(options))
    return Jitted(root, key, lambda: _compile(call, options), options)


def _remember(root: Callable, key: tuple, make: Callable[[], Any]) -> Any:
    """`make()`, or what it made for the same function and key."""
    # A method is a new object at each mention, so what is kept for it hangs on its instance.
    anchor, method = (root.__self__, root.__func__) if inspect.ismethod(root) else (root, None)
    key = (*key, method)
    try:
        hash(key)
        if id(anchor) not in _compiled:
            weakref.finalize(anchor, _compiled.pop, id(anchor), None).atexit = False
        entries = _compiled.setdefault(id(anchor), {})  # of several threads, all get the same
    except TypeError:
        return make()
    if key not in entries:
        entries.setdefault(key, make())
    return entries[key]


def _late(fun: Callable) -> Callable:
    """`fun`, held weakly, so that what is kept for a function does not keep the function."""
    try:
        reference: Any = weakref.WeakMethod(fun) if inspect.ismethod(fun) else weakref.ref(fun)
    except TypeError:
        return fun

    def late(*args, **kwargs):
        return reference()(*args, **kwargs)

    functools.update_wrapper(late, fun, updated=())
    del late.__wrapped__
    with contextlib.suppress(TypeError, ValueError):
        late.__signature__ = inspect.signature(fun)  # by which names of arguments are found
    return late


def _compile(fun: Callable, options: dict) -> Any:
    """`jax.jit` of a function that binds the jaxpr of `fun` as one equation."""

    @functools.wraps(fun, updated=())
    def staged(*args, **kwargs):
        flat, tree = jax.tree.flatten((args, kwargs))
        # JAX hands over traced arguments as tracers, and static ones as they are.
        traced = [i for i, x in enumerate(flat) if isinstance(x, jax.core.Tracer)]
        out_tree = None

        def body(*tracers):
            nonlocal out_tree
            values = dict(zip(traced, tracers, strict=True))
            leaves = [values.get(i, x) for i, x in enumerate(flat)]
            inner_args, inner_kwargs = jax.tree.unflatten(tree, leaves)
            outs, out_tree = jax.tree.flatten(fun(*inner_args, **inner_kwargs))
            return outs

        arrays = [flat[i] for i in traced]
        program = stage(body, [jx.typeof(x) for x in arrays], jx.debug_info("jit", fun))
        if options.get("inline"):
            outs = jx.evaluate(program, *arrays)
        else:
            outs = bind_jit(program, arrays, staged.__name__)
        return jax.tree.unflatten(out_tree, outs)

    return jax.jit(staged, **options)


def _hashable(options: dict) -> tuple:
    leaves, structure = jax.tree.flatten(options)
    return (*leaves, structure)
