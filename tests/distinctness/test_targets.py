"""Targets under which inputs stay distinct, against `jax.jvp` of the folded model."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import einit_jax as ei
from tests.initializers.test_looks_linear import jvp_amplification, params_of
from tests.support.checks import KEY, allclose

x = jax.random.normal(jax.random.key(1), (32, 64))
loss = lambda y: jnp.mean(jnp.square(y))


class Layer(nn.Module):
    """A layer and its function, shaped for `nn.scan`."""

    function: Callable

    @nn.compact
    def __call__(self, x, _):
        return self.function(nn.Dense(x.shape[-1], name="layer")(x)), None


class Deep(nn.Module):
    """Layers of one width between two others, stacked to compile fast."""

    function: Callable
    depth: int = 16

    @nn.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x = self.function(nn.Dense(32, name="stem")(x))
        stack = nn.scan(Layer, length=self.depth, **axes)
        x, _ = stack(self.function, name="stack")(x, None)
        return nn.Dense(4, name="head")(x)


class Convolutional(nn.Module):
    """Convolutions, most of them one module, and a readout."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(-1, 8, 8, 1)
        shared = nn.Conv(8, (3, 3), name="shared")
        x = jnp.sin(nn.Conv(8, (3, 3), name="stem")(x))
        for _ in range(8):
            x = jnp.sin(shared(x))
        return nn.Dense(4, name="head")(x.mean((1, 2)))


class Cells(nn.Module):
    """A recurrent network: its cells bound their own outputs."""

    @nn.compact
    def __call__(self, x):
        x = nn.RNN(nn.SimpleCell(16))(x.reshape(-1, 8, 8))
        return nn.Dense(4)(jnp.asarray(x)[:, -1])


def tuned(model, params, targets):
    """The amplification of the model tuned to some targets, and the scales."""
    scales = ei.tune(model, params, x, loss, targets=targets)
    folded = ei.fold(model, params, scales, x)
    run = jax.jit(lambda x: model.apply({"params": folded}, x))
    return jvp_amplification(run, x), scales


@pytest.mark.parametrize(
    ("model", "curved", "slack"),
    [
        (Deep(jnp.tanh), ["stack/layer", "stem"], 0.005),
        (Deep(nn.gelu), ["stack/layer", "stem"], 0.005),
        (Convolutional(), ["shared", "stem"], 0.1),  # its calls share one factor
    ],
    ids=["tanh", "GELU", "convolutional"],
)
def test_tuned_to_them_a_model_amplifies_less(model, curved, slack):
    """1.2 is reached, or 1.1 times the least, up to the last of seven halvings; with
    targets of 1 it is above 2."""
    params = params_of(model, x)
    targets = ei.distinct_targets(model, params, x)
    size = targets["stem"]
    assert targets == {**dict.fromkeys(curved, size), "*": 1.0}
    assert 0 < size < 1
    least, _ = tuned(model, params, targets | dict.fromkeys(curved, 2.0**-7))
    goal = max(1.2, 1.1 * least)
    after, _ = tuned(model, params, targets)
    assert 0.9 * goal < after < (1 + slack) * goal
    before, _ = tuned(model, params, 1.0)
    assert before > 2


@pytest.mark.parametrize(
    ("model", "least"),
    [
        (Deep(nn.relu), 2.0),  # alike at every size
        (Deep(jnp.tanh, depth=2), 0.0),  # nothing is wrong with it
        (Cells(), 0.0),
    ],
    ids=["ReLU", "shallow", "cells"],
)
def test_what_they_do_not_help_or_what_needs_none_stays(model, least):
    params = params_of(model, x)
    assert ei.distinct_targets(model, params, x) == {"*": 1.0}
    assert tuned(model, params, 1.0)[0] > least


def test_a_limit_of_ones_own():
    """All is left alone up to it; one under 1.2 is reached, too."""
    model = Deep(jnp.tanh)
    params = params_of(model, x)
    run = lambda a: ei.distinct_targets(model, params, x, amplification=a)
    assert run(50.0) == {"*": 1.0}
    near, nearer = run(1.2), run(1.0)
    assert nearer["stem"] < near["stem"] < 1


def test_units_that_are_not_tuned_are_measured_as_they_are():
    """Beside layers that stay too loud all others are to be smaller."""
    model = Deep(jnp.tanh)
    params = params_of(model, x)
    params = params | {"stem": jax.tree.map(lambda w: 4 * w, params["stem"])}
    run = lambda **o: ei.distinct_targets(model, params, x, amplification=1.3, **o)
    assert "stem" in run()
    assert "stem" not in run(exclude="stem")
    assert run(exclude="stem")["stack/layer"] < run()["stack/layer"]


def test_measure_takes_them_and_the_weights_stay():
    model = Deep(jnp.tanh)
    params = params_of(model, x)
    before = jax.tree.map(np.array, params)
    targets = ei.distinct_targets(model, params, x)
    found, scales = tuned(model, params, targets)
    table = ei.measure(model, params, x, loss, scales=scales, targets=targets)
    allclose(table.output_rms[:-1], targets["stem"], rtol=1e-4)
    allclose(table.outputs_amplification, found, rtol=1e-3)
    assert {row["flag"] for row in table.rows()} == {"ok"}
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize(
    ("given", "options", "text"),
    [
        (x[:1], {"key": KEY}, "several, distinct examples"),
        (x, {"amplification": 0.9}, "a number from 1"),
        (x, {"exclude": "*"}, "leave no unit"),
    ],
)
def test_errors_say_what_to_pass(given, options, text):
    model = Deep(jnp.tanh, depth=2)
    with pytest.raises(ValueError, match=text):
        ei.distinct_targets(model, params_of(model, x), given, **options)


def test_they_are_numbers_outside_of_jit():
    model = Deep(jnp.tanh, depth=2)
    with pytest.raises(ValueError, match="outside of jit"):
        jax.jit(lambda p: ei.distinct_targets(model, p, x))(params_of(model, x))
