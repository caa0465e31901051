"""Operations with an effect: none has a derivative, and some refuse to have one.

    print x,    check x        d = 0: it happens once, where the primals are computed
    y = callback(x)            nobody here knows its derivative

Read next: `sparse.py`, arrays that store only some elements.
"""

from typing import Any

import jax
from jax import lax
from jax.experimental import checkify, io_callback

from functrans.derivatives.common import unnamed, when_met
from functrans.errors import operations
from functrans.rules import general, zero


def checked(x):
    checkify.check(x > 0, "x is not positive")
    return x


zero(unnamed("check", checked))
zero(unnamed("debug_print", lambda x: jax.debug.print("{}", x)))
zero(unnamed("debug_callback", lambda x: jax.debug.callback(lambda x: None, x)))
zero(unnamed("dce_sink", lambda x: (lax.dce_sink(x), x)[1]))


def refuses(what: str) -> Any:
    def jvp(primals, tangents, **params):
        raise operations.no_derivative(what)

    return jvp


def pure(x):
    return jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), "float32"), x)


def impure(x):
    return io_callback(lambda x: x, jax.ShapeDtypeStruct((), "float32"), x)


def foreign(x):
    return jax.ffi.ffi_call("functrans_none", jax.ShapeDtypeStruct((), "float32"))(x)


for function, name in ((pure, "pure_callback"), (impure, "io_callback"), (foreign, "ffi_call")):
    general(unnamed(name, function), refuses(name))


@when_met("buffer_callback")
def declare_buffer_callback(primitive: Any) -> None:
    general(primitive, refuses("buffer_callback"))
