"""One HTML page that needs no other file: text, sortable tables, figures inside."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from ..reporting import PILLAR_HEADS
from ._glossary import GLOSSARY, column_groups
from ._page_style import SCRIPT, STYLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


TEXT_CLASS = ' class="text"'
"""Marks cells that sort as words, whatever the words are: "inf", "2"."""
PIXELS_PER_INCH = 96
"""Of an inch, in browsers."""
LONG_TEXT = 18
"""Words of more letters have a line of their own on a narrow screen."""


def html_page(title: str, parts: Iterable[str]) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def html_heading(text: str) -> str:
    """The heading of a section."""
    return f"<h2>{escape(text)}</h2>"


def html_paragraphs(lines: Iterable[str]) -> str:
    """A paragraph per line."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)


def html_block(text: str) -> str:
    """Text as it is, in letters of one width."""
    return f"<pre>{escape(text)}</pre>"


def html_facts(facts: Mapping[str, str]) -> str:
    """A table of two columns: names and facts."""
    rows = [
        f"<tr><th>{escape(name)}</th><td>{escape(fact)}</td></tr>"
        for name, fact in facts.items()
    ]
    return f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>'


def html_verdict(lines: Iterable[tuple[str, str]]) -> str:
    """What it all comes to, set off from the rest: pairs of a name and a sentence."""
    said = [f"<p><b>{escape(name)}</b> {escape(line)}</p>" for name, line in lines]
    return f'<div class="verdict">{"".join(said)}</div>' if said else ""


def html_folded(summary: str, parts: Iterable[str]) -> str:
    """What a click unfolds, and a printer."""
    inside = "".join(parts)
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def html_glossary(names: Iterable[str]) -> str:
    """What columns mean, for those who have no pointer to rest on their heads."""
    known = [name for name in dict.fromkeys(names) if name in GLOSSARY]
    return "<dl>{}</dl>".format(
        "".join(
            f"<dt>{escape(_column_title(name))}</dt><dd>{escape(GLOSSARY[name])}</dd>"
            for name in known
        )
    )


def html_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The columns of a table, in groups with a heading where they are many."""
    parts: list[str] = []
    for title, names in column_groups(column_names(rows)).items():
        heading = f"<h3>{escape(title)}</h3>" if title else ""
        parts.append(heading + html_table(rows, names))
    return "".join(parts)


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The columns of all rows, each once."""
    return list(dict.fromkeys(name for row in rows for name in row))


def html_table(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str] | None = None
) -> str:
    """A table with a column per name; a click on the name sorts by it.

    Numbers sort by value, words by alphabet, and empty cells come last. On a narrow
    screen each row is a block, in which the name stands before each number.
    """
    names = column_names(rows) if names is None else names
    head = "".join(_head_cell(name, rows) for name in names)
    nan = float("nan")
    lines = ["".join(_table_cell(row.get(n, nan), n) for n in names) for row in rows]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="wide rows"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _head_cell(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A column's name, on the side on which its cells are written; what it means."""
    words = any(name in row and not _is_number(row[name]) for row in rows)
    title = f' title="{escape(GLOSSARY[name])}"' if name in GLOSSARY else ""
    button = f'<button type="button"{title}>{escape(_column_title(name))}</button>'
    return f"<th{TEXT_CLASS if words else ''}>{button}</th>"


def _table_cell(value: Any, name: str) -> str:
    """A number of four digits, nothing for NaN, or words."""
    label = f' data-label="{escape(_column_title(name))}"'
    if not _is_number(value):
        text = str(value)
        classes = "text long" if len(text) > LONG_TEXT else "text"
        return f'<td class="{classes}"{label}>{escape(text)}</td>'
    if isinstance(value, Integral):
        return f"<td{label}>{value}</td>"
    return f"<td{label}></td>" if np.isnan(value) else f"<td{label}>{value:.4g}</td>"


def _column_title(name: str) -> str:
    """A column's name as it is read, the same as in printed tables."""
    return PILLAR_HEADS.get(name, name.replace("_", " "))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def html_picture(figure: "Figure", alt: str) -> str:
    """A figure inside of the page, sharp at any size; the same bytes each time."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": alt}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    data = base64.b64encode(stream.getvalue()).decode()
    width = figure.get_figwidth() * PIXELS_PER_INCH
    return (
        f'<div class="figure" style="--width: {width:.0f}px"><img alt="{escape(alt)}" '
        f'src="data:image/svg+xml;base64,{data}"></div>'
    )
