"""Losses over the steps of training, from several starts: a part of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..reporting import (
    TABLE_COLOURS,
    Printable,
    empty_figure,
    format_number,
    power_of_two,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVE_TAIL = 10
"""The loss at the end is the mean over the last steps, one out of so many."""


@dataclass(frozen=True, repr=False)
class TrainingCurves(Printable):
    """The loss before each step of training, by the name of the start."""

    losses: Mapping[str, np.ndarray]
    """Of shape `(steps,)`; not finite once training diverged."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """The learning rate of each start, where it is known."""
    about: tuple[str, ...] = ()
    """Further sentences."""

    HEADS: ClassVar[Mapping[str, str]] = {
        "start": "start",
        "loss_before": "loss before",
        "loss_after": "loss after",
        "learning_rate": "learning rate",
    }

    def rows(self) -> list[dict[str, Any]]:
        """A row per start: the loss before and after, and the learning rate."""
        return [
            {
                "start": name,
                "loss_before": float(curve[0]),
                "loss_after": _end_loss(curve),
            }
            | ({"learning_rate": self.rates[name]} if name in self.rates else {})
            for name, curve in self.losses.items()
        ]

    def summary(self) -> list[str]:
        """Who ends where, the best one first."""
        ends = {name: _end_loss(curve) for name, curve in self.losses.items()}
        order = sorted(ends, key=lambda name: (not np.isfinite(ends[name]), ends[name]))
        listed = "; ".join(f"{name} {_loss_text(ends[name])}" for name in order)
        return [f"loss after {self._steps} steps: {listed}"]

    def _remarks(self) -> list[str]:
        """Over which steps the losses are means, and what else there is to say."""
        tail = f"loss after: the mean over the last step of {self._steps}"
        if _tail_length(self._steps) > 1:
            count = _tail_length(self._steps)
            tail = f"loss after: the mean over the last {count} of {self._steps} steps"
        return [tail, *self.about]

    def plot(self) -> "Figure":
        """Losses over steps.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return curve_figure(self.losses)

    def _heads(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
        """Learning rates only where all are known."""
        return {n: head for n, head in self.HEADS.items() if all(n in r for r in rows)}

    def _cell(self, row: Mapping[str, Any], name: str) -> str:
        """Losses may be of runs that diverged; rates are powers of two."""
        if name == "learning_rate":
            return power_of_two(row[name])
        return row[name] if name == "start" else _loss_text(row[name])

    @property
    def _steps(self) -> int:
        return max(len(curve) for curve in self.losses.values())


def training_curves(name: str, losses: Mapping[Any, Any]) -> TrainingCurves:
    """Losses that a user recorded, as a part of a report called `name`.

    Raises:
        TypeError: they are no sequences of numbers by name.
        ValueError: there are none.
    """
    curves: dict[str, np.ndarray] = {}
    for start, values in losses.items():
        try:
            curve = np.asarray(values, np.float64)
        except (TypeError, ValueError):
            curve = np.empty((0, 0))
        if curve.ndim != 1:
            raise TypeError(
                f"{name}[{start!r}] is a {type(values).__name__}, expected the losses "
                "of training, a number for each step: [2.3, 2.1, ...]"
            )
        if not curve.size:
            raise ValueError(f"{name}[{start!r}] is empty, expected a loss per step")
        curves[str(start)] = curve
    if not curves:
        raise ValueError(
            f"{name} is empty, expected losses by name: {{'tuned': [...]}}"
        )
    return TrainingCurves(curves)


def curve_figure(losses: Mapping[str, np.ndarray]) -> "Figure":
    """A line per start, on a logarithmic axis where all losses are positive."""
    figure = empty_figure(7.5, 3.8)
    ax = figure.subplots()
    for i, (name, curve) in enumerate(losses.items()):
        finite = np.isfinite(curve)
        steps = np.flatnonzero(finite)
        colour = TABLE_COLOURS[i % len(TABLE_COLOURS)]
        ax.plot(steps, curve[finite], color=colour, lw=1.6, label=name)
        if not finite.all() and steps.size:
            ax.plot(steps[-1:], curve[finite][-1:], "x", color=colour, ms=7)
    values = np.concatenate([curve[np.isfinite(curve)] for curve in losses.values()])
    if values.size and (values > 0).all():
        ax.set_yscale("log")
    diverged = not all(np.isfinite(curve).all() for curve in losses.values())
    ax.set_xlabel("step (x: diverged)" if diverged else "step")
    ax.set_ylabel("loss")
    ax.grid(color="0.9", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
    return figure


def _tail_length(steps: int) -> int:
    return -(-steps // CURVE_TAIL)


def _end_loss(curve: np.ndarray) -> float:
    """The loss at the end; infinite where training diverged."""
    tail = curve[-_tail_length(len(curve)) :]
    return float(tail.mean()) if np.isfinite(tail).all() else float("inf")


def _loss_text(loss: float) -> str:
    return format_number(loss) if np.isfinite(loss) else "diverged"
