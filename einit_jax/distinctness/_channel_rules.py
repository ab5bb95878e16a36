"""Rules of all other primitives: what becomes of channels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..core import JaxprEqn, Path
from ..graph import Level, read_mark, shape_of
from ._channels import (
    CUMULATIVE,
    EXTREMES,
    KEEPING,
    MOVES,
    REDUCING,
    WINDOWED,
    concatenate_numbers,
    move_numbers,
    pad_numbers,
    varying_axes,
)
from ._functions import ELEMENTWISE, IDENTITY, values_after
from ._signals import ALIKE, Alike, Channels, Followed, Signal
from ._weight_rules import WeightRules

SLOPE = 0.25
"""What a parameter that is one number is taken for, where it multiplies."""


class ChannelRules(WeightRules):
    """What becomes of channels in each primitive that calls no jaxpr."""

    def signals_of(self, eqn: JaxprEqn, ins: list[Followed]) -> list[Signal]:
        """What is known of each result of a primitive."""
        name, count = eqn.primitive.name, len(eqn.outvars)
        signals = [value.signal for value in ins]
        mark = read_mark(eqn)
        if mark is not None and mark.role == "result":
            self.lose(*signals, why="the model returns its features")
            return [None]
        if name == "dot_general":
            return [self._product(eqn, ins[0], ins[1])]
        if name == "conv_general_dilated":
            return [self._convolution(eqn, ins[0], ins[1])]
        if name == "gather" and not isinstance(signals[0], Channels):
            return [self._looked_up(eqn, ins[0], ins[1])]
        if name in ELEMENTWISE:
            return [self._elementwise(eqn, ins)]
        if name == "concatenate":
            return [self._concatenated(eqn, signals)]
        if name in MOVES and isinstance(signals[0], Channels):
            if name in KEEPING and len(signals) == count:
                return signals
            return [self._moved(eqn, signals[0])]
        if name in MOVES and isinstance(signals[0], float | Alike):
            same = signals[0] if name not in ("cumsum", "cumprod") else ALIKE
            return signals if len(signals) == count else [same] * count
        if not signals:
            return [None] * count
        if isinstance(signals[0], Channels) and all(
            not isinstance(s, Channels) for s in signals[1:]
        ):
            own = signals[0]
            if name in REDUCING:
                return [self._reduced(eqn, own)]
            if name == "split":
                return [*self._split(eqn, own)]
            if name == "pad" and signals[1] == 0:
                numbers = pad_numbers(own.numbers, eqn.params)
                if numbers is not None:
                    return [own._replace(numbers=numbers)]
        if name in REDUCING and signals[0] == ALIKE:
            return [ALIKE] * count
        self.lose(*signals)
        return [None] * count

    def _moved(self, eqn: JaxprEqn, own: Channels) -> Signal:
        numbers = move_numbers(eqn, own.numbers, shape_of(eqn.invars[0]))
        if numbers is None:
            self.lose(own)
            return None
        even = own.even or eqn.primitive.name in EXTREMES
        if eqn.primitive.name in CUMULATIVE | WINDOWED:
            own = self._statistic(own)
        return own._replace(numbers=numbers, even=even)

    def _reduced(self, eqn: JaxprEqn, own: Channels) -> Signal:
        """One number of many: of a channel each, or of all channels together."""
        axes = set(eqn.params["axes"])
        varying = set(varying_axes(own.numbers))
        if varying & axes:
            kept = [i for i in range(own.numbers.ndim) if i not in axes]
            order = own.numbers.transpose(*kept, *sorted(axes))
            rows = int(np.prod([order.shape[i] for i in range(len(kept))], dtype=int))
            if rows > 1:
                self.together.append(order.reshape(rows, -1))
            return ALIKE
        numbers = own.numbers.squeeze(tuple(axes))
        even = own.even or eqn.primitive.name in EXTREMES
        return self._statistic(own)._replace(numbers=numbers, even=even)

    def _statistic(self, own: Channels) -> Channels:
        """The channels of another array, whose elements are means or such of many."""
        self._origins += 1
        return own._replace(origin=self._origins)

    def _split(self, eqn: JaxprEqn, own: Channels) -> list[Signal]:
        axis, sizes = eqn.params["axis"], eqn.params["sizes"]
        if own.numbers.shape[axis] == 1:
            return [own] * len(sizes)
        ends = np.cumsum([int(size) for size in sizes])[:-1]
        return [own._replace(numbers=n) for n in np.split(own.numbers, ends, axis)]

    def _concatenated(self, eqn: JaxprEqn, signals: list[Signal]) -> Signal:
        """Arrays side by side; only channels, and zeros, have a place there."""
        own = [s for s in signals if isinstance(s, Channels)]
        if not own:
            return ALIKE if all(s == ALIKE for s in signals) else None
        if not all(isinstance(s, Channels) or s == 0 for s in signals):
            self.lose(*own)
            return None
        nothing = np.full((1,) * own[0].numbers.ndim, -1)
        parts = [
            (s.numbers if isinstance(s, Channels) else nothing, shape_of(var))
            for s, var in zip(signals, eqn.invars, strict=True)
        ]
        numbers = concatenate_numbers(parts, eqn.params["dimension"])
        joined = self.start(numbers, all(s.bends for s in own))
        if all(np.allclose(s.values, own[0].values) for s in own):
            joined = joined._replace(values=own[0].values)
        return joined

    def _elementwise(self, eqn: JaxprEqn, ins: list[Followed]) -> Signal:
        """A function of channels, or a sum of several arrays of them."""
        name = eqn.primitive.name
        own = [v.signal for v in ins if isinstance(v.signal, Channels)]
        operands = [self._operand(name, value) for value in ins]
        if not own:
            return _without_channels(eqn, ins, operands)
        chosen = name == "select_n" and _is_unknown(ins[0])
        if chosen:
            operands, rest = operands[1:], ins[1:]
            zero = all(isinstance(v.signal, Channels) or v.signal == 0 for v in rest)
            if zero and len(own) == 1:
                return own[0]  # a mask that is drawn, as that of dropout: its mean
        first = next((s for s in own if s.origin == s.root), own[0])
        alike = all(
            s.root == first.root and np.array_equal(s.numbers, first.numbers)
            for s in own
        )
        if alike and any(s.origin != first.origin for s in own):
            return self._with_statistics(name, first, own)
        if alike and not chosen and all(x is not None for x in operands):
            values = values_after(eqn, operands)
            if values is not None and values.shape == IDENTITY.shape:
                return first._replace(values=values, even=any(s.even for s in own))
        if name in ("add", "sub", "add_any") and len(own) == 2:
            return self._sum(own[0], own[1])
        self.lose(*own)
        return None

    def _with_statistics(
        self, name: str, first: Channels, own: Sequence[Channels]
    ) -> Signal:
        """Channels less their means, or over their sizes; or two statistics of them."""
        others = [s for s in own if s.origin != first.origin]
        if first.origin != first.root:
            return self._statistic(first)
        if name in ("sub", "mul", "div", "add") and own[0] is first and others:
            return first
        if name in ("mul", "add") and others:
            return first
        self.lose(*own)
        return None

    def _operand(self, name: str, value: Followed) -> Any:
        """What an operand is for the function of channels; None: it is not known."""
        signal, traced = value.signal, value.traced
        if isinstance(signal, Channels):
            return signal.values
        if isinstance(signal, float):
            return signal
        adding, multiplying = name in ("add", "sub"), name in ("mul", "div")
        if signal == ALIKE:
            return 0.0 if adding else 1.0 if multiplying else None
        if traced.level == Level.DATA:
            return None
        if traced.level == Level.ARGUMENT:  # statistics in a collection
            return 0.0 if adding else 1.0 if multiplying else None
        if traced.views:
            paths = traced.views
            if adding and set(paths) <= self._biases:
                return 0.0
            single = all(self._is_single(path) for path in paths)
            return (SLOPE if single else 1.0) if multiplying else None
        return 1.0 if multiplying else None

    def _is_single(self, path: Path) -> bool:
        """Whether a layer has a single number of the parameter."""
        own = self.axes[path]
        return int(np.prod(own.shape, dtype=int)) == own.layer_count

    def _sum(self, left: Channels, right: Channels) -> Signal:
        """The sum of two arrays, whose channels become one another's."""
        shapes = left.numbers.shape, right.numbers.shape
        numbers = np.broadcast_arrays(left.numbers, right.numbers)
        self.same.append((numbers[0], numbers[1]))
        wider = numbers[0] if shapes[0] != shapes[1] else left.numbers
        return self.start(wider, left.bends and right.bends)


def _without_channels(
    eqn: JaxprEqn, ins: Sequence[Followed], operands: Sequence[Any]
) -> Signal:
    """An elementwise result of numbers, or of what is computed from channels."""
    if all(isinstance(value.signal, float) for value in ins):
        values = values_after(eqn, operands)
        return None if values is None or values.dtype == bool else float(values)
    some = any(value.signal == ALIKE for value in ins)
    fixed = all(
        value.signal is not None or value.traced.level < Level.DATA for value in ins
    )
    return ALIKE if some and fixed else None


def _is_unknown(value: Followed) -> bool:
    return value.signal is None and value.traced.level < Level.DATA
