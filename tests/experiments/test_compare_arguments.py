"""What `compare` refuses, and its command line."""

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
        ({"train": lambda key: (X, {"label": Y})}, ValueError, "unexpected keyword"),
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
    file = tmp_path / "figure.png"
    case = f"{__name__}:job"
    assert main(["compare", case, "--steps", "2", "--out", str(file)]) == 0
    out = capsys.readouterr().out
    assert (
        "mine" in out and "least loss" in out and "figure.png" in out.replace("\n", "")
    )
    assert file.stat().st_size > 1000


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
