"""Floats that no parameter changes go through units as they are: masks, paddings."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.support.cases import Case, Job
from tests.support.checks import (
    KEY,
    applied,
    measured,
    off,
    scales_of,
    some,
    table_of,
    traced,
    tuned,
    uneven,
)
from tests.support.models import CASES
from tests.support.models.inputs import PaddedConv, PaddedNorm, of_first

NONE: frozenset[int] = frozenset()


class Speech(nn.Module):
    """Convolutions that shorten, batch norm of what is there, LSTMs in both ways."""

    @nn.compact
    def __call__(self, x, padding):
        for _ in range(2):
            x, padding = PaddedConv(8)(x, padding)
        x = PaddedNorm()(nn.Dense(8)(x), padding)
        ways = [nn.RNN(nn.OptimizedLSTMCell(6)) for _ in range(2)]
        lengths = (1 - padding).sum(1).astype(jnp.int32)
        x = nn.Bidirectional(*ways)(x, seq_lengths=lengths)
        return nn.Dense(5)(PaddedNorm()(x, padding)), padding


class Whole(nn.Module):
    """A unit that returns its input beside its output."""

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (8, 8))
        return x @ kernel, x


class Passed(nn.Module):
    """What passes through is an input of the model first, and then an activation."""

    @nn.compact
    def __call__(self, x):
        h, x = Whole(name="first")(x)
        g, h = Whole(name="second")(h)
        return nn.Dense(4, name="head")(jnp.tanh(g + h)), x


def data_outputs(job: Job) -> dict[str, frozenset[int]]:
    """What each unit returns of mere data."""
    return {unit.name: unit.data_outputs for unit in traced(job).units}


def test_what_is_data_is_told_from_activations():
    """What depends on parameters of other units is an activation, as carries are."""
    padded = data_outputs(CASES["padded_series"].build())
    assert padded == {"conv": {1}, "norm": NONE, "head": NONE}
    x = jax.random.normal(KEY, (16, 8))
    params = Passed().init(KEY, x)["params"]
    passed = data_outputs(Job(Passed(), params, x, of_first))
    assert passed == {"first": {1}, "second": NONE, "head": NONE}
    units = traced(CASES["rnn_optimized_lstm"].build()).units
    assert any(len(unit.shape) == 3 and not unit.data_outputs for unit in units)


@some("padded_series")
def test_factors_leave_data_alone(case: Case):
    """The same bits of what is padding, and activations that have their factors."""
    job, scales = case.build(), uneven(scales_of(case))
    (plain, padding), _ = applied(job, job.model, {"params": job.params})
    variables = {"params": job.params, "scales": scales}
    (scaled, same), _ = applied(job, ei.scaled(job.model), variables)
    assert np.array_equal(padding, same) and 0 < padding.mean() < 1
    assert not np.allclose(plain, scaled, rtol=1e-2)


@some("padded_series")
def test_pillars_hold_with_padding(case: Case):
    """Outputs and input gradients of rms 1, and gradients that are no others."""
    table = table_of(case)
    assert max(off(table)[name] for name in ("output_rms", "input_grad_rms")) < 1e-4
    np.testing.assert_allclose(table.cosine, 1, rtol=1e-5)
    np.testing.assert_allclose(table.total_update_rms.max(), 1, rtol=1e-4)


@pytest.mark.slow
def test_a_speech_model_is_tuned():
    """Masks of two convolutions reach batch norms, and LSTMs by integer lengths."""
    padding = (jnp.arange(24) >= 3 * jnp.arange(1, 9)[:, None]).astype(jnp.float32)
    inputs = jax.random.normal(KEY, (8, 24, 6)), padding
    params = Speech().init(KEY, *inputs)["params"]
    job = Job(Speech(), params, inputs, of_first)
    table = measured(job, scales=tuned(job))
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-2)
    np.testing.assert_allclose(table.cosine, 1, rtol=1e-5)
    np.testing.assert_allclose(table.total_update_rms.max(), 1, rtol=1e-2)
