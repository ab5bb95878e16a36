"""The table of the three pillars: its columns, which of them matter, and its notes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._verdict import FACTOR_COLUMNS

Rows = Sequence[Mapping[str, Any]]
"""The rows of a measurement: plain values by column."""


RULE_NAMES = {"gradients": ("exact", "unit"), "update": ("local", "total")}


EPSILON_SHARE = 0.1
"""Up to this share an optimizer's epsilon may shrink steps without a word."""


WORD_COLUMNS = ("path", "kind", "shape", "flag")


PILLAR_HEADS = {
    "path": "layer", "kind": "kind", "shape": "shape", "calls": "calls",
    "output_rms": "output", "output_target": "target", "output_mean": "mean",
    "output_spread": "spread", "input_grad_rms": "gradient", "update_rms": "update",
    "total_update_rms": "total update", "amplification": "amplification",
    **{name: name.removesuffix("_factor") + " factor" for name in FACTOR_COLUMNS},
    "cosine": "cosine", "region": "region", "potential": "potential",
    "epsilon_share": "epsilon share", "param_rms": "parameter rms",
    "param_grad_rms": "parameter gradient", "output_deviation": "output deviation",
    "input_grad_deviation": "gradient deviation", "update_deviation":
    "update deviation", "nonfinite": "non-finite elements", "flag": "flag",
}  # fmt: skip
"""What stands above each column of rows, in the table's order."""


DEVIATIONS = {
    "output": "output_deviation",
    "gradient": "input_grad_deviation",
    "update": "update_deviation",
}


WIDEST_SHAPE = 16
"""Shapes of several outputs that are wider have a line each."""


def ranked_columns(rows: Rows, update: str) -> list[Sequence[str]]:
    """Columns by rank, in groups of which a table has all or none.

    Factors, targets and numbers of calls are left out where all are 1; of the two
    updates the one that the rule, "total" or "local", is about comes first.
    """
    usual = lambda name: all(row[name] == 1 for row in rows)
    factors = [name for name in FACTOR_COLUMNS if not usual(name)]
    first, second = "total_update_rms", "update_rms"
    if update == "local":
        first, second = second, first
    groups = [["output_rms", "input_grad_rms", first, "flag", "shape", "amplification"]]
    groups += [["output_target"], [second], ["output_spread"]]
    groups += [factors, ["kind"], ["cosine"], ["region", "potential"], ["output_mean"]]
    groups += [["calls"]]
    left_out = {name for name in ("output_target", "calls") if usual(name)}
    return [group for group in groups if not left_out & set(group)]


def pillar_cell(name: str, text: str) -> str:
    """The text of a cell: long shapes of several outputs have a line each."""
    wide = name == "shape" and len(text) > WIDEST_SHAPE
    return text.replace(" ", "\n") if wide else text


def column_of(rows: Rows, name: str) -> np.ndarray:
    """A column of numbers, float64."""
    return np.array([row[name] for row in rows], np.float64)


def epsilon_note(rows: Rows) -> list[str]:
    """Where the optimizer's epsilon is not small beside a layer's gradients."""
    shares = np.nan_to_num(column_of(rows, "epsilon_share"))
    over = np.flatnonzero(shares > EPSILON_SHARE)
    if not over.size:
        return []
    row = over[int(np.argmax(shares[over]))]
    return [
        f"epsilon of the optimizer: it takes {shares[row]:.0%} of the step of "
        f"{rows[row]['path']}, and more than {EPSILON_SHARE:.0%} in {over.size} "
        "layer(s), whose gradients are not large beside it; pass a smaller one "
        "(eps=1e-15), or gradients='exact' to tune"
    ]


def total_note(rows: Rows, by: str) -> str:
    """The largest total update, by whose step, and where.

    Where factors of an optimizer meet a step of SGD, what to pass.
    """
    total = column_of(rows, "total_update_rms")
    row = int(np.argmax(np.nan_to_num(total)))
    foreign = by == "SGD" and bool(np.any(column_of(rows, "update_factor") != 1))
    return (
        f"largest total update, by {by} at learning rate 1: {total[row]:.3g} at "
        f"{rows[row]['path']}"
        + ("; the scales are for an optimizer: measure(..., optimizer=...)" * foreign)
    )


def rules_note(held: Mapping[str, Sequence[str]], tolerance: float) -> str:
    """The rules that hold, by pillar, and how well."""
    none = {p: "neither " + " nor ".join(names) for p, names in RULE_NAMES.items()}
    rules = [f"{p}: {' and '.join(names) or none[p]}" for p, names in held.items()]
    return f"rules that hold within {tolerance:.0%}: " + "; ".join(rules)


def amplification_note(rows: Rows, of_outputs: float, verdict: str) -> list[str]:
    """The largest amplification of a row, that of the outputs, and the verdict, in one
    sentence; none where it is not defined in any row."""
    amplification = column_of(rows, "amplification")
    if np.isnan(amplification).all():
        return []
    row = int(np.nanargmax(amplification))
    note = f"amplification: {amplification[row]:.3g} at {rows[row]['path']}"
    note += "" if np.isnan(of_outputs) else f"; of the outputs {of_outputs:.3g}"
    return [note + (f": {verdict}" if verdict else "")]


def raw_notes(
    raw: Sequence[str], added: Sequence[str], loose: Sequence[str], moves: float
) -> list[str]:
    """Which raw parameters have factors; what the total update leaves out, why, and how
    far that moves outputs."""
    notes = (
        ["raw parameters with factors of their own: " + ", ".join(raw)] if raw else []
    )
    left = [f"{name} (only added)" for name in added]
    left += [f"{name} (raw parameter without a factor)" for name in loose]
    head = f"not in the total update, and moving outputs by up to {moves:.3g}: "
    return notes + ([head + ", ".join(left)] if left else [])


def probes_note(probed: Sequence[str]) -> list[str]:
    """The arrays of zeros that were replaced while measuring."""
    return ["zeros probed: " + ", ".join(probed)] if probed else []


def draws_note(rows: Rows, draws: int) -> list[str]:
    """The largest deviation over draws, if there are several, of each pillar that has
    any."""
    if draws == 1:
        return []
    columns = {name: column_of(rows, column) for name, column in DEVIATIONS.items()}
    largest = [
        f"{name} {np.nanmax(column):.2g}"
        for name, column in columns.items()
        if not np.isnan(column).all()
    ]
    return ["largest spread over draws, of ln rms: " + "; ".join(largest)]
