"""Which units are tuned, and how strong they are meant to be."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest

import einit_jax as ei
from tests.support.cases import to_one
from tests.support.checks import KEY, params_of, refuses
from tests.support.models.dense import CompactMlp, Nest

X = jax.random.normal(KEY, (16, 8))


def output_rms(model: nn.Module, scales: Any) -> dict[str, float]:
    """The measured rms of each unit's output."""
    table = ei.measure(model, params_of(model), X, to_one, scales=scales)
    return {row["path"]: row["output_rms"] for row in table.rows()}


@pytest.mark.parametrize(
    ("options", "tuned"),
    [
        ({}, {"own", "inner/own", "inner/inner/own"}),
        ({"include": "inner/own"}, {"inner/own"}),
        ({"include": ["own", "inner/inner/*"]}, {"own", "inner/inner/own"}),
        ({"exclude": "*/own"}, {"own"}),
        ({"exclude": ("own",)}, {"inner/own", "inner/inner/own"}),
        ({"include": "inner/*", "exclude": "*inner/own"}, None),
        ({"include": "inner*", "exclude": "inner/inner*"}, {"inner/own"}),
    ],
    ids=["all", "one", "list", "glob", "tuple", "nothing", "both"],
)
def test_units_left_out_keep_ones(options, tuned):
    """Factors of exactly 1 without, outputs of rms 1 within the patterns."""
    model = Nest(2)
    run = partial(ei.tune, model, params_of(model), X, to_one, **options)
    if tuned is None:
        with refuses(ValueError, match="leave no unit"):
            run()
        return
    scales = run()
    strength = output_rms(model, scales)
    assert len(strength) == 3
    for name, rms in strength.items():
        unit = scales
        for part in name.split("/"):
            unit = unit[part]
        factors = [float(unit[n]) for n in ("output", "input_grad", "output_grad")]
        assert (factors == [1, 1, 1]) is (name not in tuned)
        assert (abs(rms - 1) < 1e-4) is (name in tuned)


@pytest.mark.parametrize(
    ("targets", "wanted"),
    [
        (0.5, [0.5, 0.5, 0.5]),
        (2, [2, 2, 2]),
        ({"Dense_1": 3.0}, [1, 3, 1]),
        ({"Dense_1": 3.0, "*": 0.1}, [0.1, 3, 0.1]),
        ({"Dense_[01]": 4.0, "Dense_1": 5.0}, [4, 4, 1]),
    ],
    ids=["number", "integer", "pattern", "rest", "first_match"],
)
def test_targets_are_reached(targets, wanted):
    """The rms measured is the one asked for, by the first pattern that matches."""
    model = CompactMlp()
    scales = ei.tune(model, params_of(model), X, to_one, targets=targets)
    got = list(output_rms(model, scales).values())
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


class Bracketed(nn.Module):
    """Units whose names are globs of others."""

    @nn.compact
    def __call__(self, x):
        for name in ("b[1]", "b1"):
            x = nn.Dense(8, name=name)(x)
        return x


def test_a_units_own_name_is_no_glob():
    model, params = Bracketed(), params_of(Bracketed())
    scales = ei.tune(model, params, X, to_one, exclude="b[1]")
    assert scales["b[1]"]["output"] == 1 != scales["b1"]["output"]
    drawn = ei.initialize(params, {"b[1]/kernel": 0.0, "*": None}, KEY)
    assert not drawn["b[1]"]["kernel"].any()
    assert np.array_equal(drawn["b1"]["kernel"], params["b1"]["kernel"])
    kept = ei.unit_params(params, KEY, exclude="b[1]/kernel")
    assert np.array_equal(kept["b[1]"]["kernel"], params["b[1]"]["kernel"])
    assert not np.array_equal(kept["b1"]["kernel"], params["b1"]["kernel"])
