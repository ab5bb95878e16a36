"""More elements along an axis than the two that a signal has, and what is made of them.

Elements along an axis are taken as exchangeable: each is `Q(Phi(z))`, with Q the
quantiles of the one element, and `z_i = sqrt(rho) g + sqrt(1 - rho) e_i`, where g is
common to all of them and rho is the correlation of the two that are known, of their
normal scores. Lines that differ in another axis have a g and e of their own, correlated
as the known elements show.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

from ._samples import (
    Origin,
    SampledArray,
    SampleSource,
    covariance,
    floating,
    mean,
    significant_covariance,
)

GRID = 17
"""Correlations at which covariances are looked at."""


NEARLY = 1 - 1e-6
"""Scores correlated by more are those of equal elements."""


class AxisSamples(NamedTuple):
    """Elements along an axis, (count, samples), and those of neighbouring lines."""

    base: Array
    rows: tuple[Array | None, ...]

    def reduced(self, function: Callable[[Array], Array]) -> SampledArray:
        """One element in the place of each line."""
        rows = (None if row is None else function(row) for row in self.rows)
        return SampledArray(function(self.base), tuple(rows))

    def at(self, index: int) -> SampledArray:
        """One of the elements, of an array without the axis."""
        return self.reduced(lambda elements: elements[index])


def sample_axis(
    draws: SampleSource,
    signal: SampledArray,
    axis: int,
    count: int,
    group: int | float = 1.0,
) -> AxisSamples:
    """`count` elements along an axis; with a `group`, maxima of so many elements each.

    The first two are the known ones, the same in every line that has them. Asked again
    they are the same, and those of what a function was applied to.
    """
    beside = signal.rows[axis] if signal.rows else None
    others = signal.without(axis).rows
    if beside is None:
        same = lambda x: None if x is None else jnp.stack([x] * count)
        return AxisSamples(jnp.stack([signal.base] * count), tuple(map(same, others)))
    if group > 1:
        return _sample_by_copula(draws, signal.base, beside, others, count, group)
    key = id(signal.base), axis, count, tuple(map(id, signal.rows))
    if key not in draws.lines:
        if signal.origin is None:
            found = _sample_by_copula(draws, signal.base, beside, others, count, group)
        else:
            found = _sample_origin(draws, signal.origin, axis, count, len(others))
        draws.lines[key] = signal, found  # an identity is one's own only while alive
    return draws.lines[key][1]


def _sample_origin(
    draws: SampleSource, origin: Origin, axis: int, count: int, others: int
) -> AxisSamples:
    """The function of the elements that it was applied to."""
    lines = [sample_axis(draws, operand, axis, count) for operand in origin.operands]
    rows = []
    for i in range(others):
        own = [found.rows[i] if found.rows else None for found in lines]
        pairs = zip(own, lines, strict=True)
        full = [found.base if row is None else row for row, found in pairs]
        made = None if all(r is None for r in own) else origin.function(full)
        rows.append(made)
    return AxisSamples(origin.function([found.base for found in lines]), tuple(rows))


def _sample_by_copula(
    draws: SampleSource,
    known: Array,
    beside: Array,
    others: tuple[Array | None, ...],
    count: int,
    group: int | float,
) -> AxisSamples:
    """Elements by the copula."""
    rows = [known, *(row for row in others if row is not None)]
    scores = [_scores(draws.key(), row) for row in (*rows, beside)]
    ranked, own, scores = jnp.sort(known), jnp.stack(rows), jnp.stack(scores)
    base, *found = _copula_lines(draws.key(), ranked, own, beside, scores, count, group)
    return AxisSamples(
        base, tuple(None if row is None else found.pop(0) for row in others)
    )


@partial(jax.jit, static_argnums=(5, 6))
def _copula_lines(
    key: jax.Array,
    ranked: Array,
    own: Array,
    beside: Array,
    scores: Array,
    count: int,
    group: int | float,
) -> Float[Array, "lines count samples"]:
    """The elements of a line, and of lines that know one element each."""
    base, others = own[0], own[1:]
    keys = jax.random.split(key, 2 + len(others))
    latent = _calibration(keys[0], ranked)
    first, second = scores[0], scores[-1]
    rho = jnp.clip(latent(base, beside, first * second), 0, NEARLY)
    fresh = jax.random.normal(keys[1], (count, base.size))
    common = jnp.sqrt(rho) * (first + second) / (1 + rho)
    common += jnp.sqrt((1 - rho) / (1 + rho)) * fresh[0]
    implied = (second - jnp.sqrt(rho) * common) / jnp.sqrt(1 - rho)
    noise = jnp.concatenate([implied[None], fresh[1:]])[: max(count - 1, 1)]
    made = _quantiles(ranked, _latent_scores(rho, common, noise[1:], group))
    whole = jnp.concatenate([base[None], beside[None], made])[:count]

    def neighbour(key: jax.Array, row: Array, third: Array) -> Array:
        of_common, of_noise = jax.random.split(key)
        shared = latent(base, row, first * third)
        apart = latent(beside, row, second * third)
        there = _other_common(of_common, rho, common, third, apart)
        like = jnp.clip((shared - apart) / (1 - rho), -1, 1)
        other = jax.random.normal(of_noise, noise.shape)
        other = like * noise + jnp.sqrt(1 - jnp.square(like)) * other
        beyond = _quantiles(ranked, _latent_scores(rho, there, other, group))
        return jnp.concatenate([row[None], beyond])[:count]

    if not len(others):
        return whole[None]
    lines = jax.vmap(neighbour)(keys[2:], others, scores[1:-1])
    return jnp.concatenate([whole[None], lines])


def _calibration(key: jax.Array, ranked: Array) -> Callable[..., Array]:
    """From the covariance of two elements to the correlation of their scores.

    Ties (the zeros behind a ReLU) make correlations of ranks too small. Where values
    are too large to be squared, ranks are all there is.
    """
    grid = jnp.linspace(0, 1, GRID)[:, None]
    one, other = jax.random.normal(key, (2, ranked.size))
    first = _quantiles(ranked, one)
    second = _quantiles(ranked, grid * one + jnp.sqrt(1 - jnp.square(grid)) * other)
    curve = jax.vmap(lambda x: covariance(first, x))(second)
    curve = jnp.maximum.accumulate(curve) + 1e-6 * curve[-1] * grid[:, 0]

    def latent(x: Array, y: Array, products: Array) -> Array:
        size = significant_covariance(x, y)
        found = jnp.interp(jnp.abs(size), curve, grid[:, 0]) * jnp.sign(size)
        return jnp.where(jnp.isfinite(size + curve[-1]), found, jnp.mean(products))

    return latent


@jax.jit
def _scores(key: jax.Array, x: Array) -> Array:
    """Normal scores of samples; ties are broken at random."""
    x = x.real if jnp.iscomplexobj(x) else x
    order = jnp.lexsort((jax.random.bits(key, x.shape), x))
    ranks = jnp.zeros(x.size).at[order].set(jnp.arange(x.size, dtype=jnp.float32))
    return ndtri((ranks + 0.5) / x.size)


def _latent_scores(rho: Array, common: Array, own: Array, group: int | float) -> Array:
    """The scores of further elements, each the largest of a group."""
    if group > 1:
        # below the largest number under 1, whose score is finite
        own = ndtri(jnp.clip(ndtr(own) ** (1 / group), 1e-7, 1 - 6e-8))
    return jnp.sqrt(rho) * common + jnp.sqrt(1 - rho) * own


def _other_common(
    key: jax.Array, rho: Array, common: Array, score: Array, apart: Array
) -> Array:
    """What is common to a neighbouring line, given one element of it and this line's.

    `apart` is the correlation of two elements that differ in both axes.
    """
    tie = jnp.clip(apart / jnp.maximum(rho, 1e-6), -1, 1)
    free = jnp.sqrt(rho * (1 - jnp.square(tie)))
    rest = score - jnp.sqrt(rho) * tie * common
    spread = jnp.square(free) + 1 - rho
    fresh = free / spread * rest + jnp.sqrt((1 - rho) / spread) * jax.random.normal(
        key, score.shape
    )
    return tie * common + jnp.sqrt(1 - jnp.square(tie)) * fresh


def _quantiles(ranked: Array, score: Float[Array, "..."]) -> Array:
    """The quantiles that scores stand for."""
    at = jnp.floor(ndtr(score) * ranked.size).astype(jnp.int32)
    return ranked[jnp.clip(at, 0, ranked.size - 1)]


def average(
    draws: SampleSource,
    signal: SampledArray,
    axis: int,
    size: int | float,
    most: int,
    windows: bool,
) -> SampledArray:
    """The mean of `size` elements along an axis: the known ones and all others.

    The others' mean is that of some, drawn toward the common mean until the whole has
    the variance `c + (v - c) / size` that it must have, with v the variance and c the
    covariance of two elements. With `windows` the axis stays: its neighbour is the mean
    of other elements.
    """
    if size <= 1 or signal.rows[axis] is None:
        return signal if windows else signal.without(axis)
    if size <= most and not windows:  # all there are
        every = sample_axis(draws, signal, axis, round(size))
        return every.reduced(lambda x: floating(x).mean(0))
    count = max(2, min(most, round(size)))
    parts = sample_axis(draws, signal, axis, 2 * count if windows else count + 1)
    found = _averaged(parts, signal.base, signal.row(axis), size, count, windows)
    here, *rows = found[: 1 + len(parts.rows)]
    made = SampledArray(here, tuple(rows))
    return made.inserted(axis, found[-1]) if windows else made


@partial(jax.jit, static_argnums=(3, 4, 5))
def _averaged(
    parts: AxisSamples,
    base: Array,
    other: Array,
    size: int | float,
    count: int,
    windows: bool,
) -> list[Array | None]:
    """The means of the element's line, of neighbouring lines, and of others."""
    low, high = jnp.min(base), jnp.max(base)
    centre, spread = mean(base), covariance(base, base)
    common = jnp.clip(significant_covariance(base, other), 0, spread)
    want = common + (spread - common) / size

    def mid(known: Array, others: Array) -> Array:
        part = len(known) / size
        loose = (1 - part) * (floating(others).mean(0) - centre)
        fixed = jnp.zeros_like(loose)
        if len(known):
            fixed = part * (floating(known).mean(0) - centre)
        sizes = covariance(loose, loose), covariance(fixed, loose)
        shrink = _weight(*sizes, covariance(fixed, fixed) - want)
        return jnp.clip(centre + fixed + shrink * loose, low, high)

    here = mid(parts.base[: 2 if size >= 2 else 1], parts.base[2 : count + 1])
    rows = [None if r is None else mid(r[:1], r[1:count]) for r in parts.rows]
    beside = [mid(parts.base[:0], parts.base[count:])] if windows else []
    return [here, *rows, *beside]


def _weight(square: Array, cross: Array, rest: Array) -> Array:
    """The positive w with `square w^2 + 2 cross w + rest = 0`, and 1 without one."""
    square_ = jnp.where(square > 0, square, 1)
    root = jnp.sqrt(jnp.maximum(cross**2 - square * rest, 0))
    found = (root - cross) / square_
    return jnp.where((square > 0) & jnp.isfinite(found), jnp.maximum(found, 0), 1)


def largest(
    draws: SampleSource,
    signal: SampledArray,
    axis: int,
    size: int | float,
    most: int,
    windows: bool,
) -> SampledArray:
    """The maximum of `size` elements along an axis; `windows` as in `average`."""
    if size <= 1 or signal.rows[axis] is None:
        return signal if windows else signal.without(axis)
    count = max(1, min(most, round(size)))
    group = max((size - 2) / (count - 2), 1.0) if count > 2 else 1.0
    parts = sample_axis(draws, signal, axis, 2 * count if windows else count, group)
    here = parts.reduced(lambda x: x[:count].max(0))
    return here.inserted(axis, parts.base[count:].max(0)) if windows else here
