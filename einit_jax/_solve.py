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
from ._units import FACTORS, Kind, kind_of, riding, unpack, vector


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
    factors: dict[str, jax.Array]
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
    return unpack(units, state.factors), state.findings


def _start(units: dict[Unit, float], params: Any) -> _State:
    flags = jnp.ones(len(units), bool)
    rows = sum(unit.size for unit in units)
    shared = sum(unit.size for unit in units if unit.calls > 1)
    return _State(
        {kind_of(u): ride(u, target, params) for u, target in units.items()},
        {name: jnp.ones(rows, jnp.float32) for name in FACTORS},
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

    Arithmetic on one vector per statistic: its cost does not grow with the network.
    """
    column = lambda name: vector(units, {k: s[name] for k, s in sums.items()})
    spread = lambda f: np.concatenate([np.full(u.size, f(u)) for u in units])
    sizes = {"output": "output_size", "input_grad": "input_size"}
    sizes["output_grad"] = "output_size"
    mean = {n: column(n) / jnp.maximum(column(sizes[n]), 1) for n in FACTORS}
    target = spread(lambda u: units[u]).astype(np.float32)
    shared = np.flatnonzero(spread(lambda u: u.calls > 1))
    new = {name: inverse_rms(mean[name]) for name in FACTORS}
    new["output"] = jnp.where(usable(mean["output"]), target * new["output"], 1.0)
    search, better, entries = state.search, jnp.array(True), state.entries
    if shared.size:
        solved = [jnp.log(new[name][shared]) for name in ("output", "input_grad")]
        sound = [jnp.isfinite(mean[n][shared]) for n in ("output", "input_grad")]
        miss = search.at - jnp.concatenate(solved)
        miss = jnp.where(jnp.concatenate(sound), miss, jnp.inf)
        found = jnp.where(search.passes == 0, jnp.concatenate(solved), search.at)
        a, bc = jnp.split(jnp.exp(found), 2)
        new["output"] = new["output"].at[shared].set(a)
        new["input_grad"] = new["input_grad"].at[shared].set(bc)
        search, better = advance(search, miss, effort.tolerance)
        entries = _next_rides(units, state.entries, sums, search.at, better)
    new["output_grad"] = inverse_rms(jnp.square(new["output"]) * mean["output_grad"])
    new["input_grad"] = jnp.where(
        spread(lambda u: u.floats), new["input_grad"] / new["output_grad"], 1.0
    )
    was = state.factors["output_grad"][shared]
    moved = jnp.max(jnp.abs(jnp.log(new["output_grad"][shared] / was)), initial=0.0)
    fresh = (new, _findings(units, mean, finite_loss))
    kept = (state.factors, state.findings)
    new, findings = jax.tree.map(lambda n, o: jnp.where(better, n, o), fresh, kept)
    moved = jnp.where(better, moved, state.moved)
    return _State(entries, new, findings, search, moved)


def _next_rides(
    units: dict[Unit, float],
    entries: dict[Kind, dict[str, Any]],
    sums: dict,
    at: jax.Array,
    better: jax.Array,
) -> dict[Kind, dict[str, Any]]:
    """The rides with the factors to try next and the gradients of the best pass."""
    shared = [unit for unit in units if unit.calls > 1]
    a, bc = jnp.split(jnp.exp(at), 2)
    tried = unpack(shared, {"output": a, "input_grad": bc})
    rides = dict(entries)
    for kind in tried:
        pick = lambda new, old: jnp.where(better, new, old)
        slot = jax.tree.map(pick, sums[kind]["slot"], entries[kind]["slot"])
        rides[kind] = {**entries[kind], **tried[kind], "slot": slot}
    return rides


def _findings(
    units: dict[Unit, float], mean: dict[str, jax.Array], finite_loss: jax.Array
) -> Findings:
    """Which units' statistics are finite in every layer."""
    forward = jnp.isfinite(mean["output"])
    backward = jnp.isfinite(mean["input_grad"]) & jnp.isfinite(mean["output_grad"])
    owner = np.repeat(np.arange(len(units)), [unit.size for unit in units])
    every = lambda good: jnp.ones(len(units), bool).at[owner].min(good)
    names = tuple(unit.name for unit in units)
    return Findings(names, every(forward), every(backward), finite_loss)
