"""What every weight array of a traced model connects, read off the model's jaxpr.

So it holds for a raw `self.param` in an einsum as it does for Flax's own layers. Each
parameter is followed, while only axes move and nothing but other parameters touches it,
to where it meets data: a product, a convolution, a look-up, a factor or a summand.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jax.extend.core import Jaxpr

from ..core import Path, is_under, layer_axes, owner_of
from ..units import ModelGraph, Mover
from ._axis_views import AxisRole
from ._jaxprs import has_cotangent
from ._parameter_uses import ParameterUseWalk
from ._traced_values import ParameterUse, TracedValue, whole_value


class ParameterAxes(NamedTuple):
    """What the axes of a parameter do where it meets data, in its own numbering."""

    shape: tuple[int, ...]
    layers: tuple[int, ...]
    """Axes over which layers are stacked: each layer is an array of its own."""
    batch: tuple[int, ...]
    """Axes that connect nothing: each index has inputs and outputs of its own."""
    contracted: tuple[int, ...]
    """Axes summed over (of a convolution: the window, then the inputs); of a look-up
    the one that is indexed."""
    features: tuple[int, ...]
    fan_in: float
    fan_out: float
    role: str
    """"weight", "gain" (multiplies elementwise), "bias" (is added) or "other"."""
    layer_type: str
    """Of a weight, as in `fans`: "dense", "conv", "conv_transpose" or "embed"."""
    looked_up: bool
    """Whether some use is a look-up, that of a tied embedding too."""
    residual: bool
    """Whether its product is added to what it was computed from."""

    @property
    def layer_count(self) -> int:
        """The number of layers."""
        return math.prod(self.shape[i] for i in self.layers)


class AxisUse(NamedTuple):
    """What one axis of a parameter does; it may be split among several roles."""

    role: AxisRole
    """That of most of the axis."""
    sizes: Mapping[AxisRole, int]
    """How much of the axis has which role, as far as that is known."""

    def extent(self, role: AxisRole, whole: int) -> int:
        """How many indices of the axis have the role, 1 for none; it has `whole`."""
        if len(self.sizes) > 1:
            return self.sizes.get(role, 1)
        return whole if self.role == role else 1


def parameter_axes(graph: ModelGraph) -> dict[Path, ParameterAxes]:
    """What each floating parameter connects, by path.

    Fans count as those of `fans` do: what each output sums, and in how many sums each
    input is, strides and groups considered; 1 for what is no weight. Of several uses
    counts the first product with data, then a look-up, then a product without data (the
    power iteration of a spectral norm), then a factor, then a summand. A parameter that
    meets data in no such way, or is never used, is "other".
    """
    walk = parameter_use_walk(graph)
    floats = _follow_parameters(walk, graph.jaxpr, graph.shapes)
    return {path: _axes_of_parameter(walk, path, graph.shapes[path]) for path in floats}


def multiplying(graph: ModelGraph, movers: Sequence[Mover]) -> frozenset[Path]:
    """The paths of those units and raw parameters that multiply with some parameter.

    Of the others (tokens, tables of positions) all parameters are only added, or put
    beside other values. Where none multiplies, all of them.
    """
    below = lambda paths, mover: any(is_under(path, mover.path) for path in paths)
    known = {m.path for m in movers if below(graph.multiplied, m)}
    unknown = [m for m in movers if m.path not in known]
    if unknown:  # a gain written 1 + scale, a kernel made of parameters
        roles = {path: axes.role for path, axes in parameter_axes(graph).items()}
        paths = [path for path, role in roles.items() if role in ("weight", "gain")]
        known |= {m.path for m in unknown if below(paths, m)}
    return frozenset(known or (mover.path for mover in movers))


def parameter_use_walk(graph: ModelGraph) -> ParameterUseWalk:
    """A walk for a model, which has not begun."""
    lifted_axes = {unit.path: unit.lifted_axes for unit in graph.units}
    layers = {
        path: frozenset(layer_axes(shape, owner_of(path, lifted_axes, ())))
        for path, shape in graph.shapes.items()
    }
    return ParameterUseWalk(layers)


def stacked_axes(
    jaxpr: Jaxpr, shapes: Mapping[Path, tuple[int, ...]]
) -> dict[Path, frozenset[int]]:
    """The axes along which `scan` takes each parameter apart, as far as it is seen."""
    walk = ParameterUseWalk(dict.fromkeys(shapes, frozenset()))
    _follow_parameters(walk, jaxpr, shapes)
    return {path: frozenset(axes) for path, axes in walk.stacked.items()}


def _follow_parameters(
    walk: ParameterUseWalk, jaxpr: Jaxpr, shapes: Mapping[Path, tuple[int, ...]]
) -> list[Path]:
    """Walks through the model; the paths of its floating parameters."""
    leaves = list(zip(shapes, jaxpr.invars, strict=False))
    floats = [path for path, var in leaves if has_cotangent(var)]
    walk.run(jaxpr, arguments_of(walk, jaxpr, shapes))
    return floats


def arguments_of(
    walk: ParameterUseWalk, jaxpr: Jaxpr, shapes: Mapping[Path, tuple[int, ...]]
) -> list[TracedValue]:
    """What a walk begins with: the parameters, and the model's other arguments."""
    pairs = zip(shapes.items(), jaxpr.invars, strict=False)
    params = [whole_value(p, shape, has_cotangent(var)) for (p, shape), var in pairs]
    return params + [walk.argument(var) for var in jaxpr.invars[len(params) :]]


def _axes_of_parameter(
    walk: ParameterUseWalk, path: Path, shape: tuple[int, ...]
) -> ParameterAxes:
    """What a parameter connects, from the use that was noted of it."""
    use = walk.uses.get(path, ParameterUse(0, "other"))
    layers = walk.layer_axes[path] | walk.stacked.get(path, set())
    axis_uses = {
        axis: _use_of_axis(axis, use)
        for axis in range(len(shape))
        if axis not in layers
    }

    def axes(role: AxisRole) -> tuple[int, ...]:
        return tuple(axis for axis, used in axis_uses.items() if used.role == role)

    def size(role: AxisRole) -> float:
        sizes = (used.extent(role, shape[axis]) for axis, used in axis_uses.items())
        return float(math.prod(sizes))

    fan_in, fan_out = 1.0, 1.0
    if use.role == "weight":
        fan_in = size("window") * size("contracted") / use.fan_divisors[0]
        fan_out = size("window") * size("feature") / use.fan_divisors[1]
    return ParameterAxes(
        shape=shape,
        layers=tuple(sorted(layers)),
        batch=axes("batch"),
        contracted=(*axes("window"), *axes("contracted")),
        features=axes("feature"),
        fan_in=1.0 if use.layer_type == "embed" else fan_in,
        fan_out=fan_out,
        role=use.role,
        layer_type=use.layer_type,
        looked_up=path in walk.looked_up,
        residual=path in walk.residual,
    )


def _use_of_axis(axis: int, use: ParameterUse) -> AxisUse:
    """What an axis does in a use; if it is in no part, then what it did before."""
    sizes: dict[AxisRole, int] = {}
    for (axes, n), role in use.parts:
        if axis in axes and n > 1:
            sizes[role] = sizes.get(role, 1) * n
    before: list[AxisRole] = [role for a, role in use.gone if a == axis]
    main: AxisRole = before[0] if before else "feature"
    if sizes:
        main = max(sizes, key=lambda role: sizes[role])
    return AxisUse(main, sizes)
