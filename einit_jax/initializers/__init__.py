"""Ways to make parameters, a room for each kind of way.

`classic` by rules, `signal_propagation` by analysis, `layerwise` by running the model
layer by layer, `learned` by descent. `classic` is imported by the three others.
"""

from .classic import fans as fans
from .classic import gain as gain
from .classic import general_relu as general_relu
from .classic import initialize as initialize
from .classic import unit_params as unit_params
from .layerwise import LinearStart as LinearStart
from .layerwise import looks_linear as looks_linear
from .layerwise import lsuv as lsuv
from .learned import gradinit as gradinit
from .learned import metainit as metainit
from .signal_propagation import autoinit as autoinit
