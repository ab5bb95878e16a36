"""What the objectives of all libraries have in common: losses, mere data.

Imports `core`, `units`. Start at `_losses`."""

from ._checks import check_call_options as check_call_options
from ._checks import check_traced as check_traced
from ._explanations import explained as explained
from ._losses import NAMES as NAMES
from ._losses import WRITTEN as WRITTEN
from ._losses import checked_loss as checked_loss
from ._losses import loss_arguments as loss_arguments
from ._losses import with_keywords as with_keywords
from ._mapped_axis import run_over_axis as run_over_axis
from ._mere_data import DataOf as DataOf
from ._mere_data import data_in_run as data_in_run
from ._mere_data import knowing_data as knowing_data
