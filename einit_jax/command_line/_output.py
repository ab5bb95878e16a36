"""What is printed and saved: a stream or a disk that fails costs nothing else."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ._errors import CommandError, one_line, type_and_message

PIPE_CLOSED = 141
"""The exit status of a program that nobody reads any more: 128 + SIGPIPE."""


ASCII = str.maketrans({"─": "-", "…": "..."})
"""What tables are drawn with, in letters of every encoding."""


def say(text: str) -> None:
    """Prints a text, and sees it off; letters that the encoding lacks are escaped.

    Raises:
        CommandError: standard output is closed, or full.
    """
    try:
        _write_text(sys.stdout, text + "\n")
    except OSError as error:
        raise _output_error(error) from error


def complain(text: str) -> None:
    """Prints a line to standard error, if that is possible."""
    with suppress(OSError):  # then there is nobody to be told
        _write_text(sys.stderr, one_line(text) + "\n")


def write_or_complain(
    path: Path, write: Callable[[], Any], note: str, said: list[str]
) -> int:
    """Writes a file and puts a note of that into `said`; returns the exit status.

    Where it cannot be written, that is printed, and whatever else a command has to save
    and to say follows nevertheless.
    """
    try:
        write()
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else None
        reason = reason or type_and_message(error)
        complain(f"error: cannot write {path}: {reason}")
        return 2
    said.append(note)
    return 0


def finish_output(status: int) -> int:
    """The exit status of the program, once all that was printed is on its way.

    What cannot be printed is dropped: Python would try again at its end, and complain.
    """
    stream = sys.stdout
    if stream is None or stream.closed:
        return status
    try:
        stream.flush()
    except OSError as error:
        failure = _output_error(error)
        if status == 0:
            status = failure.status
            if str(failure):
                complain(f"error: {failure}")
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
    return status


def _write_text(stream: Any, text: str) -> None:
    """Writes to a stream that may be closed, and may be of any encoding."""
    if stream is None or stream.closed:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        plain = text.translate(ASCII).encode(encoding, "backslashreplace")
        text = plain.decode(encoding)
    stream.write(text)
    stream.flush()


def _output_error(error: OSError) -> CommandError:
    """A reader that went away is no error to speak of; a full disk is one."""
    if isinstance(error, BrokenPipeError):
        return CommandError("", PIPE_CLOSED)
    reason = error.strerror or str(error)
    return CommandError(f"cannot write to standard output: {reason}")
