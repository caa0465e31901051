"""Taylor mode: derivatives of high order, from the same table of first derivatives.

    x(t) = x_0 + x_1 t + x_2 t^2 + ...        ->        f(x(t)) = y_0 + y_1 t + y_2 t^2 + ...

    streams      a value whose coefficients are asked for one after the other
    equations    what one equation makes of streams
    jets         the transforms: `jet`, `derivatives`
    laplacian    second derivatives, summed over all directions on the way

These are written with `functrans.extend` alone, as any reader could have written them.

Read next: `streams.py`, what stands in the place of a number.
"""

from functrans.taylor.jets import derivatives, jet
from functrans.taylor.laplacian import laplacian

__all__ = ["derivatives", "jet", "laplacian"]
