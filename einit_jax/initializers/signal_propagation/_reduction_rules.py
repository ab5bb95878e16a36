"""Rules of reductions: sums, extremes, windows, running sums, the order along an axis.

`reduce_axis` reduces one axis; the element along it is then a sum or an extreme of
elements that `_axis_samples` samples.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ...core import JaxprEqn
from ._axis_samples import average, largest, sample_axis
from ._interpreter import PrimitiveRule, SampleInterpreter, Values
from ._samples import filled
from ._values import AxisSamples, InterpretedValue, SampledArray, array_type

Reduction = Literal["sum", "max", "min"]


def reduction_rule(reduction: Reduction) -> PrimitiveRule:
    """Sums, largest and smallest elements over axes, one axis after the other."""

    def rule(
        interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
    ) -> SampledArray:
        signal, shape = interpreter.signal(values[0]), array_type(eqn.invars[0]).shape
        for axis in sorted(eqn.params["axes"], reverse=True):
            signal = reduce_axis(
                interpreter, signal, axis, reduction=reduction, size=shape[axis]
            )
        return signal.map(lambda x: x.astype(array_type(eqn.outvars[0]).dtype))

    return rule


def reduce_axis(
    interpreter: SampleInterpreter,
    signal: SampledArray,
    axis: int,
    *,
    reduction: Reduction,
    size: int | float,
    keep_axis: bool = False,
) -> SampledArray:
    """`size` elements along an axis as one; with `keep_axis` the axis stays.

    Then the neighbour along the axis is the reduction of other elements.
    """
    reduce = partial(
        average if reduction == "sum" else largest,
        interpreter.source, axis=axis, size=size,
        max_elements=interpreter.max_elements, keep_axis=keep_axis,
    )  # fmt: skip
    if reduction == "sum":
        return reduce(signal).map(lambda x: size * x)
    if reduction == "max":
        return reduce(signal)
    return reduce(signal.map(_opposite)).map(_opposite)


def _opposite(x: Array) -> Array:
    return ~x if x.dtype == bool else -x


def window_rule(reduction: Reduction) -> PrimitiveRule:
    """The same over windows, whose elements are few."""

    def rule(
        interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
    ) -> SampledArray:
        signal, shape = interpreter.signal(values[0]), array_type(eqn.invars[0]).shape
        windows = _windows(eqn)
        profiles, size = [signal.profile(a) for a in range(len(shape))], 1.0
        for a, window in windows.items():
            meets, sums = window_sums(signal.profile(a), shape[a], window)
            means = sums / np.maximum(meets.sum(1), 1)
            profiles[a], size = means / jnp.mean(means), size * meets.sum(1).mean()
        live = [a for a in windows if signal.rows[a] is not None]
        if live:
            signal = reduce_axis(
                interpreter, signal, live[0],
                reduction=reduction, size=float(size), keep_axis=True,
            )  # fmt: skip
        for a in live[1:]:  # another window, whichever axis leads to it
            signal = signal.with_neighbour(a, signal.rows[live[0]])
        signal = signal.map(lambda x: x.astype(array_type(eqn.outvars[0]).dtype))
        return signal._replace(profiles=tuple(profiles))

    return rule


class Window(NamedTuple):
    """How a window moves along one axis."""

    size: int
    stride: int
    padding: tuple[int, int]
    base_dilation: int
    window_dilation: int


def _windows(eqn: JaxprEqn) -> dict[int, Window]:
    """The windows of a reduction along the axes on which they have several entries."""
    params = eqn.params
    windows = zip(
        params["window_dimensions"], params["window_strides"], params["padding"],
        params["base_dilation"], params["window_dilation"], strict=True,
    )  # fmt: skip
    return {a: Window(*w) for a, w in enumerate(windows) if w[0] > 1}


def window_sums(
    profile: Array | None, size: int, window: Window
) -> tuple[Bool[np.ndarray, "places window"], Float[Array, " places"]]:
    """Which entries of a window meet an input, at each place, and what they sum there.

    `size` is that of the axis, along which inputs have the profile.
    """
    index, meets = _window_indices(size, window)
    profile = jnp.ones(size) if profile is None else profile
    return meets, jnp.where(meets, profile[jnp.clip(index, 0, size - 1)], 0).sum(1)


def _window_indices(
    size: int, window: Window
) -> tuple[Int[np.ndarray, "places window"], Bool[np.ndarray, "places window"]]:
    """The input that each entry of a window has at each place, and if there is one."""
    base, apart = window.base_dilation, window.window_dilation
    wide, reach = (size - 1) * base + 1, (window.size - 1) * apart + 1
    places = max((wide + sum(window.padding) - reach) // window.stride + 1, 1)
    starts = np.arange(places)[:, None] * window.stride - window.padding[0]
    index = starts + np.arange(window.size) * apart
    return index // base, (index >= 0) & (index < wide) & (index % base == 0)


def cumulative_rule(function: Callable[[Array], Array]) -> PrimitiveRule:
    """Running sums and the like: those of any number of first elements."""

    def rule(
        interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
    ) -> SampledArray:
        signal, axis = interpreter.signal(values[0]), eqn.params["axis"]
        size = array_type(eqn.invars[0]).shape[axis]
        count = min(size, interpreter.max_elements)
        elements = sample_axis(interpreter.source, signal, axis, count)
        here, there = (
            _any_of_first(interpreter, elements, count, function) for _ in range(2)
        )
        signal = here.insert_axis(axis, there.base if size > 1 else None)
        longer = size / count if function is running_sum else 1
        dtype = array_type(eqn.outvars[0]).dtype
        return signal.map(lambda x: jnp.asarray(longer * x, dtype))

    return rule


def _any_of_first(
    interpreter: SampleInterpreter,
    elements: AxisSamples,
    count: int,
    function: Callable[[Array], Array],
) -> SampledArray:
    """Of a function of elements along an axis any of the first `count` results."""
    index = interpreter.source.integers(count)[None]
    pick = lambda x: jnp.take_along_axis(function(x), index, 0)[0]
    return elements.reduced(pick)


def running_sum(x: Array) -> Array:
    """Running sums."""
    return jnp.cumsum(x, 0)


def running_product(x: Array) -> Array:
    """Running products."""
    return jnp.cumprod(x, 0)


def running_max(x: Array) -> Array:
    """Running maxima."""
    return jax.lax.cummax(x, axis=0)


def scatter_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> SampledArray:
    """Each element plus as many summands as fall on it."""
    array, summands = array_type(eqn.outvars[0]), array_type(eqn.invars[2])
    signal = interpreter.signal(values[2])
    if len(summands.shape) != len(array.shape) or not array.shape:
        interpreter.note(eqn)
        return interpreter.fitted(signal, array)
    size = max(math.prod(summands.shape) / max(math.prod(array.shape), 1), 1.0)
    sums = reduce_axis(
        interpreter, signal, 0, reduction="sum", size=size, keep_axis=True
    )
    start = interpreter.signal(values[0])
    rows = [
        None if n == 1 else sums.row(a) + start.row(a)
        for a, n in enumerate(array.shape)
    ]
    total = SampledArray(sums.base + start.base, tuple(rows))
    return total.map(lambda x: x.astype(array.dtype))


def sort_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> list[InterpretedValue]:
    """The same elements, in another order."""
    return [interpreter.signal(v) for v in values]


def top_k_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> list[InterpretedValue]:
    """One of the largest elements along the last axis, and any index."""
    signal, shape = interpreter.signal(values[0]), array_type(eqn.invars[0]).shape
    axis, k = len(shape) - 1, array_type(eqn.outvars[0]).shape[-1]
    count = min(shape[-1], max(interpreter.max_elements, 2))
    elements = sample_axis(interpreter.source, signal, axis, count)
    best = max(1, round(k * count / shape[-1]))
    descending = lambda x: jnp.sort(x, 0)[::-1]
    here, there = (
        _any_of_first(interpreter, elements, best, descending) for _ in range(2)
    )
    largest_ones = here.insert_axis(axis, there.base if k > 1 else None)
    return [largest_ones, index_rule(interpreter, eqn, values, 1)]


def index_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values, out: int = 0
) -> SampledArray:
    """Any index, as often as any other."""
    array, axes = array_type(eqn.outvars[out]), eqn.params.get("axes", (-1,))
    size = array_type(eqn.invars[0]).shape[axes[0]]
    index = interpreter.source.integers(size)
    return filled(interpreter.source, index.astype(array.dtype), array.shape)
