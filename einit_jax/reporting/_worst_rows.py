"""Which units are farthest from what is aimed at, by the rows of a measurement."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

AIMED_COLUMNS = ("output_rms", "input_grad_rms", "update_rms")
"""Columns that tell the rows of a measurement."""
WORST_COLUMNS = ("path", "octaves", *AIMED_COLUMNS, "total_update_rms", "flag")
WORST_COUNT = 5
"""So many rows are shown."""
WORTH_SHOWING = 0.5
"""Rows within so many octaves of every aim are not worth a table."""


def farthest_from_aims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The worst rows, the very worst one first; none where all are near.

    Outputs and input gradients are to have an rms of 1, updates that of each other: how
    large all of them are is a rule of `tune`, and no fault of a unit.
    """
    octaves = _octaves_off(rows)
    order = np.argsort(-octaves, kind="stable")[:WORST_COUNT]
    return [
        {"path": rows[i]["path"], "octaves": float(octaves[i])}
        | {n: rows[i][n] for n in WORST_COLUMNS if n in rows[i] and n != "path"}
        for i in order
        if octaves[i] > WORTH_SHOWING
    ]


def told_from_rows(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One sentence on a measurement; none on something else."""
    octaves = _octaves_off(rows)
    if not octaves.size:
        return []
    near = int((octaves <= 1).sum())
    sentence = f"{near} of {len(octaves)} rows are within a factor of 2 of every aim"
    worst = int(octaves.argmax())
    if octaves[worst] <= 1:
        return [sentence]
    named = f"farthest is {rows[worst]['path']}, "
    if np.isinf(octaves[worst]):
        return [f"{sentence}; {named}which has a zero or what is not finite"]
    return [f"{sentence}; {named}by a factor of {2 ** octaves[worst]:.3g}"]


def _octaves_off(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """How far each row is from the aim that it misses by most; 0 where it has none."""
    if not rows or not all(name in row for row in rows for name in AIMED_COLUMNS):
        return np.empty(0)
    columns = {
        name: np.array([row[name] for row in rows], float) for name in AIMED_COLUMNS
    }
    updates = columns["update_rms"]
    usable = updates[np.isfinite(updates) & (updates > 0)]
    if usable.size:
        columns["update_rms"] = updates / np.median(usable)
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = [np.abs(np.log2(column)) for column in columns.values()]
    reached = np.array([row.get("flag") != "unreached" for row in rows])
    undefined = [np.isnan(column) for column in columns.values()]
    distances = np.where(undefined, 0.0, distances)
    return np.where(reached, distances.max(0), 0.0)
