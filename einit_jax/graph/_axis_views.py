"""Which axes of a parameter the axes of an array made from it go back to.

A *part* is `(axes, size)`: axes of the parameter, and how much of them lies here. Every
axis of the array is a row of parts, as reshapes merge and split them; the sizes of the
parts multiply to the size of the axis.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

from ..core import JaxprEqn
from ._jaxprs import shape_of

Part = tuple[tuple[int, ...], int]
AxisRole = Literal["window", "contracted", "feature", "batch", "layer"]
"""What an axis of a parameter does: it is the window of a convolution, is summed over,
makes features, has inputs and outputs of its own at each index, or stacks layers."""


class AxisView(NamedTuple):
    """An array made from one parameter by moving and cutting axes."""

    axes: tuple[tuple[Part, ...], ...]
    gone: frozenset[tuple[int, AxisRole]] = frozenset()
    """Axes of the parameter that the array has no more, and what they did."""


def whole_view(shape: Sequence[int]) -> AxisView:
    """The view of a parameter as it is."""
    return AxisView(tuple((((i,), n),) for i, n in enumerate(shape)))


def resize_view(view: AxisView, shape: Sequence[int]) -> AxisView:
    """The view after axes were cut, padded or joined with others."""
    pairs = zip(view.axes, shape, strict=True)
    return view._replace(axes=tuple(_resize_parts(parts, n) for parts, n in pairs))


def _resize_parts(parts: tuple[Part, ...], size: int) -> tuple[Part, ...]:
    """The parts of an axis that now has another size: a single one if it changed."""
    if math.prod(n for _, n in parts) == size:
        return parts
    return ((_part_axes(parts), size),)


def _part_axes(parts: Iterable[Part]) -> tuple[int, ...]:
    """The axes of the parameter in some parts, each once."""
    return tuple(dict.fromkeys(a for axes, _ in parts for a in axes))


def transpose_view(view: AxisView, order: Sequence[int]) -> AxisView:
    """The view with its axes in another order."""
    return view._replace(axes=tuple(view.axes[i] for i in order))


def place_view(
    view: AxisView, places: Mapping[int, int], shape: Sequence[int]
) -> AxisView:
    """The view in an array of the shape; axis `i` is now `places[i]`."""
    back = {place: axis for axis, place in places.items()}
    rows = tuple(view.axes[back[j]] if j in back else () for j in range(len(shape)))
    return resize_view(view._replace(axes=rows), shape)


def drop_axes(view: AxisView, dropped: Iterable[int], role: AxisRole) -> AxisView:
    """The view without some of its axes; `role` says what these did."""
    dropped = set(dropped)
    kept = tuple(parts for i, parts in enumerate(view.axes) if i not in dropped)
    return _keep_rows(view, kept, role)


def reshape_view(view: AxisView, shape: Sequence[int]) -> AxisView | None:
    """The view in another shape, or None if its parts do not fit into that."""
    queue = [part for parts in view.axes for part in parts if part[1] != 1]
    rows: list[tuple[Part, ...]] = []
    for size in shape:
        row = _take_parts(queue, size)
        if row is None:
            return None
        rows.append(row)
    if queue:
        return None
    return _keep_rows(view, tuple(rows), "batch")


def _keep_rows(
    view: AxisView, rows: tuple[tuple[Part, ...], ...], role: AxisRole
) -> AxisView:
    """The view with these rows of parts; axes that are in none of them are gone."""
    before, after = (
        set(_part_axes(part for parts in axes for part in parts))
        for axes in (view.axes, rows)
    )
    gone: frozenset[tuple[int, AxisRole]] = frozenset((a, role) for a in before - after)
    return AxisView(rows, view.gone | gone)


def _take_parts(queue: list[Part], size: int) -> tuple[Part, ...] | None:
    """Parts from the front of the queue that fill an axis; None if none do.

    What is left of a part that is larger than the axis stays in the queue.
    """
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
    return tuple(row)


def move_view(eqn: JaxprEqn, view: AxisView, shape: Sequence[int]) -> AxisView | None:
    """The view after an equation that moves or cuts axes; None if some are lost."""
    params, name = eqn.params, eqn.primitive.name
    if name == "transpose":
        return transpose_view(view, params["permutation"])
    if name == "squeeze":
        return drop_axes(view, params["dimensions"], "batch")
    if name == "broadcast_in_dim":
        places = dict(enumerate(map(int, params["broadcast_dimensions"])))
        return place_view(view, places, shape)
    if name == "reshape":
        order = params["dimensions"]
        view = view if order is None else transpose_view(view, order)
        return reshape_view(view, shape)
    return resize_view(view, shape)


def contract_view(eqn: JaxprEqn, view: AxisView, side: int) -> AxisView:
    """The view after a product in which it is the left (0) or right (1) factor."""
    contracted, batch = (pair[side] for pair in eqn.params["dimension_numbers"])
    shape, ndim = shape_of(eqn.outvars[0]), len(view.axes)
    free = [i for i in range(ndim) if i not in contracted and i not in batch]
    start = len(batch) if side == 0 else len(shape) - len(free)
    targets = [*range(len(batch)), *range(start, start + len(free))]
    target_of = dict(zip([*batch, *free], targets, strict=True))
    places = {i: target_of[axis] for i, axis in enumerate(sorted(target_of))}
    return place_view(drop_axes(view, contracted, "feature"), places, shape)


def gather_view(eqn: JaxprEqn, view: AxisView) -> AxisView:
    """The view after a gather, at whatever index."""
    numbers, shape = eqn.params["dimension_numbers"], shape_of(eqn.outvars[0])
    lost = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    places = dict(enumerate(numbers.offset_dims))
    return place_view(drop_axes(view, lost, "batch"), places, shape)
