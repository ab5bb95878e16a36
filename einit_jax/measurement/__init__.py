"""TODO door."""

from ._activation_stats import ActivationStats as ActivationStats
from ._activation_stats import activation_stats as activation_stats
from ._history import History as History
from ._measure import measure as measure
from ._measurement import FLAGS as FLAGS
from ._measurement import Measurement as Measurement
from ._plot import plot as plot
