"""How much each layer and the logits change in the first step, over widths.

    JAX_PLATFORMS=cpu python -m tests.benchmarks.coordinates [--seeds 3]

The coordinate check of mup (Yang and Hu, arXiv 2011.14522): one step of SGD at learning
rate 2^-6 on digits, the same batch before and after, tanh and ReLU MLPs of 4 layers and
a residual MLP of 2 blocks. "Small head" aims at readouts of rms 1 / sqrt(width), as mup
does; the other units at 1.
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

WIDTHS = (64, 128, 256, 512, 1024)
FLAT_FROM, FLAT = 64, 1.5
BATCH = 64
RATE = 2.0**-6
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "tanh 4": lambda width: Chain(4, width, "tanh"),
    "relu 4": lambda width: Chain(4, width, "relu"),
    "residual 2": lambda width: Residual(2, width),
}
METHODS: dict[str, Callable[[int], dict | None]] = {
    "Flax default": lambda width: None,
    "like original": lambda width: {"like": "original"},
    "defaults": lambda width: {},
    "defaults, small head": lambda width: {"targets": {"head": width**-0.5, "*": 1.0}},
}


def changes(model: nn.Module, options: dict | None, seed: int) -> dict[str, float]:
    """The rms change of each layer's output by one step."""
    data = digits()
    rows = jax.random.permutation(jax.random.key(seed), len(data.labels))[:BATCH]
    x, labels = data.images[rows], data.labels[rows]
    params = initialized(model, x, seed)
    loss = lambda logits: cross_entropy(logits, labels)
    apply, extra = model.apply, {}
    if options is not None:
        extra = {"scales": ei.tune(model, params, x, loss, **options)}
        apply = ei.scaled(model).apply

    def outputs(params):
        found = {}

        def note(proceed, args, kwargs, context):
            y = proceed(*args, **kwargs)
            found["/".join(context.module.path)] = y
            return y

        with nn.intercept_methods(note):
            apply({"params": params, **extra}, x)
        return found

    @jax.jit
    def moved(params):
        gradient = jax.grad(lambda p: loss(apply({"params": p, **extra}, x)))(params)
        rule = optax.sgd(RATE)
        step, _ = rule.update(gradient, rule.init(params))
        after, before = outputs(optax.apply_updates(params, step)), outputs(params)
        size = lambda a, b: jnp.sqrt(jnp.mean(jnp.square(a - b)))
        return {name: size(after[name], before[name]) for name in before if name}

    return {name: float(value) for name, value in moved(params).items()}


def table(name: str, method: str, seeds: int) -> Iterator[dict[str, str]]:
    """A row a layer: the change over the learning rate, widths side by side."""
    found: dict[str, list[float]] = {}
    for width in WIDTHS:
        model = NETWORKS[name](width)
        options = METHODS[method](width)
        runs = [changes(model, options, seed) for seed in range(seeds)]
        for layer in runs[0]:
            mean = float(np.mean([run[layer] for run in runs])) / RATE
            found.setdefault(layer, []).append(mean)
    for layer, values in found.items():
        flat = [v for w, v in zip(WIDTHS, values, strict=True) if w >= FLAT_FROM]
        yield {
            name: f"{method}: {layer}",
            **{str(w): f"{v:.3g}" for w, v in zip(WIDTHS, values, strict=True)},
            f"largest / smallest from {FLAT_FROM} <= {FLAT}": verdict(
                max(flat) / min(flat), FLAT
            ),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    for name in NETWORKS:
        found = [row for m in METHODS for row in table(name, m, given.seeds)]
        show("change by one step, over its rate", found)


if __name__ == "__main__":
    main()
