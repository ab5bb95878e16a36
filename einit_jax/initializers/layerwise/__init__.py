"""`lsuv` and `looks_linear`: layers brought to their variance, all in one pass.

Imports `distinctness` and what it may, and `classic`. Start at `_passes`."""

from ._linear_start import LinearStart as LinearStart
from ._looks_linear import looks_linear as looks_linear
from ._lsuv import lsuv as lsuv
