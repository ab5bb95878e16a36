"""More elements along an axis than a SampledArray holds, and what is made of them.

A SampledArray knows two elements along an axis. Sums, maxima and running sums need
more. All elements of an axis are taken as exchangeable, with a Gaussian copula: element
i is `Q(Phi(z_i))`, where Q are the quantiles of the one element, and

    z_i = sqrt(rho) g + sqrt(1 - rho) e_i

with g common to the whole axis and rho the correlation of the normal scores of the two
elements that are known. The elements beside these, along another axis, have a g and e_i
of their own, correlated with these as the known elements are.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float, Shaped

from ._samples import (
    SampleSource,
    covariance,
    floating,
    mean,
    normal_scores,
    quantiles,
    significant_covariance,
)
from ._values import AxisSamples, SampledArray

GRID = 17
"""The number of correlations at which covariances are computed."""


EQUAL = 1 - 1e-6
"""The largest correlation of scores; elements correlated by more are equal."""


def sample_axis(
    source: SampleSource,
    signal: SampledArray,
    axis: int,
    count: int,
    *,
    group: int | float = 1.0,
) -> AxisSamples:
    """`count` elements along an axis; further ones are maxima of `group` elements each.

    The first two are the element and its neighbour; beside them, along another axis,
    the first is the neighbour there. The same question has the same answer, and that
    of a function of an array is the function of the answer for the array.
    """
    neighbour = signal.rows[axis] if signal.rows else None
    others = signal.without_axis(axis).rows
    if neighbour is None:
        repeat = lambda x: jnp.stack([x] * count)
        rows = (None if row is None else repeat(row) for row in others)
        return AxisSamples(repeat(signal.base), tuple(rows))
    by_copula = partial(
        _sample_by_copula, source, signal.base, neighbour,
        others=others, count=count, group=group,
    )  # fmt: skip
    if group > 1:
        return by_copula()
    key = id(signal.base), axis, count, tuple(map(id, signal.rows))
    if key not in source.axis_samples:
        by_origin = partial(_sample_origin, source, signal, axis, count)
        elements = by_copula() if signal.origin is None else by_origin()
        # the signal is kept: an id is unique only while its array is alive
        source.axis_samples[key] = signal, elements
    return source.axis_samples[key][1]


def _sample_origin(
    source: SampleSource, signal: SampledArray, axis: int, count: int
) -> AxisSamples:
    """The function of the signal's origin, of elements of the origin's operands."""
    origin, rows = signal.origin, []
    assert origin is not None
    operands = [sample_axis(source, x, axis, count) for x in origin.operands]
    for i in range(len(signal.rows) - 1):
        own = [x.rows[i] if x.rows else None for x in operands]
        pairs = zip(own, operands, strict=True)
        full = [x.base if row is None else row for row, x in pairs]
        rows.append(None if all(r is None for r in own) else origin.function(full))
    return AxisSamples(origin.function([x.base for x in operands]), tuple(rows))


def _sample_by_copula(
    source: SampleSource,
    element: Array,
    neighbour: Array,
    *,
    others: tuple[Array | None, ...],
    count: int,
    group: int | float,
) -> AxisSamples:
    """Elements along an axis by the copula; `others` are the rows of other axes."""
    known = [element, *(row for row in others if row is not None)]
    scores = [normal_scores(source.key(), row) for row in (*known, neighbour)]
    base, *rows = _copula_elements(
        source.key(), jnp.sort(element), known=jnp.stack(known), neighbour=neighbour,
        scores=jnp.stack(scores), count=count, group=group,
    )  # fmt: skip
    beside = (None if row is None else rows.pop(0) for row in others)
    return AxisSamples(base, tuple(beside))


@partial(jax.jit, static_argnames=("count", "group"))
def _copula_elements(
    key: jax.Array,
    ranked: Array,
    *,
    known: Shaped[Array, "axes samples"],
    neighbour: Array,
    scores: Float[Array, "scores samples"],
    count: int,
    group: int | float,
) -> Shaped[Array, "axes count samples"]:
    """The elements along the axis, and those beside them along each other axis.

    `known` are the element and its neighbours along other axes, `neighbour` is that
    along the axis itself, `scores` are of all of these.
    """
    base, others = known[0], known[1:]
    keys = jax.random.split(key, 2 + len(others))
    latent = _calibration(keys[0], ranked)
    first, second = scores[0], scores[-1]
    rho = jnp.clip(latent(base, neighbour, first * second), 0, EQUAL)
    fresh = jax.random.normal(keys[1], (count, base.size))
    common = jnp.sqrt(rho) * (first + second) / (1 + rho)
    common += jnp.sqrt((1 - rho) / (1 + rho)) * fresh[0]
    implied = (second - jnp.sqrt(rho) * common) / jnp.sqrt(1 - rho)
    noise = jnp.concatenate([implied[None], fresh[1:]])[: max(count - 1, 1)]
    further = quantiles(ranked, _latent_scores(rho, common, noise[1:], group))
    whole = jnp.concatenate([base[None], neighbour[None], further])[:count]

    def beside(key: jax.Array, row: Array, score: Array) -> Array:
        key_common, key_noise = jax.random.split(key)
        along_other = latent(base, row, first * score)
        along_both = latent(neighbour, row, second * score)
        there = _common_beside(
            key_common, rho, common=common, score=score, correlation=along_both
        )
        tie = jnp.clip((along_other - along_both) / (1 - rho), -1, 1)
        own = jax.random.normal(key_noise, noise.shape)
        own = tie * noise + jnp.sqrt(1 - jnp.square(tie)) * own
        beyond = quantiles(ranked, _latent_scores(rho, there, own, group))
        return jnp.concatenate([row[None], beyond])[:count]

    if not len(others):
        return whole[None]
    rows = jax.vmap(beside)(keys[2:], others, scores[1:-1])
    return jnp.concatenate([whole[None], rows])


def _calibration(key: jax.Array, ranked: Array) -> Callable[..., Array]:
    """A function from two elements to the correlation of their scores.

    It inverts the covariance as a function of that correlation: ties (the zeros behind
    a ReLU) make correlations of ranks too small. Where values are too large to be
    squared, it takes the mean product of the scores.
    """
    grid = jnp.linspace(0, 1, GRID)[:, None]
    one, other = jax.random.normal(key, (2, ranked.size))
    first = quantiles(ranked, one)
    second = quantiles(ranked, grid * one + jnp.sqrt(1 - jnp.square(grid)) * other)
    curve = jax.vmap(lambda x: covariance(first, x))(second)
    curve = jnp.maximum.accumulate(curve) + 1e-6 * curve[-1] * grid[:, 0]

    def latent(x: Array, y: Array, score_products: Array) -> Array:
        size = significant_covariance(x, y)
        correlation = jnp.interp(jnp.abs(size), curve, grid[:, 0]) * jnp.sign(size)
        finite = jnp.isfinite(size + curve[-1])
        return jnp.where(finite, correlation, jnp.mean(score_products))

    return latent


def _latent_scores(rho: Array, common: Array, own: Array, group: int | float) -> Array:
    """The scores of further elements, each the largest of a group."""
    if group > 1:
        # below the largest number under 1, whose score is finite
        own = ndtri(jnp.clip(ndtr(own) ** (1 / group), 1e-7, 1 - 6e-8))
    return jnp.sqrt(rho) * common + jnp.sqrt(1 - rho) * own


def _common_beside(
    key: jax.Array, rho: Array, *, common: Array, score: Array, correlation: Array
) -> Array:
    """The g of the elements beside those along an axis, whose g is `common`.

    It is drawn given the `score` of one of them; `correlation` is that of two elements
    whose indices differ in both axes.
    """
    tie = jnp.clip(correlation / jnp.maximum(rho, 1e-6), -1, 1)
    free = jnp.sqrt(rho * (1 - jnp.square(tie)))
    rest = score - jnp.sqrt(rho) * tie * common
    spread = jnp.square(free) + 1 - rho
    fresh = jax.random.normal(key, score.shape)
    own = free / spread * rest + jnp.sqrt((1 - rho) / spread) * fresh
    return tie * common + jnp.sqrt(1 - jnp.square(tie)) * own


def average(
    source: SampleSource,
    signal: SampledArray,
    axis: int,
    *,
    size: int | float,
    max_elements: int,
    keep_axis: bool = False,
) -> SampledArray:
    """The mean of `size` elements along an axis, of which `max_elements` are sampled.

    The mean of those that are not known is that of some, drawn toward the common mean
    until the whole has the variance `c + (v - c) / size`, with v the variance of an
    element and c the covariance of two. With `keep_axis` the axis stays, as windows
    need it: the neighbour along it is the mean of other elements.
    """
    if size <= 1 or signal.rows[axis] is None:
        return signal if keep_axis else signal.without_axis(axis)
    if size <= max_elements and not keep_axis:  # every element is sampled
        elements = sample_axis(source, signal, axis, round(size))
        return elements.reduced(lambda x: floating(x).mean(0))
    count = max(2, min(max_elements, round(size)))
    elements = sample_axis(source, signal, axis, 2 * count if keep_axis else count + 1)
    here, *rows = _means(
        elements, signal.base, signal.row(axis),
        size=size, count=count, keep_axis=keep_axis,
    )  # fmt: skip
    if not keep_axis:
        return SampledArray(here, tuple(rows))
    *rows, neighbour = rows
    return SampledArray(here, tuple(rows)).insert_axis(axis, neighbour)


@partial(jax.jit, static_argnames=("size", "count", "keep_axis"))
def _means(
    elements: AxisSamples,
    base: Array,
    neighbour: Array,
    *,
    size: int | float,
    count: int,
    keep_axis: bool,
) -> list[Array | None]:
    """The mean along the axis, beside it along each other axis, and of others."""
    low, high = jnp.min(base), jnp.max(base)
    centre, spread = mean(base), covariance(base, base)
    common = jnp.clip(significant_covariance(base, neighbour), 0, spread)
    variance = common + (spread - common) / size

    def shrunk_mean(known: Array, others: Array) -> Array:
        part = len(known) / size
        loose = (1 - part) * (floating(others).mean(0) - centre)
        fixed = jnp.zeros_like(loose)
        if len(known):
            fixed = part * (floating(known).mean(0) - centre)
        moments = covariance(loose, loose), covariance(fixed, loose)
        shrink = _positive_root(*moments, covariance(fixed, fixed) - variance)
        return jnp.clip(centre + fixed + shrink * loose, low, high)

    along, rows = elements
    here = shrunk_mean(along[: 2 if size >= 2 else 1], along[2 : count + 1])
    means = [None if r is None else shrunk_mean(r[:1], r[1:count]) for r in rows]
    others = [shrunk_mean(along[:0], along[count:])] if keep_axis else []
    return [here, *means, *others]


def _positive_root(square: Array, cross: Array, rest: Array) -> Array:
    """The positive w with `square w^2 + 2 cross w + rest = 0`; 1 if there is none."""
    divisor = jnp.where(square > 0, square, 1)
    root = jnp.sqrt(jnp.maximum(cross**2 - square * rest, 0))
    w = (root - cross) / divisor
    return jnp.where((square > 0) & jnp.isfinite(w), jnp.maximum(w, 0), 1)


def largest(
    source: SampleSource,
    signal: SampledArray,
    axis: int,
    *,
    size: int | float,
    max_elements: int,
    keep_axis: bool = False,
) -> SampledArray:
    """The maximum of `size` elements along an axis; `keep_axis` as in `average`."""
    if size <= 1 or signal.rows[axis] is None:
        return signal if keep_axis else signal.without_axis(axis)
    count = max(1, min(max_elements, round(size)))
    group = max((size - 2) / (count - 2), 1.0) if count > 2 else 1.0
    drawn = 2 * count if keep_axis else count
    elements = sample_axis(source, signal, axis, drawn, group=group)
    here = elements.reduced(lambda x: x[:count].max(0))
    if not keep_axis:
        return here
    return here.insert_axis(axis, elements.base[count:].max(0))
