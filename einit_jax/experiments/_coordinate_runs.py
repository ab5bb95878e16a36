"""One model, trained for a few steps, and its units' outputs after each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from ..binding import as_function, bind, build_model, is_nnx
from ..core import (
    Collections,
    Draw,
    ModelArgs,
    Params,
    Partition,
    check_not_zero,
    draw_batches,
    plain,
    split_batch,
    unboxed,
)
from ..tuning import scale_updates, tune
from ..units import Objective, Unit, call_order, concat_units, from_tree
from ..verification import output_drift
from ._training_runs import scaled_loss


class CoordinateRun(NamedTuple):
    """The outputs of one model: a row for each unit and layer, in call order."""

    width: int
    paths: tuple[str, ...]
    """Of the rows."""
    sizes: Float[np.ndarray, "looks rows"]
    changes: Float[np.ndarray, "looks rows"]


@dataclass(frozen=True)
class WidthSetup:
    """How models of one width are made and trained: the same for every seed."""

    width: int
    model_fn: Callable
    seeds: int
    input_fn: Any
    loss_fn: Callable
    options: Mapping[str, Any]
    """The keywords of `tune` about batches and calls."""
    optimizer: optax.GradientTransformation
    at_one: Callable
    """The function of the learning rate that made it, to tune with."""
    steps: int
    tuning: Mapping[str, Any] | None
    """Further keywords of `tune`; None: the model is trained as it is."""
    init_fn: Callable | None

    def run(self, key: jax.Array) -> CoordinateRun:
        """The sizes and changes of one seed."""
        options = dict(self.options)
        make = partial(build_model, self.model_fn, self.width, seeds=self.seeds)
        model, start = make(key=key), None
        if is_nnx(model):
            model, *start = as_function(model)
        objective = bind(
            model,
            self.loss_fn,
            method=options.pop("method"),
            axis_name=options.pop("axis_name"),
        )
        split = partial(split_batch, names=objective.loss_arguments)
        (batch,) = draw_batches(self.input_fn, key, split=split, **options)
        check_not_zero([batch])
        params, collections = start or _initialize_model(
            key, batch, objective=objective, init_fn=self.init_fn
        )
        scales = None
        if self.tuning is not None:
            keywords = {"collections": collections, "key": key}
            keywords |= {"optimizer": self.at_one, **self.options, **self.tuning}
            scales = tune(model, params, self.input_fn, self.loss_fn, **keywords)
        args = ModelArgs(params, collections, batch)
        units = objective.trace(args).units
        looks = _train_and_look(
            args._replace(params=plain(unboxed(params))),
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
    key: jax.Array, batch: Draw, *, objective: Objective, init_fn: Callable | None
) -> tuple[Params, Collections]:
    """Parameters and further collections of one model."""
    return objective.init(key, batch, init_fn)


@partial(jax.jit, static_argnames=("objective", "units", "optimizer", "steps"))
def _train_and_look(
    args: ModelArgs,
    scales: Mapping[str, Any] | None,
    *,
    objective: Objective,
    units: tuple[Unit, ...],
    optimizer: optax.GradientTransformation,
    steps: int,
) -> tuple[Array, Array]:
    """The sizes and changes of all units after 0, 1, ..., `steps` steps."""
    factors = {}
    if scales is not None:
        factors = from_tree(scales, args.params)
        optimizer = optax.chain(optimizer, scale_updates(scales))

    def look(params: PyTree) -> tuple[Array, Array]:
        comparing = partial(output_drift, objective, units, args)
        drift = objective.over_axis(lambda: comparing(now=params, factors=factors))
        pick = lambda name: concat_units(units, {k: v[name] for k, v in drift.items()})
        return pick("size"), pick("change")

    def step(carry: tuple, _: None) -> tuple[tuple, tuple[Array, Array]]:
        params, state = carry
        leaves = Partition(params)
        current = args._replace(params=params)
        loss = lambda floats: scaled_loss(objective, current, floats, scales)
        floats = objective.over_axis(lambda: jax.grad(loss)(leaves.floats))
        gradient = leaves.build(floats, [jnp.zeros_like(t) for t in leaves.arrays])
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), look(params)

    first = look(args.params)
    start = args.params, optimizer.init(args.params)
    _, later = jax.lax.scan(step, start, None, length=steps)
    pairs = zip(first, later, strict=True)
    sizes, changes = (jnp.concatenate([a[None], b]) for a, b in pairs)
    return sizes, changes
