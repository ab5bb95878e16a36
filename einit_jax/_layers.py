"""The layers of a model: units with weights, and the arrays that size their outputs."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ._graph import Unit
from ._lift import inner_axes
from ._paths import Path, below
from ._sites import Site


class Layer(NamedTuple):
    """A module with weights, as all of its methods use them."""

    path: Path
    units: tuple[Unit, ...]
    target: float
    """The variance that its output is to have."""
    weights: tuple[Path, ...]
    biases: tuple[Path, ...]
    channels: tuple[Path, int] | None
    """The one bias that adds to the last axes of the output, and how many these are."""
    cell: bool
    """Whether it is a recurrent cell in one piece: its gates bound its output."""

    @property
    def name(self) -> str:
        return self.units[0].name

    @property
    def shared(self) -> bool:
        """Whether several calls share its weights."""
        return sum(unit.calls for unit in self.units) > 1


def layers_among(
    units: Mapping[Unit, float], sites: Iterable[Site]
) -> tuple[Layer, ...]:
    """The layers among some units with their targets, in call order."""
    methods: dict[Path, list[Unit]] = {}
    for unit in units:
        methods.setdefault(unit.path, []).append(unit)
    inside: dict[Path, list[Site]] = {path: [] for path in methods}
    for site in sites:
        for path in methods:
            if below(site.path, path):
                inside[path].append(site)
    return tuple(
        _layer(path, tuple(called), units[called[0]], inside[path])
        for path, called in methods.items()
        if any(site.role == "weight" for site in inside[path])
    )


def _layer(
    path: Path, units: tuple[Unit, ...], target: float, sites: list[Site]
) -> Layer:
    of = lambda role: tuple(site.path for site in sites if site.role == role)
    cell = any(site.gate and below(site.gate.cell, path) for site in sites)
    channels = _channels(units, [site for site in sites if site.role == "bias"])
    return Layer(path, units, target, of("weight"), of("bias"), channels, cell)


def _channels(units: tuple[Unit, ...], biases: list[Site]) -> tuple[Path, int] | None:
    """The bias whose shape is that of the last axes of all that the unit returns."""
    if len(biases) != 1 or any(len(unit.shape) != 1 for unit in units):
        return None
    (bias,) = biases
    lift = units[0].lift
    shape = tuple(bias.shape[i] for i in inner_axes(bias.shape, lift))
    fits = all(unit.shape[0][-len(shape) :] == shape for unit in units)
    return (bias.path, len(shape)) if shape and fits else None
