"""Pictures of what changes over training: the four charts of a history."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._figures import figure
from ._tables import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


HISTOGRAMS = 12
"""Of more rows than these, evenly spread ones have their histograms drawn."""


SCARCE = 0.002
"""An octave with no larger share than that, ever and anywhere, is left out."""


MOST_NAMED = 8
"""So many lines have a legend; more have a bar of colours."""


def history_figure(
    steps: np.ndarray,
    moments: Mapping[str, np.ndarray],
    edges: np.ndarray,
    names: Sequence[str],
    title: str,
) -> "Figure":
    """Means, deviations and dead shares over steps, and histograms row by row."""
    drawn = np.unique(np.linspace(0, len(names) - 1, HISTOGRAMS).round().astype(int))
    across = min(len(drawn), 4)
    down = -(-len(drawn) // across)
    height = 1.9 * down if down > 1 else 2.8
    picture = figure(12.0, 4.3 + height)
    halves: Any = picture.subfigures(2, 1, height_ratios=[4.3, height])
    upper, lower = halves
    upper.suptitle(title, fontsize=12)
    left, middle, right = upper.subplots(1, 3)
    lines = _lines(left, steps, moments["mean"] / _safe(moments["rms"]))
    left.set_title("mean over rms", fontsize=10)
    left.axhline(0, color="0.6", lw=0.8, zorder=0)
    deviations = _safe(moments["std"])
    _lines(middle, steps, deviations)
    middle.set_title("standard deviation", fontsize=10)
    if np.isfinite(deviations).any():
        middle.set_yscale("log", base=2)
        _wide_enough(middle, 2.0)
    _whose(upper, left, lines, names)
    _dead(right, steps, moments["dead"], names)
    lower.suptitle("share of values by octave, brighter is more", fontsize=10)
    grid = lower.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    _histograms(grid, steps, moments["histogram"], edges, names, drawn)
    return picture


def _safe(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _lines(ax: "Axes", steps: np.ndarray, values: np.ndarray) -> list[Any]:
    """A line a row, from dark for the first to bright for the last."""
    from matplotlib import colormaps

    colours = colormaps["viridis"](np.linspace(0, 0.92, values.shape[1]))
    dot = "o" if len(steps) == 1 else None
    lines = [
        ax.plot(steps, column, color=colour, lw=1.2, marker=dot)[0]
        for column, colour in zip(values.T, colours, strict=True)
    ]
    ax.set_xlabel("step")
    ax.spines[["top", "right"]].set_visible(False)
    return lines


def _whose(upper: Any, ax: "Axes", lines: list, names: Sequence[str]) -> None:
    """Which line is which."""
    if len(names) <= MOST_NAMED:
        upper.legend(
            lines, names, loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
        return
    from matplotlib import cm, colors

    shades = cm.ScalarMappable(colors.Normalize(0, len(names) / 0.92), "viridis")
    bar = upper.colorbar(shades, ax=ax, ticks=[0, len(names) - 1])
    bar.ax.set_ylim(0, len(names) - 1)
    bar.ax.set_yticklabels(["first", "last"], fontsize=8)


def _extent(steps: np.ndarray, height: int) -> tuple[float, float, float, float]:
    """An image's place: a slot is as wide as the steps it covers."""
    width = float(steps[1] - steps[0]) if len(steps) > 1 else 1.0
    return (float(steps[0]), float(steps[-1]) + width, -0.5, height - 0.5)


def _dead(
    ax: "Axes", steps: np.ndarray, shares: np.ndarray, names: Sequence[str]
) -> None:
    """The dead share of each row, as an image."""
    extent = _extent(steps, len(names))
    style: Any = {"aspect": "auto", "origin": "lower", "interpolation": "nearest"}
    image = ax.imshow(shares.T, extent=extent, cmap="magma_r", vmin=0, vmax=1, **style)
    ax.set_title("dead (near zero) share", fontsize=10)
    ax.set_xlabel("step")
    every = -(-len(names) // 24)
    short = [shortened(name, 18) for name in names[::every]]
    ax.set_yticks(range(0, len(names), every), short, fontsize=7)
    ax.figure.colorbar(image, ax=ax)


def _histograms(
    grid: np.ndarray,
    steps: np.ndarray,
    shares: np.ndarray,
    edges: np.ndarray,
    names: Sequence[str],
    drawn: np.ndarray,
) -> None:
    """Images of the rows drawn: steps to the right, values upward, by octave."""
    shares = np.nan_to_num(shares[:, drawn])
    centre = shares.shape[-1] // 2
    first, last = _occupied(shares, centre)
    inner = shares[..., centre - first + 1 : centre + first].sum(-1, keepdims=True)
    below = shares[..., centre - last : centre - first + 1]
    above = shares[..., centre + first : centre + last + 1]
    images = np.log1p(1000 * np.concatenate([below, inner, above], -1))
    reach = last - first + 1
    style: Any = {"aspect": "auto", "origin": "lower", "interpolation": "nearest"}
    style |= {"cmap": "inferno", "vmin": 0, "vmax": images.max(initial=1)}
    extent = _extent(steps, 2 * reach + 1)
    for i, (ax, row) in enumerate(zip(grid.flat, map(int, drawn), strict=False)):
        ax.imshow(images[:, i].T, extent=extent, **style)
        ax.set_title(shortened(names[row], 34), fontsize=8)
        ax.tick_params(labelsize=7)
    octave = round(float(np.log2(edges[len(edges) // 2]))) + first - 1
    far = range(reach, reach // 4, -max(1, -(-reach // 3)))
    ticks = {reach: "0"}
    for k in far:
        ticks[reach + k] = f"$2^{{{octave + k - 1}}}$"
        ticks[reach - k] = f"$-2^{{{octave + k - 1}}}$"
    grid.flat[0].set_yticks(list(ticks), list(ticks.values()))
    for ax in grid.flat[len(drawn) :]:
        ax.set_visible(False)
    for ax in grid[-1]:
        ax.set_xlabel("step", fontsize=8)


def _occupied(shares: np.ndarray, centre: int) -> tuple[int, int]:
    """The octaves, counted from zero, between which all but a few values lie.

    What is nearer to zero than the first of them is drawn as one.
    """
    folded = shares[..., centre + 1 :] + shares[..., centre - 1 :: -1][..., :centre]
    most = folded.max((0, 1)) if folded.size else np.zeros(centre)
    seen = np.flatnonzero(most > SCARCE) + 1
    if not seen.size:
        return centre, centre
    return int(seen[0]), int(seen[-1])


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
    picture = figure(3.2 * max(len(panels), 2) + 1.5, 4.2)
    axes = picture.subplots(1, len(panels), squeeze=False)[0]
    lines: list[Any] = []
    for ax, (title, values) in zip(axes, panels.items(), strict=True):
        lines = _lines(ax, np.asarray(widths), _safe(values))
        for line in lines:
            line.set_marker("o")
            line.set_markersize(3)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        _wide_enough(ax, 2.0)
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("width")
        ax.grid(color="0.9", lw=0.6)
    _whose(picture, axes[-1], lines, names)
    return picture


def _wide_enough(ax: "Axes", octaves: float) -> None:
    """A range of some octaves, so that noise about a flat line looks flat."""
    low, high = np.log2(ax.get_ylim())
    more = max(0.0, octaves - (high - low) / 2)
    ax.set_ylim(2.0 ** (low - more), 2.0 ** (high + more))
