"""Which axes of a parameter the axes of an array made from it go back to.

A *part* is `(axes, size)`: axes of the parameter, and how much of them lies here. Every
axis of the array is a row of parts, as reshapes merge and split them; their sizes
multiply to the size of the axis.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Part = tuple[tuple[int, ...], int]


class View(NamedTuple):
    """An array made from one parameter by moving and cutting axes."""

    axes: tuple[tuple[Part, ...], ...]
    gone: frozenset[tuple[int, str]] = frozenset()
    """Axes of the parameter that the array has no more, and what took them."""


def whole(shape: Sequence[int]) -> View:
    """The view of a parameter as it is."""
    return View(tuple((((i,), n),) for i, n in enumerate(shape)))


def resized(view: View, shape: Sequence[int]) -> View:
    """After axes were cut, padded or joined with others."""
    pairs = zip(view.axes, shape, strict=True)
    return view._replace(axes=tuple(_resized(parts, n) for parts, n in pairs))


def _resized(parts: tuple[Part, ...], size: int) -> tuple[Part, ...]:
    if math.prod(n for _, n in parts) == size:
        return parts
    return ((_axes(parts), size),)


def _axes(parts: Iterable[Part]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(a for axes, _ in parts for a in axes))


def transposed(view: View, order: Sequence[int]) -> View:
    """With its axes in another order."""
    return view._replace(axes=tuple(view.axes[i] for i in order))


def placed(view: View, at: Mapping[int, int], shape: Sequence[int]) -> View:
    """In an array of the shape, axis `i` in place `at[i]`; other axes are new."""
    back = {place: axis for axis, place in at.items()}
    rows = tuple(view.axes[back[j]] if j in back else () for j in range(len(shape)))
    pairs = zip(rows, shape, strict=True)
    return view._replace(axes=tuple(_resized(parts, n) for parts, n in pairs))


def without(view: View, dims: Iterable[int], why: str) -> View:
    """Without some of its axes; `why` says what took them."""
    dims = set(dims)
    kept = tuple(parts for i, parts in enumerate(view.axes) if i not in dims)
    left = set(_axes(p for parts in kept for p in parts))
    taken = {(a, why) for i in dims for a in _axes(view.axes[i]) if a not in left}
    return View(kept, view.gone | taken)


def reshaped(view: View, shape: Sequence[int]) -> View | None:
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
    known = set(_axes(p for parts in rows for p in parts))
    lost = {a for parts in view.axes for a in _axes(parts)} - known
    return View(tuple(rows), view.gone | {(a, "batch") for a in lost})


def moved(eqn: Any, view: View, shape: Sequence[int]) -> View | None:
    """After an equation that only moves and cuts axes, or None where axes are lost."""
    params, name = eqn.params, eqn.primitive.name
    if name == "transpose":
        return transposed(view, params["permutation"])
    if name == "squeeze":
        return without(view, params["dimensions"], "batch")
    if name == "broadcast_in_dim":
        at = {i: int(place) for i, place in enumerate(params["broadcast_dimensions"])}
        return placed(view, at, shape)
    if name == "reshape":
        order = params["dimensions"]
        return reshaped(view if order is None else transposed(view, order), shape)
    return resized(view, shape)


def multiplied(eqn: Any, view: View, side: int) -> View:
    """After a product, as its left (0) or right (1) factor."""
    contracted, batch = (pair[side] for pair in eqn.params["dimension_numbers"])
    shape, ndim = eqn.outvars[0].aval.shape, len(view.axes)
    free = [i for i in range(ndim) if i not in contracted and i not in batch]
    start = len(batch) if side == 0 else len(shape) - len(free)
    places = [*range(len(batch)), *range(start, start + len(free))]
    goes = dict(zip([*batch, *free], places, strict=True))
    at = {i: goes[axis] for i, axis in enumerate(sorted(goes))}
    return placed(without(view, contracted, "feature"), at, shape)


def picked(eqn: Any, view: View) -> View:
    """After a gather, at whatever index."""
    numbers, shape = eqn.params["dimension_numbers"], eqn.outvars[0].aval.shape
    at = dict(enumerate(numbers.offset_dims))
    lost = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    return placed(without(view, lost, "batch"), at, shape)
