"""Predicted second moments against measured ones."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks.accuracy import estimates

KEY, SIZE = jax.random.key(0), 8192
X = jax.random.normal(jax.random.key(1), (64, 32))


def test_a_variance_of_few_features_is_never_negative():
    """The mean and the mean square are of the same elements."""
    model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(64)])
    ratio, _ = estimates.ratios(model, X, 50)
    assert abs(np.mean(ratio["layers_2"]) - 1) < 0.05


of = estimates.batch_of
NETWORKS = {
    "silu": (estimates.Chain(nn.silu, 256), of("vectors")),
    "sigmoid": (estimates.Chain(nn.sigmoid, 256), of("vectors")),
    "CNN": (estimates.Pooled(nn.max_pool, 48), of("images")[:8]),
    "LSTM": (estimates.Recurrent(nn.OptimizedLSTMCell, 64), of("series")[:, :3]),
    "attention": (estimates.Transformer(True, 128, 1), of("tokens")),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_predicted_is_measured(name):
    """Mean over draws, to 5% (20% for correlated signals) and four standard errors."""
    model, x = NETWORKS[name]
    draws = 40
    ratio, _ = estimates.ratios(model, x, draws)
    assert len(ratio) > 1
    for unit, found in ratio.items():
        allowed = 0.2 if name in ("LSTM", "attention") else 0.06
        error = 4 * np.std(found) / math.sqrt(draws)
        assert abs(np.mean(found) - 1) < allowed + error, (unit, np.mean(found))


class Bordered(nn.Module):
    """Convolutions of images that are padded by hand, by slices as well."""

    sliced: bool

    @nn.compact
    def __call__(self, x):
        for width in (128, 128):
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            if self.sliced:
                parts = [x[:, i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
                x = nn.Dense(width)(jnp.concatenate(parts, -1))
            else:
                x = nn.Conv(width, (3, 3), padding="VALID")(x)
        return x


@pytest.mark.parametrize("sliced", [True, False])
def test_zeros_at_borders(sliced):
    """Of 4x4 places padded to 6x6 less than half are inside; a window sees more.

    Windows made of slices lose what differs from place to place, some percent.
    """
    x = jax.random.normal(KEY, (16, 4, 4, 8))
    ratio, _ = estimates.ratios(Bordered(sliced), x, 30)
    for unit, found in ratio.items():
        error = 4 * np.std(found) / math.sqrt(30)
        allowed = 0.1 if sliced else 0.05
        assert abs(np.mean(found) - 1) < allowed + error, unit
