"""Which features of weights can be mirrored, and which rows read them.

Two neighbouring features are a *pair* where everything from them to the next weights
treats both alike. Drawn as `[v, -v]` and read as `[w, -w]`, a function between them
counts with its odd part alone: `w (f(z) - f(-z))`.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from ..core import Path, path_str
from ..graph import (
    ParameterAxes,
    UnionFind,
    arguments_of,
    parameter_axes,
    parameter_use_walk,
)
from ..units import ModelGraph
from ._channel_walk import ChannelWalk
from ._functions import is_curved
from ._signals import Channels, Followed, Reading, feature_count

Partners = Int[np.ndarray, "..."]
"""Of each index the one that is its mirror image; its own where it has none."""


@dataclass(frozen=True)
class Pairs:
    """What of a model's weights is to be drawn in pairs."""

    features: Mapping[Path, Partners]
    """Of weights whose features are mirrored; several axes of features are as one."""
    rows: Mapping[Path, Partners]
    """Of weights that read them: axes that are summed over, windows aside."""
    tied: Mapping[Path, Partners]
    """Of depthwise weights between them, whose partners are to be equal."""
    convolved: Mapping[Path, tuple[int, int]]
    """Of kernels of convolutions, the axes of inputs and of features."""
    curved: frozenset[Path]
    """Weights whose features a function reads, with pairs, that is nearer to a straight
    line the smaller they are."""
    curved_alone: frozenset[Path]
    """The same where nothing is mirrored."""
    weights: tuple[Path, ...]
    """All weights whose features were followed."""
    left: Mapping[str, str]
    """Weights that are not mirrored, and why."""


def find_pairs(graph: ModelGraph, weights: Collection[Path]) -> Pairs:
    """The pairs of a traced model, among weights that may be drawn."""
    axes = parameter_axes(graph)
    biases = frozenset(path for path, own in axes.items() if own.role == "bias")
    uses = parameter_use_walk(graph)
    walk = ChannelWalk(uses, axes, biases)
    arguments = arguments_of(uses, graph.jaxpr, graph.shapes)
    walk.run(graph.jaxpr, [Followed(value) for value in arguments])
    return _Streams(walk, axes, weights).pairs()


class _Streams:
    """Sets of weights whose features are added to, or mixed with, each other's."""

    def __init__(
        self,
        walk: ChannelWalk,
        axes: Mapping[Path, ParameterAxes],
        weights: Collection[Path],
    ):
        self.walk, self.axes = walk, axes
        classes = UnionFind(walk.count)
        for one, other in walk.same:
            both = np.stack([one.ravel(), other.ravel()], 1)
            for pair in np.unique(both[(both >= 0).all(1)], axis=0).tolist():
                classes.join(pair)
        self.labels = np.array([classes.find(i) for i in range(walk.count)], int)
        self.counts = {path: feature_count(axes[path]) for path in walk.first}
        self.streams = self._joined()
        self.partner_of, split = self._partners()
        self.left: dict[int, str] = {}
        for stream in split:
            self.left.setdefault(stream, "features are added that are paired otherwise")
        for one, other in walk.same:  # what has channels is added to what has none
            lone = np.where(one >= 0, one, other)[(one >= 0) != (other >= 0)]
            self._leave(lone, "something else is added to its features")
        for channels, why in walk.lost:
            self._leave(channels.numbers, why)
        for path in {*walk.first} & (walk.uncovered | ({*walk.first} - {*weights})):
            reason = "it is left out" if path not in weights else "its use has no rule"
            self._leave(self._own(path), reason)
        for reading in walk.readings:
            if reading.path not in weights or reading.path in walk.uncovered:
                self._leave(reading.rows, "the weight that reads it has no pairs")

    def _own(self, path: Path) -> np.ndarray:
        first = self.walk.first[path]
        return np.arange(first, first + self.counts[path])

    def _joined(self) -> np.ndarray:
        """The stream of each channel: that of the first weight in it."""
        writers = UnionFind(len(self.counts))
        seen: dict[int, int] = {}
        for i, path in enumerate(self.counts):
            for label in set(self.labels[self._own(path)].tolist()):
                writers.join([seen.setdefault(label, i), i])
        roots = [writers.find(i) for i in range(len(self.counts))]
        return np.repeat(np.array(roots, int), [*self.counts.values()])

    def _partners(self) -> tuple[np.ndarray, set[int]]:
        """The class that mirrors each class; the streams in which that is not one."""
        partner = np.arange(self.walk.count)
        for path, count in self.counts.items():
            own = self.axes[path]
            sizes = [own.shape[i] for i in own.features if own.shape[i] > 1]
            last = sizes[-1] if sizes else 1
            place = np.arange(count) % last
            other = np.where(
                (place ^ 1) < last,
                np.arange(count) - place + (place ^ 1),
                np.arange(count),
            )
            partner[self._own(path)] = self.walk.first[path] + other
        named = self.labels[partner]
        of_class = np.full(self.walk.count, -1)
        of_class[self.labels] = named
        split = set(self.streams[of_class[self.labels] != named].tolist())
        return of_class, split

    def _leave(self, numbers: np.ndarray, why: str) -> None:
        """Notes why the streams of some channels are not mirrored."""
        for stream in set(self.streams[numbers[numbers >= 0].ravel()].tolist()):
            self.left.setdefault(stream, why)

    def pairs(self) -> Pairs:
        """What is to be mirrored: streams of which everything fits, and no others."""
        self._leave_where_rows_differ()
        self._leave_where_straight()
        for rows in self.walk.together:
            self._leave_where_apart(rows)
        while True:  # what reads several streams fits only with those that are left
            before = len(self.left)
            rows = self._rows()
            tied = self._tied()
            if len(self.left) == before:
                break
        streams = {path: self._stream(path) for path in self.counts}
        mirrored = [p for p, stream in streams.items() if stream not in self.left]
        features = {p: self._among(self._own(p)) for p in mirrored if p not in tied}
        left = {
            path_str(path): self.left[streams[path]]
            for path in self.counts
            if path not in mirrored and path not in tied
        }
        return Pairs(
            features, rows, tied, self.walk.convolved, self._curved(with_pairs=True),
            self._curved(with_pairs=False), tuple(self.counts), left,
        )  # fmt: skip

    def _stream(self, path: Path) -> int:
        return int(self.streams[self.walk.first[path]]) if self.counts[path] else -1

    def _kept(self, numbers: np.ndarray) -> np.ndarray:
        """The class of each channel in a stream that is mirrored; -1 for others."""
        left = np.isin(self.streams, [*self.left])
        labels = np.where(left, -1, self.labels)
        return np.where(numbers >= 0, labels[np.maximum(numbers, 0)], -1)

    def _among(self, numbers: np.ndarray) -> Partners:
        """The partner of each of several channels in a row, by their places.

        Of channels that are there several times the first goes with the first.

        Raises:
            LookupError: a partner is missing.
        """
        labels = self._kept(numbers)
        places: dict[int, list[int]] = {}
        for place, label in enumerate(labels.tolist()):
            places.setdefault(label, []).append(place)
        partners = np.arange(labels.size)
        for label, own in places.items():
            if label < 0:
                continue
            other = places.get(int(self.partner_of[label]), [])
            if len(other) != len(own):
                raise LookupError("a channel without its partner")
            partners[own] = other
        return partners

    def _leave_where_apart(self, rows: np.ndarray) -> None:
        """Leaves streams of which partners have statistics of their own."""
        for row in rows:
            try:
                self._among(row)
            except LookupError:
                self._leave(row, "a norm takes partners apart")

    def _leave_where_straight(self) -> None:
        """Leaves streams that some weight reads with no even function before it, and
        those that none reads."""
        read = set()
        for reading in self.walk.readings:
            read |= set(self.streams[reading.rows[reading.rows >= 0]].tolist())
            if not reading.channels.bends:
                self._leave(reading.rows, "no function with an even part follows")
        unread = np.array([stream not in read for stream in self.streams], bool)
        for stream in set(self.streams[unread].tolist()):
            self.left.setdefault(stream, "no weight reads it")

    def _leave_where_rows_differ(self) -> None:
        """Leaves streams whose channels a shared weight reads in another order."""
        first: dict[Path, np.ndarray] = {}
        for path, rows, _ in self.walk.readings:
            known = first.setdefault(path, rows)
            if known.shape != rows.shape:
                self._leave(known, "it is read in several ways")
                self._leave(rows, "it is read in several ways")

    def _rows(self) -> dict[Path, Partners]:
        """The partners of rows, of each weight that reads mirrored features."""
        found: dict[Path, Partners] = {}
        for reading in self.walk.readings:
            try:
                partners = self._among(reading.rows)
            except LookupError:
                self._leave(reading.rows, "a weight reads features without partners")
                continue
            known = found.setdefault(reading.path, partners)
            if not np.array_equal(known, partners):
                for other in self._readings_of(reading.path):
                    self._leave(other.rows, "a weight reads several streams")
        alone = lambda partners: np.array_equal(partners, np.arange(partners.size))
        return {path: own for path, own in found.items() if not alone(own)}

    def _readings_of(self, path: Path) -> Iterable[Reading]:
        return (r for r in self.walk.readings if r.path == path)

    def _tied(self) -> dict[Path, Partners]:
        """The partners of depthwise weights' features."""
        found = {}
        for path, numbers in self.walk.tied:
            try:
                found[path] = self._among(numbers)
            except LookupError:
                self._leave(numbers, "a depthwise weight separates partners")
        return found

    def _curved(self, *, with_pairs: bool) -> frozenset[Path]:
        """The weights in streams that a curved function reads."""
        uses: list[Channels] = [r.channels for r in self.walk.readings]
        uses += [channels for channels, _ in self.walk.lost]
        curved = set()
        for channels in uses:
            numbers = channels.numbers[channels.numbers >= 0].ravel()
            for stream in set(self.streams[numbers].tolist()):
                odd = with_pairs and stream not in self.left
                if channels.values.dtype != bool and is_curved(
                    channels.values, odd=odd
                ):
                    curved.add(stream)
        return frozenset(p for p in self.counts if self._stream(p) in curved)
