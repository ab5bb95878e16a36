"""Samples of one element of an array: their source, moments, ranks, Gaussian ones.

A `SampleSource` draws samples. A product with a random weight needs nothing but the
second moments of its inputs (`second_moments`) and Gaussian outputs that have them
(`gaussian_rows`). A *row* is an array of samples of one element.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from ...core import inverse, inverse_rms, taken, widen
from ._values import AxisSamples, SampledArray

SHUFFLE_ROUNDS = 6
"""How often `shuffled` mixes the indices."""


STANDARD_ERRORS = 3
"""A covariance of fewer standard errors counts as zero."""


JITTER = 1e-4
"""Taken off correlations, so that those of equal elements are positive definite."""


class SampleSource:
    """Draws independent samples, each from a random key of its own.

    `axis_samples` remembers the elements that were sampled along axes, so that a mean
    and a mean square are of the same elements.
    """

    def __init__(self, key: jax.Array, size: int):
        self._key, self._count, self.size = key, 0, size
        self.axis_samples: dict[tuple, tuple[SampledArray, AxisSamples]] = {}
        middles = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
        nodes = ndtri(middles)
        self._normal = nodes / jnp.sqrt(jnp.mean(jnp.square(nodes)))
        self._uniform = middles

    def key(self) -> jax.Array:
        """A random key that was not used before."""
        self._count += 1
        return jax.random.fold_in(self._key, self._count)

    def normal(self) -> Array:
        """N(0, 1): the midpoints of intervals of equal probability, in random order.

        The mean of a function of these samples is a quadrature, without noise.
        """
        return shuffled(self.key(), self._normal)

    def uniform(self) -> Array:
        """Uniform on (0, 1), as evenly spread as `normal`."""
        return shuffled(self.key(), self._uniform)

    def bits(self, dtype: DTypeLike) -> Array:
        """Random bits."""
        return jax.random.bits(self.key(), (self.size,), dtype)

    def weighted_index(self, weights: Sequence[int]) -> Array:
        """An index into the weights, each as often as its weight says."""
        shares = jnp.cumsum(jnp.array(weights) / sum(weights))
        return jnp.minimum(jnp.searchsorted(shares, self.uniform()), len(weights) - 1)

    def integers(self, below: int) -> Array:
        """Each of 0 ... below - 1 equally often."""
        return jnp.minimum(jnp.floor(self.uniform() * below), below - 1).astype(int)


@jax.jit
def shuffled(key: jax.Array, values: Array) -> Array:
    """The values in random order; their number is a power of two.

    Multiplying by an odd number, adding, and xor with the own right shift are
    permutations modulo a power of two. A few rounds with random numbers are much
    cheaper than a sort.
    """
    last = values.size - 1
    half = max(last.bit_length() // 2, 1)
    numbers = jax.random.bits(key, (SHUFFLE_ROUNDS, 2), jnp.uint32)
    index = jnp.arange(values.size, dtype=jnp.uint32)
    for factor, offset in numbers:
        index = (index * (factor | 1) + offset) & last
        index = index ^ (index >> half)
    return values[index]


def samples_of_array(source: SampleSource, array: Array) -> SampledArray:
    """The elements of an array whose values are known, each equally often."""
    array = jnp.asarray(array)
    if array.ndim == 0:
        return SampledArray(jnp.broadcast_to(array, (source.size,)), ())
    index = list(jnp.unravel_index(source.integers(array.size), array.shape))
    rows = []
    for axis, n in enumerate(array.shape):
        # any other index along the axis
        other = (index[axis] + 1 + source.integers(max(n - 1, 1))) % n
        rows.append(taken(array, (*index[:axis], other, *index[axis + 1 :])))
    base = taken(array, tuple(index))
    sizes = zip(rows, array.shape, strict=True)
    return SampledArray(base, tuple(row if n > 1 else None for row, n in sizes))


def noise(
    source: SampleSource,
    shape: Sequence[int],
    centre: Array | int | float,
    variance: Array | int | float,
) -> SampledArray:
    """Independent Gaussian elements of an array of this shape."""
    deviation = jnp.sqrt(variance)
    one = lambda: centre + deviation * source.normal()
    return SampledArray(one(), tuple(one() if n > 1 else None for n in shape))


def filled(source: SampleSource, base: Array, shape: Sequence[int]) -> SampledArray:
    """An array of this shape with independent elements that are distributed as base."""
    other = lambda: shuffled(source.key(), base)
    return SampledArray(base, tuple(other() if n > 1 else None for n in shape))


def floating(x: Array) -> Array:
    """Samples of any dtype as floating numbers of at least 32 bits."""
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
    """The covariance, or zero where it may be chance: long sums would multiply it."""
    x, y = floating(x) - mean(x), floating(y) - mean(y)
    value = jnp.mean(x * y)
    error = jnp.sqrt(jnp.mean(jnp.square(jnp.abs(x * y))) / x.size)
    return jnp.where(jnp.abs(value) > STANDARD_ERRORS * error, value, 0)


def quantiles(ranked: Array, score: Float[Array, "..."]) -> Array:
    """The quantiles that normal scores stand for, of samples in ascending order."""
    index = jnp.floor(ndtr(score) * ranked.size).astype(jnp.int32)
    return ranked[jnp.clip(index, 0, ranked.size - 1)]


@jax.jit
def normal_scores(key: jax.Array, x: Array) -> Array:
    """Normal scores of samples; ties are broken at random."""
    x = x.real if jnp.iscomplexobj(x) else x
    order = jnp.lexsort((jax.random.bits(key, x.shape), x))
    ranks = jnp.zeros(x.size).at[order].set(jnp.arange(x.size, dtype=jnp.float32))
    return ndtri((ranks + 0.5) / x.size)


def second_moments(rows: Sequence[Array]) -> Float[Array, "rows rows"]:
    """`E x_r x_s` over samples, scaled to equal diagonals."""
    stacked = jnp.stack([_real_part(row) for row in rows])
    raw = stacked @ stacked.T / stacked.shape[1]
    scales = inverse_rms(jnp.diag(raw))
    return raw * scales[:, None] * scales[None, :] * raw[0, 0]


def gaussian_rows(
    source: SampleSource, moments: Float[Array, "rows rows"], variance: ArrayLike
) -> list[Array]:
    """Gaussian rows with these second moments, up to one factor.

    One random linear map makes such rows of elements with these second moments. The
    first row has exactly the `variance`.
    """
    return _gaussian_rows(source.key(), source.size, moments, variance)


@partial(jax.jit, static_argnums=1)
def _gaussian_rows(
    key: jax.Array, size: int, moments: Float[Array, "rows rows"], variance: ArrayLike
) -> list[Array]:
    """`gaussian_rows` from a key, so that it can be compiled."""
    source, scales = SampleSource(key, size), inverse_rms(jnp.diag(moments))
    others = jax.random.normal(source.key(), (len(scales) - 1, size))
    correlations = moments * scales[:, None] * scales[None, :]
    diagonal = jnp.eye(len(scales)) > 0
    correlations = jnp.where(diagonal, 1.0, correlations / (1 + JITTER))
    root = jnp.linalg.cholesky(_nearest_definite(correlations))
    root = root / jnp.linalg.norm(root, axis=1, keepdims=True)
    independent = jnp.concatenate([source.normal()[None], others])
    return list(jnp.sqrt(variance) * (root @ independent))


def _nearest_definite(matrix: Float[Array, "rows rows"]) -> Float[Array, "rows rows"]:
    """The nearest matrix with eigenvalues of at least half the jitter."""
    if len(matrix) == 1:
        return matrix
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, JITTER / 2)) @ vectors.T


@jax.jit
def correlate_with_last(
    rows: list[Array],
    variance: ArrayLike,
    *,
    operand: Array,
    last_operand: Array,
    last_rows: list[Array],
) -> list[Array]:
    """Rows that a weight made, correlated with those that it made the last time.

    The correlation is that of its operand with its operand the last time.
    """
    sizes = jnp.sqrt(power(operand) * power(last_operand))
    product = jnp.mean(_real_part(operand) * _real_part(last_operand))
    correlation = product * inverse(sizes)
    correlation = jnp.clip(jnp.where(sizes > 0, correlation, 0), -1, 1)
    rescaled = jnp.sqrt(variance * inverse(power(last_rows[0])))
    rest = jnp.sqrt(1 - jnp.square(correlation))
    pairs = zip(rows, last_rows, strict=True)
    rows = [rest * now + correlation * rescaled * last for now, last in pairs]
    fitted = jnp.sqrt(variance * inverse(power(rows[0])))
    return [fitted * row for row in rows]


def _real_part(x: Array) -> Array:
    """The real part of samples as floating numbers."""
    x = floating(x)
    return x.real if jnp.iscomplexobj(x) else x
