"""Losses over learning rates: strategies side by side, and a search for a rate."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._figures import TABLE_COLOURS, empty_figure
from ._tables import power_of_two, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure


PILLAR_MARKERS = {
    "activations": ("o", "#1f77b4"),
    "gradients": ("s", "#d9540d"),
    "updates": ("^", "#2a9d4a"),
    "uneven": ("D", "#8a4fbf"),
}
"""The marker and the colour of each column of octaves."""


INFINITE_FACTOR = 1.25
"""Infinite values are drawn at so many times the largest finite one."""


def comparison_figure(
    rows: Sequence[Mapping[str, Any]],
    losses: Mapping[str, np.ndarray],
    rates: Sequence[float],
    steps: int,
) -> "Figure":
    """Losses over rates above; below, a line per strategy: pillars, cost and loss.

    Args:
        rows: of a `Comparison`.
        losses: by strategy, of shape `(seeds, rates)`.
        rates: the learning rates.
        steps: of training.
    """
    from matplotlib import colormaps

    shades = colormaps["turbo"](np.linspace(0.05, 0.95, max(len(rows), 2)))
    colours = {row["strategy"]: c for row, c in zip(rows, shades, strict=False)}
    height = 1.6 + 0.28 * len(rows)
    figure = empty_figure(11.0, 3.8 + height)
    halves: Any = figure.subfigures(2, 1, height_ratios=[3.8, height])
    upper, lower = halves
    _draw_loss_curves(upper, losses, rates=rates, steps=steps, colours=colours)
    pillars, cost, loss = lower.subplots(1, 3, sharey=True, width_ratios=[2, 1, 1])
    _draw_pillar_distances(pillars, rows)
    _draw_column(
        cost, rows, "gradient_steps", title="cost in gradient steps", colours=colours
    )
    _draw_column(
        loss, rows, "loss", title=f"loss at the best rate, {steps} steps",
        colours=colours,
    )  # fmt: skip
    names = [shortened(row["strategy"], 28) for row in rows]
    pillars.set_yticks(range(len(rows)), names, fontsize=9)
    pillars.set_ylim(len(rows) - 0.4, -0.6)
    return figure


def _draw_loss_curves(
    upper: "SubFigure",
    losses: Mapping[str, np.ndarray],
    *,
    rates: Sequence[float],
    steps: int,
    colours: Mapping[str, np.ndarray],
) -> None:
    """A line per strategy: the mean over seeds, where training did not diverge."""
    ax = upper.subplots()
    for i, (name, values) in enumerate(losses.items()):
        if not values.size:
            continue
        means = values.mean(0)
        order = np.argsort(rates)
        ax.plot(
            np.asarray(rates)[order],
            np.where(np.isfinite(means), means, np.nan)[order],
            label=name,
            color=colours[name],
            marker="os^D"[i % 4],
            ms=3.5,
            lw=1.4,
        )
    ax.set_xscale("log", base=2)
    ax.set_xlabel("learning rate")
    ax.set_ylabel(f"loss after {steps} steps")
    _limit_losses(ax, losses)
    ax.grid(color="0.9", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if ax.lines:
        upper.legend(loc="outside right upper", frameon=False, fontsize=9)


def _limit_losses(ax: "Axes", losses: Mapping[str, np.ndarray]) -> None:
    """A range that shows the best rates: runs that blow up leave it."""
    means = [values.mean(0) for values in losses.values() if values.size]
    finite = [mean[np.isfinite(mean)] for mean in means]
    best = [float(mean.min()) for mean in finite if mean.size]
    if not best or min(best) <= 0:
        return
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, min(best) / 1.5), min(high, 4 * max(best)))
    _set_plain_log_ticks(ax.yaxis, ax.get_ylim())


def _draw_pillar_distances(ax: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """How far each pillar is from 1; a triangle at the border is infinitely far."""
    finite = [
        row[name] for row in rows for name in PILLAR_MARKERS if np.isfinite(row[name])
    ]
    border = INFINITE_FACTOR * max([2.0, *finite])
    for i, (name, (marker, colour)) in enumerate(PILLAR_MARKERS.items()):
        heights = np.arange(len(rows)) + 0.14 * (i - 1.5)
        distances = np.array([row[name] for row in rows], float)
        style: dict[str, Any] = {"color": colour, "s": 26, "zorder": 3}
        ax.scatter(distances, heights, marker=marker, label=name, **style)
        infinite = np.isinf(distances)
        at_border = np.full(infinite.sum(), border)
        ax.scatter(at_border, heights[infinite], marker=">", **style)
    ax.axvspan(-0.15, 1, color="0.92", zorder=0)
    ax.set_xscale("symlog", linthresh=2.0, base=2)
    ax.set_xlim(-0.15, border * 1.1)
    _style_column(ax, "octaves from 1, worst unit (▸ infinite)")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False,
        fontsize=8, handletextpad=0.1, columnspacing=0.9,
    )  # fmt: skip


def _draw_column(
    ax: "Axes",
    rows: Sequence[Mapping[str, Any]],
    name: str,
    *,
    title: str,
    colours: Mapping[str, np.ndarray],
) -> None:
    """One number per strategy on a logarithmic axis; a word where it has none."""
    values = np.array([row[name] for row in rows], float)
    has_logarithm = np.isfinite(values) & (values > 0)
    if has_logarithm.any():
        ax.set_xscale("log")
        _limit_to_decades(ax, values[has_logarithm])
    for i, (row, value) in enumerate(zip(rows, values, strict=True)):
        if has_logarithm[i]:
            ax.scatter([value], [i], color=[colours[row["strategy"]]], s=34, zorder=3)
            continue
        word = "failed" if row["error"] else "0" if value == 0 else "diverged"
        style: Any = {"transform": ax.get_yaxis_transform(), "va": "center"}
        ax.text(0.04, i, word, color="0.45", fontsize=8, **style)
    _style_column(ax, title)


def _limit_to_decades(ax: "Axes", values: np.ndarray) -> None:
    """A range of at least one decade."""
    low, high = np.log10(values.min()) - 0.15, np.log10(values.max()) + 0.15
    more = max(0.0, 1.0 - (high - low)) / 2
    ax.set_xlim(10 ** (low - more), 10 ** (high + more))
    _set_plain_log_ticks(ax.xaxis, ax.get_xlim())


def _set_plain_log_ticks(axis: "Axis", limits: tuple[float, float]) -> None:
    """Ticks as plain numbers; at 2 and 5 too in a range below two decades."""
    from matplotlib.ticker import LogLocator, NullLocator

    subs = (1, 2, 5) if limits[1] < 100 * limits[0] else (1,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _style_column(ax: "Axes", title: str) -> None:
    ax.set_xlabel(title, fontsize=9)
    ax.tick_params(labelsize=8)
    ax.grid(color="0.9", lw=0.6, zorder=0)
    ax.spines[["top", "right"]].set_visible(False)


def rate_figure(
    rates: Sequence[float], final: np.ndarray, marks: Mapping[str, float], *, steps: int
) -> "Figure":
    """The mean loss at each rate, the range over seeds, and rates that are marked.

    Args:
        rates: the learning rates, ascending.
        final: losses at the end, of shape `(seeds, rates)`; infinite once diverged.
        marks: rates by what they are called.
        steps: of training.
    """
    figure = empty_figure(6.4, 3.6)
    ax = figure.subplots()
    mean = final.mean(0)
    kept = np.isfinite(mean)
    x = np.asarray(rates)[kept]
    blue = TABLE_COLOURS[1]
    ax.plot(x, mean[kept], "o-", color=blue, ms=4, lw=1.5)
    ax.fill_between(
        x, final.min(0)[kept], final.max(0)[kept], color=blue, alpha=0.2, lw=0
    )
    for (name, rate), style in zip(marks.items(), ("-", ":"), strict=False):
        label = f"{name}: {power_of_two(rate)}"
        ax.axvline(rate, color="0.35", lw=1, ls=style, label=label)
    for rate in np.asarray(rates)[~kept]:
        ax.plot([rate], [0.98], "x", color="0.5", transform=ax.get_xaxis_transform())
    ax.set_xscale("log", base=2)
    if (mean[kept] > 0).all():
        ax.set_yscale("log")
    ax.set_xlabel("learning rate (x: diverged)" if not kept.all() else "learning rate")
    ax.set_ylabel(f"loss after {steps} steps")
    ax.grid(color="0.9", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if marks:
        ax.legend(frameon=False, fontsize=9)
    return figure
