"""What one may want to see of a derivative: what it keeps, and what has none.

A room for guests: it may import every other one, and none of them needs it.

Read next: `residuals.py`.
"""
