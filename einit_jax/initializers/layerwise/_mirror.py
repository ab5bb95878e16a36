"""Orthonormal weights whose rows or features come in pairs of opposite sign."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array

from ...core import Path
from ...distinctness import Pairs
from ..classic import Parameter


class Mirror(NamedTuple):
    """How a weight is made of a smaller one; hashable.

    Of each index its partner: itself where it has none. Empty where nothing is
    mirrored. Axes are those of the array as it is drawn.
    """

    rows: tuple[int, ...]
    """Along the axis that is summed over, windows aside."""
    features: tuple[int, ...]
    row_axis: int
    feature_axis: int
    tied: bool
    """Whether partners among the features are equal, in the place of opposite."""

    def initializer(
        self, key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike
    ) -> Array:
        """An initializer: an orthonormal draw of half the size, unfolded."""
        axes = {self.row_axis: self.rows, self.feature_axis: self.features}
        folded = {i: _folded(own) for i, own in axes.items() if own}
        inner = [
            folded[i][0].max() + 1 if i in folded else n for i, n in enumerate(shape)
        ]
        array = initializers.orthogonal()(key, tuple(map(int, inner)), dtype)
        for axis, (places, signs) in folded.items():
            one = [1 if i != axis else -1 for i in range(len(shape))]
            tied = self.tied and axis == self.feature_axis
            factor = jnp.asarray(np.ones_like(signs) if tied else signs, dtype)
            array = jnp.take(array, places, axis) * factor.reshape(one)
        return array


def _folded(partners: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The place of each index in the smaller array, and its sign."""
    every = np.arange(len(partners))
    first = np.minimum(every, np.array(partners, int))
    places = np.unique(first, return_inverse=True)[1]
    return places, np.where(first == every, 1, -1)


def mirrors_of(
    pairs: Pairs, parameters: Mapping[Path, Parameter]
) -> dict[Path, Mirror]:
    """How each weight is drawn that has pairs among its features or rows."""
    as_tuple = lambda partners: () if partners is None else tuple(partners.tolist())
    mirrors = {}
    for path in {**pairs.features, **pairs.rows, **pairs.tied}:
        row_axis, feature_axis = _drawn_axes(parameters[path], pairs)
        mirrors[path] = Mirror(
            as_tuple(pairs.rows.get(path)),
            as_tuple(pairs.features.get(path, pairs.tied.get(path))),
            row_axis=row_axis,
            feature_axis=feature_axis,
            tied=path in pairs.tied,
        )
    return mirrors


def _drawn_axes(weight: Parameter, pairs: Pairs) -> tuple[int, int]:
    """The axes of rows and of features, in the array that an initializer draws."""
    axes = weight.axes
    assert axes is not None, "a model's trace tells the axes"
    if axes.looked_up:
        inner = [i for i in range(len(axes.shape)) if i not in axes.layers]
        large = [i for i in axes.features if axes.shape[i] > 1] or [*axes.features]
        return -1, inner.index(large[0])
    if weight.path not in pairs.convolved:
        return 0, 1
    order = (*axes.contracted, *axes.features)
    rows, features = pairs.convolved[weight.path]
    return order.index(rows), order.index(features)
