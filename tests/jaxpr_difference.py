"""Compare two jaxprs up to the names of their variables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal


def difference(got: Any, want: Any) -> str:
    """The first difference of two closed jaxprs, or the empty string."""
    return next(_closed("", got, want), "")


def same_bits(x: Any, y: Any) -> bool:
    """Whether two arrays or keys have one type and the same bits; two tracers must be one."""
    if isinstance(x, jax.core.Tracer) or isinstance(y, jax.core.Tracer):
        return x is y
    if _type(x) != _type(y):
        return False
    return _bits(x) == _bits(y)


def _type(x: Any) -> str:
    aval = jax.typeof(x)
    return f"{aval.str_short()}{' weak' if aval.weak_type else ''}"


def _bits(x: Any) -> bytes:
    if jax.dtypes.issubdtype(jax.typeof(x).dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    return np.asarray(x).tobytes()


def _closed(path: str, got: Any, want: Any) -> Iterator[str]:
    yield from _open(path, got.jaxpr, want.jaxpr)
    if len(got.consts) != len(want.consts):
        yield f"{path}: {len(got.consts)} constants, not {len(want.consts)}"
    for i, (x, y) in enumerate(zip(got.consts, want.consts, strict=False)):
        if not same_bits(x, y):
            yield f"{path}: constant {i} is {x}, not {y}"


def _open(path: str, got: Any, want: Any) -> Iterator[str]:
    names: dict = {}

    def binders(what: str, ours: list, theirs: list) -> Iterator[str]:
        mine, other = [str_of(v) for v in ours], [str_of(v) for v in theirs]
        if mine != other:
            yield f"{path}: {what} {mine}, not {other}"
        names.update(zip(ours, theirs, strict=False))

    def atoms(what: str, ours: list, theirs: list) -> Iterator[str]:
        if len(ours) != len(theirs):
            yield f"{path}: {len(ours)} {what}, not {len(theirs)}"
        for i, (x, y) in enumerate(zip(ours, theirs, strict=False)):
            literal = isinstance(x, Literal), isinstance(y, Literal)
            same = same_literal(x, y) if all(literal) else not any(literal) and names.get(x) is y
            if not same:
                yield f"{path}: {what} {i}: {x!r}, not {y!r}"

    yield from binders("constvars", got.constvars, want.constvars)
    yield from binders("invars", got.invars, want.invars)
    for i, (x, y) in enumerate(zip(got.eqns, want.eqns, strict=False)):
        if x.primitive is not y.primitive:
            yield f"{path}: equation {i} is {x}, not {y}"
        yield from atoms(f"equation {i} ({x.primitive}): input", x.invars, y.invars)
        yield from binders(f"equation {i}: outputs", x.outvars, y.outvars)
        yield from params(f"{path}/{i}:{x.primitive}", x.params, y.params)
        if x.effects != y.effects:
            yield f"{path}: equation {i} has effects {x.effects}, not {y.effects}"
    if len(got.eqns) != len(want.eqns):
        yield f"{path}: {len(got.eqns)} equations, not {len(want.eqns)}"
    yield from atoms("output", got.outvars, want.outvars)
    if got.effects != want.effects:
        yield f"{path}: effects {got.effects}, not {want.effects}"


def str_of(atom: Any) -> str:
    return f"{atom.aval}{' weak' if getattr(atom.aval, 'weak_type', False) else ''}"


def _number(literal: Literal) -> bytes:
    """A Python number has the precision of its type."""
    return np.asarray(literal.val).astype(literal.aval.dtype).tobytes()


def same_literal(x: Literal, y: Literal) -> bool:
    return str_of(x) == str_of(y) and _number(x) == _number(y)


def _is_function(x: Any) -> bool:
    """Functions, and those that JAX wraps; not NumPy's types, which can be called too."""
    return hasattr(x, "call_wrapped") or (callable(x) and not isinstance(x, type))


def params(path: str, got: Any, want: Any) -> Iterator[str]:
    """The differences of two values of params; that of two functions cannot be seen."""
    if isinstance(want, ClosedJaxpr) and isinstance(got, ClosedJaxpr):
        yield from _closed(path, got, want)
    elif isinstance(want, Jaxpr) and isinstance(got, Jaxpr):
        yield from _open(path, got, want)
    elif isinstance(want, dict) and isinstance(got, dict):
        if got.keys() != want.keys():
            yield f"{path}: params {list(got)}, not {list(want)}"
        for key in want.keys() & got.keys():
            yield from params(f"{path}.{key}", got[key], want[key])
    elif isinstance(want, tuple | list) and type(got) is type(want) and len(got) == len(want):
        for i, (x, y) in enumerate(zip(got, want, strict=True)):
            yield from params(f"{path}[{i}]", x, y)
    elif _is_function(want) and _is_function(got):
        return
    elif isinstance(want, np.ndarray):
        if not same_bits(got, want):
            yield f"{path}: {got}, not {want}"
    elif got != want and not (got != got and want != want):
        yield f"{path}: {got}, not {want}"
