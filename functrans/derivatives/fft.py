"""The derivatives of the Fourier transforms.

    y_k = sum_j e^(-2 pi i j k / n) x_j,        y = F x,        F^T = F

The matrix F is symmetric, and so is its inverse, so that each complex transform is its own
transpose.  The real transforms keep half of the spectrum, which determines the rest:

    rfft  = H F           H keeps the first frequencies, up to n/2
    irfft = F^-1 E        E adds the others, the conjugates of those that stand for two

Read next: `collectives.py`, the operations by which devices communicate.
"""

from math import prod
from typing import Any

import numpy as np
from jax import lax

from functrans.derivatives.common import mul
from functrans.rules import linear


# The frequency n - k of a real signal is the conjugate of its frequency k: those strictly between 0
# and n/2 stand for two.
def multiplicities(n: int, like: Any) -> Any:
    """How many frequencies each of the first `n // 2 + 1` stands for, along the last axis."""
    counts = np.array([1 if k in (0, n - k) else 2 for k in range(n // 2 + 1)], like.dtype)
    return lax.broadcast_in_dim(counts, like.shape, (like.ndim - 1,))


# With c the multiplicities and N the number of points,
#
#     irfft(z)_j = Re sum_k c_k z_k e^(2 pi i j k / n) / N
#
# and as the pairing <a, b> = Re sum_k a_k b_k has no conjugate,
#
#     <y_bar, rfft x>  = sum_j x_j Re sum_k y_bar_k e^(-2 pi i j k / n)
#     <y_bar, irfft z> = Re sum_k z_k (c_k / N) conj(rfft y_bar)_k
#
# so that x_bar = N irfft(conj(y_bar) / c) and z_bar = (c / N) conj(rfft y_bar). The other axes,
# whose transforms are complex, are conjugated with the last.
def fft_transpose(y_bar, x, *, fft_type, fft_lengths):
    size = prod(fft_lengths)
    if fft_type == lax.FftType.RFFT:
        counts = multiplicities(fft_lengths[-1], y_bar)
        spectrum = lax.div(lax.conj(y_bar), counts)
        return mul(size, lax.fft(spectrum, lax.FftType.IRFFT, fft_lengths))
    if fft_type == lax.FftType.IRFFT:
        spectrum = lax.conj(lax.fft(y_bar, lax.FftType.RFFT, fft_lengths))
        return mul(spectrum, mul(1 / size, multiplicities(fft_lengths[-1], spectrum)))
    return lax.fft(y_bar, fft_type, fft_lengths)


linear(lax.fft_p, fft_transpose)
