"""One pass over all layers that solves, one that checks, more where the check fails."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...binding import compiled_once
from ...core import (
    ModelArgs,
    Path,
    Stopping,
    anchor,
    anderson_step,
    broadcast_per_layer,
    float_leaves,
    plain,
    run_while_more,
    vary_with,
    with_leaves,
)
from ...units import Objective, UnitKey, concat_units
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
    """One pass through the model, and the progress that follows from it."""
    layers, centred = progress.layers, progress.centred
    arrays = progress.arrays_at(progress.search.at)
    filled = args._replace(params=plain(with_leaves(args.params, arrays)))
    channels = {layer.path: layer.channels[1] for layer in centred if layer.channels}

    def loss(sums: dict[UnitKey, dict[str, Any]]) -> Float[Array, ""]:
        entries = {
            key: {"goal": progress.goals[key[0]], "sums": own}
            for key, own in sums.items()
        }
        outputs, _ = objective.run(filled, measuring_moments(channels, entries))
        return anchor(float_leaves(outputs))

    zeros = {
        unit.key: empty_moment_sums(args.params, layer, centred=layer in centred)
        for layer in layers
        for unit in layer.units
    }
    zeros = vary_with(zeros, args)
    sums = objective.over_axis(lambda: jax.grad(loss)(zeros))
    moments = {layer.path: _joint_moments(layer, sums) for layer in layers}
    return _next_progress(progress, stopping, moments)


_layer_pass_compiled = compiled_once("objective", "stopping")(layer_pass)


def run_passes(
    progress: Progress, args: ModelArgs, *, objective: Objective, stopping: Stopping
) -> Progress:
    """The progress after passes until the variances are right, or nothing helps."""
    one_pass = partial(
        _layer_pass_compiled, args=args, objective=objective, stopping=stopping
    )
    return run_while_more(one_pass, progress)


def _joint_moments(
    layer: Layer, sums: Mapping[UnitKey, Mapping[str, Any]]
) -> LayerMoments:
    """The moments of a layer over all of its methods together."""
    each = [sums[unit.key] for unit in layer.units]
    return layer_moments(layer, jax.tree.map(lambda *s: sum(s[1:], s[0]), *each))


def _next_progress(
    progress: Progress, stopping: Stopping, moments: Mapping[Path, LayerMoments]
) -> Progress:
    """What the next pass tries, after what this one missed."""
    layers, count = progress.layers, progress.factor_count
    targets = progress.targets
    misses = {
        layer.path: _misses(layer, moments[layer.path], targets[layer.path])
        for layer in layers
    }
    miss = _as_unknowns(progress, misses)
    masks = {layer.path: _unshared(layer, moments[layer.path]) for layer in layers}
    unshared = _as_unknowns(progress, masks)
    search, _ = anderson_step(progress.search, miss, largest_miss(stopping))
    start = jnp.where(search.passes == 1, search.best, progress.start)
    distance = jnp.abs(search.best - start)
    settled = search.error <= largest_miss(stopping)
    settled &= jnp.all(distance[:count] <= FURTHEST)
    # where no calls share the weights, what is left of a layer's miss is its own: one
    # last step removes it
    best = search.best - unshared * search.miss
    clipped = start + jnp.clip(best - start, -FURTHEST, FURTHEST)
    return replace(
        progress,
        best_arrays=progress.arrays_at(best.at[:count].set(clipped[:count])),
        goals={
            layer.path: _goal(layer, moments[layer.path], targets[layer.path])
            for layer in layers
        },
        search=search,
        start=start,
        miss=miss,
        settled=settled,
        more=~settled & (search.passes < stopping.max_passes),
    )


class _LayerValues(NamedTuple):
    """A layer's values for its unknowns."""

    factor: Array
    """A number for each layer of a stack, as carried."""
    channels: Array
    """Numbers in the shape of the bias, where channels are centred."""


def _as_unknowns(
    progress: Progress, values: Mapping[Path, _LayerValues]
) -> Float[Array, " n"]:
    """The values of all layers in the order of the search's unknowns."""
    units = [layer.units[0] for layer in progress.layers]
    factors = {unit.key: values[unit.path].factor for unit in units}
    columns = [concat_units(units, factors)]
    for layer in progress.centred:
        assert layer.channels is not None
        bias = progress.arrays[layer.channels[0]]
        columns.append(to_reals(values[layer.path].channels, bias))
    return jnp.concatenate(columns)


def _misses(layer: Layer, moments: LayerMoments, target: Array) -> _LayerValues:
    """Half the logarithm of the variance over its target, and means in deviations.

    The former is 0 where there is no variance.
    """
    varies, aim = ~(moments.deviation <= 0), jnp.sqrt(target)
    deviation = jnp.where(varies, moments.deviation, aim)
    each = broadcast_per_layer(deviation, moments.mean.shape, layer.lifted_axes)
    return _LayerValues(
        factor=jnp.log(deviation) - jnp.log(aim),
        channels=moments.mean / each,
    )


def _unshared(layer: Layer, moments: LayerMoments) -> _LayerValues:
    """1 where no calls share the weights, else 0; in both parts of complex numbers."""
    value = 0.0 if layer.shared else 1.0
    full = lambda t: jnp.full(t.shape, value, jnp.float32)
    return _LayerValues(full(moments.deviation), full(moments.mean) * (1 + 1j))


def _goal(layer: Layer, moments: LayerMoments, target: Array) -> Array:
    """The variance at which a layer hands on its output in later passes; 0: as it is.

    A layer that is called once hands on its target, so that the miss of each layer is
    its own. A layer of shared calls, which have one factor, hands on what its weights
    make; so does one that no gradient reaches back to (behind `stop_gradient`), whose
    factor stays 1.
    """
    alone = moments.reached & (not layer.shared)
    return jnp.where(alone, target, 0.0)
