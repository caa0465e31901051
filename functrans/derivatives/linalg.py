"""The derivatives of the matrix factorizations and solvers."""
