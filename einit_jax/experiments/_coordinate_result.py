"""What `coordinate_check` returns: sizes over widths, exponents and verdicts."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..reporting import flat_scalars, format_number, format_table, width_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class CoordinateCheck:
    """Sizes and changes of every unit's output, by width, step and row.

    `sizes[w, t, i]` is the rms of the output of row i (a unit, or a layer of one) at
    `widths[w]` after t steps, `changes` that of its change since step 0; float64 arrays
    of shape `(widths, steps + 1, rows)`, NaN where outputs are not finite. Exponents of
    at most `flat` count as none.
    """

    sizes: np.ndarray
    changes: np.ndarray
    widths: tuple[int, ...]
    paths: tuple[str, ...]
    seeds: int
    flat: float

    def exponents(self, of: str = "changes") -> np.ndarray:
        """The slopes of `log2` of sizes or changes over `log2 width`, by step and row.

        By least squares; NaN where a value is zero or not finite, as all changes are at
        step 0.
        """
        if of not in ("changes", "sizes"):
            raise ValueError(f"of={of!r} is not known; expected 'changes' or 'sizes'")
        values = getattr(self, of)
        usable = np.isfinite(values) & (values > 0)
        logs = np.where(usable, np.log2(np.where(usable, values, 1)), np.nan)
        x = np.log2(self.widths)
        x = x - x.mean()
        return np.tensordot(x, logs, 1) / np.sum(x**2)

    def verdicts(self) -> dict[str, str]:
        """For each row "flat", "grows" or "shrinks": its change in the last step.

        "still" where it does not move, "breaks" where it is not finite, at some width.
        Where there are no steps the size decides.
        """
        of = "changes" if self.changes.shape[1] > 1 else "sizes"
        last, slopes = getattr(self, of)[:, -1], self.exponents(of)[-1]
        return {
            path: _verdict(last[:, i], slopes[i], self.flat)
            for i, path in enumerate(self.paths)
        }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per row: exponents of sizes and changes, and the verdict."""
        sizes, changes = self.exponents("sizes"), self.exponents("changes")
        verdicts = self.verdicts()
        return [
            {
                "path": path,
                "size_exponent": float(sizes[0, i]),
                "last_size_exponent": float(sizes[-1, i]),
                "change_exponent": float(changes[min(1, len(changes) - 1), i]),
                "last_change_exponent": float(changes[-1, i]),
                "verdict": verdicts[path],
            }
            for i, path in enumerate(self.paths)
        ]

    def verdict(self) -> list[str]:
        """How many rows are flat, and which ones are not."""
        by_word: dict[str, list[str]] = {}
        for path, word in self.verdicts().items():
            by_word.setdefault(word, []).append(path)
        told = [
            f"{word}: {', '.join(paths[:4])}" + (", ..." if len(paths) > 4 else "")
            for word, paths in by_word.items()
            if word != "flat"
        ]
        flat = len(by_word.get("flat", ()))
        return ["; ".join([f"{flat} of {len(self.paths)} rows are flat", *told])]

    def scalars(self) -> dict[str, float]:
        """`{"unit/change_exponent": value, ...}`, as writers of logs take it."""
        names = [name for name in self.rows()[0] if name.endswith("exponent")]
        return flat_scalars(self.rows(), names)

    def plot(self) -> "Figure":
        """Sizes and changes over widths, a line a row; see `coordinate_check`.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return width_figure(self.sizes, self.changes, self.widths, self.paths)

    def figures(self) -> dict[str, "Figure"]:
        """The figures of a report, by what they show."""
        return {"": self.plot()}

    def notes(self) -> list[str]:
        """What the numbers of `rows` are of."""
        still = self.changes.shape[1] == 1
        return [
            f"exponents over widths {', '.join(map(str, self.widths))}; "
            f"{self.changes.shape[1] - 1} step(s), {self.seeds} seed(s); flat: at most "
            f"{self.flat:g}" + "; verdicts on sizes, as there are no steps" * still
        ]

    def __str__(self) -> str:
        steps = self.changes.shape[1] - 1
        names = ("size at 0", f"size at {steps}", "change at 1", f"change at {steps}")
        names = names if steps else names[:1]
        cells = []
        for row in self.rows():
            exponents = [row[name] for name in row if name.endswith("exponent")]
            numbers = map(format_number, exponents[: len(names)])
            cells.append([row["path"], *numbers, row["verdict"]])
        return format_table(("unit",), (*names, "verdict"), cells, self.notes())


def _verdict(values: np.ndarray, slope: float, flat: float) -> str:
    """How the values of one row go with the width."""
    if not np.isfinite(values).all():
        return "breaks"
    if not np.all(values > 0):
        return "still"
    if abs(slope) <= flat:
        return "flat"
    return "grows" if slope > 0 else "shrinks"
