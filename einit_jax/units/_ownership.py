"""From a graph of units to trees of values, one per unit, and back."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import (
    Path,
    broadcast_per_layer,
    flatten,
    is_float,
    layers_first,
    multiply,
    owner_of,
    rms,
    unboxed,
)
from ._unit import Unit


def floats_below(params: Mapping, unit: Unit) -> list[Any]:
    """The floating parameters of a unit, arrays or shapes, in order of their paths."""
    node: Any = params
    for name in unit.path:
        node = node[name]
    return [v for v in flatten(unboxed(node)).values() if is_float(v)]


def own_floats(params: Mapping, unit: Unit) -> dict[str, Array]:
    """The floating parameters of a unit, numbered in the order of their paths."""
    return {f"{i:04d}": v for i, v in enumerate(floats_below(params, unit))}


def owners(params: Mapping, units: Iterable[Unit]) -> tuple[Unit | None, ...]:
    """The unit that owns each floating parameter, if any does, in order of paths."""
    known = {u.path: u for u in units}
    return tuple(
        owner_of(path, known)
        for path, leaf in flatten(unboxed(params)).items()
        if is_float(leaf)
    )


def mask_unowned(
    gradient: Iterable[Array], owned: Iterable[Unit | None], units: bool = True
) -> list[Array]:
    """The gradient of parameters that units own, or of the others; the rest is zero."""
    pairs = zip(gradient, owned, strict=True)
    return [g if (u is not None) == units else jnp.zeros_like(g) for g, u in pairs]


def scale_by_owner(
    leaves: Iterable[Array],
    owned: Iterable[Unit | None],
    weights: Mapping[Path, Array],
) -> list[Array]:
    """Each parameter's array times the weight of the unit that owns it, if any does."""
    return [
        multiply(x, broadcast_per_layer(weights[u.path], x.shape, u.lift)) if u else x
        for x, u in zip(leaves, owned, strict=True)
    ]


def param_rms(leaves: Iterable[Array], unit: Unit) -> Float[Array, "..."]:
    """The joint rms of arrays shaped like the unit's parameters, for each layer."""
    by_layer = [layers_first(leaf, unit.lift) for leaf in leaves]
    return rms(by_layer, keep=len(unit.layers)).reshape(unit.ride_shape)


def flat_floats(params: Mapping, unit: Unit) -> dict[str, Array]:
    """A copy of the unit's floating parameters, to ride with it.

    They are flat where no axis is lifted: a transform of the variables, such as
    `nn.SpectralNorm`, would take a matrix for one of the weights.
    """
    own = own_floats(params, unit)
    return {n: v if unit.lift else v.ravel() for n, v in own.items()}


def zeros_like_params(params: Mapping, unit: Unit) -> dict[str, Array]:
    """Zeros that ride like the unit's floating parameters."""
    return jax.tree.map(jnp.zeros_like, flat_floats(params, unit))
