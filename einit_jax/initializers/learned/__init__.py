"""TODO door."""

from ._gradinit import gradinit as gradinit
from ._metainit import gradient_quotient as gradient_quotient
from ._metainit import metainit as metainit
from ._rescaling import make_rescaling as make_rescaling
