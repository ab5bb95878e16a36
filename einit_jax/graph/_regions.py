"""Regions: the parts into which a model's values fall when every unit is cut out.

Design: give each value v a potential phi(v) and let the carried cotangent be phi(v)
times the true one. All values of a region share one potential; so does the inside of a
unit, where its parameters live. A unit's factors turn one into another:
`c = phi(inside) / phi(output region)`, `b = phi(input region) / phi(inside)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jax.extend.core import Jaxpr
from jaxtyping import Bool, Int

from ..core import Path, first_axis
from ..units import ModelGraph, Unit
from ._coupling import CouplingWalk, ParameterSlice, PortUse
from ._union_find import UnionFind

Port = tuple[str, Path, str]
"""A unit's "in", "out" or "own" (its inside), or a "leaf" of the parameters."""


@dataclass(frozen=True, eq=False)
class Regions:
    """Where each unit stands, one entry per unit and layer in the order of `vector`.

    Numbers of potentials: of the input's region (-1 without a floating input), of the
    output's region, of the inside. Regions that hold an input come first, in call
    order; `free` says which potentials are of insides that nothing else is tied to.
    """

    into: Int[np.ndarray, " n"]
    out: Int[np.ndarray, " n"]
    own: Int[np.ndarray, " n"]
    loss: int
    free: Bool[np.ndarray, " count"]

    @property
    def count(self) -> int:
        """The number of potentials."""
        return len(self.free)

    def is_chain(self) -> bool:
        """Whether each region but the loss's is entered by one gradient only.

        Each unit can then bring its own input gradient to rms 1 where it stands.
        """
        entries = np.bincount(self.into[self.into >= 0], minlength=self.count)
        inside = np.bincount(self.own, minlength=self.count)
        alone = entries.max(initial=0) <= 1 and entries[self.loss] == 0
        return bool(alone and inside.max() <= 1 and self.free[self.own].all())


def find_regions(graph: ModelGraph, units: Sequence[Unit]) -> Regions:
    """The regions of a model between `units`; other modules tie what they touch."""
    ties = CouplingWalk({(u.path, u.method) for u in units})
    seeds = [
        ParameterSlice(path, tuple(range(len(s)))) for path, s in graph.shapes.items()
    ]
    rest = len(graph.jaxpr.invars) - len(seeds)
    jaxpr: Jaxpr = graph.jaxpr
    seen = ties.seen(jaxpr, [*seeds, *[False] * rest])
    known = [*seen.marks, *filter(None, (*seen.ins, *seen.outs))]
    classes = UnionFind(max((found.label for found in known), default=-1) + 1)
    ports = _join_ports(seen.marks, graph, units, classes)
    result = seen.outs[-1]
    loss = classes.new() if result is None else classes.find(result.label)
    return _number_regions(units, ports, loss, classes)


LayerIndex = tuple
"""The layer of a port along each axis of its ride; None where all layers share it.

Of a leaf, what scans have sliced of it."""


def _join_ports(
    marks: Sequence[PortUse],
    graph: ModelGraph,
    units: Sequence[Unit],
    classes: UnionFind,
) -> dict[Port, dict[LayerIndex, int]]:
    """The class of each port and layer, marks of one port and layer joined."""
    lifts = {u.path: u.lift for u in units}
    found: dict[Port, dict[LayerIndex, int]] = {}
    for mark in marks:
        kind, path, _ = mark.key
        if kind == "leaf":
            index = tuple(sorted(mark.slices))
        else:
            index = _layer_of_port(mark, lifts[path], graph.shapes)
        cells = found.setdefault(mark.key, {})
        cells[index] = classes.join([cells.get(index, mark.label), mark.label])
    for cells in found.values():
        if len({tuple(map(_axis_of_entry, index)) for index in cells}) > 1:
            classes.join(list(cells.values()))  # sliced in one place, whole in another
    return found


def _axis_of_entry(entry: int | tuple | None) -> object:
    """Which axis an entry of an index speaks of, if any."""
    return entry[:2] if isinstance(entry, tuple) else entry is None


def _layer_of_port(mark: PortUse, lift: tuple[int, ...], shapes: Mapping) -> LayerIndex:
    """The layer in terms of the ride's axes, from the slices of the unit's arrays."""
    index: list[int | None] = [None] * len(lift)
    for path, axis, i in mark.slices:
        at = axis - first_axis(shapes[path], lift)
        if 0 <= at < len(lift) and lift[at]:
            index[at] = i
    return tuple(index)


def _number_regions(
    units: Sequence[Unit],
    ports: Mapping[Port, Mapping[LayerIndex, int]],
    loss: int,
    classes: UnionFind,
) -> Regions:
    """Numbers the classes: regions first, then what is inside of units alone."""
    roots: dict[str, list] = {"in": [], "out": [], "own": []}
    for unit in units:
        for layer in np.ndindex(*unit.ride_shape):
            for role, column in roots.items():
                method = "" if role == "own" else unit.method
                cells = ports.get((role, unit.path, method), {})
                column.append(_region_of_port(cells, layer, classes))
    shared = {root for role in ("in", "out") for root, _ in roots[role]}
    loss = classes.find(loss)
    shared.add(loss)
    numbers: dict = {}

    def number(cell: tuple[int, LayerIndex]) -> int:
        root, free = cell
        return numbers.setdefault(
            root if root in shared else (root, free), len(numbers)
        )

    reads = [u.floats for u in units for _ in range(u.size)]
    into = [number(c) if u else -1 for c, u in zip(roots["in"], reads, strict=True)]
    last = number((loss, ()))
    out = [number(c) for c in roots["out"]]
    regions = len(numbers)
    own = [number(c) for c in roots["own"]]
    free = np.arange(len(numbers)) >= regions
    return Regions(np.array(into), np.array(out), np.array(own), last, free)


def _region_of_port(
    cells: Mapping[LayerIndex, int], layer: tuple[int, ...], classes: UnionFind
) -> tuple[int, LayerIndex]:
    """The class of one layer's port, and the part of the layer that it does not know.

    Members under `vmap` are one value: they share a region, but each has an inside. A
    port through which no gradient can go has a class of its own.
    """
    for index, label in cells.items():
        if all(i in (None, n) for i, n in zip(index, layer, strict=True)):
            rest = tuple(
                n if i is None else None for i, n in zip(index, layer, strict=True)
            )
            return classes.find(label), rest
    return classes.new(), ()
