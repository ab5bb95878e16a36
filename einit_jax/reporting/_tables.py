"""How rows of numbers read: a table as text, and flat names for loggers."""

import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

SHOWN = 64
"""Of a longer table only so many rows are printed, the first and the last ones."""


WORD_WIDTH = 40
"""Of a column of words."""


def format_table(
    left: Sequence[str],
    right: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Iterable[str] = (),
) -> str:
    """Columns of words, then columns of numbers, and lines below them."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in left:
        table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=WORD_WIDTH)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    gap = len(rows) - SHOWN
    for i, row in enumerate(rows):
        if gap > 0 and SHOWN // 2 <= i < SHOWN // 2 + gap:
            if i == SHOWN // 2:
                table.add_row(f"... {gap} more in rows()")
            continue
        table.add_row(shortened(row[0], WORD_WIDTH), *row[1:])
    stream = io.StringIO()
    # in a notebook rich would show the table there, and leave no text here
    console = Console(file=stream, width=160, color_system=None, force_jupyter=False)
    console.print(table)
    for line in notes:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    return stream.getvalue().rstrip()


def number(value: float) -> str:
    """Three digits; nothing where there is no number."""
    return "" if np.isnan(value) else f"{value:.3g}"


def flat_scalars(
    rows: Iterable[Mapping[str, Any]], names: Iterable[str]
) -> dict[str, float]:
    """`{"unit/name": value}` of rows with a path, values that are no numbers left out.

    A layer's number is one more part of the path: `blocks/Dense_0[3]` gives
    `blocks/Dense_0/3/...`, which writers of logs take as it is.
    """
    names = tuple(names)
    return {
        scalar_name(row["path"], name): float(row[name])
        for row in rows
        for name in names
        if not np.isnan(row[name])
    }


def difference(expected: Iterable[str], found: Iterable[str]) -> str:
    """How the units found differ from those expected; nothing where only order does."""
    expected, found = list(dict.fromkeys(expected)), list(dict.fromkeys(found))
    lacking = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    return "; ".join(
        f"{what} {', '.join(names[:6])}"
        for what, names in (("it lacks", lacking), ("it alone has", extra))
        if names
    )


def scalar_name(path: str, name: str) -> str:
    """The flat name of a number of a unit."""
    unit, _, layers = path.partition("[")
    parts = [*unit.split("/"), *layers.rstrip("]").split(","), name]
    return "/".join(part for part in parts if part not in ("", "."))


def shortened(name: str, most: int) -> str:
    """A long path with long parts cut short, each with its number: all levels stay.

    Where that is not enough, its end, which tells more than its beginning.
    """
    for keep in range(12, 3, -1):
        if len(name) <= most:
            return name
        stems = (
            re.fullmatch(r"(.*?)(_?\d*(?:\[[\d,]*\])?)", part)
            for part in name.split("/")
        )
        name = "/".join(
            (stem if len(stem) <= keep else stem[: keep - 1] + "…") + number
            for stem, number in (found.groups() for found in stems if found)
        )
    return name if len(name) <= most else "…" + name[1 - most :]
