"""Errors as one line: where in the user's file, of which type, and the message."""

import inspect
import os
import re
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


LIBRARIES = {"einit_jax", "flax", "jax", "jaxlib", "numpy", "optax", "rich"}
"""Packages that are no user's, wherever they are installed from."""


INNER_TRACEBACK = "Traceback (most recent call last):"


TEXT_LINE = re.compile(r'File "([^"]+)", line (\d+)')


class CommandError(Exception):
    """Ends a command: with one line, unless it is empty, and an exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


@contextmanager
def told_with_place(job: Any) -> Iterator[None]:
    """Makes of every error a line that names the place in the code of a user's job.

    `job` is the `JobName`, or None for the embedded job.

    Raises:
        CommandError: in the place of any other error.
    """
    try:
        yield
    except CommandError:
        raise
    except (Exception, SystemExit) as error:
        raise CommandError(_told(error, job)) from error


def one_line(text: str) -> str:
    """A text of several lines as one."""
    return " ".join(text.split())


def type_and_message(error: BaseException) -> str:
    """An error as Python ends a traceback with it."""
    head, inner, tail = _message(error).partition(INNER_TRACEBACK)
    if inner:  # what a callback raises arrives as a text
        tail = tail.strip().rpartition("\n")[-1]
    return f"{type(error).__name__}: {one_line(head + tail)}".removesuffix(": ")


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # the user's own `__str__` may fail
        return ""


def _told(error: BaseException, job: Any) -> str:
    """Place, type and message, and those of the first cause, if they are others.

    What is raised inside of a user's function reaches the command line in an error of
    the library that says what was called: the place is then that of the cause.
    """
    found = [(place, e) for e in _causes(error) if (place := _place_in(e, job))]
    place, _ = found[0] if found else (_place_of(job), error)
    told = ": ".join(filter(None, (place, type_and_message(error))))
    if found:
        origin, cause = found[-1]
        about = type_and_message(cause)
        if about not in told:
            told += f" ({about})" if origin == place else f" ({origin}: {about})"
    return told


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, what it was raised for, and so on, as Python prints them."""
    seen: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        yield following
        seen.add(id(following))
        hidden = following.__suppress_context__
        context = None if hidden else following.__context__
        following = following.__cause__ or context


def _place_in(error: BaseException, job: Any) -> str | None:
    """The innermost line of the user's that an error went through, if any."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short_path(error.filename)}:{error.lineno}"
    lines = [
        (frame.f_code.co_filename, frame.f_globals.get("__name__"), number)
        for frame, number in traceback.walk_tb(error.__traceback__)
    ]
    lines += [(file, None, n) for file, n in TEXT_LINE.findall(_message(error))]
    for file, module, number in reversed(lines):
        if _is_users(file, str(module or ""), job):
            return f"{_short_path(file)}:{number}"
    return None


def _is_users(file: str, module: str, job: Any) -> bool:
    """Whether a line is of the user's code: of the job's package, or of no library."""
    if job is None or file.startswith("<") or PACKAGE in Path(file).parents:
        return False
    package = module.partition(".")[0]
    if package == job.module.partition(".")[0]:
        return True
    installed = any(folder in Path(file).parents for folder in _library_folders())
    return package not in LIBRARIES and not installed


def _library_folders() -> list[Path]:
    """Where Python and its packages are installed."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    folders = [sysconfig.get_path(name) for name in names]
    return [Path(f) for f in {*folders, *site.getsitepackages(), _user_site()} if f]


def _user_site() -> str:
    return site.getusersitepackages() if site.ENABLE_USER_SITE else ""


def _place_of(job: Any) -> str | None:
    """Where the job's function is defined, or else the module."""
    if job is None:
        return None
    module = sys.modules.get(job.module)
    function: Any = getattr(module, job.function, None)
    function = getattr(function, "func", function)  # of a partial
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is not None:
        return f"{_short_path(code.co_filename)}:{code.co_firstlineno}"
    file = getattr(module, "__file__", None) or job.file
    return _short_path(file) if file else None


def _short_path(file: str | os.PathLike) -> str:
    """A path as short as it goes: from the current folder, where it is inside."""
    path = Path(file).absolute()
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
