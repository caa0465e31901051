"""Taylor mode: derivatives of high order, from the same table of first derivatives.

    x(t) = x_0 + x_1 t + x_2 t^2 + ...        ->        f(x(t)) = y_0 + y_1 t + y_2 t^2 + ...

    streams      a value that computes its coefficients one after the other
    nodes        an equation, and the streams that it computes
    equations    how a coefficient follows from those before it
    jets         the transforms: `jet`, `derivatives`
    laplacian    second derivatives, summed over all directions on the way

They use `functrans.extend`, a few helpers of `functrans.rules`, and the error messages: any reader
could have written them.

Read next: `streams.py`, the values in the place of numbers.
"""

from functrans.taylor.jets import derivatives, jet
from functrans.taylor.laplacian import laplacian

__all__ = ["derivatives", "jet", "laplacian"]
