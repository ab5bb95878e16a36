"""What a walk without data knows of a value: a constant, a parameter, or samples."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import Path, inverse
from ._samples import SampledArray


class Constant(NamedTuple):
    """A constant of the model."""

    value: Any


class WeightRef(NamedTuple):
    """A parameter, or a slice of it: axes that loops take apart, with indices."""

    path: Path
    layers: tuple[tuple[int, int], ...] = ()


class WeightValue(NamedTuple):
    """A parameter whose entries are only moved, joined, or multiplied by one number.

    `axes`: which of its axes are left, None where they were mixed. `joined`: the
    parameters that were joined to it, and along which axis.
    """

    value: Any
    refs: tuple[WeightRef, ...]
    axes: tuple[int, ...] | None
    factor: Any = 1.0
    joined: "tuple[int, tuple[WeightValue, ...]] | None" = None

    def now(self, value: Any, axes: tuple[int, ...] | None = None) -> "WeightValue":
        """The same entries in another arrangement."""
        return self._replace(value=value, axes=axes, joined=None)

    def layer(self, index: int) -> "WeightValue":
        """One slice along the first axis."""
        value = self.value[index]
        if self.axes is None:
            return self.now(value)
        at = (self.axes[0], index)
        refs = tuple(WeightRef(ref.path, (*ref.layers, at)) for ref in self.refs)
        return self.now(value, self.axes[1:])._replace(refs=refs)


InterpretedValue = Constant | WeightValue | SampledArray | None
"""None: a random key, or what nothing is asked about."""


class Moments(NamedTuple):
    """The first two of a unit's output."""

    mean: Array
    second: Array


Powers = Mapping[WeightRef, Mapping[int, list[Array]]]
"""For each weight and each equation that uses it the second moments of its products, at
entries of variance 1, call by call."""


def settled_variances(
    powers: Powers, signal_variance: float
) -> dict[WeightRef, Float[Array, ""]]:
    """The variance of each weight's entries that brings products to `signal_variance`.

    Within one equation second moments are averaged over calls; over equations (a table
    that is looked up and multiplied with) in the logarithm.
    """
    found = {}
    for ref, sites in powers.items():
        each = jnp.stack([jnp.mean(jnp.stack(calls)) for calls in sites.values()])
        logs = jnp.log(inverse(each))
        found[ref] = signal_variance * jnp.exp(jnp.mean(logs))
    return found
