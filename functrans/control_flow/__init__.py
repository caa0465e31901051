"""The primitives that carry jaxprs: what forward, linearize and transpose do with what is inside.

A room here may use the interpreters; the rooms of `derivatives/` may not.

Read next: `jit.py`, a call of one function.
"""

from functrans.control_flow import (
    calls,
    checkpoint,
    cond,
    custom,
    hi,
    jit,
    linear_solve,
    reduce,
    scan,
    shard_map,
    while_loop,
)

__all__ = [
    "calls",
    "checkpoint",
    "cond",
    "custom",
    "hi",
    "jit",
    "linear_solve",
    "reduce",
    "scan",
    "shard_map",
    "while_loop",
]
