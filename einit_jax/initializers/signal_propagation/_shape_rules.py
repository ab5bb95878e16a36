"""The rules of primitives that move, join and pick elements."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...core import inverse
from ._axis_samples import sample_axis
from ._interpreter import SampleInterpreter
from ._samples import SampledArray, filled
from ._values import Constant, InterpretedValue, WeightValue


def identity_rule(walk: SampleInterpreter, eqn: Any, values: list) -> list:
    """Each operand as it is."""
    return list(values)


def axes_rule(axes: Callable) -> Callable:
    """The rule of a primitive that moves axes.

    `axes(eqn)` has for each axis of the output that of the operand.
    """

    def rule(walk: SampleInterpreter, eqn: Any, values: list) -> InterpretedValue:
        value = values[0]
        if isinstance(value, WeightValue):
            own = value.axes
            left = None if own is None else tuple(own[a] for a in axes(eqn))
            array = eqn.primitive.bind(value.value, **eqn.params)
            return value.now(array, left)
        return walk.signal(value).over(axes(eqn))

    return rule


def transposed_axes(eqn: Any) -> Sequence[int]:
    """Axes in another order."""
    return eqn.params["permutation"]


def squeezed_axes(eqn: Any) -> Sequence[int]:
    """Axes without some of size one."""
    gone = eqn.params["dimensions"]
    return [a for a in range(len(eqn.invars[0].aval.shape)) if a not in gone]


def same_axes(eqn: Any) -> Sequence[int]:
    """The same axes; the order along them does not matter."""
    return range(len(eqn.invars[0].aval.shape))


def broadcast_rule(walk: SampleInterpreter, eqn: Any, values: list) -> InterpretedValue:
    """New axes repeat the element; so does one of size one that is widened."""
    value, places = values[0], eqn.params["broadcast_dimensions"]
    if isinstance(value, WeightValue):
        array = eqn.primitive.bind(value.value, **eqn.params)
        if array.size == value.value.size:
            return value.now(array)
    axes = range(len(eqn.outvars[0].aval.shape))
    return walk.signal(value).over([places.index(a) if a in places else None
                                    for a in axes])  # fmt: skip


def reshape_rule(walk: SampleInterpreter, eqn: Any, values: list) -> InterpretedValue:
    """Axes that are split have neighbours of their own; merged ones, the longest's."""
    if isinstance(values[0], WeightValue):
        array = eqn.primitive.bind(values[0].value, **eqn.params)
        return values[0].now(array)
    signal = walk.signal(values[0])
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    rows: list[Array | None] = [None] * len(new)
    profiles: list[Array | None] = [None] * len(new)
    for olds, news in axis_groups(old, new):
        source = max(olds, key=lambda a: old[a], default=None)
        wide = [a for a in news if new[a] > 1]
        if source is None or signal.rows[source] is None:
            continue
        if len(wide) > 1:
            parts = sample_axis(walk.draws, signal, source, len(wide) + 1).base
            for i, axis in enumerate(wide):
                rows[axis] = parts[i + 1]
        else:
            rows[wide[0]] = signal.rows[source]
            same = new[wide[0]] == old[source]
            profiles[wide[0]] = signal.profile(source) if same else None
    return SampledArray(signal.base, tuple(rows), tuple(profiles))


def axis_groups(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes with equal numbers of elements on both sides."""
    found, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        olds, news, a, b = [], [], 1, 1
        while not (a == b and olds and news):
            if i < len(old) and (a <= b or j == len(new)):
                olds, a, i = [*olds, i], a * old[i], i + 1
            elif j < len(new):
                news, b, j = [*news, j], b * new[j], j + 1
            else:
                break
        found.append((olds, news))
    return found


def slice_rule(walk: SampleInterpreter, eqn: Any, values: list) -> InterpretedValue:
    """A part of an array, with elements of its own."""
    value, new = values[0], eqn.outvars[0].aval.shape
    if isinstance(value, WeightValue) and all(
        isinstance(v, Constant) for v in values[1:]
    ):
        at = (v.value for v in values[1:])
        return value.now(eqn.primitive.bind(value.value, *at, **eqn.params), value.axes)
    signal, old = walk.signal(value), eqn.invars[0].aval.shape
    for axis in range(len(old)):
        if new[axis] < old[axis]:
            start = _slice_start(eqn, values, axis)
            signal = _part_from(walk, signal, axis, start, new[axis])
    made = signal.shaped(new)
    return _cut(made, walk.signal(value), eqn) if len(values) == 1 else made


def _cut(made: SampledArray, whole: SampledArray, eqn: Any) -> SampledArray:
    """With the part of each profile that a slice takes."""
    power, profiles = jnp.ones(()), []
    starts, ends = eqn.params["start_indices"], eqn.params["limit_indices"]
    steps = eqn.params["strides"] or (1,) * len(starts)
    for axis, at in enumerate(zip(starts, ends, steps, strict=True)):
        own = whole.profile(axis)
        if own is not None:
            power, own = _normalized(power, own[slice(*at)])
        profiles.append(own)
    made = _of_power(made, power) if any(p is not None for p in profiles) else made
    return made._replace(profiles=tuple(profiles))


def _part_from(
    walk: SampleInterpreter,
    signal: SampledArray,
    axis: int,
    start: int | None,
    size: int,
) -> SampledArray:
    """The elements from `start` on: those of a part that is known, or any others."""
    steps = signal.steps
    if steps and steps[:2] == (axis, size) and start is not None:
        return steps.at(start)
    return walk.part(signal, axis, start)


def _slice_start(eqn: Any, values: list, axis: int) -> int | None:
    """Where a slice begins, if that is known."""
    if len(values) == 1:
        return int(eqn.params["start_indices"][axis])
    at = values[1 + axis]
    return int(at.value) if isinstance(at, Constant) else None


def split_rule(walk: SampleInterpreter, eqn: Any, values: list) -> list:
    """Parts of an array along one axis."""
    axis, outs, start = eqn.params["axis"], [], 0
    if isinstance(values[0], WeightValue):
        arrays = eqn.primitive.bind(values[0].value, **eqn.params)
        return [values[0].now(a, values[0].axes) for a in arrays]
    signal = walk.signal(values[0])
    for size in eqn.params["sizes"]:
        outs.append(_part_from(walk, signal, axis, start, int(size)))
        start += int(size)
    return outs


def concatenate_rule(
    walk: SampleInterpreter, eqn: Any, values: list
) -> InterpretedValue:
    """A mixture of the parts, by their sizes; of parameters, one parameter."""
    axis = eqn.params["dimension"]
    if all(isinstance(v, WeightValue) for v in values):
        array = eqn.primitive.bind(*(v.value for v in values), **eqn.params)
        refs = tuple(ref for v in values for ref in v.refs)
        return values[0].now(array)._replace(refs=refs, joined=(axis, tuple(values)))
    sizes = [v.aval.shape[axis] for v in eqn.invars]
    here, there = (_mixture(walk, eqn, values, sizes) for _ in range(2))
    return here.beside(axis, there.row(axis))


def stack_rule(walk: SampleInterpreter, eqn: Any, values: list) -> SampledArray:
    """Arrays along a new axis: any of them, and beside it another."""
    axis = eqn.params["axis"]
    each = [walk.signal(v).inserted(axis, None) for v in values]
    here, there = (_mixture(walk, eqn, each, [1] * len(each)) for _ in range(2))
    return here.beside(axis, there.base if len(each) > 1 else None)


def _mixture(
    walk: SampleInterpreter, eqn: Any, values: list, sizes: Sequence[int]
) -> SampledArray:
    """Each part as often as its size says."""
    found = walk.mixed(values, walk.draws.among(sizes), eqn.outvars[0].aval)
    assert isinstance(found, SampledArray)
    return found


def pad_rule(walk: SampleInterpreter, eqn: Any, values: list) -> InterpretedValue:
    """The array, and the padding value in the part that is new; zeros as a profile."""
    aval = eqn.outvars[0].aval
    old, new = math.prod(eqn.invars[0].aval.shape), math.prod(aval.shape)
    fill, signal = walk.signal(values[1]), walk.signal(values[0])
    floats = jnp.issubdtype(aval.dtype, jnp.inexact)
    if floats and isinstance(values[1], Constant) and not np.any(values[1].value):
        return _padded(signal, eqn)
    if new <= old:
        return walk.fitted(signal, aval)
    fill = SampledArray(fill.base, (None,) * len(aval.shape))
    return _mixture(walk, eqn, [signal, fill], [old, new - old])


def _padded(signal: SampledArray, eqn: Any) -> SampledArray:
    """With places of second moment zero, along each axis that is padded."""
    shape, power, profiles = eqn.invars[0].aval.shape, jnp.ones(()), []
    for axis, (low, high, between) in enumerate(eqn.params["padding_config"]):
        own, n = signal.profile(axis), shape[axis]
        if (low, high, between) == (0, 0, 0):
            profiles.append(own)
            continue
        at = np.arange(n) * (1 + between) + low
        size = low + high + (n - 1) * (1 + between) + 1
        inside = (at >= 0) & (at < size)
        own = jnp.ones(n) if own is None else own
        placed = jnp.zeros(size).at[at[inside]].set(own[inside])
        power, placed = _normalized(power, placed)
        profiles.append(placed)
    return _of_power(signal, power)._replace(profiles=tuple(profiles))


def _normalized(power: Array, profile: Array) -> tuple[Array, Array]:
    """The profile over its mean, which goes into the power of all."""
    centre = jnp.mean(profile)
    return power * centre, profile * inverse(centre)


def _of_power(signal: SampledArray, power: Array) -> SampledArray:
    """The signal times the root of a power."""
    return signal.each(lambda x: (x * jnp.sqrt(power)).astype(x.dtype))


def overwrite_rule(walk: SampleInterpreter, eqn: Any, values: list) -> InterpretedValue:
    """An array with another written or scattered into it."""
    at = 1 if eqn.primitive.name == "dynamic_update_slice" else 2
    old, new = (math.prod(eqn.invars[i].aval.shape) for i in (0, at))
    if new >= old:
        return walk.fitted(walk.signal(values[at]), eqn.outvars[0].aval)
    return _mixture(walk, eqn, [values[0], values[at]], [old - new, new])


def gather_rule(walk: SampleInterpreter, eqn: Any, values: list) -> InterpretedValue:
    """Entries by index: of a parameter fresh ones, of other arrays any of theirs."""
    how, shape = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
    value = values[0]
    if isinstance(value, WeightValue) and value.value.ndim > 1:
        size = jnp.square(jnp.asarray(value.factor, jnp.float32))
        entry = jnp.sqrt(walk.weigh(eqn, value, size)) * walk.draws.normal()
        return filled(walk.draws, entry.astype(eqn.outvars[0].aval.dtype), shape)
    signal = walk.signal(value)
    gone = {*how.collapsed_slice_dims, *how.operand_batching_dims}
    kept = [a for a in range(len(signal.rows)) if a not in gone]
    offsets = dict(zip(how.offset_dims, kept, strict=True))
    taken = next(iter(how.collapsed_slice_dims), None)
    found = signal.over([offsets.get(a, taken) for a in range(len(shape))])
    return found.shaped(shape)


def tile_rule(walk: SampleInterpreter, eqn: Any, values: list) -> SampledArray:
    """The same elements, several times."""
    return walk.fitted(walk.signal(values[0]), eqn.outvars[0].aval)


def sort_rule(walk: SampleInterpreter, eqn: Any, values: list) -> list:
    """The same elements, in another order."""
    return [walk.signal(v) for v in values]


def index_rule(
    walk: SampleInterpreter, eqn: Any, values: list, out: int = 0
) -> SampledArray:
    """Any index, as often as any other."""
    aval, axes = eqn.outvars[out].aval, eqn.params.get("axes", (-1,))
    at = walk.draws.integers(eqn.invars[0].aval.shape[axes[0]])
    return filled(walk.draws, at.astype(aval.dtype), aval.shape)
