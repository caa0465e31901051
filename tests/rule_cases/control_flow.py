"""Loops, branches, and functions inside functions."""
