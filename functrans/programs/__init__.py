"""Jaxpr to jaxpr: transformations of programs that need not know the meaning of the primitives.

    broadcasts    a linear program                 multiply before the broadcast, not after
    halves        a program in two                 which residuals need memory of their own
    sums          the body of a loop               one product after the loop
    bases         a linear program and a basis     the matrix itself
    loops         the function of a loop           stage the body once

Read next: `live.py`, what depends on what.
"""
