"""The arrays that are to be drawn: what each is for, and which axes do what."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from ...core import Batch, Path, flatten, is_float, path_str, unboxed
from ...graph import ParameterAxes, parameter_axes
from ...linen import Objective, module_types, trace_model
from ...units import ModelGraph

NO_TYPES: Mapping[Path, type] = MappingProxyType({})


def _axes_by_shape(
    path: Path, shape: tuple[int, ...], role: str
) -> ParameterAxes | None:
    """Matrices and kernels of windows with two axes or more; the others are unclear."""
    every = tuple(range(len(shape)))
    known = ParameterAxes(shape, (), (), (), every, 1.0, 1.0, role, "", False, False)
    if role != "weight":
        return known
    known = known._replace(contracted=every[:-1], features=every[-1:])
    if len(shape) == 3:
        return None
    inputs, window = math.prod(shape[:-1]), math.prod(shape[:-2])
    if path[-1] == "embedding":
        fans = (1.0, float(shape[-1]))
        return known._replace(fan_out=fans[1], kind="embed", looked_up=True)
    kind = "dense" if len(shape) == 2 else "conv"
    return known._replace(
        fan_in=float(inputs), fan_out=float(window * shape[-1]), kind=kind
    )


BIASES = ("bias", "*_bias", "bias_*", "b", "beta")


GAINS = ("scale", "*_scale", "gain", "g", "gamma")
"""Names of arrays that add and that multiply, in Flax and in code like it."""


CELLS = ("ifgo", "rzn", "fn", "")
"""The gates of Flax's LSTM, GRU, MGU and simple cells."""


def role_of(path: Path, axes: int) -> str:
    """What an array is for: "bias", "gain", "weight" or "other"."""
    name = next((n for n in reversed(path) if not n.isdigit()), "")
    for role, patterns in {"bias": BIASES, "gain": GAINS}.items():
        if any(fnmatchcase(name.lower(), p) for p in patterns):
            return role
    return "weight" if axes > 1 else "other"


class Gate(NamedTuple):
    """A gate of a recurrent cell, all of which have layers `i*` and `h*`."""

    cell: Path
    recurrent: bool
    name: str
    place: int
    gates: int


class Parameter(NamedTuple):
    """A floating array of the parameters."""

    path: Path
    shape: tuple[int, ...]
    axes: ParameterAxes | None
    """Which axes do what; None where only the model could tell."""
    role: str
    """"weight", "bias" (beside a weight or a gain), "gain" or "other"."""
    beside: Any = None
    """Of a bias the site of the weight in the same module, if there is one."""
    gate: Gate | None = None
    branches: int = 0
    """Of a weight that ends a residual branch: how many there are in the model."""
    transposed: bool = False
    """Whether it is of a transposed convolution, of stride 1 too."""
    traced: bool = False

    @property
    def name(self) -> str:
        return path_str(self.path)

    @property
    def rank(self) -> int:
        """The number of axes of one layer."""
        return len(self.shape) - (len(self.axes.layers) if self.axes else 0)

    @property
    def looked_up(self) -> bool:
        return bool(self.axes and self.axes.looked_up)

    @property
    def inputs(self) -> int:
        """The product of the axes summed over, strides aside."""
        assert self.axes is not None
        return math.prod(self.shape[i] for i in self.axes.contracted)

    @property
    def outputs(self) -> int:
        """The product of the window and of the outputs, groups and strides aside."""
        assert self.axes is not None
        window = self.axes.contracted[:-1] if "conv" in self.axes.kind else ()
        return math.prod(self.shape[i] for i in (*window, *self.axes.features))


def parameters_by_name(params: Any) -> list[Parameter]:
    """The floating arrays, as far as names and shapes tell."""
    leaves = flatten(unboxed(params))
    shapes = {p: jnp.shape(v) for p, v in leaves.items() if is_float(v)}
    stacked = {p[:-1] for p, s in shapes.items() if p[-1] == "bias" and len(s) > 1}
    sites = []
    for path, shape in shapes.items():
        role = role_of(path, len(shape))
        axes = _axes_by_shape(path, shape, role)
        unsure = role == "weight" and len(shape) > 2 and path[:-1] in stacked
        sites.append(Parameter(path, shape, None if unsure else axes, role))
    return _relate(sites)


def parameters_of(
    task: Objective, params: Any, collections: Mapping, batch: Batch
) -> tuple[list[Parameter], dict[Path, type]]:
    """The floating arrays as the model uses them, and the class of each module."""
    graph = trace_model(task, params, collections, batch)
    types = module_types(task, params, collections, batch)
    return parameters_in(graph, types), types


def parameters_in(
    graph: ModelGraph, types: Mapping[Path, type] = NO_TYPES
) -> list[Parameter]:
    """The floating arrays as a traced model uses them."""
    found = parameter_axes(graph)
    ends = sum(g.copies for g in found.values() if g.residual)
    sites = []
    for path, g in found.items():
        module = types.get(path[:-1])
        transposed = module is not None and issubclass(module, nn.ConvTranspose)
        sites.append(
            Parameter(
                path, g.shape, g, g.role, branches=ends if g.residual else 0,
                transposed=transposed or g.kind == "conv_transpose", traced=True,
            )
        )  # fmt: skip
    return _relate(sites)


def _relate(sites: list[Parameter]) -> list[Parameter]:
    """With what lies in the same module, and in the same recurrent cell."""
    gates = gates_of(site.path for site in sites)
    sites = [site._replace(gate=gates.get(site.path)) for site in sites]
    beside: dict[Path, dict[str, Parameter]] = {}
    for site in sites:
        beside.setdefault(site.path[:-1], {}).setdefault(site.role, site)
    return [_relation(site, beside[site.path[:-1]]) for site in sites]


def _relation(site: Parameter, beside: Mapping[str, Parameter]) -> Parameter:
    """A summand of two axes or more with nothing beside it is no bias (positions)."""
    if site.role != "bias":
        return site
    alone = site.traced and site.rank > 1 and not {"weight", "gain"} & set(beside)
    if alone and role_of(site.path, 2) != "bias":
        return site._replace(role="other")
    return site._replace(beside=beside.get("weight"))


def gates_of(paths: Iterable[Path]) -> dict[Path, Gate]:
    """The gate that each array of a recurrent cell belongs to."""
    paths = list(paths)
    inside: dict[Path, set[str]] = {}
    for path in paths:
        for i in range(1, len(path)):
            inside.setdefault(path[: i - 1], set()).add(path[i - 1])
    cells = {cell: _gates(names) for cell, names in inside.items()}
    return {path: gate for path in paths if (gate := _gate(path, cells)) is not None}


def _gate(path: Path, cells: Mapping[Path, list[str] | None]) -> Gate | None:
    """The gate of a path such as `(*cell, "hf", "kernel")`."""
    *cell, layer, _ = "", "", *path
    gates = cells.get(tuple(cell[2:])) if len(path) > 1 else None
    if gates is None or layer[:1] not in ("i", "h") or layer[1:] not in gates:
        return None
    place = gates.index(layer[1:])
    return Gate(tuple(cell[2:]), layer[0] == "h", layer[1:], place, len(gates))


def _gates(names: set[str]) -> list[str] | None:
    """The gates of a cell with layers of such names, if it is one."""
    for letters in CELLS:
        gates = list(letters) or [""]
        if {f"{side}{gate}" for side in "ih" for gate in gates} <= names:
            return gates
    return None
