"""How a table is judged: the rules in force, those that hold, and what is off."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..reporting import RULE_NAMES, Judgement, largest_distance
from ..units import UnitRow

FLAGS = ("ok", "zero", "non-finite", "unreached", "missed", "out of range")


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


def judged(
    columns: Mapping[str, np.ndarray],
    rows: Sequence[UnitRow],
    *,
    flags: np.ndarray,
    given: np.ndarray,
    factors: np.ndarray,
    loss_region: int,
) -> Judgement:
    """The rules that hold, and what those in force make of each row.

    Args:
        columns: the values that rules are about, `cosine` and `output_target`, float64.
        rows: what is static of each row.
        flags: of each row, as places in `FLAGS`; nothing is asked of what is unreached.
        given: whether a row's updates are given.
        factors: the four of each row, `float64[4, rows]`. Where there are any, nothing
            is asked of the output and the update of a row without: it was left out.
        loss_region: the region in which gradients are given.
    """
    reached = flags != FLAGS.index("unreached")
    tuned = bool(np.any(factors != 1))
    left_out = np.all(factors == 1, 0) & reached & tuned
    floats = np.array([row.floats for row in rows]) & reached
    region = np.array([row.region for row in rows])
    if tuned and np.all(factors[1:3] == 1):
        gradients, gradients_due = ("plain",), np.full(len(rows), np.nan)
    else:
        by_update = np.isin(region, [loss_region, *(row.inside for row in rows)])
        free = floats & ~by_update & ~left_out.any()
        asked = {"floats": floats, "free": free, "region": region}
        gradients, gradients_due = _gradients_due(columns, rows, **asked)
    counted = reached & ~given & ~left_out
    own = _shared_updates(columns["update_rms"], rows)
    rules = {"local": {"update_rms": _own_due(columns, own, counted)}}
    rules["total"] = _total_due(columns, own, counted)
    if left_out.any():  # the total update has their steps, too
        rules["total"]["total_update_rms"] = np.full(len(rows), np.nan)
    far = {n: largest_distance(_distances(columns, due)) for n, due in rules.items()}
    nearer = tuned and 2 * far["local"] < far["total"]  # far nearer, if it is chosen
    update = "local" if nearer else "total"
    due = {
        "output_rms": np.where(reached & ~left_out, columns["output_target"], np.nan),
        "input_grad_rms": gradients_due,
        **rules[update],
    }
    held = _rules_that_hold(columns, flags, rows, given=given)
    distances = _distances(columns, due)
    return Judgement(held, _tolerance(rows), gradients, update, due, distances)


def _gradients_due(
    columns: Mapping[str, np.ndarray],
    rows: Sequence[UnitRow],
    *,
    floats: np.ndarray,
    free: np.ndarray,
    region: np.ndarray,
) -> tuple[tuple[str, ...], np.ndarray]:
    """The rules about gradients in force, and what they ask for: "exact" where
    gradients are exact, and "unit" where they are not.

    Args:
        columns, rows: as in `judged`.
        floats: which rows have input gradients.
        free: those whose size an exact rule sets: not in the loss's region, nor in one
            in which a unit's parameters are used outside of it, nor tied to others by
            units without factors.
        region: of each row's input.
    """
    cosine, gradients = columns["cosine"], columns["input_grad_rms"]
    if not np.all(cosine[~np.isnan(cosine)] > EXACT_COSINE):
        return ("unit",), np.where(floats, 1.0, np.nan)
    near_one = np.all(np.abs(gradients[floats] - 1) <= _tolerance(rows))
    rules = ("exact", "unit") if near_one else ("exact",)
    due = np.where(free, _true_shares(gradients, floats, region), np.nan)
    return rules, due


def _own_due(
    columns: Mapping[str, np.ndarray], own: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    """Updates whose mean square over rows that share parameters is 1."""
    update = columns["update_rms"]
    usable = (own > 0) & np.isfinite(update)
    shares = np.where(usable, update / np.where(usable, own, 1), 1)
    return np.where(counted, shares, np.nan)


def _total_due(
    columns: Mapping[str, np.ndarray], own: np.ndarray, counted: np.ndarray
) -> dict[str, np.ndarray]:
    """Own updates like the typical one, and the largest total update 1."""
    usable = own[counted & np.isfinite(own) & (own > 0)]
    typical = np.median(usable) if usable.size else 1.0
    total = columns["total_update_rms"]
    moved = np.isfinite(total) & (total > 0)
    largest = total[moved].max() if moved.any() else 1.0
    broken = ~np.isfinite(total) & counted
    due = np.where(moved, total / largest, np.where(broken, 1.0, np.nan))
    return {
        "update_rms": _own_due(columns, own, counted) * typical,
        "total_update_rms": due,
    }


def _true_shares(
    gradients: np.ndarray, floats: np.ndarray, region: np.ndarray
) -> np.ndarray:
    """Gradients over their geometric mean in each region; 1 where they have none."""
    usable = floats & np.isfinite(gradients) & (gradients > 0)
    logs = np.log(np.where(usable, gradients, 1))
    count = np.bincount(region, usable)
    mean = np.bincount(region, logs * usable) / np.maximum(count, 1)
    shares = np.where(usable, np.exp(logs - mean[region]), 1)
    return np.where(floats, shares, np.nan)


def _distances(
    values: Mapping[str, np.ndarray], due: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    distances = {}
    for name, wanted in due.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            octaves = np.abs(np.log2(values[name] / wanted))
        octaves = np.where(np.isnan(octaves), np.inf, octaves)
        distances[name] = np.where(np.isnan(wanted), np.nan, octaves)
    return distances


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


def targets_found(
    rows: Sequence[UnitRow], sizes: np.ndarray
) -> dict[str, float | np.ndarray]:
    """The sizes of outputs by unit, as targets: an array where it has layers.

    What no factor changes is to be 1; see `Measurement.targets`.
    """
    usable = np.isfinite(sizes) & (sizes > 0)
    by_unit: dict[str, dict[tuple[int, ...], float]] = {}
    for row, size in zip(rows, np.where(usable, sizes, 1.0).tolist(), strict=True):
        by_unit.setdefault(row.unit, {})[row.layer] = size
    return {unit: _by_layer(own) for unit, own in by_unit.items()}


def _by_layer(sizes: Mapping[tuple[int, ...], float]) -> float | np.ndarray:
    """A number, or an array of one for each layer."""
    if () in sizes:
        return sizes[()]
    found = np.empty(np.max(list(sizes), axis=0) + 1)
    for layer, size in sizes.items():
        found[layer] = size
    return found


def _tolerance(rows: Sequence[UnitRow]) -> float:
    """How far from 1 values may be for a rule to hold."""
    several_calls = any(row.calls > 1 for row in rows)
    return SEVERAL_CALLS_TOLERANCE if several_calls else TOLERANCE


def _rules_that_hold(
    columns: Mapping[str, np.ndarray],
    flags: np.ndarray,
    rows: Sequence[UnitRow],
    *,
    given: np.ndarray,
) -> dict[str, tuple[str, ...]]:
    """The rules that hold in all rows that are usable; see `Measurement.modes`.

    Args:
        columns: `cosine`, `input_grad_rms`, `update_rms` and `total_update_rms`,
            float64.
        flags: of each row, as places in `FLAGS`.
        rows: what is static of each row.
        given: whether a row's updates are given, and do not count.
    """
    usable = np.isin(flags, [FLAGS.index("ok"), FLAGS.index("missed")])
    broken = [FLAGS.index("non-finite"), FLAGS.index("out of range")]
    if not usable.any() or np.isin(flags, broken).any():
        return dict.fromkeys(RULE_NAMES, ())
    counted = usable & ~given
    tolerance = _tolerance(rows)
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
