"""Calls of a user's own model, of any library, with its variables as they have them."""

from collections.abc import Callable, Mapping
from typing import Any

from ..core import Params, unboxed
from ..linen import apply_intercepted, trace_call
from ..units import Interception, ModelGraph
from ._any_library import is_nnx
from ._bind import unscaled


def params_of_call(variables: Any) -> Params:
    """The parameters among what a model is called with: variables, or a module of NNX.

    Raises:
        TypeError, ValueError: there are none.
    """
    if is_nnx(variables):
        from ..nnx import functional

        return functional(variables)[1]
    if not isinstance(variables, Mapping):
        raise TypeError(
            f"variables are a {type(variables).__name__}, expected what model.init "
            "returned: {'params': params}"
        )
    if "params" not in variables:
        raise ValueError(
            f"variables have entries {sorted(variables)[:6]}, expected 'params' "
            "among them: pass {'params': params}"
        )
    return unboxed(variables["params"])


def trace_user_call(
    model: Any, variables: Any, args: tuple, how: Mapping[str, Any]
) -> ModelGraph:
    """The units of one call of a model."""
    if is_nnx(variables):
        from ..nnx import trace_nnx_call

        kwargs, method = _call_keywords(how)
        return trace_nnx_call(variables, args, kwargs, method)
    return trace_call(unscaled(model), variables, args, how)


def call_with_taps(
    model: Any,
    variables: Any,
    tapping: Callable[[Any, Params], Interception],
    *args: Any,
    **how: Any,
) -> Any:
    """The model's own call, its units tapped; what it writes stays written.

    Args:
        model: a model of Linen.
        variables: what it is applied to, with "taps"; or a module of NNX, with taps
            among the keywords `how`.
        tapping: the interception for some taps and parameters.
        args: what the model is called with.
        how: keywords of that call.

    Raises:
        ValueError: there are no taps.
    """
    is_module = is_nnx(variables)
    taps = how.pop("taps", None) if is_module else variables.get("taps")
    if taps is None:
        raise ValueError(
            "variables have no 'taps'; pass {'params': params, 'taps': state.taps} "
            "with state from init (taps=state.taps to a model of NNX), or apply the "
            "plain model"
        )
    if is_module:
        from ..nnx import call_intercepted

        interception = tapping(taps, params_of_call(variables))
        kwargs, method = _call_keywords(how)
        return call_intercepted(variables, interception, args, kwargs, method=method)
    rest = {k: v for k, v in variables.items() if k != "taps"}
    interception = tapping(taps, unboxed(rest.get("params", {})))
    return apply_intercepted(model, rest, interception, *args, **how)


def _call_keywords(how: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """Keywords of a module's call, and the method; `rngs` where it is given."""
    kwargs = {k: v for k, v in how.items() if k != "method"}
    if kwargs.get("rngs", 0) is None:
        del kwargs["rngs"]
    return kwargs, how.get("method")
