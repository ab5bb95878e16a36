"""Means and variances of what layers return, read off one run of the model.

Each layer hands on its output centred and scaled, so that the next one is measured on
input that is right already. The sums leave as the cotangent of what is carried; no
gradient is computed for that: what travels backward are zeros, between layers, where
nothing is multiplied by weights.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import (
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

A mean of 10^3 equal numbers is off by some 20 eps; of 10^6 more, as sums go.
"""


class LayerMoments(NamedTuple):
    """What a pass tells of a layer, jointly over its calls; each layer of a stack."""

    mean: Array
    """Of each channel where these are centred; as the bias, else as carried."""
    variance: Float[Array, "..."]
    """Around these means; 0 where it is but rounding."""
    seen: Array


def empty_moment_sums(params: Any, layer: Layer, centred: bool) -> dict[str, Array]:
    """Zeros, whose cotangents are sums over calls.

    Flat where no axis is lifted: a transform of the variables, such as
    `nn.SpectralNorm`, would take a matrix for one of the weights.
    """
    zero = jnp.zeros(layer.units[0].carried_shape, jnp.float32)
    mean = zero
    if centred and layer.channels:
        shape = flatten(unboxed(params))[layer.channels[0]].shape
        mean = jnp.zeros(shape, jnp.float32)
        mean = mean if layer.units[0].lifted_axes else mean.ravel()
    of_means = {"real": mean, "imag": mean}
    return {"size": zero, "within": zero, "between": zero, **of_means}


def measuring_moments(
    channels: Mapping[Path, int], entries: Mapping[UnitKey, Mapping[str, Any]]
) -> Interception:
    """The interception of a pass; `channels` tells how many last axes are centred.

    An entry has the variance that is the layer's `goal`, and the `sums`.
    """
    return Interception("moments", entries, partial(_measure_call, channels))


def _measure_call(
    channels: Mapping[Path, int], call: UnitCall, entry: Mapping[str, Any]
) -> Any:
    raw = call.proceed([jax.lax.stop_gradient(x) for x in call.inputs])
    outputs = [jax.lax.stop_gradient(t) for t in raw]
    centred, sums = _moment_sums(outputs, channels.get(call.path, 0))
    goal = entry["goal"].reshape(())
    variance = _variance(sums["within"], sums["between"], sums["size"])
    factor = jnp.sqrt(jnp.abs(goal)) * inverse_rms(variance)
    factor = jnp.where(usable(variance), factor, 1.0)
    right = [
        (factor * t).astype(y.dtype) for t, y in zip(centred, outputs, strict=True)
    ]
    handed = [jnp.where(goal > 0, r, y) for r, y in zip(right, outputs, strict=True)]
    linked = link_cotangents(call.inputs, handed)
    return call.finish(emit(linked, sums, entry["sums"]))


def _moment_sums(outputs: list[Array], axes: int) -> tuple[list[Array], dict[str, Any]]:
    """The outputs to be handed on before scaling, and the sums of one call.

    Without channels the outputs keep their mean, and the variance is around it.
    """
    wide = [widen(t) for t in outputs]
    size = sum(t.size for t in wide)
    if axes:
        (y,) = wide
        mean = jnp.mean(y, tuple(range(y.ndim - axes)))
        around = handed = [y - mean]
    else:
        mean = jnp.asarray(sum(jnp.sum(t) for t in wide)) / max(size, 1)
        around, handed = [t - mean for t in wide], wide
    count = size / max(mean.size, 1)
    within, _ = squares(around)
    sums = {
        "size": per_call(size, wide),
        "within": within,
        "between": count * squares([mean])[0],
        "real": count * jnp.real(mean),
        "imag": count * jnp.imag(mean),
    }
    return handed, {name: jnp.asarray(f, jnp.float32) for name, f in sums.items()}


def _variance(within: Array, between: Array, size: Array) -> Float[Array, "..."]:
    """The mean of squares around means, and 0 where that is but rounding of these."""
    variance = within / jnp.maximum(size, 1)
    power = between / jnp.maximum(size, 1)
    return jnp.where(variance <= ROUNDING * power, 0.0, variance)


def layer_moments(layer: Layer, sums: Mapping[str, Array]) -> LayerMoments:
    """Means and variance over all calls, from their sums."""
    unit, total = layer.units[0], sums["real"] + 1j * sums["imag"]
    each = lambda t: layers_first(t, unit.lifted_axes).reshape(*unit.layers, -1)
    carried = lambda t: t.reshape(unit.carried_shape)
    size, within, between = (
        carried(each(sums[name])) for name in ("size", "within", "between")
    )
    count = jnp.maximum(size * unit.size / total.size, 1e-9)
    mean = total / broadcast_per_layer(count, total.shape, unit.lifted_axes)
    if layer.shared:
        joint = count * carried(jnp.sum(jnp.square(jnp.abs(each(mean))), -1))
        within += jnp.maximum(between - joint, 0.0)
    return LayerMoments(mean, _variance(within, between, size), size > 0)
