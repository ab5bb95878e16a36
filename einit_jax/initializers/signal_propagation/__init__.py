"""`autoinit`: a jaxpr is interpreted on samples in the place of arrays.

Imports `binding` and what it may, and `classic`. Start at `_samples`, then
`_interpreter`; rules for primitives are listed in `_rule_table`."""

from ._autoinit import autoinit as autoinit
from ._autoinit import sample_weights as sample_weights
from ._axis_samples import average as average
from ._axis_samples import largest as largest
from ._axis_samples import sample_axis as sample_axis
from ._prediction import PropagationSpec as PropagationSpec
from ._prediction import predict_variances as predict_variances
from ._prediction import trace_for_propagation as trace_for_propagation
from ._samples import SampleSource as SampleSource
from ._samples import covariance as covariance
from ._samples import mean as mean
from ._samples import power as power
from ._samples import shuffled as shuffled
from ._values import SampledArray as SampledArray
