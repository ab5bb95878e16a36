"""Sizes of arrays that are shaped like parameters, joined for each unit and layer.

Each array is reduced by itself, and all that follows is arithmetic on whole columns:
scalars of each unit would be as many small kernels.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core import Path, gathered, inner_axes, widen
from ._unit import Unit


class ParamColumns:
    """Arrays shaped like parameters, of any size in float32; rows as `concat_units`'.

    Each has a first axis more, over which several *kinds* of them lie side by side.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        owned: Sequence[Unit | None],
        arrays: Sequence[Array],
    ):
        """`owned` has the unit of each array; see `owners`."""
        pairs = zip(arrays, owned, strict=True)
        pairs = [(widen(x), u) for x, u in pairs if u is not None and x.size]
        self._axes = [
            tuple(1 + i for i in inner_axes(x.shape[1:], u.lifted_axes))
            for x, u in pairs
        ]
        owners = [u for _, u in pairs]
        self._places = _places(units, owners)
        counts = [0.0] * (1 + sum(u.size for u in owners))
        counts[:-1] = [x[0].size / u.size for x, u in pairs for _ in range(u.size)]
        self._sizes = np.array(counts)[self._places].sum(-1).clip(1)
        self._divide([x for x, _ in pairs])

    def _divide(self, arrays: list[Array]) -> None:
        """Each array over its largest magnitude, so that squares are in range.

        Products are cheap enough for XLA to make them anew in each sum.
        """
        both = list(zip(arrays, self._axes, strict=True))
        peaks = [_peak(x, axes) for x, axes in both]
        self._parts = list(map(_over, arrays, peaks))
        own = self._by_row(peaks)
        divisors = jnp.where(own == 0, 0, _divisor(own))
        top = jnp.max(divisors, -1)
        self._top = jnp.where(top > 0, top, 1)
        self._shares = divisors / self._top[..., None]
        squares = [_length(*pair) for pair in self._pairs()]
        self._lengths = jnp.sqrt(self._means(squares, jnp.square(self._shares)))

    def rms(self) -> Float[Array, "kinds rows"]:
        """The joint root mean squares."""
        return self._top * self._lengths

    def cosine(self) -> Float[Array, " rows"]:
        """Between the first two kinds; NaN where one is zero."""
        products = [_product(*pair) for pair in self._pairs()]
        dot = self._means(products, self._shares[:1] * self._shares[1:2])[0]
        product = self._lengths[0] * self._lengths[1]
        return dot / jnp.where(product > 0, product, jnp.nan)

    def _pairs(self) -> Iterable[tuple[Array, tuple[int, ...]]]:
        """What each array is divided to, and the axes over which it is summed."""
        return zip(self._parts, self._axes, strict=True)

    def _means(self, sums: list[Array], weights: Array) -> Float[Array, "kinds rows"]:
        """Weighted sums over the arrays of a row, over the number of elements."""
        return (self._by_row(sums) * weights).sum(-1) / self._sizes

    def _by_row(self, columns: list[Array]) -> Float[Array, "kinds rows arrays"]:
        """A number of each array and layer, by row; 0 where a unit has no more."""
        flat = [gathered(c).reshape(len(c), -1).astype(jnp.float32) for c in columns]
        none = jnp.zeros((len(flat[0]), 1), jnp.float32)
        return jnp.concatenate([*flat, none], 1)[:, self._places]


@partial(jax.jit, static_argnums=1)
def _peak(x: Array, axes: tuple[int, ...]) -> Array:
    return jnp.max(jnp.abs(x), axes, keepdims=True)


@jax.jit
def _over(x: Array, peak: Array) -> Array:
    return x * (1 / _divisor(peak))


@partial(jax.jit, static_argnums=1)
def _length(x: Array, axes: tuple[int, ...]) -> Array:
    """The sum of squares."""
    return jnp.square(jnp.abs(x)).sum(axes)


@partial(jax.jit, static_argnums=1)
def _product(x: Array, axes: tuple[int, ...]) -> Array:
    """Of the first two kinds, their inner product."""
    return jnp.real(jnp.conj(x[:1]) * x[1:2]).sum(axes)


def _divisor(peak: Float[Array, "..."]) -> Float[Array, "..."]:
    """By what arrays are divided: the inverse is a normal number, too."""
    return jnp.clip(peak, 2.0**-120, 2.0**120)


def _places(
    units: Sequence[Unit], owners: Sequence[Unit]
) -> Int[np.ndarray, "rows arrays"]:
    """Where the numbers of each row are, among those of one array after the other."""
    starts: dict[Path, list[int]] = {}
    end = 0
    for owner in owners:
        starts.setdefault(owner.path, []).append(end)
        end += owner.size
    rows = [
        [start + layer for start in starts.get(unit.path, [])]
        for unit in units
        for layer in range(unit.size)
    ]
    width = max(1, *map(len, rows))
    return np.array([row + [end] * (width - len(row)) for row in rows])
