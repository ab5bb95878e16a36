"""How far every unit's output moves on the way from each input to the next one.

One forward-mode pass along `x' - x`, where x' is the batch rolled by one example. What
is read off it, and off the differences between outputs as they are, is the
*amplification*: 1 where differences between inputs grow as the signal does.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import (
    ModelArgs,
    Partition,
    anchor,
    float_leaves,
    gathered,
    inverse_rms,
    multiply,
    rms,
    rms_of_calls,
    shaped_like,
    squares,
    vary_with,
)
from ..graph import derivative_along
from ..units import Interception, Objective, Unit, UnitCall, UnitKey
from ._output_changes import empty_changes, sure_spread, tap_changes


@dataclass(frozen=True)
class Amplifications:
    """By what factor differences between inputs have grown more than the signal.

    `A = [rms(t_y) / rms(s(y))] / [rms(t_x) / rms(s(x))]`: t are tangents along the way
    from each input to the next, `s(v) = v - mean over the batch`. NaN where no
    difference gets, and everywhere for a batch of one.
    """

    of_units: dict[UnitKey, Float[Array, "..."]]
    """As carried; over calls by root mean squares."""
    of_outputs: Float[Array, ""]
    """Of the model's floating outputs together."""
    spread_lost: Float[Array, ""]
    """By what factor the share `rms(s) / rms` that differences have in the signal is
    smaller in the outputs than in the batch; of integers it is 1 there."""


def amplifications(
    objective: Objective,
    units: tuple[Unit, ...],
    args: ModelArgs,
    *,
    outputs: Mapping[UnitKey, Array] | None = None,
    targets: Mapping[UnitKey, Array] | None = None,
    whole: bool = False,
) -> Amplifications:
    """The amplification of each unit, and of the whole model.

    Differences start at the floating arrays of the batch, and at the outputs of units
    that read no floating ones; where there is neither, at those of the first unit.

    Args:
        objective: the model; the loss is not used.
        units: all of its units, in call order.
        args: what the model runs on; the first axis of arrays is that of the batch.
        outputs: the factor a of each unit.
        targets: in its place, the rms that each call of a unit is brought to on its
            way, as if the factors were solved for that; 0: it is left as it is.
        whole: whether that of the whole model is enough; of units it has the last one
            then, and those at which differences start.
    """
    carried, name = (outputs, "factor") if targets is None else (targets, "target")
    assert carried is not None, "either factors or targets are given"
    leaves = Partition(args.batch.inputs)
    sources = {unit.key for unit in units if not unit.floats}
    if not sources and not any(x.ndim for x in leaves.floats):
        sources = {units[0].key}
    read = {units[-1].key, *sources} if whole else {unit.key for unit in units}
    zeros = {u.key: _empty_sums(u, carried[u.key]) for u in units if u.key in read}
    zeros = vary_with(zeros, args)
    arrays = [x for x in leaves.floats if x.ndim]
    batched = (*arrays, *(x for x in leaves.arrays if jnp.ndim(x)))
    handle = partial(_tap_difference, frozenset(x.shape[0] for x in batched))

    def moved(sums: Any) -> tuple[Array, Any]:
        def forward(way: Array) -> list[Array]:
            entries = {u.key: {name: carried[u.key]} for u in units}
            for key, own in sums.items():
                entries[key] |= own
            for key in sources:
                entries[key]["way"] = jnp.broadcast_to(way, carried[key].shape)
            taps = Interception("differences", entries, handle)
            inputs = leaves.build([_on_the_way(x, way) for x in leaves.floats])
            batch = args.batch._replace(inputs=inputs)
            model_outputs, _ = objective.run(args._replace(batch=batch), taps)
            return float_leaves(model_outputs)

        start = [jnp.zeros((), jnp.float32)]
        ends, tangents = derivative_along(forward, start, [jnp.ones((), jnp.float32)])
        pairs = [(t, y) for t, y in zip(tangents, ends, strict=True) if y.ndim]
        values = [y for _, y in pairs]
        found = _ratio([t for t, _ in pairs], values), _share(values)
        return anchor(tangents), found

    run = lambda: jax.grad(moved, has_aux=True)(zeros)
    sums, (of_outputs, share) = objective.over_axis(run)
    ratios = {}
    for key, own in sums.items():
        sizes = [rms_of_calls(own[name], own["calls"]) for name in ("size", "spread")]
        ratios[key] = _quotient(*sizes)
    starts = [jnp.atleast_1d(_ratio([_towards_next(x)], [x])) for x in arrays]
    starts += [ratios[key].ravel() for key in sources]
    start = jnp.sqrt(jnp.nanmean(jnp.square(jnp.concatenate(starts))))
    shares = [_share([x]) for x in arrays]
    first = jnp.nanmax(jnp.stack(shares)) if shares else jnp.float32(1)
    return Amplifications(
        {key: ratio / start for key, ratio in ratios.items()},
        of_outputs=of_outputs / start,
        spread_lost=first / share,
    )


def _empty_sums(unit: Unit, like: Array) -> dict[str, Any]:
    """Zeros in a shape, whose cotangents are the statistics of one unit."""
    sums = empty_changes(unit, like, wide=True)
    return {**sums, "spread": sums["size"]}


def _towards_next(x: Array) -> Array:
    """How far each example of a batch is from the next one."""
    return shaped_like(jnp.roll(gathered(x), 1, 0), x) - x


def _on_the_way(x: Array, way: Array) -> Array:
    """The batch, moved towards the next examples by a share of the way, which is 0."""
    if not x.ndim:
        return x
    return x + multiply(jax.lax.stop_gradient(_towards_next(x)), way)


def _ratio(moved: list[Array], values: list[Array]) -> Float[Array, ""]:
    """The rms of changes over that of the differences between examples."""
    return _quotient(rms(moved), sure_spread(values))


def _share(values: list[Array]) -> Float[Array, ""]:
    """What share of the size is that of differences; NaN where there is no size."""
    size = rms(values)
    return sure_spread(values) / jnp.where(size > 0, size, jnp.nan)


def _quotient(moved: Array, spread: Array) -> Array:
    """One size over another; NaN where nothing moves."""
    return jnp.where(moved > 0, moved, jnp.nan) / spread


def _tap_difference(
    batch_sizes: frozenset[int], call: UnitCall, entry: Mapping[str, Any]
) -> Any:
    """The call's outputs, scaled, and both statistics of them."""
    outputs = call.proceed(call.inputs)
    if "target" in entry:
        power, size = squares([jax.lax.stop_gradient(t) for t in outputs])
        target = entry["target"].reshape(())
        factor = jnp.where(target > 0, target * inverse_rms(power / size), 1.0)
    else:
        factor = entry["factor"].reshape(())
    outputs = [multiply(t, factor) for t in outputs]
    if "way" in entry:
        way = entry["way"].reshape(())
        here = lambda t: t.ndim and t.shape[0] in batch_sizes  # not those of positions
        outputs = [_on_the_way(t, way) if here(t) else t for t in outputs]
    sums = {n: t for n, t in entry.items() if n in ("calls", "size", "spread")}
    outputs = tap_changes(outputs, call.inputs, sums) if sums else outputs
    return call.finish(outputs)
