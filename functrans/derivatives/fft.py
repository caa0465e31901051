"""The derivatives of the Fourier transforms."""
