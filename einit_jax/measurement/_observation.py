"""What is seen of a scaled model on one batch, with its factors fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ..core import (
    ModelArgs,
    Params,
    Partition,
    Path,
    anchor,
    first_step,
    float_leaves,
    gathered,
    layers_first,
    plain,
    rms,
    vary_with,
    widen,
)
from ..units import (
    FACTORS,
    UPDATE,
    Objective,
    Unit,
    UnitKey,
    flat_floats,
    mask_owned,
    mask_unowned,
    outputs_alone,
    own_floats,
    owners,
    param_rms,
    scale_by_owner,
    zeros_like_params,
)
from ..verification import TotalUpdates
from ._unit_statistics import (
    empty_statistics,
    observing,
    output_statistics,
    over_calls,
)

Factors = Mapping[UnitKey, Mapping[str, Array]]


class Observed(NamedTuple):
    """What one batch shows."""

    statistics: dict[UnitKey, dict[str, Any]]
    """Of each unit; each array as the unit carries it, a number per layer."""
    loss: Float[Array, ""]
    raw_change: Float[Array, ""]
    """The largest change of any unit's output by a step of raw parameters."""


class _Look(NamedTuple):
    """What one run of the model and its gradient show."""

    sums: dict[UnitKey, dict[str, dict[str, Any]]]
    captured: dict[UnitKey, dict[str, Array]]
    loss: Float[Array, ""]
    gradient: list[Array]
    step: list[Array]
    """What the optimizer makes of the gradient."""


@dataclass(frozen=True)
class Observer:
    """Looks at a model, whose factors are fixed, three times per batch.

    First with true gradients, then with those that the factors carry, and last with the
    changes by a step along the latter (or by what the optimizer makes of them).
    """

    objective: Objective
    units: tuple[Unit, ...]
    factors: Factors
    optimizer: optax.GradientTransformation | None
    like: Params
    """The user's parameters: the optimizer sees trees of that structure."""
    bound: frozenset[Path]
    """Units whose gradients are given; see `Regions.bound_units`."""
    capture: bool
    """Whether outputs are read off captured intermediates, where these come out."""

    def observe(self, args: ModelArgs) -> Observed:
        true, carried, moved = self._look_thrice(args)
        statistics: dict[UnitKey, dict[str, Any]] = {}
        for unit in self.units:
            both = carried.sums[unit.key]
            own: dict[str, Any] = {n: over_calls(sums) for n, sums in both.items()}
            statistics[unit.key] = own
            changes = over_calls(moved.sums[unit.key]["output"])
            own["output"]["update"] = changes["update"]
            own["output"] |= carried.captured.get(unit.key, {})
            own["true"] = over_calls(true.sums[unit.key]["input"])
            params = own_floats(args.params, unit)
            own["params"] = param_rms(params.values(), unit)
        owned = owners(args.params, self.units)
        self._add_directions(statistics, owned, carried.gradient, true.gradient)
        counted = [u if u and u.path not in self.bound else None for u in owned]
        for key, total in self._changes(
            args, mask_unowned(carried.step, counted)
        ).items():
            statistics[key]["total"] = total
        raw_change = jnp.zeros((), jnp.float32)
        if not all(counted):
            changes = self._changes(args, mask_owned(carried.step, counted))
            raw_change = jnp.max(jnp.stack([jnp.max(t) for t in changes.values()]))
        return Observed(statistics, carried.loss, raw_change)

    def _changes(self, args: ModelArgs, step: list[Array]) -> dict[UnitKey, Array]:
        updates = TotalUpdates(self.objective, self.units, self.factors, self.capture)
        return updates.along(args, step)

    def _look_thrice(self, args: ModelArgs) -> list[_Look]:
        """The three looks, in one compiled body."""
        still = {unit.key: zeros_like_params(args.params, unit) for unit in self.units}
        forward = outputs_alone(self.factors)
        carry = {k: {n: own[n] for n in FACTORS} for k, own in self.factors.items()}
        turns = jax.tree.map(lambda *x: jnp.stack(x), forward, carry, carry)

        def turn(steps: Any, factors_and_moves: tuple) -> tuple[Any, _Look]:
            factors, moves = factors_and_moves
            look, steps = self._look(args, factors, steps)
            return jax.tree.map(lambda s: moves.astype(s.dtype) * s, steps), look

        # the last look only adds the changes by an update: with a step, cotangents also
        # flow through the derivative along it
        _, looks = jax.lax.scan(turn, still, (turns, jnp.array([0.0, 1.0, 0.0])))
        return [jax.tree.map(lambda x, i=i: x[i], looks) for i in range(3)]

    def _look(
        self, args: ModelArgs, factors: Factors, steps: dict[UnitKey, dict[str, Array]]
    ) -> tuple[_Look, dict[UnitKey, dict[str, Array]]]:
        """One look, and the steps of the units' parameters that follow from it."""
        leaves = Partition(plain(args.params))
        empty = {unit.key: empty_statistics(unit) for unit in self.units}
        empty = vary_with(empty, args)
        still = {unit.key: zeros_like_params(args.params, unit) for unit in self.units}

        def loss(floats: list, shifts: Any, sums: Any) -> tuple[Array, tuple]:
            entries = {
                unit.key: {
                    "factors": factors[unit.key],
                    "sums": sums[unit.key],
                    "step": steps[unit.key],
                    "shift": shifts[unit.key],
                }
                for unit in self.units
            }
            for unit in self.units:
                if unit.opaque:
                    opaque = {"opaque": self.factors[unit.key]["output"]}
                    entries[unit.key] |= opaque
            return self._loss(args._replace(params=leaves.build(floats)), entries)

        gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
        inside = lambda: gradient(leaves.floats, still, empty)
        (of_params, of_shifts, sums), aux = self.objective.over_axis(inside)
        captured, value = aux
        step = [jnp.conj(g) for g in of_params]
        steps = jax.tree.map(jnp.conj, of_shifts)
        if self.optimizer is not None:
            step = first_step(self.optimizer, self.like, args.params, of_params)
            step = self._scale_step(step, owners(args.params, self.units))
            moved = leaves.build(step)
            steps = {unit.key: flat_floats(moved, unit) for unit in self.units}
        return _Look(sums, captured, value, of_params, step), steps

    def _loss(self, args: ModelArgs, entries: Any) -> tuple[Array, tuple]:
        """The loss, anchored at all outputs; what was captured, and the plain loss."""
        capture = self.units if self.capture else ()
        outputs, calls = self.objective.run(args, observing(entries), capture=capture)
        captured = {key: _captured_statistics(each) for key, each in calls.items()}
        value = self.objective.loss(outputs, args.batch)
        total = value + anchor(float_leaves(outputs)).astype(value.dtype)
        return total, (captured, value)

    def _scale_step(
        self, step: list[Array], owned: Sequence[Unit | None]
    ) -> list[Array]:
        """An optimizer's step times the factor `update` of each unit that has one."""
        factors = {
            path: own[UPDATE]
            for (path, _), own in self.factors.items()
            if UPDATE in own
        }
        return scale_by_owner(step, owned, factors) if factors else step

    def _add_directions(
        self,
        statistics: dict[UnitKey, dict[str, Any]],
        owned: Sequence[Unit | None],
        gradient: list[Array],
        true: list[Array],
    ) -> None:
        """Adds the rms of units' parameter gradients, and the cosine to true ones."""
        for unit in self.units:
            mine = [u is not None and u.path == unit.path for u in owned]
            both = [
                [
                    layers_first(g, unit.lifted_axes)
                    for g, own in zip(gradients, mine, strict=True)
                    if own
                ]
                for gradients in (gradient, true)
            ]
            sizes = [rms(gradients, len(unit.layers)) for gradients in both]
            cosine = _cosine(both, sizes, len(unit.layers))
            own = statistics[unit.key]
            own["param_grads"] = sizes[0].reshape(unit.carried_shape)
            own["cosine"] = cosine.reshape(unit.carried_shape)


def _captured_statistics(calls: Sequence[list[Array]]) -> dict[str, Array]:
    """The statistics of captured outputs, over all calls."""
    each = [output_statistics(outputs) for outputs in calls]
    every = {name: jnp.stack([e[name] for e in each]) for name in each[0]}
    totals = {
        "calls": jnp.sum(every["calls"]),
        "bad": jnp.sum(every["bad"]),
        "mean": jnp.mean(every["mean"]),
        "rms": rms([every["rms"]]),
        "varying": rms([every["varying"]]),
    }
    return jax.lax.stop_gradient(totals)


def _cosine(both: list[list[Array]], sizes: list[Array], keep: int) -> Array:
    """Between two lists of arrays, for each index of the first `keep` axes.

    The sizes are their joint rms; NaN where one is zero.
    """
    live = (sizes[0] > 0) & (sizes[1] > 0)

    rest = lambda x: tuple(range(keep, x.ndim))

    def normed(x: Array, size: Array) -> Array:
        return widen(x) / jnp.expand_dims(jnp.where(live, size, 1), rest(x))

    dots = [
        jnp.real(jnp.conj(normed(x, sizes[0])) * normed(y, sizes[1]))
        for x, y in zip(*both, strict=True)
    ]
    count = max(sum(dot.size for dot in dots) // max(sizes[0].size, 1), 1)
    zero = jnp.zeros(sizes[0].shape, jnp.float32)
    mean = sum((gathered(dot.sum(rest(dot))) for dot in dots), zero) / count
    return jnp.where(live, mean.astype(jnp.float32), jnp.nan)
