"""The command line: the embedded job, the user's own, and what goes wrong."""

import re
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


STARTS = ("as Flax draws it", "He normal", "orthogonal", "looks_linear, tuned")


def losses_shown(out: str) -> dict[str, float]:
    """The final loss of each start, in the table of the conclusion."""
    rows = [line.strip() for line in out.rpartition("─\n")[2].splitlines()]
    found = {name: row for name in STARTS for row in rows if row.startswith(name)}
    return {name: float(found[name].split()[-2]) for name in STARTS}


@pytest.mark.slow
def test_embedded_job_is_best_tuned(capsys):
    """Each at its own best rate: tuned it ends lowest, as Flax draws it highest."""
    assert main(["--quick"]) == 0
    out = capsys.readouterr().out
    assert out.count("Dense_15") >= 2
    losses = losses_shown(out)
    assert min(losses, key=losses.__getitem__) == "looks_linear, tuned"
    assert max(losses, key=losses.__getitem__) == "as Flax draws it"
    assert "best at an end" not in out


@pytest.fixture
def small_example(monkeypatch):
    """The embedded job with a model that is soon compiled."""
    small = partial(_demo.MLP, depth=3, width=16)
    monkeypatch.setattr(_demo, "MLP", lambda **_: small())


@pytest.mark.parametrize("words", [[], ["tune", "--quick"]])
def test_conclusion_of_the_embedded_job(words, small_example, capsys):
    """Comes last, after both tables, within a screen; what takes long is told."""
    assert main([*words, "--steps", "20", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    titles = "^after.*|^loss after 20 steps.*"
    before, after, conclusion = re.split(titles, out, flags=re.M)
    assert "Dense_2" in before and "Dense_2" in after and "Dense_2" not in conclusion
    assert max(losses_shown(out).values()) < 2.3  # log 10 is chance
    count = len(_demo.QUICK_RATES if words else _demo.DEMO_RATES)
    assert f"best for it of {count} learning rates" in conclusion
    assert "advised learning rate, looks_linear, tuned: 2^" in conclusion
    assert len(conclusion.splitlines()) < 20
    assert out.rstrip().endswith("python -m einit_jax report")
    assert [line for line in err.splitlines() if line.startswith("train orthogonal")]


def test_report_of_the_embedded_job(small_example, tmp_path, capsys, monkeypatch):
    """The page has the training, too, and its path is what is said last."""
    monkeypatch.chdir(tmp_path)
    assert main(["report", "--quick", "--steps", "5"]) == 0
    assert capsys.readouterr().out.endswith("report written to einit_jax.html\n")
    assert [path.name for path in tmp_path.iterdir()] == ["einit_jax.html"]
    text = (tmp_path / "einit_jax.html").read_text()
    assert all(name in text for name in (*STARTS, "Dense_2", "training"))


def test_a_quick_search_is_of_fewer_rates(capsys):
    assert main(["lr", f"{__name__}:job", "--quick", "--steps", "2"]) == 0
    rates = re.findall(r"^ *2\^(-?\d+) ", capsys.readouterr().out, flags=re.M)
    assert [2.0 ** int(rate) for rate in rates] == list(_demo.QUICK_RATES)


def test_version_is_told(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"einit_jax {ei.__version__}\n"


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
        word in out
        for word in ("--out", "--html", "--seed", "--quick", "--version", "compare")
        + ("lr", "report", "tune", "package.module:function")
    )
