"""Typical elements of arrays, as samples: what is known of a value that is not run.

A value of the model is represented by one element of its array, and for each axis by a
second element that differs from the first in its index along that axis alone: as joint
samples over draws of weights and inputs. That is enough to follow elementwise functions
exactly, and the correlations along axes that sums, maxima and shared weights meet.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from ...core import inverse, inverse_rms, widen

SHUFFLE_ROUNDS = 6
"""Of shuffling."""


SURE = 3
"""Covariances of fewer standard errors count as none."""


JITTER = 1e-4
"""Of correlations: what keeps those of equal elements positive definite."""


class SampledArray(NamedTuple):
    """Samples of an element, and of its neighbour along each axis of the array.

    A row is None where the neighbour is the element itself: the axis is of size one, or
    the array is a broadcast along it. What is not alike along an axis is kept apart:
    what borders of convolutions do as a profile, what a loop over time does as steps.
    The origin tells what further elements are made of.
    """

    base: Array
    rows: tuple[Array | None, ...]
    profiles: tuple[Array | None, ...] = ()
    steps: "Steps | None" = None
    origin: "Origin | None" = None

    def row(self, axis: int) -> Array:
        """The neighbour along an axis."""
        found = self.rows[axis]
        return self.base if found is None else found

    def profile(self, axis: int) -> Array | None:
        """Second moments by place along an axis, over their mean; None: all alike."""
        return self.profiles[axis] if self.profiles else None

    def over(self, axes: Sequence[int | None]) -> "SampledArray":
        """The same element of an array with other axes; None: a broadcast axis."""
        rows = tuple(None if a is None else self.rows[a] for a in axes)
        profiles = tuple(None if a is None else self.profile(a) for a in axes)
        steps = self.steps.over(axes) if self.steps else None
        return SampledArray(self.base, rows, profiles, steps)

    def beside(self, axis: int, neighbour: Array | None) -> "SampledArray":
        """With another neighbour along an axis."""
        rows = (*self.rows[:axis], neighbour, *self.rows[axis + 1 :])
        return self._replace(rows=rows, origin=None)

    def without(self, axis: int) -> "SampledArray":
        """The same element of an array that has not the axis."""
        return SampledArray(self.base, self.rows[:axis] + self.rows[axis + 1 :])

    def inserted(self, axis: int, neighbour: Array | None) -> "SampledArray":
        """The same element of an array with one axis more."""
        rows = (*self.rows[:axis], neighbour, *self.rows[axis:])
        return SampledArray(self.base, rows)

    def shaped(self, shape: Sequence[int]) -> "SampledArray":
        """The same element of an array of a shape: no neighbours along single ones."""
        rows = (r if n > 1 else None for r, n in zip(self.rows, shape, strict=True))
        return SampledArray(self.base, tuple(rows))

    def each(self, function: Callable[[Array], Array]) -> "SampledArray":
        """A function of all elements alike, which keeps profiles as they are."""
        rows = (None if r is None else function(r) for r in self.rows)
        return SampledArray(function(self.base), tuple(rows), self.profiles)


class Origin(NamedTuple):
    """The elementwise function and the signals that a signal was made of."""

    function: Callable[[Sequence[Array]], Array]
    operands: tuple[SampledArray, ...]


class Steps(NamedTuple):
    """Signals of parts of an array along an axis, by the index at which they start.

    Each is of `size` indices; the last stands for parts that are not known.
    """

    axis: int
    size: int
    known: Mapping[int, SampledArray]
    last: SampledArray

    def at(self, index: int) -> SampledArray:
        """One of them."""
        return self.known.get(index, self.last)

    def over(self, axes: Sequence[int | None]) -> "Steps | None":
        """The same with other axes, where that of the parts is still there."""
        if self.axis not in axes:
            return None
        axis = list(axes).index(self.axis)
        return self.each(lambda signal: signal.over(axes))._replace(axis=axis)

    def each(self, function: Callable[[SampledArray], SampledArray]) -> "Steps":
        """A function of each part."""
        known = {i: function(signal) for i, signal in self.known.items()}
        return self._replace(known=known, last=function(self.last))


class SampleSource:
    """A source of independent samples, each from a key of its own.

    `lines` remembers elements along axes: a mean and a mean square are of the same.
    """

    def __init__(self, key: jax.Array, size: int):
        self._key, self._count, self.size = key, 0, size
        self.lines: dict[Any, Any] = {}
        middles = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
        nodes = ndtri(middles)
        self._normal = nodes / jnp.sqrt(jnp.mean(jnp.square(nodes)))
        self._uniform = middles

    def key(self) -> jax.Array:
        """A key that nothing else has."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)

    def normal(self) -> Array:
        """N(0, 1): all midpoints of equal probability, in random order.

        The expectation of a function of one source is then a quadrature, not a guess.
        """
        return shuffled(self.key(), self._normal)

    def uniform(self) -> Array:
        """Uniform on (0, 1), as evenly as `normal`."""
        return shuffled(self.key(), self._uniform)

    def bits(self, dtype: Any) -> Array:
        """Random bits."""
        return jax.random.bits(self.key(), (self.size,), dtype)

    def among(self, sizes: Sequence[int]) -> Array:
        """An index into the sizes, each as often as its size says."""
        shares = jnp.cumsum(jnp.array(sizes) / sum(sizes))
        return jnp.minimum(jnp.searchsorted(shares, self.uniform()), len(sizes) - 1)

    def integers(self, below: int) -> Array:
        """Each of 0 ... below - 1 equally often."""
        return jnp.minimum(jnp.floor(self.uniform() * below), below - 1).astype(int)


@jax.jit
def shuffled(key: jax.Array, values: Array) -> Array:
    """The values in random order; their number is a power of two.

    Odd multiples, sums and right shifts modulo a power of two are permutations: a few
    of them with random numbers, in the place of a sort.
    """
    last = values.size - 1
    half = max(last.bit_length() // 2, 1)
    numbers = jax.random.bits(key, (SHUFFLE_ROUNDS, 2), jnp.uint32)
    at = jnp.arange(values.size, dtype=jnp.uint32)
    for by, more in numbers:
        at = (at * (by | 1) + more) & last
        at = at ^ (at >> half)
    return values[at]


def floating(x: Array) -> Array:
    """Samples of any dtype as numbers of at least 32 bits."""
    return widen(x) if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def mean(x: Array) -> Array:
    """The mean of samples."""
    return jnp.mean(floating(x))


def power(x: Array) -> Float[Array, ""]:
    """The second moment of samples."""
    return jnp.mean(jnp.square(jnp.abs(floating(x))))


def covariance(x: Array, y: Array) -> Array:
    """The covariance of two rows of samples."""
    x, y = floating(x), floating(y)
    return jnp.mean((x - mean(x)) * (y - mean(y)))


def significant_covariance(x: Array, y: Array) -> Array:
    """The covariance, and zero where it may be chance: long sums would multiply it."""
    x, y = floating(x) - mean(x), floating(y) - mean(y)
    found = jnp.mean(x * y)
    error = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(x * y))) / x.size)
    return jnp.where(jnp.abs(found) > SURE * error, found, 0)


def samples_of_array(draws: SampleSource, array: Array) -> SampledArray:
    """The elements that an array has, each as often as any other."""
    array = jnp.asarray(array)
    if array.ndim == 0:
        return SampledArray(jnp.broadcast_to(array, (draws.size,)), ())
    at = list(jnp.unravel_index(draws.integers(array.size), array.shape))
    rows = []
    for axis, n in enumerate(array.shape):
        # any other index along the axis
        other = (at[axis] + 1 + draws.integers(max(n - 1, 1))) % n
        rows.append(array[tuple(at[:axis] + [other] + at[axis + 1 :])])
    base = array[tuple(at)]
    sizes = zip(rows, array.shape, strict=True)
    return SampledArray(base, tuple(row if n > 1 else None for row, n in sizes))


def noise(
    draws: SampleSource, shape: Sequence[int], centre: Any, variance: Any
) -> SampledArray:
    """Independent Gaussian elements, of an array of some shape."""
    size = jnp.sqrt(variance)
    one = lambda: centre + size * draws.normal()
    return SampledArray(one(), tuple(one() if n > 1 else None for n in shape))


def filled(draws: SampleSource, base: Array, shape: Sequence[int]) -> SampledArray:
    """Samples as a signal whose rows are independent shuffles of them."""
    other = lambda: shuffled(draws.key(), base)
    return SampledArray(base, tuple(other() if n > 1 else None for n in shape))


def gaussian_rows(
    draws: SampleSource, moments: Float[Array, "rows rows"], variance: Any
) -> list[Array]:
    """Gaussian rows whose second moments are as given, up to one factor.

    What comes of elements with these second moments through one random linear map: the
    first has exactly the `variance`.
    """
    return _gaussian_rows(draws.key(), draws.size, moments, variance)


@partial(jax.jit, static_argnums=1)
def _gaussian_rows(
    key: jax.Array, size: int, moments: Array, variance: Array
) -> list[Array]:
    draws, unit = SampleSource(key, size), inverse_rms(jnp.diag(moments))
    others = jax.random.normal(draws.key(), (len(unit) - 1, size))
    alike = moments * unit[:, None] * unit[None, :]
    alike = jnp.where(jnp.eye(len(unit)) > 0, 1.0, alike / (1 + JITTER))
    root = jnp.linalg.cholesky(_definite(alike))
    root = root / jnp.linalg.norm(root, axis=1, keepdims=True)
    fresh = jnp.concatenate([draws.normal()[None], others])
    return list(jnp.sqrt(variance) * (root @ fresh))


@jax.jit
def correlate_with_last(
    made: list[Array], variance: Array, given: Array, given_last: Array,
    made_last: list[Array],
) -> list[Array]:  # fmt: skip
    """Rows that a weight made, correlated with those that it made the last time.

    Their correlation is that of what it was given, once and again.
    """
    sizes = jnp.sqrt(power(given) * power(given_last))
    alike = jnp.mean(_real_part(given) * _real_part(given_last)) * inverse(sizes)
    alike = jnp.clip(jnp.where(sizes > 0, alike, 0), -1, 1)
    grown = jnp.sqrt(variance * inverse(power(made_last[0])))
    fresh = jnp.sqrt(1 - jnp.square(alike))
    pairs = zip(made, made_last, strict=True)
    rows = [fresh * now + alike * grown * last for now, last in pairs]
    fitted = jnp.sqrt(variance * inverse(power(rows[0])))
    return [fitted * row for row in rows]


def _definite(matrix: Float[Array, "rows rows"]) -> Float[Array, "rows rows"]:
    """The nearest matrix with eigenvalues of at least the jitter; mostly itself."""
    if len(matrix) == 1:
        return matrix
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, JITTER / 2)) @ vectors.T


def second_moments(rows: Sequence[Array]) -> Float[Array, "rows rows"]:
    """`E x_r x_s` over samples, with equal diagonals."""
    stacked = jnp.stack([_real_part(row) for row in rows])
    raw = stacked @ stacked.T / stacked.shape[1]
    unit = inverse_rms(jnp.diag(raw))
    return raw * unit[:, None] * unit[None, :] * raw[0, 0]


def _real_part(x: Array) -> Array:
    x = floating(x)
    return x.real if jnp.iscomplexobj(x) else x
