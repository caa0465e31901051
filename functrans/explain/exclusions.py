"""The primitives for which JAX has a derivative and functrans has none: `name -> reason`.

    rules  =  (primitives with a jvp or a transpose in JAX)  -  exclusions  +  others

What is excluded is a mutable object, and no value, or it is written by no public function of JAX.
The primitives are those that there are when all of `jax.experimental` has been imported.
`tests/test_coverage.py` allows no other gap, and no entry without need; `docs/primitives.md` shows
this table beneath those of the rules.

Read next: `records.py`, what an evaluation step by step records.
"""

REFERENCE = "a mutable array, which is no value: what is read from it depends on when"
BOX = "a mutable object of an experiment that JAX has ended"

EXCLUSIONS = {
    "new_ref": REFERENCE,
    "empty_ref": REFERENCE,
    "freeze": REFERENCE,
    "free_ref": REFERENCE,
    "run_state": "a function that is run on mutable arrays",
    "accum_grad_in_ref": "a mutable array, in which JAX's reverse mode is to add up a gradient",
}

UNTIL_10 = {
    "new_box": BOX,
    "box_get": BOX,
    "box_set": BOX,
    "new_log": BOX,
    "log_read": BOX,
    "log_extend": BOX,
    "custom_lin": "the linear part of a `custom_vjp` function, as JAX's own AD writes it",
    "mpmd_map": "a kernel of Pallas for several kinds of cores, which JAX refuses as well",
}
"""More of them in JAX 0.10; later JAX has no such primitive, or functrans has a rule."""

SINCE_11 = {
    "with_memory_space_constraint": "where a kernel of Pallas for TPU finds its argument; only it "
    "binds the primitive",
}
"""More of them since JAX 0.11."""
