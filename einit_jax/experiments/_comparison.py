"""What `compare` returns: a row per strategy, as numbers, a table and a figure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

from ..reporting import Printable, comparison_figure, flat_scalars, power_of_two

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NAN = float("nan")


OCTAVE_COLUMNS = ("activations", "gradients", "updates", "uneven")
"""The pillars: how far the worst unit is from 1, in octaves."""


COMPARISON_COLUMNS = (
    "seconds",
    "first_seconds",
    "gradient_steps",
    *OCTAVE_COLUMNS,
    "start_loss",
    "loss",
)
"""The numbers of a row."""


@dataclass(frozen=True)
class Trial:
    """One strategy: what it costs, how the network starts, and what it learns.

    | field | meaning |
    |---|---|
    | `seconds`, `first_seconds` | of a call, and of the first one, which compiles |
    | `gradient_steps` | `seconds` over those of a jitted gradient step of the model |
    | `activations`, `gradients` | the largest \\|log2 rms\\| over units: of outputs, and of input gradients |
    | `updates` | \\|log2\\| of the largest change of a unit's output when all take a step at learning rate 1 |
    | `uneven` | log2 of the largest over the least change by a unit's own step |
    | `start_loss` | before the first step |
    | `losses` | mean over the last steps, by seed and learning rate; infinite where training diverged |
    | `error` | why there are no numbers |

    Of several seeds, the seconds are the first one's, the four pillars are the largest,
    and `start_loss` is the mean. A zero or a value that is not finite is infinitely far
    from 1.
    """  # noqa: E501

    name: str
    losses: Float[np.ndarray, "seeds rates"]
    first_seconds: float = NAN
    seconds: float = NAN
    gradient_steps: float = NAN
    activations: float = NAN
    gradients: float = NAN
    updates: float = NAN
    uneven: float = NAN
    start_loss: float = NAN
    error: str = ""

    def best(self) -> int | None:
        """The index of the best learning rate; None where all runs diverged."""
        means = self.losses.mean(0) if self.losses.size else np.empty(0)
        return int(means.argmin()) if np.isfinite(means).any() else None


@dataclass(frozen=True, repr=False)
class Comparison(Printable):
    """Strategies side by side, in the order given; see `Trial` for the numbers."""

    trials: tuple[Trial, ...]
    learning_rates: tuple[float, ...]
    steps: int
    tail: int
    """The number of last steps over which a loss is the mean."""
    seeds: int
    step_seconds: float
    """The time of one gradient step of the plain model."""
    probes: tuple[str, ...]
    """The arrays of zeros that probe draws replaced while pillars were measured."""

    HEADS: ClassVar[Mapping[str, str]] = {
        name: name.replace("_", " ")
        for name in ("strategy", *COMPARISON_COLUMNS, "learning_rate")
    }

    def rows(self) -> list[dict[str, Any]]:
        """One dict per strategy, of plain Python values.

        The fields of `Trial`, `loss` at the best `learning_rate`, and whether that rate
        is the first or the last one of the grid (`at_end`).
        """
        names = [f.name for f in fields(Trial)]
        names = [n for n in names if n not in ("name", "losses", "error")]
        return [
            {"strategy": trial.name}
            | {name: getattr(trial, name) for name in names}
            | self._at_best_rate(trial)
            | {"error": trial.error}
            for trial in self.trials
        ]

    def _at_best_rate(self, trial: Trial) -> dict[str, Any]:
        """The columns of the best learning rate."""
        best = trial.best()
        if best is None:
            loss = NAN if trial.error else float("inf")
            return {"loss": loss, "learning_rate": NAN, "at_end": False}
        return {
            "loss": float(trial.losses[:, best].mean()),
            "learning_rate": self.learning_rates[best],
            "at_end": best in (0, len(self.learning_rates) - 1),
        }

    def scalars(self) -> dict[str, float]:
        """`{"strategy/loss": value, ...}`, as writers of logs take it."""
        rows = [{"path": row["strategy"]} | row for row in self.rows()]
        return flat_scalars(rows, (*COMPARISON_COLUMNS, "learning_rate"))

    def plot(self) -> "Figure":
        """Losses over learning rates, and strategies side by side; see `compare`.

        Raises:
            ImportError: matplotlib is not installed.
        """
        losses = {trial.name: trial.losses for trial in self.trials}
        return comparison_figure(self.rows(), losses, self.learning_rates, self.steps)

    def summary(self) -> list[str]:
        """What learns best."""
        rows = [row for row in self.rows() if np.isfinite(row["loss"])]
        if not rows:
            return ["no strategy learns: all runs failed, or diverged at all rates"]
        least = min(rows, key=lambda row: row["loss"])
        rate = self._cell(least, "learning_rate")
        return [
            f"least loss: {least['strategy']}, {least['loss']:.3g} at learning rate "
            f"{rate}"
        ]

    def _remarks(self) -> list[str]:
        """How the numbers are to be read, and what failed."""
        lowest, highest = min(self.learning_rates), max(self.learning_rates)
        rates = f"{power_of_two(lowest)} to {power_of_two(highest)}"
        failed = [trial for trial in self.trials if trial.error]
        lines = [
            *(f"{trial.name} failed: {trial.error}" for trial in failed),
            f"loss: mean over the last {self.tail} of {self.steps} step(s) and "
            f"{self.seeds} seed(s), at the best learning rate of {rates} (*, at_end: "
            "at an end of these)",
            f"gradient steps: seconds, in gradient steps of "
            f"{1e3 * self.step_seconds:.3g} ms",
            "activations, gradients: largest |log2 rms| of outputs and of input "
            "gradients; updates: |log2| of the largest total update at learning rate "
            "1; uneven: log2 of the largest over the least own update",
        ]
        if self.probes:
            lines.append("zeros probed while measured: " + ", ".join(self.probes))
        return lines

    def _ranked(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
        del rows
        first = ["loss", "learning_rate", "activations", "gradients", "updates"]
        first.append("gradient_steps")
        rest = ("seconds", "start_loss", "uneven", "first_seconds")
        return [first, *([name] for name in rest)]

    def _cell(self, row: Mapping[str, Any], name: str) -> str:
        """Octaves have two decimals; a star marks a rate at an end of the grid."""
        value = row[name]
        if name in OCTAVE_COLUMNS and not np.isnan(value):
            return f"{value:.2f}"
        if name == "learning_rate":
            return power_of_two(value) + ("*" if row["at_end"] else "")
        return super()._cell(row, name)
