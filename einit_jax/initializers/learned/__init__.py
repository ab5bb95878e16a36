"""`metainit` and `gradinit`: sizes of parameters found by descent.

Imports `binding` and what it may, and `classic`. Start at `_descent`."""

from ._gradinit import gradinit as gradinit
from ._metainit import gradient_quotient as gradient_quotient
from ._metainit import metainit as metainit
