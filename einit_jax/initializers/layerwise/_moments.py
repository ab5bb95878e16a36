"""Means and variances of what layers return, read off one run of the model.

Each layer hands on its output centred and scaled, so that the next one is measured on
input that is right already. The sums over calls leave as the cotangents of what is
carried to the layers. This computes no true gradient: only zeros travel backward,
between layers, and weights multiply none of them.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ...core import (
    Params,
    Path,
    broadcast_per_layer,
    emit,
    flatten,
    from_windows,
    inverse,
    layers_first,
    link_cotangents,
    per_call,
    rms,
    unboxed,
    usable,
    widen,
    windows,
)
from ...units import Interception, UnitCall, UnitKey
from ._layers import Layer

ROUNDING = 1e-4
"""The least deviation, over the mean, that is taken for more than rounding.

The mean of 10^3 equal numbers is off by some 20 eps; that of 10^6 is off by more,
because errors grow with the length of a sum.
"""


class LayerMoments(NamedTuple):
    """What a pass tells of a layer, over all calls; for each layer of a stack apart."""

    mean: Array
    """The mean of each channel, in the shape of the bias, where channels are centred;
    else the mean of all, in the shape in which numbers are carried."""
    deviation: Float[Array, "..."]
    """The deviation from these means; 0 where it is no more than rounding."""
    reached: Bool[Array, "..."]
    """Whether cotangents come back to the layer; else the pass tells nothing of it."""


def empty_moment_sums(params: Params, layer: Layer, *, centred: bool) -> dict[str, Any]:
    """Zeros, whose cotangents are sums over calls; squares by `core.WINDOWS`.

    Those of means are flat where no axis is lifted, because a transform of the
    variables, such as `nn.SpectralNorm`, would take a matrix for one of the weights.
    """
    zero = jnp.zeros(layer.units[0].carried_shape, jnp.float32)
    mean = zero
    if centred and layer.channels:
        shape = flatten(unboxed(params))[layer.channels[0]].shape
        mean = jnp.zeros(shape, jnp.float32)
        mean = mean if layer.lifted_axes else mean.ravel()
    squared = windows(zero)
    zeros = {"size": zero, "within": squared, "between": squared}
    return zeros | {"real": mean, "imag": mean}


def measuring_moments(
    channels: Mapping[Path, int], entries: Mapping[UnitKey, Mapping[str, Any]]
) -> Interception:
    """The interception of a pass.

    Args:
        channels: the number of last axes that are channels, of each layer whose
            channels are centred.
        entries: of each unit the empty `sums`, and the `goal`: the variance at which it
            hands on its output; where that is 0 it hands on the output as it is.
    """
    return Interception("moments", entries, partial(_measure_call, channels))


def _measure_call(
    channels: Mapping[Path, int], call: UnitCall, entry: Mapping[str, Any]
) -> Any:
    """A call that emits its sums and, where it has a goal, hands on that variance."""
    raw = call.proceed([jax.lax.stop_gradient(x) for x in call.inputs])
    outputs = [jax.lax.stop_gradient(t) for t in raw]
    centred, sums = _moment_sums(outputs, channels.get(call.path, 0))
    goal = entry["goal"].reshape(())
    deviation = _sure_deviation(sums["within"], sums["between"])
    factor = jnp.sqrt(jnp.abs(goal)) * inverse(deviation)
    factor = jnp.where(usable(deviation), factor, 1.0)
    scaled = [
        (factor * t).astype(y.dtype) for t, y in zip(centred, outputs, strict=True)
    ]
    pairs = zip(scaled, outputs, strict=True)
    handed_on = [jnp.where(goal > 0, s, y) for s, y in pairs]
    linked = link_cotangents(call.inputs, handed_on)
    for name in ("within", "between"):
        squared = windows(sums[name]).items()
        sums[name] = {window: sums["size"] * square for window, square in squared}
    return call.finish(emit(linked, sums, entry["sums"]))


def _moment_sums(outputs: list[Array], axes: int) -> tuple[list[Array], dict[str, Any]]:
    """The outputs to hand on, not yet scaled, and the sums of one call.

    "within" and "between" are sizes: that of deviations from the means, and of these.

    The last `axes` are channels, each of which is centred. Without channels the outputs
    keep their mean, and the variance is taken around it.
    """
    wide = [widen(t) for t in outputs]
    size = sum(t.size for t in wide)
    if axes:
        (y,) = wide
        mean = jnp.mean(y, tuple(range(y.ndim - axes)))
        around = handed_on = [y - mean]
    else:
        mean = jnp.asarray(sum(jnp.sum(t) for t in wide)) / max(size, 1)
        around, handed_on = [t - mean for t in wide], wide
    count, within = size / max(mean.size, 1), rms(around)
    sums = {
        "size": per_call(size, within),
        "within": within,
        "between": rms([mean]),
        "real": count * jnp.real(mean),
        "imag": count * jnp.imag(mean),
    }
    sums = {name: jnp.asarray(total, jnp.float32) for name, total in sums.items()}
    return handed_on, sums


def _sure_deviation(within: Array, between: Array) -> Float[Array, "..."]:
    """The deviation from means, and 0 where that is no more than their rounding."""
    return jnp.where(within <= ROUNDING * between, 0.0, within)


def layer_moments(layer: Layer, sums: Mapping[str, Any]) -> LayerMoments:
    """Means and deviation over all calls, from their sums."""
    unit, total = layer.units[0], sums["real"] + 1j * sums["imag"]

    def rows(t: Array) -> Array:
        """A row of numbers for each layer of a stack."""
        return layers_first(t, unit.lifted_axes).reshape(*unit.layers, -1)

    carried = lambda t: t.reshape(unit.carried_shape)
    size = carried(rows(sums["size"]))
    count = jnp.maximum(size * unit.size / total.size, 1e-9)
    mean = total / broadcast_per_layer(count, total.shape, unit.lifted_axes)
    within, between = (
        from_windows(jax.tree.map(lambda t: carried(rows(t)), sums[name]), size)
        for name in ("within", "between")
    )
    if layer.shared:
        # the means of calls differ: their variance around the joint mean counts, too
        joint = carried(rms([rows(mean)], keep=len(unit.layers)))
        largest = jnp.maximum(within, between)
        share = lambda size: jnp.square(size * inverse(largest))
        apart = jnp.maximum(share(between) - share(joint), 0.0)
        within = largest * jnp.sqrt(share(within) + apart)
    return LayerMoments(mean, _sure_deviation(within, between), size > 0)
