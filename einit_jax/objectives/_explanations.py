"""Errors of a model's call: those of its arguments by name, others as they are."""

import contextlib
import inspect
from collections.abc import Callable, Iterator

from ..core import Inputs, describe

UNBOUND_AXIS = "unbound axis name"
"""In what jax says of a collective without its mapped axis."""


@contextlib.contextmanager
def explained(name: str, function: Callable | None, inputs: Inputs) -> Iterator[None]:
    """Meanwhile a model is called: says which argument does not fit.

    An error of the model's own code keeps its type and its traceback, and has a note.

    Args:
        name: of the model's class.
        function: what is called with the inputs, if anything is.
        inputs: its arguments.

    Raises:
        ValueError: inputs or the mapped axis are not what the model asks for.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, NameError) and UNBOUND_AXIS in str(error):
            raise ValueError(
                f"{name} needs a mapped axis: {error}; pass axis_name='...'"
            ) from error
        problem = _problem_of_arguments(function, inputs)
        if isinstance(error, TypeError) and problem:
            raise ValueError(
                f"{name} cannot take the inputs {describe(inputs)}: {problem}; a tuple "
                "is several arguments, ei.Inputs(x, train=False) has keywords"
            ) from error
        called = f"{name} called with {describe(inputs)}"
        add_note(error, f"This was raised while the model was run: {called}.")
        raise


def add_note(error: Exception, note: str) -> None:
    """Adds a note to an error, once."""
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


def _problem_of_arguments(function: Callable | None, inputs: Inputs) -> str:
    """Why a function cannot be called with the inputs; empty where it can."""
    try:
        signature = inspect.signature(function)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return ""
    try:
        signature.bind(*inputs.args, **inputs.kwargs)
    except TypeError as error:
        return str(error)
    return ""
