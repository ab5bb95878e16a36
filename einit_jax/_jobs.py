"""Jobs of the command line: the model that a user's function makes."""

import importlib
import sys

from ._demo import Job


def load_job(name: str) -> Job:
    """The job that the user's function makes.

    Raises:
        ImportError: there is no such module.
        ValueError: the name is not `module:function`, or it returns something else.
    """
    module_name, colon, function = name.partition(":")
    if not colon or not function:
        raise ValueError(f"{name!r} is not of the form package.module:function")
    sys.path.insert(0, "")
    module = importlib.import_module(module_name)
    if not callable(getattr(module, function, None)):
        raise ValueError(f"module {module_name!r} has no function {function!r}")
    made = getattr(module, function)()
    if not isinstance(made, tuple) or len(made) not in (4, 5):
        raise ValueError(
            f"{name} returned {type(made).__name__}, expected (model, params, "
            "input_fn, loss_fn) or these and a dict of keywords for tune and measure"
        )
    return Job(*made)
