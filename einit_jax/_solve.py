"""From sweeps to factors: one pass, or as many as shared units need."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from ._graph import Unit
from ._math import inverse_rms, is_concrete, usable
from ._plan import anchor, checked_loss, floats_of, outputs_of
from ._problem import Batch, Problem, over_axis
from ._search import Search, advance, begin
from ._sweep import SWEEP, ride, sweeping
from ._units import FACTORS, Kind, kind_of, ones, riding, unpack, vector


class Effort(NamedTuple):
    """When to stop: the most passes, and the largest |log rms| that will do."""

    max_sweeps: int
    tolerance: float


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["activations", "gradients", "loss"],
    meta_fields=["names"],
)
@dataclass(frozen=True)
class Findings:
    """What was finite in the last pass, per unit in call order."""

    names: tuple[str, ...]
    activations: jax.Array
    gradients: jax.Array
    loss: jax.Array

    def refuse(self) -> None:
        """Raises where something was not finite; under an outer trace, nothing."""
        if not is_concrete(self.loss):
            return
        where = "tune needs finite numbers: check the parameters, the inputs and, for"
        where += " 16-bit models, the range of the dtype"
        if not self.activations.all():
            name = self.names[int(jnp.argmin(self.activations))]
            raise FloatingPointError(
                f"non-finite activations at unit {name!r}; {where}"
            )
        if not self.loss:
            raise FloatingPointError(f"the loss is not finite; {where}")
        if not self.gradients.all():
            name = self.names[int(jnp.argmin(self.gradients))]
            raise FloatingPointError(f"non-finite gradients at unit {name!r}; {where}")


class _State(NamedTuple):
    """What the sweeps of one draw hand on."""

    entries: dict[Kind, dict[str, Any]]
    factors: dict[Kind, dict[str, jax.Array]]
    findings: Findings
    search: Search
    moved: jax.Array


def solve(
    task: Problem,
    effort: Effort,
    units: dict[Unit, float],
    params: Any,
    collections: Mapping,
    batch: Batch,
) -> tuple[dict, Findings]:
    """The factors on one batch: a sweep, and more where units are called repeatedly."""

    def loss(entries):
        filled = riding(params, SWEEP, entries)
        with nn.intercept_methods(sweeping()):
            outputs, _ = outputs_of(task, filled, collections, batch)
        value = checked_loss(task, outputs, batch)
        return value + anchor(floats_of(outputs)).astype(value.dtype)

    def sweep(state: _State) -> _State:
        gradient = jax.value_and_grad(loss)
        value, sums = over_axis(task.axis_name, lambda: gradient(state.entries))
        return _settle(units, effort, state, sums, jnp.isfinite(value))

    def unsettled(state: _State) -> jax.Array:
        far = jnp.maximum(state.search.error, state.moved) > effort.tolerance
        return (state.search.passes < effort.max_sweeps) & far

    state = _start(units, params)
    if any(unit.calls > 1 for unit in units):
        state = jax.lax.while_loop(unsettled, sweep, state)
    else:
        state = sweep(state)
    return state.factors, state.findings


def _start(units: dict[Unit, float], params: Any) -> _State:
    flags = jnp.ones(len(units), bool)
    shared = sum(unit.size for unit in units if unit.calls > 1)
    return _State(
        {kind_of(u): ride(u, target, params) for u, target in units.items()},
        ones(units),
        Findings(tuple(u.name for u in units), flags, flags, jnp.array(True)),
        begin(2 * shared),
        jnp.full((), jnp.inf, jnp.float32),
    )


def _settle(
    units: dict[Unit, float],
    effort: Effort,
    state: _State,
    sums: dict,
    finite_loss: jax.Array,
) -> _State:
    """The factors that the sums of a pass imply, and the rides of the next one.

    Unit by unit, on scalars: kernels that are alike are compiled once, whereas slices
    of a common vector would each be a kernel of their own.
    """
    solved = {kind_of(u): _solved(t, sums[kind_of(u)]) for u, t in units.items()}
    findings = _findings(units, sums, finite_loss)
    shared = [unit for unit in units if unit.calls > 1]
    if not shared:
        factors = {kind_of(u): _factors(u, solved[kind_of(u)]) for u in units}
        return state._replace(factors=factors, findings=findings)
    search, used, better = _searched(shared, effort, state.search, solved)
    for kind in used:
        solved[kind] |= used[kind]
    factors = {kind_of(u): _factors(u, solved[kind_of(u)]) for u in units}
    now, was = (
        vector(shared, _pick(f, "output_grad")) for f in (factors, state.factors)
    )
    moved = jnp.max(jnp.abs(jnp.log(now / was)))
    kept = (state.factors, state.findings, state.moved)
    factors, findings, moved = jax.tree.map(
        lambda new, old: jnp.where(better, new, old), (factors, findings, moved), kept
    )
    rides = _next_rides(shared, state.entries, sums, search.at, better)
    return _State(rides, factors, findings, search, moved)


def _pick(values: Mapping[Kind, Mapping[str, Any]], name: str) -> dict[Kind, Any]:
    return {kind: value[name] for kind, value in values.items()}


def _solved(target: float, sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """a and b c in closed form, and the mean squares that they and c come from."""
    size = jnp.maximum(sums["output_size"], 1)
    power = sums["output"] / size
    strength = sums["input_grad"] / jnp.maximum(sums["input_size"], 1)
    return {
        "output": jnp.where(usable(power), target * inverse_rms(power), 1.0),
        "input_grad": inverse_rms(strength),
        "change": sums["output_grad"] / size,
        "sound": jnp.isfinite(power) & jnp.isfinite(strength),
    }


def _factors(unit: Unit, solved: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """a, b and c, from a, b c and the change at a = c = 1."""
    a, change = solved["output"], solved["change"]
    c = inverse_rms(jnp.square(a) * change)
    b = solved["input_grad"] / c if unit.floats else jnp.ones_like(c)
    return {"output": a, "input_grad": b, "output_grad": c}


def _searched(
    shared: list[Unit], effort: Effort, search: Search, solved: Mapping
) -> tuple[Search, dict[Kind, dict[str, jax.Array]], jax.Array]:
    """The search after a pass, the factors it used, and whether it was the best."""
    names = ("output", "input_grad")
    implied = [jnp.log(vector(shared, _pick(solved, name))) for name in names]
    implied = jnp.concatenate(implied)
    sound = jnp.tile(vector(shared, _pick(solved, "sound")), 2)
    miss = jnp.where(sound, search.at - implied, jnp.inf)
    used = jnp.exp(jnp.where(search.passes == 0, implied, search.at))
    search, better = advance(search, miss, effort.tolerance)
    a, bc = jnp.split(used, 2)
    return search, unpack(shared, {"output": a, "input_grad": bc}), better


def _next_rides(
    shared: list[Unit],
    entries: dict[Kind, dict[str, Any]],
    sums: dict,
    at: jax.Array,
    better: jax.Array,
) -> dict[Kind, dict[str, Any]]:
    """The rides with the factors to try next and the gradients of the best pass."""
    a, bc = jnp.split(jnp.exp(at), 2)
    tried = unpack(shared, {"output": a, "input_grad": bc})
    rides = dict(entries)
    for kind in tried:
        pick = lambda new, old: jnp.where(better, new, old)
        slot = jax.tree.map(pick, sums[kind]["slot"], entries[kind]["slot"])
        rides[kind] = {**entries[kind], **tried[kind], "slot": slot}
    return rides


def _findings(units: dict[Unit, float], sums: dict, finite_loss: jax.Array) -> Findings:
    """Which units' statistics are finite in every layer."""
    owner = np.repeat(np.arange(len(units)), [unit.size for unit in units])
    finite = {name: jnp.isfinite(vector(units, _pick(sums, name))) for name in FACTORS}
    every = lambda good: jnp.ones(len(units), bool).at[owner].min(good)
    names = tuple(unit.name for unit in units)
    backward = finite["input_grad"] & finite["output_grad"]
    return Findings(names, every(finite["output"]), every(backward), finite_loss)
