"""What a model does as it stands: `measure`, `plot`, `activation_stats`.

Imports `binding`, `reporting` and what these may, never `tuning`: it judges the sweep.
Start at `_measure`, then `_observation`."""

from ._activation_stats import ActivationStats as ActivationStats
from ._activation_stats import activation_stats as activation_stats
from ._findings import FLAGS as FLAGS
from ._history import History as History
from ._measure import measure as measure
from ._measurement import Measurement as Measurement
from ._plot import plot as plot
