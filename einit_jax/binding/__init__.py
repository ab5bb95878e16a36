"""Which library a model is of, and what every verb does with it first.

Imports `core`, `units`, `graph`, `linen`, `nnx` where a model of that comes, and for
files `reporting`. Start at `_setup`; `_bind` is the one place that chooses."""

from ._any_library import any_library as any_library
from ._any_library import as_function as as_function
from ._any_library import build_model as build_model
from ._any_library import is_nnx as is_nnx
from ._bind import Model as Model
from ._bind import bind as bind
from ._bind import binding_of as binding_of
from ._bind import check_model as check_model
from ._bind import is_model_type as is_model_type
from ._bind import unscaled as unscaled
from ._compilation import check_convolved as check_convolved
from ._compilation import compiled_once as compiled_once
from ._input_changes import Amplifications as Amplifications
from ._input_changes import amplifications as amplifications
from ._output_changes import output_changes as output_changes
from ._own_changes import own_changes as own_changes
from ._saved_scales import load as load
from ._saved_scales import save as save
from ._scaled import scaled as scaled
from ._setup import Arrays as Arrays
from ._setup import Setup as Setup
from ._setup import setup as setup
from ._setup import sum_of_means as sum_of_means
from ._user_calls import call_with_taps as call_with_taps
from ._user_calls import params_of_call as params_of_call
from ._user_calls import trace_user_call as trace_user_call
