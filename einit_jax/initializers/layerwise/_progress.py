"""Where the passes over a model's layers have come to, and the weights that go with it.

The unknowns of the search are the logarithms of the factors, of all layers one after
the other, and behind them, where channels are centred, what is added to the biases, in
deviations of the output.
"""

from dataclasses import dataclass
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

FURTHEST = float(np.log(10))
"""How far further passes may take the logarithm of a factor from the first one.

Beyond, an output only seems to follow: a tanh inside of a unit comes within 1% of its
bound at 60 times the weights.
"""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "arrays", "found", "goals", "search", "start", "miss", "settled", "more",
    ],
    meta_fields=["layers", "center"],
)  # fmt: skip
@dataclass(frozen=True)
class Progress:
    """What the passes hand on."""

    layers: tuple[Layer, ...]
    center: bool
    arrays: dict[Path, Array]
    """Weights and biases as drawn, or as they were."""
    found: dict[Path, Array]
    """The same where the search has done best."""
    goals: dict[Path, Array]
    """The variance at which a layer hands on its output; 0: it hands it on as it is."""
    search: AndersonState
    start: Float[Array, " n"]
    """What the first pass implied."""
    miss: Float[Array, " n"]
    """Half the logarithm of each variance over its target, and means in deviations."""
    settled: Bool[Array, ""]
    more: Bool[Array, ""]

    @property
    def centred(self) -> tuple[Layer, ...]:
        """The layers whose channels are centred."""
        return tuple(la for la in self.layers if self.center and la.channels)

    @property
    def count(self) -> int:
        """The number of factors."""
        return sum(layer.units[0].size for layer in self.layers)

    def at(self, point: Array) -> dict[Path, Array]:
        """The weights and biases at a point of the search."""
        factors, found = self.factors(point), {}
        for layer in self.layers:
            by, lifted_axes = factors[layer.path], layer.units[0].lifted_axes
            for path in (*layer.weights, *layer.biases):
                x = self.arrays[path]
                found[path] = multiply(x, broadcast_per_layer(by, x.shape, lifted_axes))
        ends = np.cumsum([self.count, *map(self.width, self.centred)])
        for layer, start, end in zip(self.centred, ends, ends[1:], strict=False):
            assert layer.channels is not None
            path = layer.channels[0]
            shift = _from_reals(point[start:end], found[path])
            added = found[path] + layer.target**0.5 * shift
            found[path] = added.astype(found[path].dtype)
        return found

    def factors(self, point: Array) -> dict[Path, Array]:
        """The factors at a point of the search, as they ride."""
        by = jnp.exp(point[: self.count])
        columns = split_units([layer.units[0] for layer in self.layers], {"by": by})
        return {path: own["by"] for (path, _), own in columns.items()}

    def width(self, layer: Layer) -> int:
        """The number of unknowns of a layer's bias."""
        assert layer.channels is not None
        bias = self.arrays[layer.channels[0]]
        return bias.size * (2 if jnp.iscomplexobj(bias) else 1)

    def check(self, stopping: Stopping) -> None:
        """Raises where passes came to no good end; under an outer trace, nothing."""
        if not is_concrete(self.more):
            return
        names, miss = self._names(), np.array(self.miss)
        if not np.isfinite(miss).all():
            raise FloatingPointError(
                f"non-finite activations at unit {names[~np.isfinite(miss)][0]!r}; "
                "lsuv needs finite numbers: check the parameters, the inputs and, for "
                "16-bit models, the range of the dtype"
            )
        if self.settled or stopping.max_passes == 1:
            return
        far = ~(np.abs(miss) <= largest_miss(stopping))
        far[: self.count] |= np.abs(self.grown()) > FURTHEST
        rows = [n for n in range(self.count) if names[n] in set(names[far])]
        ratio, grown = np.exp(2 * miss), np.exp(np.abs(self.grown()))
        listing = ", ".join(
            f"{names[n]} (variance {ratio[n]:.3g} of its target, weights changed "
            f"{grown[n]:.3g}-fold)"
            for n in rows
        )
        raise ValueError(
            f"after {stopping.max_passes} passes there are units whose outputs do not "
            f"follow their weights and biases, or not yet: {listing}; leave them as "
            f"they are: exclude={names[far][0]!r}; or raise max_sweeps"
        )

    def grown(self) -> np.ndarray:
        """How far each factor is from the one that the first pass implied."""
        return np.array(self.search.best - self.start)[: self.count]

    def _names(self) -> np.ndarray:
        """The layer that each unknown is of."""
        sizes = [layer.units[0].size for layer in self.layers]
        every = (*self.layers, *self.centred)
        names = np.array([layer.name for layer in every], object)
        return np.repeat(names, [*sizes, *map(self.width, self.centred)])


def start_progress(
    layers: tuple[Layer, ...], arrays: dict[Path, Array], center: bool
) -> Progress:
    """Before the first pass, in which every call hands on what is right."""
    ride = lambda layer: jnp.ones(layer.units[0].carried_shape, jnp.float32)
    goals = {layer.path: layer.target * ride(layer) for layer in layers}
    given, no = (layers, center, arrays, arrays, goals), jnp.array(False)
    empty = Progress(*given, anderson_init(0), jnp.zeros(0), jnp.zeros(0), no, ~no)
    zeros = jnp.zeros(len(empty._names()), jnp.float32)
    return Progress(*given, anderson_init(len(zeros)), zeros, zeros, no, ~no)


def largest_miss(stopping: Stopping) -> float:
    """The largest miss that will do."""
    return float(np.log1p(stopping.tolerance) / 2)


def to_reals(mean: Array, like: Array) -> Array:
    """Numbers for the channels of a bias, as unknowns."""
    parts = [jnp.real(mean), jnp.imag(mean)][: 2 if jnp.iscomplexobj(like) else 1]
    return jnp.concatenate([part.ravel() for part in parts]).astype(jnp.float32)


def _from_reals(values: Array, like: Array) -> Array:
    if jnp.iscomplexobj(like):
        real, imag = jnp.split(values, 2)
        values = real + 1j * imag
    return values.reshape(like.shape)
