"""The primitives that carry jaxprs, and how to derive these jaxprs in each mode.

    base          what the others share              two halves of a call, bound one by one
    library       functions of JAX under a name      the equation that they solve
    jit           one function                       a call in each half
    cond          one of several functions           residuals of all branches share slots
    scan          a loop of a known length           a loop for each half; the transpose runs back
    steps         one step of a loop                 a step of pairs, and a step back
    counted_loops loops whose steps are counted      there and back, carries computed again
    batched_loops many of them at once               the schedule of the longest
    while_loop    a loop until a condition is met    counted, and then a counted loop
    varying       what a loop reads on each device   copied before it, summed after it
    reduce        a function of the user's, folded   a tree of pairs
    applied       the same, applied at indices       as often as the index occurs
    checkpoint    a function to compute again        the policy chooses the values to keep
    custom        derivatives that a user gives      forward, the transpose of a backward rule
    linear_solve  a system and its solver            solved again, or transposed
    reflections   a matrix, column by column         the tangents of a loop
    calls         functions for other transforms     as if their equations stood there
    hi            functions under one name           the function; a root is implicit
    declared      rules that such a function has     called as JAX calls them
    shard_map     a function of each device's part   a call in each half, with specs
    strong        products that a zero absorbs       the products again
    tagged        a function in a place              the same place, in each half
    pallas        a kernel that writes references    forward mode alone

`columns.py` serves transforms that carry more with a value than its derivative.

A file here may use the interpreters; those of `derivatives/` may not.

Read next: `base.py`, what all of them share.
"""

from functrans.control_flow import (
    applied,
    batched_loops,
    calls,
    checkpoint,
    cond,
    counted_loops,
    custom,
    declared,
    hi,
    jit,
    library,
    linear_solve,
    pallas,
    reduce,
    reflections,
    scan,
    shard_map,
    steps,
    strong,
    tagged,
    varying,
    while_loop,
)

__all__ = [
    "applied",
    "batched_loops",
    "calls",
    "checkpoint",
    "cond",
    "counted_loops",
    "custom",
    "declared",
    "hi",
    "jit",
    "library",
    "linear_solve",
    "pallas",
    "reduce",
    "reflections",
    "scan",
    "shard_map",
    "steps",
    "strong",
    "tagged",
    "varying",
    "while_loop",
]
