"""Training by any optimizer from one start, at several learning rates side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ..binding import Setup
from ..core import (
    Collections,
    ModelArgs,
    Params,
    Partition,
    as_integer,
    as_number,
    as_static,
    check_optimizer_factory,
    flatten,
    is_loader,
    plain,
    static_value,
    unboxed,
)
from ..tuning import scale_updates
from ..units import (
    UPDATE,
    Objective,
    from_tree,
    raw_from_tree,
    scale_raw_gradients,
    scaling,
)
from ._strategies import StartPoint
from ._training_batches import TrainingBatch, TrainingBatches

RATES = tuple(2.0**e for e in range(-12, 3))
"""The learning rates of `compare` by default."""
TAIL_SHARE = 10
"""The loss is the mean over the last steps, one out of so many."""
LOOK = 10
"""After every so many steps, runs that have diverged end."""


@dataclass(frozen=True)
class TrainingSetup:
    """How a model learns; everything but where it starts.

    Batches are drawn outside of `jit`, as `tune` draws them: a loader need not be
    traceable. Rates take turns at one compiled step: `vmap` would batch the kernels of
    convolutions, which is slow on CPUs.
    """

    objective: Objective
    optimizer: Any
    """A function of the learning rate, static."""
    rates: tuple[float, ...]
    steps: int
    collections: Collections
    batches: TrainingBatches

    def check(self, params: Params, key: jax.Array) -> None:
        """Raises where the model, its loss or the optimizer cannot take a batch."""
        batch, keywords = self.batches.draw(key)
        objective = self.objective.with_loss_keywords(keywords)
        objective.trace(ModelArgs(params, self.collections, batch))
        rate = jnp.float32(self.rates[0])
        begin = partial(_begin_run, optimizer=self.optimizer)
        try:
            jax.eval_shape(begin, rate, StartPoint(params))
        except Exception as error:
            raise ValueError(
                f"optimizer cannot start: {type(error).__name__}: {error}; pass a "
                "function of the learning rate, an array, such as optax.adam"
            ) from error

    def losses(
        self, start: StartPoint, key: jax.Array, tick: Callable[[], Any]
    ) -> Float[np.ndarray, "rates steps"]:
        """The loss of each step and rate, before the step; infinite once diverged.

        `tick` is called after every step.
        """
        rates = jnp.asarray(self.rates, jnp.float32)
        start = StartPoint(plain(unboxed(start.params)), start.scales)
        begin = partial(_begin_run, optimizer=self.optimizer)
        runs = {i: begin(rates[i], start) for i in range(len(rates))}
        values: list[list[Any]] = [[] for _ in rates]
        for t, batch in zip(
            range(self.steps), self.batches.of_steps(key), strict=False
        ):
            for i, run in runs.items():
                runs[i], value = _step_run(
                    run,
                    batch,
                    rate=rates[i],
                    scales=start.scales,
                    collections=self.collections,
                    objective=self.objective,
                    optimizer=self.optimizer,
                )
                values[i].append(value)
            if t % LOOK == LOOK - 1:
                runs = {i: r for i, r in runs.items() if np.isfinite(values[i][-1])}
            tick()
        losses = np.full((len(rates), self.steps), np.inf)
        for row, own in zip(losses, jax.device_get(values), strict=True):
            row[: len(own)] = own
            row[np.logical_or.accumulate(~np.isfinite(row))] = np.inf
        return losses


def training_of(
    bound: Setup, *, input_fn: Any, train: Any, optimizer: Any,
    rates: Sequence[float], steps: SupportsIndex, **drawing: Any,
) -> TrainingSetup:  # fmt: skip
    """How a model learns that was bound to its arguments; it is checked on a batch.

    `drawing`: `rngs` and `batch_size`.
    """
    args = bound.arrays.args
    bound.objective.trace(args)
    own = {"source": input_fn if train is None else train, "paired": train is not None}
    training = TrainingSetup(
        objective=bound.objective,
        optimizer=as_static(optimizer),
        rates=tuple(map(float, rates)),
        steps=index(steps),
        collections=args.collections,
        batches=TrainingBatches(bound.objective, **own, **drawing),
    )
    training.check(args.params, bound.arrays.key)
    return training


def seed_keys(key: jax.Array, seeds: SupportsIndex) -> list[jax.Array]:
    """The key of each seed; the first one's is the key itself."""
    return [key, *(jax.random.fold_in(key, 2**20 + i) for i in range(1, index(seeds)))]


def scaled_loss(
    objective: Objective,
    args: ModelArgs,
    floats: list[Array],
    scales: Mapping[str, Any] | None,
) -> Float[Array, ""]:
    """The loss of the scaled model (None: of the plain one), with other floats."""
    params, factors = Partition(args.params).build(floats), {}
    if scales is not None:
        factors = from_tree(scales, params)
        params = scale_raw_gradients(params, raw_from_tree(scales, params))
    outputs, _ = objective.run(args._replace(params=params), scaling(factors))
    return objective.loss(outputs, args.batch)


def loss_and_gradient(
    args: ModelArgs, scales: Mapping[str, Any] | None, *, objective: Objective
) -> tuple[Array, PyTree]:
    """The loss and its gradient, in the structure of the parameters."""
    leaves = Partition(args.params)
    loss = lambda floats: scaled_loss(objective, args, floats, scales)
    run = lambda: jax.value_and_grad(loss)(leaves.floats)
    value, gradient = objective.over_axis(run)
    rest = [jnp.zeros_like(t) for t in leaves.arrays]
    return value, leaves.build([jnp.conj(g) for g in gradient], rest)


plain_gradient = jax.jit(loss_and_gradient, static_argnames="objective")
"""The gradient step, compiled: the unit in which costs are counted."""


class _Run(NamedTuple):
    """What a step of training changes."""

    params: PyTree
    state: optax.OptState


def _optimizer_at(
    optimizer: Any, rate: Array, scales: Mapping[str, Any] | None
) -> optax.GradientTransformation:
    """The optimizer at a rate, then the factors of its updates where there are some."""
    at_rate = static_value(optimizer)(rate)
    if scales is None or all(path[-1] != UPDATE for path in flatten(scales)):
        return at_rate
    return optax.chain(at_rate, scale_updates(scales))


@partial(jax.jit, static_argnames="optimizer")
def _begin_run(rate: Array, start: StartPoint, *, optimizer: Any) -> _Run:
    """A run before its first step."""
    params = plain(unboxed(start.params))
    return _Run(params, _optimizer_at(optimizer, rate, start.scales).init(params))


@partial(jax.jit, static_argnames=("objective", "optimizer"))
def _step_run(
    run: _Run,
    batch: TrainingBatch,
    *,
    rate: Array,
    scales: Mapping[str, Any] | None,
    collections: Collections,
    objective: Objective,
    optimizer: Any,
) -> tuple[_Run, Array]:
    """The run after one step, and the loss before it."""
    objective = objective.with_loss_keywords(batch.loss_keywords)
    args = ModelArgs(run.params, collections, batch.batch)
    value, gradient = loss_and_gradient(args, scales, objective=objective)
    at_rate = optax.with_extra_args_support(_optimizer_at(optimizer, rate, scales))
    updates, state = at_rate.update(gradient, run.state, run.params)
    return _Run(optax.apply_updates(run.params, updates), state), value


def tail_of(steps: int) -> int:
    """The number of last steps that the loss is a mean over."""
    return -(-steps // TAIL_SHARE)


def check_training_arguments(
    *, train: Any, steps: Any, learning_rates: Any, optimizer: Any, seeds: Any
) -> None:
    """Raises where an argument that says how to train is wrong."""
    if train is not None and not callable(train) and not is_loader(train):
        raise TypeError(
            f"train is a {type(train).__name__}, expected a function of a key that "
            "returns inputs and labels, or inputs and a dict of keywords for loss_fn; "
            "or a loader of such"
        )
    check_optimizer_factory(optimizer)
    for name, value in (("steps", steps), ("seeds", seeds)):
        integer = as_integer(value)
        if integer is None or integer < 1:
            raise ValueError(f"{name}={value!r}, expected an integer >= 1")
    listed = learning_rates if isinstance(learning_rates, tuple) else ()
    rates = [as_number(rate) or 0 for rate in listed]
    if not rates or not all(0 < rate < float("inf") for rate in rates):
        raise ValueError(
            f"learning_rates={learning_rates!r}, expected positive numbers: "
            "(2**-6, 2**-4, ...)"
        )
