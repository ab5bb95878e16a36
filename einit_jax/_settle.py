"""From the sums of a pass to the factors that they imply, and the rides of the next."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._graph import Unit
from ._lift import spread
from ._math import inverse_rms, multiply, usable
from ._potentials import factors as from_potentials
from ._potentials import out_of_range
from ._potentials import solved as potentials_of
from ._search import Search, advance
from ._state import Findings, Job, Solution, State, dtype_of
from ._units import FACTORS, Kind, kind_of, ones, unpack, vector, weighed


def settle_alone(
    job: Job, state: State, sums: dict, gradient: Any, finite_loss: jax.Array
) -> State:
    """The factors that the sums of a pass imply, and the rides of the next one.

    Unit by unit, on scalars: kernels that are alike are compiled once, whereas slices
    of a common vector would each be a kernel of their own.
    """
    units = job.units
    solved = {kind_of(u): _solved(t, sums[kind_of(u)]) for u, t in units.items()}
    findings = _findings(units, sums, finite_loss, jnp.array(False))
    shared = job.shared
    if not shared:
        factors = {kind_of(u): _factors(u, solved[kind_of(u)]) for u in units}
        solution = Solution(factors, findings, gradient)
        return state._replace(solution=solution)
    names = ("output", "input_grad")
    search, used, better = _searched(job, state.search, solved, names)
    for kind in used:
        solved[kind] |= used[kind]
    factors = {kind_of(u): _factors(u, solved[kind_of(u)]) for u in units}
    solution, moved = _kept(
        shared, state, Solution(factors, findings, gradient), better
    )
    rides = _next_rides(shared, state.entries, sums, search.at, better, names)
    for unit in shared:
        c = solution.factors[kind_of(unit)]["output_grad"]
        rides[kind_of(unit)]["output_grad"] = c
    return State(rides, solution, search, moved, state.gauge)


def settle_plainly(
    job: Job, state: State, sums: dict, gradient: Any, finite_loss: jax.Array
) -> State:
    """The same with b = c = 1: gradients are those of the plain model."""
    units, shared = job.units, job.shared
    solved = {kind_of(u): _solved(t, sums[kind_of(u)]) for u, t in units.items()}
    findings = _findings(units, sums, finite_loss, jnp.array(False))
    search, used, better = _searched(job, state.search, solved, ("output",))
    for kind in used:
        solved[kind] |= used[kind]
    factors = ones(units)
    for kind, own in factors.items():
        own["output"] = solved[kind]["output"]
    new = Solution(factors, findings, gradient)
    solution, moved = _kept(shared, state, new, better)
    rides = _next_rides(shared, state.entries, sums, search.at, better, ("output",))
    return State(rides, solution, search, moved, state.gauge)


def settle_together(
    job: Job, state: State, sums: dict, gradient: Any, finite_loss: jax.Array
) -> State:
    """The same where regions tie units together: arithmetic on all of them at once."""
    units, where, shared = job.units, job.where, job.shared
    assert where is not None
    solved = {kind_of(u): _solved(t, sums[kind_of(u)]) for u, t in units.items()}
    search, used, better = _searched(job, state.search, solved, ("output",))
    for kind in used:
        solved[kind] |= used[kind]
    a = vector(units, _pick(solved, "output"))
    strength = vector(units, _pick(solved, "strength"))
    change = jnp.square(a) * vector(units, _pick(solved, "change"))
    strained = out_of_range(where, strength, any(u.narrow for u in units))
    findings = _findings(units, sums, finite_loss, strained)
    gauge = potentials_of(where, state.gauge, strength, change)
    gauge = jnp.where(better, gauge, state.gauge)
    wide = gauge.astype(dtype_of(gradient))
    factors = unpack(units, from_potentials(where, wide, strength))
    for unit in units:
        factors[kind_of(unit)]["output"] = solved[kind_of(unit)]["output"]
    grown = jnp.exp(gauge - state.gauge)[where.own] * where.free[where.own]
    weights = {k: v["by"] for k, v in unpack(units, {"by": grown}).items()}
    by_path = {path: by for (path, _), by in weights.items()}
    new = Solution(factors, findings, weighed(gradient, job.owners, by_path))
    solution, moved = _kept(shared, state, new, better)
    rides = _next_rides(shared, state.entries, sums, search.at, better, ("output",))
    rides = _carrying(job, rides, factors, weights)
    return State(rides, solution, search, moved, gauge)


def _carrying(job: Job, rides: dict, factors: Mapping, weights: Mapping) -> dict:
    """The rides with the factors b and c that carry the potentials just found.

    The gradient that a shared unit is to move along grows with them.
    """
    found = {}
    for unit in job.units:
        kind = kind_of(unit)
        b, c = (
            factors[kind][name].astype(jnp.float32)
            for name in ("input_grad", "output_grad")
        )
        found[kind] = {**rides[kind], "exact": b, "output_grad": c}
        if unit.calls > 1:
            by = lambda g, w=weights[kind], u=unit: spread(w, g.shape, u.lift)
            slot = rides[kind]["slot"]
            found[kind]["slot"] = {n: multiply(g, by(g)) for n, g in slot.items()}
    return found


def _kept(
    shared: list[Unit], state: State, new: Solution, better: jax.Array
) -> tuple[Solution, jax.Array]:
    """The better of the last solution and the new one, and how far c moved."""
    if not shared:
        return new, state.moved
    now, was = (
        vector(shared, _pick(s.factors, "output_grad")) for s in (new, state.solution)
    )
    moved = jnp.max(jnp.abs(jnp.log(now / was))).astype(jnp.float32)
    pick = lambda new, old: jnp.where(better, new, old)
    return jax.tree.map(pick, (new, moved), (state.solution, state.moved))


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
        "strength": strength,
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
    job: Job, search: Search, solved: Mapping, names: Sequence[str]
) -> tuple[Search, dict[Kind, dict[str, jax.Array]], jax.Array]:
    """The search after a pass, the factors it used, and whether it was the best."""
    shared = job.shared
    if not shared:
        return search._replace(passes=search.passes + 1), {}, jnp.array(True)
    implied = [jnp.log(vector(shared, _pick(solved, name))) for name in names]
    implied = jnp.concatenate(implied)
    sound = jnp.tile(vector(shared, _pick(solved, "sound")), len(names))
    miss = jnp.where(sound, search.at - implied, jnp.inf)
    used = jnp.exp(jnp.where(search.passes == 0, implied, search.at))
    search, better = advance(search, miss, job.effort.tolerance)
    return search, _columns(shared, used, names), better


def _columns(shared: list[Unit], values: jax.Array, names: Sequence[str]) -> dict:
    """The unknowns of the search, per unit and name."""
    parts = jnp.split(values, len(names))
    return unpack(shared, dict(zip(names, parts, strict=True)))


def _next_rides(
    shared: list[Unit],
    entries: dict[Kind, dict[str, Any]],
    sums: dict,
    at: jax.Array,
    better: jax.Array,
    names: Sequence[str],
) -> dict[Kind, dict[str, Any]]:
    """The rides with the factors to try next and the gradients of the best pass."""
    rides = dict(entries)
    for kind, tried in _columns(shared, jnp.exp(at), names).items() if shared else ():
        pick = lambda new, old: jnp.where(better, new, old)
        slot = jax.tree.map(pick, sums[kind]["slot"], entries[kind]["slot"])
        rides[kind] = {**entries[kind], **tried, "slot": slot}
    return rides


def _findings(
    units: dict[Unit, float], sums: dict, finite_loss: jax.Array, strained: jax.Array
) -> Findings:
    """Which units' statistics are finite in every layer."""
    owner = np.repeat(np.arange(len(units)), [unit.size for unit in units])
    finite = {name: jnp.isfinite(vector(units, _pick(sums, name))) for name in FACTORS}
    every = lambda good: jnp.ones(len(units), bool).at[owner].min(good)
    names = tuple(unit.name for unit in units)
    backward = finite["input_grad"] & finite["output_grad"]
    forward = every(finite["output"])
    fine = jnp.ones(len(units), bool), jnp.array(True)
    return Findings(names, forward, every(backward), finite_loss, strained, *fine)
