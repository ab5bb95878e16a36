"""What a jaxpr tells: the units, the regions, what each axis of a parameter does.

Imports `core` and `units`. Start with `_marks.py`, then `_discovery.py`.
"""

from ._axis_views import AxisView as AxisView
from ._discovery import discover as discover
from ._jaxprs import bodies as bodies
from ._jaxprs import closed_bodies as closed_bodies
from ._jaxprs import convolves as convolves
from ._jaxprs import derivative_along as derivative_along
from ._jaxprs import open_jaxpr as open_jaxpr
from ._jaxprs import scan_counts as scan_counts
from ._jaxprs import shape_of as shape_of
from ._jaxprs import transposed as transposed
from ._marks import Mark as Mark
from ._marks import marks_in as marks_in
from ._marks import read_mark as read_mark
from ._parameter_axes import ParameterAxes as ParameterAxes
from ._parameter_axes import arguments_of as arguments_of
from ._parameter_axes import multiplying as multiplying
from ._parameter_axes import parameter_axes as parameter_axes
from ._parameter_axes import parameter_use_walk as parameter_use_walk
from ._parameter_uses import ParameterUseWalk as ParameterUseWalk
from ._regions import Regions as Regions
from ._regions import coupled_units as coupled_units
from ._regions import find_regions as find_regions
from ._traced_values import Level as Level
from ._traced_values import TracedValue as TracedValue
from ._union_find import UnionFind as UnionFind
