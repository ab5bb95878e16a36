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
    inverse_rms,
    layers_first,
    link_cotangents,
    per_call,
    squares,
    unboxed,
    usable,
    widen,
)
from ...units import Interception, UnitCall, UnitKey
from ._layers import Layer

ROUNDING = 1e-8
"""The least variance, over the squared mean, that is taken for more than rounding.

The mean of 10^3 equal numbers is off by some 20 eps; that of 10^6 is off by more,
because errors grow with the length of a sum.
"""


class LayerMoments(NamedTuple):
    """What a pass tells of a layer, over all calls; for each layer of a stack apart."""

    mean: Array
    """The mean of each channel, in the shape of the bias, where channels are centred;
    else the mean of all, in the shape in which numbers are carried."""
    variance: Float[Array, "..."]
    """The variance around these means; 0 where it is no more than rounding."""
    reached: Bool[Array, "..."]
    """Whether cotangents come back to the layer; else the pass tells nothing of it."""


def empty_moment_sums(
    params: Params, layer: Layer, *, centred: bool
) -> dict[str, Array]:
    """Zeros, whose cotangents are sums over calls.

    Those of means are flat where no axis is lifted, because a transform of the
    variables, such as `nn.SpectralNorm`, would take a matrix for one of the weights.
    """
    zero = jnp.zeros(layer.units[0].carried_shape, jnp.float32)
    mean = zero
    if centred and layer.channels:
        shape = flatten(unboxed(params))[layer.channels[0]].shape
        mean = jnp.zeros(shape, jnp.float32)
        mean = mean if layer.lifted_axes else mean.ravel()
    zeros = {"size": zero, "within": zero, "between": zero}
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
    variance = _variance(sums["within"], sums["between"], sums["size"])
    factor = jnp.sqrt(jnp.abs(goal)) * inverse_rms(variance)
    factor = jnp.where(usable(variance), factor, 1.0)
    scaled = [
        (factor * t).astype(y.dtype) for t, y in zip(centred, outputs, strict=True)
    ]
    pairs = zip(scaled, outputs, strict=True)
    handed_on = [jnp.where(goal > 0, s, y) for s, y in pairs]
    linked = link_cotangents(call.inputs, handed_on)
    return call.finish(emit(linked, sums, entry["sums"]))


def _moment_sums(
    outputs: list[Array], axes: int
) -> tuple[list[Array], dict[str, Array]]:
    """The outputs to hand on, not yet scaled, and the sums of one call.

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
    count = size / max(mean.size, 1)
    within, _ = squares(around)
    sums = {
        "size": per_call(size, within),
        "within": within,
        "between": count * squares([mean])[0],
        "real": count * jnp.real(mean),
        "imag": count * jnp.imag(mean),
    }
    sums = {name: jnp.asarray(total, jnp.float32) for name, total in sums.items()}
    return handed_on, sums


def _variance(within: Array, between: Array, size: Array) -> Float[Array, "..."]:
    """The mean square around means, and 0 where that is no more than their rounding."""
    variance = within / jnp.maximum(size, 1)
    power = between / jnp.maximum(size, 1)
    return jnp.where(variance <= ROUNDING * power, 0.0, variance)


def layer_moments(layer: Layer, sums: Mapping[str, Array]) -> LayerMoments:
    """Means and variance over all calls, from their sums."""
    unit, total = layer.units[0], sums["real"] + 1j * sums["imag"]

    def rows(t: Array) -> Array:
        """A row of numbers for each layer of a stack."""
        return layers_first(t, unit.lifted_axes).reshape(*unit.layers, -1)

    carried = lambda t: t.reshape(unit.carried_shape)
    size, within, between = (
        carried(rows(sums[name])) for name in ("size", "within", "between")
    )
    count = jnp.maximum(size * unit.size / total.size, 1e-9)
    mean = total / broadcast_per_layer(count, total.shape, unit.lifted_axes)
    if layer.shared:
        # the means of calls differ: their variance around the joint mean counts, too
        joint = count * carried(jnp.sum(jnp.square(jnp.abs(rows(mean))), -1))
        within += jnp.maximum(between - joint, 0.0)
    return LayerMoments(mean, _variance(within, between, size), size > 0)
