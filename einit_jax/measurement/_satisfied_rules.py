"""Which rules of pillars 2 and 3 the factors in force satisfy."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..units import UnitRow

RULE_NAMES = {"gradients": ("exact", "unit"), "update": ("local", "total")}


EXACT_COSINE = 0.9999
"""Gradients of a larger cosine to the true ones count as exact."""


TOLERANCE, SEVERAL_CALLS_TOLERANCE = 0.01, 0.1
"""How far from 1 a value may be; with units that are called several times."""


def satisfied_rules(
    columns: Mapping[str, np.ndarray],
    usable: np.ndarray,
    rows: Sequence[UnitRow],
    *,
    counted: np.ndarray,
) -> dict[str, tuple[str, ...]]:
    """The rules that hold in all usable rows, at least one; see `Measurement.modes`.

    Args:
        columns: `cosine`, `input_grad_rms`, `update_rms` and `total_update_rms`,
            float64.
        usable: whether a row counts.
        rows: what is static of each row.
        counted: whether a row's updates count.
    """
    several_calls = any(row.calls > 1 for row in rows)
    tolerance = SEVERAL_CALLS_TOLERANCE if several_calls else TOLERANCE
    close = lambda x, which: bool(np.all(np.abs(x[which] - 1) <= tolerance))
    cosine, input_grad = columns["cosine"], columns["input_grad_rms"]
    own = _shared_updates(columns["update_rms"], rows)
    total = columns["total_update_rms"]
    largest = np.max(total, initial=0, where=np.isfinite(total))
    typical = np.median(own[counted]) if counted.any() else 1.0
    holds = {
        "exact": bool(np.all(cosine[usable & ~np.isnan(cosine)] > EXACT_COSINE)),
        "unit": close(np.where(np.isnan(input_grad), 1, input_grad), usable),
        "local": close(own, counted),
        "total": close(own / typical, counted) and abs(float(largest) - 1) <= tolerance,
    }
    return {
        pillar: tuple(name for name in names if holds[name])
        for pillar, names in RULE_NAMES.items()
    }


def _shared_updates(update_rms: np.ndarray, rows: Sequence[UnitRow]) -> np.ndarray:
    """The update of each row, over all rows that share its parameters."""
    squares = np.square(update_rms)
    inside = np.array([row.inside for row in rows], int)
    total = np.bincount(inside, np.where(np.isfinite(squares), squares, 0))
    count = np.bincount(inside, squares > 0)
    return np.sqrt(total / np.maximum(count, 1))[inside]
