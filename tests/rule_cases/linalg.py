"""Matrix factorizations and solvers."""
