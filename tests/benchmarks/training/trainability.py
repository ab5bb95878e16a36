"""What networks without normalization learn, by how they were initialized.

    python -m tests.benchmarks.training.trainability [network ...] [--seeds 3]

Digits; each initialization at its own best learning rate, a power of two, searched as
in `transfer`. "Kaiming", "Glorot" and "orthogonal" draw every kernel anew, at the fans
of the matrix that the layer multiplies by; orthogonal ones are times sqrt(2) where the
network has ReLUs. "tuned" is the Flax default with factors measured for the optimizer,
"tuned, orthogonal" the same on orthogonal draws of `unit_params`.
Loss: the mean over the last 20 steps and the seeds. Accuracy: on all digits, after the
last step, at the rate with the least loss.

Tied are losses within 10% of the best one, or within its standard deviation over seeds.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.nn import initializers

import einit_jax as ei
from einit_jax._demo import cross_entropy, digits
from tests.benchmarks.report import parser_of, show
from tests.benchmarks.training import families, transfer

NETWORKS: dict[str, nn.Module] = {
    **{
        f"{name} MLP {depth}": families.Chain(depth, activation=name)
        for name, depth in product(families.ACTIVATIONS, (16, 50, 100))
    },
    "CNN 20": families.Convolutional(20),
    "transformer 12": families.Transformer(12, 32, norm=False),
    "ResNet 8": families.ResidualConvolutional(8),
}
RELU = ("relu", "CNN", "ResNet")
PLAIN, TUNED, ORTHOGONAL = transfer.PLAIN, "tuned", "tuned, orthogonal"
DRAWS: dict[str, Callable[[float], Callable]] = {
    "Kaiming": lambda gain: initializers.he_normal(),
    "Glorot": lambda gain: initializers.glorot_uniform(),
    "orthogonal": initializers.orthogonal,
}
METHODS = [PLAIN, *DRAWS, TUNED, ORTHOGONAL]
GRID, TUNED_GRID, TIE = (-6, 3), (-4, 5), 0.1


def batch_of(name: str) -> int:
    return transfer.TOKENS_BATCH if name.startswith("transformer") else transfer.BATCH


def drawn(path: tuple, array: jax.Array, initializer: Callable, key: Any) -> jax.Array:
    """A kernel drawn anew, as the matrix that its layer multiplies by."""
    if path[-1] != "kernel":
        return array
    shape = array.shape
    if len(shape) == 3:  # attention, whose layer `out` alone contracts two axes
        inputs = 2 if path[-2] == "out" else 1
        shape = (prod(shape[:inputs]), prod(shape[inputs:]))
    return initializer(key, shape, array.dtype).reshape(array.shape)


def redrawn(initializer: Callable, params: Mapping, key: jax.Array) -> dict:
    """The parameters with kernels of another initializer; biases stay what they are."""
    flat = flatten_dict(params)
    keys = jax.random.split(key, len(flat))
    pairs = zip(flat.items(), keys, strict=True)
    return unflatten_dict({p: drawn(p, v, initializer, k) for (p, v), k in pairs})


def tuned(name: str, optimizer: str, params: Any, key: jax.Array) -> dict:
    """The scales for this optimizer, measured on one batch."""
    data = digits()
    rows = jax.random.permutation(key, len(data.labels))[: batch_of(name)]
    loss = lambda logits: cross_entropy(logits, data.labels[rows])
    rule = transfer.OPTIMIZERS[optimizer](1.0)
    return ei.tune(NETWORKS[name], params, data.images[rows], loss, optimizer=rule)


def starts(name: str, optimizer: str, method: str, seeds: int) -> dict:
    """The variables of all seeds, along a first axis."""
    image, keys = digits().images[:1], jax.vmap(jax.random.key)(jnp.arange(seeds))
    draw = lambda key: NETWORKS[name].init(key, image)["params"]
    params = jax.jit(jax.vmap(draw))(keys)
    if method in DRAWS:  # not jitted: that many QR decompositions compile for minutes
        initializer = DRAWS[method](2**0.5 if name.startswith(RELU) else 1.0)
        params = jax.vmap(partial(redrawn, initializer))(params, keys)
    if method == ORTHOGONAL:
        draw = partial(ei.unit_params, draw="orthogonal")
        params = jax.vmap(draw)(params, keys)
    if not method.startswith(TUNED):
        return {"params": params}
    tune = jax.jit(jax.vmap(partial(tuned, name, optimizer)))
    return {"params": params, "scales": tune(params, keys)}


def learner(name: str, optimizer: str, variables: Mapping, rate: jax.Array) -> tuple:
    """The logits, of parameters and images, and what updates the parameters."""
    apply, tx = NETWORKS[name].apply, transfer.OPTIMIZERS[optimizer](rate)
    if "scales" in variables:
        apply = ei.scaled(NETWORKS[name]).apply
        tx = optax.chain(tx, ei.scale_updates(variables["scales"]))
    return lambda params, x: apply({**variables, "params": params}, x), tx


@cache
def training(name: str, optimizer: str, steps: int) -> Callable:
    """A function of variables and keys by seed, and rates: losses and accuracies."""
    images, labels = digits()

    def train(variables, key, rate):
        logits, tx = learner(name, optimizer, variables, rate)

        def step(carry, rows):
            params, state = carry
            loss = lambda p: cross_entropy(logits(p, images[rows]), labels[rows])
            value, gradient = jax.value_and_grad(loss)(params)
            change, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), value

        first = (variables["params"], tx.init(variables["params"]))
        rows = jax.random.randint(key, (steps, batch_of(name)), 0, len(labels))
        (params, _), seen = jax.lax.scan(step, first, rows)
        right = logits(params, images).argmax(-1) == labels
        return jnp.mean(seen[-transfer.TAIL :]), jnp.mean(right)

    return jax.jit(jax.vmap(jax.vmap(train, (None, None, 0)), (0, 0, None)))


def row(name: str, optimizer: str, method: str, given: Any) -> dict:
    """A network at its best learning rate, as a record."""
    variables = starts(name, optimizer, method, given.seeds)
    train = training(name, optimizer, given.steps)
    keys = jax.random.split(jax.random.key(17), given.seeds)
    right: dict[float, float] = {}

    def run(rates: np.ndarray) -> np.ndarray:
        # as many at a time as `search` adds, so that one compiled program does for all
        few = rates.astype(np.float32).reshape(-1, transfer.BEYOND)
        found = zip(*(train(variables, keys, part) for part in few), strict=True)
        losses, accuracies = map(np.hstack, found)
        right.update(zip(np.log2(rates), accuracies.mean(0), strict=True))
        return losses

    ends, shift = (
        TUNED_GRID if method.startswith(TUNED) else GRID,
        transfer.SHIFT[optimizer],
    )
    found = transfer.search(run, range(*(end + shift for end in ends)))
    losses = found.known[found.best]
    record = {"network": name, "optimizer": optimizer, "method": method}
    record |= {"best": found.best, "edge": found.edge}
    record |= {"accuracy": float(right[found.best])}
    return record | {"loss": float(np.mean(losses)), "spread": float(np.std(losses))}


def ranked(records: list[dict]) -> Iterator[dict[str, str]]:
    """A line for each record, those of one network and optimizer together."""
    groups: dict[tuple, list[dict]] = {}
    for r in records:
        groups.setdefault((r["network"], r["optimizer"]), []).append(r)
    for group in groups.values():
        top = min(group, key=lambda r: r["loss"] if np.isfinite(r["loss"]) else np.inf)
        limit = max((1 + TIE) * top["loss"], top["loss"] + top["spread"])
        for r in group:
            tied = "tied" if r["loss"] <= limit else ""
            yield {name: r[name] for name in ("network", "optimizer", "method")} | {
                "log2 best rate": f"{r['best']}{'*' if r['edge'] else ''}",
                "loss": f"{r['loss']:.3g}",
                "spread": f"{r['spread']:.2g}",
                "accuracy": f"{r['accuracy']:.3f}",
                "": "best" if r is top else tied,
            }


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", metavar="network", default=[*NETWORKS])
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--optimizers", nargs="*", default=["Adam", "SGD"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="append records as JSON lines")
    parser.add_argument("--read", type=Path, nargs="*", help="show records of --out")
    given = parser.parse_args(words)
    if given.tiny:
        NETWORKS["tanh MLP 3"] = families.Chain(3, 16, "tanh")
        given.networks, given.optimizers = ["tanh MLP 3"], ["SGD"]
        given.methods, given.seeds, given.steps = ["orthogonal", ORTHOGONAL], 1, 2
    texts = [path.read_text() for path in given.read or ()]
    records = [json.loads(line) for text in texts for line in text.splitlines()]
    todo = product(given.networks, given.optimizers, given.methods)
    for name, optimizer, method in () if given.read else todo:
        records.append(row(name, optimizer, method, given))
        if given.out:
            with given.out.open("a") as file:
                print(json.dumps(records[-1]), file=file)
    show("best learning rate (* at an end of the grid), loss there", ranked(records))


if __name__ == "__main__":
    main()
