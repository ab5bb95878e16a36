"""In what shape taps are carried, and where readings are found again, row by row."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import (
    Params,
    first_axis,
    fits_layers,
    flatten,
    lifted_axes_of,
    path_str,
    select_names,
)
from ..units import Unit, UnitKey, call_order, floats_below, may_be_method


def watched_units(
    units: Sequence[Unit], include: tuple[str, ...], exclude: tuple[str, ...]
) -> list[Unit]:
    """The units that patterns leave in.

    Raises:
        ValueError: a pattern matches no unit, or none is left.
    """
    names = {u.name: None for u in units}
    kept = select_names(names, include, exclude)
    if not kept:
        raise ValueError(
            "no unit is left to watch: the model has none, or exclude matches all of "
            f"{', '.join(list(names)[:12]) or '(no units)'}"
        )
    return [u for u in units if u.name in kept]


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


def taps_by_unit(taps: Any, params: Params, length: int) -> dict[UnitKey, Array]:
    """Taps by unit, checked to be of these parameters.

    Args:
        taps: by the names of units.
        params: the model's, without boxes.
        length: of the vector for each layer.

    Raises:
        TypeError: they are no mapping.
        ValueError: one is of no module of the parameters, of other layers, or of
            another length.
    """
    if not isinstance(taps, Mapping):
        raise TypeError(f"taps are a {type(taps).__name__}, expected state.taps")
    by_unit: dict[UnitKey, Array] = {}
    for name, tap in taps.items():
        path, method = _unit_key(name, params, taps)
        _check_tap(name, tap, reduce(getitem, path, params), length)
        by_unit[path, method] = tap
    return by_unit


def _unit_key(name: str, params: Params, tapped: Container[str]) -> UnitKey:
    """A unit's name, among those that are tapped, as its module's path and its method.

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
    is_called = path_str(tuple(path)) in tapped
    if len(rest) > 1 or (rest and not may_be_method(rest[0], node, is_called)):
        raise ValueError(
            f"{name!r} is no module of these params: taps are of another model; make "
            "them by init with this one"
        )
    return tuple(path), rest[0] if rest else "__call__"


def _check_tap(name: str, tap: Any, module: Any, length: int) -> None:
    """Raises where a tap has not the shape that the arrays of its module ask for."""
    shape = tuple(getattr(tap, "shape", ()))
    layers = shape[:-1] if shape[-1:] == (length,) else shape[1:]
    leaves = flatten(module).values()
    fits = all(fits_layers(jnp.shape(x), lifted_axes_of(layers)) for x in leaves)
    if length not in shape or not fits:
        raise ValueError(
            f"the tap of {name!r} has the shape {shape}, which is of other layers or "
            "other options; make taps by init with this model"
        )
