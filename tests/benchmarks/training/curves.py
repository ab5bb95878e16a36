"""Pictures of records: of `transfer`, loss over rates; of `language`, over steps."""

from collections.abc import Mapping, Sequence
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


def training_figure(
    records: Sequence[Mapping[str, Any]], advised: Mapping[str, int]
) -> Figure:
    """A panel for each network: training losses on the way, by way of training.

    A line in full at the rate that one takes without a search, a dotted one at the best
    on what is held out, where that is another.
    """
    matplotlib.rcParams.update(NO_DATE)
    networks = sorted({(r["width"], r["norm"]) for r in records}, key=lambda n: -n[1])
    ways = [way for way in advised if any(r["way"] == way for r in records)]
    figure = Figure(figsize=(4 * len(networks), 3.2), layout="constrained")
    panels = figure.subplots(1, len(networks), sharey=True, squeeze=False)[0]
    for panel, network in zip(panels, networks, strict=True):
        own = [r for r in records if (r["width"], r["norm"]) == network]
        for record in (r for r in own if r["seed"] == 0):
            color = f"C{ways.index(record['way'])}"
            _draw_training(panel, record, advised[record["way"]], color)
        norm = "LayerNorm" if network[1] else "no normalization"
        panel.set(title=f"width {network[0]}, {norm}", xlabel="step")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("training loss, nats per character")
    panels[-1].legend(fontsize=8)
    return figure


def _draw_training(
    panel: Any, record: Mapping[str, Any], advised: int, color: str
) -> None:
    """One record's curves."""
    rates = record["log2_rates"]
    best = rates[int(np.argmin(record["held_out"]))]
    steps = record["steps"] / len(record["training"][0])
    for rate, style in {best: ":", advised: "-"}.items():
        if rate in rates:
            curve = record["training"][rates.index(rate)]
            where = f"2^{rate}" if rate == advised else "best rate"
            label = f"{record['way']}, {where}"
            times = steps * (0.5 + np.arange(len(curve)))
            panel.plot(times, curve, style, color=color, label=label)
