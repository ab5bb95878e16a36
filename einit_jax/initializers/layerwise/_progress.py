"""What the passes over a model's layers have reached, and the arrays that go with it.

The unknowns of the search are the logarithms of the factors of all layers, one after
the other; behind them, where channels are centred, comes what is added to the biases,
in standard deviations of the output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ...core import (
    AndersonState,
    Path,
    Stopping,
    anderson_init,
    broadcast_per_layer,
    is_concrete,
    multiply,
)
from ...units import split_units
from ._layers import Layer

FURTHEST = float(np.log(40))
"""How far further passes may take the logarithm of a factor from the first one.

Beyond that, an output only seems to follow: a tanh inside of a unit comes within 1% of
its bound at 60 times the weights. Below, what comes first may be smaller than it was
handed on: embeddings that are the head as well, where nothing normalizes.
"""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "arrays", "best_arrays", "targets", "goals", "search", "start", "miss",
        "settled", "more",
    ],
    meta_fields=["layers", "center"],
)  # fmt: skip
@dataclass(frozen=True)
class Progress:
    """What one pass hands to the next; a pytree."""

    layers: tuple[Layer, ...]
    center: bool
    arrays: dict[Path, Array]
    """Weights and biases as drawn, or as the user gave them."""
    best_arrays: dict[Path, Array]
    """The same arrays where the search has done best."""
    targets: dict[Path, Array]
    """The variance that each layer's output is to have, as carried."""
    goals: dict[Path, Array]
    """The variance at which a layer hands on its output; 0: it hands it on as it is."""
    search: AndersonState
    start: Float[Array, " n"]
    """The unknowns that the first pass implied."""
    miss: Float[Array, " n"]
    """Half the logarithm of each variance over its target, and means in deviations."""
    settled: Bool[Array, ""]
    """Whether the best pass missed little enough, not too far from the start."""
    more: Bool[Array, ""]
    """Whether another pass is to be made."""

    @property
    def centred(self) -> tuple[Layer, ...]:
        """The layers whose channels are centred."""
        return tuple(
            layer for layer in self.layers if self.center and layer.channels is not None
        )

    @property
    def factor_count(self) -> int:
        """The number of factors."""
        return sum(layer.units[0].size for layer in self.layers)

    def arrays_at(self, point: Float[Array, " n"]) -> dict[Path, Array]:
        """The weights and biases at a point of the search."""
        factors = self._factors(point)
        arrays = {}
        for layer in self.layers:
            factor = factors[layer.path]
            for path in (*layer.weights, *layer.biases):
                x = self.arrays[path]
                per_layer = broadcast_per_layer(factor, x.shape, layer.lifted_axes)
                arrays[path] = multiply(x, per_layer)
        ends = np.cumsum([self.factor_count, *map(self._bias_width, self.centred)])
        for layer, start, end in zip(self.centred, ends, ends[1:], strict=False):
            assert layer.channels is not None
            path, _ = layer.channels
            shift = _from_reals(point[start:end], arrays[path])
            deviation = jnp.sqrt(self.targets[layer.path])
            each = broadcast_per_layer(deviation, shift.shape, layer.lifted_axes)
            added = arrays[path] + each * shift
            arrays[path] = added.astype(arrays[path].dtype)
        return arrays

    def _factors(self, point: Float[Array, " n"]) -> dict[Path, Array]:
        """The factors at a point of the search, as they are carried."""
        factors = jnp.exp(point[: self.factor_count])
        units = [layer.units[0] for layer in self.layers]
        columns = split_units(units, {"factor": factors})
        return {path: own["factor"] for (path, _), own in columns.items()}

    def _bias_width(self, layer: Layer) -> int:
        """The number of unknowns of a layer's bias."""
        assert layer.channels is not None
        bias = self.arrays[layer.channels[0]]
        return bias.size * (2 if jnp.iscomplexobj(bias) else 1)

    def check(self, stopping: Stopping) -> None:
        """Raises where the passes have not settled; not under an outer trace."""
        if not is_concrete(self.more):
            return
        names, miss = self.unknown_names(), np.array(self.miss)
        if not np.isfinite(miss).all():
            raise FloatingPointError(
                f"non-finite activations at unit {names[~np.isfinite(miss)][0]!r}; "
                "lsuv needs finite numbers: check the parameters, the inputs and, for "
                "16-bit models, the range of the dtype"
            )
        if self.settled or stopping.max_passes == 1:
            return
        log_growth = np.array(self.search.best - self.start)[: self.factor_count]
        far = ~(np.abs(miss) <= largest_miss(stopping))
        far[: self.factor_count] |= np.abs(log_growth) > FURTHEST
        ratio, growth = np.exp(2 * miss), np.exp(np.abs(log_growth))
        rows = [n for n in range(self.factor_count) if names[n] in set(names[far])]
        listing = ", ".join(
            f"{names[n]} (variance {ratio[n]:.3g} of its target, weights changed "
            f"{growth[n]:.3g}-fold)"
            for n in rows
        )
        raise ValueError(
            f"after {stopping.max_passes} passes there are units whose outputs do not "
            f"follow their weights and biases, or not yet: {listing}; leave them as "
            f"they are: exclude={names[far][0]!r}; or raise max_sweeps"
        )

    def unknown_names(self) -> np.ndarray:
        """The name of the layer that each unknown belongs to."""
        names = [layer.name for layer in (*self.layers, *self.centred)]
        factor_counts = [layer.units[0].size for layer in self.layers]
        counts = [*factor_counts, *map(self._bias_width, self.centred)]
        return np.repeat(np.array(names, object), counts)


def start_progress(
    layers: tuple[Layer, ...],
    arrays: dict[Path, Array],
    *,
    center: bool,
    targets: Mapping[Path, Array | np.ndarray],
) -> Progress:
    """The progress before the first pass, in which all calls have goals.

    `targets` has the variance that each layer's output is to have: a number, or one for
    each layer of a stack, as carried.
    """
    full = lambda layer, target: jnp.full(
        layer.units[0].carried_shape, target, jnp.float32
    )
    filled = {layer.path: full(layer, targets[layer.path]) for layer in layers}
    settled = jnp.array(False)
    progress = Progress(
        layers,
        center,
        arrays=arrays,
        best_arrays=arrays,
        targets=filled,
        goals=filled,
        search=anderson_init(0),
        start=jnp.zeros(0),
        miss=jnp.zeros(0),
        settled=settled,
        more=~settled,
    )
    zeros = jnp.zeros(len(progress.unknown_names()), jnp.float32)
    return replace(progress, search=anderson_init(len(zeros)), start=zeros, miss=zeros)


def largest_miss(stopping: Stopping) -> float:
    """The largest miss at which a pass counts as right."""
    return float(np.log1p(stopping.tolerance) / 2)


def to_reals(mean: Array, bias: Array) -> Float[Array, " n"]:
    """The means of a bias's channels as unknowns, imaginary parts behind real ones."""
    parts = [jnp.real(mean), jnp.imag(mean)][: 2 if jnp.iscomplexobj(bias) else 1]
    return jnp.concatenate([part.ravel() for part in parts]).astype(jnp.float32)


def _from_reals(values: Float[Array, " n"], bias: Array) -> Array:
    """Unknowns as an array in the shape of a bias, complex where the bias is."""
    if jnp.iscomplexobj(bias):
        real, imag = jnp.split(values, 2)
        values = real + 1j * imag
    return values.reshape(bias.shape)
