"""In what shape taps are carried, and where readings are found again, row by row."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import Params, first_axis
from ..units import Unit, UnitKey, call_order, floats_below


@dataclass(frozen=True)
class UnitTap:
    """How the vectors of a unit's layers are carried."""

    name: str
    carried_shape: tuple[int, ...]
    front: bool
    """Whether lifted axes come first in the unit's parameters, as they mostly do."""

    def shape(self, length: int) -> tuple[int, ...]:
        """The shape of a vector per layer: flat inside of all lifted transforms."""
        layers = self.carried_shape
        return (*layers, length) if self.front else (length, *layers)

    def by_layer(self, vectors: Array) -> Float[Array, "layers length"]:
        """What was carried, a vector per layer."""
        vectors = vectors if self.front else jnp.moveaxis(vectors, 0, -1)
        return vectors.reshape(math.prod(self.carried_shape), -1)


@dataclass(frozen=True)
class TapLayout:
    """The taps of several units; static, equal by value."""

    units: tuple[UnitTap, ...]
    paths: tuple[str, ...]
    """Of all units and layers, in call order."""
    order: tuple[int, ...]
    """Of these, among the layers of one unit after the other."""

    def in_order(self, vectors: Mapping[str, Array]) -> Float[Array, "rows length"]:
        """The vectors of all units and layers in call order."""
        each = [tap.by_layer(vectors[tap.name]) for tap in self.units]
        return jnp.concatenate(each)[np.array(self.order)]


def tap_layout(units: Sequence[Unit], params: Params) -> TapLayout:
    """The taps of units; params hold arrays or shapes."""
    paths, order = call_order(units)
    taps = [
        UnitTap(u.name, u.carried_shape, _layers_in_front(params, u)) for u in units
    ]
    return TapLayout(tuple(taps), paths, tuple(map(int, order)))


def _layers_in_front(params: Params, unit: Unit) -> bool:
    leaves = floats_below(params, unit)
    return all(first_axis(leaf.shape, unit.lifted_axes) == 0 for leaf in leaves)


def unit_key(name: str, params: Params) -> UnitKey:
    """A unit's name as its module's path and its method.

    Raises:
        ValueError: it is no module of the parameters.
    """
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
