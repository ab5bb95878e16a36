"""Where a unit's vector of numbers rides, and where it is found again, row by row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._graph import Unit
from ._lift import first_axis
from ._math import is_float
from ._paths import flatten, unboxed
from ._units import Kind, riding, rows


@dataclass(frozen=True)
class Place:
    """Where the vectors of a unit's layers are; static, equal by value."""

    name: str
    ride_shape: tuple[int, ...]
    front: bool
    """Whether lifted axes come first in the unit's parameters, as they mostly do."""
    rows: tuple[int, ...]
    """Of its layers, in the call order of all units and layers."""
    paths: tuple[str, ...]

    def shape(self, length: int) -> tuple[int, ...]:
        """The shape in which a vector per layer rides: inside of all lifts flat."""
        ride = self.ride_shape
        return (*ride, length) if self.front else (length, *ride)


def places(units: Sequence[Unit], params: Mapping) -> tuple[Place, ...]:
    """The place of each unit's vectors; params are unboxed, arrays or shapes."""
    nowhere = np.zeros(sum(u.size for u in units), int)
    table, order = rows(tuple(units), nowhere, nowhere, nowhere)
    row_of = np.argsort(order)
    found, start = [], 0
    for u in units:
        mine = tuple(map(int, row_of[start : start + u.size]))
        paths = tuple(table[i].path for i in mine)
        front = _lifts_in_front(params, u)
        found.append(Place(u.name, u.ride_shape, front, mine, paths))
        start += u.size
    return tuple(found)


def _lifts_in_front(params: Mapping, unit: Unit) -> bool:
    node: Any = params
    for name in unit.path:
        node = node[name]
    leaves = [leaf for leaf in flatten(node).values() if is_float(leaf)]
    return all(first_axis(leaf.shape, unit.lift) == 0 for leaf in leaves)


def in_order(
    known: Sequence[Place], vectors: Mapping[str, Array]
) -> Float[Array, "rows length"]:
    """The vectors of all units and layers in call order."""
    by_unit = []
    for place in known:
        vector = vectors[place.name]
        vector = vector if place.front else jnp.moveaxis(vector, 0, -1)
        by_unit.append(vector.reshape(len(place.rows), -1))
    where = np.concatenate([place.rows for place in known])
    return jnp.concatenate(by_unit)[np.argsort(where)]


def row_names(known: Sequence[Place]) -> tuple[str, ...]:
    """The path of each row."""
    pairs = [p for place in known for p in zip(place.rows, place.paths, strict=True)]
    return tuple(path for _, path in sorted(pairs))


def ride(params: Mapping, entry: str, values: Mapping[str, Any]) -> dict:
    """A copy of params with each unit's value in an entry beside its parameters.

    Raises:
        ValueError: a unit is no module of the parameters.
    """
    known = unboxed(params)
    return riding(params, entry, {_kind(name, known): v for name, v in values.items()})


def _kind(name: str, params: Mapping) -> Kind:
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
