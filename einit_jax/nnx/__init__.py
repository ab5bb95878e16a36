"""The binding to Flax NNX: models traced, run, intercepted, scaled.

Imports `core`, `units`, `graph`, `objectives`; nobody imports it before a model of NNX
comes. Start at `_functional`, then `_hooks`."""

from ._functional import NnxModel as NnxModel
from ._functional import functional as functional
from ._functional import holds_factors as holds_factors
from ._functional import state_like as state_like
from ._nodes import NnxModule as NnxModule
from ._nodes import as_nested as as_nested
from ._nodes import rngs_of as rngs_of
from ._objective import is_nnx_type as is_nnx_type
from ._objective import nnx_objective as nnx_objective
from ._scaled import nnx_scaled as nnx_scaled
from ._watched import call_intercepted as call_intercepted
from ._watched import trace_nnx_call as trace_nnx_call
