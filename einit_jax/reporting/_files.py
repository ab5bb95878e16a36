"""Files that are written as a whole or not at all."""

import os
import tempfile
from pathlib import Path


def check_writable(path: object) -> Path:
    """The path, after a check that a file can be written there.

    Raises:
        TypeError: it is no path.
        ValueError: it is a folder, or in no folder that can be written to.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is a {type(path).__name__}, expected a str or a Path")
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; name a file in it")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            return path
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; pass a path in a folder "
            "that exists and can be written to"
        ) from error


def write_atomically(path: Path, content: bytes) -> Path:
    """Writes a file beside its place, then moves it there in one step."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".einit_") as folder:
        part = Path(folder) / path.name
        part.write_bytes(content)
        os.replace(part, path)
    return path
