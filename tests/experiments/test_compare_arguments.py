"""What `compare` refuses, and its command line."""

import re
import stat

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import einit_jax as ei
from einit_jax.__main__ import main
from tests.support.checks import refuses
from tests.support.compared import (
    KEY,
    LOSS,
    MODEL,
    MOMENTUM,
    PARAMS,
    RATES,
    STEPS,
    X,
    Y,
    halved,
)

SHORT = {"steps": STEPS, "learning_rates": RATES, "key": KEY, "optimizer": MOMENTUM}
ONLY = {"as it is": None}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"strategies": ["keras"]}, TypeError, "expected a mapping of names"),
        ({"strategies": {}}, ValueError, "one or more"),
        (
            {"strategies": {"k": "kerras"}},
            ValueError,
            "'kerras' is no preset; the presets are: pytorch",
        ),
        ({"strategies": {"k": 3}}, TypeError, "'k' is a int, expected a function"),
        ({"strategies": {"k": nn.Dense(3)}}, TypeError, "'k' is a Dense"),
        ({"strategies": {"k": lambda p: p}}, TypeError, r"'k' takes \(p\), expected"),
        ({"strategies": {"k": halved}, "rngs": ("dropout",)}, TypeError, "'rngs'"),
        ({"strategies": {"k": lambda *a, key: 3}}, TypeError, "'k' returned other"),
        (
            {"strategies": {"k": lambda *a, key: {"layers_0": PARAMS["layers_0"]}}},
            TypeError,
            "it lacks layers_2/bias",
        ),
        (
            {"strategies": {"k": lambda *a, key: jax.tree.map(jnp.float16, PARAMS)}},
            TypeError,
            r"layers_0/bias is float16\[16\], not float32\[16\]",
        ),
        ({"train": X}, TypeError, "train is a ArrayImpl, expected a function of a key"),
        ({"train": lambda key: X}, TypeError, "train must return a pair"),
        (
            {"train": lambda key: (X, {"label": Y})},
            TypeError,
            "no label, an unexpected",
        ),
        ({"optimizer": optax.adam(0.1)}, TypeError, "not optax.adam"),
        (
            {"optimizer": lambda rate: optax.sgd(float(rate))},
            ValueError,
            "cannot start",
        ),
        ({"steps": 0}, ValueError, "steps=0"),
        ({"seeds": 1.5}, ValueError, "seeds=1.5"),
        ({"learning_rates": ()}, ValueError, "positive numbers"),
        ({"learning_rates": (0.1, -1.0)}, ValueError, "positive numbers"),
        ({"learning_rates": 0.1}, ValueError, "learning_rates=0.1"),
        ({"method": "encode"}, ValueError, "no method 'encode'"),
    ],
)
def test_wrong_arguments_are_refused(options, error, words):
    with refuses(error, match=words):
        ei.compare(MODEL, PARAMS, X, LOSS, **{"strategies": ONLY} | SHORT | options)


def test_wrong_models_are_refused_though_strategies_may_fail():
    """What is wrong with the case itself is no strategy's failure."""
    with refuses(ValueError, match="params do not fit"):
        ei.compare(MODEL, PARAMS, X[:, :5], LOSS, strategies=ONLY, **SHORT)


def job():
    """A job as a user writes it, with keywords of compare."""
    short = {"learning_rates": RATES[:2], "strategies": {"mine": halved, "t": ei.tune}}
    short["optimizer"] = MOMENTUM
    return MODEL, PARAMS, X, LOSS, short


def test_command_line(tmp_path, capsys):
    """The figure is the only file, of the mode that it had; lines tell the progress."""
    file = tmp_path / "figure.png"
    file.touch(mode=0o600)
    case = f"{__name__}:job"
    assert main(["compare", case, "--steps", "2", "--out", str(file)]) == 0
    out, err = capsys.readouterr()
    assert "mine" in out and "least loss" in out and "figure.png" in out
    assert file.read_bytes().startswith(b"\x89PNG")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    first, last = err.splitlines()
    pattern = r"{} loss [\d.e+-]+ at rate 2\^-\d+ \(\d+ s{}\)"
    assert re.fullmatch(pattern.format("1/2 mine:", r", about \d+ s left"), first)
    assert re.fullmatch(pattern.format("2/2 t:", ""), last)


def failing(model, params, input_fn, loss_fn, *, key):
    raise ValueError("not this model")


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("progress", [False, True])
def test_progress_is_shown_if_asked_for(progress, terminal, capsys, monkeypatch):
    """On standard error: lines, and bars on a terminal."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for one
    options = {"strategies": {"[bold]": failing}, "progress": progress}
    ei.compare(MODEL, PARAMS, X, LOSS, **SHORT | options)
    out, err = capsys.readouterr()
    assert out == ""
    line = "1/1 [bold]: ValueError: not this model (" in err
    assert line == progress
    assert ("the plain model" in err) == (progress and terminal)
    assert progress or err == ""


def test_a_figure_that_cannot_be_drawn_costs_no_table(tmp_path, capsys, monkeypatch):
    def broken(self):
        raise RuntimeError("no ink")

    monkeypatch.setattr(ei.Comparison, "plot", broken)
    file = tmp_path / "figure.svg"
    words = ["compare", f"{__name__}:job", "--steps", "2", "--out", str(file)]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "least loss" in out and "figure" not in out
    assert f"error: cannot write {file}: RuntimeError: no ink\n" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["compare", "nothing"], "package.module:function"),
        (["compare:job"], "compare"),
        (["compare", f"{__name__}:job", "--out", "figure.text"], "may be .png"),
    ],
)
def test_command_line_says_what_is_wrong(words, message, capsys):
    """A module that is named compare is still a job."""
    assert main(words) == 2
    assert message in capsys.readouterr().err
