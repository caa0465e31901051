"""Jaxpr to jaxpr: what is done to programs, whatever the primitives in them mean.

    broadcasts    a linear program                 what is broadcast is multiplied before, not after
    halves        a program in two                 which residuals are at hand anyway
    sums          the body of a loop               one product after the loop
    bases         a linear program and a basis     the matrix itself
    loops         a function that is looped        its body is staged once

Read next: `live.py`, what depends on what.
"""
