"""Rows of numbers as text: tables to read, and flat names for loggers."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

MAX_PRINTED_ROWS = 64
"""A longer table is printed without its middle."""


WORD_WIDTH = 40
"""The widest that a column of words may be, in characters."""


def format_table(
    word_columns: Sequence[str],
    number_columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Iterable[str] = (),
) -> str:
    """A table as text: columns of words, columns of numbers, and notes below them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in word_columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=WORD_WIDTH)
    for name in number_columns:
        table.add_column(name, justify="right", no_wrap=True)
    omitted = max(0, len(rows) - MAX_PRINTED_ROWS)
    head = MAX_PRINTED_ROWS // 2 if omitted else len(rows)
    for row in rows[:head]:
        table.add_row(shortened(row[0], WORD_WIDTH), *row[1:])
    if omitted:
        table.add_row(f"... {omitted} more in rows()")
    for row in rows[head + omitted :]:
        table.add_row(shortened(row[0], WORD_WIDTH), *row[1:])
    return _printed(table, notes)


def _printed(table: Table, notes: Iterable[str]) -> str:
    """What rich prints, without colours; brackets in names are no markup."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=160,
        color_system=None,
        force_jupyter=False,  # else a notebook shows the table, and no text is left
        markup=False,
        emoji=False,
    )
    console.print(table)
    for line in notes:
        console.print(line, soft_wrap=True, highlight=False)
    return stream.getvalue().rstrip()


def format_number(value: float) -> str:
    """Three digits; an empty text for NaN."""
    return "" if np.isnan(value) else f"{value:.3g}"


def flat_scalars(
    rows: Iterable[Mapping[str, Any]], names: Iterable[str]
) -> dict[str, float]:
    """`{"unit/name": value}` of rows with a path; NaNs are left out.

    The number of a layer becomes a part of the path: `blocks/Dense_0[3]` gives
    `blocks/Dense_0/3/...`, as writers of logs take it.
    """
    names = tuple(names)
    return {
        scalar_name(row["path"], name): float(row[name])
        for row in rows
        for name in names
        if not np.isnan(row[name])
    }


def scalar_name(path: str, name: str) -> str:
    """The flat name of one number of a unit."""
    unit, _, layers = path.partition("[")
    parts = [*unit.split("/"), *layers.rstrip("]").split(","), name]
    return "/".join(part for part in parts if part not in ("", "."))


def difference(expected: Iterable[str], found: Iterable[str]) -> str:
    """How two sets of names differ; an empty text where only their order does."""
    expected, found = list(dict.fromkeys(expected)), list(dict.fromkeys(found))
    lacking = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    return "; ".join(
        f"{what} {', '.join(names[:6])}"
        for what, names in (("it lacks", lacking), ("it alone has", extra))
        if names
    )


def shortened(name: str, max_length: int) -> str:
    """A long path with the words of its parts cut short; levels and numbers stay.

    A path that is still too long loses its beginning, which tells less than its end.
    """
    for word_length in range(12, 3, -1):
        if len(name) <= max_length:
            return name
        name = "/".join(_cut_word(part, word_length) for part in name.split("/"))
    return name if len(name) <= max_length else "…" + name[1 - max_length :]


def _cut_word(part: str, length: int) -> str:
    """One part of a path, its word cut to a length, its number whole."""
    match = re.fullmatch(r"(.*?)(_?\d*(?:\[[\d,]*\])?)", part, re.DOTALL)
    assert match is not None  # both groups may be empty
    word, index = match.groups()
    return (word if len(word) <= length else word[: length - 1] + "…") + index


def power_of_two(value: float) -> str:
    """A power of two as such, another number as it is."""
    exponent = np.log2(value)
    if exponent == np.round(exponent):
        return f"2^{exponent:.0f}"
    return format_number(value)
