"""Which library a model is of, and what every verb does with it first.

Imports `core`, `units`, `graph`, `linen`. Start at `_setup`; `_bind` is the one place
that chooses."""

from ._bind import bind as bind
from ._bind import binding_of as binding_of
from ._bind import is_model_type as is_model_type
from ._bind import unscaled as unscaled
from ._input_changes import Amplifications as Amplifications
from ._input_changes import amplifications as amplifications
from ._output_changes import output_changes as output_changes
from ._own_changes import own_changes as own_changes
from ._setup import Arrays as Arrays
from ._setup import Setup as Setup
from ._setup import setup as setup
from ._setup import sum_of_means as sum_of_means
