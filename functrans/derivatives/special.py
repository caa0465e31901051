"""The derivatives of the special functions."""
