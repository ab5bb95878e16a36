"""What predicts the best learning rate of a network, and how far each rule is off.

From the records of `one_rate` alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

WAYS = 2.0 ** np.arange(-10, 6)
"""Multiples of the first step, of which the effect is looked at."""


def crossing(ways: Sequence[float], values: Sequence[float], level: float) -> float:
    """log2 of the way at which rising values reach a level."""
    known = np.maximum.accumulate(np.nan_to_num(values, nan=np.inf, posinf=1e30))
    heights = np.log2(np.maximum(known, 1e-30))
    heights += 1e-9 * np.arange(len(heights))
    return float(np.interp(np.log2(level), heights, np.log2(ways)))


def first_order(values: Any) -> float:
    """log2 of the way at which a change would be 1, if the first one went on."""
    return float(np.log2(WAYS[0]) - np.log2(values))


def relative(found: Mapping) -> float:
    """log2 of the way at which arrays of two axes or more move by their own size."""
    sizes = np.array([row for row in found["steps_and_params"] if row[0] and row[1]])
    logs = np.log2(sizes[:, 1]) - np.log2(sizes[:, 0])
    return float(np.average(logs, weights=sizes[:, 2]))


def least(values: Sequence[float]) -> float:
    return float(np.log2(WAYS[int(np.nanargmin(values))]))


RULES: dict[str, Callable[[Mapping], float]] = {
    "first order, largest": lambda f: first_order(np.max(f["units"][0])),
    "first order, median": lambda f: first_order(np.median(f["units"][0])),
    "first order, logits": lambda f: first_order(f["logits"][0]),
    "finite, largest": lambda f: crossing(WAYS, np.max(f["units"], 1), 1.0),
    "finite, median": lambda f: crossing(WAYS, np.median(f["units"], 1), 1.0),
    "finite, logits": lambda f: crossing(WAYS, f["logits"], 1.0),
    "divergence of outputs": lambda f: crossing(WAYS, f["divergence"], 0.5),
    "least loss of the batch": lambda f: least(f["loss"]),
    "least loss of another batch": lambda f: least(f["other_loss"]),
    "size of the weights": relative,
    "none": lambda f: 0.0,
}


class Curve(NamedTuple):
    """The losses of one network by log2 of the rate, and what each rule says."""

    rates: np.ndarray
    losses: np.ndarray
    test_losses: np.ndarray
    accuracies: np.ndarray
    predicted: dict[str, float]

    @property
    def best(self) -> int:
        return int(np.argmin(self.losses))

    @property
    def best_rate(self) -> float:
        return float(self.rates[self.best])

    def loss_at(self, rate: float) -> float:
        """The loss at log2 of a rate, between those that were tried."""
        logs = np.log(np.minimum(self.losses, 1e3))
        return float(np.exp(np.interp(rate, self.rates, logs)))


def curves(records: Sequence[Mapping]) -> dict[tuple, Curve]:
    """By network and start; means over seeds, at the rates they share."""
    groups: dict[tuple, dict[int, list[Mapping]]] = {}
    for r in records:
        place = (r["network"], r["start"])
        groups.setdefault(place, {}).setdefault(r["seed"], []).append(r)
    return {place: curve_of([*seeds.values()]) for place, seeds in groups.items()}


def curve_of(seeds: Sequence[Sequence[Mapping]]) -> Curve:
    tables = []
    for parts in seeds:
        columns = ("loss", "test_loss", "accuracy")
        rows = [
            zip(r["log2_rates"], *(r[c] for c in columns), strict=True) for r in parts
        ]
        tables.append({rate: rest for part in rows for rate, *rest in part})
    rates = sorted(set.intersection(*map(set, tables)))
    values = np.array([[t[rate] for rate in rates] for t in tables]).mean(0)
    told = [r["effects"] for parts in seeds for r in parts[:1] if "effects" in r]
    predicted = {
        name: float(np.mean([rule(found) for found in told]))
        for name, rule in RULES.items()
        if told
    }
    return Curve(np.array(rates), *values.T, predicted=predicted)


def table_of_networks(
    found: Mapping[tuple, Curve], starts: Sequence[str]
) -> Iterator[dict]:
    """Each network at its best rate, by start."""
    for name in dict.fromkeys(place[0] for place in found):
        row = {"network": name}
        for start in starts:
            curve = found.get((name, start))
            row[start] = ""
            if curve:
                at = curve.best
                end = "*" if at in (0, len(curve.rates) - 1) else ""
                loss, right = curve.losses[at], curve.accuracies[at]
                row[start] = f"{loss:.3g} ({right:.3f}) 2^{curve.best_rate:.0f}{end}"
        yield row


def table_of_rules(found: Mapping[tuple, Curve]) -> Iterator[dict]:
    """Each rule over all tuned networks: how far off, and what one rate loses."""
    chosen = {place: c for place, c in found.items() if c.predicted}
    for rule in RULES if chosen else ():
        off = np.array([c.best_rate - c.predicted[rule] for c in chosen.values()])

        def ratios(rate: float, rule: str = rule) -> np.ndarray:
            at = [c.loss_at(rate + c.predicted[rule]) for c in chosen.values()]
            best = [c.losses[c.best] for c in chosen.values()]
            return np.array(at) / np.array(best)

        tried = np.arange(np.floor(off.min()), np.ceil(off.max()) + 0.25, 0.25)
        rate = min(tried, key=lambda rate: np.mean(np.log(ratios(rate))))
        lost = ratios(rate)
        names = [f"{place[0]}, {place[1]}" for place in chosen]
        yield {
            "rule": rule,
            "off, octaves": f"{off.max() - off.min():.1f} ({off.std():.2f})",
            "one rate": f"2^{rate:.2f}",
            "loss over the best": f"{np.exp(np.log(lost).mean()):.2f}",
            "worst": f"{lost.max():.2f} {names[int(lost.argmax())]}",
        }
