"""Figures of training: the four charts of a history, and sizes over widths."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._figures import empty_figure
from ._tables import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D


MAX_HISTOGRAMS = 12
"""Of more rows than these, evenly spread ones have their histograms drawn."""


LEAST_SHARE = 0.002
"""An octave that never holds a larger share of values is left out."""


MAX_LEGEND_LINES = 8
"""More lines than these have a bar of colours in the place of a legend."""


IMAGE_STYLE: dict[str, Any] = {
    "aspect": "auto",
    "origin": "lower",
    "interpolation": "nearest",
}


def history_figure(
    steps: np.ndarray,
    moments: Mapping[str, np.ndarray],
    *,
    edges: np.ndarray,
    names: Sequence[str],
    title: str,
) -> "Figure":
    """Means, deviations and dead shares over steps, and histograms row by row.

    Args:
        steps: the first step of each slot.
        moments: by name, of shape `(slots, rows)`; `histogram` has bins besides.
        edges: the bounds of the bins.
        names: of the rows.
        title: the figure's heading.
    """
    drawn = np.linspace(0, len(names) - 1, MAX_HISTOGRAMS)
    drawn = np.unique(drawn.round().astype(int))
    across = min(len(drawn), 4)
    down = -(-len(drawn) // across)
    height = 1.9 * down if down > 1 else 2.8
    figure = empty_figure(12.0, 4.3 + height)
    halves: Any = figure.subfigures(2, 1, height_ratios=[4.3, height])
    upper, lower = halves
    upper.suptitle(title, fontsize=12)
    _draw_moments(upper, steps, moments, names)
    lower.suptitle("share of values by octave, brighter is more", fontsize=10)
    grid = lower.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    images = _octave_images(moments["histogram"][:, drawn], edges)
    _draw_histograms(grid, steps, images, [names[i] for i in map(int, drawn)])
    return figure


def _draw_moments(
    upper: "SubFigure",
    steps: np.ndarray,
    moments: Mapping[str, np.ndarray],
    names: Sequence[str],
) -> None:
    """The upper three charts: means, deviations and dead shares."""
    left, middle, right = upper.subplots(1, 3)
    lines = _draw_lines(left, steps, moments["mean"] / _positive(moments["rms"]))
    left.set_title("mean over rms", fontsize=10)
    left.axhline(0, color="0.6", lw=0.8, zorder=0)
    deviations = _positive(moments["std"])
    _draw_lines(middle, steps, deviations)
    middle.set_title("standard deviation", fontsize=10)
    if np.isfinite(deviations).any():
        middle.set_yscale("log", base=2)
        _widen_log2_axis(middle, 2.0)
    _identify_lines(upper, left, lines, names)
    _draw_dead_shares(right, steps, moments["dead"], names)


def _positive(values: np.ndarray) -> np.ndarray:
    """The values that have a logarithm; NaN in the place of others."""
    return np.where(values > 0, values, np.nan)


def _draw_lines(ax: "Axes", x: np.ndarray, values: np.ndarray) -> "list[Line2D]":
    """A line per row, from dark for the first to bright for the last."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0, 0.92, values.shape[1]))
    dot = "o" if len(x) == 1 else None
    lines = [
        ax.plot(x, column, color=colour, lw=1.2, marker=dot)[0]
        for column, colour in zip(values.T, colours, strict=True)
    ]
    ax.set_xlabel("step")
    ax.spines[["top", "right"]].set_visible(False)
    return lines


def _identify_lines(
    figure: "Figure | SubFigure",
    ax: "Axes",
    lines: "Sequence[Line2D]",
    names: Sequence[str],
) -> None:
    """A legend of few lines; a bar of colours from the first to the last of many."""
    if len(names) <= MAX_LEGEND_LINES:
        figure.legend(
            lines, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
        return
    from matplotlib import cm, colors

    shades = cm.ScalarMappable(colors.Normalize(0, len(names) / 0.92), "viridis")
    bar = figure.colorbar(shades, ax=ax, ticks=[0, len(names) - 1])
    bar.ax.set_ylim(0, len(names) - 1)
    bar.ax.set_yticklabels(["first", "last"], fontsize=8)


def _image_extent(steps: np.ndarray, height: int) -> tuple[float, float, float, float]:
    """Where an image lies on its axes: a slot is as wide as the steps it covers."""
    width = float(steps[1] - steps[0]) if len(steps) > 1 else 1.0
    return (float(steps[0]), float(steps[-1]) + width, -0.5, height - 0.5)


def _draw_dead_shares(
    ax: "Axes", steps: np.ndarray, shares: np.ndarray, names: Sequence[str]
) -> None:
    """The dead share of each row, as an image."""
    extent = _image_extent(steps, len(names))
    image = ax.imshow(
        shares.T, extent=extent, cmap="magma_r", vmin=0, vmax=1, **IMAGE_STYLE
    )
    ax.set_title("dead (near zero) share", fontsize=10)
    ax.set_xlabel("step")
    every = -(-len(names) // 24)
    labels = [shortened(name, 18) for name in names[::every]]
    ax.set_yticks(range(0, len(names), every), labels, fontsize=7)
    ax.figure.colorbar(image, ax=ax)


class _OctaveImages(NamedTuple):
    """Histograms to be drawn, symmetric about zero."""

    brightness: np.ndarray
    """Of shape `(slots, rows, 2 * reach + 1)`; all values near zero are one bin."""
    reach: int
    """The number of bins on either side of zero."""
    octave: int
    """The exponent of the bin at zero: it holds what is below 2^octave."""


def _octave_images(shares: np.ndarray, edges: np.ndarray) -> _OctaveImages:
    """The octaves that are occupied, on a logarithmic scale of brightness."""
    shares = np.nan_to_num(shares)
    centre = shares.shape[-1] // 2
    first, last = _occupied_octaves(shares, centre)
    inner = shares[..., centre - first + 1 : centre + first].sum(-1, keepdims=True)
    below = shares[..., centre - last : centre - first + 1]
    above = shares[..., centre + first : centre + last + 1]
    brightness = np.log1p(1000 * np.concatenate([below, inner, above], -1))
    octave = round(float(np.log2(edges[len(edges) // 2]))) + first - 1
    return _OctaveImages(brightness, last - first + 1, octave)


def _draw_histograms(
    grid: np.ndarray, steps: np.ndarray, images: _OctaveImages, names: Sequence[str]
) -> None:
    """An image per row: steps to the right, values upward, by octave."""
    brightness, reach, octave = images
    style = {**IMAGE_STYLE, "cmap": "inferno", "vmin": 0}
    style |= {"vmax": brightness.max(initial=1)}
    style |= {"extent": _image_extent(steps, 2 * reach + 1)}
    for i, (ax, name) in enumerate(zip(grid.flat, names, strict=False)):
        ax.imshow(brightness[:, i].T, **style)
        ax.set_title(shortened(name, 34), fontsize=8)
        ax.tick_params(labelsize=7)
    ticks = {reach: "0"}
    for distance in range(reach, reach // 4, -max(1, -(-reach // 3))):
        exponent = octave + distance - 1
        ticks[reach + distance] = f"$2^{{{exponent}}}$"
        ticks[reach - distance] = f"$-2^{{{exponent}}}$"
    grid.flat[0].set_yticks(list(ticks), list(ticks.values()))
    for ax in grid.flat[len(names) :]:
        ax.set_visible(False)
    for ax in grid[-1]:
        ax.set_xlabel("step", fontsize=8)


def _occupied_octaves(shares: np.ndarray, centre: int) -> tuple[int, int]:
    """The octaves, counted from zero, between which all but a few values lie.

    What is nearer to zero than the first of them is drawn as one bin.
    """
    folded = shares[..., centre + 1 :] + shares[..., centre - 1 :: -1][..., :centre]
    most = folded.max((0, 1)) if folded.size else np.zeros(centre)
    occupied = np.flatnonzero(most > LEAST_SHARE) + 1
    if not occupied.size:
        return centre, centre
    return int(occupied[0]), int(occupied[-1])


def width_figure(
    sizes: np.ndarray,
    changes: np.ndarray,
    widths: Sequence[int],
    names: Sequence[str],
) -> "Figure":
    """Sizes at the start and the end, changes after the first and the last step."""
    steps = sizes.shape[1] - 1
    panels = {"rms of outputs, step 0": sizes[:, 0]}
    if steps:
        panels[f"rms of outputs, step {steps}"] = sizes[:, -1]
        panels["change of outputs, step 1"] = changes[:, 1]
    if steps > 1:
        panels[f"change of outputs, step {steps}"] = changes[:, -1]
    figure = empty_figure(3.2 * max(len(panels), 2) + 1.5, 4.2)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    lines: list[Line2D] = []
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        lines = _draw_lines(ax, np.asarray(widths), _positive(values))
        for line in lines:
            line.set_marker("o")
            line.set_markersize(3)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        _widen_log2_axis(ax, 2.0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("width")
        ax.grid(color="0.9", lw=0.6)
    _identify_lines(figure, axes[-1], lines, names)
    return figure


def _widen_log2_axis(ax: "Axes", octaves: float) -> None:
    """A range of some octaves, so that noise about a flat line looks flat."""
    low, high = np.log2(ax.get_ylim())
    more = max(0.0, octaves - (high - low) / 2)
    ax.set_ylim(2.0 ** (low - more), 2.0 ** (high + more))
