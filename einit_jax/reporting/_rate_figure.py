"""The figure of a search for a learning rate: losses over rates."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ._figures import TABLE_COLOURS, empty_figure
from ._tables import power_of_two

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
