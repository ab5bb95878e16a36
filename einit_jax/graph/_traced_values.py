"""Values that are followed from parameters to data, and the uses of parameters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Literal, NamedTuple

from ..core import JaxprEqn, Path
from ._axis_views import AxisRole, AxisView, Part, drop_axes, whole_view

ParameterRole = Literal["weight", "gain", "bias", "other"]
LayerType = Literal["", "dense", "conv", "conv_transpose", "embed"]
PartRoles = tuple[tuple[Part, AxisRole], ...]
"""What each part of an array does."""


class Level(IntEnum):
    """What kind of thing a value is computed from; the highest counts."""

    CONSTANT = 0
    """Constants, random keys, parameters."""
    ARGUMENT = 1
    """Other arguments of the model, such as its state."""
    DATA = 2
    """What goes into a module."""


class TracedValue(NamedTuple):
    """What is known of one array on the way."""

    level: Level
    views: Mapping[Path, AxisView]
    """The parameters that it is made from, as long as it holds no data."""
    products: frozenset[Path] = frozenset()
    """The weights that it is a product with, or a multiple or sum of such products."""
    bit: int = 0
    """One bit, the same while only axes move."""
    ancestors: int = 0
    """The bits of all that it was computed from."""

    def iterated(self) -> "TracedValue":
        """What one iteration of a scan sees of the value, without its first axis."""
        views = {p: drop_axes(view, [0], "layer") for p, view in self.views.items()}
        return self._replace(views=views)

    def includes(self, later: "TracedValue") -> bool:
        """Whether a carry needs no `joined` with what a round of a loop makes of it."""
        return self.level >= later.level and self.views in ({}, later.views)

    def joined(self, later: "TracedValue") -> "TracedValue":
        """What is known of a carry both before a round of a loop and after it."""
        views = self.views if self.views == later.views else {}
        return self._replace(level=max(self.level, later.level), views=views)


NOTHING = TracedValue(Level.CONSTANT, {})


def whole_value(path: Path, shape: tuple[int, ...], floating: bool) -> TracedValue:
    """A parameter, before anything happened to it."""
    return TracedValue(Level.CONSTANT, {path: whole_view(shape)} if floating else {})


class ParameterUse(NamedTuple):
    """One use of a parameter; of several the highest rank counts."""

    rank: int
    role: ParameterRole
    layer_type: LayerType = ""
    parts: PartRoles = ()
    gone: frozenset[tuple[int, AxisRole]] = frozenset()
    """Axes that were gone before this use, and what they did."""
    fan_divisors: tuple[float, float] = (1.0, 1.0)
    """What fan-in and fan-out are to be divided by."""

    def sums_over_axes(self, layer_axes: frozenset[int]) -> bool:
        """Whether it sums over an axis of the parameter, those of layers excepted."""
        return any(
            role == "contracted" and set(axes) - layer_axes
            for (axes, _), role in self.parts
        )


PRODUCT, LOOK_UP, PRODUCT_WITHOUT_DATA = 6, 5, 4
"""The ranks of uses as a weight."""
ELEMENTWISE_RANKS: dict[ParameterRole, int] = {"gain": 2, "bias": 1, "other": 0}
"""The ranks of other uses where no data is met; they count double where it is."""


def elementwise_use(role: ParameterRole, level: Level) -> ParameterUse:
    """The use of a parameter as a factor, a summand or another operand."""
    factor = 2 if level == Level.DATA else 1
    return ParameterUse(ELEMENTWISE_RANKS[role] * factor, role)


def product_use(
    view: AxisView, roles: Mapping[int, AxisRole], other: Level
) -> ParameterUse:
    """The use in a `dot_general`, given the level of the other factor."""
    rank = PRODUCT if other == Level.DATA else PRODUCT_WITHOUT_DATA
    parts = _part_roles(view, roles, "feature")
    return ParameterUse(rank, "weight", "dense", parts, view.gone)


def convolution_use(
    eqn: JaxprEqn, kernel: AxisView, layer_axes: frozenset[int]
) -> ParameterUse:
    """The use as the kernel of a convolution."""
    params = eqn.params
    out, contracted, *_ = params["dimension_numbers"].rhs_spec
    roles: dict[int, AxisRole] = {out: "feature", contracted: "contracted"}
    groups = _groups_of_layer(
        params["feature_group_count"], kernel.axes[out], layer_axes
    )
    dilation = math.prod(params["lhs_dilation"])
    return ParameterUse(
        PRODUCT,
        "weight",
        "conv_transpose" if dilation > 1 else "conv",
        parts=_part_roles(kernel, roles, "window"),
        gone=kernel.gone,
        fan_divisors=(dilation, groups * math.prod(params["window_strides"])),
    )


def _groups_of_layer(
    groups: int, outputs: Iterable[Part], layer_axes: frozenset[int]
) -> int:
    """The groups of one layer's convolution: `vmap` makes a group of each layer."""
    stacked = 1
    for axes, n in outputs:
        if not set(axes) <= layer_axes:
            break
        stacked *= n
    return groups if groups % stacked else groups // stacked


def look_up_use(eqn: JaxprEqn, table: AxisView) -> ParameterUse:
    """The use as the table of a gather, whose index is data."""
    numbers = eqn.params["dimension_numbers"]
    roles: dict[int, AxisRole] = dict.fromkeys(numbers.operand_batching_dims, "batch")
    roles |= dict.fromkeys(numbers.collapsed_slice_dims, "contracted")
    parts = _part_roles(table, roles, "feature")
    return ParameterUse(LOOK_UP, "weight", "embed", parts, table.gone)


def _part_roles(
    view: AxisView, roles: Mapping[int, AxisRole], other: AxisRole
) -> PartRoles:
    """What each part does, given what some axes of the array do, and all others."""
    rows = enumerate(view.axes)
    return tuple((part, roles.get(i, other)) for i, parts in rows for part in parts)


def merge_views(
    values: Sequence[TracedValue], ndim: int | None = None
) -> dict[Path, AxisView]:
    """The views of several values, those of other numbers of axes than `ndim` left out.

    A parameter divided by its own norm is seen as the parameter, not as the norm.
    """
    views = [item for value in values for item in value.views.items()]
    views = [(p, v) for p, v in views if ndim is None or len(v.axes) == ndim]
    return dict(sorted(views, key=lambda item: -len(item[1].gone)))
