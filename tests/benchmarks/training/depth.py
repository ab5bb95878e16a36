"""What plain deep networks learn, by how they start.

    python -m tests.benchmarks.training.depth [network ...] [--starts start ...]
    python -m tests.benchmarks.training.depth --table records.jsonl

Digits: 1400 to learn from, 397 held out. Each start at its own best learning rate, a
power of two: the one with the least loss at the end (mean over the last 10 steps and
the seeds). All rates of a start and seed train in one program, under `vmap`.

With `--out` each start and seed is a line of JSON; what a file has is not run again,
so that a run goes on where it stopped, and more `--seeds` or a wider `--untuned` and
`--tuned` range add to it. "orthogonal" has gain 1; "orthogonal, gain" that of the
activation function. "DKS/TAT" and "TAT, smooth" are DeepMind's `dks`, with the same
orthogonal weights: TAT for ReLU; for other functions DKS, and TAT.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import einit_jax as ei
from einit_jax._demo import Digits, cross_entropy, digits
from einit_jax.experiments import default_strategies
from tests.benchmarks.report import parser_of, read_records, written
from tests.benchmarks.training import families, initializers, shaped, transfer
from tests.benchmarks.training.depth_tables import RUN, Results, results, tables
from tests.benchmarks.training.trainability import redrawn

BATCH, TAIL, LEARN_FROM = 64, 10, 1400
ACTIVATIONS = (nn.relu, nn.gelu, nn.silu, jnp.tanh, nn.elu, nn.sigmoid, nn.softplus)
NETWORKS: dict[str, nn.Module] = {
    **{
        f"MLP {fn.__name__} {depth}": shaped.Perceptron(depth, activation=fn)
        for fn, depth in [*product(ACTIVATIONS, (16, 50, 100)), (nn.relu, 200)]
    },
    "CNN 20": shaped.Convolutions(20),
    "CNN 50": shaped.Convolutions(50),
    "VGG 10": shaped.Vgg(),
    "ResNet 8": families.ResidualConvolutional(8),
    "residual MLP 16": families.Residual(16),
    "transformer 6": families.Transformer(6, norm=False),
    "transformer 12": families.Transformer(12, norm=False),
    "ViT 6": families.Transformer(6),
    "LSTM": initializers.Lstm(),
}
RECTIFIED = (shaped.Vgg, families.ResidualConvolutional, families.Residual)
FAILURES = (FloatingPointError, NotImplementedError, ValueError)


class Task(NamedTuple):
    """What a start is given."""

    model: nn.Module
    params: Mapping
    images: jax.Array
    loss: Callable
    key: jax.Array
    optimizer: Callable

    def by(self, function: Callable, params: Any = None, **options: Any) -> Any:
        """What a strategy, or `tune`, returns."""
        params = self.params if params is None else params
        given = (self.model, params, self.images, self.loss)
        return function(*given, key=self.key, **options)


def by_name(name: str) -> Callable[[Task], dict]:
    return lambda task: {"params": task.by(getattr(ei, name))}


def preset(name: str) -> Callable[[Task], dict]:
    def start(task: Task) -> dict:
        given = {"model": task.model, "input_fn": task.images}
        return {"params": ei.initialize(task.params, name, task.key, **given)}

    return start


def orthogonal(task: Task, *, gain: bool = False, keep_size: bool = False) -> dict:
    fn = nn.relu if isinstance(task.model, RECTIFIED) else None
    fn = getattr(task.model, "activation", fn)
    draw = shaped.orthogonal(ei.gain(fn) if gain and fn else 1.0, keep_size)
    return {"params": redrawn(draw, task.params, task.key)}


def then_tune(start: Callable[[Task], dict], task: Task) -> dict:
    params = start(task)["params"]
    return {
        "params": params,
        "scales": task.by(ei.tune, params, optimizer=task.optimizer),
    }


def distinct_tune(task: Task) -> dict:
    """The weights as they are, with outputs at which inputs stay distinct."""
    targets = task.by(ei.distinct_targets)
    scales = task.by(ei.tune, optimizer=task.optimizer, targets=targets)
    return {"params": task.params, "scales": scales}


def linear_then_tune(task: Task) -> dict:
    """The advised start: `tune` keeps the sizes that `looks_linear` chose."""
    return task.by(default_strategies(task.optimizer)["looks_linear, tune"])


class Start(NamedTuple):
    """How a network starts: its variables, and its own learning rates."""

    variables: Callable[[Task], dict]
    tuned: bool = False
    smooth: str | None = None
    """Activation functions other than ReLU are transformed by DKS or by TAT."""

    def applies(self, model: nn.Module) -> bool:
        chain = self.smooth is None or shaped.can_be_shaped(model)
        return chain and not (
            self.smooth == "TAT" and getattr(model, "activation", None) is nn.relu
        )


AS_IT_IS: Callable[[Task], dict] = lambda task: {"params": task.params}
KEPT = partial(orthogonal, keep_size=True)
STARTS = {
    "as it is": Start(AS_IT_IS),
    "orthogonal": Start(orthogonal),
    "orthogonal, gain": Start(partial(orthogonal, gain=True)),
    "he_normal": Start(preset("he_normal")),
    "lsuv": Start(by_name("lsuv")),
    "autoinit": Start(by_name("autoinit")),
    "DKS/TAT": Start(KEPT, smooth="DKS"),
    "TAT, smooth": Start(KEPT, smooth="TAT"),
    "tune": Start(partial(then_tune, AS_IT_IS), tuned=True),
    "tune, distinct": Start(distinct_tune, tuned=True),
    "looks_linear": Start(by_name("looks_linear")),
    "looks_linear, tune": Start(linear_then_tune, tuned=True),
}


@lru_cache(1)
def split() -> tuple[Digits, Digits]:
    """The digits to learn from, and those held out."""
    data = digits()
    rows = jax.random.permutation(jax.random.key(0), len(data.labels))
    learn, test = rows[:LEARN_FROM], rows[LEARN_FROM:]
    return Digits(*(a[learn] for a in data)), Digits(*(a[test] for a in data))


@lru_cache(4)
def initial(model: nn.Module) -> Callable:
    """Its variables as Flax draws them, compiled once for all starts and seeds."""
    return jax.jit(model.init)


def variables_of(model: nn.Module, start: Start, seed: int, optimizer: str) -> dict:
    """What the network starts from: its parameters, and scales where it is tuned."""
    data, _ = split()
    init, rows, key = jax.random.split(jax.random.key(seed), 3)
    chosen = jax.random.permutation(rows, LEARN_FROM)[:BATCH]
    images, labels = data.images[chosen], data.labels[chosen]
    params = initial(model)(init, images)["params"]
    loss = partial(cross_entropy, labels=labels)
    task = Task(model, params, images, loss, key, transfer.OPTIMIZERS[optimizer])
    return start.variables(task)


@lru_cache(4)
def training(model: nn.Module, tuned: bool, optimizer: str, steps: int) -> Callable:
    """A function of variables, a key and rates.

    For each rate: the loss, and for the digits held out loss and accuracy.
    """
    learn, test = split()
    apply: Callable = ei.scaled(model).apply if tuned else model.apply

    def train(variables, key, rate):
        tx = transfer.OPTIMIZERS[optimizer](rate)
        if tuned:
            tx = optax.chain(tx, ei.scale_updates(variables["scales"]))
        logits = lambda params, x: apply({**variables, "params": params}, x)

        def step(carry, rows):
            params, state = carry
            images, labels = learn.images[rows], learn.labels[rows]
            loss = lambda params: cross_entropy(logits(params, images), labels)
            value, gradient = jax.value_and_grad(loss)(params)
            change, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, change), state), value

        first = (variables["params"], tx.init(variables["params"]))
        rows = jax.random.randint(key, (steps, BATCH), 0, LEARN_FROM)
        (params, _), seen = jax.lax.scan(step, first, rows)
        found = logits(params, test.images)
        right = jnp.mean(found.argmax(-1) == test.labels)
        return jnp.mean(seen[-TAIL:]), cross_entropy(found, test.labels), right

    return jax.jit(jax.vmap(train, (None, None, 0)))


def record_of(run: dict, rates: Sequence[int], steps: int) -> dict:
    """One start and seed, trained at some rates."""
    model, start = NETWORKS[run["network"]], STARTS[run["start"]]
    began = time.perf_counter()
    if start.smooth:
        model = shaped.shaped(model, start.smooth)
    record = run | {"log2_rates": list(rates)}
    try:
        variables = variables_of(model, start, run["seed"], run["optimizer"])
    except FAILURES as error:
        return record | {"error": f"{type(error).__name__}: {error}"}
    jax.block_until_ready(variables)
    ready = time.perf_counter()
    train = training(shaped.trained(model), start.tuned, run["optimizer"], steps)
    key = jax.random.fold_in(jax.random.key(17), run["seed"])
    found = train(variables, key, 2.0 ** jnp.asarray(rates, jnp.float32))
    values = (np.where(np.isfinite(v), v, np.inf).tolist() for v in found)
    record |= dict(zip(("loss", "test_loss", "accuracy"), values, strict=True))
    now = time.perf_counter()
    return record | {
        "start_seconds": round(ready - began, 2),
        "training_seconds": round(now - ready, 2),
    }


def measured(given: Any, known: Results) -> Iterator[dict]:
    """The records that are not known yet."""
    for name, start, seed in product(given.networks, given.starts, range(given.seeds)):
        if not STARTS[start].applies(NETWORKS[name]):
            continue
        run = (name, start, seed, given.optimizer, given.steps)
        low, high = given.tuned if STARTS[start].tuned else given.untuned
        rates = [r for r in range(low, high + 1) if r not in known.get(run, {})]
        if rates:
            yield record_of(dict(zip(RUN, run, strict=True)), rates, given.steps)


def main(words: Sequence[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", metavar="network", default=[*NETWORKS])
    parser.add_argument("--starts", nargs="*", choices=STARTS, default=[*STARTS])
    parser.add_argument("--optimizer", choices=("Adam", "momentum"), default="Adam")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--untuned", type=int, nargs=2, default=(-13, -3))
    parser.add_argument("--tuned", type=int, nargs=2, default=(-6, 2))
    parser.add_argument("--out", type=Path, help="append records as JSON lines")
    parser.add_argument("--table", type=Path, help="show the records of --out")
    given = parser.parse_args(words)
    if given.tiny:
        NETWORKS["MLP tanh 3"] = shaped.Perceptron(3, 16, jnp.tanh)
        given.networks, given.seeds, given.steps = ["MLP tanh 3"], 1, 2
        given.starts = ["as it is", "orthogonal, gain", "lsuv", "tune"]
        given.untuned, given.tuned = (-6, -5), (-1, 0)
    if given.table:
        print(*tables(read_records(given.table), [*NETWORKS], [*STARTS]), sep="\n")
        return
    unknown = set(given.networks) - NETWORKS.keys()
    if unknown:
        parser.error(f"no network {sorted(unknown)}; there are {', '.join(NETWORKS)}")
    if any(STARTS[start].smooth for start in given.starts):
        shaped.require_dks()
    records = read_records(given.out) if given.out and given.out.exists() else []
    for record in written(measured(given, results(records)), given.out):
        records.append(record)
        if "error" in record:
            place = ", ".join(str(record[name]) for name in RUN)
            print(f"{place}: {record['error']}", file=sys.stderr, flush=True)
    print(*tables(records, [*NETWORKS], [*STARTS]), sep="\n")


if __name__ == "__main__":
    main()
