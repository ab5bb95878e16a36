"""How much each layer and the logits change in the first steps, over widths.

    python -m tests.benchmarks.accuracy.coordinates [--optimizers SGD Adam]

The coordinate check of mup (Yang and Hu, arXiv 2011.14522), `ei.coordinate_check`: the
change of outputs after 1 and 5 steps on one batch of digits, tanh and ReLU MLPs of 4
and 8 layers and a residual MLP of 2 blocks. Learning rates are those of the optimizer
at every width. "Small head" aims at readouts of rms 1 / sqrt(width), as mup does; the
others at 1.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import optax

import einit_jax as ei
from einit_jax._demo import cross_entropy, digits
from tests.benchmarks.report import parser_of, show, verdict
from tests.benchmarks.training.families import Chain, Residual

WIDTHS = (64, 128, 256, 512, 1024)
FLAT = 1.5
BATCH, STEPS = 64, (1, 5)
RATES = {"SGD": (2.0**-6, 2.0**-6), "Adam": (2.0**-12, 2.0**-6)}
"""Of each optimizer: for a network as it is, and for a tuned one."""
OPTIMIZERS: dict[str, Callable] = {"SGD": optax.sgd, "Adam": optax.adam}
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "tanh 4": lambda width: Chain(4, width, "tanh"),
    "relu 4": lambda width: Chain(4, width, "relu"),
    "relu 8": lambda width: Chain(8, width, "relu"),
    "residual 2": lambda width: Residual(2, width),
}
METHODS: dict[str, Any] = {
    "Flax default": False,
    "like original": {"like": "original"},
    "defaults": True,
    "defaults, small head": lambda w: {"targets": {"head": w**-0.5, "*": 1.0}},
}


def checked(name: str, method: str, optimizer: str, given: Any) -> ei.CoordinateCheck:
    """One network, one method, one optimizer."""
    data = digits()
    labels = data.labels[:BATCH]
    rate = RATES[optimizer][METHODS[method] is not False]
    return ei.coordinate_check(
        NETWORKS[name], given.widths, data.images[:BATCH],
        partial(cross_entropy, labels=labels), optimizer=OPTIMIZERS[optimizer],
        learning_rate=rate, steps=max(STEPS), seeds=given.seeds, tune=METHODS[method],
        progress=True,
    )  # fmt: skip


def table(label: str, check: ei.CoordinateCheck) -> Iterator[dict[str, str]]:
    """A row a layer: its changes, widths side by side."""
    for i, path in enumerate(check.paths):
        for t in STEPS:
            values = dict(zip(check.widths, check.changes[:, t, i], strict=True))
            spread = max(values.values()) / min(values.values())
            yield {
                "network": f"{label}: {path}",
                "steps": f"{t}",
                **{str(width): f"{value:.3g}" for width, value in values.items()},
                f"largest / smallest <= {FLAT}": verdict(spread, FLAT),
            }


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", metavar="network", default=[*NETWORKS])
    parser.add_argument("--optimizers", nargs="*", default=[*RATES])
    parser.add_argument("--methods", nargs="*", default=[*METHODS])
    parser.add_argument("--widths", nargs="*", type=int, default=[*WIDTHS])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args(words)
    if given.tiny:
        given.networks, given.optimizers = given.networks[:1], given.optimizers[:1]
        given.methods, given.widths, given.seeds = [*METHODS][::3], [8, 16], 1
    for name in given.networks:
        for optimizer in given.optimizers:
            rows = [
                row
                for method in given.methods
                for row in table(
                    f"{name}, {method}, {optimizer}",
                    checked(name, method, optimizer, given),
                )
            ]
            show("change of outputs", rows)


if __name__ == "__main__":
    main()
