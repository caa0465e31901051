"""The rules, one file per family of primitives: `primitive -> derivative`.

A file declares the derivatives of primitives that belong together, and nothing
else: it reads as a table of derivatives, and importing it fills `functrans.rules.RULES`.

    elementwise   sin, mul, max, ...          z_dot = sum_i x_i_dot * dz/dx_i
    shape         reshape, slice, pad, ...    the transpose puts each element back
    reduction     sums, extrema, products     the transpose of a sum is a broadcast
    contraction   dot_general, convolution    bilinear: x_bar = B(., w)^T y_bar
    indexing      gather, scatter, ...        gather and scatter-add are transposes
    windows       reduce_window, pooling      a sum over windows is a convolution with ones
    sorting       sort, top_k                 permute the tangent as the primal
    special       error functions, Bessel     elementwise, from their integrals and recurrences
    zeta          zeta, lgamma, polygamma     a recurrence, and the formula of Euler and Maclaurin
    incomplete    igamma, betainc             the density, and an integral for each parameter
    linalg        solvers, cholesky, lu       differentiate the equation that defines the factors
    orthogonal    qr, reflections             the motion of a unitary matrix is skew-Hermitian
    spectral      eigh, svd, eig              quotients by the gaps between values
    fft           the Fourier transforms      linear; the DFT matrix is symmetric
    collectives   psum, all_gather, ...       sum over devices and copy to devices are transposes
    random        keys and bits               zero
    effects       prints and callbacks        zero, or a refusal
    sparse        values at places            writing and reading there are transposes

Read next: `common.py`, shared by the rules; or `elementwise.py`, the table of the textbooks.
"""

from functrans.derivatives import (
    collectives,
    contraction,
    effects,
    elementwise,
    fft,
    incomplete,
    indexing,
    linalg,
    orthogonal,
    random,
    reduction,
    shape,
    sorting,
    sparse,
    special,
    spectral,
    windows,
    zeta,
)

__all__ = [
    "collectives",
    "contraction",
    "effects",
    "elementwise",
    "fft",
    "incomplete",
    "indexing",
    "linalg",
    "orthogonal",
    "random",
    "reduction",
    "shape",
    "sorting",
    "sparse",
    "special",
    "spectral",
    "windows",
    "zeta",
]
