"""What `activation_stats` recorded: moments and histograms, by step and unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from ..core import is_concrete
from ..reporting import Printable, flat_scalars, history_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MOMENTS = ("mean", "std", "rms", "dead", "nonfinite")


SIGNAL_PREFIX = {"activations": "", "gradients": "grad_"}
"""The signals of a history, and how the names of their columns begin."""


HISTORY_COLUMNS = {
    prefix + name: (signal, name)
    for signal, prefix in SIGNAL_PREFIX.items()
    for name in MOMENTS
}
"""The names of numbers in rows, and where a history has them: signal and moment."""


SIDE_TITLES = {
    ("activations", "output"): "outputs",
    ("activations", "input"): "inputs",
    ("gradients", "output"): "gradients of the outputs",
    ("gradients", "input"): "gradients of the inputs",
}
"""What a figure shows, by signal and by the side of the units that was read."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[*MOMENTS, "histogram"],
    meta_fields=[],
)
@dataclass(frozen=True)
class SignalHistory:
    """One signal of all rows over time, float32; NaN where nothing was read.

    | field | meaning |
    |---|---|
    | `mean`, `std`, `rms` | of the elements that are finite, `rms^2 = mean^2 + std^2` |
    | `dead` | the share of elements within `near` times the rms of zero |
    | `nonfinite` | the share of elements that are infinite or NaN |
    | `histogram` | the share of elements in each bin |
    """

    mean: Float[Array, "*seeds slots rows"]
    std: Float[Array, "*seeds slots rows"]
    rms: Float[Array, "*seeds slots rows"]
    dead: Float[Array, "*seeds slots rows"]
    nonfinite: Float[Array, "*seeds slots rows"]
    histogram: Float[Array, "*seeds slots rows bins"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["steps", "activations", "gradients", "edges"],
    meta_fields=["paths", "of", "near"],
)
@dataclass(frozen=True, repr=False)
class History(Printable):
    """Activations and gradients over steps, a row per unit and layer, in call order.

    A frozen pytree. `steps` has the first step of each slot, -1 where a slot is still
    empty; `edges` has the bounds of the histograms' bins; `paths` names the rows; `of`
    is the side of the units that was read, `near` tells what counts as dead.
    """

    steps: Int[Array, "*seeds slots"]
    activations: SignalHistory
    gradients: SignalHistory
    edges: Float[Array, "*seeds edges"]
    paths: tuple[str, ...]
    of: str
    near: float

    HEADS: ClassVar[Mapping[str, str]] = {
        "path": "layer",
        **{n: n.replace("grad_", "gradient ") for n in HISTORY_COLUMNS},
    }

    def rows(self, slot: int = -1) -> list[dict[str, Any]]:
        """One dict per row, of plain Python values: the last slot, or another one.

        Raises:
            ValueError: the history is empty.
        """
        used = self._used_slots()
        columns = {
            column: np.asarray(getattr(getattr(self, signal), name))[used][slot]
            for column, (signal, name) in HISTORY_COLUMNS.items()
        }
        step = int(np.asarray(self.steps)[used][slot])
        return [
            {"path": path, "step": step}
            | {name: values[i].item() for name, values in columns.items()}
            for i, path in enumerate(self.paths)
        ]

    def scalars(self, slot: int = -1) -> dict[str, float]:
        """`{"unit/std": value, "unit/grad_std": ...}`, as writers of logs take it.

        Raises:
            ValueError: the history is empty.
        """
        return flat_scalars(self.rows(slot), HISTORY_COLUMNS)

    def plot(self, signal: str = "activations") -> "Figure":
        """The four charts: means, deviations, dead shares, and histograms over steps.

        Args:
            signal: "activations", or "gradients".

        Raises:
            ValueError: the history is empty, or there is no such signal.
            ImportError: matplotlib is not installed.
        """
        if signal not in SIGNAL_PREFIX:
            raise ValueError(
                f"signal={signal!r} is not known; expected 'activations' or 'gradients'"
            )
        used = self._used_slots()
        history = getattr(self, signal)
        moments = {
            name: np.asarray(getattr(history, name))[used]
            for name in (*MOMENTS, "histogram")
        }
        return history_figure(
            np.asarray(self.steps)[used],
            moments,
            edges=np.asarray(self.edges),
            names=self.paths,
            title=SIDE_TITLES[signal, self.of],
        )

    def figures(self) -> dict[str, "Figure"]:
        """The figures of a report, by what they show."""
        return {signal: self.plot(signal) for signal in SIGNAL_PREFIX}

    def summary(self) -> list[str]:
        """Whether all is finite, and where most is dead."""
        rows = self.rows()
        lines = []
        for prefix, what in (("", f"{self.of}s"), ("grad_", "gradients")):
            worst = max(rows, key=lambda row: np.nan_to_num(row[f"{prefix}nonfinite"]))
            share = worst[f"{prefix}nonfinite"]
            if share > 0:
                at = f"up to {share:.2g} of the {what} at {worst['path']}"
                lines.append(f"NOT FINITE: {at}")
        dead = max(rows, key=lambda row: np.nan_to_num(row["dead"]))
        most = f"at most {dead['dead']:.2g} of the {self.of}s dead, at {dead['path']}"
        return lines or [f"OK: all finite; {most}"]

    def _remarks(self) -> list[str]:
        """What the numbers of `rows` are of."""
        steps = np.asarray(self.steps)[self._used_slots()]
        return [
            f"{self.of}s of layers in the slot from step {steps[-1]} on; {len(steps)} "
            f"slots from step {steps[0]} on",
        ]

    def _used_slots(self) -> np.ndarray:
        """The slots that have been written to."""
        if np.ndim(self.steps) != 1:
            raise ValueError(
                f"the history is of {np.shape(self.steps)[0]} runs, mapped together; "
                "look at one: jax.tree.map(lambda x: x[0], history)"
            )
        used = np.flatnonzero(np.asarray(self.steps) >= 0)
        if not used.size:
            raise ValueError(
                "the history is empty: no step was recorded; in the train step call "
                "stats.apply with {'params': params, 'taps': state.taps}, and "
                "state = stats.update(state, seen) with the gradient for the taps"
            )
        return used

    def _unprintable(self) -> str:
        about = f"History of {len(self.paths)} layers"
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return f"{about} (traced)"
        if np.ndim(self.steps) != 1:
            return f"{about}, {np.shape(self.steps)[0]} runs"
        return "" if np.any(np.asarray(self.steps) >= 0) else f"{about}, empty"

    def _scores(self) -> Sequence[float]:
        """What is dead or not finite."""
        shares = ("dead", "nonfinite", "grad_nonfinite")
        return [sum(np.nan_to_num(row[n]) for n in shares) for row in self.rows()]

    def _ranked(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
        del rows
        first = ("rms", "std", "dead", "grad_rms", "nonfinite", "mean")
        return [first, *([n] for n in HISTORY_COLUMNS if n not in first)]
