"""What results show of themselves: text that fits a console, HTML, a data frame."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from operator import index
from typing import TYPE_CHECKING, Any, ClassVar, SupportsIndex

from ._tables import (
    MAX_ROWS,
    fitting_columns,
    folded,
    format_number,
    format_table,
    left_out_lines,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


FALLBACK_SIZE = (80, 24)
"""Of a console that does not tell."""


ROW_STYLE = ' style="text-align: {}; white-space: nowrap"'


class Printable:
    """A result with `rows()` and `notes()` prints a summary, a table, and notes.

    `HEADS` has what is printed above each column by its key in `rows()`, in order; the
    first one names the row. `WORDS` are the columns that are flush left.
    """

    HEADS: ClassVar[Mapping[str, str]]
    WORDS: ClassVar[tuple[str, ...]] = ()

    def rows(self) -> list[dict[str, Any]]:
        """The lines of the table: plain Python values by column."""
        raise NotImplementedError

    def summary(self) -> list[str]:
        """What to know first."""
        return []

    def notes(self) -> list[str]:
        """The summary, and what else there is to say of the whole."""
        return [*self.summary(), *self._remarks()]

    def plot(self) -> "Figure":
        """The picture of it.

        Raises:
            ImportError: matplotlib is not installed.
        """
        raise NotImplementedError

    def figures(self) -> "dict[str, Figure]":
        """The figures of a report, by what they show."""
        return {"": self.plot()}

    def to_string(
        self,
        *,
        columns: Iterable[str] | None = None,
        width: SupportsIndex | None = None,
        max_rows: SupportsIndex | None = MAX_ROWS,
    ) -> str:
        """The summary, the table and notes as text; `str()` is this with its defaults.

        Args:
            columns: keys of `rows()`, shown in this order. None: those for which there
                is room, the most important first.
            width: in characters; None: that of the console, 80 where there is none. No
                number is ever cut: columns that you choose may make the table wider.
            max_rows: of a longer table the first rows, the worst and the last are
                shown, so many in all; None: all rows.

        Raises:
            TypeError: a width or a number of rows that is no whole number.
            ValueError: a column that is not there, a width or a number of rows that is
                not positive.

        Example:
            >>> class Sizes(Printable):
            ...     HEADS = {"path": "layer", "rms": "output", "grad": "input gradient"}
            ...     def rows(self):
            ...         return [{"path": f"Dense_{i}", "rms": 0.5**i, "grad": 1.0}
            ...                 for i in range(40)]
            >>> print(Sizes().to_string(max_rows=3))
                                    input
            layer        output  gradient
            ─────────────────────────────
            Dense_0           1         1
            Dense_1         0.5         1
            … 37 more
            Dense_39   1.82e-12         1
        """
        columns = None if columns is None else self._checked_columns(columns)
        size = shutil.get_terminal_size(FALLBACK_SIZE)
        width = size.columns if width is None else _whole_number("width", width)
        if max_rows is not None:
            max_rows = _whole_number("max_rows", max_rows)
        if self._unprintable():
            return self._unprintable()
        summary, remarks, rows = self.summary(), self._remarks(), self.rows()
        shown, more = folded(self._scores(), max_rows)
        heads = self._heads(rows)
        names = list(heads) if columns is None else columns
        cells = self._cells([rows[i] for i in shown], names)
        if columns is None:
            longest = {names[0]: [*cells[names[0]], *left_out_lines(more)]}
            ranked = self._ranked(rows)
            names = fitting_columns(cells | longest, heads, ranked, width)
        table = format_table(
            {name: cells[name] for name in names},
            heads,
            words=self.WORDS,
            width=width,
            more=more,
        )
        parts = ["\n".join(wrapped(line, width) for line in summary), table]
        parts.append("\n".join(wrapped(line, width) for line in remarks))
        return "\n\n".join(part for part in parts if part)

    def to_pandas(self) -> "DataFrame":
        """The rows as a `pandas.DataFrame`, a column for each key of `rows()`.

        Raises:
            ImportError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError(
                "to_pandas needs pandas: pip install 'einit_jax[pandas]'"
            ) from error
        return DataFrame(self.rows())

    def __str__(self) -> str:
        return self.to_string()

    def __repr__(self) -> str:
        return self.to_string()

    def _repr_html_(self) -> str:
        """What notebooks show: all columns, long tables without some of their rows."""
        if self._unprintable():
            return f"<p>{escape(self._unprintable())}</p>"
        summary, remarks, rows = self.summary(), self._remarks(), self.rows()
        shown, more = folded(self._scores(), MAX_ROWS)
        heads = self._heads(rows)
        ranked = {name for group in self._ranked(rows) for name in group}
        first, *others = heads
        names = [first, *(name for name in others if name in ranked)]
        cells = self._cells([rows[i] for i in shown], names)
        sides = ["left" if name in self.WORDS else "right" for name in names]
        sides[0] = "left"
        table = _html_table([heads[n] for n in names], cells, sides=sides, more=more)
        return _paragraphs(summary) + table + _paragraphs(remarks)

    def _checked_columns(self, columns: Iterable[str]) -> list[str]:
        """The columns that a user asks for, behind the names of rows."""
        if isinstance(columns, str):
            columns = [columns]
        first, *_ = self.HEADS
        names = list(dict.fromkeys([first, *columns]))
        unknown = [name for name in names if name not in self.HEADS]
        if unknown:
            raise ValueError(
                f"columns: there is no {', '.join(map(repr, unknown))}; expected some "
                f"of {', '.join(self.HEADS)}"
            )
        return names

    def _remarks(self) -> list[str]:
        """What there is to say of the whole besides the summary."""
        return []

    def _unprintable(self) -> str:
        """What is printed in place of all where there are no plain numbers."""
        return ""

    def _scores(self) -> Sequence[float]:
        """How much each row deserves to be seen where a table is long."""
        return [0.0] * len(self.rows())

    def _heads(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, str]:
        """What is above each column that these rows have."""
        del rows
        return self.HEADS

    def _ranked(self, rows: Sequence[Mapping[str, Any]]) -> Iterable[Sequence[str]]:
        """Columns by rank, in groups of which a table has all or none."""
        return [[name] for name in self._heads(rows)]

    def _cells(
        self, rows: Sequence[Mapping[str, Any]], names: Iterable[str]
    ) -> dict[str, list[str]]:
        return {name: [self._cell(row, name) for row in rows] for name in names}

    def _cell(self, row: Mapping[str, Any], name: str) -> str:
        """The text of one value."""
        value = row[name]
        return format_number(value) if isinstance(value, float) else str(value)


def _whole_number(name: str, value: SupportsIndex) -> int:
    """A positive number.

    Raises:
        TypeError: no whole number.
        ValueError: it is not positive.
    """
    try:
        number = index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r}: expected a whole number, or None") from None
    if number < 1:
        raise ValueError(f"{name}={number}: expected a positive number, or None")
    return number


def _paragraphs(lines: Iterable[str]) -> str:
    """Lines as they are; one that is indented stays so."""
    body = "<br>".join(escape(line).replace("  ", "&emsp;") for line in lines)
    return f"<p>{body}</p>" if body else ""


def _html_table(
    heads: Sequence[str],
    cells: Mapping[str, Sequence[str]],
    *,
    sides: Sequence[str],
    more: Sequence[int],
) -> str:
    """A table without a style sheet, as notebooks have their own."""
    line = lambda tag, texts: "".join(
        f"<{tag}{ROW_STYLE.format(side)}>{escape(text)}</{tag}>"
        for side, text in zip(sides, texts, strict=True)
    )
    left_out = lambda text: f'<tr><td colspan="{len(heads)}">{text}</td></tr>'
    body, lines = [], [*zip(*cells.values(), strict=True), ()]
    for gap, texts in zip(left_out_lines(more), lines, strict=True):
        body += [left_out(gap)] if gap else []
        body += [f"<tr>{line('td', texts)}</tr>"] if texts else []
    return (
        f'<div style="overflow-x: auto"><table><thead><tr>{line("th", heads)}</tr>'
        f"</thead><tbody>{''.join(body)}</tbody></table></div>"
    )
