"""Training by any optimizer from one start, at several learning rates side by side."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float

from ..core import (
    Batch,
    Partition,
    as_inputs,
    draw_batches,
    flatten,
    plain,
    static_value,
    unboxed,
)
from ..linen import (
    SCALE,
    Objective,
    carry_entries,
    checked_loss,
    make_objective,
    outputs_of,
    over_mapped_axis,
    scaling_interceptor,
    trace_model,
)
from ..tuning import scale_updates
from ..units import UPDATE, from_tree
from ._strategies import StartPoint

LOOK = 10
"""After so many steps each, runs that have diverged end."""


class TrainingBatch(NamedTuple):
    """A batch to train on, and the keywords of the loss that belong to it."""

    batch: Batch
    extra: Mapping[str, Any]


@dataclass(frozen=True)
class TrainingSetup:
    """How a model learns; everything but where it starts.

    Batches are drawn outside of `jit`, as `tune` draws them: a loader need not be
    traceable. Rates take turns at one compiled step: `vmap` would batch the kernels of
    convolutions, which is slow on CPUs.
    """

    task: Objective
    optimizer: Any
    """A function of the learning rate, static."""
    rates: tuple[float, ...]
    steps: int
    collections: Mapping[str, Any]
    draw: Any
    """Draws inputs, or is a batch; where `paired`, with keywords of the loss."""
    paired: bool
    rngs: Any
    batch_size: int | None

    def example(self, key: jax.Array) -> TrainingBatch:
        """The batch of a key.

        Raises:
            TypeError: train returned something else than a pair.
        """
        size = self.batch_size if self._sized() else None
        (batch,) = draw_batches(self.draw, key, self.rngs, size, 1)
        if not self.paired:
            return TrainingBatch(batch, {})
        pair = batch.inputs.args
        if len(pair) != 2 or not isinstance(pair[1], Mapping):
            raise TypeError(
                "train must return a pair, inputs and a dict of keywords for loss_fn: "
                "return images, {'labels': labels}"
            )
        inputs, extra = pair
        return TrainingBatch(batch._replace(inputs=as_inputs(inputs)), dict(extra))

    def _sized(self) -> bool:
        """Whether `batch_size` is for `draw`, or for `input_fn` alone."""
        return (
            not self.paired or "batch_size" in inspect.signature(self.draw).parameters
        )

    def check(self, params: Mapping, key: jax.Array) -> None:
        """Raises where the model, its loss or the optimizer cannot take a batch."""
        batch, extra = self.example(key)
        trace_model(
            with_loss_keywords(self.task, extra), params, self.collections, batch
        )
        rate = jnp.float32(self.rates[0])
        try:
            jax.eval_shape(
                partial(_begin_run, self.optimizer), rate, StartPoint(params)
            )
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
        runs = {
            i: _begin_run(self.optimizer, rates[i], start) for i in range(len(rates))
        }
        seen: list[list[Any]] = [[] for _ in rates]
        for t in range(self.steps):
            batch, extra = self.example(jax.random.fold_in(key, t))
            for i, run in runs.items():
                given = (rates[i], run, start.scales, self.collections, batch, extra)
                runs[i], value = _step_run(self.task, self.optimizer, *given)
                seen[i].append(value)
            if t % LOOK == LOOK - 1:
                runs = {i: r for i, r in runs.items() if np.isfinite(seen[i][-1])}
            tick()
        found = np.full((len(rates), self.steps), np.inf)
        for row, values in zip(found, jax.device_get(seen), strict=True):
            row[: len(values)] = values
            row[np.logical_or.accumulate(~np.isfinite(row))] = np.inf
        return found


def with_loss_keywords(task: Objective, extra: Mapping[str, Any]) -> Objective:
    """The problem with some keywords of its loss bound.

    Raises:
        TypeError: the loss does not take them.
    """
    if not extra:
        return task
    loss = partial(static_value(task.loss_fn), **extra)
    given = static_value(task.model), loss, static_value(task.method), task.axis_name
    return make_objective(*given)


def loss_and_gradient(
    task: Objective,
    params: Any,
    scales: Mapping | None,
    collections: Mapping[str, Any],
    batch: Batch,
) -> tuple[Array, Any]:
    """The loss and its gradient, in the structure of `params`."""
    leaves = Partition(params)
    values = {} if scales is None else from_tree(scales, params)

    def loss(floats):
        filled = carry_entries(leaves.build(floats), SCALE, values)
        with nn.intercept_methods(scaling_interceptor(set())):
            out, _ = outputs_of(task, filled, collections, batch)
        return checked_loss(task, out, batch)

    run = lambda: jax.value_and_grad(loss)(leaves.floats)
    value, found = over_mapped_axis(task.axis_name, run)
    rest = [jnp.zeros_like(t) for t in leaves.arrays]
    return value, leaves.build([jnp.conj(g) for g in found], rest)


plain_gradient = jax.jit(loss_and_gradient, static_argnums=0)
"""The step by which costs are counted."""


class _Run(NamedTuple):
    """What training changes."""

    params: Any
    state: Any


def _optimizer_at(
    optimizer: Any, rate: Any, scales: Mapping | None
) -> optax.GradientTransformation:
    """The optimizer at a rate, and the factors of its updates where there are some."""
    made = static_value(optimizer)(rate)
    if scales is None or all(path[-1] != UPDATE for path in flatten(scales)):
        return made
    return optax.chain(made, scale_updates(scales))


@partial(jax.jit, static_argnums=0)
def _begin_run(optimizer: Any, rate: Any, start: StartPoint) -> _Run:
    params = plain(unboxed(start.params))
    return _Run(params, _optimizer_at(optimizer, rate, start.scales).init(params))


@partial(jax.jit, static_argnums=(0, 1))
def _step_run(
    task: Objective,
    optimizer: Any,
    rate: Array,
    run: _Run,
    scales: Mapping | None,
    collections: Mapping[str, Any],
    batch: Batch,
    extra: Mapping[str, Any],
) -> tuple[_Run, Array]:
    """One step, and the loss before it."""
    task = with_loss_keywords(task, extra)
    value, gradient = loss_and_gradient(task, run.params, scales, collections, batch)
    rule = optax.with_extra_args_support(_optimizer_at(optimizer, rate, scales))
    change, state = rule.update(gradient, run.state, run.params)
    return _Run(optax.apply_updates(run.params, change), state), value
