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
    Partition,
    anchor,
    emit,
    float_leaves,
    from_windows,
    inverse,
    per_call,
    plain,
    rms,
    times,
    varies,
    vary_with,
    widen,
    windows,
)
from ..graph import derivative_along
from ..units import Interception, Objective, Unit, UnitCall, UnitKey, ones, scaling

ENDS = "einit_ends"
"""The axis along which the two ends of the way lie."""
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
    outputs: Mapping[UnitKey, Array]
    """The factor a of each unit."""
    capture: bool
    """Whether outputs are read off captured intermediates, where these come out."""

    def along(self, args: ModelArgs, step: list[Array]) -> dict[UnitKey, Array]:
        """The rms of each unit's change by a step, to first order, by layer.

        Over calls it is the root mean square. `step` has how each floating leaf of
        params moves, in their order. NaN for units whose outputs do not come out where
        types tell what varies (`jax.shard_map`): jax has no collectives under `vmap`
        there, by which both ends would be compared.
        """
        size = rms(step)
        step = [(widen(t) * inverse(size)).astype(t.dtype) for t in step]
        inside = lambda: self._along_unit_step(args, step)
        changes = self.objective.over_axis(inside)
        return {key: times(size, change) for key, change in changes.items()}

    def _along_unit_step(
        self, args: ModelArgs, step: list[Array]
    ) -> dict[UnitKey, Array]:
        changes = self._by_tangents(args, step) if self.capture else {}
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
            filled = args._replace(params=leaves.build(list(floats)))
            how = {"capture": self.units}
            _, captured = self.objective.run(filled, scaling(self._factors()), **how)
            calls.update(captured)
            return jax.tree.leaves(captured)

        _, moved = derivative_along(outputs, leaves.floats, step)
        captured = jax.tree.unflatten(jax.tree.structure(calls), moved)
        shapes = {unit.key: unit.carried_shape for unit in self.units}
        over_calls = lambda each: rms([jnp.stack([rms(call) for call in each])])
        return {
            key: over_calls(each).reshape(shapes[key]) for key, each in captured.items()
        }

    def _by_differences(
        self, args: ModelArgs, step: list[Array], units: list[Unit]
    ) -> dict[UnitKey, Array]:
        leaves = Partition(plain(args.params))
        reach = self._reach(args, leaves, step)

        def run(side: Array, sums: Any) -> Array:
            floats = [
                (widen(x) + side * reach * widen(t)).astype(x.dtype)
                for x, t in zip(leaves.floats, step, strict=True)
            ]
            filled = args._replace(params=leaves.build(floats))
            outputs, _ = self.objective.run(
                filled, comparing(sums), scaling(self._factors())
            )
            return anchor(float_leaves(outputs))

        def both(sums: Any) -> Array:
            sides = jnp.array([-1.0, 1.0])
            ends = jax.vmap(run, in_axes=(0, None), axis_name=ENDS)(sides, sums)
            return jnp.sum(ends)

        zeros = {unit.key: empty_comparison(unit) for unit in units}
        sums = jax.grad(both)(vary_with(zeros, args))
        return {
            key: times(from_windows(own, own["calls"]), inverse(reach))
            for key, own in sums.items()
        }

    def _reach(
        self, args: ModelArgs, leaves: Partition, step: list[Array]
    ) -> Float[Array, ""]:
        """How far to go along the step."""

        def outputs(*floats: Array) -> list[Array]:
            filled = args._replace(params=leaves.build(list(floats)))
            run = self.objective.run(filled, scaling(self._factors()))
            return float_leaves(run[0])

        floats = tuple(leaves.floats)
        sizes = [
            rms([x]) / jnp.where(rms([t]) > 0, rms([t]), jnp.nan)
            for x, t in zip(floats, step, strict=True)
            if x.size
        ]
        here, moved = derivative_along(outputs, floats, step)
        sizes.append(rms(here) / jnp.where(rms(moved) > 0, rms(moved), jnp.nan))
        coarse = any(jnp.finfo(x.dtype).bits == 16 for x in (*floats, *here))
        sizes = jnp.stack(sizes)
        sizes = jnp.where((sizes > 0) & jnp.isfinite(sizes), sizes, jnp.inf)
        nearest = jnp.min(sizes, initial=jnp.inf)
        nearest = jnp.where(jnp.isfinite(nearest), nearest, 1.0)
        return nearest * (COARSE_WAY if coarse else WAY)

    def _factors(self) -> dict[UnitKey, dict[str, Array]]:
        """Factors at which gradients are those of the plain model."""
        return {
            key: own | {"output": self.outputs[key]}
            for key, own in ones(self.units).items()
        }


def comparing(sums: Mapping[UnitKey, Mapping[str, Array]]) -> Interception:
    """The interception that compares the outputs of units at both ends."""
    return Interception("compare", sums, _compare_ends)


def empty_comparison(unit: Unit) -> dict[str, Array]:
    """Zeros, whose cotangents are the statistics, summed over calls and both ends."""
    zero = jnp.zeros(unit.carried_shape, jnp.float32)
    return {**windows(zero), "calls": zero}


def _compare_ends(call: UnitCall, sums: Mapping[str, Array]) -> Any:
    outputs = call.proceed(call.inputs)
    still = [widen(jax.lax.stop_gradient(t)) for t in outputs]
    # gathered: jax cannot take the mean of what is split over explicit axes of a mesh
    apart = [t - jnp.mean(jax.lax.all_gather(t, ENDS), 0) for t in still]
    change = rms(apart)
    half = {name: square / 2 for name, square in windows(change).items()}
    statistics = {**half, "calls": per_call(0.5, change)}
    return call.finish(emit(outputs, statistics, sums))
