"""All strategies of `compare` on networks without normalization, on digits.

    python -m tests.benchmarks.training.initializers [network ...]

One table a network; the figures with `--figures FOLDER`. Each strategy at its own best
learning rate, batches of 64 (32 for sequences), the same ones for all.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax

import einit_jax as ei
from einit_jax._demo import MLP, cross_entropy, digits
from einit_jax.experiments import default_strategies
from tests.benchmarks.report import parser_of
from tests.benchmarks.training import families, transfer

BATCH, SEQUENCES = 64, 32


class Lstm(nn.Module):
    """An LSTM that reads a digit row by row, and a readout of its last output."""

    width: int = 64

    @nn.compact
    def __call__(self, x):
        rows = x.reshape(-1, 8, 8)
        y = nn.RNN(nn.OptimizedLSTMCell(self.width), name="lstm")(rows)
        return nn.Dense(10, name="head")(y[:, -1])


NETWORKS: dict[str, nn.Module] = {
    "MLP 32": MLP(),
    "CNN 20": families.Convolutional(20),
    "ResNet 8": families.ResidualConvolutional(8),
    "transformer 6": families.Transformer(6, norm=False),
    "LSTM": Lstm(),
}


def compared(name: str, given: argparse.Namespace) -> ei.Comparison:
    """The table of one network."""
    model, data = NETWORKS[name], digits()
    size = SEQUENCES if name in ("transformer 6", "LSTM") else BATCH

    def train(key):
        rows = jax.random.randint(key, (size,), 0, len(data.labels))
        return data.images[rows], {"labels": data.labels[rows]}

    key = jax.random.key(given.seed)
    optimizer = transfer.OPTIMIZERS[given.optimizer]
    strategies = default_strategies(optimizer) | {
        "metainit": ei.metainit,
        "gradinit": ei.gradinit,
    }
    if given.strategies:
        strategies = {name: strategies[name] for name in given.strategies}
    elif given.tiny:
        strategies = dict([*strategies.items()][-3:])
    x, labels = train(key)
    params = families.initialized(model, x, given.seed)
    return ei.compare(
        model, params, x, partial(cross_entropy, **labels), strategies=strategies,
        train=train, key=key, steps=given.steps, seeds=given.seeds, progress=True,
        optimizer=optimizer,
    )  # fmt: skip


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", metavar="network", default=[*NETWORKS])
    parser.add_argument("--strategies", nargs="*", help="these alone, by name")
    parser.add_argument("--optimizer", choices=transfer.OPTIMIZERS, default="Adam")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path, help="a folder for the figures")
    given = parser.parse_args(words)
    if given.tiny:
        NETWORKS["MLP 3"] = MLP(3, 16)
        given.networks, given.steps, given.seeds = ["MLP 3"], 2, 1
    for name in given.networks:
        found = compared(name, given)
        print(f"\n{name}, {given.optimizer}\n{found}", flush=True)
        if given.figures:
            file = name.replace(" ", "_") + ".png"
            found.plot().savefig(given.figures / file, dpi=100)


if __name__ == "__main__":
    main()
