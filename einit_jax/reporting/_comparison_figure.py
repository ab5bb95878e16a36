"""The picture of a comparison: losses over learning rates, strategies side by side."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._figures import figure
from ._tables import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PILLAR_MARKERS = {
    "activations": ("o", "#1f77b4"),
    "gradients": ("s", "#d9540d"),
    "updates": ("^", "#2a9d4a"),
    "uneven": ("D", "#8a4fbf"),
}


BEYOND = 1.25
"""What is infinite is drawn so much farther out than the largest number."""


def comparison_figure(
    rows: Sequence[Mapping[str, Any]],
    losses: Mapping[str, np.ndarray],
    rates: Sequence[float],
    steps: int,
) -> "Figure":
    """Losses over rates above; below, a line a strategy: pillars, cost and loss.

    Args:
        rows: of a `Comparison`.
        losses: by strategy, of each seed and rate.
        rates: the learning rates.
        steps: of training.
    """
    from matplotlib import colormaps

    shades = colormaps["turbo"](np.linspace(0.05, 0.95, max(len(rows), 2)))
    colours = {row["strategy"]: c for row, c in zip(rows, shades, strict=False)}
    low = 1.6 + 0.28 * len(rows)
    picture = figure(11.0, 3.8 + low)
    halves: Any = picture.subfigures(2, 1, height_ratios=[3.8, low])
    upper, lower = halves
    _curves(upper, losses, rates, steps, colours)
    pillars, cost, loss = lower.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1])
    _pillars(pillars, rows)
    _dots(cost, rows, "gradient_steps", colours, "cost in gradient steps")
    _dots(loss, rows, "loss", colours, f"loss at the best rate, {steps} steps")
    names = [shortened(row["strategy"], 28) for row in rows]
    pillars.set_yticks(range(len(rows)), names, fontsize=9)
    pillars.set_ylim(len(rows) - 0.4, -0.6)
    return picture


def _curves(
    upper: Any,
    losses: Mapping[str, np.ndarray],
    rates: Sequence[float],
    steps: int,
    colours: Mapping[str, Any],
) -> None:
    """A line a strategy: the mean over seeds, where training did not diverge."""
    ax = upper.subplots()
    for i, (name, found) in enumerate(losses.items()):
        if not found.size:
            continue
        mean = found.mean(0)
        order = np.argsort(rates)
        shown = np.where(np.isfinite(mean), mean, np.nan)[order]
        style: Any = {
            "color": colours[name],
            "marker": "os^D"[i % 4],
            "ms": 3.5,
            "lw": 1.4,
        }
        ax.plot(np.asarray(rates)[order], shown, label=name, **style)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("learning rate")
    ax.set_ylabel(f"loss after {steps} steps")
    _limit_losses(ax, losses)
    ax.grid(color="0.9", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.lines:
        upper.legend(loc="outside right upper", frameon=False, fontsize=9)


def _limit_losses(ax: "Axes", losses: Mapping[str, np.ndarray]) -> None:
    """A range in which the best rates show: runs that blow up leave it."""
    means = [found.mean(0) for found in losses.values() if found.size]
    best = [m[np.isfinite(m)] for m in means]
    best = [float(m.min()) for m in best if m.size]
    if not best or min(best) <= 0:
        return
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, min(best) / 1.5), min(high, 4 * max(best)))
    _readable(ax.yaxis, ax.get_ylim())


def _pillars(ax: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """How far each pillar is from 1; a triangle at the border is infinitely far."""
    known = [
        row[name] for row in rows for name in PILLAR_MARKERS if np.isfinite(row[name])
    ]
    top = BEYOND * max([2.0, *known])
    for i, (name, (marker, colour)) in enumerate(PILLAR_MARKERS.items()):
        at = np.arange(len(rows)) + 0.14 * (i - 1.5)
        far = np.array([row[name] for row in rows], float)
        style: Any = {"color": colour, "s": 26, "zorder": 3}
        ax.scatter(far, at, marker=marker, label=name, **style)
        lost = np.isinf(far)
        ax.scatter(np.full(lost.sum(), top), at[lost], marker=">", **style)
    ax.axvspan(-0.15, 1, color="0.92", zorder=0)
    ax.set_xscale("symlog", linthresh=2.0, base=2)
    ax.set_xlim(-0.15, top * 1.1)
    _lined(ax, "octaves from 1, worst unit (▸ infinite)")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False,
        fontsize=8, handletextpad=0.1, columnspacing=0.9,
    )  # fmt: skip


def _dots(
    ax: "Axes",
    rows: Sequence[Mapping[str, Any]],
    name: str,
    colours: Mapping[str, Any],
    title: str,
) -> None:
    """One number a strategy, on a logarithmic axis where all are positive."""
    values = np.array([row[name] for row in rows], float)
    usable: Callable = lambda x: np.isfinite(x) & (x > 0)
    if usable(values).any():
        ax.set_xscale("log")
        _decade(ax, values[usable(values)])
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        if usable(value):
            ax.scatter([value], [i], color=[colours[row["strategy"]]], s=34, zorder=3)
            continue
        word = "failed" if row["error"] else "0" if value == 0 else "diverged"
        style: Any = {"transform": ax.get_yaxis_transform(), "va": "center"}
        ax.text(0.04, i, word, color="0.45", fontsize=8, **style)
    _lined(ax, title)


def _decade(ax: "Axes", values: np.ndarray) -> None:
    """A range of a decade at least."""
    low, high = np.log10(values.min()) - 0.15, np.log10(values.max()) + 0.15
    more = max(0.0, 1.0 - (high - low)) / 2
    ax.set_xlim(10 ** (low - more), 10 ** (high + more))
    _readable(ax.xaxis, ax.get_xlim())


def _readable(axis: Any, ends: tuple[float, float]) -> None:
    """Ticks as plain numbers; in a range of less than two decades 2 and 5 too."""
    from matplotlib.ticker import LogLocator, NullLocator

    subs = (1, 2, 5) if ends[1] < 100 * ends[0] else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _lined(ax: "Axes", title: str) -> None:
    ax.set_xlabel(title, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(color="0.9", lw=0.6, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)
