"""What `measure` returns: columns of numbers, a row per unit, and their text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..core import is_concrete
from ..reporting import (
    FACTOR_COLUMNS,
    PILLAR_HEADS,
    VALUE_WORDS,
    WORD_COLUMNS,
    Judgement,
    Printable,
    amplification_note,
    draws_note,
    epsilon_note,
    flat_scalars,
    layers_off,
    pillar_cell,
    pillar_panels,
    probes_note,
    ranked_columns,
    raw_notes,
    rules_note,
    summary_lines,
    total_note,
)
from ..units import UnitRow
from ._findings import FLAGS, judged, targets_found, verdict_on

if TYPE_CHECKING:
    from matplotlib.figure import Figure


NO_COLUMNS = ("loss", "loose_update_rms", "outputs_amplification", "probed")
"""Arrays of a measurement that have no entry per row."""


STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Measurement(Printable):
    r"""The three pillars, unit by unit in call order: a frozen pytree.

    Each array has one entry per row, float32; lifted units (`nn.scan`, `nn.vmap` over
    layers) have a row per layer. `rms(t) = sqrt(mean |t|^2)`, over calls too where a
    unit is called several times.

    | field | meaning |
    |---|---|
    | `output_rms` | rms of the output (pillar 1) |
    | `output_target` | what it is to be: 1, or that of `targets` |
    | `output_mean` | mean / rms of the output |
    | `output_spread` | rms(y - batch mean) / rms(y): 0 where all inputs look alike |
    | `input_grad_rms` | largest rms over the gradients of the unit's floating inputs (pillar 2); NaN where it has none |
    | `update_rms` | rms of the change of the output by a step of the unit's own parameters at learning rate 1, to first order, inputs held fixed (pillar 3); the step is that of SGD, or the first one of the optimizer given, times `update_factor` |
    | `total_update_rms` | the same when all move together that have factors and multiply: not what is only added (tokens, tables of positions) |
    | `amplification` | how much more differences between inputs have grown than the signal: `A = [rms(t_y) / rms(s(y))] / [rms(t_x) / rms(s(x))]`, with `s(v) = v - batch mean` and t the tangents along x' - x, where x' is the batch rolled by one example (from integer inputs: starting at the outputs of the units that read them); 1 in a linear network; NaN where no difference gets, for a batch of one, and where forward mode cannot follow |
    | `outputs_amplification` | the same of the model's outputs |
    | `epsilon_share` | by what share the optimizer's first step of the unit is smaller than for gradients of rms 1, where larger ones do not make it larger: what Adam's epsilon takes |
    | `cosine` | between the carried and the true gradient (at b = c = 1) of the unit's parameters; NaN where one is zero |
    | `potential` | carried over true input gradient; equal all over a region where gradients are exact; NaN without a floating input |
    | `loose_update_rms` | the largest change of any unit's output by a step at learning rate 1 of all that the total update leaves out: `loose` and `added`, and units whose parameters the loss's region uses as well |
    | `param_rms`, `param_grad_rms` | rms of the unit's parameters and their gradients |
    | `output_factor`, `input_grad_factor`, `output_grad_factor` | a, b, c: those of `scales` in force |
    | `update_factor` | that of an optimizer's updates, 1 where there is none |
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
    output_target: Float[Array, "..."]
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
    output_factor: Float[Array, "..."]
    input_grad_factor: Float[Array, "..."]
    output_grad_factor: Float[Array, "..."]
    update_factor: Float[Array, "..."]
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

    HEADS: ClassVar[Mapping[str, str]] = PILLAR_HEADS
    WORDS: ClassVar[tuple[str, ...]] = WORD_COLUMNS

    def rows(self) -> list[dict[str, Any]]:
        """One dict per unit and layer, in call order, of plain Python values."""
        arrays = [f.name for f in fields(self) if f.metadata != STATIC]
        names = [name for name in arrays if name not in NO_COLUMNS]
        columns = {name: np.asarray(getattr(self, name)) for name in names}
        return [
            {
                "path": row.path,
                "kind": row.kind,
                "shape": row.shape_text,
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
        names = (*VALUE_WORDS, "amplification")
        return flat_scalars(self.rows(), names) | {"loss": float(self.loss)}

    def plot(self) -> "Figure":
        """The three pillars at a glance, a matplotlib figure; see `einit_jax.plot`.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return pillar_panels({"": self.rows()}, self.judgement)

    def targets(self) -> dict[str, float | np.ndarray]:
        """The rms of outputs by unit, as `tune(targets=...)` takes it.

        With these the tuned model computes what this one does: pretrained weights keep
        their function. Units under `nn.scan` and `nn.vmap` over layers have an array, a
        number for each layer. Outputs that are zero, not finite or not reached have 1.

        Raises:
            ValueError: the measurement is traced, or of several runs.
        """
        if self._unprintable():
            raise ValueError(f"no targets are known of a {self._unprintable()}")
        return targets_found(self.rows_of, np.asarray(self.output_rms, np.float64))

    def layers_off(self) -> list[dict[str, Any]]:
        """The rows that `summary` calls off, the worst first: path, trouble, values."""
        return layers_off(self.judgement, self.rows())

    @staticmethod
    def joint_figures(named: Mapping[str, "Measurement"]) -> dict[str, "Figure"]:
        """The figures of several measurements in one report, by heading.

        One figure of all where their units are the same, else one each, by name.
        """
        if len({tuple(row.unit for row in t.rows_of) for t in named.values()}) > 1:
            return {name: table.plot() for name, table in named.items()}
        rows = {name: table.rows() for name, table in named.items()}
        *_, last = named.values()
        return {"the three pillars": pillar_panels(rows, last.judgement)}

    def worst(self) -> dict[str, tuple[str, float]]:
        """For each rule in force the row that is farthest off, and how far, in octaves.

        `output_rms`: |log2| of it over its target. `input_grad_rms`: where gradients
        are exact, of its geometric mean over the units that read the same region, where
        they are not, of itself. `update_rms`: of the unit's own update over 1 under the
        local rule, over the typical one under the total rule; then `total_update_rms`,
        too, |log2| of the largest one. Zeros and what is not finite are infinitely far;
        what is not defined anywhere, or not reached, is left out.
        """
        judgement = self.judgement
        rows = judgement.worst_rows(self._columns(tuple(judgement.due)))
        return {
            name: (self.rows_of[row].path, float(judgement.distances[name][row]))
            for name, row in rows.items()
        }

    def summary(self) -> list[str]:
        """The verdict: is all well, else the worst layers and what to do about them.

        "OK", "OFF", or "NOT TUNED" where all factors are 1 and values are not; of the
        rules in force, as in `worst`. Up to 10% from them is well: `missed`, too.
        """
        distinct, grown = self.verdict(), float(self.outputs_amplification)
        more = "" if self.by == "SGD" else ", optimizer=..."
        return summary_lines(
            self.judgement,
            self.rows(),
            tune=f"ei.tune(model, params, input_fn, loss_fn{more}) mends it",
            distinct=distinct and f"{distinct}, amplification {grown:.3g}",
        )

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
        return self.judgement.held

    @cached_property
    def judgement(self) -> Judgement:
        """The rules that hold, those in force, and how far rows are from these."""
        inside = np.array([row.inside for row in self.rows_of])
        return judged(
            self._columns((*VALUE_WORDS, "cosine", "output_target")),
            self.rows_of,
            flags=np.asarray(self.flag),
            given=(inside == self.loss_region) & (self.by == "SGD"),
            factors=np.array(list(self._columns(FACTOR_COLUMNS).values())),
            loss_region=self.loss_region,
        )

    def _columns(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Columns by name, float64."""
        return {name: np.asarray(getattr(self, name), np.float64) for name in names}

    def probed_paths(self) -> list[str]:
        """The arrays of zeros that were replaced by a probe draw while measuring."""
        return [self.probes[i] for i in np.flatnonzero(np.asarray(self.probed))]

    def _remarks(self) -> list[str]:
        """Sentences about the whole: epsilon, rules, loss, ..."""
        rows, of_outputs = self.rows(), float(self.outputs_amplification)
        return [
            *epsilon_note(rows),
            total_note(rows, self.by),
            rules_note(self.modes(), self.judgement.tolerance),
            *amplification_note(rows, of_outputs, self.verdict()),
            *raw_notes(self.raw, self.added, self.loose, float(self.loose_update_rms)),
            *draws_note(rows, self.draws),
            *probes_note(self.probed_paths()),
            f"loss {float(self.loss):.4g} on {self.batch}, {self.draws} draw(s)",
        ]

    def _unprintable(self) -> str:
        about = f"Measurement of {len(self.rows_of)} layers"
        known = [hasattr(x, "dtype") and is_concrete(x) for x in jax.tree.leaves(self)]
        if not known or not all(known):
            return f"{about} (traced)"
        return "" if np.ndim(self.flag) == 1 else f"{about}, {len(self.flag)} runs"

    def _scores(self) -> Sequence[float]:
        """Rows that are well are all alike."""
        return [far if far > 1 else 0.0 for far in self.judgement.by_row().tolist()]

    def _ranked(self, rows: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
        return ranked_columns(rows, self.judgement.update)

    def _cell(self, row: Mapping[str, Any], name: str) -> str:
        return pillar_cell(name, super()._cell(row, name))
