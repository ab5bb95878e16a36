"""Training runs side by side: `compare`, `coordinate_check`, `find_learning_rate`.

Imports every room but itself; nothing imports it. Start at `_comparer`, or at
`_coordinate_runs`."""

from ._compare import compare as compare
from ._comparison import OCTAVE_COLUMNS as OCTAVE_COLUMNS
from ._comparison import Comparison as Comparison
from ._coordinate_check import coordinate_check as coordinate_check
from ._coordinate_result import CoordinateCheck as CoordinateCheck
from ._learning_rate import LearningRates as LearningRates
from ._learning_rate import find_learning_rate as find_learning_rate
from ._strategies import default_strategies as default_strategies
