"""The operations that need no equation: conversions of numbers, and changes that change nothing.

    stage : (trace, primitive, inputs, params) -> outputs, or None: write the equation

    x in its own type = x        1 in another type = 1        x in its own shape = x

Read next: `foreign.py`, rules that other packages registered.
"""

from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import Literal

from functrans.derivatives.common import named
from functrans.rules import elementwise, staging_rule


def conversion(trace, primitive, inputs, params):
    """A conversion to the value's own type does nothing; that of a number gives a number."""
    atom, dtype, weak = trace.atom(*inputs), params["new_dtype"], params["weak_type"]
    if params["sharding"] not in (None, atom.aval.sharding):
        return None
    if atom.aval.dtype == dtype and atom.aval.weak_type == weak:
        return [trace.stage_value(*inputs)]
    if not isinstance(atom, Literal) or not isinstance(dtype, np.dtype):
        return None
    number: Any = np.asarray(atom.val)
    number = (number if dtype.kind == "c" else number.real).astype(dtype)[()]
    # A Python number has a weak type; not every type has a weak form.
    number = number.item() if weak else number
    aval = jax.typeof(number)
    return [trace.stage_value(number)] if aval.dtype == dtype and aval.weak_type == weak else None


def broadcast(trace, primitive, inputs, params):
    """A broadcast to the value's own shape does nothing."""
    aval = trace.atom(inputs[0]).aval
    same = aval.shape == params["shape"] and params["sharding"] in (None, aval.sharding)
    return [trace.stage_value(inputs[0])] if same else None


def move(trace, primitive, inputs, params):
    """A NumPy array that goes to no device in particular is a constant."""
    moves = any(device is not None for device in params["devices"])
    if moves or any(isinstance(x, jax.Array) for x in inputs):
        return None
    return [trace.stage_value(x) for x in inputs]


staging_rule(lax.convert_element_type_p, conversion)
staging_rule(lax.broadcast_in_dim_p, broadcast)
staging_rule(lax.device_put_p, move)

stage_p = named("stage")
elementwise(stage_p, 1)
