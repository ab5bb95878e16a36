"""Whether one weight decay serves all widths: before the factors of updates, or behind.

    python -m tests.benchmarks.training.decay [--widths 32 128 512] [--steps 1000]

Sums of two numbers modulo 23, a fifth of them held out, by Adam at one learning rate;
without decay the network learns them by heart. "before" is what `optax.adamw` does: its
decay is multiplied by each unit's factor `update`, which falls with the width. "behind"
leaves decay as it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import cross_entropy
from tests.benchmarks.report import parser_of, show
from tests.benchmarks.training.kinds import Kind, Sums, sums
from tests.benchmarks.training.one_rate import TUNED, apply_of, started, trained

RATE = 0.5


WAYS = {"before": range(-4, 5), "behind": range(-11, -2)}
"""Where decay is, with log2 of those that are tried."""


def decayed(way: str, decay: Any, scales: Mapping) -> optax.GradientTransformation:
    """Adam with decay before the factors of updates, or behind them."""
    middle = [optax.add_decayed_weights(decay), ei.scale_updates(scales)]
    ordered = middle if way == "before" else middle[::-1]
    last = optax.scale_by_learning_rate(RATE)
    return optax.chain(optax.scale_by_adam(), *ordered, last)


def learning(kind: Kind, variables: Mapping, way: str, steps: int) -> Callable:
    """A function of decays and a key: the losses on what is held out."""
    _, test = kind.data()
    apply = apply_of(kind, variables)

    def train(decay, key):
        tx = decayed(way, decay, variables["scales"])
        params, _ = trained(kind, variables, tx, key, steps=steps)
        logits = apply({**variables, "params": params}, test.inputs)
        return cross_entropy(logits, test.labels)

    return jax.jit(jax.vmap(train, (0, None)))


def rows(widths: Sequence[int], seeds: int, steps: int) -> Iterator[dict[str, str]]:
    """A line for each width and way: the best decay, and the held-out losses."""
    for width in widths:
        kind = Kind(Sums(width), sums)
        for way, decays in WAYS.items():
            found = []
            for seed in range(seeds):
                variables = started(kind, TUNED, seed, "Adam")
                run = learning(kind, variables, way, steps)
                key = jax.random.fold_in(jax.random.key(17), seed)
                found.append(run(2.0 ** jnp.array(decays, jnp.float32), key))
            losses = np.nan_to_num(np.mean(found, 0), nan=np.inf)
            best = int(losses.argmin())
            yield {
                "width": str(width),
                "decay": way,
                "log2 of the best": str(decays[best]),
                "held-out loss there": f"{losses[best]:.3g}",
                "with hardly any": f"{losses[0]:.3g}",
                "half, twice as much": f"{losses[max(best - 1, 0)]:.2g}, "
                f"{losses[min(best + 1, len(losses) - 1)]:.2g}",
            }


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--widths", type=int, nargs="*", default=[32, 64, 128, 256])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=1000)
    given = parser.parse_args(words)
    if given.tiny:
        given.widths, given.seeds, given.steps = [8], 1, 2
    show("weight decay", rows(given.widths, given.seeds, given.steps))


if __name__ == "__main__":
    main()
