"""How far each unit's output moves when parameters take a step, found anew.

`tune` finds it by taps on tangents. Nothing of that is used here: the scaled model runs
as it is. Where its units' outputs are let out as intermediates, they are outputs of
`jax.jvp`. Of the others (inside of lifted transforms) differences are taken: the model
runs at both ends of a short way along the step, side by side under `vmap`, and each
unit compares its two outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import (
    ModelArgs,
    Params,
    Partition,
    at_peak,
    float_leaves,
    inverse,
    plain,
    rms,
    times,
    varies,
    widen,
)
from ..graph import derivative_along
from ..units import (
    Objective,
    Unit,
    UnitKey,
    concat_units,
    outputs_alone,
    scaling,
    split_units,
)
from ._output_drift import output_drift
from ._outputs import captured_sizes

WAY = 2.0**-10
"""How far the parameters of some unit, or the outputs of the model, move at most, in
their own rms: far enough for the rounding of float32, and near enough for a curve."""
COARSE_WAY = 2.0**-4
"""The same where something is computed in 16 bits."""


@dataclass(frozen=True)
class TotalUpdates:
    """Finds the changes of all units' outputs, in a model whose factors are fixed."""

    objective: Objective
    units: tuple[Unit, ...]
    factors: Mapping[UnitKey, Mapping[str, Array]]
    """Those of each unit; of them the factor a counts."""
    captured: tuple[Unit, ...]
    """The units whose outputs are read off captured intermediates."""

    def along(self, args: ModelArgs, step: list[Array]) -> dict[UnitKey, Array]:
        """The rms of each unit's change by a step, to first order, by layer.

        Over calls it is the root mean square. `step` has how each floating leaf of
        params moves, in their order. NaN for units whose outputs do not come out where
        types tell what varies (`jax.shard_map`): jax has no collectives under `vmap`
        there, by which both ends would be compared.
        """
        step, size = at_peak(step)
        inside = lambda: self._along_step_near_one(args, step)
        changes = self.objective.over_axis(inside)
        column = times(size, concat_units(self.units, changes))  # in one kernel
        found = split_units(self.units, {"change": column})
        return {key: own["change"] for key, own in found.items()}

    def _along_step_near_one(
        self, args: ModelArgs, step: list[Array]
    ) -> dict[UnitKey, Array]:
        changes = self._by_tangents(args, step) if self.captured else {}
        left = [unit for unit in self.units if unit.key not in changes]
        if left and varies(args):
            unknown = lambda unit: jnp.full(unit.carried_shape, jnp.nan, jnp.float32)
            changes |= {unit.key: unknown(unit) for unit in left}
        elif left:
            changes |= self._by_differences(args, step, left)
        return changes

    def _by_tangents(self, args: ModelArgs, step: list[Array]) -> dict[UnitKey, Array]:
        """The changes of those units whose outputs come out."""
        leaves = Partition(plain(args.params))
        calls: dict[UnitKey, list[list[Array]]] = {}

        def outputs(*floats: Array) -> list[Array]:
            params = leaves.build(list(floats))
            _, captured = self._run(args, params, capture=self.captured)
            calls.update(captured)
            return jax.tree.leaves(captured)

        _, moved = derivative_along(outputs, leaves.floats, step)
        captured = jax.tree.unflatten(jax.tree.structure(calls), moved)
        return captured_sizes(captured, self.captured)

    def _by_differences(
        self, args: ModelArgs, step: list[Array], units: list[Unit]
    ) -> dict[UnitKey, Array]:
        leaves = Partition(plain(args.params))
        reach = self._reach(args, leaves, step)

        def end(way: Array) -> Params:
            """The parameters that far along the step."""
            pairs = zip(leaves.floats, step, strict=True)
            ends = [(widen(x) + way * widen(t)).astype(x.dtype) for x, t in pairs]
            return leaves.build(ends)

        drift = output_drift(
            self.objective,
            tuple(units),
            args._replace(params=end(-reach)),
            now=end(reach),
            factors=outputs_alone(self.factors),
        )
        return {
            key: times(own["change"], inverse(2 * reach)) for key, own in drift.items()
        }

    def _reach(
        self, args: ModelArgs, leaves: Partition, step: list[Array]
    ) -> Float[Array, ""]:
        """How far to go along the step."""

        def outputs(*floats: Array) -> list[Array]:
            return float_leaves(self._run(args, leaves.build(list(floats)))[0])

        floats = tuple(leaves.floats)
        here, moved = derivative_along(outputs, floats, step)
        pairs = [([x], [t]) for x, t in zip(floats, step, strict=True) if x.size]
        ratio = lambda size, change: size / jnp.where(change > 0, change, jnp.nan)
        sizes = [ratio(rms(x), rms(t)) for x, t in (*pairs, (here, moved))]
        coarse = any(jnp.finfo(x.dtype).bits == 16 for x in (*floats, *here))
        sizes = jnp.stack(sizes)
        sizes = jnp.where((sizes > 0) & jnp.isfinite(sizes), sizes, jnp.inf)
        nearest = jnp.min(sizes, initial=jnp.inf)
        nearest = jnp.where(jnp.isfinite(nearest), nearest, 1.0)
        return nearest * (COARSE_WAY if coarse else WAY)

    def _run(self, args: ModelArgs, params: Params, **how: Any) -> tuple[Any, Any]:
        """What the objective's run gives for some parameters."""
        scaled = scaling(outputs_alone(self.factors))
        return self.objective.run(args._replace(params=params), scaled, **how)
