"""The binding to Flax Linen: models traced, run, intercepted, scaled.

Imports `core`, `units`, `graph`; the only room that imports Flax, boxes aside.
Start at `_objective`, then `_interception`."""

from ._checks import LinenModule as LinenModule
from ._checks import check_module as check_module
from ._checks import is_module_type as is_module_type
from ._hypercubes import HyperCubes as HyperCubes
from ._objective import linen_objective as linen_objective
from ._scaled import Scaled as Scaled
from ._scaled import apply_intercepted as apply_intercepted
from ._scaled import linen_scaled as linen_scaled
from ._scaled import scales_from_bytes as scales_from_bytes
from ._scaled import scales_to_bytes as scales_to_bytes
from ._tracing import trace_call as trace_call
from ._train_state import TrainState as TrainState
