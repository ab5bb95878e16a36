"""The command line: the embedded job, the user's own, and what goes wrong."""

from functools import partial

import jax
import pytest

import einit_jax as ei
from einit_jax import _demo
from einit_jax.__main__ import main
from tests.support.checks import same
from tests.support.models import CASES


def job():
    """A job as a user writes it."""
    return tuple(CASES["compact_mlp"].build()[:4])


def job_with_options():
    """A job that needs keywords: dropout."""
    return tuple(CASES["dropout"].build())


def wrong():
    """Not a job."""
    return 1


def losses_shown(out: str) -> tuple[float, float]:
    """The final losses of the model as it is and tuned."""
    losses = [line.split()[-1] for line in out.splitlines() if line.startswith("loss ")]
    plain, tuned = (float(value) for value in losses[-2:])
    return plain, tuned


@pytest.mark.slow
def test_embedded_job_trains_tuned_only(capsys):
    """Measured before and after, both trained: only the tuned one learns."""
    assert main(["--steps", "100"]) == 0
    out = capsys.readouterr().out
    assert out.count("Dense_31") >= 2
    plain, tuned = losses_shown(out)
    assert tuned < 1.5 < 2.25 < plain


def test_embedded_job_made_small(capsys, monkeypatch):
    """The same way through, of a model that is soon compiled."""
    monkeypatch.setattr(_demo, "MLP", partial(_demo.MLP, depth=3, width=16))
    assert main(["--steps", "20"]) == 0
    out = capsys.readouterr().out
    assert "before" in out and "after" in out and out.count("Dense_2") >= 2
    assert max(losses_shown(out)) < 2.3  # log 10 is chance


@pytest.mark.parametrize("name", ["job", "job_with_options"])
def test_own_job(name, tmp_path, capsys):
    """The scales written are those that `tune` returns for the seed."""
    file = tmp_path / "scales.msgpack"
    case = f"{__name__}:{name}"
    assert main([case, "--out", str(file), "--seed", "3"]) == 0
    out = capsys.readouterr().out
    assert "after" in out and f"read them by ei.load({str(file)!r})" in out
    model, params, input_fn, loss_fn, *options = globals()[name]()
    keywords = options[0] if options else {}
    scales = ei.tune(
        model, params, input_fn, loss_fn, key=jax.random.key(3), **keywords
    )
    assert same(ei.load(file, model, params), scales)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_colon", "package.module:function"),
        ("no_such_module_here:job", "no_such_module_here"),
        (f"{__name__}:absent", "absent"),
        (f"{__name__}:wrong", "expected (model, params, input_fn, loss_fn)"),
    ],
)
def test_wrong_jobs_are_named(name, words, capsys):
    assert main([name]) == 2
    assert words in capsys.readouterr().err


def test_report_of_own_job(tmp_path, capsys):
    """Before and after in one file; bars leave nothing behind."""
    file = tmp_path / "run.html"
    assert main([f"{__name__}:job", "--html", str(file), "--seed", "5"]) == 0
    text = file.read_text()
    assert all(word in text for word in ("before", "after", "<img", "CompactMlp"))
    assert "<td>5</td>" in text
    assert "measure again" not in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--html", "--out"])
def test_unwritable_files_are_named_before_anything_runs(option, tmp_path, capsys):
    file = tmp_path / "none" / "file"
    assert main([f"{__name__}:job", option, str(file)]) == 2
    heard = capsys.readouterr()
    assert str(file) in heard.err
    assert "before" not in heard.out


def test_help_shows_every_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(
        word in out for word in ("--out", "--html", "--seed", "package.module:function")
    )
