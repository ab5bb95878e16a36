"""Which channel each element of an array belongs to, while axes move.

Numbers of channels are arrays of integers that broadcast to the array's shape: of size
1 along axes on which the channel does not depend, and -1 where there is none. What
moves axes is done to them as to the array.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core import JaxprEqn
from ..graph import shape_of

Numbers = np.ndarray
MOST_ELEMENTS = 2**26
"""The largest number of elements that are told apart."""
KEEPING = {
    "convert_element_type", "copy", "copy_p", "optimization_barrier", "stop_gradient",
    "sharding_constraint", "reshard", "pvary", "reduce_precision", "name",
}  # fmt: skip
"""Primitives whose results are their operands, one by one."""
CUMULATIVE = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}
WINDOWED = {"reduce_window_sum", "reduce_window_max", "reduce_window_min"}
REDUCING = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "argmax", "argmin"}
EXTREMES = {
    "reduce_max", "reduce_min", "reduce_window_max", "reduce_window_min", "cummax",
    "cummin",
}  # fmt: skip
"""Reductions that are not odd, even of an array that is."""
MOVES = KEEPING | CUMULATIVE | WINDOWED | {
    "reshape", "squeeze", "transpose", "broadcast_in_dim", "rev", "slice",
    "dynamic_slice", "expand_dims", "gather",
}  # fmt: skip
"""Primitives after which each element is of one channel, or a mean of one."""


def varying_axes(numbers: Numbers) -> tuple[int, ...]:
    """The axes on which the channel depends."""
    return tuple(i for i, n in enumerate(numbers.shape) if n > 1)


def spread_out(numbers: Numbers, axes: Sequence[int], shape: Sequence[int]) -> Numbers:
    """The numbers in full along some axes of an array of the shape."""
    full = [shape[i] if i in axes else n for i, n in enumerate(numbers.shape)]
    return np.broadcast_to(numbers, full)


def move_numbers(
    eqn: JaxprEqn, numbers: Numbers, shape: Sequence[int]
) -> Numbers | None:
    """The numbers after one of `MOVES`; None where channels are lost.

    Args:
        eqn: the equation, whose first operand has the channels.
        numbers: those of the operand.
        shape: that of the operand.
    """
    name, params = eqn.primitive.name, eqn.params
    varying = varying_axes(numbers)
    if name in KEEPING:
        return numbers
    if name in CUMULATIVE:
        return None if params["axis"] in varying else numbers
    if name in WINDOWED:
        windows = params["window_dimensions"]
        return None if any(windows[i] > 1 for i in varying) else numbers
    if name == "transpose":
        return numbers.transpose(params["permutation"])
    if name == "squeeze":
        return numbers.squeeze(tuple(params["dimensions"]))
    if name == "rev":
        return np.flip(numbers, tuple(i for i in params["dimensions"] if i in varying))
    if name == "broadcast_in_dim":
        return _broadcast(numbers, params["broadcast_dimensions"], eqn)
    if name == "reshape":
        return _reshape(numbers, shape, shape_of(eqn.outvars[0]))
    if name == "slice":
        return _slice(numbers, params)
    if name == "dynamic_slice":
        kept = [params["slice_sizes"][i] == shape[i] for i in varying]
        return numbers if all(kept) else None
    return _gather(numbers, shape, eqn) if name == "gather" else None


def _broadcast(numbers: Numbers, places: Sequence[int], eqn: JaxprEqn) -> Numbers:
    shape = [1] * len(shape_of(eqn.outvars[0]))
    for axis, place in enumerate(places):
        shape[place] = numbers.shape[axis]
    return numbers.reshape(shape)


def _slice(numbers: Numbers, params: Any) -> Numbers:
    ndim = numbers.ndim
    strides = params["strides"] or (1,) * ndim
    cuts = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    varying = varying_axes(numbers)
    rows = [slice(*cut) if i in varying else slice(None) for i, cut in enumerate(cuts)]
    return numbers[tuple(rows)]


def _gather(numbers: Numbers, shape: Sequence[int], eqn: JaxprEqn) -> Numbers | None:
    """Whole channels at some index of other axes."""
    dimensions, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    gone = (*dimensions.collapsed_slice_dims, *dimensions.operand_batching_dims)
    for axis in varying_axes(numbers):
        if axis in gone or sizes[axis] != shape[axis]:
            return None
    kept = [n for i, n in enumerate(numbers.shape) if i not in gone]
    result = [1] * len(shape_of(eqn.outvars[0]))
    for place, size in zip(dimensions.offset_dims, kept, strict=True):
        result[place] = size
    return numbers.reshape(result)


def _reshape(
    numbers: Numbers, before: Sequence[int], after: Sequence[int]
) -> Numbers | None:
    """The numbers in another shape: axes that are merged or split are written out."""
    shape: list[int] = []
    filled = numbers
    for old, new in _groups(before, after):
        sizes = [after[j] for j in new]
        if any(numbers.shape[i] > 1 for i in old):
            filled = spread_out(filled, old, before)
            shape += sizes
        else:
            shape += [1] * len(sizes)
    if math.prod(filled.shape) > MOST_ELEMENTS:
        return None
    return filled.reshape(shape)


def _groups(
    before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
    """Neighbouring axes of two shapes that hold the same elements."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = [], []
        sizes = [1, 1]
        while True:
            if i < len(before) and (sizes[0] <= sizes[1] or j >= len(after)):
                sizes[0] *= before[i]
                old.append(i)
                i += 1
            elif j < len(after):
                sizes[1] *= after[j]
                new.append(j)
                j += 1
            if sizes[0] == sizes[1] and (old or new):
                break
            if i >= len(before) and j >= len(after):
                break
        groups.append((old, new))
    return groups


def concatenate_numbers(
    parts: Sequence[tuple[Numbers, Sequence[int]]], axis: int
) -> Numbers:
    """Numbers of arrays, given with their shapes, that are put side by side."""
    varying = {i for numbers, _ in parts for i in varying_axes(numbers)} | {axis}
    full = [spread_out(numbers, [*varying], shape) for numbers, shape in parts]
    return np.concatenate(full, axis)


def pad_numbers(numbers: Numbers, params: Any) -> Numbers | None:
    """Numbers of an array that is padded: what is added has no channel."""
    widths = []
    for axis, (low, high, inner) in enumerate(params["padding_config"]):
        if numbers.shape[axis] == 1:
            widths.append((0, 0))
        elif inner or low < 0 or high < 0:
            return None
        else:
            widths.append((low, high))
    return np.pad(numbers, widths, constant_values=-1)
