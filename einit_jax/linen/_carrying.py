"""Where a unit's vector of numbers rides, and where it is found again, row by row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict
from jaxtyping import Array, Float

from ..core import Path, first_axis, insert, is_float, key_name, unboxed
from ..units import Unit, UnitKey, call_order, floats_below

RIDE = "einit:"
"""Prefix of every reserved entry; no Flax module can be named so."""


def is_carried(path: tuple) -> bool:
    """Whether a path of jax keys leads into a reserved entry."""
    return any(key_name(key).startswith(RIDE) for key in path)


def without_carried(tree: Any) -> Any:
    """The tree without its reserved entries."""
    if isinstance(tree, Mapping):
        kept = {k: v for k, v in tree.items() if not str(k).startswith(RIDE)}
        inner = {k: without_carried(v) for k, v in kept.items()}
        return FrozenDict(inner) if isinstance(tree, FrozenDict) else inner
    return tree


def carry_entries(params: Any, name: str, values: Mapping[UnitKey, Any]) -> dict:
    """A copy of params with each unit's values in the entry `name` beside its own."""
    rides: dict[Path, dict] = {}
    for (path, method), value in values.items():
        rides.setdefault((*path, name), {})[method] = value
    return insert(params, rides)


def own_gradients(of_variables: Any) -> list[Array]:
    """The gradients of a unit's own floating parameters, rides left out."""
    leaves, _ = jax.tree.flatten_with_path(of_variables)
    return [g for path, g in leaves if not is_carried(path) and is_float(g)]


@dataclass(frozen=True)
class UnitTap:
    """Where the vectors of a unit's layers ride."""

    name: str
    ride_shape: tuple[int, ...]
    front: bool
    """Whether lifted axes come first in the unit's parameters, as they mostly do."""

    def shape(self, length: int) -> tuple[int, ...]:
        """The shape in which a vector per layer rides: inside of all lifts flat."""
        ride = self.ride_shape
        return (*ride, length) if self.front else (length, *ride)

    def by_layer(self, vectors: Array) -> Float[Array, "layers length"]:
        """What rode, a vector a layer."""
        vectors = vectors if self.front else jnp.moveaxis(vectors, 0, -1)
        return vectors.reshape(math.prod(self.ride_shape), -1)


@dataclass(frozen=True)
class TapLayout:
    """The places of several units; static, equal by value."""

    units: tuple[UnitTap, ...]
    paths: tuple[str, ...]
    """Of all units and layers, in call order."""
    order: tuple[int, ...]
    """Of these, among the layers of one unit after the other."""

    def in_order(self, vectors: Mapping[str, Array]) -> Float[Array, "rows length"]:
        """The vectors of all units and layers in call order."""
        each = [place.by_layer(vectors[place.name]) for place in self.units]
        return jnp.concatenate(each)[np.array(self.order)]


def tap_layout(units: Sequence[Unit], params: Mapping) -> TapLayout:
    """The places of the units' vectors; params hold arrays or shapes."""
    paths, order = call_order(units)
    each = [UnitTap(u.name, u.ride_shape, _lifts_in_front(params, u)) for u in units]
    return TapLayout(tuple(each), paths, tuple(map(int, order)))


def _lifts_in_front(params: Mapping, unit: Unit) -> bool:
    leaves = floats_below(params, unit)
    return all(first_axis(leaf.shape, unit.lift) == 0 for leaf in leaves)


def carry_taps(params: Mapping, entry: str, values: Mapping[str, Any]) -> dict:
    """A copy of params with each unit's value in an entry beside its parameters.

    Raises:
        ValueError: a unit is no module of the parameters.
    """
    known = unboxed(params)
    return carry_entries(
        params, entry, {_unit_key(name, known): v for name, v in values.items()}
    )


def _unit_key(name: str, params: Mapping) -> UnitKey:
    """A unit's name as its module's path and its method."""
    node: Any = params
    parts = [] if name == "." else name.split("/")
    path: list[str] = []
    for part in parts:
        if not isinstance(node.get(part), Mapping):
            break
        node = node[part]
        path.append(part)
    rest = parts[len(path) :]
    if len(rest) > 1:
        raise ValueError(
            f"{name!r} is no module of these params: taps are of another model; make "
            "them by init with this one"
        )
    return tuple(path), rest[0] if rest else "__call__"
