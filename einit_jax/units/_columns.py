"""TODO."""

import itertools
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._unit import Unit, UnitKey


class UnitRow(NamedTuple):
    """One line of a table of units: a unit, or one layer of a lifted one."""

    path: str
    kind: str
    shape: tuple[tuple[int, ...], ...]
    calls: int
    floats: bool
    region: int
    """Of the input, or of the output where no input is floating."""
    inside: int
    """Rows of one number share their parameters."""


def concat_units(
    units: Iterable[Unit], values: Mapping[UnitKey, jax.Array]
) -> jax.Array:
    """The values of all units and their layers, one after the other."""
    return jnp.concatenate([values[u.key].ravel() for u in units])


def split_units(
    units: Iterable[Unit], columns: Mapping[str, jax.Array]
) -> dict[UnitKey, dict[str, jax.Array]]:
    """Columns over all units and layers, as values per unit in the shapes they ride.

    Where a unit's values start is kept from the compiler: slices at places that it does
    not know are all alike, and are compiled once.
    """
    found, start = {}, 0
    for u in units:
        at = jax.lax.optimization_barrier(jnp.int32(start))
        cut = lambda c, at=at, u=u: jax.lax.dynamic_slice_in_dim(c, at, u.size)
        found[u.key] = {n: cut(c).reshape(u.ride_shape) for n, c in columns.items()}
        start += u.size
    return found


def call_order(units: Iterable[Unit]) -> tuple[tuple[str, ...], np.ndarray]:
    """The paths of all units and layers in call order, and their places in `vector`."""
    units = tuple(units)
    nowhere = np.zeros(sum(u.size for u in units), int)
    table, order = unit_rows(units, nowhere, nowhere, nowhere)
    return tuple(row.path for row in table), order


def unit_rows(
    units: tuple[Unit, ...], into: np.ndarray, out: np.ndarray, own: np.ndarray
) -> tuple[list[UnitRow], np.ndarray]:
    """The lines of a table in call order, and where in `vector` each has its values.

    Units of one lifted stack take turns, layer by layer. `into`, `out` and `own` number
    the regions of inputs and outputs, and the insides, in the order of `vector`.
    """
    starts = np.cumsum([0, *(u.size for u in units)])
    places = dict(zip(units, starts, strict=False))
    stack = lambda u: (u.layers, u.path[:1] if u.layers else u.name)
    table, order = [], []
    for _, group in itertools.groupby(units, stack):
        members = list(group)
        for i, layer in enumerate(np.ndindex(*members[0].layers)):
            for u in members:
                at = places[u] + i
                name = u.name + (f"[{','.join(map(str, layer))}]" if layer else "")
                region = int(into[at] if u.floats else out[at])
                row = (name, u.kind, u.shape, u.calls, u.floats, region, int(own[at]))
                table.append(UnitRow(*row))
                order.append(at)
    return table, np.array(order, int)
