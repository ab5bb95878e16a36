"""The arrays that are to be drawn: what each is for, and which axes do what."""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import jax.numpy as jnp

from ...core import ModelArgs, Path, flatten, is_float, path_str, unboxed
from ...graph import ParameterAxes, parameter_axes
from ...units import ModelGraph, Objective


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
        window = self.axes.contracted[:-1] if "conv" in self.axes.layer_type else ()
        return math.prod(self.shape[i] for i in (*window, *self.axes.features))


def parameters_by_name(params: Any) -> list[Parameter]:
    """The floating arrays, as far as names and shapes tell."""
    leaves = flatten(unboxed(params))
    shapes = {p: jnp.shape(v) for p, v in leaves.items() if is_float(v)}
    stacked = {p[:-1] for p, s in shapes.items() if p[-1] == "bias" and len(s) > 1}
    parameters = []
    for path, shape in shapes.items():
        role = role_of(path, len(shape))
        axes = _axes_by_shape(path, shape, role)
        unsure = role == "weight" and len(shape) > 2 and path[:-1] in stacked
        parameters.append(Parameter(path, shape, None if unsure else axes, role))
    return _relate(parameters)


def parameters_of(
    objective: Objective, args: ModelArgs
) -> tuple[list[Parameter], dict[Path, type]]:
    """The floating arrays as the model uses them, and the class of each module."""
    graph, types = objective.trace(args), objective.module_types(args)
    transposes = objective.convolution_transposes
    transposed = {path for path, t in types.items() if issubclass(t, transposes)}
    return parameters_in(graph, frozenset(transposed)), types


def parameters_in(
    graph: ModelGraph, transposed: frozenset[Path] = frozenset()
) -> list[Parameter]:
    """The floating arrays as a traced model uses them.

    `transposed`: the modules that are known to be transposed convolutions. Others are
    told by the trace where their stride is above 1.
    """
    axes_of = parameter_axes(graph)
    branches = sum(axes.layer_count for axes in axes_of.values() if axes.residual)
    return _relate(
        [
            Parameter(
                path,
                axes.shape,
                axes,
                axes.role,
                branches=branches if axes.residual else 0,
                transposed=path[:-1] in transposed
                or axes.layer_type == "conv_transpose",
                traced=True,
            )
            for path, axes in axes_of.items()
        ]
    )


def _relate(parameters: list[Parameter]) -> list[Parameter]:
    """With what lies in the same module, and in the same recurrent cell."""
    gates = gates_of(p.path for p in parameters)
    parameters = [p._replace(gate=gates.get(p.path)) for p in parameters]
    beside: dict[Path, dict[str, Parameter]] = {}
    for p in parameters:
        beside.setdefault(p.path[:-1], {}).setdefault(p.role, p)
    return [_with_weight_beside(p, beside[p.path[:-1]]) for p in parameters]


def _with_weight_beside(
    parameter: Parameter, beside: Mapping[str, Parameter]
) -> Parameter:
    """A bias with its weight; one of two axes or more beside nothing is no bias.

    It is a table of positions, say.
    """
    if parameter.role != "bias":
        return parameter
    alone = not {"weight", "gain"} & set(beside)
    if alone and parameter.traced and parameter.rank > 1:
        if role_of(parameter.path, 2) != "bias":
            return parameter._replace(role="other")
    return parameter._replace(beside=beside.get("weight"))


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
