"""`find_learning_rate` and the range test: what networks learn at the rates they tell.

    python -m tests.benchmarks.training.rate_search [network ...]

Digits, batches of 64, Adam, as Flax draws the weights and tuned. The range test (one
run of as many steps, the rate raised from the least of the grid to the largest) tells
the rate of the steepest descent of its smoothed loss, and a tenth of that of the least.
Each is then trained at from the start; the column is the loss at its end over that at
the best rate of the grid, with the rate in brackets. "-" is a run that diverged.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import MLP, cross_entropy, digits
from tests.benchmarks.report import parser_of
from tests.benchmarks.training import families
from tests.benchmarks.training.initializers import NETWORKS

BATCH, SMOOTHED = 64, 0.9
GRID = tuple(2.0**e for e in range(-16, 4))


class Job(NamedTuple):
    """A model to train, on batches of digits."""

    given: tuple
    train: Callable
    scales: Any


def job_of(name: str, tuned: bool) -> Job:
    model, data = NETWORKS[name], digits()

    def train(key):
        rows = jax.random.randint(key, (BATCH,), 0, len(data.labels))
        return data.images[rows], {"labels": data.labels[rows]}

    x, labels = train(jax.random.key(0))
    params = families.initialized(model, x, 0)
    given = (model, params, x, partial(cross_entropy, **labels))
    scales = ei.tune(*given, optimizer=optax.adam) if tuned else None
    return Job(given, train, scales)


def searched(job: Job, steps: int, rates: Sequence[float], **options: Any) -> Any:
    options |= {"train": job.train, "scales": job.scales, "learning_rates": rates}
    return ei.find_learning_rate(*job.given, steps=steps, **options)


def by_range_test(job: Job, steps: int) -> dict[str, float]:
    """What the range test tells, by both of its customs."""
    rising = optax.exponential_decay(GRID[0], steps, GRID[-1] / GRID[0])
    ramp = lambda rate: optax.adam(lambda count: rate * rising(count))
    losses = searched(job, steps, (1.0,), optimizer=ramp).losses[0, 0]
    smooth, seen = 0.0, []
    for t, loss in enumerate(losses[np.isfinite(losses)], 1):
        smooth = SMOOTHED * smooth + (1 - SMOOTHED) * loss
        seen.append(smooth / (1 - SMOOTHED**t))
    least = int(np.argmin(seen))
    early = len(seen) // 10  # what falls before is noise
    steepest = early + int(np.argmin(np.gradient(seen)[early : max(least, early + 1)]))
    rate = lambda t: float(rising(t))
    return {"steepest": rate(steepest), "least / 10": rate(least) / 10}


def row_of(name: str, tuned: bool, *, short: int, steps: int) -> str:
    """One network: what it learns at each rate, over what it learns at the best."""
    job = job_of(name, tuned)
    told = {"find_learning_rate": searched(job, short, GRID).best}
    told |= by_range_test(job, short)
    truth = searched(job, steps, [*GRID, *told.values()])
    final = dict(zip(truth.rates, truth.final.mean(0), strict=True))
    best = min(GRID, key=lambda rate: final[rate])
    cells = [f"{final[best]:.3g} (2^{np.log2(best):.0f})"]
    for rate in told.values():
        ratio = final[rate] / final[best]
        shown = f"{ratio:.2g}" if np.isfinite(ratio) else "-"
        cells.append(f"{shown} (2^{np.log2(rate):.1f})")
    start = "tuned" if tuned else "as it is"
    return " | ".join(["| " + name, start, *cells]) + " |"


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", metavar="network", default=[*NETWORKS])
    parser.add_argument("--short", type=int, default=100, help="steps of the searches")
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args(words)
    if given.tiny:
        NETWORKS["MLP 3"] = MLP(3, 16)
        given.networks, given.short, given.steps = ["MLP 3"], 20, 20
    print("| | start | best | find_learning_rate | steepest | least / 10 |")
    print("|---|---|---|---|---|---|")
    for name in given.networks:
        for tuned in (False, True):
            row = row_of(name, tuned, short=given.short, steps=given.steps)
            print(row, flush=True)


if __name__ == "__main__":
    main()
