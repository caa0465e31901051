"""functrans: functional transformations of JAX programs, with derivatives that are all their own.

>>> import functrans as ft
>>> f = ft.grad(ft.jit(lambda x: x ** 3))
>>> float(f(2.0))
12.0

To learn how it works read `tracer.py`, `forward.py`, `derivatives/elementwise.py`,
`linearize.py`, `reverse.py` and `jit.py`, in this order.

Read next: `values.py`, if you mean to read every file; or `tracer.py`, for the tour.
"""

# In teaching order.
from functrans import derivatives, control_flow, foreign, staging  # noqa: F401  they declare rules
from functrans import rules
from functrans.transforms import jvp, vjp, linearize, linear_transpose, grad, value_and_grad
from functrans.jacobians import jacfwd, jacrev, jacobian, hessian, hvp
from functrans.jacobians import value_and_jacfwd, value_and_jacrev
from functrans.adjoints import value_and_adjoints, value_and_tangents
from functrans.control_flow.kept import carries_kept
from functrans.jit import jit
from functrans.taylor import jet, derivatives, laplacian  # noqa: F811  in the place of the folder of rules
from functrans.transforms import make_jaxpr
from functrans.programs.strong import strong_zeros
from functrans.explain.residuals import saved_residuals
from functrans.caches import clear_caches
from functrans import extend, sparse

__version__ = "0.1.0"

# fmt: off
__all__ = [
    "jvp", "vjp", "linearize", "linear_transpose", "grad", "value_and_grad",
    "jacfwd", "jacrev", "jacobian", "hessian", "hvp", "value_and_jacfwd", "value_and_jacrev",
    "value_and_adjoints", "value_and_tangents", "strong_zeros", "carries_kept",
    "jet", "derivatives", "laplacian", "sparse",
    "jit", "make_jaxpr", "saved_residuals", "clear_caches", "rules", "extend",
]
