"""Values that share a potential, the classes they fall into, the ports of units.

A *port* is where a unit's values meet those outside of it: its input, its output, or
its inner side, where its parameters are. A parameter has a port, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..core import Path, is_under
from ._union_find import UnionFind

PortRole = Literal["input", "output", "inner", "parameter"]


class Port(NamedTuple):
    """A port of the unit, or of the parameter, that is at the path."""

    role: PortRole
    path: Path
    method: str = ""
    """Of inputs and outputs. All methods of a module share their inner side."""


class LayerSlice(NamedTuple):
    """One layer along an axis of a parameter, which one iteration of a scan reads."""

    path: Path
    axis: int
    layer: int


LayerSlices = frozenset[LayerSlice]
WHOLE: LayerSlices = frozenset()


class ParameterSlice(NamedTuple):
    """A parameter, or a slice of it, and which of its axes are left."""

    path: Path
    axes: tuple[int, ...]


class CoupledValue(NamedTuple):
    """A value that depends on parameters: its class, and the parameter that it is."""

    label: int
    parameter: ParameterSlice | None = None

    def iterated(self) -> "CoupledValue":
        """What one iteration of a scan sees of the value, without its first axis."""
        if self.parameter is None:
            return self
        axes = self.parameter.axes[1:]
        return self._replace(parameter=self.parameter._replace(axes=axes))


Seed = ParameterSlice | bool
"""An input of a jaxpr: a parameter, or whether it depends on some."""
CoupledValues = list[CoupledValue | None]
"""The operands or the results of an equation; None for what depends on no parameter."""


def seeds_of(values: Sequence[CoupledValue | None]) -> list[Seed]:
    """What a walk through a body needs to know of the values that go in."""
    return [v.parameter or True if v else False for v in values]


class PortUse(NamedTuple):
    """A use of a port, and the class of the value that is there."""

    port: Port
    slices: LayerSlices
    """The layer: what the scans around the use slice of the port's parameters."""
    label: int


@dataclass(frozen=True)
class Coupling:
    """What the caller of a jaxpr has to know of it; equal labels share a potential."""

    ins: tuple[CoupledValue | None, ...]
    outs: tuple[CoupledValue | None, ...]
    uses: tuple[PortUse, ...]


def slices_under(path: Path, slices: LayerSlices) -> LayerSlices:
    """The slices of parameters that are at the path or below it."""
    return frozenset(s for s in slices if is_under(s.path, path))


class PotentialClasses:
    """The classes of one jaxpr's values; those of one class share a potential."""

    def __init__(self):
        self._labels = UnionFind()
        self._uses: list[PortUse] = []
        self._ports: dict[tuple[Port, int | None], int] = {}

    def new(self) -> int:
        """A class that holds nothing yet."""
        return self._labels.new()

    def meet(self, values: Sequence[CoupledValue | None]) -> int:
        """Makes the classes of values one; parameters among them are noted as used."""
        for value in values:
            if value and value.parameter:
                port = Port("parameter", value.parameter.path)
                self.note(PortUse(port, WHOLE, value.label))
        return self.join([v.label for v in values if v])

    def join(self, labels: Sequence[int]) -> int:
        """Makes some classes one."""
        return self._labels.join(labels)

    def meet_columns(self, rows: Sequence[CoupledValues]) -> CoupledValues:
        """One value per column: what meets there of several branches or iterations."""
        return [
            CoupledValue(self.meet(column)) if any(column) else None
            for column in zip(*rows, strict=True)
        ]

    def as_values(self, values: CoupledValues) -> CoupledValues:
        """The values as no parameters; those that were some are noted as used."""
        return [v and CoupledValue(self.meet([v])) for v in values]

    def at_port(self, port: Port, call: int | None = None) -> int:
        """The class at a port of a call; without a call, that of all calls."""
        key = (port, call)
        if key not in self._ports:
            self._ports[key] = self.new()
            self.note(PortUse(port, WHOLE, self._ports[key]))
        return self._ports[key]

    def note(self, use: PortUse) -> None:
        """Keeps the use of a port."""
        self._uses.append(use)

    def coupling(self, ins: CoupledValues, outs: CoupledValues) -> Coupling:
        """What callers need to know, with one label for each class."""
        find = self._labels.find
        root = lambda v: v and v._replace(label=find(v.label))
        uses = dict.fromkeys(use._replace(label=find(use.label)) for use in self._uses)
        return Coupling(tuple(map(root, ins)), tuple(map(root, outs)), tuple(uses))
