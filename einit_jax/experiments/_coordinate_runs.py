"""One model, trained for a few steps and looked at after each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from ..binding import bind
from ..core import Batch, ModelArgs, Partition, draw_batches, plain, unboxed
from ..tuning import scale_updates, tune
from ..units import Objective, Unit, call_order, concat_units, from_tree
from ._output_drift import output_drift
from ._training_runs import scaled_loss


class CoordinateRun(NamedTuple):
    """What one model shows: a row per unit and layer in call order."""

    width: int
    paths: tuple[str, ...]
    sizes: Float[np.ndarray, "looks rows"]
    changes: Float[np.ndarray, "looks rows"]


@dataclass(frozen=True)
class WidthSetup:
    """The models of one width: all that is the same for every seed."""

    width: int
    model: Any
    input_fn: Any
    loss_fn: Callable
    options: Mapping[str, Any]
    """Keywords of `tune` about batches and calls."""
    optimizer: optax.GradientTransformation
    at_one: optax.GradientTransformation
    """The same at learning rate 1, to tune with."""
    steps: int
    tuning: Mapping[str, Any] | None
    """Keywords of `tune`; None: the model is trained as it is."""
    init_fn: Callable | None

    def run(self, key: jax.Array) -> CoordinateRun:
        """The sizes and changes of one seed."""
        options = dict(self.options)
        bound = {name: options.pop(name) for name in ("method", "axis_name")}
        objective = bind(self.model, self.loss_fn, **bound)
        (batch,) = draw_batches(self.input_fn, key, **options)
        params, collections = _initialize_model(
            key, batch, objective=objective, init_fn=self.init_fn
        )
        scales = None
        if self.tuning is not None:
            how = {"collections": collections, "key": key, "optimizer": self.at_one}
            how |= {**self.options, **self.tuning}
            scales = tune(self.model, params, self.input_fn, self.loss_fn, **how)
        units = objective.trace(ModelArgs(params, collections, batch)).units
        params = plain(unboxed(params))
        looks = _train_and_look(
            ModelArgs(params, collections, batch),
            scales,
            objective=objective,
            units=units,
            optimizer=self.optimizer,
            steps=self.steps,
        )
        paths, order = call_order(units)
        sizes, changes = (np.asarray(look)[:, order] for look in looks)
        return CoordinateRun(self.width, paths, sizes, changes)


@partial(jax.jit, static_argnames=("objective", "init_fn"))
def _initialize_model(
    key: jax.Array, batch: Batch, *, objective: Objective, init_fn: Any
) -> tuple:
    """Parameters and further collections of one model."""
    return objective.init(key, batch, init_fn)


@partial(jax.jit, static_argnames=("objective", "units", "optimizer", "steps"))
def _train_and_look(
    args: ModelArgs,
    scales: Mapping | None,
    *,
    objective: Objective,
    units: tuple[Unit, ...],
    optimizer: optax.GradientTransformation,
    steps: int,
) -> tuple[Array, Array]:
    """Sizes and changes of all units, after 0, 1, ..., `steps` steps."""
    factors = {}
    if scales is not None:
        factors = from_tree(scales, args.params)
        optimizer = optax.chain(optimizer, scale_updates(scales))

    def look(now: Any) -> tuple[Array, Array]:
        drift = output_drift(objective, units, args, now=now, factors=factors)
        pick = lambda name: concat_units(units, {k: v[name] for k, v in drift.items()})
        return pick("size"), pick("change")

    def step(carry: tuple, _: None) -> tuple[tuple, tuple[Array, Array]]:
        now, state = carry
        leaves = Partition(now)
        here = args._replace(params=now)
        loss = lambda floats: scaled_loss(objective, here, floats, factors)
        floats = objective.over_axis(lambda: jax.grad(loss)(leaves.floats))
        gradient = leaves.build(floats, [jnp.zeros_like(t) for t in leaves.arrays])
        change, state = optimizer.update(gradient, state, now)
        now = optax.apply_updates(now, change)
        return (now, state), look(now)

    first = look(args.params)
    start = args.params, optimizer.init(args.params)
    _, later = jax.lax.scan(step, start, None, length=steps)
    pairs = zip(first, later, strict=True)
    sizes, changes = (jnp.concatenate([a[None], b]) for a, b in pairs)
    return sizes, changes
