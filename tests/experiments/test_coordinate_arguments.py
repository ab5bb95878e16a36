"""What `coordinate_check` takes for widths and numbers, and what it judges."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.support.cases import to_one
from tests.support.checks import KEY, refuses, unchecked
from tests.support.models.dense import CompactMlp

X = jax.random.normal(KEY, (16, 8))


@pytest.mark.parametrize("widths", [4, (4,), (4, 4), (4, 0), (4, 8.0), "48", None])
def test_widths_are_two_integers(widths):
    model_fn = lambda width: CompactMlp()
    with refuses(ValueError, match="expected two or more positive integers"):
        ei.coordinate_check(model_fn, widths, X, to_one)


def test_numbers_of_numpy_do_for_experiments():
    model_fn = lambda width: nn.Sequential([nn.Dense(width), nn.tanh, nn.Dense(2)])
    run = partial(ei.coordinate_check, model_fn, input_fn=X, loss_fn=to_one)
    plain = run((4, 8), steps=1, learning_rate=0.1)
    with unchecked():
        numpy = run(
            np.array([4, 8]), steps=np.int64(1), seeds=np.int64(1),
            learning_rate=jnp.float32(0.1), flat=np.float32(0.2),
        )  # fmt: skip
    np.testing.assert_allclose(numpy.changes, plain.changes, rtol=1e-5)
    assert numpy.widths == plain.widths
    assert ei.fans(np.array([3, 4]).tolist()) == ei.fans((np.int64(3), 4))


def test_without_steps_the_check_says_what_it_judges():
    model_fn = lambda width: nn.Dense(width)
    run = partial(ei.coordinate_check, model_fn, (4, 8), X, to_one)
    assert "verdicts on sizes, as there are no steps" in run(steps=0).notes()[-1]
    assert "change" not in str(run(steps=0))
    assert "verdicts on sizes" not in str(run(steps=1))
    assert "change" in str(run(steps=1))
