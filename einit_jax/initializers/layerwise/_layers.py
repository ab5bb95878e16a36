"""The layers of a model: units with weights, and the arrays that size their outputs."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array

from ...core import Path, inner_axes, is_under, path_number, path_str
from ...units import Unit
from ..classic import Parameter, Rule, sample


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
    units: Mapping[Unit, float], sites: Iterable[Parameter]
) -> tuple[Layer, ...]:
    """The layers among some units with their targets, in call order."""
    methods: dict[Path, list[Unit]] = {}
    for unit in units:
        methods.setdefault(unit.path, []).append(unit)
    inside: dict[Path, list[Parameter]] = {path: [] for path in methods}
    for site in sites:
        for path in methods:
            if is_under(site.path, path):
                inside[path].append(site)
    return tuple(
        _make_layer(path, tuple(called), units[called[0]], inside[path])
        for path, called in methods.items()
        if any(site.role == "weight" for site in inside[path])
    )


def _make_layer(
    path: Path, units: tuple[Unit, ...], target: float, sites: list[Parameter]
) -> Layer:
    of = lambda role: tuple(site.path for site in sites if site.role == role)
    cell = any(site.gate and is_under(site.gate.cell, path) for site in sites)
    channels = _channels(units, [site for site in sites if site.role == "bias"])
    return Layer(path, units, target, of("weight"), of("bias"), channels, cell)


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


def sample_orthonormal(
    layers: tuple[Layer, ...],
    sites: Mapping[Path, Parameter],
    leaves: Mapping[Path, Any],
    key: jax.Array,
) -> dict[Path, Array]:
    """Weights with orthonormal rows or columns, each by the key of its path.

    Those that are alike are drawn by one program: factoring matrices takes long to
    compile.
    """
    found = {
        path: jnp.zeros_like(leaves[path]) for layer in layers for path in layer.biases
    }
    alike: dict[Any, list[Parameter]] = {}
    for layer in layers:
        for site in (sites[path] for path in layer.weights):
            _check_orthonormal(site)
            what = (site.shape, _sampling_axes(site), leaves[site.path].dtype)
            alike.setdefault(what, []).append(site)
    for (*_, dtype), group in alike.items():
        names = jnp.array([path_number(site.path) for site in group], "uint32")
        draw = partial(_sample_orthonormal, group[0], dtype, key)
        made = jax.lax.map(draw, names) if len(group) > 1 else [draw(names[0])]
        found |= {site.path: x for site, x in zip(group, made, strict=True)}
    return found


def _sampling_axes(site: Parameter) -> Any:
    """What decides how an array is drawn."""
    return site.axes and site.axes._replace(residual=False, fan_out=0.0, fan_in=0.0)


def _sample_orthonormal(
    site: Parameter, dtype: Any, key: jax.Array, name: Array
) -> Array:
    """Each layer of a stack by itself; in 32 bits or more: 16 cannot be factored."""
    init, wide = initializers.orthogonal(), jnp.promote_types(dtype, jnp.float32)
    own = jax.random.fold_in(key, name)
    return sample(site, Rule("*", init), init, own, wide).astype(dtype)


def _check_orthonormal(site: Parameter) -> None:
    """Raises where nothing orthonormal has this shape."""
    where = f"{site.name!r} has shape {site.shape}"
    unit = path_str(site.path[:-1])
    if site.looked_up and site.rank < 2:
        raise ValueError(
            f"{where}: one axis cannot be orthonormal; keep what is there: "
            f"orthogonal=False, or exclude={unit!r}"
        )
    if 0 in site.shape:
        raise ValueError(
            f"{where}: there is nothing to draw; leave it out: exclude={unit!r}"
        )
