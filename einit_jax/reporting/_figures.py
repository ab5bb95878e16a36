"""Figures from plain rows and arrays: the basics, and the three pillars.

Figures are made without pyplot, so nothing is shown, saved or kept by itself.
"""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ._tables import shortened
from ._verdict import VALUE_WORDS, Judgement

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


UPDATES = {"total": "total_update_rms", "local": "update_rms"}
"""The column that each rule about updates is about."""


TABLE_COLOURS = ("#d9540d", "#1f77b4", "#2a9d4a", "#8a4fbf", "#7f7f7f")


LABELS = 40
"""At most so many names are written below an axis: every second, third, ... one."""


MARKS: dict[str, dict[str, Any]] = {
    "zero": {"marker": "x", "y": 0.04},
    "non-finite": {"marker": "^", "y": 0.95},
    "unreached": {"marker": "o", "y": 0.04, "facecolors": "none"},
}
"""Where and how a unit is marked whose rms has no logarithm."""


def empty_figure(width: float, height: float) -> "Figure":
    """An empty figure, sizes in inches, which notebooks show as a cell's value.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "figures need matplotlib: pip install 'einit_jax[plot]'"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    # notebooks show figures of pyplot alone, unless an object brings its own picture
    setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010
    return figure


def _png(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def pillar_panels(
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    judgement: Judgement | None = None,
) -> "Figure":
    """Log2 rms per unit in call order: a panel per pillar, a colour per table.

    Args:
        tables: rows of measurements of the same units, by the legend's names; a single
            one has none there.
        judgement: of the last table. The band is within a factor of 2 of what the rules
            in force ask of each row, and the update is drawn that they are about; the
            other one is dotted. None: of 1, and the total one.
    """
    due, update = (judgement.due, judgement.update) if judgement else ({}, "total")
    first = next(iter(tables.values()))
    names = list(dict.fromkeys(_unit_of_row(row["path"]) for row in first))
    figure = empty_figure(float(np.clip(3 + 0.24 * len(names), 7.5, 15)), 8.0)
    pillars = ("output_rms", "input_grad_rms", UPDATES[update])
    axes = figure.subplots(len(pillars), 1, sharex=True)
    (other,) = set(UPDATES.values()) - set(pillars)
    places = {name: i for i, name in enumerate(names)}
    for ax, pillar in zip(axes, pillars, strict=True):
        *_, rows = tables.values()
        _draw_band(ax, rows, due.get(pillar, np.ones(len(rows))), places)
        ax.axhline(0, color="0.6", lw=0.8, zorder=1)
        for i, (label, rows) in enumerate(tables.items()):
            order = i + (len(tables) == 1)
            named = {"names": names, "label": label if len(tables) > 1 else ""}
            _draw_pillar(ax, rows, pillar=pillar, order=order, **named)
            if pillar in UPDATES.values():
                _draw_largest(ax, rows, places, column=other, order=order)
        ax.set_ylabel(f"log2 rms of\n{VALUE_WORDS[pillar]}")
        _style_log2_axis(ax, 2.5)
    axes[-1].set_xlabel("layer, in call order")
    _name_ticks(axes[-1], names)
    _add_pillar_legend(figure, axes, dotted=VALUE_WORDS[other])
    return figure


def _draw_band(
    ax: "Axes",
    rows: Sequence[Mapping[str, Any]],
    due: np.ndarray,
    places: Mapping[str, int],
) -> None:
    """Within a factor of 2 of what is due, over all layers of a unit."""
    low, high = np.full((2, len(places)), np.nan)
    for row, value in zip(rows, due, strict=True):
        if np.isfinite(value) and value > 0:
            place, log = places[_unit_of_row(row["path"])], np.log2(value)
            low[place] = np.fmin(low[place], log - 1)
            high[place] = np.fmax(high[place], log + 1)
    edges = np.arange(len(places) + 1) - 0.5
    ax.stairs(high, edges, baseline=low, fill=True, color="0.92", zorder=0)


def _unit_of_row(path: str) -> str:
    """The unit of a row's path; all layers of a lifted unit have the same one."""
    return path.partition("[")[0]


class _PillarValues(NamedTuple):
    """One pillar of a table, by the unit's place on the axis."""

    layers: list[list[float]]
    """Log2 rms of each layer."""
    marked: dict[str, set[int]]
    """The places that get a mark, by the mark's name."""


def _pillar_values(
    rows: Sequence[Mapping[str, Any]], pillar: str, places: Mapping[str, int]
) -> _PillarValues:
    """The logarithms of a pillar; values without one are marked."""
    layers: list[list[float]] = [[] for _ in places]
    marked: dict[str, set[int]] = {mark: set() for mark in MARKS}
    for row in rows:
        place, value = places[_unit_of_row(row["path"])], row[pillar]
        if row["flag"] == "unreached":
            marked["unreached"].add(place)
        elif value == 0:
            marked["zero"].add(place)
        elif np.isfinite(value):
            layers[place].append(float(np.log2(value)))
        elif np.isinf(value) or row["flag"] == "non-finite":
            marked["non-finite"].add(place)
    return _PillarValues(layers, marked)


def _draw_pillar(
    ax: "Axes",
    rows: Sequence[Mapping[str, Any]],
    *,
    pillar: str,
    names: Sequence[str],
    label: str,
    order: int,
) -> None:
    """A line at the median over layers, bars from least to most, and marks."""
    colour = TABLE_COLOURS[order % len(TABLE_COLOURS)]
    places = {name: i for i, name in enumerate(names)}
    layers, marked = _pillar_values(rows, pillar, places)
    medians = [np.median(values) if values else np.nan for values in layers]
    dot = "o" if len(names) <= LABELS else None
    ax.plot(medians, color=colour, marker=dot, ms=4, lw=1.4, label=label, zorder=3)
    several = [i for i, values in enumerate(layers) if len(values) > 1]
    low, high = ([extreme(layers[i]) for i in several] for extreme in (min, max))
    ax.vlines(several, low, high, color=colour, lw=5, alpha=0.35, zorder=2)
    for mark, marked_places in marked.items():
        style = {"color": colour, **MARKS[mark]}
        height = style.pop("y")
        height += (0.06 if height < 0.5 else -0.06) * order
        ax.scatter(
            sorted(marked_places), [height] * len(marked_places), s=28, zorder=4,
            transform=ax.get_xaxis_transform(), label=f"_{mark}", **style,
        )  # fmt: skip


def _draw_largest(
    ax: "Axes",
    rows: Sequence[Mapping[str, Any]],
    places: Mapping[str, int],
    *,
    column: str,
    order: int,
) -> None:
    """A thin dotted line: the largest value of a column over the layers of a unit."""
    largest = np.full(len(places), np.nan)
    for row in rows:
        place, value = places[_unit_of_row(row["path"])], row[column]
        if np.isfinite(value) and value > 0:
            largest[place] = np.fmax(largest[place], np.log2(value))
    colour = TABLE_COLOURS[order % len(TABLE_COLOURS)]
    ax.plot(largest, color=colour, lw=1.1, ls=":", zorder=3, label="_other")


def _add_pillar_legend(figure: "Figure", axes: Sequence["Axes"], dotted: str) -> None:
    """What the colours mean, the band, and the lines, bars and marks that occur."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    lines, labels = axes[0].get_legend_handles_labels()
    entries: list[tuple[Artist, str]] = [
        (line, label) for line, label in zip(lines, labels, strict=True) if label
    ]
    entries.append((Line2D([], [], color="0.3", ls=":"), dotted))
    entries.append((Patch(color="0.88"), "due, within a factor of 2"))
    if any(len(bars.get_segments()) for ax in axes for bars in _layer_bars(ax)):
        bar = Line2D([], [], color="0.3", lw=5, alpha=0.35)
        entries.append((bar, "least to most over layers"))
    for mark, style in MARKS.items():
        points = [each for ax in axes for each in _marks_in(ax, mark)]
        if any(len(each.get_offsets()) for each in points):
            fill, marker = style.get("facecolors", "0.3"), style["marker"]
            dot = Line2D(
                [], [], color="0.3", ls="", marker=marker, markerfacecolor=fill
            )
            entries.append((dot, "dead (zero)" if mark == "zero" else mark))
    handles, texts = zip(*entries, strict=True)
    figure.legend(
        handles, texts, loc="outside upper center", ncols=4, frameon=False, fontsize=9
    )


def _layer_bars(ax: "Axes") -> list[Any]:
    from matplotlib.collections import LineCollection

    return [each for each in ax.collections if isinstance(each, LineCollection)]


def _marks_in(ax: "Axes", mark: str) -> list[Any]:
    return [each for each in ax.collections if each.get_label() == f"_{mark}"]


def _style_log2_axis(ax: "Axes", span: float) -> None:
    """Integer ticks, and a range that does not blow noise up."""
    from matplotlib.ticker import MaxNLocator

    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -span), max(high, span))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(axis="y", color="0.88", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _name_ticks(ax: "Axes", names: Sequence[str]) -> None:
    """Names below an axis: as many as can be read, long ones cut short."""
    step = -(-len(names) // LABELS)
    labels = [shortened(name, 28) for name in names[::step]]
    ax.set_xticks(range(0, len(names), step), labels, rotation=90, fontsize=8)
    ax.set_xlim(-0.7, len(names) - 0.3)
