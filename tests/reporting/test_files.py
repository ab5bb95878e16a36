"""Files: whole or not at all, and nothing else is lost by them."""

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from einit_jax.reporting import _files, check_writable, write_atomically
from tests.support.checks import refuses

OLD, NEW = b"old", b"new" * 1000
WRITE = """
import os, signal, sys
from pathlib import Path
from einit_jax.reporting import _files
"""
KILLED = "os.{name} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
CALL = "_files.write_atomically(Path(sys.argv[1]), b'new')"


@pytest.fixture(params=["without a name", "beside"])
def way(request, monkeypatch):
    """Both ways to write: the second is for systems that lack the first."""
    if request.param == "beside":
        monkeypatch.setattr(_files, "_written_without_name", lambda *_: False)
    return request.param


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def written(path):
    write_atomically(check_writable(path), NEW)
    assert path.read_bytes() == NEW


@contextmanager
def another_user():
    """Root may do all; nobody may not."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_a_new_file_has_the_default_mode(mask, tmp_path, way):
    before = os.umask(mask)
    try:
        written(tmp_path / "file")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "file") == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_an_old_file_keeps_its_mode(mode, tmp_path, way):
    file = tmp_path / "file"
    file.write_bytes(OLD)
    file.chmod(mode)
    with file.open("rb") as reader:
        written(file)
        assert reader.read() == OLD  # replaced, and not written over
    assert mode_of(file) == mode
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_leads_to_the_new_file(there, tmp_path, way):
    for name in ("links", "files"):
        (tmp_path / name).mkdir()
    link, file = tmp_path / "links" / "link", tmp_path / "files" / "file"
    link.symlink_to(os.path.join("..", "files", "file"))
    if there:
        file.write_bytes(OLD)
        file.chmod(0o600)
    written(link)
    assert link.is_symlink() and not file.is_symlink()
    assert file.read_bytes() == NEW
    assert os.listdir(tmp_path / "links") == ["link"]
    assert mode_of(file) == (0o600 if there else mode_of(link))


def test_a_pipe_is_written_into(tmp_path):
    """And the device that drops everything stays one."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    heard: list[bytes] = []
    reader = threading.Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    assert write_atomically(check_writable(pipe), NEW) == pipe
    reader.join()
    assert heard == [NEW]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    device = tmp_path / "device"
    device.symlink_to(os.devnull)
    write_atomically(check_writable(device), NEW)
    assert device.is_symlink()
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_full_device_is_an_error():
    with refuses(OSError, match="No space left"):
        write_atomically(check_writable("/dev/full"), NEW)


def test_a_full_disk_leaves_the_old_file(tmp_path, way):
    """What is written ends at a limit on the size of files."""
    file = tmp_path / "file"
    file.write_bytes(OLD)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with refuses(OSError, match="File too large"):
            write_atomically(check_writable(file), NEW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["file"]
    written(file)


def test_another_process_may_write_the_same_file(tmp_path):
    """At any time the file is one of the two, whole."""
    file = tmp_path / "file"
    contents = {bytes([n]) * 100_000 for n in range(4)}
    write = lambda content: [write_atomically(file, content) for _ in range(20)]
    threads = [threading.Thread(target=partial(write, c)) for c in contents]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if file.exists():
            assert file.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_kill_leaves_nothing_that_stays(name, tmp_path):
    """While it is written there is no name at all; between the two, one."""
    file = tmp_path / "file"
    file.write_bytes(OLD)
    code = WRITE + KILLED.format(name=name) + CALL
    run = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert file.read_bytes() == OLD
    left = {path.name for path in tmp_path.iterdir()} - {"file"}
    assert len(left) == (name == "replace")
    written(file)
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_written_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, words in (
        ("n" * 300, "File name too long"),
        (tmp_path / ("n" * 300) / "file", "File name too long"),
        ("a\0b", r"'a\\x00b': embedded null byte"),
        ("", "it is a folder"),
        (tmp_path / "none" / "file", "No such file or directory"),
    ):
        with refuses(ValueError, match=words):
            check_writable(path)
    (tmp_path / "loop").symlink_to("loop")
    with refuses(ValueError, match="Too many levels of symbolic links"):
        check_writable(tmp_path / "loop")
    assert os.listdir(tmp_path) == ["loop"]


def test_what_may_not_be_entered_or_written_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the folders above are closed to others
    tmp_path.chmod(0o755)
    closed, plain = Path("closed"), Path("plain")
    closed.mkdir(mode=0o600)
    plain.write_bytes(OLD)
    plain.chmod(0o400)
    with another_user():
        for path in (closed / "file", plain):
            with refuses(ValueError, match=f"{path}: Permission denied"):
                check_writable(path)
    plain.chmod(0o600)
    written(plain)


def test_what_is_printed_to_is_not_replaced(tmp_path):
    """Standard output in a file: what is printed later would be lost."""
    file = tmp_path / "file"
    code = WRITE + "_files.check_writable(sys.argv[1])"
    for path in (str(file), "/dev/stdout"):
        with file.open("wb") as stream:
            run = subprocess.run(
                [sys.executable, "-c", code, path],
                stdout=stream, stderr=subprocess.PIPE, text=True, check=False,
            )  # fmt: skip
        assert f"cannot write {path}: what is printed goes there" in run.stderr
    run = subprocess.run([sys.executable, "-c", code, str(file)], check=False)
    assert run.returncode == 0
