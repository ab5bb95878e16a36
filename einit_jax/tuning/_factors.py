"""From the sums of a pass to the factors that they imply, and the rides of the next."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import (
    AndersonState,
    anderson_step,
    broadcast_per_layer,
    inverse_rms,
    multiply,
    usable,
)
from ..units import (
    FACTORS,
    Unit,
    UnitKey,
    concat_units,
    ones,
    scale_by_owner,
    split_units,
)
from ._potentials import factors_from_potentials, log_potentials, out_of_range
from ._state import Findings, Solution, SolveState, SweepSpec, factor_dtype


def local_factors(
    job: SweepSpec, state: SolveState, sums: dict, gradient: Any, finite_loss: jax.Array
) -> SolveState:
    """The factors that the sums of a pass imply, and the rides of the next one.

    Unit by unit, on scalars: kernels that are alike are compiled once, whereas slices
    of a common vector would each be a kernel of their own.
    """
    units = job.units
    solved = {u.key: _closed_form(t, sums[u.key]) for u, t in units.items()}
    findings = _make_findings(units, sums, finite_loss, jnp.array(False))
    shared = job.shared
    if not shared:
        factors = {u.key: _unit_factors(u, solved[u.key]) for u in units}
        solution = Solution(factors, findings, gradient)
        return state._replace(solution=solution)
    names = ("output", "input_grad")
    search, used, better = _search_shared(job, state.search, solved, names)
    for kind in used:
        solved[kind] |= used[kind]
    factors = {u.key: _unit_factors(u, solved[u.key]) for u in units}
    solution, moved = _keep_better(
        shared, state, Solution(factors, findings, gradient), better
    )
    rides = _next_entries(shared, state.entries, sums, search.at, better, names)
    for unit in shared:
        c = solution.factors[unit.key]["output_grad"]
        rides[unit.key]["output_grad"] = c
    return SolveState(rides, solution, search, moved, state.gauge)


def forward_factors(
    job: SweepSpec, state: SolveState, sums: dict, gradient: Any, finite_loss: jax.Array
) -> SolveState:
    """The same with b = c = 1: gradients are those of the plain model."""
    units, shared = job.units, job.shared
    solved = {u.key: _closed_form(t, sums[u.key]) for u, t in units.items()}
    findings = _make_findings(units, sums, finite_loss, jnp.array(False))
    search, used, better = _search_shared(job, state.search, solved, ("output",))
    for kind in used:
        solved[kind] |= used[kind]
    factors = ones(units)
    for kind, own in factors.items():
        own["output"] = solved[kind]["output"]
    new = Solution(factors, findings, gradient)
    solution, moved = _keep_better(shared, state, new, better)
    rides = _next_entries(shared, state.entries, sums, search.at, better, ("output",))
    return SolveState(rides, solution, search, moved, state.gauge)


def region_factors(
    job: SweepSpec, state: SolveState, sums: dict, gradient: Any, finite_loss: jax.Array
) -> SolveState:
    """The same where regions tie units together: arithmetic on all of them at once."""
    units, where, shared = job.units, job.where, job.shared
    assert where is not None
    solved = {u.key: _closed_form(t, sums[u.key]) for u, t in units.items()}
    search, used, better = _search_shared(job, state.search, solved, ("output",))
    for kind in used:
        solved[kind] |= used[kind]
    a = concat_units(units, _pick(solved, "output"))
    strength = concat_units(units, _pick(solved, "strength"))
    change = jnp.square(a) * concat_units(units, _pick(solved, "change"))
    strained = out_of_range(where, strength, any(u.narrow for u in units))
    findings = _make_findings(units, sums, finite_loss, strained)
    gauge = log_potentials(where, state.gauge, strength, change)
    gauge = jnp.where(better, gauge, state.gauge)
    wide = gauge.astype(factor_dtype(gradient))
    factors = split_units(units, factors_from_potentials(where, wide, strength))
    for unit in units:
        factors[unit.key]["output"] = solved[unit.key]["output"]
    grown = jnp.exp(gauge - state.gauge)[where.own] * where.free[where.own]
    weights = {k: v["by"] for k, v in split_units(units, {"by": grown}).items()}
    by_path = {path: by for (path, _), by in weights.items()}
    new = Solution(factors, findings, scale_by_owner(gradient, job.owners, by_path))
    solution, moved = _keep_better(shared, state, new, better)
    rides = _next_entries(shared, state.entries, sums, search.at, better, ("output",))
    rides = _carry_potentials(job, rides, factors, weights)
    return SolveState(rides, solution, search, moved, gauge)


def _carry_potentials(
    job: SweepSpec, rides: dict, factors: Mapping, weights: Mapping
) -> dict:
    """The rides with the factors b and c that carry the potentials just found.

    The gradient that a shared unit is to move along grows with them.
    """
    found = {}
    for unit in job.units:
        kind = unit.key
        b, c = (
            factors[kind][name].astype(jnp.float32)
            for name in ("input_grad", "output_grad")
        )
        found[kind] = {**rides[kind], "exact": b, "output_grad": c}
        if unit.calls > 1:
            by = lambda g, w=weights[kind], u=unit: broadcast_per_layer(
                w, g.shape, u.lift
            )
            slot = rides[kind]["slot"]
            found[kind]["slot"] = {n: multiply(g, by(g)) for n, g in slot.items()}
    return found


def _keep_better(
    shared: list[Unit], state: SolveState, new: Solution, better: jax.Array
) -> tuple[Solution, jax.Array]:
    """The better of the last solution and the new one, and how far c moved."""
    if not shared:
        return new, state.moved
    now, was = (
        concat_units(shared, _pick(s.factors, "output_grad"))
        for s in (new, state.solution)
    )
    moved = jnp.max(jnp.abs(jnp.log(now / was))).astype(jnp.float32)
    pick = lambda new, old: jnp.where(better, new, old)
    return jax.tree.map(pick, (new, moved), (state.solution, state.moved))


def _pick(values: Mapping[UnitKey, Mapping[str, Any]], name: str) -> dict[UnitKey, Any]:
    return {kind: value[name] for kind, value in values.items()}


def _closed_form(target: float, sums: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
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


def _unit_factors(unit: Unit, solved: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """a, b and c, from a, b c and the change at a = c = 1."""
    a, change = solved["output"], solved["change"]
    c = inverse_rms(jnp.square(a) * change)
    b = solved["input_grad"] / c if unit.floats else jnp.ones_like(c)
    return {"output": a, "input_grad": b, "output_grad": c}


def _search_shared(
    job: SweepSpec, search: AndersonState, solved: Mapping, names: Sequence[str]
) -> tuple[AndersonState, dict[UnitKey, dict[str, jax.Array]], jax.Array]:
    """The search after a pass, the factors it used, and whether it was the best."""
    shared = job.shared
    if not shared:
        return search._replace(passes=search.passes + 1), {}, jnp.array(True)
    implied = [jnp.log(concat_units(shared, _pick(solved, name))) for name in names]
    implied = jnp.concatenate(implied)
    sound = jnp.tile(concat_units(shared, _pick(solved, "sound")), len(names))
    miss = jnp.where(sound, search.at - implied, jnp.inf)
    used = jnp.exp(jnp.where(search.passes == 0, implied, search.at))
    search, better = anderson_step(search, miss, job.effort.tolerance)
    return search, _unknowns_by_unit(shared, used, names), better


def _unknowns_by_unit(
    shared: list[Unit], values: jax.Array, names: Sequence[str]
) -> dict:
    """The unknowns of the search, per unit and name."""
    parts = jnp.split(values, len(names))
    return split_units(shared, dict(zip(names, parts, strict=True)))


def _next_entries(
    shared: list[Unit],
    entries: dict[UnitKey, dict[str, Any]],
    sums: dict,
    at: jax.Array,
    better: jax.Array,
    names: Sequence[str],
) -> dict[UnitKey, dict[str, Any]]:
    """The rides with the factors to try next and the gradients of the best pass."""
    rides = dict(entries)
    for kind, tried in (
        _unknowns_by_unit(shared, jnp.exp(at), names).items() if shared else ()
    ):
        pick = lambda new, old: jnp.where(better, new, old)
        slot = jax.tree.map(pick, sums[kind]["slot"], entries[kind]["slot"])
        rides[kind] = {**entries[kind], **tried, "slot": slot}
    return rides


def _make_findings(
    units: dict[Unit, float], sums: dict, finite_loss: jax.Array, strained: jax.Array
) -> Findings:
    """Which units' statistics are finite in every layer."""
    owner = np.repeat(np.arange(len(units)), [unit.size for unit in units])
    finite = {
        name: jnp.isfinite(concat_units(units, _pick(sums, name))) for name in FACTORS
    }
    every = lambda good: jnp.ones(len(units), bool).at[owner].min(good)
    names = tuple(unit.name for unit in units)
    backward = finite["input_grad"] & finite["output_grad"]
    forward = every(finite["output"])
    fine = jnp.ones(len(units), bool), jnp.array(True)
    return Findings(names, forward, every(backward), finite_loss, strained, *fine)
