"""Files that are written as a whole or not at all."""

import errno
import hashlib
import os
import stat
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

RETRIES = 100
"""So often may other processes that write the same file come in between."""


def check_writable(path: object) -> Path:
    """The path, after a check that a file can be written there.

    Raises:
        TypeError: it is no path.
        ValueError: it is a folder or a disk, what standard output goes to, a file that
            may not be written, or in no folder that can be written to.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path is a {type(path).__name__}, expected a str or a Path")
    path = Path(path)
    try:
        found = _found(path)
        _refuse_kinds(path, found)
        if found is not None and not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if found is None or stat.S_ISREG(found.st_mode):
            with tempfile.TemporaryFile(dir=_target(path).parent):
                pass
        return path
    except OSError as error:
        raise ValueError(
            f"cannot write {path}: {error.strerror or error}; pass a path in a folder "
            "that exists and can be written to"
        ) from error


def write_atomically(path: Path, content: bytes) -> Path:
    """Replaces a file in one step; what is no file, a pipe for one, is written into.

    A link stays, and what it leads to is replaced. The new file has the mode of the
    old one, or the default where there was none.

    Raises:
        OSError: it cannot be written; an old file is as it was.
    """
    found = _found(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        with open(os.open(path, os.O_WRONLY), "wb") as stream:
            stream.write(content)
        return path
    target = _target(path)
    if not _written_without_name(target, content, found):
        _write_beside(target, content, found)
    return path


def _found(path: Path) -> os.stat_result | None:
    """What is at a path, links followed; None where nothing is."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except ValueError as error:  # a NUL byte
        raise ValueError(f"cannot write {str(path)!r}: {error}") from error


def _target(path: Path) -> Path:
    """Where the file itself is, at the end of all links."""
    return Path(os.path.realpath(path))


def _refuse_kinds(path: Path, found: os.stat_result | None) -> None:
    """Raises where a path leads to something that no file may replace."""
    if found is None:
        return
    if stat.S_ISDIR(found.st_mode):
        raise ValueError(f"cannot write {path}: it is a folder; name a file in it")
    if stat.S_ISBLK(found.st_mode):
        raise ValueError(f"cannot write {path}: it is a disk; name a file")
    if stat.S_ISREG(found.st_mode) and any(_is_open_as(found, n) for n in (1, 2)):
        # replaced, it would lose whatever is printed to it
        raise ValueError(
            f"cannot write {path}: what is printed goes there; name another file"
        )


def _is_open_as(found: os.stat_result, descriptor: int) -> bool:
    """Whether a file is what a descriptor of this process leads to."""
    try:
        return os.path.samestat(found, os.fstat(descriptor))
    except OSError:  # closed
        return False


def _written_without_name(
    target: Path, content: bytes, found: os.stat_result | None
) -> bool:
    """Writes a file that has no name until it is whole: a kill leaves nothing behind.

    False where the system or its file system has no such files.
    """
    try:
        flags = os.O_WRONLY | os.O_TMPFILE
        descriptor = os.open(target.parent, flags, 0o666)
    except (AttributeError, OSError):
        return False
    with open(descriptor, "wb") as stream:
        _fill(stream, content, found)
        return _named(stream.fileno(), target)


def _named(descriptor: int, target: Path) -> bool:
    """Gives a file without a name that of the target; False where that cannot be.

    No file can be linked over another one, so it is linked beside it and moved. The
    name there is always the same: what a kill between the two leaves behind, the next
    call removes. A process that moves what another one linked moves a whole file.
    """
    # told a folder's descriptor, whatever it be, `link` follows the link to the file
    link = partial(os.link, f"/proc/self/fd/{descriptor}", src_dir_fd=descriptor)
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    part = target.with_name(f".{digest}.part")
    try:
        with suppress(FileExistsError):
            link(target)
            return True
        for _ in range(RETRIES):
            part.unlink(missing_ok=True)
            with suppress(FileExistsError, FileNotFoundError):  # another one's doing
                link(part)
                os.replace(part, target)
                return True
    except OSError:
        part.unlink(missing_ok=True)
    return False


def _write_beside(target: Path, content: bytes, found: os.stat_result | None) -> None:
    """Writes a file under a name of its own beside the target, and moves it there."""
    part = target.with_name(f".{os.urandom(8).hex()}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with open(os.open(part, flags, 0o666), "wb") as stream:
            _fill(stream, content, found)
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _fill(stream: BinaryIO, content: bytes, found: os.stat_result | None) -> None:
    """Writes the content to the disk, and gives the file the mode of an older one."""
    stream.write(content)
    stream.flush()
    os.fsync(stream.fileno())
    if found is not None:
        with suppress(PermissionError):  # of another user: it becomes one's own
            os.fchown(stream.fileno(), found.st_uid, found.st_gid)
        os.fchmod(stream.fileno(), stat.S_IMODE(found.st_mode))
