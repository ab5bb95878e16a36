"""TODO door."""

from ._discovery import DependenceWalk as DependenceWalk
from ._discovery import units_from as units_from
from ._jaxprs import closed_bodies as closed_bodies
from ._jaxprs import open_jaxpr as open_jaxpr
from ._jaxprs import open_to_forward_mode as open_to_forward_mode
from ._jaxprs import scan_counts as scan_counts
from ._marks import ESTIMATED as ESTIMATED
from ._parameter_axes import ParameterAxes as ParameterAxes
from ._parameter_axes import parameter_axes as parameter_axes
from ._regions import Regions as Regions
from ._regions import find_regions as find_regions
