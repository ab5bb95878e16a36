"""Output that cannot be printed costs no file, and no traceback."""

import io
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from einit_jax.__main__ import main

ROOT = str(Path(__file__).parents[2])
STAGES = ("measure: ", "tune: ", "measure again: ")


def closed_pipe():
    """What `| head -1` leaves: a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def full_disk():
    return open("/dev/full", "w")


def closed_stream():
    stream = io.StringIO()
    stream.close()
    return stream


OUTPUTS = {
    "pipe": (closed_pipe, 141, ""),
    "full": (full_disk, 2, "No space left on device"),
    "none": (lambda: None, 2, "Bad file descriptor"),
    "closed": (closed_stream, 2, "Bad file descriptor"),
}


@contextmanager
def printing_to(stream, monkeypatch):
    """Standard output goes there; what is left in it is dropped."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        yield
    if stream is not None and not stream.closed and not isinstance(stream, io.StringIO):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        stream.close()


@pytest.mark.parametrize("kind", OUTPUTS)
def test_files_are_there_whatever_becomes_of_the_output(
    kind, jobs, capsys, monkeypatch
):
    make, status, told = OUTPUTS[kind]
    with printing_to(make(), monkeypatch):
        words = ["own_jobs.py:case", "--out", "scales", "--html", "run.html"]
        assert main(words) == status
    assert jobs.with_name("scales").stat().st_size > 50
    assert "<img" in jobs.with_name("run.html").read_text()
    lines = capsys.readouterr().err.splitlines()
    ends = [f"error: cannot write to standard output: {told}"] * bool(told)
    assert [x for x in lines if not x.startswith((*STAGES, "report: "))] == ends


@pytest.mark.parametrize("kind", OUTPUTS)
def test_nobody_need_hear_of_an_error(kind, monkeypatch):
    """Neither of the two streams can be written to."""
    make, *_ = OUTPUTS[kind]
    stream = make()
    with printing_to(stream, monkeypatch), monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        assert main(["--seed", "-1"]) == 2


def test_letters_that_the_encoding_lacks_are_escaped(jobs, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["own_jobs.py:case", "--out", "caf\u00e9"]) == 0
    printed = stream.buffer.getvalue().decode()
    assert "caf\\xe9; read" in printed
    assert "-----" in printed and "\\u" not in printed
    assert jobs.with_name("caf\u00e9").exists()


def test_a_file_that_cannot_be_written_costs_no_other(jobs, capsys):
    words = ["own_jobs.py:case", "--out", "/dev/full", "--html", "run.html"]
    assert main(words) == 2
    heard = capsys.readouterr()
    assert "error: cannot write /dev/full: No space left on device\n" in heard.err
    assert "after" in heard.out and "run.html" in heard.out
    assert "/dev/full" not in heard.out
    assert jobs.with_name("run.html").exists()


def run_program(words, output, **settings):
    """The program's end, in a process of its own; what it prints goes to `output`."""
    return subprocess.run(
        [sys.executable, "-m", "einit_jax", *words],
        env=os.environ | settings,
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["compare", "--help"]])
def test_the_program_ends_without_a_traceback(words, unbuffered):
    """Nothing is tried again when Python ends, and nothing is complained of there."""
    for kind, (make, status, told) in OUTPUTS.items():
        if kind in ("none", "closed"):
            continue
        with open(os.dup((stream := make()).fileno()), "wb", buffering=0) as output:
            ended = run_program(words, output, PYTHONUNBUFFERED=unbuffered)
        stream.close()
        assert ended.returncode == status
        want = f"error: cannot write to standard output: {told}\n" if told else ""
        assert ended.stderr == want


@pytest.mark.slow
def test_a_whole_run_into_a_closed_pipe(jobs):
    words = ["own_jobs.py:noisy", "--out", "scales"]
    stream = closed_pipe()
    ended = run_program(words, stream, PYTHONUNBUFFERED="", PYTHONPATH=ROOT)
    stream.close()
    assert ended.returncode == 141
    assert all(line.startswith(STAGES) for line in ended.stderr.splitlines())
    assert jobs.with_name("scales").exists()
