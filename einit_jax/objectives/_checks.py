"""What no objective can be of: wrong options of a call, a trace without units."""

from typing import Any

from ..core import path_str
from ..units import ModelGraph


def check_call_options(method: Any, axis_name: Any) -> None:
    """Raises a TypeError where a method or a mapped axis is none."""
    if method is not None and not isinstance(method, str) and not callable(method):
        raise TypeError(f"method is {method!r}, expected a name or a function")
    if not isinstance(axis_name, str | None):
        raise TypeError(f"axis_name is {axis_name!r}, expected a name or None")


def check_traced(graph: ModelGraph, model_type: str) -> None:
    """Raises a ValueError where a model has no units, or its loss leaves it alone."""
    if not graph.units:
        raise ValueError(
            f"{model_type} has no units: no module turns inputs into outputs "
            "with parameters of its own; parameters that belong to no unit: "
            f"{', '.join(map(path_str, graph.raw_parameters))}"
        )
    if not graph.uses_outputs:
        raise ValueError(
            "the loss does not depend on the model's outputs; loss_fn receives "
            "them as its first argument"
        )
