"""The picture of the records of `transfer`: loss over learning rate, size by size."""

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

TITLES = {"Flax default": "as Flax initializes it", "exact, total": "with tune"}
NO_DATE = {"svg.hashsalt": "curves", "svg.fonttype": "none"}
"""The same records give the same file."""


def curves_figure(records: list[dict[str, Any]]) -> Figure:
    """A panel for each method, a curve for each size; dots mark the least losses.

    A curve has the rates that its record has; training diverges where there is a gap.
    """
    matplotlib.rcParams.update(NO_DATE)
    methods = list(dict.fromkeys(r["method"] for r in records))
    figure = Figure(figsize=(4 * len(methods), 3.2), layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    for panel, method in zip(panels, methods, strict=True):
        own = [r for r in records if r["method"] == method]
        _draw(panel, own)
        panel.set(title=TITLES.get(method, method), yscale="log")
        panel.set_xlabel(f"log2 of the learning rate of {own[0]['optimizer']}")
    panels[0].set_ylabel("training loss")
    panels[-1].legend(title="width", loc="lower left", fontsize=8, title_fontsize=8)
    return figure


def _draw(panel: Any, records: list[dict[str, Any]]) -> None:
    """The curves of one method."""
    shades = matplotlib.colormaps["viridis"](np.linspace(0.85, 0.1, len(records)))
    for record, shade in zip(records, shades, strict=True):
        pairs = [(int(e), loss) for e, loss in record["curve"].items()]
        rates, losses = zip(*sorted(pairs), strict=True)
        panel.plot(rates, losses, color=shade, label=str(record["size"]))
        panel.plot(record["best"], record["loss"], "o", color=shade)
    panel.grid(alpha=0.3)
