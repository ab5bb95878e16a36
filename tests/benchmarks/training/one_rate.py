"""Whether one learning rate serves networks of many kinds.

    python -m tests.benchmarks.training.one_rate [network ...] [--starts start ...]
    python -m tests.benchmarks.training.one_rate --table records.jsonl [...]

Every network trains at powers of two, in units of `scale_updates` where it is tuned.
"advised" is `looks_linear` and `tune`, "tune" the same on Flax's own draw; "plain" is
Flax's draw and the optimizer as it is, "plain, fast tokens" the same with updates 16
times larger for parameters and embeddings of tokens.

Each tuned start also tells what its first step does at many sizes. From that the rules
of `RULES` predict the best rate; the table shows how far each rule is off, in octaves,
and what is lost at one common rate, in units of that rule. With `--out` each start and
seed is a line of JSON; what a file has is not run again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import cross_entropy
from tests.benchmarks.report import parser_of, read_records, show, written
from tests.benchmarks.training.kinds import KINDS, Kind
from tests.benchmarks.training.rate_rules import (
    WAYS,
    curves,
    table_of_networks,
    table_of_rules,
)
from tests.benchmarks.training.transfer import OPTIMIZERS

TAIL, FASTER = 20, 16.0
PLAIN, FAST, TUNED, ADVISED = "plain", "plain, fast tokens", "tune", "advised"
STARTS = (PLAIN, FAST, TUNED, ADVISED)
RUN = ("network", "start", "seed", "optimizer", "steps", "schedule")
SCHEDULES: dict[str, Callable] = {
    "constant": lambda rate, steps: rate,
    "cosine": lambda rate, steps: optax.cosine_decay_schedule(rate, steps),
}
RATES = {PLAIN: (-13, -4), FAST: (-14, -5), TUNED: (-5, 4), ADVISED: (-5, 4)}
"""For Adam; others begin higher or lower, as they are and tuned:"""
SHIFTS = {
    "Adam": (0, 0),
    "AdamW": (0, 0),
    "Lion": (-2, -2),
    "momentum": (4, -1),
    "Muon": (1, -2),
    "SGD": (7, 3),
}


def is_token(path: tuple) -> bool:
    """Whether a parameter is of tokens, their positions or embeddings."""
    names = {str(getattr(key, "key", key)) for key in path}
    return bool(names & {"token", "positions", "characters", "numbers"})


def optimizer_of(name: str, start: str, rate: Any, scales: Any) -> Any:
    tx = OPTIMIZERS[name](rate)
    if start == FAST:
        faster = lambda updates: jax.tree.map_with_path(
            lambda path, u: FASTER * u if is_token(path) else u, updates
        )
        return optax.chain(tx, optax.stateless(lambda updates, _: faster(updates)))
    return tx if scales is None else optax.chain(tx, ei.scale_updates(scales))


def started(kind: Kind, start: str, seed: int, optimizer: str) -> dict:
    """Variables to train from."""
    learn, _ = kind.data()
    key = jax.random.key(seed)
    rows = jax.random.permutation(jax.random.fold_in(key, 1), len(learn.labels))
    batch = learn.at(rows[: kind.batch])
    variables = dict(jax.jit(kind.model.init)(key, batch.inputs))
    params = variables.pop("params")
    loss = partial(cross_entropy, labels=batch.labels)
    given = (kind.model, params, batch.inputs, loss)
    rule, how = OPTIMIZERS[optimizer], {"key": key, "collections": variables}
    if start == ADVISED:
        params, found = ei.looks_linear(*given[:3], with_report=True, **how)
        how["targets"], given = found.targets(), (given[0], params, *given[2:])
    if start in (ADVISED, TUNED):
        variables["scales"] = ei.tune(*given, optimizer=rule, **how)
    return {"params": params, **variables}


def apply_of(kind: Kind, variables: Mapping) -> Callable:
    """A function of variables and inputs; what it would write is thrown away."""
    model = ei.scaled(kind.model) if "scales" in variables else kind.model
    return lambda variables, x: model.apply(variables, x, mutable=["batch_stats"])[0]


def trained(
    kind: Kind, variables: Mapping, tx: Any, key: jax.Array, *, steps: int
) -> tuple[Any, jax.Array]:
    """The parameters after training, and the loss of each step."""
    learn, _ = kind.data()
    apply = apply_of(kind, variables)

    def loss(params, batch):
        logits = apply({**variables, "params": params}, batch.inputs)
        return cross_entropy(logits, batch.labels)

    def step(carry, rows):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params, learn.at(rows))
        change, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, change), state), value

    rows = jax.random.randint(key, (steps, kind.batch), 0, len(learn.labels))
    first = (variables["params"], tx.init(variables["params"]))
    (params, _), seen = jax.lax.scan(step, first, rows)
    return params, seen


@lru_cache(2)
def training(
    name: str, start: str, optimizer: str, steps: int, schedule: str
) -> Callable:
    """A function of variables, a key and rates: the loss, and what is held out."""
    kind = KINDS[name]
    _, test = kind.data()
    rate_at = SCHEDULES[schedule]

    def train(variables, key, rate):
        apply = apply_of(kind, variables)
        scales = variables.get("scales")
        tx = optimizer_of(optimizer, start, rate_at(rate, steps), scales)

        params, seen = trained(kind, variables, tx, key, steps=steps)
        logits = apply({**variables, "params": params}, test.inputs)
        right = jnp.mean(logits.argmax(-1) == test.labels)
        return jnp.mean(seen[-TAIL:]), cross_entropy(logits, test.labels), right

    return jax.jit(jax.vmap(train, (None, None, 0)))


def outputs_of_units(captured: Mapping, scales: Mapping) -> list[jax.Array]:
    """What was captured of modules that have factors."""
    if "output" in scales:
        return jax.tree.leaves(captured["__call__"])
    pairs = [(captured[n], own) for n, own in scales.items() if n in captured]
    return [t for inner, own in pairs for t in outputs_of_units(inner, own)]


def effects(kind: Kind, variables: dict, optimizer: str, seed: int) -> dict:
    """What the first step does, at many sizes: to units' outputs, logits and losses."""
    learn, _ = kind.data()
    key = jax.random.fold_in(jax.random.key(seed), 1)
    rows = jax.random.permutation(key, len(learn.labels))
    here, there = (learn.at(rows[i * kind.batch :][: kind.batch]) for i in range(2))
    tx = optimizer_of(optimizer, TUNED, 1.0, variables["scales"])
    model, params = ei.scaled(kind.model), variables["params"]
    apply = apply_of(kind, variables)
    with_params = lambda params: {**variables, "params": params}

    def loss(params, batch=here):
        return cross_entropy(apply(with_params(params), batch.inputs), batch.labels)

    def outputs(params):
        seen = model.apply(
            with_params(params),
            here.inputs,
            capture_intermediates=True,
            mutable=["batch_stats", "intermediates"],
        )
        return outputs_of_units(seen[1]["intermediates"], variables["scales"]), seen[0]

    step, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    rms = lambda t: jnp.sqrt(jnp.mean(jnp.square(t)))
    units, logits = outputs(params)

    def after(way):
        moved = optax.apply_updates(params, jax.tree.map(lambda t: way * t, step))
        now, others = outputs(moved)
        before, then = (jax.nn.log_softmax(t) for t in (logits, others))
        change = [rms(a - b) for a, b in zip(now, units, strict=True)]
        return {
            "units": jnp.stack(change),
            "logits": rms(others - logits),
            "divergence": jnp.mean(jnp.sum(jnp.exp(before) * (before - then), -1)),
            "loss": loss(moved),
            "other_loss": loss(moved, there),
        }

    found = jax.jit(lambda ways: jax.lax.map(after, ways))(jnp.asarray(WAYS))
    ratios = [
        (float(rms(s)), float(rms(p)), p.size)
        for s, p in zip(jax.tree.leaves(step), jax.tree.leaves(params), strict=True)
    ]
    values = {name: np.asarray(v).tolist() for name, v in found.items()}
    return values | {"steps_and_params": ratios, "loss_now": float(loss(params))}


def record_of(run: dict, rates: Sequence[int]) -> dict:
    """One start and seed, trained at some rates."""
    kind, seed, optimizer = KINDS[run["network"]], run["seed"], run["optimizer"]
    variables = started(kind, run["start"], seed, optimizer)
    record: dict[str, Any] = run | {"log2_rates": list(rates)}
    if "scales" in variables:
        record["effects"] = effects(kind, variables, optimizer, seed)
    how = run["network"], run["start"], optimizer, run["steps"], run["schedule"]
    train = training(*how)
    key = jax.random.fold_in(jax.random.key(17), seed)
    found = train(variables, key, 2.0 ** jnp.asarray(rates, jnp.float32))
    values = (np.where(np.isfinite(v), v, np.inf).tolist() for v in found)
    return record | dict(zip(("loss", "test_loss", "accuracy"), values, strict=True))


def measured(given: Any, known: Sequence[Mapping]) -> Iterator[dict]:
    """The records that are not known yet."""
    done: dict[tuple, set] = {}
    for r in known:
        done.setdefault(tuple(r[name] for name in RUN), set()).update(r["log2_rates"])
    runs = product(range(given.seeds), given.optimizers, given.networks, given.starts)
    for seed, optimizer, name, start in runs:
        run = (name, start, seed, optimizer, given.steps, given.schedule)
        shift = SHIFTS[optimizer][start in (TUNED, ADVISED)]
        low, high = given.rates or (end + shift for end in RATES[start])
        rates = [r for r in range(low, high + 1) if r not in done.get(run, set())]
        if rates:
            yield record_of(dict(zip(RUN, run, strict=True)), rates)


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", metavar="network", default=[*KINDS])
    parser.add_argument("--starts", nargs="*", choices=STARTS, default=[*STARTS])
    parser.add_argument("--optimizers", nargs="*", choices=OPTIMIZERS, default=["Adam"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--schedule", choices=SCHEDULES, default="constant")
    parser.add_argument("--rates", type=int, nargs=2, help="log2 of the ends")
    parser.add_argument("--out", type=Path, help="append records as JSON lines")
    parser.add_argument("--table", type=Path, nargs="*", help="show records of --out")
    given = parser.parse_args(words)
    if given.tiny:
        given.networks, given.starts = ["MLP tanh 4"], [PLAIN, TUNED]
        given.seeds, given.steps, given.rates = 1, 2, (-1, 0)
    files = given.table or [f for f in [given.out] if f and f.exists()]
    records = read_records(*files)
    if not given.table:
        records += written(measured(given, records), given.out)
    for how in dict.fromkeys((r["optimizer"], r["schedule"]) for r in records):
        found = curves([r for r in records if (r["optimizer"], r["schedule"]) == how])
        title = f"{', '.join(how)}: loss (held-out accuracy, rate) at the best rate"
        show(f"{title}; * at an end", table_of_networks(found, STARTS))
        rows = [*table_of_rules(found)]
        if rows:
            show(f"{', '.join(how)}: rules for the common factor", rows)


if __name__ == "__main__":
    main()
