"""The table of units, values per unit, and the seam to neural network libraries.

Imports `core`. Start at `_unit`, then at `_protocols`: what a library has to give."""

from ._columns import UnitRow as UnitRow
from ._columns import call_order as call_order
from ._columns import concat_units as concat_units
from ._columns import split_units as split_units
from ._columns import unit_numbers as unit_numbers
from ._columns import unit_rows as unit_rows
from ._measurable import check_measurable as check_measurable
from ._ownership import flat_floats as flat_floats
from ._ownership import floats_below as floats_below
from ._ownership import mask_unowned as mask_unowned
from ._ownership import only_at as only_at
from ._ownership import own_floats as own_floats
from ._ownership import owners as owners
from ._ownership import param_rms as param_rms
from ._ownership import scale_by_owner as scale_by_owner
from ._ownership import zeros_like_params as zeros_like_params
from ._param_columns import ParamColumns as ParamColumns
from ._probes import put_probes as put_probes
from ._probes import zero_candidates as zero_candidates
from ._protocols import Interception as Interception
from ._protocols import Objective as Objective
from ._protocols import UnitCall as UnitCall
from ._scales import FACTORS as FACTORS
from ._scales import UPDATE as UPDATE
from ._scales import check_foreign as check_foreign
from ._scales import check_missing as check_missing
from ._scales import from_tree as from_tree
from ._scales import may_be_method as may_be_method
from ._scales import may_lack as may_lack
from ._scales import ones as ones
from ._scales import outputs_alone as outputs_alone
from ._scales import raw_from_tree as raw_from_tree
from ._scales import to_tree as to_tree
from ._scaling import check_methods as check_methods
from ._scaling import scale_raw_gradient as scale_raw_gradient
from ._scaling import scale_raw_gradients as scale_raw_gradients
from ._scaling import scaling as scaling
from ._selection import UnitSelection as UnitSelection
from ._selection import unit_selection as unit_selection
from ._unit import ModelGraph as ModelGraph
from ._unit import Mover as Mover
from ._unit import RawParameter as RawParameter
from ._unit import Unit as Unit
from ._unit import UnitKey as UnitKey
