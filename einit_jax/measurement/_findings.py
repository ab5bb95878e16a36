"""What a whole table shows: worst rows, rules that hold, what becomes of inputs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..reporting import format_number
from ..units import UnitRow

RULE_NAMES = {"gradients": ("exact", "unit"), "update": ("local", "total")}


EXACT_COSINE = 0.9999
"""Gradients of a larger cosine to the true ones count as exact."""


TOLERANCE, SEVERAL_CALLS_TOLERANCE = 0.01, 0.1
"""How far from 1 a value may be; with units that are called several times."""


VERDICT = 3.0
"""No verdict is given up to this amplification of the outputs: orthonormal weights of
networks with skips, which train, have 1.3 to 2.8; 50 plain layers of tanh, which hardly
do, have 36, and of ReLU 3.5 (digits, width 64)."""


DROWNED = 16
"""By how much the share of differences in the signal falls where they are drowned by
what all inputs have in common, though they grow as the signal does (sigmoids)."""


COLLAPSED, TORN = "inputs collapse", "inputs are torn apart"


def farthest_rows(
    pillars: Mapping[str, np.ndarray],
    defined: Mapping[str, np.ndarray],
    paths: Sequence[str],
) -> dict[str, tuple[str, float]]:
    """Per pillar the path of the row with the largest |log2 rms|, and that number.

    Zeros and values that are not finite are infinitely far. Pillars that are defined
    in no row are left out.
    """
    farthest = {}
    for name, values in pillars.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            distances = np.abs(np.log2(values))
        distances[np.isnan(distances)] = np.inf
        distances = np.where(defined[name], distances, -1.0)
        i = int(np.argmax(distances))
        if distances[i] >= 0:
            farthest[name] = (paths[i], float(distances[i]))
    return farthest


def verdict_on(
    amplification: np.ndarray, spread: np.ndarray, *, of_outputs: float
) -> str:
    """What becomes of differences between inputs; see `Measurement.verdict`.

    Args:
        amplification: that of each row; NaN where it has none.
        spread: `output_spread` of each row.
        of_outputs: the amplification of the model's outputs.
    """
    if np.isnan(amplification).all():
        return ""
    row = int(np.nanargmax(amplification))
    largest = amplification[row] if np.isnan(of_outputs) else of_outputs
    start = next((share for share in spread if share > 0), 0.0)
    if 0 < spread[-1] < start / DROWNED:
        return COLLAPSED
    if largest <= VERDICT:
        return ""
    if spread[row] == 0:
        return COLLAPSED
    lost = np.log2(start) - np.log2(spread[row])
    return COLLAPSED if lost > np.log2(largest) / 2 else TORN


def amplification_note(
    amplification: Any, of_outputs: float, paths: Sequence[str], verdict: str
) -> list[str]:
    """The largest amplification of a row, that of the outputs, and the verdict, in one
    sentence; none where it is not defined in any row."""
    amplification = np.asarray(amplification)
    if np.isnan(amplification).all():
        return []
    row = int(np.nanargmax(amplification))
    note = f"amplification: {amplification[row]:.3g} at {paths[row]}"
    note += "" if np.isnan(of_outputs) else f"; of the outputs {of_outputs:.3g}"
    return [note + (f": {verdict}" if verdict else "")]


EPSILON_SHARE = 0.1
"""Up to this share an optimizer's epsilon may shrink steps without a word."""


def epsilon_note(shares: Any, paths: Sequence[str]) -> list[str]:
    """Where the optimizer's epsilon is not small beside a unit's gradients."""
    shares = np.nan_to_num(np.asarray(shares))
    over = np.flatnonzero(shares > EPSILON_SHARE)
    if not over.size:
        return []
    row = over[int(np.argmax(shares[over]))]
    return [
        f"epsilon of the optimizer: it takes {shares[row]:.0%} of the step of "
        f"{paths[row]}, and more than {EPSILON_SHARE:.0%} in {over.size} row(s), whose "
        "gradients are not large beside it; pass a smaller one (eps=1e-15), or "
        "gradients='exact' to tune"
    ]


def deviation_note(deviations: Mapping[str, np.ndarray]) -> str:
    """The largest deviation over draws of each pillar that has any."""
    largest = [
        f"{name.removesuffix('_deviation')} {np.nanmax(column):.2g}"
        for name, column in deviations.items()
        if not np.isnan(column).all()
    ]
    return "largest spread over draws, of ln rms: " + "; ".join(largest)


def rules_note(held: Mapping[str, Sequence[str]]) -> str:
    """The rules that hold, by pillar."""
    none = {p: "neither " + " nor ".join(names) for p, names in RULE_NAMES.items()}
    rules = [f"{p}: {' and '.join(names) or none[p]}" for p, names in held.items()]
    return "rules that hold: " + "; ".join(rules)


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


def row_cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """A row of the table as text: its unit, then the columns of these names."""
    row = {**row, "flag": "" if row["flag"] == "ok" else row["flag"]}
    text = lambda x: format_number(x) if isinstance(x, float) else str(x)
    named = [row["path"], row["kind"], row["shape"]]
    return named + [text(row[name]) for name in names]


def raw_notes(
    raw: Sequence[str], added: Sequence[str], loose: Sequence[str], moves: float
) -> list[str]:
    """Which raw parameters have factors; what the total update leaves out, why, and how
    far that moves outputs."""
    notes = ["raw, with factors of their own: " + ", ".join(raw)] if raw else []
    left = [f"{name} (only added)" for name in added]
    left += [f"{name} (raw, without a factor)" for name in loose]
    head = f"not in the total update, and moving outputs by up to {moves:.3g}: "
    return notes + ([head + ", ".join(left)] if left else [])
