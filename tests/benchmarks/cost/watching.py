"""What watching a training step costs, in training steps of the plain model.

    python -m tests.benchmarks.cost.watching [--rounds 100]

A step is jitted as a whole: `value_and_grad`, Adam, `apply_updates`, the update of the
statistics; the state of the statistics is donated. "every" reads in each step; "off" is
a step in which taps are switched off; "input" reads inputs in each step. Calls take
turns, a different one first each round; ratios are medians of those within a round.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import optax

import einit_jax as ei
from tests.benchmarks.cost.carrying import in_turn, training_step
from tests.benchmarks.cost.networks import Plain, Scanned, ViT, dense, vision
from tests.benchmarks.report import parser_of, show, verdict
from tests.support.cases import Job

WATCH, OFF, RATE, NEVER = 1.15, 1.01, 1e-3, 10**6
KEY = jax.random.key(2)
JOBS = {
    "MLP 256x16, batch 64": lambda: dense(Plain(16, 256)),
    "MLP 256x16, batch 512": lambda: dense(Plain(16, 256), 512),
    "scanned 256x16, batch 256": lambda: dense(Scanned(16, 256), 256),
    "small ViT": lambda: vision(ViT()),
}
TINY = {"MLP 16x3": lambda: dense(Plain(3, 16), 8)}


def watched(job: Job, **options: Any) -> Callable:
    """A call that takes a step and reads; it keeps the state of the statistics."""
    model, params, loss_fn = job.model, job.params, job.loss_fn
    x, tx = job.input_fn(jax.random.key(1)), optax.adam(RATE)
    stats = ei.activation_stats(model, **options)
    held, start = [stats.init({"params": params}, x)], tx.init(params)

    @partial(jax.jit, donate_argnums=2)
    def step(params: Any, opt_state: Any, state: Any, x: jax.Array) -> tuple:
        def loss(p, taps):
            return loss_fn(stats.apply({"params": p, "taps": taps}, x), key=KEY)

        of = jax.value_and_grad(loss, argnums=(0, 1))
        value, (gradient, seen) = of(params, state.taps)
        change, opt_state = tx.update(gradient, opt_state, params)
        params = optax.apply_updates(params, change)
        return params, opt_state, value, stats.update(state, seen)

    def call() -> Any:
        *rest, held[0] = step(params, start, held[0], x)
        return rest

    return call


def row(name: str, job: Job, rounds: int) -> dict[str, str]:
    x, tx = job.input_fn(jax.random.key(1)), optax.adam(RATE)
    plain = training_step(job.model.apply, tx, job.loss_fn)
    start = job.params, tx.init(job.params), {}, x
    calls = {
        "plain": partial(plain, *start),
        "every": watched(job),
        "off": watched(job, every=NEVER),
        "input": watched(job, of="input"),
    }
    times = in_turn(calls, rounds)
    paired = {k: statistics.median(t[k] / t["plain"] for t in times) for k in calls}
    return {
        "training step": name,
        "plain": f"{1e3 * statistics.median(t['plain'] for t in times):.2f} ms",
        f"every <= {WATCH}": verdict(paired["every"], WATCH),
        f"off <= {OFF}": verdict(paired["off"], OFF),
        f"input <= {WATCH}": verdict(paired["input"], WATCH),
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    given = parser.parse_args(words)
    rounds, jobs = (2, TINY) if given.tiny else (given.rounds, JOBS)
    rows = (row(name, build(), rounds) for name, build in jobs.items())
    show("training steps, watched over plain", rows)


if __name__ == "__main__":
    main()
