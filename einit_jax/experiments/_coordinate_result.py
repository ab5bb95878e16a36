"""What `coordinate_check` returns: sizes over widths, exponents and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ..reporting import Printable, flat_scalars, width_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPONENTS = ("size", "last_size", "change", "last_change")


NAMED = 3
"""So many layers are named of those with one verdict."""


@dataclass(frozen=True, repr=False)
class CoordinateCheck(Printable):
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

    HEADS: ClassVar[Mapping[str, str]] = {
        "path": "layer",
        **{f"{n}_exponent": f"{n.replace('_', ' ')} exponent" for n in EXPONENTS},
        "verdict": "verdict",
    }
    WORDS: ClassVar[tuple[str, ...]] = ("verdict",)

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

    def summary(self) -> list[str]:
        """Whether all layers are flat, else the worst of those that are not."""
        off = {verdict: [] for verdict in ("breaks", "grows", "shrinks", "still")}
        rows = self.rows()
        for row in sorted(rows, key=self._steepness, reverse=True):
            if row["verdict"] != "flat":
                off[row["verdict"]].append(row["path"])
        lines = [
            f"{verdict}: " + ", ".join(paths[:NAMED])
            + (f" and {len(paths) - NAMED} more" if len(paths) > NAMED else "")
            for verdict, paths in off.items()
            if paths
        ]  # fmt: skip
        if not lines:
            return [f"OK: flat over widths in all {len(rows)} layer(s)"]
        return [f"OFF: {'; '.join(lines)}"]

    def _steepness(self, row: Mapping[str, Any]) -> float:
        """How far from flat: exponents that are not defined count most."""
        still = self.changes.shape[1] == 1
        name = "size_exponent" if still else "last_change_exponent"
        return float(np.nan_to_num(abs(row[name]), nan=np.inf))

    def _remarks(self) -> list[str]:
        """What the numbers of `rows` are of."""
        still = self.changes.shape[1] == 1
        return [
            f"exponents over widths {', '.join(map(str, self.widths))}; "
            f"{self.changes.shape[1] - 1} step(s), {self.seeds} seed(s); flat: at most "
            f"{self.flat:g}" + "; verdicts on sizes, as there are no steps" * still,
        ]

    def _scores(self) -> Sequence[float]:
        flat = lambda row: row["verdict"] == "flat"
        return [0.0 if flat(row) else self._steepness(row) for row in self.rows()]

    def _ranked(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
        del rows
        if self.changes.shape[1] == 1:
            return [["verdict", "size_exponent"]]
        return [["verdict", *(f"{name}_exponent" for name in reversed(EXPONENTS))]]


def _verdict(values: np.ndarray, slope: float, flat: float) -> str:
    """How the values of one row go with the width."""
    if not np.isfinite(values).all():
        return "breaks"
    if not np.all(values > 0):
        return "still"
    if abs(slope) <= flat:
        return "flat"
    return "grows" if slope > 0 else "shrinks"
