"""What carrying the scales costs in training, in training steps of the plain model.

    python -m tests.benchmarks.cost.carrying [--rounds 200]

A step is jitted as a whole: `value_and_grad`, Adam, `apply_updates`, nothing donated.
"scaled" carries the scales, "updates" has `scale_updates` in the optimizer as well, and
"folded" is the plain model's own program with the parameters that `fold` returns. Calls
take turns, a different one first each round. Ratios are over the plain model's step:
the median of those within a round, and the ratio of the medians.
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import optax

import einit_jax as ei
from tests.benchmarks.cost.networks import Plain, ViT, dense, vision
from tests.benchmarks.cost.timing import seconds
from tests.benchmarks.report import parser_of, show, verdict
from tests.support.cases import Job

CARRY, FOLDED, RATE = 1.03, 1.0, 1e-3
KEY = jax.random.key(2)


def training_step(apply: Callable, tx: Any, loss_fn: Callable) -> Callable:
    """One jitted step, of parameters, the optimizer's state, other variables and x."""

    @jax.jit
    def step(params: Any, state: Any, scales: dict, x: jax.Array) -> tuple:
        loss = lambda p: loss_fn(apply({"params": p, **scales}, x), key=KEY)
        value, gradient = jax.value_and_grad(loss)(params)
        change, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, change), state, value

    return step


def contenders(job: Job) -> dict[str, Callable]:
    """The steps, ready to run."""
    model, params, loss_fn = job.model, job.params, job.loss_fn
    x, adam = job.input_fn(jax.random.key(1)), optax.adam(RATE)
    scales = ei.tune(model, params, x, loss_fn, optimizer=optax.adam(1.0))
    folded, carried = ei.fold(model, params, scales, x), {"scales": scales}
    chained = optax.chain(adam, ei.scale_updates(scales))
    apply = ei.scaled(model).apply
    plain = training_step(model.apply, adam, loss_fn)
    scaled = training_step(apply, adam, loss_fn)
    updates = training_step(apply, chained, loss_fn)
    return {
        "plain": partial(plain, params, adam.init(params), {}, x),
        "scaled": partial(scaled, params, adam.init(params), carried, x),
        "updates": partial(updates, params, chained.init(params), carried, x),
        "folded": partial(plain, folded, adam.init(folded), {}, x),
    }


def in_turn(calls: dict[str, Callable], rounds: int) -> list[dict[str, float]]:
    """The seconds of each call, round by round."""
    for call in calls.values():
        jax.block_until_ready(call())
    names = list(calls)
    turns = [names[i:] + names[:i] for i in range(len(names))]
    return [
        {name: seconds(calls[name]) for name in turns[i % len(turns)]}
        for i in range(rounds)
    ]


def row(name: str, job: Job, rounds: int) -> dict[str, str]:
    times = in_turn(contenders(job), rounds)
    middle = {k: statistics.median(t[k] for t in times) for k in times[0]}
    paired = {k: statistics.median(t[k] / t["plain"] for t in times) for k in middle}
    ratio = {k: f"{middle[k] / middle['plain']:.3f}" for k in middle}
    return {
        "model": name,
        "step ms": f"{1e3 * middle['plain']:.2f}",
        f"scaled <= {CARRY}": verdict(paired["scaled"], CARRY, ".3f"),
        "of medians": ratio["scaled"],
        "updates": f"{paired['updates']:.3f}",
        "of medians ": ratio["updates"],
        f"folded = {FOLDED:.2f}": verdict(round(paired["folded"], 2), FOLDED),
        "of medians  ": ratio["folded"],
    }


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args(words)
    jobs = (
        {"MLP 3": dense(Plain(3, 16), 8)}
        if given.tiny
        else {"MLP 16": dense(Plain(16)), "ViT": vision(ViT())}
    )
    rounds = 2 if given.tiny else given.rounds
    rows = [row(name, job, rounds) for name, job in jobs.items()]
    show("a training step, over that of the plain model", rows)


if __name__ == "__main__":
    main()
