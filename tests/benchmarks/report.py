"""What all benchmarks share: their command line, and how their numbers read."""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A command line with the first line of the docstring, and `--tiny`."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    text = "small networks and few steps: whether it runs at all, in seconds"
    parser.add_argument("--tiny", action="store_true", help=text)
    return parser


def read_records(*paths: Path) -> list[dict[str, Any]]:
    """The records of files of JSON lines."""
    lines = [line for path in paths for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def written(records: Iterable[dict], out: Path | None) -> Iterator[dict]:
    """The records, each appended to a file as it comes, if there is one."""
    for record in records:
        if out:
            with out.open("a") as file:
                print(json.dumps(record), file=file)
        yield record


def verdict(value: float, target: float, style: str = ".2f") -> str:
    """The value, and whether it is at most the target."""
    return f"{value:{style}} {'ok' if value <= target else 'MISS'}"


def show(title: str, rows: Iterable[Mapping[str, str]]) -> None:
    """Prints rows that have the same columns; the first column names the row."""
    rows = list(rows)
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row.values())
    Console(width=110, highlight=False).print(table)


def ruled(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of a Markdown page."""
    names = list(head)
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)
