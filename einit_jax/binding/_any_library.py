"""Verbs take models of NNX, too: as functions of their arrays, by the same code."""

import contextlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax

from ..core import describe

OF_ANY = "_of_any_library"
"""An attribute of verbs that take models of any library."""
VerbArgs = ParamSpec("VerbArgs")
VerbResult = TypeVar("VerbResult")


def is_nnx(value: Any) -> bool:
    """Whether a value is a module or a state of NNX; where that is not imported, no."""
    nnx = sys.modules.get("flax.nnx")
    return nnx is not None and isinstance(value, nnx.Pytree | nnx.State)


def any_library(
    gives: str = "",
) -> Callable[[Callable[VerbArgs, VerbResult]], Callable[VerbArgs, VerbResult]]:
    """Decorates a verb, which then takes NNX models and states.

    The verb itself gets the model as a function, its parameters as a nested dict, and
    what else the model holds as `collections`.

    Args:
        gives: what the verb returns: "params", that is parameters or a tuple that
            begins with them, which become an `nnx.State`; "model", parameters that
            become a model of the user's own class; "", something else.
    """

    def decorate(
        verb: Callable[VerbArgs, VerbResult],
    ) -> Callable[VerbArgs, VerbResult]:
        @wraps(verb)
        def call(*args: VerbArgs.args, **kwargs: VerbArgs.kwargs) -> VerbResult:
            if not any(map(is_nnx, (*args, *kwargs.values()))):
                _check_no_class(args[0] if args else kwargs.get("model"))
                return verb(*args, **kwargs)
            bound = inspect.signature(verb).bind(*args, **kwargs)
            return cast(VerbResult, _on_functions(verb, bound, gives))

        setattr(call, OF_ANY, True)
        return call

    return decorate


def _check_no_class(model: Any) -> None:
    """Raises a TypeError where the class of an NNX model is given in its place."""
    nnx = sys.modules.get("flax.nnx")
    if nnx and isinstance(model, type) and issubclass(model, nnx.Module):
        raise TypeError(
            f"model is the class {model.__name__}, expected a module; make one: "
            f"{model.__name__}(..., rngs=nnx.Rngs(0))"
        )


def _on_functions(verb: Callable, bound: inspect.BoundArguments, gives: str) -> Any:
    """Calls a verb with arguments of NNX as it takes them."""
    from ..nnx import as_nested, functional, holds_factors, state_like

    given = bound.arguments
    model, params = given.get("model"), given.get("params")
    if "scales" in given and isinstance(given["scales"], Mapping):
        given["scales"] = as_nested(given["scales"])
    if model is None and is_nnx(params):  # a verb of parameters alone
        template = params
        given["params"] = as_nested(state_like(params))
        return state_like(template, verb(*bound.args, **bound.kwargs))
    if model is None or not is_nnx(model):
        return verb(*bound.args, **bound.kwargs)
    if given.get("collections"):
        raise ValueError(
            f"collections are {describe(given['collections'])}, expected None: a model "
            "of flax.nnx holds its own variables; change them there"
        )
    told = {"loss_fn", "scales"} <= bound.signature.parameters.keys()
    if told and given.get("scales") is None and holds_factors(model):
        raise TypeError(
            f"{type(model).__name__} holds factors already, which scales=None would "
            "leave out; pass scales=scales, those it was given, with it"
        )
    params = None if params is model else params
    function, own, variables = functional(model, params)
    given |= {"model": function, "params": own, "collections": variables}
    if isinstance(given.get("strategies"), Mapping):
        given["strategies"] = {
            name: _of_functions(strategy, function, variables)
            for name, strategy in given["strategies"].items()
        }
    result = verb(*bound.args, **bound.kwargs)
    if gives == "model":
        return function.filled(cast(Mapping, result), variables)
    if gives == "params":
        several = isinstance(result, tuple)
        first, *rest = result if several else (result,)
        state = function.state_of(cast(Mapping, first))
        return (state, *rest) if several else state
    return result


def _of_functions(strategy: Any, function: Any, variables: Mapping[str, Any]) -> Any:
    """A user's strategy for models of NNX, as one of functions of their arrays.

    It gets a model and an `nnx.State`, and may return either, or both parameters and
    scales.
    """
    own = getattr(getattr(strategy, "func", strategy), OF_ANY, False)
    if own or not callable(strategy):
        return strategy
    from ..nnx import as_nested, state_like

    def call(
        model: Any,
        params: Any,
        input_fn: Any,
        loss_fn: Callable,
        *,
        collections: Any = None,
        **options: Any,
    ) -> Any:
        given = function.filled(params, variables), function.state_of(params)
        returned = strategy(*given, input_fn, loss_fn, **options)
        if isinstance(returned, Mapping) and "scales" in returned:
            return {n: as_nested(state_like(t)) for n, t in returned.items()}
        return as_nested(state_like(returned))

    with contextlib.suppress(TypeError, ValueError):  # nothing is known of it
        known = inspect.signature(strategy)
        added = inspect.signature(call).parameters["collections"]
        names = dict(known.parameters) | {"collections": added}
        order = sorted(names.values(), key=lambda parameter: parameter.kind)
        call.__signature__ = known.replace(parameters=order)
    return call


def build_model(
    model_fn: Callable, width: int, *, key: jax.Array, seeds: int = 1
) -> Any:
    """The model of a width; one of NNX is made with its parameters.

    `model_fn(width, rngs)` gets the `nnx.Rngs` of the key.

    Raises:
        ValueError: it takes none, makes models of NNX, and there are several seeds.
    """
    try:
        parameters = inspect.signature(model_fn).parameters.values()
    except (TypeError, ValueError):
        parameters = ()
    positional = [p for p in parameters if p.kind < p.VAR_POSITIONAL]
    if sum(p.default is p.empty for p in positional) < 2:
        model = model_fn(width)
        if is_nnx(model) and seeds > 1:
            raise ValueError(
                f"model_fn(width) returns a module of flax.nnx, whose parameters are "
                f"the same for each of the seeds={seeds}; take random streams: "
                "model_fn=lambda width, rngs: MyModel(width, rngs=rngs)"
            )
        return model
    from ..nnx import rngs_of

    return model_fn(width, rngs_of(key))


def as_function(model: Any) -> tuple[Any, Any, dict[str, Any]]:
    """A model of NNX as verbs take it: a function, parameters and collections."""
    from ..nnx import functional

    return functional(model)
