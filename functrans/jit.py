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

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax

from functrans import jaxpr as jx
from functrans.tracer import stage

# id of a function -> {how it was wrapped -> the compiled function}, as long as the function lives
_compiled: dict[int, dict] = {}

# Of the options of `jit`, those that say something of the arguments hold for the gradient too;
# those that say something of the results do not, and nothing is donated to a derivative.
_KEPT_BY_TRANSFORMS = ("static_argnums", "static_argnames", "in_shardings", "keep_unused")
_SEEN_BY_TRANSFORMS = (*_KEPT_BY_TRANSFORMS, "compiler_options", "device", "backend")


class Jitted:
    """A function compiled by `jit`; it is called as the function is.

    `__wrapped__` is the user's function.
    """

    def __init__(self, root: Callable, key: tuple, make: Callable, options: dict):
        self._root = root  # what the compiled function hangs on must live as long as it is called
        self._key = key
        self._options = options
        self._call = _remember(root, key, make)
        functools.update_wrapper(self, root)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<functrans.jit of {self.__wrapped__!r}>"

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """Stage the function; the result has a `.jaxpr` and can be lowered."""
        return self._call.trace(*args, **kwargs)

    def lower(self, *args: Any, **kwargs: Any) -> Any:
        """Lower the function to StableHLO (`.as_text()`), ready to `.compile()`."""
        return self._call.lower(*args, **kwargs)

    def eval_shape(self, *args: Any, **kwargs: Any) -> Any:
        """The shapes and dtypes of the results."""
        return self._call.eval_shape(*args, **kwargs)

    def clear_cache(self) -> None:
        """Forget what has been compiled."""
        self._call.clear_cache()

    def transformed(self, transform: Callable, **settings: Any) -> Jitted:
        """`transform(self, **settings)`, a function of the same arguments, compiled."""
        options = {k: self._options[k] for k in _SEEN_BY_TRANSFORMS if k in self._options}
        call = self._call
        key = (*self._key, transform, _hashable(settings))
        return Jitted(
            self._root, key, lambda: _compile(transform(call, **settings), options), options
        )

    @property
    def has_plain_arguments(self) -> bool:
        """Whether every argument is traced, and none has a sharding of its own."""
        return not any(self._options.get(k) for k in _KEPT_BY_TRANSFORMS)


def jit(fun: Callable | None = None, /, **options: Any) -> Any:
    """Compile a function with XLA; it is traced, by functrans, once for each type of input.

    Args:
      fun: a function of arrays, or pytrees of arrays, to the same.
      **options: those of `jax.jit`: `static_argnums`, `static_argnames`, `donate_argnums`,
        `donate_argnames`, `in_shardings`, `out_shardings`, `keep_unused`, `inline`,
        `compiler_options`, ...

    Returns:
      A function that computes the same. `grad(jit(fun))`, and likewise every other transform of
      it, is compiled too.

    Raises:
      TypeError: if `fun` cannot be called, or an argument is not an array and is not static.
      jax.errors.TracerBoolConversionError: if Python control flow depends on a traced value.

    >>> import functrans as ft
    >>> f = ft.grad(ft.jit(lambda x: x ** 3))
    >>> float(f(2.0))
    12.0
    """
    if fun is None:
        return lambda fun: jit(fun, **options)
    if not callable(fun):
        raise TypeError(f"jit expects a function, but got {fun!r} of type {type(fun)}")
    options = {k: v for k, v in options.items() if v is not None}
    reference = _reference(fun)
    return Jitted(
        fun, ("jit", _hashable(options)), lambda: _compile(_Late(reference, fun), options), options
    )


def _remember(root: Callable, key: tuple, make: Callable) -> Any:
    """`make()`, or what it made for the same function and key."""
    # A method is a new object at each mention, so what is kept for it hangs on its instance.
    anchor = getattr(root, "__self__", root)
    key = (*key, getattr(root, "__func__", None))
    try:
        hash(key)
        if id(anchor) not in _compiled:
            weakref.finalize(anchor, _compiled.pop, id(anchor), None).atexit = False
            _compiled[id(anchor)] = {}
    except TypeError:
        return make()
    entries = _compiled[id(anchor)]
    if key not in entries:
        entries[key] = make()
    return entries[key]


def _reference(fun: Callable) -> Callable[[], Any]:
    """A weak reference, so that what is kept for a function does not keep the function."""
    try:
        return weakref.WeakMethod(fun) if inspect.ismethod(fun) else weakref.ref(fun)
    except TypeError:
        return lambda: fun


class _Late:
    """A function that is looked up when it is called; it has the name and signature of `fun`."""

    def __init__(self, reference: Callable[[], Any], fun: Callable):
        self.reference = reference
        self.__name__ = getattr(fun, "__name__", type(fun).__name__)
        self.__qualname__ = getattr(fun, "__qualname__", self.__name__)
        self.__doc__ = fun.__doc__
        try:
            self.__signature__ = inspect.signature(fun)
        except (TypeError, ValueError):
            pass

    def __call__(self, *args, **kwargs):
        return self.reference()(*args, **kwargs)


def _compile(fun: Callable, options: dict) -> Any:
    """`jax.jit` of a function that binds the jaxpr of `fun` as one equation."""

    @functools.wraps(fun, assigned=("__name__", "__qualname__", "__doc__"), updated=())
    def staged(*args, **kwargs):
        flat, tree = jax.tree.flatten((args, kwargs))
        # JAX hands over traced arguments as tracers, and static ones as they are.
        traced = [i for i, x in enumerate(flat) if isinstance(x, jax.core.Tracer)]
        out_tree = None

        def body(*tracers):
            nonlocal out_tree
            values = list(flat)
            for i, tracer in zip(traced, tracers, strict=True):
                values[i] = tracer
            inner_args, inner_kwargs = jax.tree.unflatten(tree, values)
            outs, out_tree = jax.tree.flatten(fun(*inner_args, **inner_kwargs))
            return outs

        arrays = [flat[i] for i in traced]
        program = stage(body, [jx.typeof(x) for x in arrays], jx.debug_info("jit", fun))
        if options.get("inline"):
            outs = jx.evaluate(program, *arrays)
        else:
            outs = jx.bind_jit(program, arrays, staged.__name__)
        return jax.tree.unflatten(out_tree, outs)

    signature = getattr(fun, "__signature__", None)
    if signature is not None:
        staged.__signature__ = signature
    del staged.__wrapped__
    return jax.jit(staged, **options)


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(sorted((k, _hashable(v)) for k, v in value.items()))
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return value
