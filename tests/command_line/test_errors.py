"""Errors: one line, the place in the user's file, and exit status 2."""

import os
from pathlib import Path

import pytest

from einit_jax.__main__ import main
from tests.support.processes import run_python

ROOT = str(Path(__file__).parents[2])


def line_of(file, mark):
    """Where an error is to be found."""
    lines = file.read_text().splitlines()
    (number,) = [i for i, line in enumerate(lines, 1) if line.endswith(f"# {mark}")]
    return number


def refused(capsys, *words):
    """The one line that a command ends with."""
    capsys.readouterr()
    assert main(words) == 2
    heard = capsys.readouterr()
    (line,) = [x for x in heard.err.splitlines() if not x.endswith(" s")]
    assert line.startswith("error: ")
    assert heard.out == ""
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ("bad_job", "KeyError: 'width'"),
        ("bad_argument", "TypeError: bad_argument() missing 1 required positional"),
        ("bad_chain", "RuntimeError: no config: none at all"),
        ("bad_exit", "SystemExit: 0"),
        ("bad_model", "TracerBoolConversionError: Attempted boolean"),
        ("bad_loss", "IndexError: list index out of range"),
        ("bad_inputs", "TypeError: dot_general"),
        ("bad_params", "ValueError: params do not fit Dense"),
        ("bad_keyword", "unexpected keyword argument 'nonsense'"),
        ("bad_number", "concrete batch"),
        ("bad_text", "Speechless"),
    ],
)
@pytest.mark.parametrize("command", ["tune", "compare"])
def test_an_error_names_the_line_of_the_user(command, job, told, jobs, capsys):
    """The innermost one that is the user's own, whatever lies between."""
    words = [] if command == "tune" else ["compare"]
    line = refused(capsys, *words, f"own_jobs.py:{job}")
    assert line.startswith(f"own_jobs.py:{line_of(jobs, job)}: ")
    assert told in line


def test_an_error_in_another_file_of_the_user(jobs, capsys):
    """By file or by module, alone or with the error that it led to."""
    helper = jobs.with_name("helper.py")
    want = f"helper.py:{line_of(helper, 'bad_helper')}: ZeroDivisionError: division"
    assert refused(capsys, "own_jobs.py:bad_helper").startswith(want)
    assert refused(capsys, "own_jobs:bad_helper").startswith(want)
    chained = refused(capsys, "own_jobs:bad_chain")
    place = f"own_jobs.py:{line_of(jobs, 'bad_chain')}"
    assert chained.startswith(f"{place}: RuntimeError: no config: none at all ({want}")


def test_a_partial_is_named_by_its_function(jobs, capsys):
    assert refused(capsys, "own_jobs.py:bad_partial").startswith("own_jobs.py:")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("import nowhere_at_all", "broken.py:1: ModuleNotFoundError: No module named"),
        ("x = 1\ndef f(:\n", "broken.py:2: SyntaxError"),
        ("x = [\n0]\nx[1]", "broken.py:3: IndexError"),
        ("job = 3", "broken.py has no function 'job'"),
        ("job = lambda: 3", "broken.py:job returned int, expected (model, params"),
        ("job = lambda: (0, 0, 0, 0, 5)", "broken.py:job returned a int as its fifth"),
    ],
)
def test_files_that_are_no_jobs(text, want, jobs, capsys):
    jobs.with_name("broken.py").write_text(text)
    assert refused(capsys, "broken.py:job").startswith(want)


def test_jobs_by_file_come_from_that_file(jobs, capsys):
    """A file is not hidden by a module of its name, nor does it hide one."""
    other = jobs.with_name("jax.py")
    other.write_text("def job():\n    return 'not a job'\n")
    assert "jax.py:job returned str" in refused(capsys, "jax.py:job")
    folder = jobs.with_name("folder")
    folder.mkdir()
    other.rename(folder / "a.b.py")
    assert "returned str" in refused(capsys, "folder/a.b.py:job")
    assert "returned str" in refused(capsys, f"{folder}/a.b.py:job")


def test_an_interrupt_is_no_error(jobs, capsys, monkeypatch):
    jobs.with_name("broken.py").write_text("raise KeyboardInterrupt")
    assert main(["broken.py:job"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "-1"], "'-1', expected an integer from 0 to 4294967295"),
        (["--seed", "12345678901234567890"], "from 0 to 4294967295"),
        (["--seed", str(2**32)], "from 0 to 4294967295"),
        (["--seed", "one"], "'one', expected an integer"),
        (["--steps", "0"], "'0', expected an integer >= 1"),
        (["compare", "--steps", "0"], "'0', expected an integer >= 1"),
        (["compare", "--seed", "-1"], "from 0 to 4294967295"),
        (["--stop"], "--stop; see python -m einit_jax --help"),
        (["compare", "--html", "f"], "python -m einit_jax compare --help"),
        (["report", "--html", "f"], "python -m einit_jax report --help"),
        (["report", "--out", "none/f"], "none/f: No such file or directory"),
        (["tune", "--stop"], "--stop; see python -m einit_jax tune --help"),
        (["job"], "package.module:function or file.py:function"),
        (["tunes"], "and no command: tune, compare, lr, report"),
        ([":job"], "package.module:function"),
        (["job.py:"], "package.module:function"),
        (["job.py:f"], "there is no file job.py"),
        ([f"{'n' * 300}.py:f"], "nnn.py"),
        (["a\0.py:f"], "a\\x00.py"),
        (["--out", "f", "--html", "./f"], "--out and --html are the same file, f"),
        (["--out", "link", "--html", "f"], "are the same file, f"),
        (["--out", "n" * 300], "File name too long"),
        (["--out", "a\0b"], "embedded null byte"),
        (["--html", "none/f"], "none/f: No such file or directory"),
        (["compare", "--out", "none/f.png"], "No such file or directory"),
        (["compare", "--out", "f.text"], "its end may be .png"),
    ],
)
def test_wrong_arguments_are_told_in_one_line(words, told, jobs, capsys):
    jobs.with_name("link").symlink_to("f")
    assert told in refused(capsys, *words)


def test_wrong_arguments_are_refused_before_long_imports(tmp_path):
    code = (
        "import sys\n"
        "from einit_jax.__main__ import main\n"
        "for words in (['--seed', '-1'], ['compare', '--steps', '0'], ['x.py:f'],\n"
        "              ['lr', '--x'], ['report', ':'],\n"
        "              ['--out', 'none/f'], ['no_such_module_here:f']):\n"
        "    assert main(words) == 2\n"
        "print(sorted({'jax', 'flax', 'optax', 'matplotlib'} & {*sys.modules}))\n"
    )
    run = run_python(code, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT})
    assert run.stdout == "[]\n"
    assert len(run.stderr.splitlines()) == 7
