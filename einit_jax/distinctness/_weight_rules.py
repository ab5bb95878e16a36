"""Rules of weights: what they read, and the channels that they make.

What is noted on the way is told here, too.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..core import JaxprEqn, Path
from ..graph import AxisView, Level, ParameterAxes, ParameterUseWalk, shape_of
from ._channels import Numbers, spread_out, varying_axes
from ._functions import IDENTITY
from ._signals import Channels, Followed, Reading, Signal, feature_count

UNLIKE = "its features meet what does not treat them alike"


class WeightRules:
    """What products, convolutions and look-ups do; notes what weights make and read."""

    def __init__(
        self,
        uses: ParameterUseWalk,
        axes: Mapping[Path, ParameterAxes],
        biases: frozenset[Path],
    ):
        self.axes = axes
        self.first: dict[Path, int] = {}
        """The number of the first feature of each weight."""
        count = 0
        for path, own in axes.items():
            if own.role == "weight":
                self.first[path] = count
                count += feature_count(own)
        self.count = count
        self.same: list[tuple[Numbers, Numbers]] = []
        """Channels that are added to each other, or may be one or the other."""
        self.lost: list[tuple[Channels, str]] = []
        """Channels that must stay as they are, and why."""
        self.readings: list[Reading] = []
        self.tied: list[tuple[Path, Numbers]] = []
        """Depthwise weights, and the channel that each of their features is made of."""
        self.together: list[Numbers] = []
        """Channels, of which each row has a statistic of its own."""
        self.convolved: dict[Path, tuple[int, int]] = {}
        """Of kernels of convolutions, the axes of inputs and of features."""
        self.uncovered: set[Path] = set()
        """Weights that are used in a way that no rule covers."""
        self._uses = uses
        self._biases = biases
        self._origins = 0

    def lose(self, *signals: Signal, why: str = UNLIKE) -> None:
        """Notes channels that must stay as they are."""
        self.lost += [(s, why) for s in signals if isinstance(s, Channels)]

    def start(self, numbers: Numbers, even: bool = False) -> Channels:
        """Channels as they leave a weight, or as they are after a sum."""
        self._origins += 1
        return Channels(numbers, self._origins, IDENTITY, self._origins, even)

    def _product(self, eqn: JaxprEqn, left: Followed, right: Followed) -> Signal:
        contracted, batch = eqn.params["dimension_numbers"]
        side = _weight_side(left, right)
        if side is None:
            self.lose(left.signal, right.signal)
            return None
        weight, data = (left, right) if side == 0 else (right, left)
        ((path, view),) = weight.traced.views.items()
        own, whole = self.axes[path], _whole_axes(view, self.axes[path].shape)
        if whole is None:
            return self._not_covered(path, data)
        features = [
            i for i in range(len(view.axes))
            if i not in contracted[side] and i not in batch[side]
        ]  # fmt: skip
        fits = own.role == "weight" and own.layer_type == "dense"
        fits = fits and self._same(path, (whole[i] for i in contracted[side]), "in")
        fits = fits and self._same(path, (whole[i] for i in features), "out")
        if not fits:
            return self._not_covered(path, data)
        ndim = len(shape_of(eqn.outvars[0]))
        start = len(batch[0]) if side == 0 else ndim - len(features)
        summed = [whole[i] for i in contracted[side]]
        self._read(path, data, contracted[1 - side], summed)
        places = {start + j: whole[i] for j, i in enumerate(features)}
        return self.start(self._features(path, places, ndim))

    def _not_covered(self, path: Path, *values: Followed) -> None:
        self.uncovered.add(path)
        self.lose(*(value.signal for value in values))

    def _same(self, path: Path, rows: Iterable[Sequence[int]], side: str) -> bool:
        """Whether these are the axes that it sums over, or those of its features."""
        own = self.axes[path]
        known = own.contracted if side == "in" else own.features
        large = lambda some: {axis for axis in some if own.shape[axis] > 1}
        return large(axis for axes in rows for axis in axes) == large(known)

    def _features(
        self, path: Path, places: Mapping[int, Sequence[int]], ndim: int
    ) -> Numbers:
        """The channels of a weight's features, in an array of so many axes.

        `places` has the axes of the weight that make up each axis of the array.
        """
        own = self.axes[path]
        known = [axis for axis in own.features if own.shape[axis] > 1]
        numbers = self.first[path] + np.arange(feature_count(own))
        numbers = numbers.reshape([own.shape[axis] for axis in known])
        order = [a for place in sorted(places) for a in places[place] if a in known]
        shape = [1] * ndim
        for place, axes in places.items():
            shape[place] = int(np.prod([own.shape[axis] for axis in axes], dtype=int))
        return numbers.transpose([known.index(axis) for axis in order]).reshape(shape)

    def _read(
        self,
        path: Path,
        data: Followed,
        places: Sequence[int],
        summed: Sequence[Sequence[int]],
    ) -> None:
        """Notes that a weight sums over axes of the data, and over which of its own."""
        channels = data.signal
        if not isinstance(channels, Channels):
            return
        if set(varying_axes(channels.numbers)) - set(places):
            self._not_covered(path, data)
            return
        own = self.axes[path]
        sizes = [1] * channels.numbers.ndim
        for place, axes in zip(places, summed, strict=True):
            sizes[place] = int(np.prod([own.shape[axis] for axis in axes], dtype=int))
        rest = [i for i in range(len(sizes)) if i not in places]
        full = spread_out(channels.numbers, places, sizes).transpose(*rest, *places)
        order = [axis for axes in summed for axis in axes]
        rows = full.reshape([own.shape[axis] for axis in order])
        ordered = sorted(
            range(len(order)),
            key=lambda i: (
                own.contracted.index(order[i]) if order[i] in own.contracted else -1
            ),
        )
        self.readings.append(Reading(path, rows.transpose(ordered).ravel(), channels))

    def _convolution(self, eqn: JaxprEqn, data: Followed, kernel: Followed) -> Signal:
        params = eqn.params
        lhs, rhs, out = params["dimension_numbers"]
        if len(kernel.traced.views) != 1:
            self.lose(data.signal, kernel.signal)
            self.uncovered |= set(kernel.traced.views)
            return None
        ((path, view),) = kernel.traced.views.items()
        own, whole = self.axes[path], _whole_axes(view, self.axes[path].shape)
        if whole is None or own.role != "weight" or params["batch_group_count"] > 1:
            return self._not_covered(path, data)
        if not self._same(path, [whole[rhs[0]]], "out"):
            return self._not_covered(path, data)
        sides = [whole[rhs[i]] for i in (1, 0)]
        if any(len(axes) != 1 for axes in sides):
            return self._not_covered(path, data)
        self.convolved[path] = (sides[0][0], sides[1][0])
        numbers = self._features(path, {out[1]: whole[rhs[0]]}, len(out))
        channels, groups = data.signal, params["feature_group_count"]
        if not isinstance(channels, Channels):
            return self.start(numbers)
        if set(varying_axes(channels.numbers)) - {lhs[1]}:
            return self._not_covered(path, data)
        every = spread_out(channels.numbers, [lhs[1]], [
            shape_of(eqn.invars[0])[i] if i == lhs[1] else 1 for i in range(len(lhs))
        ]).ravel()  # fmt: skip
        inputs = shape_of(eqn.invars[1])[rhs[1]]
        if groups > 1 and inputs == 1:
            sources = np.repeat(every, numbers.size // groups)
            self.tied.append((path, sources))
            return self.start(sources.reshape(numbers.shape), channels.bends)
        for rows in every.reshape(groups, inputs):
            self.readings.append(Reading(path, rows, channels))
        return self.start(numbers)

    def _looked_up(self, eqn: JaxprEqn, table: Followed, index: Followed) -> Signal:
        self.lose(index.signal)
        views = table.traced.views
        if len(views) != 1 or index.traced.level < Level.DATA:
            return None
        ((path, view),) = views.items()
        own, whole = self.axes[path], _whole_axes(view, self.axes[path].shape)
        numbers = eqn.params["dimension_numbers"]
        kept = [
            i for i in range(len(view.axes)) if i not in numbers.collapsed_slice_dims
        ]
        if whole is None or own.layer_type != "embed" or len(kept) != 1:
            return self._not_covered(path)
        if not self._same(path, [whole[kept[0]]], "out"):
            return self._not_covered(path)
        places = {numbers.offset_dims[0]: whole[kept[0]]}
        ndim = len(shape_of(eqn.outvars[0]))
        return self.start(self._features(path, places, ndim))


def _weight_side(left: Followed, right: Followed) -> int | None:
    """Which of two factors is made of a single parameter, and of no data."""
    for side, (own, other) in enumerate(((left, right), (right, left))):
        alone = len(own.traced.views) == 1 and own.signal is None
        if alone and own.traced.level < Level.DATA and not other.traced.views:
            return side
    return None


def _whole_axes(view: AxisView, shape: Sequence[int]) -> list[tuple[int, ...]] | None:
    """The axes of the parameter that each axis of a view is made of, in order.

    None where there is one of which only a part is there.
    """
    rows = []
    for parts in view.axes:
        whole = all(len(axes) == 1 and n == shape[axes[0]] for axes, n in parts)
        if not whole:
            return None
        rows.append(tuple(axes[0] for axes, _ in parts))
    return rows
