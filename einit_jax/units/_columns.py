"""All units and their layers at once: as one vector, and as the rows of a table."""

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from ._unit import Unit, UnitKey


class UnitRow(NamedTuple):
    """One line of a table of units: a unit, or one layer of a lifted one."""

    path: str
    """The unit's name, and behind it in brackets the layer."""
    unit: str
    """The unit's name."""
    layer: tuple[int, ...]
    """Its place among the unit's layers; () where no axis is lifted."""
    kind: str
    """The name of the module's class."""
    shape: tuple[tuple[int, ...], ...]
    calls: int
    floats: bool
    region: int
    """Of the input, or of the output where no input is floating."""
    inside: int
    """Rows of one number share their parameters."""

    @property
    def shape_text(self) -> str:
        """The shapes of the outputs as tables have them: "32x16 scalar"."""
        return " ".join("x".join(map(str, s)) or "scalar" for s in self.shape)


def concat_units(
    units: Iterable[Unit], values: Mapping[UnitKey, jax.Array]
) -> jax.Array:
    """The values of all units and their layers, one after the other."""
    return jnp.concatenate([values[u.key].reshape(-1) for u in units])


def split_units(
    units: Iterable[Unit], columns: Mapping[str, jax.Array]
) -> dict[UnitKey, dict[str, jax.Array]]:
    """Columns over all units and layers, as values per unit as they are carried.

    Where a unit's values start is kept from the compiler: slices at places that it does
    not know are all alike, and are compiled once.
    """
    values, start = {}, 0
    for u in units:
        at = jax.lax.optimization_barrier(jnp.int32(start))
        cut = lambda c, at=at, u=u: jax.lax.dynamic_slice_in_dim(c, at, u.size)
        values[u.key] = {n: cut(c).reshape(u.carried_shape) for n, c in columns.items()}
        start += u.size
    return values


def unit_numbers(units: Collection[Unit]) -> Int[np.ndarray, " n"]:
    """Which of the units each entry of `concat_units` is of."""
    return np.repeat(np.arange(len(units)), [unit.size for unit in units])


def call_order(units: Iterable[Unit]) -> tuple[tuple[str, ...], np.ndarray]:
    """The paths of units and layers in call order; their places in `concat_units`."""
    units = tuple(units)
    nowhere = np.zeros(sum(u.size for u in units), int)
    table, order = unit_rows(units, nowhere, nowhere, nowhere)
    return tuple(row.path for row in table), order


def unit_rows(
    units: tuple[Unit, ...],
    input_region: np.ndarray,
    output_region: np.ndarray,
    inner_region: np.ndarray,
) -> tuple[list[UnitRow], np.ndarray]:
    """The lines of a table in call order, and the place of each in `concat_units`.

    Units of one lifted stack take turns, layer by layer. The regions are numbers, in
    the order of `concat_units`.
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
                region = int((input_region if u.floats else output_region)[at])
                row = UnitRow(
                    path=name,
                    unit=u.name,
                    layer=layer,
                    kind=u.module_type,
                    shape=u.shape,
                    calls=u.calls,
                    floats=u.floats,
                    region=region,
                    inside=int(inner_region[at]),
                )
                table.append(row)
                order.append(at)
    return table, np.array(order, int)
