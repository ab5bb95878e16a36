"""What `compare` returns: a row a strategy, as numbers, a table and a picture."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..reporting import comparison_figure, flat_scalars, format_table, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NAN = float("nan")


OCTAVE_COLUMNS = ("activations", "gradients", "updates", "uneven")


COMPARISON_COLUMNS = {
    "seconds": "seconds",
    "first_seconds": "first",
    "gradient_steps": "steps",
    "activations": "rms",
    "gradients": "grad",
    "updates": "update",
    "uneven": "uneven",
    "start_loss": "start",
    "loss": "loss",
}
"""The numbers of a row, and how the table heads them."""


@dataclass(frozen=True)
class Trial:
    """One strategy: what it costs, how the network starts, what it learns.

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

    Numbers but `losses` are means over seeds (of `seconds`: the first seed's; of the
    four in the middle: the largest). A zero or a value that is not finite is infinitely
    far from 1.
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
        """Where the least mean loss is; None where no run ended well."""
        means = self.losses.mean(0) if self.losses.size else np.empty(0)
        return int(means.argmin()) if np.isfinite(means).any() else None


@dataclass(frozen=True)
class Comparison:
    """Strategies side by side, in the order given; see `Trial` for the numbers."""

    trials: tuple[Trial, ...]
    learning_rates: tuple[float, ...]
    steps: int
    tail: int
    """The loss is the mean over so many last steps."""
    seeds: int
    step_seconds: float
    """Of one gradient step of the plain model."""
    probes: tuple[str, ...]
    """Arrays of zeros in the parameters given, replaced by a probe draw to measure."""

    def rows(self) -> list[dict[str, Any]]:
        """One dict per strategy, of plain Python values.

        The fields of `Trial`, and `loss` at the best `learning_rate`, and whether that
        is the first or the last one of the grid (`at_end`).
        """
        names = [f.name for f in fields(Trial) if f.name not in ("losses", "name")]
        return [
            {"strategy": t.name}
            | {name: getattr(t, name) for name in names}
            | self._best(t)
            for t in self.trials
        ]

    def _best(self, trial: Trial) -> dict[str, Any]:
        at = trial.best()
        if at is None:
            loss = NAN if trial.error else float("inf")
            return {"loss": loss, "learning_rate": NAN, "at_end": False}
        return {
            "loss": float(trial.losses[:, at].mean()),
            "learning_rate": self.learning_rates[at],
            "at_end": at in (0, len(self.learning_rates) - 1),
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
        losses = {t.name: t.losses for t in self.trials}
        return comparison_figure(self.rows(), losses, self.learning_rates, self.steps)

    def figures(self) -> dict[str, "Figure"]:
        """The figures of a report, by what they show."""
        return {"": self.plot()}

    def __str__(self) -> str:
        cells = [
            [
                row["strategy"],
                *(_octaves_cell(row, name) for name in COMPARISON_COLUMNS),
                _rate(row),
            ]
            for row in self.rows()
        ]
        heads = (*COMPARISON_COLUMNS.values(), "rate")
        return format_table(("strategy",), heads, cells, self.notes())

    def notes(self) -> list[str]:
        """How the numbers are to be read, and what failed."""
        ends = (_power(f(self.learning_rates)) for f in (min, max))
        lines = [
            f"loss: mean over the last {self.tail} of {self.steps} step(s) and "
            f"{self.seeds} seed(s), at the best rate of {' to '.join(ends)} (*: at an "
            "end of these)",
            f"steps: in gradient steps of {1e3 * self.step_seconds:.3g} ms",
            "rms, grad: largest |log2 rms| of outputs and input gradients; update: "
            "|log2| of the largest total update at learning rate 1; uneven: log2 of "
            "largest over least own update",
        ]
        if self.probes:
            lines.append("zeros probed while measured: " + ", ".join(self.probes))
        rows = [row for row in self.rows() if np.isfinite(row["loss"])]
        if len(rows) > 1:
            least = min(rows, key=lambda row: row["loss"])
            lines.append(f"least loss: {least['strategy']}")
        failed = [t for t in self.trials if t.error]
        return lines + [f"{t.name} failed: {t.error}" for t in failed]


def _octaves_cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    return (
        f"{value:.2f}"
        if name in OCTAVE_COLUMNS and not np.isnan(value)
        else number(value)
    )


def _rate(row: dict[str, Any]) -> str:
    return _power(row["learning_rate"]) + ("*" if row["at_end"] else "")


def _power(value: float) -> str:
    """A power of two as such, another number as it is."""
    exponent = np.log2(value)
    return f"2^{exponent:.0f}" if exponent == np.round(exponent) else number(value)
