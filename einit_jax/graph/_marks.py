"""TODO."""

ESTIMATED = "einit-estimate"
"""What the marks of modules with an estimator begin with."""
