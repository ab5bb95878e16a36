"""Which library a model is of, and what its room gives: the one place that chooses."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ..linen import (
    Model,
    Scaled,
    apply_intercepted,
    check_module,
    is_module_type,
    linen_objective,
    trace_call,
)
from ..units import ModelGraph, Objective


class Binding(NamedTuple):
    """What binds the models of one library, by function."""

    owns: Callable[[Any], bool]
    """Whether a model is of the library."""
    check_model: Callable[[Any], None]
    """Raises a TypeError of what is no model of the library."""
    is_module_type: Callable[[Any], bool]
    """Whether a value is a class of the library's modules."""
    make_objective: Callable[..., Objective]
    trace_call: Callable[..., ModelGraph]
    """The units of one call `model.apply(variables, ...)`."""
    apply_intercepted: Callable
    """`model.apply` with calls of units intercepted."""


LINEN = Binding(
    owns=lambda model: True,  # the only one so far: it says what else is no model
    check_model=check_module,
    is_module_type=is_module_type,
    make_objective=linen_objective,
    trace_call=trace_call,
    apply_intercepted=apply_intercepted,
)
BINDINGS = (LINEN,)


def binding_of(model: Model) -> Binding:
    """The binding of the library that a model is of."""
    return next(binding for binding in BINDINGS if binding.owns(model))


def is_model_type(value: Any) -> bool:
    """Whether a value is a class of modules of any library."""
    return any(binding.is_module_type(value) for binding in BINDINGS)


def unscaled(model: Model) -> Any:
    """The user's own model, where it is scaled already."""
    return model.model if isinstance(model, Scaled) else model


def bind(
    model: Model, loss_fn: Callable, method: Any = None, axis_name: str | None = None
) -> Objective:
    """The model as an objective, by the binding of its library.

    Raises:
        TypeError, ValueError: what is no model, no loss, or no method of the model.
    """
    model = unscaled(model)
    return binding_of(model).make_objective(model, loss_fn, method, axis_name)
