"""The verdict on a measurement: is all well, else what is off and what mends it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._tables import format_number

OFF = 0.1
"""How far the logarithm of an output may be from its target's, on other batches, too,
which differ."""


OFF_OCTAVES = {
    "output_rms": OFF / math.log(2),
    "input_grad_rms": 0.5,
    "update_rms": 0.5,
    "total_update_rms": 0.5,
}
"""The same in octaves, of all values; learning rates are searched by octaves."""


FACTOR_COLUMNS = tuple(
    f"{name}_factor" for name in ("output", "input_grad", "output_grad", "update")
)


WORST = 3
"""So many layers are named of those that have one trouble."""


VALUE_WORDS = {
    "output_rms": "output",
    "input_grad_rms": "gradient",
    "update_rms": "update",
    "total_update_rms": "total update",
}
"""What the values are called that the rules are about."""


REMEDIES = {
    "non-finite": "jax.config.update('jax_debug_nans', True) names the operation",
    "out of range": "a factor is hardly a float32; scale the loss or the inputs by a "
    "number that brings it nearer to 1",
    "zero output": "draw other weights, ei.looks_linear(model, params, input_fn), if "
    "the layer is to do something",
    "zero": "no gradient gets there; if that is meant, leave it out, ei.tune(..., "
    "exclude=...)",
    "missed": "measure with the inputs and targets of tune; ei.tune(..., draws=8) is "
    "for batches that differ",
    "off": "measure with the inputs, loss and optimizer of tune; ei.tune(..., draws=8) "
    "is for batches that differ",
    "left out": "it has no factors; hold it still, or give it a learning rate of its "
    "own",
    "unreached": "no input got there; ei.measure(..., draws=8) tries more",
}
"""What to do about layers by their trouble, which is their flag but for "zero output",
"off" and "left out"; in the order in which they are told."""


HARMLESS = ("left out", "unreached")
"""Troubles of layers of which nothing is asked."""


GRADIENT_WORDS = {
    ("exact", "unit"): "gradients 1 and exact",
    ("exact",): "gradients exact, in each region 1 on average",
    ("unit",): "gradients 1",
    ("plain",): "gradients as they are",
}


UPDATE_WORDS = {
    "total": "updates equal, the largest total update 1",
    "local": "updates 1, each by itself",
}


class Judgement(NamedTuple):
    """The rules that hold, and what those in force make of each row."""

    held: dict[str, tuple[str, ...]]
    """The rules that hold, by pillar."""
    tolerance: float
    """How far from 1 values may be for a rule to hold."""
    gradients: tuple[str, ...]
    """The rules in force: "exact", "unit", both, or "plain", as they are."""
    update: str
    """The rule in force: "total" or "local"."""
    due: dict[str, np.ndarray]
    """The values that the rules ask for, by column; NaN where nothing is asked."""
    distances: dict[str, np.ndarray]
    """How far from them values are, |log2|; infinite for zeros and what is not finite,
    NaN where nothing is asked."""

    def by_row(self) -> np.ndarray:
        """How far each row is off, in multiples of what is tolerated, but for the total
        update, in which all rows are equally far off; 0 where nothing is asked."""
        names = [name for name in self.distances if name != "total_update_rms"]
        own = [self.distances[name] / OFF_OCTAVES[name] for name in names]
        return np.nan_to_num(own, posinf=np.inf).max(0)

    def worst_rows(self, values: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Per column the row that is farthest off; no columns without any."""
        asked = {n: d for n, d in self.distances.items() if not np.isnan(d).all()}
        worst = {name: int(np.nanargmax(each)) for name, each in asked.items()}
        if "total_update_rms" in worst:
            total = values["total_update_rms"]
            largest = np.where(np.isnan(total), np.inf, total)
            worst["total_update_rms"] = int(np.argmax(largest))
        return worst


def largest_distance(distances: Mapping[str, np.ndarray]) -> float:
    """The largest distance of all, in octaves."""
    return float(np.nan_to_num(list(distances.values()), posinf=np.inf).max(initial=0))


def summary_lines(
    judgement: Judgement,
    rows: Sequence[Mapping[str, Any]],
    *,
    tune: str,
    distinct: str,
) -> list[str]:
    """The verdict, the worst layers by trouble, and whether inputs stay distinct.

    Args:
        judgement: of the rows.
        rows: of a measurement.
        tune: the call that tunes.
        distinct: what becomes of differences between inputs, if it is bad.
    """
    columns = _columns(rows)
    paths = [row["path"] for row in rows]
    tuned = any(np.any(columns[name] != 1) for name in FACTOR_COLUMNS)
    troubles = _troubles(judgement, columns, [row["flag"] for row in rows])
    idle = set().union(*(troubles[trouble] for trouble in HARMLESS))
    off = set().union(*troubles.values()) - idle
    asked, link = len(paths) - len(idle), "and"
    if not off and asked:
        on_target = bool(np.any(columns["output_target"] != 1))
        lines, link = [_ok_line(judgement, asked, on_target)], "but"
    elif tuned or not asked or troubles["non-finite"]:
        lines = [f"OFF: {len(off)} of {asked} layer{'s' * (asked != 1)}"]
    else:
        lines = [_untuned_line(judgement, columns, paths, tune)]
        troubles |= {"missed": {}, "off": {}}  # that is what tuning mends
    largest = np.nan_to_num(columns["total_update_rms"], posinf=np.inf).max(initial=0)
    for trouble, found in troubles.items():
        named = [f"{paths[row]}{seen and f' ({seen})'}" for row, seen in found.items()]
        lines += [_trouble_line(trouble, named)] if named else []
        if trouble == "left out" and named and tuned and largest > 2**0.5:
            lines[-1] += f"; with its steps outputs move by {format_number(largest)}"
    return lines + ([f"{link} {_distinct_line(distinct)}"] if distinct else [])


def _ok_line(judgement: Judgement, layers: int, on_target: bool) -> str:
    """That all is well, and how well."""
    largest = largest_distance(judgement.distances)
    percent = max(1, math.ceil(100 * (2**largest - 1)))
    asked = [name for name, due in judgement.due.items() if not np.isnan(due).all()]
    exact = "exact" in judgement.gradients and "input_grad_rms" not in asked
    equal = judgement.update == "total" and "total_update_rms" not in asked
    words = [
        "outputs on target" if on_target else "outputs 1",
        "gradients exact" if exact else GRADIENT_WORDS[judgement.gradients],
        "updates equal" if equal else UPDATE_WORDS[judgement.update],
    ]
    which = {1: "the one layer", 2: "both layers"}.get(layers, f"all {layers} layers")
    return f"OK: {which} within {percent}%: " + ", ".join(words)


def _untuned_line(
    judgement: Judgement,
    columns: Mapping[str, np.ndarray],
    paths: Sequence[str],
    tune: str,
) -> str:
    """The values that are farthest from 1 in a network without factors."""
    words = []
    for name in ("output_rms", "input_grad_rms", "total_update_rms"):
        with np.errstate(divide="ignore", invalid="ignore"):
            octaves = np.abs(np.log2(columns[name]))
        usable = np.isfinite(octaves) & ~np.isnan(judgement.distances[name])
        if not usable.any():
            continue
        row = int(np.argmax(np.where(usable, octaves, -1)))
        if name == "total_update_rms":
            row = judgement.worst_rows(columns)[name]
        words.append(f"{_value_words(name, columns[name][row])} at {paths[row]}")
    return f"NOT TUNED: {', '.join(words)}, where 1 is due; {tune}"


def layers_off(
    judgement: Judgement, rows: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The rows that the verdict calls off, the worst first, and their trouble.

    Args:
        judgement: of the rows.
        rows: of a measurement.
    """
    columns, name = _columns(rows), "total_update_rms"
    troubles = _troubles(judgement, columns, [row["flag"] for row in rows])
    far, worst = judgement.by_row(), judgement.worst_rows(columns).get(name, -1)
    if worst >= 0:
        total = judgement.distances[name][worst] / OFF_OCTAVES[name]
        far[worst] = max(far[worst], total)
    told: dict[int, str] = {}
    for trouble in [name for name in REMEDIES if name not in HARMLESS]:
        for row, seen in troubles[trouble].items():
            told.setdefault(row, f"{trouble}{seen and f': {seen}'}")
    return [
        {"path": rows[row]["path"], "trouble": told[row]}
        | {name: rows[row][name] for name in VALUE_WORDS}
        for row in sorted(told, key=lambda row: (-far[row], row))
    ]


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """What the verdict reads of rows, float64."""
    names = (*VALUE_WORDS, "output_target", *FACTOR_COLUMNS)
    return {n: np.array([row[n] for row in rows], np.float64) for n in names}


def _troubles(
    judgement: Judgement, columns: Mapping[str, np.ndarray], flags: Sequence[str]
) -> dict[str, dict[int, str]]:
    """By trouble the rows that have it, the worst first, and what is to be seen."""
    far, name = judgement.by_row(), "total_update_rms"
    found: dict[str, dict[int, str]] = {trouble: {} for trouble in REMEDIES}
    row = judgement.worst_rows(columns).get(name, -1)
    if row >= 0 and judgement.distances[name][row] > OFF_OCTAVES[name]:
        seen = _value_words(name, columns[name][row])
        if flags[row] in ("ok", "missed"):
            found["off"][row] = f"{seen}, not 1"
    for row in map(int, np.argsort(-far, kind="stable")):
        trouble = flags[row]
        if trouble == "zero" and columns["output_rms"][row] == 0:
            trouble = "zero output"
        elif trouble == "ok" and np.isnan(judgement.due["output_rms"][row]):
            trouble = "left out"
        elif trouble == "ok":
            trouble = "off" if far[row] > 1 else ""
        if trouble:
            seen = _seen(judgement, columns, row, trouble)
            found[trouble].setdefault(row, seen)
    return found


def _seen(
    judgement: Judgement, columns: Mapping[str, np.ndarray], row: int, trouble: str
) -> str:
    """The value of a row that is farthest off, or that which its trouble is about, and
    what is due; nothing where none is off."""
    if trouble == "left out":
        return _value_words("update_rms", columns["update_rms"][row])
    distances = {n: d[row] for n, d in judgement.distances.items()}
    names = [n for n in distances if n != "total_update_rms"]
    names = ["output_rms"] if trouble == "missed" else names
    names = [name for name in names if distances[name] > OFF_OCTAVES[name]]
    if not names:
        return ""
    name = max(names, key=lambda name: distances[name] / OFF_OCTAVES[name])
    words = _value_words(name, columns[name][row])
    if np.isinf(distances[name]):
        return words
    return f"{words}, not {judgement.due[name][row]:.3g}"


def _value_words(name: str, value: float) -> str:
    """A value by its word: "output 1.47"."""
    return f"{VALUE_WORDS[name]} {format_number(value) or 'nan'}"


def _trouble_line(trouble: str, places: Sequence[str]) -> str:
    """The worst layers that have one trouble, and what to do about them."""
    named = ", ".join(places[:WORST])
    more = f" and {len(places) - WORST} more" if len(places) > WORST else ""
    return f"  {trouble}: {named}{more}: {REMEDIES[trouble]}"


def _distinct_line(distinct: str) -> str:
    """What becomes of differences between inputs, and what mends that."""
    return (
        f"{distinct}: if the weights are not from there yet, params, start = "
        "ei.looks_linear(model, params, input_fn, with_report=True) draws some that "
        "keep them distinct as far as it can; then tune with targets=start.targets()"
    )
