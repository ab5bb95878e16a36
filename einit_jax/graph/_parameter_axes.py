"""What every weight array of a traced model connects, read off the model's jaxpr.

So it holds for a raw `self.param` in an einsum as it does for Flax's own layers. Each
parameter is followed, while only axes move and nothing but other parameters touches it,
to where it meets data: a product, a convolution, a look-up, a factor or a summand.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr

from ..core import Path, layer_axes, owner_of
from ..units import ModelGraph
from ._axis_views import Part
from ._jaxprs import has_cotangent
from ._parameter_uses import ParameterUse, ParameterUseWalk, whole_value


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
    kind: str
    """Of a weight, as in `fans`: "dense", "conv", "conv_transpose" or "embed"."""
    looked_up: bool
    """Whether some use is a look-up, that of a tied embedding too."""
    residual: bool
    """Whether its product is added to what it was computed from."""

    @property
    def copies(self) -> int:
        """The number of layers."""
        return math.prod(self.shape[i] for i in self.layers)


def parameter_axes(graph: ModelGraph) -> dict[Path, ParameterAxes]:
    """What each floating parameter connects, by path.

    Fans count as those of `fans` do: what each output sums, and in how many sums each
    input is, strides and groups considered; 1 for what is no weight. Of several uses
    counts the first product with data, then a look-up, then a product without data (the
    power iteration of a spectral norm), then a factor, then a summand. A parameter that
    meets data in no such way, or is never used, is "other".
    """
    walk = ParameterUseWalk()
    lifts = {unit.path: unit.lift for unit in graph.units}
    walk.lifted = {
        path: frozenset(layer_axes(shape, owner_of(path, lifts, ())))
        for path, shape in graph.shapes.items()
    }
    floats = _follow_parameters(walk, graph.jaxpr, graph.shapes)
    return {path: _axes_of_parameter(walk, path, graph.shapes[path]) for path in floats}


def _follow_parameters(
    walk: ParameterUseWalk, jaxpr: Jaxpr, shapes: Mapping[Path, Any]
) -> list[Path]:
    """Walks through the model; the paths of its floating parameters."""
    leaves = list(zip(shapes, jaxpr.invars, strict=False))
    floats = [path for path, v in leaves if has_cotangent(v)]
    own = [whole_value(path, shapes[path], path in floats) for path in shapes]
    walk.run(jaxpr, [*own, *(walk.argument(v) for v in jaxpr.invars[len(own) :])])
    return floats


def _axes_of_parameter(
    walk: ParameterUseWalk, path: Path, shape: tuple[int, ...]
) -> ParameterAxes:
    use = walk.uses.get(path, ParameterUse(0, "other"))
    stacked = walk.lifted[path] | {a for a, why in use.gone if why == "layer"}
    does = {
        axis: _category(axis, use.parts, use.gone)
        for axis in range(len(shape))
        if axis not in stacked
    }
    of = lambda *what: tuple(a for a, found in does.items() if found[0] in what)
    window, batch, out = of("window"), of("batch"), of("feature")
    size = lambda what: _axis_product(does, shape, what)
    weight = use.role == "weight"
    thin_in, thin_out = use.thinned
    into, outof = 1.0, 1.0
    if weight:
        into = size("window") * size("contracted") / thin_in
        outof = size("window") * size("feature") / thin_out
    looked = path in walk.looked_up
    return ParameterAxes(
        shape, tuple(sorted(stacked)), batch, (*window, *of("contracted")), out,
        1.0 if use.kind == "embed" else into, outof, use.role, use.kind, looked,
        path in walk.residual,
    )  # fmt: skip


def _category(
    axis: int, parts: Sequence[tuple[Part, str]], gone: frozenset[tuple[int, str]]
) -> tuple[str, dict[str, int]]:
    """What most of an axis does, and how much of it does what."""
    sizes: dict[str, int] = {}
    for (axes, n), what in parts:
        if axis in axes and n > 1:
            sizes[what] = sizes.get(what, 1) * n
    taken = next((why for a, why in gone if a == axis), "feature")
    return max(sizes, key=lambda what: sizes[what], default=taken), sizes


def _axis_product(does: Mapping, shape: tuple[int, ...], what: str) -> float:
    """How many indices of the axes do `what`; an axis may be split among several."""
    whole = lambda axis, main, sizes: shape[axis] if main == what else 1
    shared = lambda sizes: sizes.get(what, 1)
    return float(
        math.prod(
            shared(sizes) if len(sizes) > 1 else whole(axis, main, sizes)
            for axis, (main, sizes) in does.items()
        )
    )
