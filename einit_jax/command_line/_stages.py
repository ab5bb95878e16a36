"""What is under way, on standard error: bars on a terminal, else lines."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ._output import complain

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress_bars() -> "Iterator[Progress]":
    """Bars of what is under way, on a terminal: compiling may take a while."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(
        *columns,
        console=console,
        transient=True,
        # what the user prints goes round the bars only where both would meet
        redirect_stdout=Console().is_terminal,
        disable=not console.is_terminal or console.is_dumb_terminal,
    ) as bars:
        yield bars


def with_bar(bars: "Progress", name: str, run: Callable[[], Any]) -> Any:
    """The result of a stage of unknown length, with a moving bar while it lasts.

    Where there are no bars, a line tells that it is done.
    """
    start = time.monotonic()
    bar = bars.add_task(name, total=None)
    try:
        result = run()
    finally:
        bars.remove_task(bar)
    if bars.disable:
        complain(f"{name}: {time.monotonic() - start:.1f} s")
    return result
