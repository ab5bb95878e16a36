"""Tables of what `depth` found, from its records alone."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

TIE = 0.1
RUN = ("network", "start", "seed", "optimizer", "steps")
Results = dict[tuple, dict[int, tuple[float, float, float]]]
"""Loss, held-out loss and accuracy of each learning rate of each run."""


def results(records: Iterable[Mapping]) -> Results:
    """Without what failed, which is to be run again."""
    found: Results = {}
    for r in records:
        if "error" not in r:
            values = zip(r["loss"], r["test_loss"], r["accuracy"], strict=True)
            rates = zip(r["log2_rates"], values, strict=True)
            found.setdefault(tuple(r[name] for name in RUN), {}).update(rates)
    return found


class Cell(NamedTuple):
    """One start of one network at its best learning rate."""

    rate: str
    loss: float
    spread: float
    test_loss: float
    accuracy: float


def cell(seeds: Sequence[Mapping[int, tuple]]) -> Cell:
    """From the results of all seeds; * at an end of the learning rates."""
    rates = sorted(set.intersection(*map(set, seeds)))
    values = np.array([[found[rate] for rate in rates] for found in seeds])
    best = int(values[..., 0].mean(0).argmin())
    loss, test_loss, accuracy = values[:, best].mean(0)
    spread = values[:, best, 0].std() if np.isfinite(loss) else 0.0
    end = "*" if best in (0, len(rates) - 1) else ""
    return Cell(f"2^{rates[best]}{end}", loss, spread, test_loss, accuracy)


def tables(
    records: Iterable[Mapping], networks: Sequence[str], starts: Sequence[str]
) -> Iterator[str]:
    """For each optimizer what is learned, and what is held out, in Markdown.

    Rows and columns in the order of `networks` and `starts`. The best start of a row is
    bold, and those within 10% or a standard deviation of it.
    """
    seeds: dict[tuple, list] = {}
    for (network, start, _, *job), found in results(records).items():
        seeds.setdefault((*job, network, start), []).append(found)
    cells = {place: cell(found) for place, found in seeds.items()}
    for optimizer, steps in dict.fromkeys(place[:2] for place in cells):
        here = {p[2:]: c for p, c in cells.items() if p[:2] == (optimizer, steps)}
        here = {
            place: here[place] for place in product(networks, starts) if place in here
        }
        title = f"{optimizer}, {steps} steps"
        rated = lambda c: f" ± {c.spread:.1g} ({c.rate})"
        yield table(
            f"{title}: loss ± deviation (rate; * at an end)", here, starts, rated
        )
        held_out = lambda c: f"; {c.test_loss:.3g}, {c.accuracy:.3f}"
        yield table(f"{title}: loss; held-out loss, accuracy", here, starts, held_out)


def table(
    title: str, cells: Mapping, order: Sequence[str], rest: Callable[[Cell], str]
) -> str:
    """Networks by starts in this order; behind each loss the rest of its cell."""
    starts = [start for start in order if any(start == s for _, s in cells)]
    lines = [
        f"| {' | '.join(['network', *starts])} |",
        "|---" * (len(starts) + 1) + "|",
    ]
    for network in dict.fromkeys(network for network, _ in cells):
        row = {start: c for (n, start), c in cells.items() if n == network}
        top = min(row.values(), key=lambda c: c.loss)
        limit = max((1 + TIE) * top.loss, top.loss + top.spread)
        shown = [network]
        for c in map(row.get, starts):
            mark = "**" if c and c.loss <= limit < np.inf else ""
            shown.append(f"{mark}{c.loss:.3g}{mark}{rest(c)}" if c else "")
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join([title, "", *lines, ""])
