"""Regions: the parts into which a model's values fall when every unit is cut out.

Give each value v a potential phi(v), and let the carried cotangent be phi(v) times the
true one. All values of a region share one potential; so do those inside of a unit,
where its parameters are. A unit's factors turn one potential into another:
`c = phi(inside) / phi(output region)`, `b = phi(input region) / phi(inside)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from ..core import Path, first_axis
from ..units import ModelGraph, RawParameter, Unit, unit_numbers
from ._coupled_values import LayerSlice, LayerSlices, ParameterSlice, Port, PortUse
from ._coupling import CouplingWalk
from ._union_find import UnionFind

LayerIndex = tuple[int | LayerSlice | None, ...]
"""The layer of a unit's port along each lifted axis; None where all layers share it.

Of a parameter's port, what scans have sliced of the parameter.
"""
Cell = tuple[int, LayerIndex]
"""The class of one layer's port, and the part of the layer that the port does not tell.

Members under `vmap` are one value: they share a region, but each has an inside.
"""


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions around each unit, one entry per unit and layer as in `concat_units`.

    Potentials are numbered. Regions that hold an input or an output of a unit, or the
    loss, come first; then the insides of units that are coupled to no region.
    """

    input_region: Int[np.ndarray, " n"]
    """-1 for a unit without a floating input."""
    output_region: Int[np.ndarray, " n"]
    inner_region: Int[np.ndarray, " n"]
    """The potential inside of the unit."""
    loss: int
    """The loss's region."""
    free: Bool[np.ndarray, " count"]
    """Which potentials are of insides that are coupled to no region."""
    raw_region: Mapping[Path, Int[np.ndarray, "..."]]
    """The potential of each raw parameter's gradient, as its layers are carried."""

    @property
    def count(self) -> int:
        """The number of potentials."""
        return len(self.free)

    @property
    def by_update(self) -> Bool[np.ndarray, " count"]:
        """Which potentials the updates of parameters decide, and not the gradients.

        Of all insides, those too that are coupled to a region (a decoder that reads the
        weights of another layer), but for the loss's, in which gradients are given.
        """
        decided = self.free.copy()
        decided[self.inner_region] = True
        decided[self.loss] = False
        return decided

    def raw_by_update(self) -> dict[Path, Bool[np.ndarray, "..."]]:
        """The same of the gradient of each raw parameter: where it is of an inside."""
        by_update = self.by_update
        return {p: np.asarray(by_update[at]) for p, at in self.raw_region.items()}

    def bound_units(self, units: Sequence[Unit]) -> frozenset[Path]:
        """The units with a layer whose parameters the loss's region uses as well.

        Their gradients are given: they are to the unit what a raw parameter's are.
        """
        bound = unit_numbers(units)[self.inner_region == self.loss]
        return frozenset(units[i].path for i in bound)

    def coupled_units(self, units: Sequence[Unit]) -> list[Unit]:
        """The units with a layer whose parameters are used outside of it as well."""
        coupled = unit_numbers(units)[~self.free[self.inner_region]]
        return [units[i] for i in sorted(set(coupled.tolist()))]

    def is_chain(self) -> bool:
        """Whether each region but the loss's is entered by one gradient only.

        Each unit can then bring its own input gradient to rms 1 where it stands.
        """
        reads = self.input_region >= 0
        entries = np.bincount(self.input_region[reads], minlength=self.count)
        inside = np.bincount(self.inner_region, minlength=self.count)
        alone = entries.max(initial=0) <= 1 and entries[self.loss] == 0
        return bool(alone and inside.max() <= 1 and self.free[self.inner_region].all())


def find_regions(graph: ModelGraph, units: Sequence[Unit]) -> Regions:
    """The regions of a model between `units`; other modules couple what they touch."""
    walk = CouplingWalk({u.key: u for u in units})
    seeds = [
        ParameterSlice(path, tuple(range(len(s)))) for path, s in graph.shapes.items()
    ]
    others = len(graph.jaxpr.invars) - len(seeds)
    coupling = walk.coupling(graph.jaxpr, [*seeds, *[False] * others])
    labelled = [*coupling.uses, *filter(None, (*coupling.ins, *coupling.outs))]
    classes = UnionFind(max((x.label for x in labelled), default=-1) + 1)
    ports = _join_ports(coupling.uses, graph, units, classes)
    result = coupling.outs[-1]
    loss = classes.new() if result is None else classes.find(result.label)
    return _number_regions(units, ports, loss, classes, raw=graph.movable)


def coupled_units(graph: ModelGraph) -> list[Unit]:
    """The units of a model whose parameters are used outside of them as well."""
    return find_regions(graph, graph.units).coupled_units(graph.units)


def _join_ports(
    uses: Sequence[PortUse],
    graph: ModelGraph,
    units: Sequence[Unit],
    classes: UnionFind,
) -> dict[Port, dict[LayerIndex, int]]:
    """The class of each port and layer; the uses of one port and layer are joined."""
    lifted_axes = {u.path: u.lifted_axes for u in units}
    ports: dict[Port, dict[LayerIndex, int]] = {}
    for use in uses:
        if use.port.role == "parameter":
            index: LayerIndex = tuple(sorted(use.slices))
        else:
            lifted = lifted_axes[use.port.path]
            index = _layer_of_port(use.slices, lifted, graph.shapes)
        labels = ports.setdefault(use.port, {})
        labels[index] = classes.join([labels.get(index, use.label), use.label])
    for labels in ports.values():
        if len({tuple(map(_sliced_axis, index)) for index in labels}) > 1:
            classes.join(list(labels.values()))  # sliced in one place, whole in another
    return ports


def _sliced_axis(entry: int | LayerSlice | None) -> tuple[Path, int] | bool:
    """The axis that an entry of an index slices; of a unit, whether it slices none."""
    if isinstance(entry, LayerSlice):
        return entry.path, entry.axis
    return entry is None


def _layer_of_port(
    slices: LayerSlices, lifted_axes: tuple[int, ...], shapes: Mapping
) -> LayerIndex:
    """The layer along the lifted axes of a unit, told by slices of its parameters."""
    index: list[int | None] = [None] * len(lifted_axes)
    for path, axis, layer in slices:
        place = axis - first_axis(shapes[path], lifted_axes)
        if 0 <= place < len(lifted_axes) and lifted_axes[place]:
            index[place] = layer
    return tuple(index)


def _number_regions(
    units: Sequence[Unit],
    ports: Mapping[Port, Mapping[LayerIndex, int]],
    loss: int,
    classes: UnionFind,
    *,
    raw: Sequence[RawParameter],
) -> Regions:
    """Numbers the classes: regions first, then what is inside of units alone."""
    inputs, outputs, insides = _cells(units, ports, classes)
    loss = classes.find(loss)
    shared = {label for label, _ in (*inputs, *outputs)} | {loss}
    numbers: dict[int | Cell, int] = {}

    def number(cell: Cell) -> int:
        key = cell[0] if cell[0] in shared else cell
        return numbers.setdefault(key, len(numbers))

    reads = [u.floats for u in units for _ in range(u.size)]
    pairs = zip(inputs, reads, strict=True)
    input_region = np.array([number(cell) if read else -1 for cell, read in pairs])
    loss_region = number((loss, ()))
    output_region = np.array([number(cell) for cell in outputs])
    regions = len(numbers)
    inner_region = np.array([number(cell) for cell in insides])
    count = len(numbers)
    label_of = lambda key: key if isinstance(key, int) else key[0]
    by_class = {label_of(key): number for key, number in numbers.items()}

    def region_of(raw: RawParameter, layer: tuple[int, ...]) -> int:
        labels = ports.get(Port("parameter", raw.path), {})
        for index, label in labels.items():
            if all(layer[s.axis] == s.layer for s in _slices_in(index, raw)):
                return by_class.get(classes.find(label), loss_region)
        return loss_region  # where none is known, gradients are true

    return Regions(
        input_region=input_region,
        output_region=output_region,
        inner_region=inner_region,
        loss=loss_region,
        free=np.arange(count) >= regions,
        raw_region={
            each.path: np.array(
                [region_of(each, layer) for layer in np.ndindex(*each.carried_shape)]
            ).reshape(each.carried_shape)
            for each in raw
        },
    )


def _slices_in(index: LayerIndex, raw: RawParameter) -> list[LayerSlice]:
    """The slices of a raw parameter in the index of its port."""
    slices = (s for s in index if isinstance(s, LayerSlice))
    return [s for s in slices if s.path == raw.path and s.axis < len(raw.lifted_axes)]


def _cells(
    units: Sequence[Unit],
    ports: Mapping[Port, Mapping[LayerIndex, int]],
    classes: UnionFind,
) -> tuple[list[Cell], list[Cell], list[Cell]]:
    """Of each unit and layer the cell of its input, of its output, of its inside."""
    inputs, outputs, insides = [], [], []
    for unit in units:
        columns = {
            Port("input", *unit.key): inputs,
            Port("output", *unit.key): outputs,
            Port("inner", unit.path): insides,
        }
        for layer in np.ndindex(*unit.carried_shape):
            for port, column in columns.items():
                column.append(_cell_of_port(ports.get(port, {}), layer, classes))
    return inputs, outputs, insides


def _cell_of_port(
    labels: Mapping[LayerIndex, int], layer: tuple[int, ...], classes: UnionFind
) -> Cell:
    """The cell of one layer; a port that no gradient goes through has its own class."""
    for index, label in labels.items():
        if all(i in (None, n) for i, n in zip(index, layer, strict=True)):
            pairs = zip(index, layer, strict=True)
            rest = tuple(n if i is None else None for i, n in pairs)
            return classes.find(label), rest
    return classes.new(), ()
