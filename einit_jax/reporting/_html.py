"""One HTML page that needs no other file: text, sortable tables, figures inside."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


STYLE = """
:root { color-scheme: light; --line: #d8dee4; --soft: #f6f8fa; --ink: #1f2328; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff;
  max-width: 76rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .3rem; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
img { max-width: 100%; height: auto; display: block; margin: 1rem auto; }
pre { background: var(--soft); padding: .8rem; overflow-x: auto; font-size: .85rem; }
.scroll { overflow: auto; max-height: 36rem; border: 1px solid var(--line);
  margin-top: .8rem; }
table { border-collapse: collapse; font-size: .82rem; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .55rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
thead th { position: sticky; top: 0; background: var(--soft); padding: 0; }
th button { all: unset; cursor: pointer; padding: .35rem .55rem; font-weight: 600; }
th button:focus-visible { outline: 2px solid #0969da; }
th[aria-sort="ascending"] button::after { content: " \\25B4"; }
th[aria-sort="descending"] button::after { content: " \\25BE"; }
tbody tr:nth-child(even) { background: var(--soft); }
p { margin: .25rem 0; }
.scroll td:first-child { position: sticky; left: 0; background: inherit; }
tbody tr { background: #fff; }
.facts th { text-align: left; font-weight: 600; background: none; width: 12rem; }
.facts td { text-align: left; white-space: normal; }
"""


TEXT_CLASS = ' class="text"'
"""Marks cells that sort as words, whatever the words are: "inf", "2"."""


SCRIPT = """
const value = (row, column) => {
  const cell = row.cells[column], text = cell.textContent.trim();
  if (text === "") return [2, ""];
  if (cell.className === "text") return [1, text];
  return [0, Number(text.replace("inf", "Infinity"))];
};
const compare = (a, b) =>
  a[0] !== b[0] ? a[0] - b[0]
  : a[0] === 1 ? a[1].localeCompare(b[1], "en", {numeric: true})
  : a[1] < b[1] ? -1 : a[1] > b[1] ? 1 : 0;
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = head.closest("table").tBodies[0];
    const keyed = [...body.rows].map((row) => [value(row, head.cellIndex), row]);
    keyed.sort(([a], [b]) => (a[0] === 2 || b[0] === 2 || up ? 1 : -1) * compare(a, b));
    body.append(...keyed.map(([, row]) => row));
  });
}
"""


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


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with a column per name; a click on the name sorts by it.

    Numbers sort by value, words by alphabet, and empty cells come last.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(_head_cell(name, rows) for name in names)
    lines = [
        "".join(_table_cell(row.get(name, float("nan"))) for name in names)
        for row in rows
    ]
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _head_cell(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """A column's name, on the side on which its cells are written."""
    words = any(name in row and not _is_number(row[name]) for row in rows)
    button = f'<button type="button">{escape(name.replace("_", " "))}</button>'
    return f"<th{TEXT_CLASS if words else ''}>{button}</th>"


def _table_cell(value: Any) -> str:
    """A number of four digits, nothing for NaN, or words."""
    if not _is_number(value):
        return f"<td{TEXT_CLASS}>{escape(str(value))}</td>"
    if isinstance(value, Integral):
        return f"<td>{value}</td>"
    return "<td></td>" if np.isnan(value) else f"<td>{value:.4g}</td>"


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def html_picture(figure: "Figure", alt: str) -> str:
    """A figure inside of the page, sharp at any size; the same bytes each time."""
    from matplotlib import rc_context

    stream = io.BytesIO()
    with rc_context({"svg.hashsalt": alt}):
        figure.savefig(stream, format="svg", metadata={"Date": None})
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/svg+xml;base64,{data}">'
