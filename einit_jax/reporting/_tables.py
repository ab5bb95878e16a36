"""Rows of numbers as text: tables that fit a console, and flat names for loggers."""

import io
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

MAX_ROWS = 30
"""A longer table is printed without some of its rows."""


NAME_WIDTH, LEAST_NAME_WIDTH = 40, 12
"""The widest that a column of names may be, in characters, and the narrowest that a
name is cut to, so that numbers fit."""


GAP = 2
"""Blanks between columns."""


UNCUT = 100_000
"""The width of a console that cuts nothing."""


Columns = Mapping[str, Sequence[str]]
"""The text of a table by column; the first one has names."""


def format_table(
    columns: Columns,
    heads: Mapping[str, str],
    *,
    words: Iterable[str] = (),
    width: int,
    more: Sequence[int] = (),
) -> str:
    """A table as text. Names are cut to fit the width, and nothing else is.

    Args:
        columns: the text of each cell.
        heads: what stands above each column, at most a line for each word.
        words: the columns of words, which are flush left, besides the first.
        width: in characters; columns that are too many make the table wider.
        more: before which rows, and in place of how many, a line says that rows are
            left out: a number for each row, and one for the end.
    """
    first, *_ = columns
    left_out = left_out_lines(more)
    room = max(name_room(columns, heads, width), LEAST_NAME_WIDTH)
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0
    )  # its columns are apart by the one blank of the box, and one of their own
    tallest = max(len(_head_lines(heads[name])) for name in columns)
    for name in columns:
        side = "left" if name == first or name in words else "right"
        pad = "" if name == first else " "
        lines = _head_lines(heads[name])
        above = [""] * (tallest - len(lines))  # as heads stand on their columns
        head = "\n".join(pad + line for line in [*above, *lines])
        table.add_column(head, justify=side, no_wrap=True)
    rows = zip(*columns.values(), strict=True)
    for i, (name, *cells) in enumerate(rows):
        if left_out[i : i + 1] not in ([], [""]):
            table.add_row(left_out[i])
        padded = [textwrap.indent(cell, " ") for cell in cells]
        table.add_row(shortened(name, room), *padded)
    if left_out[-1:] not in ([], [""]):
        table.add_row(left_out[-1])
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=UNCUT,
        color_system=None,
        force_jupyter=False,  # else a notebook shows the table, and no text is left
        markup=False,  # brackets in names are none
        emoji=False,
    )
    console.print(table)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def fitting_columns(
    columns: Columns,
    heads: Mapping[str, str],
    ranked: Iterable[Sequence[str]],
    width: int,
) -> list[str]:
    """The columns for which there is room, in the table's order.

    Args:
        columns: the text of every column, names first.
        heads: what stands above each.
        ranked: groups of columns by rank. Names are cut for those of the first group,
            of which the last ones are left out if that is not enough. Another group is
            there as a whole or not at all, and cuts no name.
        width: of the table.
    """
    first, *_ = columns
    names = [shortened(name, NAME_WIDTH) for name in columns[first]]
    natural = _column_width(names, heads[first])
    fits = lambda wanted, least: (
        least
        <= name_room(
            {name: columns[name] for name in columns if name in wanted}, heads, width
        )
    )
    essential, *others = ranked
    least = min(natural, LEAST_NAME_WIDTH)
    chosen = {first, *essential}
    while len(chosen) > 2 and not fits(chosen, least):
        chosen.remove(next(n for n in reversed(essential) if n in chosen))
    for group in others:
        if fits(chosen | set(group), natural):
            chosen |= set(group)
    return [name for name in columns if name in chosen]


def name_room(columns: Columns, heads: Mapping[str, str], width: int) -> int:
    """The width that is left for the names, which are the first column."""
    _, *others = columns
    taken = sum(GAP + _column_width(columns[name], heads[name]) for name in others)
    return min(NAME_WIDTH, width - taken)


def _column_width(cells: Iterable[str], head: str) -> int:
    lines = [line for cell in cells for line in cell.split("\n")]
    return max(map(len, [*_head_lines(head), *lines]))


def _head_lines(head: str) -> list[str]:
    """A line for each word, so that heads are hardly wider than numbers."""
    return head.split(" ")


def folded(
    scores: Sequence[float], max_rows: int | None
) -> tuple[list[int], list[int]]:
    """The rows that are shown of a long table, in order: first, worst, and last.

    Args:
        scores: of each row; of the rows between the first and the last third those of
            the largest scores are shown, and none of score 0.
        max_rows: how many are shown; None: all.

    Returns:
        The rows, and how many are left out before each and at the end.
    """
    count = len(scores)
    if max_rows is None or count <= max_rows:
        return list(range(count)), [0] * (count + 1)
    third = max(max_rows // 3, 1)
    first, last = set(range(third)), set(range(count - third, count))
    if max_rows == 1:
        last = set()
    middle = [i for i in range(third, count - third) if scores[i] > 0]
    middle.sort(key=lambda i: -scores[i])
    worst = set(middle[: max(max_rows - len(first) - len(last), 0)])
    spare = max_rows - len(first | worst | last)
    first |= set([i for i in range(count) if i not in first | worst | last][:spare])
    shown = sorted(first | worst | last)
    places = zip([-1, *shown], [*shown, count], strict=True)
    return shown, [after - before - 1 for before, after in places]


def left_out_lines(more: Iterable[int]) -> list[str]:
    """What stands where rows are left out; empty texts where none are."""
    return [f"… {count} more" if count else "" for count in more]


def wrapped(line: str, width: int) -> str:
    """A sentence in lines that fit; what has no blank is left whole."""
    indent = " " * (len(line) - len(line.lstrip()))
    return "\n".join(
        textwrap.wrap(
            line,
            max(width, LEAST_NAME_WIDTH),
            subsequent_indent=indent + "  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
    )


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
