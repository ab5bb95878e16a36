"""Errors of an NNX model's call, and those that only our own hooks bring about."""

import pathlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..core import Inputs
from ..objectives import explained
from ._hooks import OURS

OWN_FILES = str(pathlib.Path(__file__).parents[1])
READS_ALL = (
    "the loss, or a module of {}, computes with all parameters of the model, by "
    "nnx.state(model, nnx.Param) or the like; while verbs run it, arrays that are "
    "carried to its units are among them; take those that are meant by their names: "
    "nnx.state(model, nnx.PathContains('kernel'))"
)
"""What is said of a model that counts what is carried among its parameters."""


@contextmanager
def explained_call(
    name: str, function: Callable | None, inputs: Inputs
) -> Iterator[None]:
    """As `explained`; an error of user code that tells of what is carried is a refusal.

    Raises:
        ValueError: in the place of such an error. Below `nnx.scan` what is carried has
            to be of the kind of parameters, or it would not be sliced by layer.
    """
    try:
        with explained(name, function, inputs):
            yield
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        if OURS not in str(error) or last.filename.startswith(OWN_FILES):
            raise
        raise ValueError(READS_ALL.format(name)) from error
