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
from tests.benchmarks.training.one_rate import TUNED, apply_of, started

RATE = 0.5


def before(decay: Any, scales: Mapping) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(decay),
        ei.scale_updates(scales),
        optax.scale_by_learning_rate(RATE),
    )


def behind(decay: Any, scales: Mapping) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_adam(),
        ei.scale_updates(scales),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(RATE),
    )


WAYS = {"before": (before, range(-4, 5)), "behind": (behind, range(-11, -2))}
"""Each with log2 of the decays that are tried."""


def learning(kind: Kind, variables: Mapping, way: Callable, steps: int) -> Callable:
    """A function of decays and a key: the losses on what is held out."""
    learn, test = kind.data()
    apply = apply_of(kind, variables)

    def loss(params, examples):
        logits = apply({**variables, "params": params}, examples.inputs)
        return cross_entropy(logits, examples.labels)

    def train(decay, key):
        tx = way(decay, variables["scales"])

        def step(carry, rows):
            params, state = carry
            gradient = jax.grad(loss)(params, learn.at(rows))
            change, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), None

        rows = jax.random.randint(key, (steps, kind.batch), 0, len(learn.labels))
        first = (variables["params"], tx.init(variables["params"]))
        (params, _), _ = jax.lax.scan(step, first, rows)
        return loss(params, test)

    return jax.jit(jax.vmap(train, (0, None)))


def rows(widths: Sequence[int], seeds: int, steps: int) -> Iterator[dict[str, str]]:
    """A line for each width and way: the best decay, and the held-out losses."""
    for width in widths:
        kind = Kind(Sums(width), sums)
        for name, (way, decays) in WAYS.items():
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
                "decay": name,
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
