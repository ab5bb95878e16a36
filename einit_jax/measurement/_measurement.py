"""What `measure` returns: columns of numbers, a row per unit, and their text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..core import is_concrete
from ..reporting import (
    flat_scalars,
    format_number,
    format_table,
    pillar_panels,
    unit_of_row,
)
from ..units import UnitRow
from ._satisfied_rules import RULE_NAMES, satisfied_rules

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FLAGS = ("ok", "zero", "non-finite", "unreached", "missed", "out of range")


PILLAR_COLUMNS = ("output_rms", "input_grad_rms", "update_rms")


STATIC_FIELDS = ("rows_of", "loose", "probes", "batch", "draws", "loss_region", "by")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "output_rms", "output_mean", "output_spread", "input_grad_rms", "update_rms",
        "total_update_rms", "cosine", "potential", "loose_update_rms", "param_rms",
        "param_grad_rms", "output", "input_grad", "output_grad", "update", "nonfinite",
        "flag", "output_deviation", "input_grad_deviation", "update_deviation", "loss",
        "probed",
    ],
    meta_fields=list(STATIC_FIELDS),
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
    | `update_rms` | rms of the change of the output by a step of the unit's own parameters at learning rate 1, to first order, inputs held fixed (pillar 3); the step is that of SGD, or the first one of the optimizer given, times `update` |
    | `total_update_rms` | the same when the parameters of all units move together |
    | `cosine` | between the carried and the true gradient (at b = c = 1) of the unit's parameters; NaN where one is zero |
    | `potential` | carried over true input gradient; equal all over a region where gradients are exact; NaN without a floating input |
    | `loose_update_rms` | the largest change of any unit's output by a step at learning rate 1 of the raw parameters, which no unit owns, and of units whose parameters the loss's region uses as well |
    | `param_rms`, `param_grad_rms` | rms of the unit's parameters and their gradients |
    | `output`, `input_grad`, `output_grad` | the three factors in force |
    | `update` | the factor of an optimizer's updates, 1 where there is none |
    | `nonfinite` | number of elements that are not finite |
    | `flag` | index into `FLAGS`: ok, zero, non-finite, unreached, missed (the output is not what its factor is for), out of range (a factor, or a product of two, is hardly a float32) |
    | `*_deviation` | standard deviation over draws of the logarithm of a pillar |
    | `loss` | the loss, averaged over draws |
    | `probed` | whether each array of `probes` was zero and was replaced |

    `rows_of` holds what is static of each row: path, kind, shape, calls, and `region`,
    the number of the part of the graph between units in which its input gradient lies.
    In `loss_region` gradients are given by the loss, and stay as they are. `loose` has
    the paths of the raw parameters, `batch` the shapes measured on, `by` names whose
    step makes the changes.
    """  # noqa: E501

    output_rms: Float[Array, "..."]
    output_mean: Float[Array, "..."]
    output_spread: Float[Array, "..."]
    input_grad_rms: Float[Array, "..."]
    update_rms: Float[Array, "..."]
    total_update_rms: Float[Array, "..."]
    cosine: Float[Array, "..."]
    potential: Float[Array, "..."]
    loose_update_rms: Float[Array, "..."]
    param_rms: Float[Array, "..."]
    param_grad_rms: Float[Array, "..."]
    output: Float[Array, "..."]
    input_grad: Float[Array, "..."]
    output_grad: Float[Array, "..."]
    update: Float[Array, "..."]
    nonfinite: Int[Array, "..."]
    flag: Int[Array, "..."]
    output_deviation: Float[Array, "..."]
    input_grad_deviation: Float[Array, "..."]
    update_deviation: Float[Array, "..."]
    loss: Float[Array, "..."]
    probed: Bool[Array, "..."]
    rows_of: tuple[UnitRow, ...]
    loose: tuple[str, ...]
    probes: tuple[str, ...]
    batch: str
    draws: int
    loss_region: int
    by: str

    def rows(self) -> list[dict[str, Any]]:
        """One dict per unit and layer, in call order, of plain Python values."""
        no_columns = (*STATIC_FIELDS, "loss", "probed", "loose_update_rms")
        names = [f.name for f in fields(self) if f.name not in no_columns]
        columns = {name: np.asarray(getattr(self, name)) for name in names}
        return [
            {
                "path": row.path,
                "kind": row.kind,
                "shape": _shape_text(row),
                "calls": row.calls,
                "region": row.region,
            }
            | {name: values[i].item() for name, values in columns.items()}
            | {"flag": FLAGS[columns["flag"][i]]}
            for i, row in enumerate(self.rows_of)
        ]

    def scalars(self) -> dict[str, float]:
        """`{"unit/pillar": value}`, as writers of logs take it, and the loss.

        The pillars and the total update of every row where they are defined. A layer's
        number is a part of the name: `{"blocks/Dense_0/3/output_rms": 1.0}`.
        """
        names = (*PILLAR_COLUMNS, "total_update_rms")
        return flat_scalars(self.rows(), names) | {"loss": float(self.loss)}

    def plot(self) -> "Figure":
        """The three pillars at a glance, a matplotlib figure; see `einit_jax.plot`.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return pillar_figure({"": self})

    def figures(self) -> dict[str, "Figure"]:
        """The figures of a report, by what they show."""
        return {"": self.plot()}

    @staticmethod
    def joint_figures(named: Mapping[str, "Measurement"]) -> dict[str, "Figure"]:
        """The figures of several measurements in one report, by heading.

        One figure of all where their units are the same, else one each, by name.
        """
        first, *others = named.values()
        if all(units_of(other) == units_of(first) for other in others):
            return {"the three pillars": pillar_figure(named)}
        return {name: pillar_figure({"": each}) for name, each in named.items()}

    def worst(self) -> dict[str, tuple[str, float]]:
        """For each pillar, the row with the largest |log2 rms|, and that number.

        Rows in which the pillar is not defined (no floating input) or was not reached
        are left out, and so is a pillar without any other row; zeros and non-finite
        values count as infinitely far.
        """
        floats = np.array([row.floats for row in self.rows_of])
        reached = np.asarray(self.flag) != FLAGS.index("unreached")
        worst = {}
        for name in PILLAR_COLUMNS:
            values = np.asarray(getattr(self, name), np.float64)
            with np.errstate(divide="ignore", invalid="ignore"):
                distances = np.abs(np.log2(values))
            distances[np.isnan(distances)] = np.inf
            defined = reached & floats if name == "input_grad_rms" else reached
            distances = np.where(defined, distances, -1.0)
            i = int(np.argmax(distances))
            if distances[i] < 0:
                continue
            worst[name] = (self.rows_of[i].path, float(distances[i]))
        return worst

    def modes(self) -> dict[str, tuple[str, ...]]:
        """The rules of pillars 2 and 3 that the factors in force satisfy here.

        gradients: "exact", all cosines above 0.9999; "unit", all input gradients of
        rms 1. update: "local", each unit's own update 1; "total", these are equal and
        the largest total update is 1. Within 1%, or 10% where units are called several
        times; parameters that several rows share count once, by their mean square. Of
        SGD's updates those do not count that the loss's region gives.
        """
        flag = np.asarray(self.flag)
        usable = np.isin(flag, [FLAGS.index("ok"), FLAGS.index("missed")])
        broken = [FLAGS.index("non-finite"), FLAGS.index("out of range")]
        if not usable.any() or np.isin(flag, broken).any():
            return dict.fromkeys(RULE_NAMES, ())
        names = ("cosine", "input_grad_rms", "update_rms", "total_update_rms")
        columns = {name: np.asarray(getattr(self, name), np.float64) for name in names}
        inside = np.array([row.inside for row in self.rows_of])
        given = (inside == self.loss_region) & (self.by == "SGD")
        counted = usable & ~given
        return satisfied_rules(columns, usable, self.rows_of, counted=counted)

    def probed_paths(self) -> list[str]:
        """The arrays of zeros that were replaced by a probe draw while measuring."""
        return [self.probes[i] for i in np.flatnonzero(np.asarray(self.probed))]

    def __str__(self) -> str:
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return f"Measurement of {len(self.rows_of)} units (traced)"
        has_update_factors = bool(np.any(np.asarray(self.update) != 1))
        factors = ("a", "b", "c", "u") if has_update_factors else ("a", "b", "c")
        names = ("calls", "rms", "mean", "spread", "grad", "update", "total", *factors,
                 "cos", "region", "phi", "flag")  # fmt: skip
        cells = [_row_cells(row, factors) for row in self.rows()]
        return format_table(("unit", "kind", "shape"), names, cells, self.notes())

    def notes(self) -> list[str]:
        """Sentences about the whole: loss, worst rows, rules that hold."""
        worst = [
            f"{_short_name(name)} {distance:.2g} at {path}"
            for name, (path, distance) in self.worst().items()
        ]
        total = np.asarray(self.total_update_rms)
        largest = int(np.argmax(np.nan_to_num(total)))
        none = {p: "neither " + " nor ".join(names) for p, names in RULE_NAMES.items()}
        rules = [
            f"{pillar}: {' and '.join(held) or none[pillar]}"
            for pillar, held in self.modes().items()
        ]
        lines = [
            f"loss {float(self.loss):.4g} on inputs {self.batch}, {self.draws} draw(s)",
            "largest |log2 rms|: " + "; ".join(worst),
            f"largest total update, by {self.by} at learning rate 1: "
            f"{float(total[largest]):.3g} at {self.rows_of[largest].path}",
            "rules that hold: " + "; ".join(rules),
        ]
        return lines + self._further_notes()

    def _further_notes(self) -> list[str]:
        """What is not true of every measurement: draws, raw parameters, probes."""
        lines = []
        if self.draws > 1:
            names = [_short_name(name) for name in PILLAR_COLUMNS]
            columns = [np.asarray(getattr(self, f"{name}_deviation")) for name in names]
            largest = [
                f"{name} {np.nanmax(column):.2g}"
                for name, column in zip(names, columns, strict=True)
                if not np.isnan(column).all()
            ]
            lines.append("largest spread over draws, of ln rms: " + "; ".join(largest))
        if self.loose:
            moves = f", which move outputs by up to {float(self.loose_update_rms):.3g}"
            lines.append("parameters of no unit" + moves + ": " + ", ".join(self.loose))
        if self.probed_paths():
            lines.append("zeros probed: " + ", ".join(self.probed_paths()))
        return lines


def _short_name(pillar: str) -> str:
    return pillar.removesuffix("_rms")


def _shape_text(row: UnitRow) -> str:
    return " ".join("x".join(map(str, s)) or "scalar" for s in row.shape)


FACTOR_OF = {"a": "output", "b": "input_grad", "c": "output_grad", "u": "update"}


def _row_cells(row: dict[str, Any], factors: Sequence[str]) -> list[str]:
    names = ("output_rms", "output_mean", "output_spread", "input_grad_rms",
             "update_rms", "total_update_rms", *(FACTOR_OF[f] for f in factors),
             "cosine")  # fmt: skip
    flag = "" if row["flag"] == "ok" else row["flag"]
    start = [row["path"], row["kind"], row["shape"], str(row["calls"])]
    end = [str(row["region"]), format_number(row["potential"]), flag]
    return [*start, *(format_number(row[name]) for name in names), *end]


def pillar_figure(named: Mapping[str, Measurement]) -> "Figure":
    """One figure of measurements of the same units; a single one has no legend."""
    tables = {name: measurement.rows() for name, measurement in named.items()}
    return pillar_panels(
        tables if len(tables) > 1 else {"": next(iter(tables.values()))}
    )


def units_of(measurement: Measurement) -> list[str]:
    """The unit of each row."""
    return [unit_of_row(row.path) for row in measurement.rows_of]
