"""Rules by name or formula: `initialize`, `unit_params`, `gain`, `fans`.

Imports `binding` and what it may. Start at `_parameters`, what an array is for, then
`_presets`."""

from ._fans import fans as fans
from ._gain import gain as gain
from ._gain import general_relu as general_relu
from ._initialize import initialize as initialize
from ._parameters import Parameter as Parameter
from ._parameters import parameters_in as parameters_in
from ._parameters import role_of as role_of
from ._presets import PRESETS as PRESETS
from ._presets import of_variance as of_variance
from ._rules import Rule as Rule
from ._sampling import place_like as place_like
from ._sampling import sample as sample
from ._unit_params import unit_params as unit_params
