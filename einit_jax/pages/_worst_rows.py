"""Which units are farthest from what is aimed at, by the rows of a measurement."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

AIMED_COLUMNS = ("output_rms", "input_grad_rms", "update_rms")
"""Columns that tell the rows of a measurement."""
WORST_COLUMNS = ("path", "octaves", *AIMED_COLUMNS, "total_update_rms", "flag")
WORST_COUNT = 5
"""So many rows are shown."""
EXACT = 0.9999
"""Gradients whose cosine to the true ones is above this are taken for exact."""
WORTH_SHOWING = 0.5
"""Rows within so many octaves of every aim are not worth a table."""


def farthest_from_aims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The worst rows, the very worst one first; none where all are near.

    Outputs are to have the rms of their target, or 1. Input gradients, too, are to have
    an rms of 1, but where they are exact only on (geometric) average over a region.
    Updates are to be equal: how large all are is a rule of `tune`, and no unit's fault.
    """
    octaves = _octaves_off(rows)
    order = np.argsort(-octaves, kind="stable")[:WORST_COUNT]
    return [
        {"path": rows[i]["path"], "octaves": float(octaves[i])}
        | {n: rows[i][n] for n in WORST_COLUMNS if n in rows[i] and n != "path"}
        for i in order
        if octaves[i] > WORTH_SHOWING
    ]


def is_measured(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows are those of a measurement."""
    return bool(rows) and all(name in row for row in rows for name in AIMED_COLUMNS)


def _octaves_off(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """How far each row is from the aim that it misses by most; 0 where it has none."""
    if not is_measured(rows):
        return np.empty(0)
    columns = {n: np.array([row[n] for row in rows], float) for n in AIMED_COLUMNS}
    columns["output_rms"] /= [row.get("output_target", 1.0) for row in rows]
    updates = columns["update_rms"]
    usable = updates[np.isfinite(updates) & (updates > 0)]
    if usable.size:
        columns["update_rms"] = updates / np.median(usable)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = {name: np.log2(column) for name, column in columns.items()}
    if all(not row.get("cosine", 0.0) <= EXACT for row in rows):
        logs["input_grad_rms"] = _region_means(logs["input_grad_rms"], rows)
    distances = np.abs(list(logs.values()))
    distances[np.isnan(distances)] = 0.0  # not defined: no aim is missed
    reached = np.array([row.get("flag") != "unreached" for row in rows])
    return np.where(reached, distances.max(0), 0.0)


def _region_means(logs: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The mean over the rows of each region, of those that are defined."""
    regions = np.array([row.get("region", i) for i, row in enumerate(rows)])
    defined = ~np.isnan(logs)
    means = np.full(len(rows), np.nan)
    for region in np.unique(regions[defined]):
        inside = defined & (regions == region)
        means[inside] = logs[inside].mean()
    return means
