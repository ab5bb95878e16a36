"""The referee: whether a scaled model does what its factors promise.

Imports `core`, `units`, `graph`. Start at `_outputs`; shares no code with the sweep."""

from ._gradients import Alignment as Alignment
from ._gradients import align_gradients as align_gradients
from ._output_drift import output_drift as output_drift
from ._outputs import Verdict as Verdict
from ._outputs import judge as judge
from ._outputs import output_sizes as output_sizes
from ._total_updates import TotalUpdates as TotalUpdates
