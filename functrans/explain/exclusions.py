"""The primitives for which JAX has a derivative and functrans has none: `name -> reason`.

    rules  =  (primitives with a jvp or a transpose in JAX)  -  exclusions  +  others

An excluded primitive works on a mutable object, or no public function of JAX binds it.  The
primitives are those of JAX with all of `jax.experimental` imported.  `tests/test_coverage.py`
allows no other gap, and no needless entry; `docs/primitives.md` shows this table below those of the
rules.

Read next: `records.py`, the record of an evaluation step by step.
"""

REFERENCE = "a mutable array: its contents depend on the time at which one reads them"
BOX = "a mutable object of an experiment that JAX has ended"

EXCLUSIONS = {
    "new_ref": REFERENCE,
    "empty_ref": REFERENCE,
    "freeze": REFERENCE,
    "free_ref": REFERENCE,
    "run_state": "a function that runs on mutable arrays",
    "accum_grad_in_ref": "a mutable array in which JAX's reverse mode adds up a gradient",
}

UNTIL_10 = {
    "new_box": BOX,
    "box_get": BOX,
    "box_set": BOX,
    "new_log": BOX,
    "log_read": BOX,
    "log_extend": BOX,
    "custom_lin": "the linear part of a `custom_vjp` function, as JAX's own AD writes it",
    "mpmd_map": "a Pallas kernel for several kinds of cores, which JAX refuses as well",
}
"""More exclusions in JAX 0.10; later JAX has no such primitive, or functrans has a rule."""

SINCE_11 = {
    "with_memory_space_constraint": "the memory of an argument of a Pallas kernel for TPU; only "
    "such kernels bind the primitive",
}
"""More exclusions since JAX 0.11."""
