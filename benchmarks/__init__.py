"""functrans beside JAX: `make bench`.

    run time, memory, operations   of compiled derivatives
    trace, lower, compile          of a gradient
    calls                          of transforms of jitted functions, and of functions as they are

Read `workloads.py` (what is measured), `measure.py` (how), `budgets.py` (what is to come out) and
`report.py` (how it is shown).
"""
