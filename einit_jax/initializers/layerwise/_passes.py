"""One pass over all layers that solves, one that checks, more where that fails."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ...core import (
    ModelArgs,
    Path,
    Stopping,
    anchor,
    anderson_step,
    broadcast_per_layer,
    float_leaves,
    plain,
    with_leaves,
)
from ...units import Objective, concat_units
from ._layers import Layer
from ._moments import (
    LayerMoments,
    empty_moment_sums,
    layer_moments,
    measuring_moments,
)
from ._progress import FURTHEST, Progress, largest_miss, to_reals


def layer_pass(
    progress: Progress, args: ModelArgs, *, objective: Objective, stopping: Stopping
) -> Progress:
    """One pass through the model, and what follows from it."""
    layers, centred = progress.layers, progress.centred
    params = plain(with_leaves(args.params, progress.at(progress.search.at)))
    filled = args._replace(params=params)
    channels = {layer.path: layer.channels[1] for layer in centred if layer.channels}

    def loss(sums: dict) -> Array:
        entries = {
            key: {"goal": progress.goals[key[0]], "sums": own}
            for key, own in sums.items()
        }
        outputs, _ = objective.run(filled, measuring_moments(channels, entries))
        return anchor(float_leaves(outputs))

    zeros = {
        unit.key: empty_moment_sums(args.params, layer, layer in centred)
        for layer in layers
        for unit in layer.units
    }
    sums = objective.over_axis(lambda: jax.grad(loss)(zeros))
    moments = {layer.path: _joint_moments(layer, sums) for layer in layers}
    return _next_progress(progress, stopping, moments)


def _joint_moments(layer: Layer, sums: Mapping) -> LayerMoments:
    """Of all methods of a layer together."""
    each = [sums[unit.key] for unit in layer.units]
    return layer_moments(layer, jax.tree.map(lambda *s: sum(s[1:], s[0]), *each))


def _next_progress(
    progress: Progress, stopping: Stopping, moments: Mapping[Path, LayerMoments]
) -> Progress:
    """What the next pass tries, after what this one missed."""
    miss = _gather_misses(progress, lambda layer: _misses(layer, moments[layer.path]))
    alone = _gather_misses(progress, lambda layer: _alone(layer, moments[layer.path]))
    search, _ = anderson_step(progress.search, miss, largest_miss(stopping))
    start = jnp.where(search.passes == 1, search.best, progress.start)
    far, count = jnp.abs(search.best - start), progress.count
    settled = search.error <= largest_miss(stopping)
    settled &= jnp.all(far[:count] <= FURTHEST)
    # what is left of a layer's miss is its own, and gone with a last step, but where
    # calls share the weights
    best = search.best - alone * search.miss
    held = start + jnp.clip(best - start, -FURTHEST, FURTHEST)
    return replace(
        progress,
        found=progress.at(best.at[:count].set(held[:count])),
        goals={la.path: _goal(la, moments[la.path]) for la in progress.layers},
        search=search,
        start=start,
        miss=miss,
        settled=settled,
        more=~settled & (search.passes < stopping.max_passes),
    )


def _gather_misses(progress: Progress, value: Any) -> Array:
    """A number for each factor, and one for each channel that is centred."""
    found = {layer.path: value(layer) for layer in progress.layers}
    units = [layer.units[0] for layer in progress.layers]
    columns = [concat_units(units, {u.key: found[u.path][0] for u in units})]
    for layer in progress.centred:
        assert layer.channels is not None
        bias = progress.arrays[layer.channels[0]]
        columns.append(to_reals(found[layer.path][1], bias))
    return jnp.concatenate(columns)


def _misses(layer: Layer, seen: LayerMoments) -> tuple[Array, Array]:
    """Half the logarithm of the variance over its target, 0 where there is none; and
    the means in deviations."""
    there = ~(seen.variance <= 0)
    variance = jnp.where(there, seen.variance, layer.target)
    deviation = broadcast_per_layer(
        jnp.sqrt(variance), seen.mean.shape, layer.units[0].lifted_axes
    )
    return 0.5 * jnp.log(variance / layer.target), seen.mean / deviation


def _alone(layer: Layer, seen: LayerMoments) -> tuple[Array, Array]:
    """1 where no calls share the weights, else 0."""
    value = 0.0 if layer.shared else 1.0
    of = lambda t: jnp.full(t.shape, value, jnp.float32)
    return of(seen.variance), of(seen.mean) * (1 + 1j)


def _goal(layer: Layer, seen: LayerMoments) -> Array:
    """A layer that is called once goes on to hand on what is right.

    The miss of each is then its own. Not where that cannot be told: shared calls have
    one factor, and what no gradient reaches back to (behind `stop_gradient`) keeps 1.
    """
    alone = seen.seen & (not layer.shared)
    return jnp.where(alone, jnp.float32(layer.target), 0.0)
