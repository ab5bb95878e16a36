"""What `measure` returns: columns of numbers, a row a unit, and how they read."""

import io
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from rich import box
from rich.console import Console
from rich.table import Table

from ._math import is_concrete
from ._units import Row

FLAGS = ("ok", "zero", "non-finite", "unreached")
PILLARS = ("output_rms", "input_grad_rms", "update_rms")
STATIC = ("rows_of", "loose", "probes", "batch", "draws")
SHOWN = 64


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "output_rms", "output_mean", "output_spread", "input_grad_rms", "update_rms",
        "param_rms", "param_grad_rms", "output", "input_grad", "output_grad",
        "nonfinite", "flag", "output_deviation", "input_grad_deviation",
        "update_deviation", "loss", "probed",
    ],
    meta_fields=list(STATIC),
)  # fmt: skip
@dataclass(frozen=True)
class Measurement:
    r"""The three pillars, unit by unit in call order: a frozen pytree.

    Each array has one entry per row, float32; lifted units (`nn.scan`, `nn.vmap` over
    layers) have a row per layer. `rms(t) = sqrt(mean |t|^2)`, over calls too where a
    unit is called several times.

    | field | meaning |
    |---|---|
    | `output_rms` | rms of the output (pillar 1) |
    | `output_mean` | mean / rms of the output |
    | `output_spread` | rms(y - batch mean) / rms(y): 0 where all inputs look alike |
    | `input_grad_rms` | largest rms over the gradients of the unit's floating inputs (pillar 2); NaN where it has none |
    | `update_rms` | rms of the change of the output by an SGD step of the unit's own parameters at learning rate 1, to first order, inputs held fixed (pillar 3) |
    | `param_rms`, `param_grad_rms` | rms of the unit's parameters and their gradients |
    | `output`, `input_grad`, `output_grad` | the three factors in force |
    | `nonfinite` | number of elements that are not finite |
    | `flag` | index into `FLAGS`: ok, zero, non-finite, unreached |
    | `*_deviation` | standard deviation over draws of the logarithm of a pillar |
    | `loss` | the loss, averaged over draws |
    | `probed` | whether each array of `probes` was zero and was replaced |

    `rows_of` holds what is static of each row (path, kind, shape, calls), `loose` the
    paths of parameters that belong to no unit, `batch` the shapes measured on.
    """  # noqa: E501

    output_rms: Float[Array, "..."]
    output_mean: Float[Array, "..."]
    output_spread: Float[Array, "..."]
    input_grad_rms: Float[Array, "..."]
    update_rms: Float[Array, "..."]
    param_rms: Float[Array, "..."]
    param_grad_rms: Float[Array, "..."]
    output: Float[Array, "..."]
    input_grad: Float[Array, "..."]
    output_grad: Float[Array, "..."]
    nonfinite: Int[Array, "..."]
    flag: Int[Array, "..."]
    output_deviation: Float[Array, "..."]
    input_grad_deviation: Float[Array, "..."]
    update_deviation: Float[Array, "..."]
    loss: Float[Array, "..."]
    probed: Bool[Array, "..."]
    rows_of: tuple[Row, ...]
    loose: tuple[str, ...]
    probes: tuple[str, ...]
    batch: str
    draws: int

    def rows(self) -> list[dict[str, Any]]:
        """One dict per unit and layer, in call order, of plain Python values."""
        names = [
            f.name for f in fields(self) if f.name not in (*STATIC, "loss", "probed")
        ]
        columns = {name: np.asarray(getattr(self, name)) for name in names}
        return [
            {
                "path": row.path,
                "kind": row.kind,
                "shape": _shape(row),
                "calls": row.calls,
            }
            | {name: values[i].item() for name, values in columns.items()}
            | {"flag": FLAGS[columns["flag"][i]]}
            for i, row in enumerate(self.rows_of)
        ]

    def worst(self) -> dict[str, tuple[str, float]]:
        """For each pillar, the row with the largest |log2 rms|, and that number.

        Rows in which the pillar is not defined (no floating input) or was not reached
        are left out; zeros and non-finite values count as infinitely far.
        """
        found = {}
        for name in PILLARS:
            values = np.asarray(getattr(self, name), np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                far = np.abs(np.log2(values))
            floats = np.array([r.floats for r in self.rows_of])
            known = floats if name == "input_grad_rms" else np.full(far.shape, True)
            known = known & (np.asarray(self.flag) != FLAGS.index("unreached"))
            far = np.where(known, np.where(np.isnan(far), np.inf, far), -1.0)
            at = int(np.argmax(far))
            found[name] = (self.rows_of[at].path, float(far[at]))
        return found

    def probed_paths(self) -> list[str]:
        """The arrays of zeros that were replaced by a probe draw while measuring."""
        return [self.probes[i] for i in np.flatnonzero(np.asarray(self.probed))]

    def __str__(self) -> str:
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return f"Measurement of {len(self.rows_of)} units (traced)"
        stream = io.StringIO()
        console = Console(file=stream, width=140, color_system=None)
        console.print(self._table())
        for line in self._notes():
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        return stream.getvalue().rstrip()

    def _table(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for name in ("unit", "kind", "shape"):
            table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=40)
        names = ("calls", "rms", "mean", "spread", "grad", "update", "|w|", "|dw|",
                 "a", "b", "c", "flag")  # fmt: skip
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        rows = self.rows()
        gap = len(rows) - SHOWN
        for i, row in enumerate(rows):
            if gap > 0 and SHOWN // 2 <= i < SHOWN // 2 + gap:
                if i == SHOWN // 2:
                    table.add_row(f"... {gap} more in rows()")
                continue
            table.add_row(*_cells(row))
        return table

    def _notes(self) -> list[str]:
        batch = f"inputs {self.batch}"
        lines = [f"loss {float(self.loss):.4g} on {batch}, {self.draws} draw(s)"]
        far = [f"{_short(n)} {d:.2g} at {p}" for n, (p, d) in self.worst().items()]
        lines.append("largest |log2 rms|: " + "; ".join(far))
        if self.draws > 1:
            names = [_short(n) for n in PILLARS]
            columns = [np.asarray(getattr(self, f"{n}_deviation")) for n in names]
            spread = [
                f"{name} {np.nanmax(column):.2g}"
                for name, column in zip(names, columns, strict=True)
            ]
            lines.append("largest spread over draws, of ln rms: " + "; ".join(spread))
        if self.loose:
            lines.append("parameters of no unit: " + ", ".join(self.loose))
        if self.probed_paths():
            lines.append("zeros probed: " + ", ".join(self.probed_paths()))
        return lines


def _short(pillar: str) -> str:
    return pillar.removesuffix("_rms")


def _shape(row: Row) -> str:
    return " ".join("x".join(map(str, s)) or "scalar" for s in row.shape)


def _cells(row: dict[str, Any]) -> list[str]:
    names = ("output_rms", "output_mean", "output_spread", "input_grad_rms",
             "update_rms", "param_rms", "param_grad_rms", "output", "input_grad",
             "output_grad")  # fmt: skip
    numbers = ["" if np.isnan(row[n]) else f"{row[n]:.3g}" for n in names]
    flag = "" if row["flag"] == "ok" else row["flag"]
    return [row["path"], row["kind"], row["shape"], str(row["calls"]), *numbers, flag]
