"""Files that are there as a whole or not at all."""

import os
import tempfile
from pathlib import Path


def writable(path: str | os.PathLike) -> Path:
    """The path, once it is sure that a file can be written there.

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


def write(path: Path, content: bytes) -> Path:
    """Writes a file by putting a finished one in its place."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # mkstemp makes files for their owner alone
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return path
