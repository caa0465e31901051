"""The caches: what functrans remembers, and for how long.

    by_types       (params, types) -> result     the latest few thousand
    by_program     (program, key) -> result      as long as the program lives
    by_function    (function, key) -> result     as long as the user's function lives

A key holds what may change the result: the options, of JAX and of functrans, that change a program;
and the rule, or the version of the table of rules, which grows when somebody declares a rule again.
(For compiled functions `jit.py` adds the version, and `jax.jit` has the options in its own keys.)
We make results as if `jit` were not disabled, and results by types without the options that make
JAX strict with a user.  If several threads compute the same result, all of them get the one that is
stored first.

Read next: `rules.py`, the derivative of one equation.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import operator
import weakref
from collections.abc import Callable, Collection, Hashable
from typing import Any

import jax
import numpy as np

SIZE = 8192
"""A cache by types keeps at most so many results; then it drops the oldest."""

TO_EMPTY: list[Callable[[], None]] = []
"""Functions, each of which empties one cache."""

OF_FUNCTIONS: dict[int, dict] = {}
"""From the id of a function to its compiled functions, as long as the function lives."""

_of_types = operator.attrgetter("jax_enable_x64", "jax_default_matmul_precision")
_of_strictness = operator.attrgetter("jax_numpy_rank_promotion", "jax_numpy_dtype_promotion")
_config: Any = jax.config

STRONG_ZEROS, CARRIES_KEPT = jax.make_user_context(False), jax.make_user_context(None)
DETECTING = jax.make_user_context(False)
OWN = STRONG_ZEROS, CARRIES_KEPT, DETECTING
"""Our own options, which JAX's caches know too: `with STRONG_ZEROS(True): ...`."""


def _options() -> tuple:
    return *_of_types(_config), *[option.value for option in OWN]


class Version:
    """Counts the rules that were declared again."""

    rules = 0


def clear_caches() -> None:
    """Forget all programs that functrans has derived and compiled, as `jax.clear_caches` does.

    functrans derives and compiles them again at the next call. Its memory is bounded without this
    function: a program is forgotten with its function, and a cache by types drops its oldest
    entries.

    >>> import functrans as ft
    >>> ft.clear_caches()
    """
    compiled = [call for entries in [*OF_FUNCTIONS.values()] for call in [*entries.values()]]
    for empty in (*TO_EMPTY, *(call.clear_cache for call in compiled)):
        empty()


_FLOATS = frozenset([float, complex, np.float16, np.float32, np.float64])


def kinds(params: Collection) -> tuple:
    """What a key needs besides params, for `0.0 == -0.0` and `1 == 1.0 == True`.

    It looks into tuples and other pytrees.
    """
    found = (*map(type, params),)
    if tuple in found:
        params = jax.tree.leaves([*params])
        found = (*map(type, params),)
    if _FLOATS.isdisjoint(found):
        return found
    return *found, *[repr(x) for x in params if type(x) in _FLOATS]


def by_types(function: Callable) -> Callable:
    """Remember `function(params, key, at)`; `params` are the items of an equation's params.

    If the params cannot be a key, it returns `None` and remembers nothing: they are not hashable,
    or hold a function, which the cache must not keep alive. `at` is not a part of the key.
    """
    memory: dict[Any, Any] = {}
    TO_EMPTY.append(memory.clear)

    @functools.wraps(function)
    def cached(params: tuple, key: tuple, at: Any = None) -> Any:
        entry = params, key, kinds([value for _, value in params]), _options()
        try:
            found = memory.get(entry)
        except TypeError:
            return None
        if found is None and not any(callable(value) for _, value in params):
            # Our own code runs without the checks that a user wants for the user's code.
            ranks, dtypes = jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard")
            with jax.disable_jit(False), ranks, dtypes:
                made = function(params, key, at)
            found = memory.setdefault(entry, made)
            while len(memory) > SIZE:
                memory.pop(next(iter(memory)), None)
        return found

    return cached


def by_program(function: Callable) -> Callable:
    """Remember `function(program, *key)` for as long as the program lives.

    Keyword arguments are not a part of the key.
    """
    memory: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()
    TO_EMPTY.append(memory.clear)

    @functools.wraps(function)
    def cached(program: Any, *key: Hashable, **rest: Any) -> Any:
        options = _options(), _of_strictness(_config)
        entries, entry = memory.setdefault(program, {}), (*key, Version.rules, options)
        if entry not in entries:
            with jax.disable_jit(False):
                entries.setdefault(entry, function(program, *key, **rest))
        return entries[entry]

    return cached


def by_function(function: Callable, key: tuple, make: Callable[[], Any]) -> Any:
    """`make()`, or its earlier result for the same function and key."""
    # A method is a new object at each mention, so the entries belong to its instance.
    is_method = inspect.ismethod(function)
    anchor, method = (function.__self__, function.__func__) if is_method else (function, None)
    key = (*key, method)
    try:
        hash(key)
        if id(anchor) not in OF_FUNCTIONS:
            weakref.finalize(anchor, OF_FUNCTIONS.pop, id(anchor), None).atexit = False
        entries = OF_FUNCTIONS.setdefault(id(anchor), {})
    except TypeError:
        return make()
    if key not in entries:
        entries.setdefault(key, make())
    return entries[key]


def held_weakly(function: Callable) -> Callable:
    """The function, held weakly, so that its entries do not keep it alive."""
    is_method = inspect.ismethod(function)
    try:
        reference: Any = weakref.WeakMethod(function) if is_method else weakref.ref(function)
    except TypeError:
        return function

    def late(*args, **kwargs):
        return reference()(*args, **kwargs)

    functools.update_wrapper(late, function, updated=())
    del late.__wrapped__
    with contextlib.suppress(TypeError, ValueError):
        late.__signature__ = inspect.signature(function)  # for arguments by name
    return late
