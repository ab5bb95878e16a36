"""Empirical initialization for Flax: run the network, measure, scale.

`tune` returns scale factors, `scaled` a model that takes them, `measure` the rms of
activations, gradients and updates in every layer; `plot`, `activation_stats`,
`coordinate_check` and `report` show what was measured.
"""

from ._autoinit import autoinit as autoinit
from ._compare import compare as compare
from ._comparison import Comparison as Comparison
from ._coordinates import coordinate_check as coordinate_check
from ._fans import fans as fans
from ._fold import fold as fold
from ._gain import gain as gain
from ._gain import general_relu as general_relu
from ._gradinit import gradinit as gradinit
from ._history import History as History
from ._hypercubes import HyperCubes as HyperCubes
from ._initialize import initialize as initialize
from ._inputs import Inputs as Inputs
from ._lsuv import lsuv as lsuv
from ._measure import measure as measure
from ._measurement import Measurement as Measurement
from ._metainit import metainit as metainit
from ._plot import plot as plot
from ._report import report as report
from ._scaled import scaled as scaled
from ._spread import CoordinateCheck as CoordinateCheck
from ._stats import ActivationStats as ActivationStats
from ._stats import activation_stats as activation_stats
from ._train import TrainState as TrainState
from ._train import scale_updates as scale_updates
from ._tune import tune as tune
from ._unit_params import unit_params as unit_params
