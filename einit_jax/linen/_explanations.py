"""Errors of a model's call: those of its arguments by name, others as they are."""

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from typing import Any

from flax import errors

from ..core import Inputs, describe

PARAMS_ERRORS = (errors.ScopeParamNotFoundError, errors.ScopeParamShapeError)
UNBOUND_AXIS = "unbound axis name"
"""In what jax says of a collective without its mapped axis."""


@contextlib.contextmanager
def explained(model: Any, method: Any, inputs: Inputs) -> Iterator[None]:
    """Meanwhile the model is called: says which argument does not fit.

    An error of the model's own code keeps its type and its traceback, and has a note.

    Raises:
        ValueError: params, inputs or the mapped axis are not what the model asks for.
    """
    name = type(model).__name__
    called = f"{name} called with {describe(inputs)}"
    try:
        yield
    except PARAMS_ERRORS as error:
        raise ValueError(
            f"params do not fit {called}: {error}; pass "
            "model.init(key, inputs)['params'] of such inputs"
        ) from error
    except Exception as error:
        if isinstance(error, NameError) and UNBOUND_AXIS in str(error):
            raise ValueError(
                f"{name} needs a mapped axis: {error}; pass axis_name='...'"
            ) from error
        problem = _problem_of_arguments(model, method, inputs)
        if isinstance(error, TypeError) and problem:
            raise ValueError(
                f"{name} cannot take the inputs {describe(inputs)}: {problem}; a tuple "
                "is several arguments, ei.Inputs(x, train=False) has keywords"
            ) from error
        add_note(error, f"This was raised while the model was run: {called}.")
        raise


def add_note(error: Exception, note: str) -> None:
    """Adds a note to an error, once."""
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _problem_of_arguments(model: Any, method: Any, inputs: Inputs) -> str:
    """Why the model's method cannot be called with the inputs; empty where it can."""
    if method is None or isinstance(method, str):
        function = getattr(model, method or "__call__", None)
    else:
        function = partial(method, model)
    try:
        signature = inspect.signature(function)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        return str(error)
    return ""
