"""What each floating array of the parameters is for, told by the trace or by its name.

A `Parameter` tells an array's role (weight, bias, gain or other), what its axes do, the
weight beside a bias, the gate of a recurrent cell that it belongs to, and whether it
ends a residual branch. With a model all of that is read off its trace
(`parameters_of`, `parameters_in`); without one, off names and shapes
(`parameters_by_name`).
"""

import math
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import PyTree

from ...core import ModelArgs, Path, flatten, is_float, path_str, unboxed
from ...graph import ParameterAxes, parameter_axes
from ...units import ModelGraph, Objective

BIASES = ("bias", "*_bias", "bias_*", "b", "beta")
"""Names of arrays that are added, in Flax and in code like it."""
GAINS = ("scale", "*_scale", "gain", "g", "gamma")
"""Names of arrays that multiply."""
CELLS = ("ifgo", "rzn", "fn", "")
"""The gates of Flax's LSTM, GRU, MGU and simple cells, a letter each."""


class Gate(NamedTuple):
    """A gate of a recurrent cell, whose layers are called `i*` and `h*`."""

    cell: Path
    recurrent: bool
    """Whether the layer `h*`, which acts on the state."""
    name: str
    place: int
    """Which gate of the cell it is, from 0."""
    gates: int
    """The number of gates of the cell."""


class Parameter(NamedTuple):
    """A floating array of the parameters."""

    path: Path
    shape: tuple[int, ...]
    axes: ParameterAxes | None
    """What the axes do; None where only the model could tell."""
    role: str
    """"weight", "bias" (beside a weight or a gain), "gain" or "other"."""
    beside: "Parameter | None" = None
    """Of a bias the weight in the same module, where there is one."""
    gate: Gate | None = None
    branches: int = 0
    """How many residual branches the model has, where the array ends one; else 0."""
    transposed: bool = False
    """Whether it is of a transposed convolution, those of stride 1 included."""
    traced: bool = False
    """Whether a trace of the model told all this, and not names and shapes."""

    @property
    def name(self) -> str:
        return path_str(self.path)

    @property
    def rank(self) -> int:
        """The number of axes of one layer."""
        return len(self.shape) - (len(self.axes.layers) if self.axes else 0)

    @property
    def looked_up(self) -> bool:
        """Whether it is a look-up table."""
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


def role_of(path: Path, rank: int) -> str:
    """What an array is for by its name: "bias", "gain", "weight" or "other"."""
    name = next((part for part in reversed(path) if not part.isdigit()), "")
    for role, patterns in {"bias": BIASES, "gain": GAINS}.items():
        if any(fnmatchcase(name.lower(), pattern) for pattern in patterns):
            return role
    return "weight" if rank > 1 else "other"


def parameters_by_name(params: PyTree) -> list[Parameter]:
    """The floating arrays, as far as names and shapes tell."""
    leaves = flatten(unboxed(params))
    shapes = {path: jnp.shape(x) for path, x in leaves.items() if is_float(x)}
    # a bias of several axes tells that its module has lifted axes, or several features
    unclear_modules = {
        path[:-1]
        for path, shape in shapes.items()
        if path[-1] == "bias" and len(shape) > 1
    }
    parameters = []
    for path, shape in shapes.items():
        role = role_of(path, len(shape))
        axes = _axes_by_shape(path, shape, role)
        if role == "weight" and len(shape) > 2 and path[:-1] in unclear_modules:
            axes = None
        parameters.append(Parameter(path, shape, axes, role))
    return _relate(parameters)


def _axes_by_shape(
    path: Path, shape: tuple[int, ...], role: str
) -> ParameterAxes | None:
    """What the axes do, as in Flax's own layers; None for weights of three axes.

    Those may be of a convolution over one axis, or of a layer with several axes of
    inputs or outputs.
    """
    every = tuple(range(len(shape)))
    elementwise = ParameterAxes(
        shape,
        layers=(),
        batch=(),
        contracted=(),
        features=every,
        fan_in=1.0,
        fan_out=1.0,
        role=role,
        layer_type="",
        looked_up=False,
        residual=False,
    )
    if role != "weight":
        return elementwise
    if len(shape) == 3:
        return None
    weight = elementwise._replace(contracted=every[:-1], features=every[-1:])
    if path[-1] == "embedding":
        return weight._replace(
            fan_out=float(shape[-1]), layer_type="embed", looked_up=True
        )
    inputs, window = math.prod(shape[:-1]), math.prod(shape[:-2])
    return weight._replace(
        fan_in=float(inputs),
        fan_out=float(window * shape[-1]),
        layer_type="dense" if len(shape) == 2 else "conv",
    )


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

    Args:
        graph: the trace of the model.
        transposed: the modules that are known to be transposed convolutions. Others are
            told by the trace where their stride is above 1.
    """
    axes_by_path = parameter_axes(graph)
    branches = sum(axes.layer_count for axes in axes_by_path.values() if axes.residual)
    parameters = []
    for path, axes in axes_by_path.items():
        is_transposed = axes.layer_type == "conv_transpose" or path[:-1] in transposed
        parameter = Parameter(
            path,
            axes.shape,
            axes,
            axes.role,
            branches=branches if axes.residual else 0,
            transposed=is_transposed,
            traced=True,
        )
        parameters.append(parameter)
    return _relate(parameters)


def _relate(parameters: list[Parameter]) -> list[Parameter]:
    """The parameters with their gates, and with the weights beside biases."""
    gates = _gates_by_path(p.path for p in parameters)
    parameters = [p._replace(gate=gates.get(p.path)) for p in parameters]
    modules: dict[Path, dict[str, Parameter]] = {}
    for p in parameters:
        modules.setdefault(p.path[:-1], {}).setdefault(p.role, p)
    return [_with_weight_beside(p, modules[p.path[:-1]]) for p in parameters]


def _with_weight_beside(
    parameter: Parameter, by_role: Mapping[str, Parameter]
) -> Parameter:
    """A bias with its weight, out of its module's arrays by role.

    An array that is added, has two axes or more and lies beside no weight or gain is no
    bias (it is a table of positions, say), unless its name tells that it is one.
    """
    if parameter.role != "bias":
        return parameter
    alone = not {"weight", "gain"} & set(by_role)
    table = alone and parameter.traced and parameter.rank > 1
    if table and role_of(parameter.path, parameter.rank) != "bias":
        return parameter._replace(role="other")
    return parameter._replace(beside=by_role.get("weight"))


def _gates_by_path(paths: Iterable[Path]) -> dict[Path, Gate]:
    """The gate that each array of a recurrent cell belongs to."""
    paths = list(paths)
    children: dict[Path, set[str]] = {}
    for path in paths:
        for i in range(1, len(path)):
            children.setdefault(path[: i - 1], set()).add(path[i - 1])
    cells = {cell: _gate_names(names) for cell, names in children.items()}
    return {path: gate for path in paths if (gate := _gate(path, cells)) is not None}


def _gate_names(layers: set[str]) -> list[str] | None:
    """The gates of a cell with layers of such names; None where it is no cell."""
    for letters in CELLS:
        gates = list(letters) or [""]
        if {f"{side}{gate}" for side in "ih" for gate in gates} <= layers:
            return gates
    return None


def _gate(path: Path, cells: Mapping[Path, list[str] | None]) -> Gate | None:
    """The gate of a path such as `(*cell, "hf", "kernel")`."""
    if len(path) < 2:
        return None
    *cell, layer, _ = path
    gates = cells.get(tuple(cell))
    if gates is None or layer[:1] not in ("i", "h") or layer[1:] not in gates:
        return None
    return Gate(
        tuple(cell),
        recurrent=layer[0] == "h",
        name=layer[1:],
        place=gates.index(layer[1:]),
        gates=len(gates),
    )
