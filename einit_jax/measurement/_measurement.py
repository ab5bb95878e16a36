"""What `measure` returns: columns of numbers, a row per unit, and their text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..core import is_concrete
from ..reporting import (
    flat_scalars,
    format_table,
    pillar_panels,
    unit_of_row,
)
from ..units import UnitRow
from ._findings import (
    RULE_NAMES,
    amplification_note,
    deviation_note,
    epsilon_note,
    farthest_rows,
    raw_notes,
    row_cells,
    rules_note,
    satisfied_rules,
    verdict_on,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


FLAGS = ("ok", "zero", "non-finite", "unreached", "missed", "out of range")


PILLAR_COLUMNS = ("output_rms", "input_grad_rms", "update_rms")


NO_COLUMNS = ("loss", "loose_update_rms", "outputs_amplification", "probed")
"""Arrays of a measurement that have no entry per row."""


HEADS = {
    "calls": "calls", "rms": "output_rms", "mean": "output_mean",
    "spread": "output_spread", "grad": "input_grad_rms", "update": "update_rms",
    "total": "total_update_rms", "amplif": "amplification", "a": "output",
    "b": "input_grad", "c": "output_grad", "u": "update", "cos": "cosine",
    "region": "region", "phi": "potential", "flag": "flag",
}  # fmt: skip
"""What the text has above each number of a row."""


STATIC = {"static": True}


@jax.tree_util.register_dataclass
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
    | `total_update_rms` | the same when all move together that have factors and multiply: not what is only added (tokens, tables of positions) |
    | `amplification` | how much more differences between inputs have grown than the signal: `A = [rms(t_y) / rms(s(y))] / [rms(t_x) / rms(s(x))]`, with `s(v) = v - batch mean` and t the tangents along x' - x, where x' is the batch rolled by one example (from integer inputs: starting at the outputs of the units that read them); 1 in a linear network; NaN where no difference gets, for a batch of one, and where forward mode cannot follow |
    | `outputs_amplification` | the same of the model's outputs |
    | `epsilon_share` | by what share the optimizer's first step of the unit is smaller than for gradients of rms 1, where larger ones do not make it larger: what Adam's epsilon takes |
    | `cosine` | between the carried and the true gradient (at b = c = 1) of the unit's parameters; NaN where one is zero |
    | `potential` | carried over true input gradient; equal all over a region where gradients are exact; NaN without a floating input |
    | `loose_update_rms` | the largest change of any unit's output by a step at learning rate 1 of all that the total update leaves out: `loose` and `added`, and units whose parameters the loss's region uses as well |
    | `param_rms`, `param_grad_rms` | rms of the unit's parameters and their gradients |
    | `output`, `input_grad`, `output_grad` | the three factors in force |
    | `update` | the factor of an optimizer's updates, 1 where there is none |
    | `nonfinite` | number of elements that are not finite |
    | `flag` | index into `FLAGS`: ok, zero, non-finite, unreached, missed (the output is not what its factor is for), out of range (a factor, or a product of two, is hardly a float32) |
    | `*_deviation` | standard deviation over draws of the logarithm of a pillar |
    | `loss` | the loss, averaged over draws |
    | `probed` | whether each array of `probes` was zero and was replaced |

    `rows_of` has path, kind, shape and calls of each row, and `region`, the number of
    the part of the graph between units in which its input gradient lies; in
    `loss_region` gradients are given. `raw` has the raw parameters with factors,
    `loose` those without, `added` all with factors that are only added, `batch` the
    shapes measured on; `by` names whose step makes the changes.
    """  # noqa: E501

    output_rms: Float[Array, "..."]
    output_mean: Float[Array, "..."]
    output_spread: Float[Array, "..."]
    input_grad_rms: Float[Array, "..."]
    update_rms: Float[Array, "..."]
    total_update_rms: Float[Array, "..."]
    amplification: Float[Array, "..."]
    epsilon_share: Float[Array, "..."]
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
    outputs_amplification: Float[Array, "..."]
    probed: Bool[Array, "..."]
    rows_of: tuple[UnitRow, ...] = field(metadata=STATIC)
    loose: tuple[str, ...] = field(metadata=STATIC)
    raw: tuple[str, ...] = field(metadata=STATIC)
    added: tuple[str, ...] = field(metadata=STATIC)
    probes: tuple[str, ...] = field(metadata=STATIC)
    batch: str = field(metadata=STATIC)
    draws: int = field(metadata=STATIC)
    loss_region: int = field(metadata=STATIC)
    by: str = field(metadata=STATIC)

    def rows(self) -> list[dict[str, Any]]:
        """One dict per unit and layer, in call order, of plain Python values."""
        arrays = [f.name for f in fields(self) if f.metadata != STATIC]
        names = [name for name in arrays if name not in NO_COLUMNS]
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

        The pillars, the total update and the amplification of every row where they are
        defined. A layer's number is a part of the name:
        `{"blocks/Dense_0/3/output_rms": 1.0}`.
        """
        names = (*PILLAR_COLUMNS, "total_update_rms", "amplification")
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
        reached = np.asarray(self.flag) != FLAGS.index("unreached")
        floats = np.array([row.floats for row in self.rows_of])
        defined = {"input_grad_rms": reached & floats}
        columns = self._columns(PILLAR_COLUMNS)
        defined = {name: defined.get(name, reached) for name in columns}
        return farthest_rows(columns, defined, self._paths())

    def verdict(self) -> str:
        """What becomes of differences between inputs: an empty text where they last.

        "inputs collapse" or "inputs are torn apart" where the outputs' amplification is
        above 3: the former if, at the row of the largest one, `output_spread` has lost
        more octaves, from the first row that has any, than half of that of the outputs,
        log2 of it. Inputs collapse also where the last row has below 1/16 of the first.
        """
        columns = self._columns(("amplification", "output_spread")).values()
        return verdict_on(*columns, of_outputs=float(self.outputs_amplification))

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
        columns = self._columns(names)
        inside = np.array([row.inside for row in self.rows_of])
        given = (inside == self.loss_region) & (self.by == "SGD")
        counted = usable & ~given
        return satisfied_rules(columns, usable, self.rows_of, counted=counted)

    def _paths(self) -> list[str]:
        return [row.path for row in self.rows_of]

    def _columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns by name, float64."""
        return {name: np.asarray(getattr(self, name), np.float64) for name in names}

    def probed_paths(self) -> list[str]:
        """The arrays of zeros that were replaced by a probe draw while measuring."""
        return [self.probes[i] for i in np.flatnonzero(np.asarray(self.probed))]

    def __str__(self) -> str:
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return f"Measurement of {len(self.rows_of)} units (traced)"
        has_update_factors = bool(np.any(np.asarray(self.update) != 1))
        heads = [head for head in HEADS if head != "u" or has_update_factors]
        cells = [row_cells(row, [HEADS[head] for head in heads]) for row in self.rows()]
        return format_table(("unit", "kind", "shape"), heads, cells, self.notes())

    def notes(self) -> list[str]:
        """Sentences about the whole: loss, worst rows, rules that hold."""
        worst = [
            f"{name.removesuffix('_rms')} {distance:.2g} at {path}"
            for name, (path, distance) in self.worst().items()
        ]
        total = np.asarray(self.total_update_rms)
        largest = int(np.argmax(np.nan_to_num(total)))
        lines = [
            f"loss {float(self.loss):.4g} on inputs {self.batch}, {self.draws} draw(s)",
            "largest |log2 rms|: " + "; ".join(worst),
            f"largest total update, by {self.by} at learning rate 1: "
            f"{float(total[largest]):.3g} at {self.rows_of[largest].path}",
            rules_note(self.modes()),
        ]
        return lines + self._further_notes()

    def _further_notes(self) -> list[str]:
        """Not of every measurement: amplification, draws, raw parameters, probes."""
        grown = self.amplification, float(self.outputs_amplification)
        lines = amplification_note(*grown, self._paths(), self.verdict())
        if self.draws > 1:
            names = [
                f"{name.removesuffix('_rms')}_deviation" for name in PILLAR_COLUMNS
            ]
            lines.append(deviation_note(self._columns(names)))
        moves = float(self.loose_update_rms)
        lines += epsilon_note(self.epsilon_share, self._paths())
        lines += raw_notes(self.raw, self.added, self.loose, moves)
        if self.probed_paths():
            lines.append("zeros probed: " + ", ".join(self.probed_paths()))
        return lines


def _shape_text(row: UnitRow) -> str:
    return " ".join("x".join(map(str, s)) or "scalar" for s in row.shape)


def pillar_figure(named: Mapping[str, Measurement]) -> "Figure":
    """One figure of measurements of the same units; a single one has no legend."""
    names = named if len(named) > 1 else [""]
    rows = [measurement.rows() for measurement in named.values()]
    return pillar_panels(dict(zip(names, rows, strict=True)))


def units_of(measurement: Measurement) -> list[str]:
    """The unit of each row."""
    return [unit_of_row(row.path) for row in measurement.rows_of]
