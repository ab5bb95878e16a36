"""Which learning rate is best, and how good it is, over depths and widths.

    JAX_PLATFORMS=cpu python -m tests.benchmarks.transfer [family ...] [--seeds 3]

Digits, SGD and SGD with momentum 0.9, the same steps for all. The loss is the mean over
the last 20 steps and the seeds; the learning rates are powers of two. All seeds and
rates of one network train together, under `vmap`.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import cross_entropy, digits
from tests.benchmarks.families import FAMILIES, Transformer, initialized
from tests.benchmarks.report import show

BATCH, TOKENS_BATCH, TAIL = 64, 32, 20
MOMENTA = {"SGD": None, "momentum": 0.9}
RULES = {
    "unit, local": ("unit", "local"),
    "unit, total": ("unit", "total"),
    "exact, local": ("exact", "local"),
    "exact, total": ("exact", "total"),
    "small head": ("exact", "total"),  # and a readout of rms 1 / sqrt(width), as in mup
}
PLAIN = "Flax default"
GRID = {PLAIN: range(-7, 3), "local": range(-9, 1), "total": range(-5, 5)}
SHIFT = {"SGD": 0, "momentum": -3}


def methods(family: str) -> list[str]:
    """In a chain the two rules of gradients are one; small heads are for widths."""
    chains = family.startswith(("chain", "width"))
    left = {"unit, local", "unit, total"} if chains else set()
    left |= set() if family.startswith("width") else {"small head"}
    return [PLAIN, *(m for m in RULES if m not in left)]


def exponents(method: str, optimizer: str) -> np.ndarray:
    grid = GRID[method if method == PLAIN else RULES[method][1]]
    return np.array(grid) + SHIFT[optimizer]


def losses(model: Any, method: str, optimizer: str, seeds: int, steps: int):
    """The final loss for each seed and learning rate."""
    data = digits()
    batch = TOKENS_BATCH if isinstance(model, Transformer) else BATCH
    apply: Callable = model.apply if method == PLAIN else ei.scaled(model).apply

    @jax.jit
    def tuned(params, x, labels):
        loss = lambda logits: cross_entropy(logits, labels)
        gradients, update = RULES[method]
        head = model.width**-0.5 if method == "small head" else 1.0
        return ei.tune(
            model, params, x, loss, gradients=gradients, update=update,
            targets={"head": head, "*": 1.0},
        )  # fmt: skip

    def start(seed: int) -> dict:
        rows = jax.random.permutation(jax.random.key(seed), len(data.labels))[:batch]
        x, labels = data.images[rows], data.labels[rows]
        params = initialized(model, x, seed)
        if method == PLAIN:
            return {"params": params}
        return {"params": params, "scales": tuned(params, x, labels)}

    def train(variables, key, rate):
        rule = optax.sgd(rate, MOMENTA[optimizer])

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (batch,), 0, len(data.labels))

            def loss(params):
                logits = apply({**variables, "params": params}, data.images[rows])
                return cross_entropy(logits, data.labels[rows])

            value, gradient = jax.value_and_grad(loss)(params)
            change, state = rule.update(gradient, state)
            return (optax.apply_updates(params, change), state), value

        params = variables["params"]
        keys = jax.random.split(key, steps)
        _, seen = jax.lax.scan(step, (params, rule.init(params)), keys)
        return jnp.mean(seen[-TAIL:])

    starts = jax.tree.map(lambda *x: jnp.stack(x), *map(start, range(seeds)))
    keys = jax.random.split(jax.random.key(17), seeds)
    rates = 2.0 ** jnp.asarray(exponents(method, optimizer), jnp.float32)
    over_rates = jax.vmap(train, (None, None, 0))
    return np.asarray(jax.jit(jax.vmap(over_rates, (0, 0, None)))(starts, keys, rates))


def row(family: str, size: int, optimizer: str, method: str, given: Any) -> dict:
    """The best learning rate of one network, as a record."""
    model = FAMILIES[family][0](size)
    found = losses(model, method, optimizer, given.seeds, given.steps)
    mean = np.where(np.isfinite(found), found, np.inf).mean(0)
    best = int(np.argmin(mean))
    grid = exponents(method, optimizer)
    return {
        "family": family,
        "size": size,
        "optimizer": optimizer,
        "method": method,
        "best": int(grid[best]),
        "edge": best in (0, len(grid) - 1),
        "loss": float(mean[best]),
        "spread": float(np.std(found[:, best])),
    }


def measured(given: Any) -> Iterator[dict]:
    for family in given.families:
        for size in FAMILIES[family][1]:
            for optimizer in given.optimizers:
                for method in given.methods or methods(family):
                    yield row(family, size, optimizer, method, given)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="*", metavar="family", default=list(FAMILIES))
    parser.add_argument("--methods", nargs="*", help="of those of the family")
    parser.add_argument("--optimizers", nargs="*", default=list(MOMENTA))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="append records as JSON lines")
    parser.add_argument("--read", type=Path, nargs="*", help="show records of --out")
    given = parser.parse_args()
    records = []
    if given.read:
        lines = [line for path in given.read for line in path.read_text().splitlines()]
        records = [json.loads(line) for line in lines]
    else:
        for record in measured(given):
            records.append(record)
            if given.out:
                with given.out.open("a") as file:
                    file.write(json.dumps(record) + "\n")
    show(
        "best learning rate (* at an end of the grid) and the loss there",
        summary(records),
    )


if __name__ == "__main__":
    main()
