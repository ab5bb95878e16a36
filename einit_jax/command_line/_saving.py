"""Files that a command is to write: checked before it runs, written at its end."""

import io
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ._errors import CommandError
from ._output import write_or_complain


def check_files(**paths: Path | None) -> None:
    """Raises where a file, by its option, cannot be written, or two are the same."""
    from ..reporting import check_writable

    options: dict[str, str] = {}
    for option, path in paths.items():
        if path is None:
            continue
        try:
            check_writable(path)
        except ValueError as error:
            raise CommandError(str(error)) from error
        other = options.setdefault(os.path.realpath(path), option)
        if other != option:
            raise CommandError(
                f"--{other} and --{option} are the same file, {path}; name another one"
            )


def check_figures() -> Any:
    """A small figure: is matplotlib there? It is asked before anything runs."""
    from ..reporting import empty_figure

    try:
        return empty_figure(1.0, 1.0)
    except ImportError as error:
        raise CommandError(str(error)) from error


def check_figure_name(path: Path) -> None:
    """Raises where no figure can be written under a name."""
    formats = check_figures().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise CommandError(
            f"{path} is no figure's name; its end may be .png, .pdf, .svg"
        )


def save_figure(path: Path | None, found: Any, said: list[str]) -> int:
    """Writes what `plot()` draws, if asked to; returns the exit status."""
    from ..reporting import write_atomically

    if path is None:
        return 0

    def write() -> None:
        stream = io.BytesIO()
        found.plot().savefig(stream, format=path.suffix[1:].lower())
        write_atomically(path, stream.getvalue())

    return write_or_complain(path, write, f"figure written to {path}", said)


def save_report(
    path: Path, parts: Mapping[str, Any], facts: Mapping[str, Any], said: list[str]
) -> int:
    """Writes a report of some parts; returns the exit status.

    `facts`: keywords of `report` besides the parts: the model, the seed.
    """
    from ..pages import report

    write = partial(report, path, **facts, **parts)
    return write_or_complain(path, write, f"report written to {path}", said)
