"""The jobs that users write: functions that are named by module or by file."""

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ._errors import CommandError


class JobName(NamedTuple):
    """`package.module:function` or `path/file.py:function`, taken apart."""

    text: str
    module: str
    """The module's name; for a file, that under which it is imported."""
    file: Path | None
    function: str


def job_name(text: str) -> JobName:
    """Takes the name of a job apart.

    Raises:
        CommandError: it is not of either form, or there is no such file.
    """
    place, _, function = text.rpartition(":")
    if not place or not function:
        raise CommandError(
            f"{text!r} is not of the form package.module:function or file.py:function, "
            "and no command: tune, compare, lr, report"
        )
    if not place.endswith(".py"):
        return JobName(text, place, None, function)
    file = Path(place)
    try:
        there = file.is_file()
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot read {place!r}: {error}") from error
    if not there:
        raise CommandError(f"there is no file {place}, which {text!r} names")
    return JobName(text, _import_name(file), file, function)


def _import_name(file: Path) -> str:
    """The name under which a file is imported; it hides no other module."""
    stem = file.stem
    if not stem.isidentifier() or stem in sys.modules:
        return "_job"
    spec = importlib.util.find_spec(stem)
    is_itself = spec is not None and spec.origin == str(file.resolve())
    return stem if spec is None or is_itself else "_job"


def load_job(name: JobName) -> tuple[Any, ...]:
    """What the user's function returns: four things, or these and a dict of keywords.

    Raises:
        CommandError: there is no such module or function, or it returns something else.
        Exception: what the user's own code raises.
    """
    function = getattr(_module_of(name), name.function, None)
    if not callable(function):
        where = name.file or f"module {name.module!r}"
        raise CommandError(f"{where} has no function {name.function!r}")
    job = function()
    if not isinstance(job, tuple) or len(job) not in (4, 5):
        raise CommandError(
            f"{name.text} returned {type(job).__name__}, expected (model, params, "
            "input_fn, loss_fn) or these and a dict of keywords for tune and measure"
        )
    if len(job) == 5 and not isinstance(job[4], Mapping):
        raise CommandError(
            f"{name.text} returned a {type(job[4]).__name__} as its fifth, expected a "
            "dict of keywords"
        )
    return job


def _module_of(name: JobName) -> ModuleType:
    """The module that a job is in, imported."""
    if name.file is None:
        sys.path.insert(0, "")
        return importlib.import_module(name.module)
    # as Python does for a script: its folder comes first
    sys.path.insert(0, str(name.file.resolve().parent))
    spec = importlib.util.spec_from_file_location(name.module, name.file.resolve())
    assert spec is not None and spec.loader is not None  # its name ends with .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name.module] = module
    spec.loader.exec_module(module)
    return module
