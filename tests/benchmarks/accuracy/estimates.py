"""What `autoinit` predicts beside what is measured, unit by unit.

    python -m tests.benchmarks.accuracy.estimates [name ...] [--draws 100] [--units]

For each network the second moments of all units are predicted once; then weights are
drawn many times and the network is run. The numbers are ratios, measured (median and
mean over draws) over predicted.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from einit_jax.binding import setup, sum_of_means
from einit_jax.core import path_str
from einit_jax.initializers.signal_propagation import (
    PropagationSpec,
    predict_variances,
    sample_weights,
    trace_for_propagation,
)
from tests.benchmarks.report import parser_of

HEAD = 128
"""Outputs: with ten the second moment of one draw is known to a half."""


class Chain(nn.Module):
    """Dense layers."""

    act: Any
    width: int = 512

    @nn.compact
    def __call__(self, x):
        for _ in range(5):
            x = self.act(nn.Dense(self.width)(x))
        return nn.Dense(HEAD)(x)


class Pooled(nn.Module):
    """A plain convolutional network."""

    pool: Any
    width: int = 128

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Conv(self.width, (3, 3))(x))
            x = self.pool(x, (2, 2), strides=(2, 2))
        x = nn.relu(nn.Conv(self.width, (3, 3))(x)).mean((1, 2))
        return nn.Dense(HEAD)(nn.relu(nn.Dense(2 * self.width)(x)))


class Residual(nn.Module):
    """A ResNet of two stages without normalization."""

    width: int = 64

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.width, (3, 3))(x)
        for w, stride in ((1, 1), (1, 1), (2, 2), (2, 1)):
            w, strides = w * self.width, (stride, stride)
            y = nn.Conv(w, (3, 3), strides=strides)(nn.relu(x))
            y = nn.Conv(w, (3, 3))(nn.relu(y))
            if stride > 1:
                x = nn.Conv(w, (1, 1), strides=strides)(x)
            x = x + y
        return nn.Dense(HEAD)(nn.relu(x).mean((1, 2)))


class Transformer(nn.Module):
    """Tokens, positions and blocks, with or without LayerNorm."""

    normed: bool
    width: int = 256
    depth: int = 3

    @nn.compact
    def __call__(self, tokens):
        norm = nn.LayerNorm if self.normed else lambda: lambda x: x
        x = nn.Embed(1000, self.width)(tokens)
        x = x + nn.Embed(64, self.width)(jnp.arange(tokens.shape[1])[None])
        for _ in range(self.depth):
            x = x + nn.MultiHeadDotProductAttention(4)(norm()(x))
            y = nn.gelu(nn.Dense(4 * self.width)(norm()(x)))
            x = x + nn.Dense(self.width)(y)
        return nn.Dense(HEAD)(x.mean(1))


class Recurrent(nn.Module):
    """Two recurrent layers over time, and a readout of the last step."""

    cell: Any
    width: int = 128

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.RNN(self.cell(self.width))(x)
        return nn.Dense(HEAD)(x[:, -1])


ACTS = ("relu", "tanh", "gelu", "silu", "elu", "selu", "sigmoid", "softplus")
RAW = {
    "vectors": ((64, 64), 0), "images": ((16, 16, 16, 3), 0),
    "series": ((64, 12, 8), 0), "tokens": ((16, 16), 1000),
}  # fmt: skip
NETWORKS: dict[str, tuple[nn.Module, str]] = {
    **{f"MLP {act}": (Chain(getattr(nn, act)), "vectors") for act in ACTS},
    "MLP leaky": (Chain(partial(nn.leaky_relu, negative_slope=0.2)), "vectors"),
    "CNN max": (Pooled(nn.max_pool), "images"),
    "CNN mean": (Pooled(nn.avg_pool), "images"),
    "ResNet": (Residual(), "images"),
    "transformer": (Transformer(True), "tokens"),
    "no LayerNorm": (Transformer(False), "tokens"),
    "LSTM": (Recurrent(nn.OptimizedLSTMCell), "series"),
    "GRU": (Recurrent(nn.GRUCell), "series"),
    "RNN": (Recurrent(nn.SimpleCell), "series"),
}
ALLOWED = {"transformer": 0.2, "no LayerNorm": 0.2, "LSTM": 0.2, "GRU": 0.2}
"""Of correlated signals; else 0.05."""


def batch_of(kind: str) -> jax.Array:
    """Standard normal inputs, or tokens."""
    shape, tokens = RAW[kind]
    key = jax.random.key(3)
    return (
        jax.random.randint(key, shape, 0, tokens)
        if tokens
        else jax.random.normal(key, shape)
    )


def ratios(model: nn.Module, x: jax.Array, draws: int) -> tuple[dict, float]:
    """Measured over predicted second moments, (draws,), by unit; and the seconds."""
    params = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    params = jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), params)
    objective, arrays = setup(model, params, x, sum_of_means)
    traced = trace_for_propagation(objective, arrays.args)
    spec = PropagationSpec(1.0, None, False, 8192, 16, ())
    start = time.perf_counter()
    found = predict_variances(traced, jax.random.key(0), spec)
    seconds = time.perf_counter() - start
    want = {
        path_str(*kind): float(np.mean([m.second for m in calls]))
        for kind, calls in found.units.items()
    }

    def one(key):
        drawn = sample_weights(
            found.variances, traced, key, distribution="normal", zero_mean=False
        )
        _, seen = model.apply({"params": drawn}, x, capture_intermediates=True)
        return {
            path_str(path[:-1]): jnp.mean(jnp.square(jnp.stack(values)))
            for path, values in _captured(seen["intermediates"])
        }

    keys = jax.random.split(jax.random.key(9), draws)
    got = jax.jit(lambda keys: jax.lax.map(one, keys))(keys)
    return {u: np.asarray(got[u]) / want[u] for u in want if u in got}, seconds


def _captured(tree, path=()):
    for name, value in tree.items():
        if name == "__call__":
            arrays = [v for v in value if isinstance(v, jax.Array)]
            if arrays:
                yield (*path, name), arrays
        else:
            yield from _captured(value, (*path, name))


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--units", action="store_true")
    options = parser.parse_args(words)
    print(f"{'network':14}{'units':>6}{'seconds':>9}{'worst median':>14}{'mean':>8}")
    networks, draws = NETWORKS, options.draws
    if options.tiny:
        networks, draws = {"MLP relu": (Chain(nn.relu, 32), "vectors")}, 4
    for name, (model, kind) in networks.items():
        if options.names and name not in options.names:
            continue
        found, seconds = ratios(model, batch_of(kind), draws)
        medians = {u: float(np.median(r)) for u, r in found.items()}
        worst = max(medians, key=lambda u: abs(medians[u] - 1))
        mean = float(np.mean(found[worst]))
        missed = abs(medians[worst] - 1) > ALLOWED.get(name, 0.05)
        print(
            f"{name:14}{len(found):6}{seconds:9.2f}{medians[worst]:14.3f}{mean:8.3f}"
            f"  {worst}{'  MISSED' * missed}",
            flush=True,
        )
        if options.units:
            for unit, median in medians.items():
                print(f"    {unit:40}{median:8.3f}{np.mean(found[unit]):8.3f}")


if __name__ == "__main__":
    main()
