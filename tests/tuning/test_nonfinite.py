"""What is not finite is named, whoever meets it first."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.support.cases import to_one
from tests.support.checks import refuses
from tests.support.models.dense import CompactMlp, Twice

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (16, 8))
MODEL = CompactMlp()
PARAMS = MODEL.init(KEY, X)["params"]


def changed(tree: dict, **entries: Any) -> dict:
    """A copy of a nested dict; of entries named `a__b`, None takes `a/b` out."""
    out = dict(tree)
    for path, value in entries.items():
        name, _, rest = path.partition("__")
        if rest:
            value = changed(out.get(name, {}), **{rest: value})
        out = {k: v for k, v in {**out, name: value}.items() if v is not None}
    return out


def tune(**changes: Any) -> Callable:
    """A call of tune with arguments that fit but for `changes`."""
    fitting = {"model": MODEL, "params": PARAMS, "input_fn": X, "loss_fn": to_one}
    return lambda: ei.tune(**{**fitting, **changes})


HALF, SHARED_UNIT = CompactMlp(jnp.float16), Twice()
TWICE = SHARED_UNIT.init(KEY, X)["params"]
JITTED = jax.jit(ei.tune, static_argnums=(0, 3))


def poisoned(params: dict, path: str, value: float) -> dict:
    """The parameters with one element of a kernel replaced."""
    kernel = params[path]["kernel"].at[0, 0].set(value)
    return changed(params, **{f"{path}__kernel": kernel})


def minus_one_log(outputs):
    return jnp.mean(outputs) + jnp.log(0 * jnp.mean(outputs) - 1)


def steep(outputs):
    return jnp.mean(outputs) + jnp.sqrt(0 * jnp.mean(outputs))


@pytest.mark.parametrize(
    ("model", "params", "x", "loss_fn", "words", "flagged"),
    [
        (
            MODEL,
            poisoned(PARAMS, "Dense_1", jnp.nan),
            X,
            to_one,
            ["activations", "'Dense_1'"],
            "Dense_1",
        ),
        (
            MODEL,
            poisoned(PARAMS, "Dense_2", jnp.inf),
            X,
            to_one,
            ["activations", "'Dense_2'"],
            "Dense_2",
        ),
        (
            MODEL,
            PARAMS,
            X.at[3, 2].set(jnp.inf),
            to_one,
            ["activations", "'Dense_0'"],
            "Dense_0",
        ),
        (MODEL, PARAMS, X, minus_one_log, ["loss is not finite"], None),
        (MODEL, PARAMS, X, steep, ["gradients", "'Dense_0'"], "Dense_2"),
        (HALF, PARAMS, 3e5 * X, to_one, ["activations", "'Dense_0'"], "Dense_0"),
        (
            SHARED_UNIT,
            poisoned(TWICE, "layer", jnp.nan),
            X,
            to_one,
            ["activations", "'layer'"],
            "layer",
        ),
        (
            SHARED_UNIT,
            poisoned(TWICE, "head", jnp.nan),
            X,
            to_one,
            ["activations", "'head'"],
            "head",
        ),
    ],
    ids=[
        "params_nan",
        "params_inf",
        "inputs",
        "loss",
        "gradients",
        "float16",
        "shared_unit",
        "after_shared",
    ],
)
def test_what_is_not_finite_is_named(model, params, x, loss_fn, words, flagged):
    """Eagerly an error names the first unit; under jit the flags of measure tell."""
    with pytest.raises(FloatingPointError) as error:
        ei.tune(model, params, x, loss_fn)
    for word in words:
        assert word in str(error.value)
    scales = JITTED(model, params, x, loss_fn)
    assert all(np.isfinite(s) and s > 0 for s in jax.tree.leaves(scales))
    table = ei.measure(model, params, x, loss_fn, scales=scales)
    flags = {row["path"]: row["flag"] for row in table.rows()}
    counts = {row["path"]: row["nonfinite"] for row in table.rows()}
    if flagged is None:
        assert np.isnan(table.loss)
    else:
        assert flags[flagged] == "non-finite"
        assert counts[flagged] > 0


@pytest.mark.parametrize("bad", [0, 1], ids=["first", "second"])
def test_every_draw_is_looked_at(bad):
    """One batch of several that is not finite is enough for the error."""
    batches = iter([X.at[0].set(jnp.inf) if i == bad else X for i in range(2)])
    with refuses(FloatingPointError, match="'Dense_0'"):
        tune(input_fn=lambda key: next(batches), draws=2)()
