"""Both draws that `looks_linear` tries, and how it tries them."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...binding import compiled_once
from ...core import ModelArgs, Path, flatten, path_str, unboxed, with_leaves
from ...distinctness import Choice, amplification_with, find_pairs, next_choice
from ...units import Objective, Unit, UnitSelection, check_measurable
from ..classic import Parameter, parameters_in
from ._layers import Layer, draw_weights, layers_among, sample_orthonormal
from ._linear_start import LinearStart
from ._mirror import mirrors_of


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["plain", "in_pairs"],
    meta_fields=["layers", "units", "curved", "mirrored", "left"],
)
@dataclass(frozen=True)
class Drawn:
    """Weights of both kinds, and what the trace of the model tells of them."""

    plain: dict[Path, Array]
    in_pairs: dict[Path, Array]
    """Of those weights that differ where pairs are drawn."""
    layers: tuple[Layer, ...]
    units: tuple[Unit, ...]
    curved: tuple[frozenset[Path], frozenset[Path]]
    """Paths of layers before curved functions, without pairs and with them."""
    mirrored: tuple[str, ...]
    left: tuple[tuple[str, str], ...]

    def arrays(self, choice: Choice) -> dict[Path, Array]:
        """The weights of a choice."""
        pick = lambda one, other: jnp.where(choice.in_pairs, one, other)
        paired = {p: pick(x, self.plain[p]) for p, x in self.in_pairs.items()}
        return {**self.plain, **paired}

    def sizes(self, choice: Choice) -> dict[Path, Float[Array, ""]]:
        """The rms of each layer's output."""
        alone, paired = (
            [layer.path in paths for layer in self.layers] for paths in self.curved
        )
        smaller = jnp.where(choice.in_pairs, jnp.array(paired), jnp.array(alone))
        sizes = jnp.where(smaller, choice.size, 1.0)
        return {layer.path: sizes[i] for i, layer in enumerate(self.layers)}

    def report(self, choice: Choice, after: Array, limit: float) -> LinearStart:
        """What was done."""
        names = [tuple(sorted(map(path_str, paths))) for paths in self.curved]
        return LinearStart(
            choice.before,
            after,
            choice.in_pairs,
            choice.size,
            mirrored=self.mirrored,
            curved=(names[0], names[1]),
            left=self.left,
            limit=limit,
        )


@compiled_once("objective", "selection")
def draw_both(
    args: ModelArgs, key: jax.Array, *, objective: Objective, selection: UnitSelection
) -> Drawn:
    """Both draws of all weights."""
    graph = objective.trace(args)
    check_measurable(graph.units)
    parameters = parameters_in(graph)
    layers = layers_among(selection.among(graph.units), parameters)
    if not layers:
        names = ", ".join(unit.name for unit in graph.units[:12])
        raise ValueError(f"no unit among {names} has weights; include one that has")
    leaves, by_path = flatten(unboxed(args.params)), {p.path: p for p in parameters}
    pairs = find_pairs(graph, [path for layer in layers for path in layer.weights])
    mirrors = mirrors_of(pairs, by_path)
    weights = [by_path[path] for path in mirrors]
    curved = [
        frozenset(layer.path for layer in layers if paths & set(layer.weights))
        for paths in (pairs.curved_alone, pairs.curved)
    ]
    plain = sample_orthonormal(layers, by_path, leaves, key)
    inside = [path for layer in layers if layer.cell for path in layer.weights]
    plain |= {path: _keeping_size(plain[path], by_path[path]) for path in inside}
    return Drawn(
        plain,
        draw_weights(weights, leaves, key, mirrors),
        layers=layers,
        units=graph.units,
        curved=(curved[0], curved[1]),
        mirrored=tuple(map(path_str, pairs.features)),
        left=tuple(pairs.left.items()),
    )


def _keeping_size(drawn: Array, weight: Parameter) -> Array:
    """An orthonormal weight times what it takes to keep the size of what it reads.

    Inside of a cell nothing else sees to that, and its gates hear each by its size.
    """
    if weight.axes is None:
        return drawn
    wider = max(1.0, weight.axes.fan_out / weight.axes.fan_in)
    return drawn * jnp.asarray(wider**0.5, drawn.dtype)


@compiled_once("objective")
def try_out(
    choice: Choice, drawn: Drawn, args: ModelArgs, *, objective: Objective
) -> Choice:
    """The choice after its amplification was measured, outputs as large as it says."""
    sizes = drawn.sizes(choice)
    for layer in drawn.layers:
        if layer.cell:
            del sizes[layer.path]
    args = args._replace(params=with_leaves(args.params, drawn.arrays(choice)))
    found = amplification_with(sizes, args, objective=objective, units=drawn.units)
    alone, paired = (jnp.array(bool(paths)) for paths in drawn.curved)
    pairs = bool(drawn.mirrored)
    return next_choice(choice, found, pairs=pairs, curved=paired, alone=alone)
