"""Which unit owns which parameter, and arithmetic on what it owns."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import (
    Path,
    broadcast_per_layer,
    flatten,
    gathered,
    is_float,
    layers_first,
    multiply,
    owner_of,
    rms,
    unboxed,
)
from ._unit import Mover, Unit

M = TypeVar("M", bound=Mover)


def floats_below(params: Mapping, unit: Unit) -> list[Any]:
    """The floating parameters of a unit, arrays or shapes, in order of their paths."""
    node: Any = params
    for name in unit.path:
        node = node[name]
    return [v for v in flatten(unboxed(node)).values() if is_float(v)]


def own_floats(params: Mapping, unit: Unit) -> dict[str, Array]:
    """The floating parameters of a unit, numbered in the order of their paths."""
    return {f"{i:04d}": v for i, v in enumerate(floats_below(params, unit))}


def owners(params: Mapping, movers: Iterable[M]) -> tuple[M | None, ...]:
    """What each floating parameter belongs to, if to anything, in order of paths.

    A unit, or the raw parameter that it is.
    """
    mover_at = {mover.path: mover for mover in movers}
    return tuple(
        owner_of(path, mover_at)
        for path, leaf in flatten(unboxed(params)).items()
        if is_float(leaf)
    )


def only_at(
    owned: Iterable[Mover | None], paths: Collection[Path]
) -> list[Mover | None]:
    """The owners at some paths, None in the place of all others."""
    return [mover if mover and mover.path in paths else None for mover in owned]


def mask_unowned(leaves: Iterable[Array], owned: Iterable[Mover | None]) -> list[Array]:
    """The arrays of parameters that units own; zeros for the others."""
    pairs = zip(leaves, owned, strict=True)
    return [x if unit is not None else jnp.zeros_like(x) for x, unit in pairs]


def scale_by_owner(
    leaves: Iterable[Array],
    owned: Iterable[Mover | None],
    weights: Mapping[Path, Array],
) -> list[Array]:
    """Each parameter's array times the weight of what it moves with, if anything."""
    per_layer = lambda x, unit: broadcast_per_layer(
        weights[unit.path], x.shape, unit.lifted_axes
    )
    pairs = zip(leaves, owned, strict=True)
    return [multiply(x, per_layer(x, unit)) if unit else x for x, unit in pairs]


def param_rms(leaves: Iterable[Array], unit: Mover) -> Float[Array, "..."]:
    """The joint rms of arrays shaped like the unit's parameters, for each layer."""
    by_layer = [layers_first(leaf, unit.lifted_axes) for leaf in leaves]
    return rms(by_layer, keep=len(unit.layers)).reshape(unit.carried_shape)


def flat_floats(params: Mapping, unit: Unit) -> dict[str, Array]:
    """A copy of the unit's floating parameters, to be carried to it.

    They are flat where no axis is lifted: a transform of the variables, such as
    `nn.SpectralNorm`, would take a matrix for one of the weights.
    """
    own = own_floats(params, unit)
    flat = lambda v: v if v.ndim < 2 else gathered(v).ravel()
    return {n: v if unit.lifted_axes else flat(v) for n, v in own.items()}


def zeros_like_params(params: Mapping, unit: Unit) -> dict[str, Array]:
    """Zeros that are carried like the unit's floating parameters."""
    return jax.tree.map(jnp.zeros_like, flat_floats(params, unit))
