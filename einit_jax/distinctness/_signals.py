"""What is known of arrays on the way from weights to weights."""

from enum import Enum
from typing import NamedTuple

import numpy as np

from ..core import Path
from ..graph import ParameterAxes, TracedValue
from ._channels import Numbers
from ._functions import has_even_part


class Channels(NamedTuple):
    """What is known of an array of channels."""

    numbers: Numbers
    origin: int
    """Arrays of one origin, and of equal numbers, are functions of the same array."""
    values: np.ndarray
    """Those of the function, on the nodes of the quadrature."""
    root: int
    """That of the array which means and other statistics of it go back to."""
    even: bool = False
    """Whether something before, that the function does not tell, has an even part."""

    @property
    def bends(self) -> bool:
        """Whether anything since the weights has an even part."""
        return self.even or has_even_part(self.values)


class Alike(Enum):
    """What is computed from all channels together."""

    ALIKE = 0


ALIKE = Alike.ALIKE
"""Of an array that is computed from channels, and changes with none of them."""
Signal = Channels | float | Alike | None
"""Of an array: its channels; the number that it is throughout; `ALIKE`; None for
anything else."""


class Followed(NamedTuple):
    """A value on the way."""

    traced: TracedValue
    signal: Signal = None


class Reading(NamedTuple):
    """A weight that sums over channels."""

    path: Path
    rows: Numbers
    """The channel of each row of the weight; -1 for none."""
    channels: Channels


def feature_count(axes: ParameterAxes) -> int:
    """The number of features of a weight, all of its axes of them together."""
    return int(np.prod([axes.shape[i] for i in axes.features], dtype=int))
