"""Which axes of a parameter the axes of an array made from it go back to.

A *part* is `(axes, size)`: axes of the parameter, and how much of them lies here. Every
axis of the array is a row of parts, as reshapes merge and split them; their sizes
multiply to the size of the axis.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Part = tuple[tuple[int, ...], int]


class AxisView(NamedTuple):
    """An array made from one parameter by moving and cutting axes."""

    axes: tuple[tuple[Part, ...], ...]
    gone: frozenset[tuple[int, str]] = frozenset()
    """Axes of the parameter that the array has no more, and what took them."""


def whole_view(shape: Sequence[int]) -> AxisView:
    """The view of a parameter as it is."""
    return AxisView(tuple((((i,), n),) for i, n in enumerate(shape)))


def resize_view(view: AxisView, shape: Sequence[int]) -> AxisView:
    """After axes were cut, padded or joined with others."""
    pairs = zip(view.axes, shape, strict=True)
    return view._replace(axes=tuple(_resize_parts(parts, n) for parts, n in pairs))


def _resize_parts(parts: tuple[Part, ...], size: int) -> tuple[Part, ...]:
    if math.prod(n for _, n in parts) == size:
        return parts
    return ((_part_axes(parts), size),)


def _part_axes(parts: Iterable[Part]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(a for axes, _ in parts for a in axes))


def transpose_view(view: AxisView, order: Sequence[int]) -> AxisView:
    """With its axes in another order."""
    return view._replace(axes=tuple(view.axes[i] for i in order))


def place_view(view: AxisView, at: Mapping[int, int], shape: Sequence[int]) -> AxisView:
    """In an array of the shape, axis `i` in place `at[i]`; other axes are new."""
    back = {place: axis for axis, place in at.items()}
    rows = tuple(view.axes[back[j]] if j in back else () for j in range(len(shape)))
    pairs = zip(rows, shape, strict=True)
    return view._replace(axes=tuple(_resize_parts(parts, n) for parts, n in pairs))


def drop_axes(view: AxisView, dims: Iterable[int], why: str) -> AxisView:
    """Without some of its axes; `why` says what took them."""
    dims = set(dims)
    kept = tuple(parts for i, parts in enumerate(view.axes) if i not in dims)
    left = set(_part_axes(p for parts in kept for p in parts))
    taken = {(a, why) for i in dims for a in _part_axes(view.axes[i]) if a not in left}
    return AxisView(kept, view.gone | taken)


def reshape_view(view: AxisView, shape: Sequence[int]) -> AxisView | None:
    """In another shape, or None where its parts do not fit into that."""
    queue = [part for parts in view.axes for part in parts if part[1] != 1]
    rows: list[tuple[Part, ...]] = []
    for size in shape:
        row: list[Part] = []
        while size > 1:
            if not queue:
                return None
            axes, n = queue.pop(0)
            taken = math.gcd(n, size)
            if taken != min(n, size):
                return None
            if n > taken:
                queue.insert(0, (axes, n // taken))
            row.append((axes, taken))
            size //= taken
        rows.append(tuple(row))
    if queue:
        return None
    known = set(_part_axes(p for parts in rows for p in parts))
    lost = {a for parts in view.axes for a in _part_axes(parts)} - known
    return AxisView(tuple(rows), view.gone | {(a, "batch") for a in lost})


def move_view(eqn: Any, view: AxisView, shape: Sequence[int]) -> AxisView | None:
    """After an equation that only moves and cuts axes, or None where axes are lost."""
    params, name = eqn.params, eqn.primitive.name
    if name == "transpose":
        return transpose_view(view, params["permutation"])
    if name == "squeeze":
        return drop_axes(view, params["dimensions"], "batch")
    if name == "broadcast_in_dim":
        at = {i: int(place) for i, place in enumerate(params["broadcast_dimensions"])}
        return place_view(view, at, shape)
    if name == "reshape":
        order = params["dimensions"]
        return reshape_view(
            view if order is None else transpose_view(view, order), shape
        )
    return resize_view(view, shape)


def contract_view(eqn: Any, view: AxisView, side: int) -> AxisView:
    """After a product, as its left (0) or right (1) factor."""
    contracted, batch = (pair[side] for pair in eqn.params["dimension_numbers"])
    shape, ndim = eqn.outvars[0].aval.shape, len(view.axes)
    free = [i for i in range(ndim) if i not in contracted and i not in batch]
    start = len(batch) if side == 0 else len(shape) - len(free)
    places = [*range(len(batch)), *range(start, start + len(free))]
    goes = dict(zip([*batch, *free], places, strict=True))
    at = {i: goes[axis] for i, axis in enumerate(sorted(goes))}
    return place_view(drop_axes(view, contracted, "feature"), at, shape)


def gather_view(eqn: Any, view: AxisView) -> AxisView:
    """After a gather, at whatever index."""
    numbers, shape = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
    at = dict(enumerate(numbers.offset_dims))
    lost = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    return place_view(drop_axes(view, lost, "batch"), at, shape)
