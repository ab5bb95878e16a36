"""Each NNX model of the table is tuned as it is, and stays a module of its class."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import einit_jax as ei
from tests.support.checks import same
from tests.support.nnx_models import NNX_CASES, TAGS
from tests.support.nnx_models.judged import Judged, least_cosine

# A part of each of these is some other row.
SLOW = {"vit", "gpt2", "switch", "zero_gain_resnet", "bidirectional", "rnn_gru",
        "rnn_optimized_lstm", "attention_dropout", "conv_3d"}  # fmt: skip
EVERY = pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in NNX_CASES],
)
# Compiled in another order: members of a vmap that share their inputs, layers under a
# scan that takes some state along whole, and layers that XLA fuses otherwise.
ROUNDED = {"vmap_ensemble", "scan_state_axes", "scan_axis_1", "gpt2"}


def with_ones(scales: dict, *kept: str) -> dict:
    """Factors of 1 in the place of all but some."""
    pick = lambda path, x: x if path[-1].key in kept else jnp.ones_like(x)
    return jax.tree.map_with_path(pick, scales)


@EVERY
def test_a_model_is_tuned_as_it_is(name):
    """`tune` has checked the outputs' sizes by its referee; the rest is checked here.

    The model itself stays what it was, factors of 1 change no bit of outputs and
    gradients, and those of `tune` turn no gradient.
    """
    judged = Judged(NNX_CASES[name])
    model = judged.model()
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    scales = ei.tune(model, None, judged.inputs(), judged.case.loss)
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert same(before, after) and type(model) is type(judged.model())

    plain = judged.outputs_and_gradients(judged.model())
    at_one = ei.scaled(judged.model(), with_ones(scales))
    assert isinstance(at_one, type(judged.model()))
    ones = judged.outputs_and_gradients(at_one)
    if name in ROUNDED:
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6),
                     plain, ones)  # fmt: skip
    else:
        assert same(plain, ones)

    alone = ei.scaled(judged.model(), with_ones(scales, "output"))
    assert max(np.abs(g).max() for g in plain[1].values()) > 0
    outputs, true = judged.outputs_and_gradients(alone)
    tuned, carried = judged.outputs_and_gradients(ei.scaled(judged.model(), scales))
    assert same(outputs, tuned)
    rounding = 1e-2 if judged.case.tags & {"dtype"} else 1e-3
    assert least_cosine(scales, carried, true) > 1 - rounding


def test_gradients_that_are_weighed_turn():
    """The negative: with the original's rule a residual network's gradients turn."""
    judged = Judged(NNX_CASES["fusion"])
    scales = judged.tune(gradients="unit")
    alone = ei.scaled(judged.model(), with_ones(scales, "output"))
    _, true = judged.outputs_and_gradients(alone)
    _, carried = judged.outputs_and_gradients(ei.scaled(judged.model(), scales))
    assert least_cosine(scales, carried, true) < 0.999


MEASURED = ("raw_param", "scan_state_axes", "rnn_lstm", "attention", "batch_norm_train",
            "tied_embedding", "dropout", "scan_axis_1", "jit_method")  # fmt: skip


@pytest.mark.parametrize("name", MEASURED)
def test_pillars_hold_by_measure(name):
    """By `measure`, which shares no code with the sweep; untuned they do not hold."""
    judged = Judged(NNX_CASES[name])
    case, inputs = judged.case, judged.inputs
    scales = judged.tune(optimizer=optax.adam)
    table = ei.measure(
        judged.model(), None, inputs(), case.loss, scales=scales, optimizer=optax.adam
    )
    np.testing.assert_allclose(table.output_rms, 1, rtol=1e-2)
    assert abs(np.nanmax(table.total_update_rms) - 1) < 1e-2
    plain = ei.measure(judged.model(), None, inputs(), case.loss)
    assert np.max(np.abs(np.log2(np.asarray(plain.output_rms)))) > 0.2
    again = judged.tune(optimizer=optax.adam)
    assert same(scales, again)


def test_tags_are_used():
    """Each tag of the table marks some case."""
    assert TAGS.keys() == set().union(*(case.tags for case in NNX_CASES.values()))
