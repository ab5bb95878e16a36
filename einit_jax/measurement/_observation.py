"""What is seen of a scaled model on one batch, with its factors fixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from ..binding import amplifications
from ..core import (
    ModelArgs,
    Params,
    Partition,
    Path,
    anchor,
    first_step,
    float_leaves,
    in_turn,
    inverse,
    multiply,
    plain,
    rms,
    times,
    vary_with,
)
from ..units import (
    FACTORS,
    UPDATE,
    Mover,
    Objective,
    ParamColumns,
    RawParameter,
    Unit,
    UnitKey,
    concat_units,
    flat_floats,
    only_at,
    outputs_alone,
    owners,
    scale_by_owner,
    zeros_like_params,
)
from ..verification import TotalUpdates
from ._unit_statistics import (
    empty_statistics,
    observing,
    over_calls,
    sums_of_captured,
)

BOUNDED = 0.02
"""Steps that are as large, to this share, for gradients twice as large have a bound."""
Factors = Mapping[UnitKey, Mapping[str, Array]]


class Observed(NamedTuple):
    """What one batch shows."""

    columns: dict[str, Float[Array, " rows"]]
    """A number for each unit and layer, in the order of `concat_units`."""
    loss: Float[Array, ""]
    raw_change: Float[Array, ""]
    """The largest change of any unit's output by a step of raw parameters."""
    outputs_amplification: Float[Array, ""]


class NotCaptured(Exception):
    """Of some units to be captured nothing came out; holds those of which it did."""

    def __init__(self, captured: tuple[Unit, ...]):
        self.captured = captured


class _Look(NamedTuple):
    """What one run of the model and its gradient show."""

    outputs: dict[str, Float[Array, " rows"]]
    inputs: dict[str, Float[Array, " rows"]]
    """Of the gradients of these."""
    loss: Float[Array, ""]
    gradient: list[Array]
    step: list[Array]
    """What the optimizer makes of the gradient; nothing without one."""


@dataclass(frozen=True)
class Observer:
    """Looks at a model, whose factors are fixed, three times per batch.

    First with true gradients, then with those that the factors carry, and last with the
    changes by a step along the latter (or by what the optimizer makes of them). Changes
    by all steps together, and those from each input to the next, are passes of their
    own.
    """

    objective: Objective
    units: tuple[Unit, ...]
    factors: Factors
    raw: Mapping[RawParameter, Mapping[str, Array]]
    """The raw parameters that have factors, and these."""
    optimizer: optax.GradientTransformation | None
    like: Params
    """The user's parameters: the optimizer sees trees of that structure."""
    uncounted: frozenset[Path]
    """Units and raw parameters whose steps are not in the total update."""
    captured: tuple[Unit, ...]
    """The units whose outputs are read off captured intermediates."""
    written_out: bool
    """Whether what runs several times is written out, and not in a loop."""

    def observe(self, args: ModelArgs) -> Observed:
        """What a batch shows.

        Raises:
            NotCaptured: fewer outputs were captured than were to be.
        """
        looks = self._look_thrice(args)
        owned = owners(args.params, self.units)
        moving = owners(args.params, (*self.units, *self.raw))
        columns = {name: column[1] for name, column in looks.outputs.items()}
        factor = {key: own["output"] for key, own in self.factors.items()}
        factor = concat_units(self.units, factor)
        columns["update"] = times(factor, looks.outputs["update"][2])
        columns["input_rms"] = looks.inputs["rms"][1]
        columns["bad"] += looks.inputs["bad"][1]
        columns["true_rms"] = looks.inputs["rms"][0]
        params = [x[None] for x in Partition(plain(args.params)).floats]
        columns["params"] = ParamColumns(self.units, owned, params).rms()[0]
        gradients = [g[:2] for g in looks.gradient]
        directions = ParamColumns(self.units, owned, gradients)
        columns["param_grads"] = directions.rms()[1]
        columns["cosine"] = directions.cosine()
        every = {mover.path for mover in moving if mover}
        counted = only_at(moving, every - self.uncounted)
        step = [s[1] for s in looks.step]
        if not step:
            step = [jnp.conj(g[1]) for g in looks.gradient]
            factors = self._raw_factors("output_grad")
            step = scale_by_owner(step, only_at(moving, factors), factors)
        columns["total"], raw_change = self._changes(args, step, counted)
        columns["amplification"], of_outputs = self._amplifications(args)
        columns["epsilon_share"] = self._epsilon_shares(args, looks.gradient)
        return Observed(columns, looks.loss[1], raw_change, of_outputs)

    def _epsilon_shares(
        self, args: ModelArgs, gradients: list[Array]
    ) -> Float[Array, " rows"]:
        """By what share of itself each unit's step is smaller than for gradients of 1.

        0 where steps go on to grow with gradients, and without an optimizer.
        """
        if self.optimizer is None:
            return jnp.zeros(sum(unit.size for unit in self.units), jnp.float32)
        own = [g[1] for g in gradients]
        ones = [multiply(g, inverse(rms([g]))) for g in own]
        twice = [2 * g for g in ones]
        first = partial(first_step, self.optimizer, self.like, args.params)
        steps = [
            jnp.stack(s) for s in zip(*map(first, (own, ones, twice)), strict=True)
        ]
        owned = owners(args.params, self.units)
        now, then, later = ParamColumns(self.units, owned, steps).rms()
        bounded = jnp.abs(later - then) <= BOUNDED * then
        share = 1 - now / jnp.where(then > 0, then, 1)
        return jnp.where(bounded & (then > 0), jnp.clip(share, 0), 0.0)

    def _amplifications(
        self, args: ModelArgs
    ) -> tuple[Float[Array, " rows"], Float[Array, ""]]:
        """Those of the units, and that of the model's outputs."""
        outputs = {key: own["output"] for key, own in self.factors.items()}
        try:
            found = amplifications(self.objective, self.units, args, outputs=outputs)
        except ValueError:  # what precedes the units need not have a derivative
            unknown = {key: jnp.full_like(a, jnp.nan) for key, a in outputs.items()}
            return concat_units(self.units, unknown), jnp.full((), jnp.nan, jnp.float32)
        return concat_units(self.units, found.of_units), found.of_outputs

    def _changes(
        self, args: ModelArgs, step: list[Array], counted: Sequence[Mover | None]
    ) -> tuple[Float[Array, " rows"], Float[Array, ""]]:
        """The changes of outputs by a step of all that counts, and the largest one by
        that of all others."""
        updates = TotalUpdates(self.objective, self.units, self.factors, self.captured)
        along = partial(updates.along, args)
        if all(counted):
            return along(step), jnp.zeros((), jnp.float32)

        def turn(raw: Bool[Array, ""]) -> Float[Array, " rows"]:
            rests = [raw if unit is not None else ~raw for unit in counted]
            pairs = zip(rests, step, strict=True)
            return along([jnp.where(rest, 0, s) for rest, s in pairs])

        which = jnp.array(False), jnp.array(True)
        changes, raw = in_turn(turn, which, written_out=self.written_out)
        return changes, jnp.max(raw)

    def _look_thrice(self, args: ModelArgs) -> _Look:
        """The three looks, in one compiled body, along a new first axis."""
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
        looks = turns, jnp.array([0.0, 1.0, 0.0])
        return jax.lax.scan(turn, still, looks, unroll=3 if self.written_out else 1)[1]

    def _look(
        self, args: ModelArgs, factors: Factors, steps: dict[UnitKey, dict[str, Array]]
    ) -> tuple[_Look, dict[UnitKey, dict[str, Array]]]:
        """One look, and the steps of the units' parameters that follow from it."""
        leaves = Partition(plain(args.params))
        empty = {
            unit.key: empty_statistics(unit, captured=unit in self.captured)
            for unit in self.units
        }
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
        outputs = {k: {**s["output"], **captured.get(k, {})} for k, s in sums.items()}
        step, steps = [], jax.tree.map(jnp.conj, of_shifts)
        if self.optimizer is not None:
            step = first_step(self.optimizer, self.like, args.params, of_params)
            own = {p: f[UPDATE] for (p, _), f in self.factors.items() if UPDATE in f}
            updates = own | self._raw_factors(UPDATE)
            moving = owners(args.params, (*self.units, *self.raw))
            step = scale_by_owner(step, only_at(moving, updates), updates)
            moved = leaves.build(step)
            steps = {unit.key: flat_floats(moved, unit) for unit in self.units}
        look = _Look(
            over_calls(self.units, outputs),
            over_calls(self.units, {k: s["input"] for k, s in sums.items()}),
            value,
            of_params,
            step,
        )
        return look, steps

    def _loss(self, args: ModelArgs, entries: Any) -> tuple[Array, tuple]:
        """The loss, anchored at all outputs; what was captured, and the plain loss."""
        outputs, calls = self.objective.run(
            args, observing(entries), capture=self.captured
        )
        if len(calls) < len(self.captured):
            raise NotCaptured(tuple(u for u in self.captured if u.key in calls))
        captured = {u.key: sums_of_captured(u, calls[u.key]) for u in self.captured}
        value = self.objective.loss(outputs, args.batch)
        total = value + anchor(float_leaves(outputs)).astype(value.dtype)
        return total, (captured, value)

    def _raw_factors(self, name: str) -> dict[Path, Array]:
        """The factor of that name of each raw parameter that has it."""
        return {r.path: own[name] for r, own in self.raw.items() if name in own}
