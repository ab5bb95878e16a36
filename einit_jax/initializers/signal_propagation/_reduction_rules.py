"""The rules of reductions: sums, extremes and running sums along an axis."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ._axis_samples import average, largest, sample_axis
from ._interpreter import SampleInterpreter
from ._samples import SampledArray
from ._shape_rules import index_rule


def reduction_rule(kind: str) -> Callable:
    """Sums, largest and smallest elements over axes, one axis after the other."""

    def rule(walk: SampleInterpreter, eqn: Any, values: list) -> SampledArray:
        signal, shape = walk.signal(values[0]), eqn.invars[0].aval.shape
        for axis in sorted(eqn.params["axes"], reverse=True):
            signal = reduce_axis(walk, kind, signal, axis, shape[axis])
        return signal.each(lambda x: x.astype(eqn.outvars[0].aval.dtype))

    return rule


def reduce_axis(
    walk: SampleInterpreter,
    kind: str,
    signal: SampledArray,
    axis: int,
    size: int | float,
    windows: bool = False,
) -> SampledArray:
    """`size` elements along an axis as one; with `windows` the axis stays."""
    how = (axis, size, walk.most, windows)
    if kind == "sum":
        return average(walk.draws, signal, *how).each(lambda x: size * x)
    if kind == "max":
        return largest(walk.draws, signal, *how)
    return largest(walk.draws, signal.each(_opposite), *how).each(_opposite)


def _opposite(x: Array) -> Array:
    return ~x if x.dtype == bool else -x


def window_rule(kind: str) -> Callable:
    """The same over windows, whose elements are few."""

    def rule(walk: SampleInterpreter, eqn: Any, values: list) -> SampledArray:
        signal, params = walk.signal(values[0]), eqn.params
        window, shape = params["window_dimensions"], eqn.invars[0].aval.shape
        wide = [a for a, n in enumerate(window) if n > 1]
        profiles, size = [signal.profile(a) for a in range(len(shape))], 1.0
        names = "window_strides", "padding", "base_dilation", "window_dilation"
        for a in wide:
            geometry = (params[name][a] for name in names)
            meets, sums = window_sums(signal.profile(a), shape[a], window[a], *geometry)
            each = sums / np.maximum(meets.sum(1), 1)
            profiles[a], size = each / jnp.mean(each), size * meets.sum(1).mean()
        live = [a for a in wide if signal.rows[a] is not None]
        if live:
            signal = reduce_axis(walk, kind, signal, live[0], float(size), True)
        for a in live[1:]:  # another window, whichever axis leads to it
            signal = signal.beside(a, signal.rows[live[0]])
        signal = signal.each(lambda x: x.astype(eqn.outvars[0].aval.dtype))
        return signal._replace(profiles=tuple(profiles))

    return rule


def window_sums(
    profile: Array | None, size: int, window: int, stride: int,
    padding: tuple[int, int], base: int, apart: int,
) -> tuple[Bool[np.ndarray, "places window"], Float[Array, " places"]]:  # fmt: skip
    """Which entries of a window meet an input, at each place, and what they sum there.

    `base` and `apart` are the dilations of inputs and of the window.
    """
    at, meets = _window_places(size, window, stride, padding, base, apart)
    profile = jnp.ones(size) if profile is None else profile
    return meets, jnp.where(meets, profile[jnp.clip(at, 0, size - 1)], 0).sum(1)


def _window_places(
    size: int, window: int, stride: int, padding: tuple[int, int], base: int, apart: int
) -> tuple[Int[np.ndarray, "places window"], Bool[np.ndarray, "places window"]]:
    """The input that each entry of a window has at each place, and if there is one."""
    wide, reach = (size - 1) * base + 1, (window - 1) * apart + 1
    places = max((wide + sum(padding) - reach) // stride + 1, 1)
    at = np.arange(places)[:, None] * stride - padding[0] + np.arange(window) * apart
    return at // base, (at >= 0) & (at < wide) & (at % base == 0)


def cumulative_rule(function: Callable[[Array], Array]) -> Callable:
    """Running sums and the like: of the first elements of a line, any number."""

    def rule(walk: SampleInterpreter, eqn: Any, values: list) -> SampledArray:
        signal, axis = walk.signal(values[0]), eqn.params["axis"]
        size = eqn.invars[0].aval.shape[axis]
        count = min(size, walk.most)
        elements = sample_axis(walk.draws, signal, axis, count)

        def up_to_any() -> SampledArray:
            at = walk.draws.integers(count)[None]
            pick = lambda x: jnp.take_along_axis(function(x), at, 0)[0]
            return elements.reduced(pick)

        here, there = up_to_any(), up_to_any()
        found = here.inserted(axis, there.base if size > 1 else None)
        longer = size / count if function is running_sum else 1
        dtype = eqn.outvars[0].aval.dtype
        return found.each(lambda x: jnp.asarray(longer * x, dtype))

    return rule


def running_sum(x: Array) -> Array:
    """Running sums."""
    return jnp.cumsum(x, 0)


def running_product(x: Array) -> Array:
    """Running products."""
    return jnp.cumprod(x, 0)


def running_max(x: Array) -> Array:
    """Running maxima."""
    return jax.lax.cummax(x, axis=0)


def scatter_rule(walk: SampleInterpreter, eqn: Any, values: list) -> SampledArray:
    """As many summands as there are for each element, and the element."""
    aval, summands = eqn.outvars[0].aval, eqn.invars[2].aval
    if len(summands.shape) != len(aval.shape) or not aval.shape:
        walk.note(eqn)
        return walk.fitted(walk.signal(values[2]), aval)
    size = max(math.prod(summands.shape) / max(math.prod(aval.shape), 1), 1.0)
    found = reduce_axis(walk, "sum", walk.signal(values[2]), 0, size, True)
    start = walk.signal(values[0])
    rows = [
        None if n == 1 else found.row(a) + start.row(a)
        for a, n in enumerate(aval.shape)
    ]
    made = SampledArray(found.base + start.base, tuple(rows))
    return made.each(lambda x: x.astype(aval.dtype))


def top_k_rule(walk: SampleInterpreter, eqn: Any, values: list) -> list:
    """One of the largest elements of a line, and any index."""
    signal, shape = walk.signal(values[0]), eqn.invars[0].aval.shape
    count = min(shape[-1], max(walk.most, 2))
    elements = sample_axis(walk.draws, signal, len(shape) - 1, count)
    best = max(1, round(eqn.outvars[0].aval.shape[-1] * count / shape[-1]))

    def any_of_best() -> SampledArray:
        at = walk.draws.integers(best)[None]
        pick = lambda x: jnp.take_along_axis(jnp.sort(x, 0)[::-1], at, 0)[0]
        return elements.reduced(pick)

    here, there = any_of_best(), any_of_best()
    beside = there.base if eqn.outvars[0].aval.shape[-1] > 1 else None
    best_of = here.inserted(len(shape) - 1, beside)
    return [best_of, index_rule(walk, eqn, values, 1)]
