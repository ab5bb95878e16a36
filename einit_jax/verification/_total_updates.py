"""How far each unit's output moves when parameters take a step, found anew.

`tune` finds it by taps on tangents. Nothing of that is used here: the scaled model runs
as it is. Where its units' outputs are let out as intermediates, they are outputs of
`jax.jvp`. Of the others (inside of lifted transforms) differences are taken: the model
runs at both ends of a short way along the step, side by side under `vmap`, and each
unit compares its two outputs. It begins with a way on which no parameter moves by much,
and goes on until some output does: a parameter may be next to 0 (LayerScale) and its
step not, and what all others do meanwhile would be rounding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
)
from ._output_drift import output_drift
from ._outputs import captured_sizes

WAY, EPS = 2.0**-10, 2.0**-24
"""How far the outputs of some unit, or of the model, move, in their own rms: far enough
for the rounding of float32, and near enough for a curve; and that rounding."""
COARSE_WAY, COARSE_EPS = 2.0**-4, 2.0**-8
"""The same where something is computed in 16 bits."""
ENOUGH = 0.25
"""What part of that way will do."""
FARTHEST = 1e30
TRIES = 16
"""How often to look for it: each time by as much as rounding may hide."""


class _Reach(NamedTuple):
    """How far to go along a step: at first, and at most."""

    first: Float[Array, ""]
    longest: Float[Array, ""]
    way: float
    eps: float


class _Ends(NamedTuple):
    """What was seen at both ends of a way, and how far to go next."""

    tries: Int[Array, ""]
    reach: Float[Array, ""]
    next: Float[Array, ""]
    changes: dict[UnitKey, Array]


def _way_to_double(size: Array, change: Array) -> Array:
    """How far to go until something changes by its own size; inf where it does not."""
    ratio = size / jnp.where(change > 0, change, jnp.nan)
    return jnp.where((ratio > 0) & jnp.isfinite(ratio), ratio, jnp.inf)


def _most(drift: Mapping[UnitKey, Mapping[str, Array]]) -> Float[Array, ""]:
    """The largest change of a unit from the middle to an end, in its own size."""
    pairs = [(own["change"] / 2, own["size"]) for own in drift.values()]
    part = lambda change, size: jnp.where(size == 0, 0.0, change / size)
    most = jnp.max(jnp.stack([jnp.max(part(*pair)) for pair in pairs]))
    return jnp.where(jnp.isnan(most), jnp.inf, most)


@dataclass(frozen=True)
class TotalUpdates:
    """Finds the changes of all units' outputs, in a model whose factors are fixed."""

    objective: Objective
    units: tuple[Unit, ...]
    factors: Mapping[UnitKey, Mapping[str, Array]]
    """Those of each unit; of them the factor a counts."""
    captured: tuple[Unit, ...]
    """The units whose outputs are read off captured intermediates."""

    def along(self, args: ModelArgs, step: list[Array]) -> Float[Array, " rows"]:
        """The rms of each unit's change by a step, to first order, by layer, in the
        order of `concat_units`.

        Over calls it is the root mean square. `step` has how each floating leaf of
        params moves, in their order. NaN for units whose outputs do not come out where
        types tell what varies (`jax.shard_map`): jax has no collectives under `vmap`
        there, by which both ends would be compared.
        """
        step, size = at_peak(step)
        inside = lambda: self._along_step_near_one(args, step)
        changes = self.objective.over_axis(inside)
        return times(size, concat_units(self.units, changes))

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

        def look(found: _Ends) -> _Ends:
            """The changes on a way, and how far to go after it."""
            drift = output_drift(
                self.objective,
                tuple(units),
                args._replace(params=end(-found.next)),
                now=end(found.next),
                factors=outputs_alone(self.factors),
            )
            per_way = inverse(2 * found.next)
            changes = {k: times(own["change"], per_way) for k, own in drift.items()}
            changes = {k: t.astype(jnp.float32) for k, t in changes.items()}
            further = found.next * reach.way / jnp.maximum(_most(drift), reach.eps)
            further = jnp.minimum(further, reach.longest).astype(found.next.dtype)
            return _Ends(found.tries + 1, found.next, further, changes)

        def short(found: _Ends) -> Array:
            """Whether nothing has moved by much, and there is further to go."""
            more = found.next * ENOUGH > found.reach
            return (found.tries == 0) | (more & (found.tries < TRIES))

        empty = {unit.key: jnp.zeros(unit.carried_shape, jnp.float32) for unit in units}
        first = _Ends(jnp.array(0), jnp.zeros_like(reach.first), reach.first, empty)
        return jax.lax.while_loop(short, look, first).changes

    def _reach(self, args: ModelArgs, leaves: Partition, step: list[Array]) -> "_Reach":
        """How far to go along the step."""

        def outputs(*floats: Array) -> list[Array]:
            return float_leaves(self._run(args, leaves.build(list(floats)))[0])

        floats = tuple(leaves.floats)
        here, moved = derivative_along(outputs, floats, step)
        coarse = any(jnp.finfo(x.dtype).bits == 16 for x in (*floats, *here))
        way, eps = (COARSE_WAY, COARSE_EPS) if coarse else (WAY, EPS)
        pairs = [([x], [t]) for x, t in zip(floats, step, strict=True) if x.size]
        own = [_way_to_double(rms(x), rms(t)) for x, t in pairs]
        of_outputs = _way_to_double(rms(here), rms(moved))
        nearest = jnp.min(jnp.stack([*own, of_outputs]))
        first = way * jnp.where(jnp.isfinite(nearest), nearest, 1.0)
        still = ~jnp.any(
            jnp.stack([rms(t) > 0 for _, t in pairs] or [jnp.array(False)])
        )
        longest = jnp.where(still, first, jnp.minimum(way * of_outputs, FARTHEST))
        return _Reach(first, jnp.maximum(longest, first), way, eps)

    def _run(self, args: ModelArgs, params: Params, **how: Any) -> tuple[Any, Any]:
        """What the objective's run gives for some parameters."""
        scaled = scaling(outputs_alone(self.factors))
        return self.objective.run(args._replace(params=params), scaled, **how)
