"""The layers of a model: units with weights, and orthonormal draws of these weights."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array

from ...core import Path, inner_axes, is_under, path_number, path_str
from ...graph import ParameterAxes
from ...units import Unit
from ..classic import Parameter, Rule, sample
from ._mirror import Mirror


class Layer(NamedTuple):
    """A module with weights, with all the methods through which it is called."""

    path: Path
    units: tuple[Unit, ...]
    weights: tuple[Path, ...]
    biases: tuple[Path, ...]
    channels: tuple[Path, int] | None
    """The one bias that adds to the last axes of the output, and how many these are."""
    cell: bool
    """Whether it is a whole recurrent cell, whose gates bound its output."""

    @property
    def name(self) -> str:
        return self.units[0].name

    @property
    def lifted_axes(self) -> tuple[int, ...]:
        """The lifted axes of its units, which share one path."""
        return self.units[0].lifted_axes

    @property
    def shared(self) -> bool:
        """Whether several calls share its weights."""
        return sum(unit.calls for unit in self.units) > 1


def layers_among(
    units: Iterable[Unit], parameters: Iterable[Parameter]
) -> tuple[Layer, ...]:
    """The layers among units, in call order."""
    units_by_path: dict[Path, list[Unit]] = {}
    for unit in units:
        units_by_path.setdefault(unit.path, []).append(unit)
    inside: dict[Path, list[Parameter]] = {path: [] for path in units_by_path}
    for parameter in parameters:
        for path in units_by_path:
            if is_under(parameter.path, path):
                inside[path].append(parameter)
    return tuple(
        _make_layer(tuple(own), inside[path])
        for path, own in units_by_path.items()
        if any(parameter.role == "weight" for parameter in inside[path])
    )


def _make_layer(units: tuple[Unit, ...], parameters: list[Parameter]) -> Layer:
    """The layer of all units of one path, and of the parameters under it."""
    path = units[0].path
    weights = [p for p in parameters if p.role == "weight"]
    biases = [p for p in parameters if p.role == "bias"]
    return Layer(
        path,
        units,
        weights=tuple(weight.path for weight in weights),
        biases=tuple(bias.path for bias in biases),
        channels=_channels(units, biases),
        cell=any(p.gate and is_under(p.gate.cell, path) for p in parameters),
    )


def _channels(
    units: tuple[Unit, ...], biases: list[Parameter]
) -> tuple[Path, int] | None:
    """The bias whose shape is that of the last axes of all that the unit returns."""
    if len(biases) != 1 or any(len(unit.shape) != 1 for unit in units):
        return None
    (bias,) = biases
    lifted_axes = units[0].lifted_axes
    shape = tuple(bias.shape[i] for i in inner_axes(bias.shape, lifted_axes))
    fits = all(unit.shape[0][-len(shape) :] == shape for unit in units)
    return (bias.path, len(shape)) if shape and fits else None


def arrays_of(
    layers: Iterable[Layer], leaves: Mapping[Path, Array]
) -> dict[Path, Array]:
    """The weights and biases of some layers."""
    return {
        path: leaves[path]
        for layer in layers
        for path in (*layer.weights, *layer.biases)
    }


class _DrawType(NamedTuple):
    """Weights for which these are equal are drawn by one program."""

    shape: tuple[int, ...]
    axes: ParameterAxes | None
    """Without what does not decide how an array is drawn."""
    dtype: DTypeLike
    mirror: Mirror | None


def sample_orthonormal(
    layers: tuple[Layer, ...],
    parameters: Mapping[Path, Parameter],
    leaves: Mapping[Path, Array],
    key: jax.Array,
) -> dict[Path, Array]:
    """Weights with orthonormal rows or columns, and biases of zeros."""
    biases = (path for layer in layers for path in layer.biases)
    zeros = {path: jnp.zeros_like(leaves[path]) for path in biases}
    weights = [parameters[path] for layer in layers for path in layer.weights]
    return zeros | draw_weights(weights, leaves, key, {})


def draw_weights(
    weights: Sequence[Parameter],
    leaves: Mapping[Path, Array],
    key: jax.Array,
    mirrors: Mapping[Path, Mirror],
) -> dict[Path, Array]:
    """Weights with orthonormal rows or columns, or mirrored ones of such.

    Each weight is drawn by the key of its path. Weights that are alike are drawn by one
    program, because programs that factor matrices take long to compile.
    """
    sampled: dict[Path, Array] = {}
    alike: dict[_DrawType, list[Parameter]] = {}
    for weight in weights:
        _check_orthonormal(weight)
        dtype, mirror = leaves[weight.path].dtype, mirrors.get(weight.path)
        draw_type = _DrawType(weight.shape, _sampling_axes(weight), dtype, mirror)
        alike.setdefault(draw_type, []).append(weight)
    for draw_type, group in alike.items():
        numbers = jnp.array([path_number(weight.path) for weight in group], "uint32")
        draw = partial(_sample_weight, group[0], draw_type, key)
        arrays = jax.lax.map(draw, numbers) if len(group) > 1 else [draw(numbers[0])]
        pairs = zip(group, arrays, strict=True)
        sampled |= {weight.path: array for weight, array in pairs}
    return sampled


def _sampling_axes(weight: Parameter) -> ParameterAxes | None:
    """What decides how a weight is drawn: its axes, without residual and fans."""
    return weight.axes and weight.axes._replace(residual=False, fan_out=0.0, fan_in=0.0)


def _sample_weight(
    weight: Parameter, draw_type: _DrawType, key: jax.Array, number: Array
) -> Array:
    """One weight, each layer of a stack by itself, by the number of its path.

    In 32 bits or more, for matrices of 16 bits cannot be factored.
    """
    dtype, mirror = draw_type.dtype, draw_type.mirror
    init = mirror.initializer if mirror else initializers.orthogonal()
    wide = jnp.promote_types(dtype, jnp.float32)
    own = jax.random.fold_in(key, number)
    return sample(weight, Rule("*", init), init, own, dtype=wide).astype(dtype)


def _check_orthonormal(weight: Parameter) -> None:
    """Raises where nothing orthonormal has the shape of a weight."""
    weight_and_shape = f"{weight.name!r} has shape {weight.shape}"
    unit = path_str(weight.path[:-1])
    if weight.looked_up and weight.rank < 2:
        raise ValueError(
            f"{weight_and_shape}: one axis cannot be orthonormal; keep what is there: "
            f"orthogonal=False, or exclude={unit!r}"
        )
    if 0 in weight.shape:
        raise ValueError(
            f"{weight_and_shape}: there is nothing to draw; leave it out: "
            f"exclude={unit!r}"
        )
