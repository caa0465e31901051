"""Fourier transforms."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from jax import lax

from rule_cases.table import F, case, real

# They take single and double precision.
fft_case = partial(case, "fft", half=False)

for kind in (lax.FftType.FFT, lax.FftType.IFFT):
    for lengths in ((3,), (2, 3)):
        fft_case(partial(lax.fft, fft_type=kind, fft_lengths=lengths), F(2, 3), complex=True)
for lengths in ((1,), (2,), (5,), (6,), (2, 5), (3, 4), (2, 2, 4)):
    forth = partial(lax.fft, fft_type=lax.FftType.RFFT, fft_lengths=lengths)
    back = partial(lax.fft, fft_type=lax.FftType.IRFFT, fft_lengths=lengths)
    fft_case(forth, F(2, *lengths))
    # A half of a spectrum that is not real where that of a real signal would be.
    half = (*lengths[:-1], lengths[-1] // 2 + 1)
    fft_case(lambda x, y, back=back: back(lax.complex(x, y)), F(2, *half), F(2, *half))

# Lengths other than the shape's: to cut off or to fill with zeros. Other axes, and other norms.
fft_case(lambda x: jnp.fft.fft(x, 3), F(5), complex=True)
fft_case(lambda x: jnp.fft.ifft(x, 6, norm="ortho"), F(5), complex=True)
fft_case(lambda x: jnp.fft.rfft(x, 4, axis=0), real(F(5, 2)))
fft_case(lambda x: jnp.fft.rfft(x, 7, norm="forward"), F(5))
fft_case(lambda x: jnp.fft.irfft(x, 7), F(3), complex=True)
fft_case(lambda x: jnp.fft.irfft(x, 3, axis=0, norm="ortho"), F(4, 2), complex=True)
fft_case(lambda x: jnp.fft.hfft(x, 5), F(3), complex=True)
fft_case(jnp.fft.ihfft, F(4))
fft_case(lambda x: jnp.fft.fft2(x, (2, 4)), F(2, 3, 3), complex=True)
fft_case(lambda x: jnp.fft.ifftn(x, axes=(2, 0)), F(2, 3, 2), complex=True)
fft_case(lambda x: jnp.fft.rfftn(x, (4, 3), axes=(0, 2)), F(3, 2, 4))
fft_case(lambda x: jnp.fft.irfft2(x, (3, 5)), F(2, 3, 2), complex=True)
# A convolution, and a function that is not linear.
fft_case(lambda x, y: jnp.fft.irfft(jnp.fft.rfft(x) * jnp.fft.rfft(y), 5), F(5), F(5))
fft_case(lambda x: jnp.abs(jnp.fft.rfft(x)) ** 2, F(6))
