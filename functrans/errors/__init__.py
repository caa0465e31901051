"""What functrans says to people: what was wrong with an argument, and what to do about it.

Read next: `checks.py`, what a user may pass.
"""
