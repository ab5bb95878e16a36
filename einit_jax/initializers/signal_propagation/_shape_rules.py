"""Rules of the primitives that move, cut, join and pick elements.

Elements keep their values; what changes is which axes have a neighbour of its own. A
weight stays a weight as long as its entries are only moved.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ...core import JaxprEqn, is_float
from ._axis_samples import sample_axis
from ._interpreter import PrimitiveRule, SampleInterpreter, Values
from ._samples import filled
from ._values import (
    Constant,
    InterpretedValue,
    SampledArray,
    WeightValue,
    array_type,
    normalized,
)


def axes_rule(axes: Callable[[JaxprEqn], Sequence[int]]) -> PrimitiveRule:
    """The rule of a primitive that moves axes.

    `axes(eqn)` has for each axis of the output that of the operand.
    """

    def rule(
        interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
    ) -> InterpretedValue:
        value = values[0]
        if isinstance(value, WeightValue):
            own = value.axes
            moved = None if own is None else tuple(own[a] for a in axes(eqn))
            array = eqn.primitive.bind(value.value, **eqn.params)
            return value.with_value(array, moved)
        return interpreter.signal(value).with_axes(axes(eqn))

    return rule


def transposed_axes(eqn: JaxprEqn) -> Sequence[int]:
    """The axes of a transpose."""
    return eqn.params["permutation"]


def squeezed_axes(eqn: JaxprEqn) -> Sequence[int]:
    """The axes that a squeeze leaves."""
    gone = eqn.params["dimensions"]
    return [a for a in same_axes(eqn) if a not in gone]


def same_axes(eqn: JaxprEqn) -> Sequence[int]:
    """The axes of the operand, where only the order along them changes."""
    return range(len(array_type(eqn.invars[0]).shape))


def broadcast_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> InterpretedValue:
    """New axes repeat the element; so does one of size one that is widened."""
    value, dims = values[0], eqn.params["broadcast_dimensions"]
    if isinstance(value, WeightValue):
        array = eqn.primitive.bind(value.value, **eqn.params)
        if array.size == value.value.size:
            return value.with_value(array)
    axes = range(len(array_type(eqn.outvars[0]).shape))
    sources = [dims.index(a) if a in dims else None for a in axes]
    return interpreter.signal(value).with_axes(sources)


def reshape_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> InterpretedValue:
    """Axes that are split have neighbours of their own; merged ones, the longest's."""
    value = values[0]
    if isinstance(value, WeightValue):
        return value.with_value(eqn.primitive.bind(value.value, **eqn.params))
    signal = interpreter.signal(value)
    old, new = array_type(eqn.invars[0]).shape, array_type(eqn.outvars[0]).shape
    rows: list[Array | None] = [None] * len(new)
    profiles: list[Array | None] = [None] * len(new)
    for olds, news in axis_groups(old, new):
        source = max(olds, key=lambda a: old[a], default=None)
        wide = [a for a in news if new[a] > 1]
        if source is None or signal.rows[source] is None:
            continue
        if len(wide) > 1:
            count = len(wide) + 1
            elements = sample_axis(interpreter.source, signal, source, count).base
            for i, axis in enumerate(wide):
                rows[axis] = elements[i + 1]
        else:
            rows[wide[0]] = signal.rows[source]
            same = new[wide[0]] == old[source]
            profiles[wide[0]] = signal.profile(source) if same else None
    return SampledArray(signal.base, tuple(rows), tuple(profiles))


def axis_groups(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes with equal numbers of elements on both sides."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        olds, news, a, b = [], [], 1, 1
        while not (a == b and olds and news):
            if i < len(old) and (a <= b or j == len(new)):
                olds, a, i = [*olds, i], a * old[i], i + 1
            elif j < len(new):
                news, b, j = [*news, j], b * new[j], j + 1
            else:
                break
        groups.append((olds, news))
    return groups


def slice_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> InterpretedValue:
    """A part of an array, with elements of its own."""
    value, new = values[0], array_type(eqn.outvars[0]).shape
    starts = [v.value for v in values[1:] if isinstance(v, Constant)]
    if isinstance(value, WeightValue) and len(starts) == len(values) - 1:
        array = eqn.primitive.bind(value.value, *starts, **eqn.params)
        return value.with_value(array, value.axes)
    signal, old = interpreter.signal(value), array_type(eqn.invars[0]).shape
    for axis in range(len(old)):
        if new[axis] < old[axis]:
            start = _slice_start(eqn, values, axis)
            signal = _part_from(interpreter, signal, axis, start=start, size=new[axis])
    part = signal.with_shape(new)
    if len(values) > 1:
        return part
    return _with_sliced_profiles(part, interpreter.signal(value), eqn)


def _with_sliced_profiles(
    part: SampledArray, whole: SampledArray, eqn: JaxprEqn
) -> SampledArray:
    """A slice with the part of each profile that it takes."""
    power, profiles = jnp.ones(()), []
    starts, ends = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(starts)
    for axis, bounds in enumerate(zip(starts, ends, strides, strict=True)):
        profile = whole.profile(axis)
        if profile is not None:
            power, profile = normalized(power, profile[slice(*bounds)])
        profiles.append(profile)
    if any(p is not None for p in profiles):
        part = part.times_root(power)
    return part._replace(profiles=tuple(profiles))


def _part_from(
    interpreter: SampleInterpreter,
    signal: SampledArray,
    axis: int,
    *,
    start: int | None,
    size: int,
) -> SampledArray:
    """The elements from `start` on: those of a part that is known, or any others."""
    steps = signal.steps
    if steps and steps[:2] == (axis, size) and start is not None:
        return steps.at(start)
    return interpreter.part(signal, axis, start)


def _slice_start(eqn: JaxprEqn, values: Values, axis: int) -> int | None:
    """Where a slice begins, if that is known."""
    if len(values) == 1:
        return int(eqn.params["start_indices"][axis])
    start = values[1 + axis]
    return int(start.value) if isinstance(start, Constant) else None


def split_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> list[InterpretedValue]:
    """Parts of an array along one axis."""
    value, axis, parts, start = values[0], eqn.params["axis"], [], 0
    if isinstance(value, WeightValue):
        arrays = eqn.primitive.bind(value.value, **eqn.params)
        return [value.with_value(a, value.axes) for a in arrays]
    signal = interpreter.signal(value)
    for size in map(int, eqn.params["sizes"]):
        parts.append(_part_from(interpreter, signal, axis, start=start, size=size))
        start += size
    return parts


def concatenate_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> InterpretedValue:
    """A mixture of the parts, by their sizes; of weights, one weight."""
    axis = eqn.params["dimension"]
    weights = tuple(v for v in values if isinstance(v, WeightValue))
    if len(weights) == len(values):
        array = eqn.primitive.bind(*(w.value for w in weights), **eqn.params)
        refs = tuple(ref for w in weights for ref in w.refs)
        joined = weights[0].with_value(array)
        return joined._replace(refs=refs, joined=(axis, weights))
    sizes = [array_type(v).shape[axis] for v in eqn.invars]
    here, there = (_mixture(interpreter, eqn, values, sizes) for _ in range(2))
    return here.with_neighbour(axis, there.row(axis))


def stack_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> SampledArray:
    """Arrays along a new axis: any of them, and beside it another."""
    axis = eqn.params["axis"]
    parts = [interpreter.signal(v).insert_axis(axis, None) for v in values]
    sizes = [1] * len(parts)
    here, there = (_mixture(interpreter, eqn, parts, sizes) for _ in range(2))
    return here.with_neighbour(axis, there.base if len(parts) > 1 else None)


def _mixture(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values, sizes: Sequence[int]
) -> SampledArray:
    """Each value in as many samples as its size says."""
    choice = interpreter.source.weighted_index(sizes)
    signal = interpreter.mixed(values, choice, array_type(eqn.outvars[0]))
    assert isinstance(signal, SampledArray)
    return signal


def pad_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> InterpretedValue:
    """The array, and the padding value in the part that is new; zeros as a profile."""
    array = array_type(eqn.outvars[0])
    old, new = math.prod(array_type(eqn.invars[0]).shape), math.prod(array.shape)
    fill, signal = interpreter.signal(values[1]), interpreter.signal(values[0])
    constant = values[1].value if isinstance(values[1], Constant) else None
    if is_float(array) and constant is not None and not np.any(constant):
        return _zero_padded(signal, eqn)
    if new <= old:
        return interpreter.fitted(signal, array)
    fill = SampledArray(fill.base, (None,) * len(array.shape))
    return _mixture(interpreter, eqn, [signal, fill], [old, new - old])


def _zero_padded(signal: SampledArray, eqn: JaxprEqn) -> SampledArray:
    """The signal with places of second moment zero along each axis that is padded."""
    shape, power, profiles = array_type(eqn.invars[0]).shape, jnp.ones(()), []
    for axis, (low, high, between) in enumerate(eqn.params["padding_config"]):
        profile, n = signal.profile(axis), shape[axis]
        if (low, high, between) == (0, 0, 0):
            profiles.append(profile)
            continue
        places = np.arange(n) * (1 + between) + low
        size = low + high + (n - 1) * (1 + between) + 1
        inside = (places >= 0) & (places < size)
        profile = jnp.ones(n) if profile is None else profile
        padded = jnp.zeros(size).at[places[inside]].set(profile[inside])
        power, padded = normalized(power, padded)
        profiles.append(padded)
    return signal.times_root(power)._replace(profiles=tuple(profiles))


def overwrite_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> InterpretedValue:
    """An array with another one written or scattered into it."""
    update = 1 if eqn.primitive.name == "dynamic_update_slice" else 2
    old, new = (math.prod(array_type(eqn.invars[i]).shape) for i in (0, update))
    if new >= old:
        signal = interpreter.signal(values[update])
        return interpreter.fitted(signal, array_type(eqn.outvars[0]))
    return _mixture(interpreter, eqn, [values[0], values[update]], [old - new, new])


def gather_rule(
    interpreter: SampleInterpreter, eqn: JaxprEqn, values: Values
) -> InterpretedValue:
    """Entries by index: of a weight fresh ones, of other arrays any of theirs."""
    numbers, array = eqn.params["dimension_numbers"], array_type(eqn.outvars[0])
    value = values[0]
    if isinstance(value, WeightValue) and value.value.ndim > 1:
        size = jnp.square(jnp.asarray(value.factor, jnp.float32))
        variance = interpreter.product_variance(eqn, value, size)
        entry = jnp.sqrt(variance) * interpreter.source.normal()
        return filled(interpreter.source, entry.astype(array.dtype), array.shape)
    signal = interpreter.signal(value)
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [a for a in range(len(signal.rows)) if a not in gone]
    offsets = dict(zip(numbers.offset_dims, kept, strict=True))
    indexed = next(iter(numbers.collapsed_slice_dims), None)
    axes = [offsets.get(a, indexed) for a in range(len(array.shape))]
    return signal.with_axes(axes).with_shape(array.shape)
