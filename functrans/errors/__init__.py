"""The messages of functrans: what was wrong with an argument, and what to do about it.

Read next: `checks.py`, the checks of a user's arguments.
"""
