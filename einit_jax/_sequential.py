"""From passes to weights: one that solves, one that checks, more where that fails."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from ._layers import Layer
from ._lift import spread
from ._math import is_concrete, multiply, usable
from ._paths import Path, plain, replaced
from ._plan import anchor, floats_of, outputs_of
from ._problem import Batch, Problem, over_axis
from ._search import Search, advance, begin
from ._state import Effort
from ._units import kind_of, riding, unpack, vector
from ._variances import VARIANCE, Moments, measuring, moments, slots

FURTHEST = float(np.log(10))
"""How far further passes may take the logarithm of a factor from the first one.

Beyond, an output only seems to follow: a tanh inside of a unit comes within 1% of its
bound at 60 times the weights.
"""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "start",
        "arrays",
        "found",
        "goals",
        "search",
        "miss",
        "off",
        "sound",
        "settled",
        "more",
    ],
    meta_fields=["layers"],
)
@dataclass(frozen=True)
class Progress:
    """Where the passes have come to; all in order of `layers`, those of a stack too."""

    layers: tuple[Layer, ...]
    arrays: dict[Path, Array]
    """Weights and biases at factors of 1."""
    found: dict[Path, Array]
    """The same at the best factors so far."""
    goals: dict[Path, Array]
    """The variance at which a layer hands on its output; 0: it hands it on as it is."""
    search: Search
    """For the logarithms of the factors."""
    start: Float[Array, " n"]
    """What the first pass implied for these."""
    miss: Float[Array, " n"]
    """Half the logarithm of each variance over its target, in the last pass."""
    off: Float[Array, " n"]
    """The largest mean of a centred channel, in deviations."""
    sound: Bool[Array, " n"]
    settled: Bool[Array, ""]
    more: Bool[Array, ""]

    def refuse(self, effort: Effort) -> None:
        """Raises where passes came to no good end; under an outer trace, nothing."""
        if not is_concrete(self.more):
            return
        sizes = [layer.units[0].size for layer in self.layers]
        names = np.repeat([layer.name for layer in self.layers], sizes)
        sound, miss = np.array(self.sound), np.array(self.miss)
        if not sound.all():
            raise FloatingPointError(
                f"non-finite activations at unit {str(names[~sound][0])!r}; lsuv needs "
                "finite numbers: check the parameters, the inputs and, for 16-bit "
                "models, the range of the dtype"
            )
        if self.settled or effort.max_sweeps == 1:
            return
        grown = np.exp(np.abs(self.search.best - self.start))
        far = ~(np.abs(miss) <= np.log1p(effort.tolerance) / 2)
        far |= ~(np.array(self.off) <= effort.tolerance)
        far |= ~(np.log(grown) <= FURTHEST)
        rows = zip(names[far], np.exp(2 * miss[far]), grown[far], strict=True)
        listing = ", ".join(
            f"{name} ({ratio:.3g} of its target, weights changed {times:.3g}-fold)"
            for name, ratio, times in rows
        )
        raise ValueError(
            f"after {effort.max_sweeps} passes there are units whose outputs do not "
            f"follow the size of their weights, or not yet: {listing}; leave them as "
            f"they are: exclude={str(names[far][0])!r}; or raise max_sweeps"
        )


def begun(layers: tuple[Layer, ...], arrays: dict[Path, Array]) -> Progress:
    """Before the first pass, in which every call hands on what is right."""
    count = sum(layer.units[0].size for layer in layers)
    ride = lambda layer: jnp.ones(layer.units[0].ride_shape, jnp.float32)
    return Progress(
        layers,
        arrays,
        arrays,
        {layer.path: layer.target * ride(layer) for layer in layers},
        begin(count),
        jnp.zeros(count, jnp.float32),
        jnp.zeros(count, jnp.float32),
        jnp.zeros(count, jnp.float32),
        jnp.ones(count, bool),
        jnp.array(False),
        jnp.array(True),
    )


def sweep(
    task: Problem,
    effort: Effort,
    center: bool,
    params: Any,
    progress: Progress,
    collections: Mapping,
    batch: Batch,
) -> Progress:
    """One pass through the model, and what follows from it."""
    layers, at = progress.layers, progress.search.at
    now = _scaled(layers, progress.arrays, at)
    filled = plain(replaced(params, now))
    centred = {la.path: la.channels[1] for la in layers if center and la.channels}

    def loss(slots: dict) -> Array:
        entries = {
            kind: {"goal": progress.goals[kind[0]], "slot": slot}
            for kind, slot in slots.items()
        }
        with nn.intercept_methods(measuring(centred)):
            rides = riding(filled, VARIANCE, entries)
            outputs, _ = outputs_of(task, rides, collections, batch)
        return anchor(floats_of(outputs))

    zeros = {
        kind_of(u): slots(params, layer, center)
        for layer in layers
        for u in layer.units
    }
    sums = over_axis(task.axis_name, lambda: jax.grad(loss)(zeros))
    seen = {layer.path: _moments(layer, sums) for layer in layers}
    return _settled(progress, effort, frozenset(centred), seen)


def _moments(layer: Layer, sums: Mapping) -> Moments:
    """Of all methods of a layer together."""
    each = [sums[kind_of(unit)] for unit in layer.units]
    return moments(layer, jax.tree.map(lambda *s: sum(s[1:], s[0]), *each))


def _settled(
    progress: Progress,
    effort: Effort,
    centred: frozenset[Path],
    seen: Mapping[Path, Moments],
) -> Progress:
    """The factors and biases that a pass implies."""
    layers, search = progress.layers, progress.search
    column = lambda value: _column(layers, {la.path: value(la) for la in layers})
    sound = column(lambda la: seen[la.path].sound)
    miss = column(lambda la: _miss(seen[la.path].variance, la.target))
    off = column(lambda la: seen[la.path].off * (la.path in centred))
    arrays = progress.arrays | _biases(progress, centred, seen)
    search, _ = advance(search, jnp.where(sound, miss, jnp.inf), effort.tolerance / 2)
    # what is left of a layer's miss is its own, and gone with a last step, but where
    # calls share the weights
    alone = column(lambda la: jnp.full(la.units[0].ride_shape, 1.0 - la.shared))
    best = search.best - alone * search.miss
    start = jnp.where(search.passes == 1, best, progress.start)
    near = search.error <= jnp.log1p(effort.tolerance) / 2
    near &= jnp.all(jnp.abs(search.best - start) <= FURTHEST)
    settled = near & jnp.all(off <= effort.tolerance)
    best = start + jnp.clip(best - start, -FURTHEST, FURTHEST)
    return replace(
        progress,
        arrays=arrays,
        found=_scaled(layers, arrays, best),
        goals={layer.path: _goal(layer, seen[layer.path]) for layer in layers},
        search=search,
        start=start,
        miss=miss,
        sound=sound,
        off=off,
        settled=settled,
        more=~settled & (search.passes < effort.max_sweeps),
    )


def _miss(variance: Array, target: float) -> Array:
    """Half the logarithm of a variance over its target; 0 where there is none."""
    ratio = jnp.where(usable(variance), variance / target, 1.0)
    return 0.5 * jnp.log(ratio)


def _goal(layer: Layer, seen: Moments) -> Array:
    """A layer that is called once goes on to hand on what is right.

    The miss of each is then its own. Not where that cannot be told: shared calls have
    one factor, and what no gradient reaches back to (behind `stop_gradient`) keeps 1.
    """
    alone = seen.seen & (not layer.shared)
    return jnp.where(alone, jnp.float32(layer.target), 0.0)


def _biases(
    progress: Progress, centred: frozenset[Path], seen: Mapping[Path, Moments]
) -> dict[Path, Array]:
    """The biases less the means of their channels, at factors of 1."""
    factors = _factors(progress.layers, progress.search.at)
    found = {}
    for layer in progress.layers:
        if layer.path not in centred:
            continue
        assert layer.channels is not None
        path, lift = layer.channels[0], layer.units[0].lift
        bias, mean = progress.arrays[path], seen[layer.path].mean
        mean = mean if jnp.iscomplexobj(bias) else jnp.real(mean)
        mean = jnp.where(jnp.isfinite(mean), mean, 0).reshape(bias.shape)
        mean = mean / spread(factors[layer.path], bias.shape, lift)
        found[path] = (bias - mean).astype(bias.dtype)
    return found


def _scaled(
    layers: tuple[Layer, ...], arrays: Mapping[Path, Array], at: Array
) -> dict[Path, Array]:
    """The arrays of each layer times its factor."""
    factors, found = _factors(layers, at), {}
    for layer in layers:
        by = factors[layer.path]
        for path in (*layer.weights, *layer.biases):
            x = arrays[path]
            found[path] = multiply(x, spread(by, x.shape, layer.units[0].lift))
    return found


def _factors(layers: tuple[Layer, ...], at: Array) -> dict[Path, Array]:
    """The factors, as they ride, from their logarithms."""
    columns = unpack([layer.units[0] for layer in layers], {"by": jnp.exp(at)})
    return {path: own["by"] for (path, _), own in columns.items()}


def _column(layers: tuple[Layer, ...], values: Mapping[Path, Array]) -> Array:
    """Values of all layers, one after the other."""
    units = [layer.units[0] for layer in layers]
    return vector(units, {kind_of(unit): values[unit.path] for unit in units})
