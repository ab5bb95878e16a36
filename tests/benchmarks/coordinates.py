"""How much each layer and the logits change in the first steps, over widths.

    JAX_PLATFORMS=cpu python -m tests.benchmarks.coordinates [--optimizers SGD Adam]

The coordinate check of mup (Yang and Hu, arXiv 2011.14522): the change of outputs after
1 and 5 steps on one batch of digits, tanh and ReLU MLPs of 4 and 8 layers and a
residual MLP of 2 blocks. Learning rates are those of the optimizer at every width.
"Small head" aims at readouts of rms 1 / sqrt(width), as mup does; the others at 1.
"""

import argparse
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import cross_entropy, digits
from tests.benchmarks.families import Chain, Residual, initialized
from tests.benchmarks.report import show, verdict
from tests.benchmarks.transfer import OPTIMIZERS

WIDTHS = (64, 128, 256, 512, 1024)
FLAT = 1.5
BATCH, STEPS = 64, (1, 5)
RATES = {"SGD": (2.0**-6, 2.0**-6), "Adam": (2.0**-12, 2.0**-6)}
"""Of each optimizer: for a network as it is, and for a tuned one."""
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "tanh 4": lambda width: Chain(4, width, "tanh"),
    "relu 4": lambda width: Chain(4, width, "relu"),
    "relu 8": lambda width: Chain(8, width, "relu"),
    "residual 2": lambda width: Residual(2, width),
}
METHODS: dict[str, Callable[[int], dict | None]] = {
    "Flax default": lambda width: None,
    "like original": lambda width: {"like": "original"},
    "defaults": lambda width: {},
    "defaults, small head": lambda width: {"targets": {"head": width**-0.5, "*": 1.0}},
}


def outputs(apply: Callable, variables: dict, x: jax.Array) -> dict[str, jax.Array]:
    """The output of each layer, by path."""
    found = {}

    def note(proceed, args, kwargs, context):
        y = proceed(*args, **kwargs)
        found["/".join(context.module.path)] = y
        return y

    with nn.intercept_methods(note):
        apply(variables, x)
    return {name: y for name, y in found.items() if name}


def changes(
    model: nn.Module, options: dict | None, optimizer: str, seed: int
) -> dict[tuple[str, int], float]:
    """The rms change of each layer's output, over the rate, after each of STEPS."""
    data = digits()
    rows = jax.random.permutation(jax.random.key(seed), len(data.labels))[:BATCH]
    x, labels = data.images[rows], data.labels[rows]
    params = initialized(model, x, seed)
    loss = lambda logits: cross_entropy(logits, labels)
    rate = RATES[optimizer][options is not None]
    apply, extra, tx = model.apply, {}, OPTIMIZERS[optimizer](rate)
    if options is not None:
        options = {"optimizer": OPTIMIZERS[optimizer](1.0), **options}
        extra = {"scales": ei.tune(model, params, x, loss, **options)}
        apply = ei.scaled(model).apply
        tx = optax.chain(tx, ei.scale_updates(extra["scales"]))

    @jax.jit
    def moved(params):
        before = outputs(apply, {"params": params, **extra}, x)
        state, found = tx.init(params), {}
        for i in range(1, max(STEPS) + 1):
            of = lambda p: loss(apply({"params": p, **extra}, x))
            step, state = tx.update(jax.grad(of)(params), state, params)
            params = optax.apply_updates(params, step)
            after = outputs(apply, {"params": params, **extra}, x)
            size = lambda a, b: jnp.sqrt(jnp.mean(jnp.square(a - b))) / rate
            found |= {(n, i): size(after[n], before[n]) for n in before if i in STEPS}
        return found

    return {key: float(value) for key, value in moved(params).items()}


def table(
    name: str, method: str, optimizer: str, seeds: int, widths: list[int]
) -> Iterator[dict[str, str]]:
    """A row a layer: the change over the learning rate, widths side by side."""
    found: dict[tuple[str, int], list[float]] = {}
    for width in widths:
        model, options = NETWORKS[name](width), METHODS[method](width)
        runs = [changes(model, options, optimizer, seed) for seed in range(seeds)]
        for layer in runs[0]:
            mean = float(np.mean([run[layer] for run in runs]))
            found.setdefault(layer, []).append(mean)
    for (layer, steps), values in found.items():
        yield {
            name: f"{method}, {optimizer}: {layer}",
            "steps": f"{steps}",
            **{str(w): f"{v:.3g}" for w, v in zip(widths, values, strict=True)},
            f"largest / smallest <= {FLAT}": verdict(max(values) / min(values), FLAT),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", metavar="network", default=[*NETWORKS])
    parser.add_argument("--optimizers", nargs="*", default=[*RATES])
    parser.add_argument("--methods", nargs="*", default=[*METHODS])
    parser.add_argument("--widths", nargs="*", type=int, default=[*WIDTHS])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    for name in given.networks:
        for optimizer in given.optimizers:
            run = lambda m, n=name, o=optimizer: table(
                n, m, o, given.seeds, given.widths
            )
            show(
                "change of outputs, over the rate",
                [r for m in given.methods for r in run(m)],
            )


if __name__ == "__main__":
    main()
