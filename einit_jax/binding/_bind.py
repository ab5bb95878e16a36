"""Which library a model is of, and what its room gives: the one place that chooses."""

import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from ..linen import (
    Scaled,
    check_module,
    is_module_type,
    linen_objective,
)
from ..units import Objective
from ._any_library import is_nnx

if TYPE_CHECKING:
    from ..linen import LinenModule
    from ..nnx import NnxModule

    Model = LinenModule | Scaled | NnxModule
    """What verbs take for a model."""
else:
    Model = Any


class Binding(NamedTuple):
    """What binds the models of one library, by function."""

    owns: Callable[[Any], bool]
    """Whether a model is of the library."""
    check_model: Callable[[Any], None]
    """Raises a TypeError of what is no model of the library."""
    is_module_type: Callable[[Any], bool]
    """Whether a value is a class of the library's modules."""
    make_objective: Callable[..., Objective]


LINEN = Binding(
    owns=lambda model: True,  # the last one to be asked: it says what else is no model
    check_model=check_module,
    is_module_type=is_module_type,
    make_objective=linen_objective,
)


def _bindings() -> tuple[Binding, ...]:
    """The libraries that are imported: where one is not, no model is of it."""
    return (_nnx_binding(), LINEN) if "flax.nnx" in sys.modules else (LINEN,)


@cache
def _nnx_binding() -> Binding:
    from ..nnx import NnxModel, is_nnx_type, nnx_objective

    return Binding(
        owns=lambda model: isinstance(model, NnxModel),
        check_model=lambda model: None,
        is_module_type=is_nnx_type,
        make_objective=nnx_objective,
    )


def binding_of(model: Any) -> Binding:
    """The binding of the library that a model is of."""
    return next(binding for binding in _bindings() if binding.owns(model))


def is_model_type(value: Any) -> bool:
    """Whether a value is a class of modules of any library."""
    return any(binding.is_module_type(value) for binding in _bindings())


def check_model(model: Any) -> None:
    """Raises a TypeError of what is no model of any library."""
    own = unscaled(model)
    if not is_nnx(own):
        binding_of(own).check_model(own)


def unscaled(model: Any) -> Any:
    """The user's own model, where it is scaled already."""
    return model.model if isinstance(model, Scaled) else model


def bind(
    model: Any, loss_fn: Callable, method: Any = None, axis_name: str | None = None
) -> Objective:
    """The model as an objective, by the binding of its library.

    Raises:
        TypeError, ValueError: what is no model, no loss, or no method of the model.
    """
    model = unscaled(model)
    return binding_of(model).make_objective(model, loss_fn, method, axis_name)
