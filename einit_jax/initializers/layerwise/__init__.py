"""`lsuv`: layers brought to unit variance, all in one pass.

Imports `binding` and what it may, and `classic`. Start at `_passes`."""

from ._lsuv import lsuv as lsuv
