"""Which learning rate is best, and how good it is, over depths and widths.

    python -m tests.benchmarks.training.transfer [family ...] [--seeds 3]
    python -m tests.benchmarks.training.transfer --read FILE --figure FILE.svg

Digits or modular sums, any optimizer of optax, the same steps for all. The loss is the
mean over the last 20 steps and the seeds; the learning rates are powers of two. All
seeds and rates of one network train together, under `vmap`. The first size of a family
tries a whole grid, each next one two rates on either side of the best one before; and
while the best rate is the last one tried on its side, three more beyond. A record has
the loss at every rate that was tried. With `--whole` each size tries the whole grid;
`--figure` draws the curves of all sizes, a panel for each method.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import cross_entropy
from tests.benchmarks.report import parser_of, read_records, show, written
from tests.benchmarks.training.curves import curves_figure
from tests.benchmarks.training.families import (
    FAMILIES,
    Transformer,
    data_of,
    initialized,
)

BATCH, TOKENS_BATCH, TAIL = 64, 32, 20
AROUND, BEYOND, MOST = 2, 3, 24
OPTIMIZERS: dict[str, Callable] = {
    "SGD": optax.sgd,
    "momentum": partial(optax.sgd, momentum=0.9),
    "Adam": optax.adam,
    "AdamW": partial(optax.adamw, weight_decay=0.01),
    "Lion": optax.lion,
    "Muon": optax.contrib.muon,
}
RULES = {
    "unit, local": ("unit", "local"),
    "unit, total": ("unit", "total"),
    "exact, local": ("exact", "local"),
    "exact, total": ("exact", "total"),
    "small head": ("exact", "total"),  # and a readout of rms 1 / sqrt(width), as in mup
}
PLAIN = "Flax default"
FIRST = {PLAIN: range(-6, 3), "local": range(-8, 0), "total": range(-4, 4)}
SHIFT = {"SGD": 0, "momentum": -3, "Adam": -4, "AdamW": -4, "Lion": -5, "Muon": -3}


def methods(family: str) -> list[str]:
    """In a chain the two rules of gradients are one; small heads are for widths."""
    chains = family.startswith(("chain", "width"))
    left = {"unit, local", "unit, total"} if chains else set()
    left |= set() if family.startswith("width") else {"small head"}
    return [PLAIN, *(m for m in RULES if m not in left)]


def losses(model: Any, method: str, optimizer: str, seeds: int, steps: int) -> Callable:
    """A function of learning rates: the final loss for each seed and rate."""
    data = data_of(model)
    batch = TOKENS_BATCH if isinstance(model, Transformer) else BATCH
    apply: Callable = model.apply if method == PLAIN else ei.scaled(model).apply
    rule = OPTIMIZERS[optimizer]
    unit_step = rule(1.0)

    @jax.jit
    def tuned(params, x, labels):
        loss = lambda logits: cross_entropy(logits, labels)
        gradients, update = RULES[method]
        head = model.width**-0.5 if method == "small head" else 1.0
        return ei.tune(
            model, params, x, loss, gradients=gradients, update=update,
            targets={"head": head, "*": 1.0}, optimizer=unit_step,
        )  # fmt: skip

    def start(seed: int) -> dict:
        rows = jax.random.permutation(jax.random.key(seed), len(data.labels))[:batch]
        x, labels = data.images[rows], data.labels[rows]
        params = initialized(model, x, seed)
        if method == PLAIN:
            return {"params": params}
        return {"params": params, "scales": tuned(params, x, labels)}

    def train(variables, key, rate):
        tx = rule(rate)
        if "scales" in variables:
            tx = optax.chain(tx, ei.scale_updates(variables["scales"]))

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (batch,), 0, len(data.labels))

            def loss(params):
                logits = apply({**variables, "params": params}, data.images[rows])
                return cross_entropy(logits, data.labels[rows])

            value, gradient = jax.value_and_grad(loss)(params)
            change, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), value

        params = variables["params"]
        keys = jax.random.split(key, steps)
        _, seen = jax.lax.scan(step, (params, tx.init(params)), keys)
        return jnp.mean(seen[-TAIL:])

    starts = jax.tree.map(lambda *x: jnp.stack(x), *map(start, range(seeds)))
    keys = jax.random.split(jax.random.key(17), seeds)
    over_rates = jax.vmap(train, (None, None, 0))
    run = jax.jit(jax.vmap(over_rates, (0, 0, None)))
    return lambda rates: np.asarray(run(starts, keys, jnp.asarray(rates, jnp.float32)))


class Found(NamedTuple):
    """What a search over rates found; exponents of two stand for rates."""

    best: int
    edge: bool
    """Whether the best is the last one tried on its side."""
    known: dict[int, np.ndarray]
    """The losses of all seeds, by exponent."""

    def curve(self) -> dict[int, float]:
        """The mean loss at each exponent; infinite where some seed's is not finite."""
        return {e: _mean(self.known[e]) for e in sorted(self.known)}


def _mean(losses: np.ndarray) -> float:
    return float(np.where(np.isfinite(losses), losses, np.inf).mean())


def search(run: Callable, first: range) -> Found:
    """Losses at the rates of a grid, and beyond it as long as they fall."""
    known: dict[int, np.ndarray] = {}
    todo, best = first, first.start
    while todo and len(known) < MOST:
        found = run(2.0 ** np.array(todo))
        known |= dict(zip(todo, found.T, strict=True))
        best = min(known, key=lambda e: _mean(known[e]))
        todo = range(0)
        if best == min(known):
            todo = range(best - BEYOND, best)
        elif best == max(known):
            todo = range(best + 1, best + 1 + BEYOND)
    return Found(best, bool(todo), known)


def row(
    family: str, size: int, optimizer: str, method: str, first: range, given: Any
) -> dict:
    """The best learning rate of one network, as a record."""
    model = FAMILIES[family][0](size)
    run = losses(model, method, optimizer, given.seeds, given.steps)
    found = search(run, first)
    losses_there = found.known[found.best]
    return {
        "family": family,
        "size": size,
        "optimizer": optimizer,
        "method": method,
        "best": found.best,
        "edge": found.edge,
        "loss": float(np.mean(losses_there)),
        "spread": float(np.std(losses_there)),
        "curve": found.curve(),
    }


def measured(given: Any) -> Iterator[dict]:
    for family in given.families:
        meant = range(given.smallest, given.largest + 1)
        sizes = [size for size in FAMILIES[family][1] if size in meant]
        for optimizer in given.optimizers:
            for method in given.methods or methods(family):
                grid = FIRST[method if method == PLAIN else RULES[method][1]]
                shift = SHIFT[optimizer]
                first = range(grid.start + shift, grid.stop + shift)
                for size in sizes:
                    record = row(family, size, optimizer, method, first, given)
                    if not given.whole:
                        best = record["best"]
                        first = range(best - AROUND, best + AROUND + 1)
                    yield record


def summary(records: list[dict]) -> Iterator[dict[str, str]]:
    """A line for each family, optimizer and method, sizes side by side."""
    groups: dict[tuple, list[dict]] = {}
    for record in records:
        key = (record["family"], record["optimizer"], record["method"])
        groups.setdefault(key, []).append(record)
    for (family, optimizer, method), found in groups.items():
        best = [r["best"] for r in found]
        edge = ["*" if r["edge"] else "" for r in found]
        yield {
            "family": family,
            "optimizer": optimizer,
            "method": method,
            "sizes": " ".join(str(r["size"]) for r in found),
            "log2 best rate": " ".join(
                f"{b}{e}" for b, e in zip(best, edge, strict=True)
            ),
            "drift": f"{max(best) - min(best)}",
            "loss there": " ".join(f"{r['loss']:.3g}" for r in found),
        }


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("families", nargs="*", metavar="family", default=list(FAMILIES))
    parser.add_argument("--methods", nargs="*", help="of those of the family")
    parser.add_argument("--optimizers", nargs="*", default=["SGD", "momentum"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--smallest", type=int, default=0, help="size of a family")
    parser.add_argument("--largest", type=int, default=2048)
    parser.add_argument("--whole", action="store_true", help="all rates at all sizes")
    parser.add_argument("--out", type=Path, help="append records as JSON lines")
    parser.add_argument("--read", type=Path, nargs="*", help="show records of --out")
    parser.add_argument("--figure", type=Path, help="write the curves as a figure")
    given = parser.parse_args(words)
    if given.tiny:
        given.families, given.methods = ["chain tanh"], [PLAIN, "exact, total"]
        given.largest, given.seeds, given.steps = 2, 1, 2
    if given.read:
        records = read_records(*given.read)
    else:
        records = list(written(measured(given), given.out))
    show(
        "best learning rate (* at an end of the grid) and the loss there",
        summary(records),
    )
    if given.figure:
        curves_figure(records).savefig(given.figure)


if __name__ == "__main__":
    main()
