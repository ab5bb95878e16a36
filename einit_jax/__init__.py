"""Empirical initialization for Flax."""

from ._inputs import Inputs as Inputs
from ._measure import measure as measure
from ._measurement import Measurement as Measurement
from ._scaled import scaled as scaled
from ._tune import tune as tune
