"""The learning-rate transfer of mup (Yang and Hu, arXiv 2203.03466), beside ours.

    python -m tests.benchmarks.training.mup_transfer [--seeds 3] [--out FILE]

Needs `pip install torch mup`. Chains in PyTorch on the data, batch, steps and loss of
`transfer`, whose `--read` shows the records of both. "mup" is He's initialization, zero
biases, mup's readout and optimizers, base width 32; "torch default" is all of torch's.

A rate that diverges for one seed counts as infinite; such a run ends when its loss is
not finite, or after 100 steps above 3 times the first. The first width tries the whole
grid. The loss is unimodal in log2 of the rate near its best, so each next width starts
at the best of the one before, and walks until two rates on either side are worse.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import mup
import numpy as np
import torch
from torch import nn

from einit_jax._demo import digits
from tests.benchmarks.report import parser_of, show, written
from tests.benchmarks.training.transfer import BATCH, TAIL, summary

WIDTHS, BASE = (32, 64, 128, 256, 512, 1024), 32
PATIENCE, BLOWN = 100, 3.0
ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
# The decay is torch's default, named because mup decays by 0 where none is given.
OPTIMIZERS: dict[str, tuple[Callable, Callable, dict]] = {
    "SGD": (mup.MuSGD, torch.optim.SGD, {}),
    "momentum": (mup.MuSGD, torch.optim.SGD, {"momentum": 0.9}),
    "Adam": (mup.MuAdam, torch.optim.Adam, {}),
    "AdamW": (mup.MuAdamW, torch.optim.AdamW, {"weight_decay": 0.01}),
}
GRID = {"mup": range(-10, 2), "torch default": range(-10, 4)}
SHIFT = {"SGD": 0, "momentum": -3, "Adam": -5, "AdamW": -5}


def plain(width: int, depth: int, activation: str, readout=nn.Linear) -> nn.Sequential:
    """The network `Chain` of `families`, as torch draws it."""
    sizes, between = pairwise([64] + [width] * (depth - 1)), ACTIVATIONS[activation]
    hidden = (layer for n, m in sizes for layer in (nn.Linear(n, m), between()))
    return nn.Sequential(*hidden, readout(width, 10))


def parametrized(width: int, depth: int, activation: str) -> nn.Sequential:
    """The same network as mup parametrizes it, with He's initialization."""
    build = partial(plain, depth=depth, activation=activation, readout=mup.MuReadout)
    model = mup.set_base_shapes(build(width), build(BASE), delta=build(2 * BASE))
    for layer in model[:-1:2]:
        mup.init.kaiming_normal_(layer.weight, nonlinearity=activation)
        nn.init.zeros_(layer.bias)
    return model


def train(model: nn.Module, rule: Any, batches: Iterable[tuple]) -> float:
    """The mean of the last losses, infinite for a run that is given up."""
    seen: list[float] = []
    for x, labels in batches:
        loss = nn.functional.cross_entropy(model(x), labels.long())
        rule.zero_grad()
        loss.backward()
        rule.step()
        seen.append(loss.item())
        blown = len(seen) > PATIENCE and seen[-1] > BLOWN * seen[0]
        if blown or not math.isfinite(seen[-1]):
            return math.inf
    return float(np.mean(seen[-TAIL:]))


def losses(
    width: int, optimizer: str, method: str, given: Any, data: tuple, exponent: int
) -> np.ndarray:
    """The final loss for each seed at the learning rate 2^exponent."""
    (scaled, usual, options), (images, labels) = OPTIMIZERS[optimizer], data
    build, rule = (parametrized, scaled) if method == "mup" else (plain, usual)

    def run(seed: int) -> float:
        torch.manual_seed(seed)
        rows = torch.randint(len(labels), (given.steps, BATCH))
        model = build(width, given.depth, given.activation)
        update = rule(model.parameters(), lr=2.0**exponent, fused=True, **options)
        return train(model, update, ((images[i], labels[i]) for i in rows))

    return np.array([run(seed) for seed in range(given.seeds)])


def search(losses: Callable, near: list[int], grid: list[int]) -> tuple[int, Any]:
    """The exponent with the smallest mean loss, and the losses there."""
    found: dict[int, np.ndarray] = {}
    while near:
        found |= {exponent: losses(exponent) for exponent in near}
        # Where all diverge the lowest, for the way out is down.
        best = min(found, key=lambda exponent: (found[exponent].mean(), exponent))
        sides = [best + i for i in (-1, 1, -2, 2)]
        near = [i for i in sides if i in grid and i not in found][:1]
    return best, found[best]


def measured(given: Any) -> Iterator[dict]:
    data = tuple(torch.from_numpy(np.array(part)) for part in digits())
    for optimizer, method in product(given.optimizers, given.methods):
        near = grid = [i + SHIFT[optimizer] for i in GRID[method]]
        for width in given.widths:
            at = partial(losses, width, optimizer, method, given, data)
            best, values = search(at, near, grid)
            near = [best]
            yield {
                "family": f"width, chain {given.activation} {given.depth}",
                "size": width,
                "optimizer": optimizer,
                "method": method,
                "best": best,
                "edge": best in (grid[0], grid[-1]),
                "loss": float(values.mean()),
                "spread": float(np.std(values)),
            }


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    for name, values in {"optimizers": OPTIMIZERS, "methods": GRID}.items():
        parser.add_argument(f"--{name}", nargs="*", choices=values, default=[*values])
    for name, value in {"depth": 8, "seeds": 3, "steps": 300, "threads": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--activation", choices=ACTIVATIONS, default="relu")
    parser.add_argument("--out", type=Path, help="append records as JSON lines")
    given = parser.parse_args(words)
    if given.tiny:
        given.widths, given.depth, given.seeds, given.steps = [32, 64], 2, 1, 2
    torch.set_num_threads(given.threads)
    records = list(written(measured(given), given.out))
    show("best learning rate (* at an end of the grid)", summary(records))


if __name__ == "__main__":
    main()
