"""Pictures of numbers: plain rows and arrays in, a matplotlib figure out.

Figures are made without pyplot, so nothing is shown, saved or kept by itself.
"""

import io
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ._tables import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


PILLAR_PANELS = {
    "output_rms": "activation",
    "input_grad_rms": "input gradient",
    "update_rms": "update",
}


COLOURS = ("#d9540d", "#1f77b4", "#2a9d4a", "#8a4fbf", "#7f7f7f")


LABELS = 40
"""So many names fit below an axis; of more, every second, third, ... is written."""


MARKS: dict[str, dict[str, Any]] = {
    "zero": {"marker": "x", "y": 0.04},
    "non-finite": {"marker": "^", "y": 0.95},
    "unreached": {"marker": "o", "y": 0.04, "facecolors": "none"},
}
"""Where and how a unit is marked whose rms has no logarithm."""


def figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, that notebooks show where it is a cell's value.

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
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    # notebooks know figures of pyplot alone, unless they bring their own picture
    setattr(made, "_repr_png_", partial(_png, made))  # noqa: B010
    return made


def _png(drawn: "Figure") -> bytes:
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=100)
    return stream.getvalue()


def pillar_panels(tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """Log2 rms per unit in call order, a panel a pillar, a colour a table.

    Args:
        tables: rows of measurements of the same units, by what they are called.
    """
    first = next(iter(tables.values()))
    names = list(dict.fromkeys(unit_of_row(row["path"]) for row in first))
    picture = figure(float(np.clip(3 + 0.24 * len(names), 7.5, 15)), 8.0)
    axes = picture.subplots(len(PILLAR_PANELS), 1, sharex=True)
    for ax, (pillar, title) in zip(axes, PILLAR_PANELS.items(), strict=True):
        ax.axhspan(-1, 1, color="0.92", zorder=0)
        ax.axhline(0, color="0.6", lw=0.8, zorder=1)
        for i, (label, rows) in enumerate(tables.items()):
            _pillar(ax, rows, pillar, names, label, i + (len(tables) == 1))
        ax.set_ylabel(f"log2 rms of\n{title}")
        _at_least(ax, 2.5)
    axes[-1].set_xlabel("unit, in call order")
    _name_ticks(axes[-1], names)
    _legend(picture, axes)
    return picture


def unit_of_row(path: str) -> str:
    """The unit that a row's path is of; layers of one scanned unit are one."""
    return path.partition("[")[0]


def _pillar(
    ax: "Axes",
    rows: Sequence[Mapping[str, Any]],
    pillar: str,
    names: Sequence[str],
    label: str,
    number: int,
) -> None:
    """One line of a panel: the median over layers, a bar from least to most, marks."""
    colour = COLOURS[number % len(COLOURS)]
    place = {name: i for i, name in enumerate(names)}
    layers: list[list[float]] = [[] for _ in names]
    marked: dict[str, set[int]] = {mark: set() for mark in MARKS}
    for row in rows:
        at, value = place[unit_of_row(row["path"])], row[pillar]
        if row["flag"] == "unreached":
            marked["unreached"].add(at)
        elif value == 0:
            marked["zero"].add(at)
        elif np.isfinite(value):
            layers[at].append(float(np.log2(value)))
        elif np.isinf(value) or row["flag"] == "non-finite":
            marked["non-finite"].add(at)
    middle = [np.median(values) if values else np.nan for values in layers]
    dot = "o" if len(names) <= LABELS else None
    ax.plot(middle, color=colour, marker=dot, ms=4, lw=1.4, label=label, zorder=3)
    if pillar == "update_rms":
        _total(ax, rows, place, colour)
    spread = [i for i, values in enumerate(layers) if len(values) > 1]
    low, high = ([f(layers[i]) for i in spread] for f in (min, max))
    ax.vlines(spread, low, high, color=colour, lw=5, alpha=0.35, zorder=2)
    for mark, where in marked.items():
        style = {"color": colour, **MARKS[mark]}
        up = style.pop("y")
        heights = [up + (0.06 if up < 0.5 else -0.06) * number] * len(where)
        ax.scatter(
            sorted(where), heights, transform=ax.get_xaxis_transform(), s=28, zorder=4,
            label=f"_{mark}", **style,
        )  # fmt: skip


def _total(
    ax: "Axes", rows: Sequence[Mapping[str, Any]], place: Mapping, colour: str
) -> None:
    """The change when all units move, a thin dotted line beside their own."""
    largest = np.full(len(place), np.nan)
    for row in rows:
        at, value = place[unit_of_row(row["path"])], row["total_update_rms"]
        if np.isfinite(value) and value > 0:
            largest[at] = np.fmax(largest[at], np.log2(value))
    ax.plot(largest, color=colour, lw=1.1, ls=":", zorder=3, label="_total")


def _legend(picture: "Figure", axes: Sequence["Axes"]) -> None:
    """What colours, marks and bars mean, as far as they are there."""
    from matplotlib.lines import Line2D

    lines, words = axes[0].get_legend_handles_labels()
    shown = [(line, word) for line, word in zip(lines, words, strict=True) if word]
    shown.append((Line2D([], [], color="0.3", ls=":"), "update of all units at once"))
    if any(len(bars.get_segments()) for ax in axes for bars in _layer_bars(ax)):
        bar = Line2D([], [], color="0.3", lw=5, alpha=0.35)
        shown.append((bar, "least to most over layers"))
    for mark, style in MARKS.items():
        if any(
            len(points.get_offsets()) for ax in axes for points in _points(ax, mark)
        ):
            fill = style.get("facecolors", "0.3")
            dot = Line2D(
                [], [], color="0.3", ls="", marker=style["marker"], markerfacecolor=fill
            )
            shown.append((dot, "dead (zero)" if mark == "zero" else mark))
    handles, texts = zip(*shown, strict=True)
    picture.legend(
        handles, texts, loc="outside upper center", ncols=4, frameon=False, fontsize=9
    )


def _layer_bars(ax: "Axes") -> list[Any]:
    from matplotlib.collections import LineCollection

    return [found for found in ax.collections if isinstance(found, LineCollection)]


def _points(ax: "Axes", mark: str) -> list[Any]:
    return [found for found in ax.collections if found.get_label() == f"_{mark}"]


def _at_least(ax: "Axes", span: float) -> None:
    """Integer ticks, and a range that does not blow noise up."""
    from matplotlib.ticker import MaxNLocator

    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -span), max(high, span))
    ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.grid(axis="y", color="0.88", lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)


def _name_ticks(ax: "Axes", names: Sequence[str]) -> None:
    """Names below an axis, as many as can be read, long ones cut short."""
    step = -(-len(names) // LABELS)
    short = [shortened(name, 28) for name in names[::step]]
    ax.set_xticks(range(0, len(names), step), short, rotation=90, fontsize=8)
    ax.set_xlim(-0.7, len(names) - 0.3)
