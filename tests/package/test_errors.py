"""Bad input: what is refused, in which words, and that nothing is compiled for it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import einit_jax as ei
from tests.support.cases import to_one
from tests.support.checks import refuses
from tests.support.models.dense import CompactMlp
from tests.support.models.stateful import Normed

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 8))
MODEL = CompactMlp()
PARAMS = MODEL.init(KEY, X)["params"]
SCALES = ei.scaled(MODEL).init(KEY, X)["scales"]
NORMED, NORMED_PARAMS = Normed("batch"), Normed().init(KEY, X)["params"]
COMPILED = "/jax/core/compile/backend_compile_duration"


class Parameterless(nn.Module):
    """No parameter at all."""

    @nn.compact
    def __call__(self, x):
        return nn.tanh(x)


class Raw(nn.Module):
    """A parameter that no input meets: it is returned as it is."""

    @nn.compact
    def __call__(self, x):
        del x
        return self.param("table", nn.initializers.ones_init(), (4,))


def changed(tree: dict, **entries: Any) -> dict:
    """A copy of a nested dict; of entries named `a__b`, None takes `a/b` out."""
    out = dict(tree)
    for path, value in entries.items():
        name, _, rest = path.partition("__")
        if rest:
            value = changed(out.get(name, {}), **{rest: value})
        out = {k: v for k, v in {**out, name: value}.items() if v is not None}
    return out


EXTRA = changed(PARAMS, head=PARAMS["Dense_0"])
MISSING = changed(PARAMS, Dense_1=None)
BIASLESS = changed(PARAMS, Dense_1__bias=None)
WIDE = changed(PARAMS, Dense_1__kernel=jnp.ones((16, 5)))


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the functions that are compiled meanwhile."""
    names: list[str] = []

    def listen(event: str, duration: float, **about: Any) -> None:
        if event == COMPILED:
            names.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def tune(**changes: Any) -> Callable:
    """A call of tune with arguments that fit but for `changes`."""
    fitting = {"model": MODEL, "params": PARAMS, "input_fn": X, "loss_fn": to_one}
    return lambda: ei.tune(**{**fitting, **changes})


def measure(**changes: Any) -> Callable:
    """A call of measure with arguments that fit but for `changes`."""
    fitting = {"model": MODEL, "params": PARAMS, "input_fn": X, "loss_fn": to_one}
    return lambda: ei.measure(**{**fitting, **changes})


def apply(scales: Any) -> Callable:
    return lambda: ei.scaled(MODEL).apply({"params": PARAMS, "scales": scales}, X)


# name, what both verbs are called with, the exception, words of its message
SHARED = [
    # models
    (
        "class",
        {"model": CompactMlp},
        TypeError,
        ["make an instance", "CompactMlp(...)"],
    ),
    ("no_module", {"model": to_one}, TypeError, ["function", "flax.linen.Module"]),
    (
        "no_parameters",
        {"model": Parameterless(), "params": {}},
        ValueError,
        ["params are empty", "model.init"],
    ),
    (
        "no_units",
        {"model": Raw(), "params": {"table": jnp.ones(4)}},
        ValueError,
        ["Raw has no units", "table"],
    ),
    # methods
    ("method", {"method": "encode"}, ValueError, ["CompactMlp", "'encode'"]),
    ("method_kind", {"method": 3}, TypeError, ["method", "3"]),
    (
        "axis_name",
        {"model": NORMED, "params": NORMED_PARAMS},
        ValueError,
        ["Normed", "batch", "axis_name="],
    ),
    # params
    ("params_missing", {"params": MISSING}, ValueError, ["CompactMlp", "Dense_1"]),
    ("params_bias", {"params": BIASLESS}, ValueError, ["Dense_1", "bias"]),
    ("params_extra", {"params": EXTRA}, ValueError, ["CompactMlp", "head/kernel"]),
    (
        "params_shape",
        {"params": WIDE},
        ValueError,
        ["Dense_1", "kernel", "(16, 16)", "(16, 5)"],
    ),
    # inputs
    (
        "inputs_narrow",
        {"input_fn": X[:, :5]},
        ValueError,
        ["Dense_0", "(5, 16)", "float32[16, 5]"],
    ),
    ("inputs_many", {"input_fn": (X, X)}, ValueError, ["CompactMlp", "float32[16, 8]"]),
    ("inputs_none", {"input_fn": ()}, ValueError, ["CompactMlp", "Inputs()"]),
    (
        "inputs_keyword",
        {"input_fn": ei.Inputs(X, train=True)},
        ValueError,
        ["train", "float32[16, 8]"],
    ),
    ("input_fn_0", {"input_fn": lambda: X}, TypeError, ["input_fn", "(key)"]),
    ("input_fn_2", {"input_fn": lambda key, n: X}, TypeError, ["(key, n)", "'n'"]),
    (
        "batch_size_concrete",
        {"batch_size": 4},
        ValueError,
        ["batch_size", "concrete batch"],
    ),
    (
        "batch_size_unknown",
        {"input_fn": lambda key: X, "batch_size": 4},
        ValueError,
        ["batch_size", "input_fn(key, batch_size)"],
    ),
    # losses
    ("loss_no_function", {"loss_fn": 1.0}, TypeError, ["loss_fn", "1.0"]),
    ("loss_shape", {"loss_fn": lambda y: y[0]}, ValueError, ["float32[4]", "scalar"]),
    (
        "loss_integer",
        {"loss_fn": lambda y: jnp.argmax(y)},
        ValueError,
        ["int32[]", "floating scalar"],
    ),
    ("loss_float", {"loss_fn": lambda y: 0.5}, ValueError, ["0.5", "floating scalar"]),
    ("loss_none", {"loss_fn": lambda y: None}, ValueError, ["None", "floating scalar"]),
    (
        "loss_complex",
        {"loss_fn": lambda y: 1j * jnp.mean(y)},
        ValueError,
        ["complex64[]", "floating scalar"],
    ),
    (
        "loss_and_more",
        {"loss_fn": lambda y: (jnp.mean(y), y)},
        ValueError,
        ["loss_fn", "floating scalar"],
    ),
    (
        "loss_constant",
        {"loss_fn": lambda y, inputs: jnp.mean(inputs)},
        ValueError,
        ["does not depend", "outputs"],
    ),
    (
        "loss_shape_only",
        {"loss_fn": lambda y: jnp.ones(y.shape).mean()},
        ValueError,
        ["does not depend", "outputs"],
    ),
    (
        "loss_arguments",
        {"loss_fn": lambda y, weights: to_one(y - weights)},
        TypeError,
        ["(y, weights)", "named labels, batch, key, inputs", "functools.partial"],
    ),
    ("loss_no_argument", {"loss_fn": lambda: 1.0}, TypeError, ["loss_fn", "(outputs)"]),
    # draws
    ("draws", {"draws": 0}, ValueError, ["draws", "0", "positive integer"]),
    ("draws_negative", {"draws": -1}, ValueError, ["draws", "-1", "positive integer"]),
    ("draws_fraction", {"draws": 1.5}, ValueError, ["draws", "1.5"]),
]
OF_TUNE = [
    # patterns
    ("include", {"include": "head"}, ValueError, ["'head'", "Dense_0, Dense_1"]),
    ("exclude", {"exclude": ["Dense_0", "up"]}, ValueError, ["'up'", "Dense_2"]),
    ("include_prefix", {"include": "Dense"}, ValueError, ["'Dense'", "whole path"]),
    ("targets", {"targets": {"head": 1.0}}, ValueError, ["'head'", "Dense_0"]),
    (
        "nothing_left",
        {"include": "Dense_0", "exclude": "Dense_*"},
        ValueError,
        ["include", "exclude", "no unit"],
    ),
    # numbers
    *[
        (f"target_{t}", {"targets": {"Dense_1": t}}, ValueError, ["Dense_1", repr(t)])
        for t in (0.0, -1.0, float("nan"), float("inf"), "1", None)
    ],
    ("target", {"targets": 0}, ValueError, ["target 0", "positive"]),
    ("max_sweeps", {"max_sweeps": 0}, ValueError, ["max_sweeps", "0", "at least 1"]),
    ("tolerance", {"tolerance": 0}, ValueError, ["tolerance", "0", "positive"]),
    ("tolerance_nan", {"tolerance": float("nan")}, ValueError, ["tolerance", "nan"]),
    # rules
    ("gradients", {"gradients": "true"}, ValueError, ["'true'", "'exact' or 'unit'"]),
    ("update", {"update": "adam"}, ValueError, ["'adam'", "'total' or 'local'"]),
    ("like", {"like": "mup"}, ValueError, ["'mup'", "'original'", "leave it out"]),
]
FOREIGN = [
    ("empty", {}, ["Dense_0", "Dense_2"]),
    ("missing", changed(SCALES, Dense_1=None), ["Dense_1"]),
    ("incomplete", changed(SCALES, Dense_1__output=None), ["Dense_1", "output"]),
    ("extra", changed(SCALES, head=SCALES["Dense_0"]), ["head"]),
    ("nested", changed(SCALES, block__up=SCALES["Dense_0"]), ["block"]),
    ("method", changed(SCALES, Dense_0__attend=SCALES["Dense_0"]), ["Dense_0/attend"]),
    ("layers", changed(SCALES, Dense_2__output=jnp.ones(3)), ["Dense_2", "(3,)"]),
    ("params", PARAMS, ["Dense_0", "an entry"]),
]
TABLE = [
    *[(f"tune-{n}", tune(**c), e, words) for n, c, e, words in SHARED + OF_TUNE],
    *[(f"measure-{n}", measure(**c), e, words) for n, c, e, words in SHARED],
    *[(f"measure-scales_{n}", measure(scales=s), ValueError, w) for n, s, w in FOREIGN],
    *[(f"apply-scales_{n}", apply(s), ValueError, w) for n, s, w in FOREIGN],
    ("scaled-class", lambda: ei.scaled(nn.Dense), TypeError, ["Dense", "instance"]),
]


@pytest.mark.parametrize(
    ("call", "exception", "words"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_bad_input_is_refused_before_anything_is_compiled(call, exception, words):
    """The message holds what one needs; the model is traced but never compiled."""
    with compilations() as first, refuses(exception) as error:
        call()
    for word in words:
        assert word in str(error.value)
    assert not [name for name in first if "tune" in name or "measure" in name]
    with compilations() as again, refuses(exception):
        call()
    assert again == []  # at first, keys may have been folded and zeros looked for


def test_compilations_are_seen():
    """The count above is able to fail: a call that fits compiles its verb."""
    with compilations() as names:
        tune(model=nn.Dense(4), params=nn.Dense(4).init(KEY, X)["params"])()
    assert [name for name in names if "tune" in name]
