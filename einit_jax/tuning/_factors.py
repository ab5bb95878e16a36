"""From the sums of a pass to the factors that they imply, and the next settings.

Three rules, by what couples units: `local_factors` where each unit solves its own b and
c, `region_factors` where regions share potentials, `forward_factors` at b = c = 1.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..core import (
    LARGEST,
    SMALLEST,
    AndersonState,
    anderson_step,
    broadcast_per_layer,
    multiply,
    usable,
)
from ..units import (
    Unit,
    UnitKey,
    concat_units,
    ones,
    scale_by_owner,
    split_units,
    unit_numbers,
)
from ._potentials import (
    bounded_exp,
    closed_forms,
    factor_dtype,
    factors_from_potentials,
    is_extreme,
    log_potentials,
    out_of_range,
    tells,
    unit_factors,
)
from ._state import (
    Findings,
    PassResult,
    Settings,
    Solution,
    SolveState,
    Sums,
    SweepSpec,
)
from ._update_factors import step_rms

UnitValues = Mapping[UnitKey, Mapping[str, Any]]


def local_factors(spec: SweepSpec, state: SolveState, result: PassResult) -> SolveState:
    """Each unit's own b and c.

    Unit by unit, on scalars: kernels that are alike are compiled once, whereas slices
    of a common vector would each be a kernel of their own.
    """
    units, shared = spec.units, spec.shared
    implied = closed_forms(units, result.sums)
    findings = _make_findings(spec, result, implied, jnp.array(False))
    alone = partial(unit_factors, wide=spec.wide)
    solved = lambda: {unit.key: alone(unit, implied[unit.key]) for unit in units}
    if not shared:
        solution = Solution(solved(), findings, result.gradient)
        return state._replace(solution=solution)
    turn = _search_shared(spec, state.search, implied, ("output", "input_scale"))
    _put(implied, turn.used)
    new = Solution(solved(), findings, result.gradient)
    solution, moved = _keep_better(shared, state, new, turn.better)
    settings = _next_settings(shared, state.settings, result.sums, turn)
    for unit in shared:
        c = solution.factors[unit.key]["output_grad"]
        settings[unit.key] = settings[unit.key]._replace(output_grad=c)
    return SolveState(settings, solution, turn.search, moved, state.log_potentials)


def forward_factors(
    spec: SweepSpec, state: SolveState, result: PassResult
) -> SolveState:
    """b = c = 1: gradients are those of the plain model."""
    units, shared = spec.units, spec.shared
    implied = closed_forms(units, result.sums)
    findings = _make_findings(spec, result, implied, jnp.array(False))
    turn = _search_shared(spec, state.search, implied, ("output",))
    _put(implied, turn.used)
    factors = ones(units)
    for key, own in factors.items():
        own["output"] = implied[key]["output"]
    new = Solution(factors, findings, result.gradient)
    solution, moved = _keep_better(shared, state, new, turn.better)
    settings = _next_settings(shared, state.settings, result.sums, turn)
    return SolveState(settings, solution, turn.search, moved, state.log_potentials)


def region_factors(
    spec: SweepSpec, state: SolveState, result: PassResult
) -> SolveState:
    """b and c of potentials that regions share: arithmetic on all units at once."""
    units, regions, shared = spec.units, spec.regions, spec.shared
    assert regions is not None
    implied = closed_forms(units, result.sums)
    turn = _search_shared(spec, state.search, implied, ("output",))
    _put(implied, turn.used)
    a, strength, change = (
        concat_units(units, _pick(implied, name))
        for name in ("output", "strength", "change")
    )
    if not spec.wide:
        strength, change = jnp.sqrt(strength), a * jnp.sqrt(change)
    narrow = any(u.narrow for u in units)
    strained = out_of_range(regions, strength, narrow=narrow, wide=spec.wide)
    findings = _make_findings(spec, result, implied, strained)
    potentials = log_potentials(regions, state.log_potentials, strength, change)
    potentials = jnp.where(turn.better, potentials, state.log_potentials)
    wide = potentials.astype(factor_dtype(result.gradient))
    columns = factors_from_potentials(regions, wide, strength)
    if spec.wide:  # a size at the ends of the range is any beyond
        for name, size in (("input_grad", strength), ("output_grad", change)):
            end = jnp.where(size < 1, LARGEST, SMALLEST)
            columns[name] = jnp.where(tells(size), columns[name], end)
    factors = split_units(units, columns)
    for unit in units:
        factors[unit.key]["output"] = implied[unit.key]["output"]
    inner = regions.inner_region
    grown = bounded_exp(potentials - state.log_potentials)
    weights = _pick(split_units(units, {"weight": grown[inner]}), "weight")
    by_path = {path: weight for (path, _), weight in weights.items()}
    by_path |= {raw.path: grown[regions.raw_region[raw.path]] for raw in spec.raw}
    gradient = scale_by_owner(result.gradient, spec.movers, by_path)
    new = Solution(factors, findings, gradient)
    solution, moved = _keep_better(shared, state, new, turn.better)
    settings = _next_settings(shared, state.settings, result.sums, turn)
    settings = _carry_potentials(spec, settings, factors, weights)
    return SolveState(settings, solution, turn.search, moved, potentials)


def _carry_potentials(
    spec: SweepSpec,
    settings: Mapping[UnitKey, Settings],
    factors: UnitValues,
    weights: Mapping[UnitKey, Array],
) -> dict[UnitKey, Settings]:
    """The settings with the factors b and c that carry the potentials just found.

    The gradient along which a shared unit is to move grows with them.
    """
    carrying = {}
    for unit in spec.units:
        own, weight = settings[unit.key], weights[unit.key]
        b, c = (
            factors[unit.key][name].astype(jnp.float32)
            for name in ("input_grad", "output_grad")
        )
        own = own._replace(input_grad=b, output_grad=c)
        if own.shared is not None:
            grown = lambda g, w=weight, unit=unit: multiply(
                g, broadcast_per_layer(w, g.shape, unit.lifted_axes)
            )
            step = {name: grown(g) for name, g in own.shared.step.items()}
            own = own._replace(shared=own.shared._replace(step=step))
        carrying[unit.key] = own
    return carrying


def _keep_better(
    shared: list[Unit], state: SolveState, new: Solution, better: Bool[Array, ""]
) -> tuple[Solution, Float[Array, ""]]:
    """The better of the last solution and the new one, and how far c moved."""
    if not shared:
        return new, state.moved
    now, was = (
        concat_units(shared, _pick(solution.factors, "output_grad"))
        for solution in (new, state.solution)
    )
    moved = jnp.max(jnp.abs(jnp.log(now / was))).astype(jnp.float32)
    pick = lambda new, old: jnp.where(better, new, old)
    return jax.tree.map(pick, (new, moved), (state.solution, state.moved))


def _pick(values: UnitValues, name: str) -> dict[UnitKey, Any]:
    return {key: own[name] for key, own in values.items()}


def _put(values: dict[UnitKey, dict], others: UnitValues) -> None:
    """Overwrites what others have, unit by unit."""
    for key, own in others.items():
        values[key] |= own


class _Turn(NamedTuple):
    """One turn of the search for the factors of shared units."""

    search: AndersonState
    names: Sequence[str]
    """Of the unknowns that a unit has."""
    used: dict[UnitKey, dict[str, Array]]
    """The factors in force in the pass."""
    better: Bool[Array, ""]
    """Whether no pass was better."""


def _search_shared(
    spec: SweepSpec, search: AndersonState, implied: UnitValues, names: Sequence[str]
) -> _Turn:
    """The search after a pass; without shared units it counts passes only."""
    shared = spec.shared
    if not shared:
        search = search._replace(passes=search.passes + 1)
        return _Turn(search, names, {}, jnp.array(True))
    logs = [jnp.log(concat_units(shared, _pick(implied, name))) for name in names]
    logs = jnp.concatenate(logs)
    sound = jnp.tile(concat_units(shared, _pick(implied, "sound")), len(names))
    miss = jnp.where(sound, search.at - logs, jnp.inf)
    used = jnp.exp(jnp.where(search.passes == 0, logs, search.at))
    search, better = anderson_step(search, miss, spec.stopping.tolerance)
    return _Turn(search, names, _unknowns_by_unit(shared, used, names), better)


def _unknowns_by_unit(
    shared: list[Unit], values: Array, names: Sequence[str]
) -> dict[UnitKey, dict[str, Array]]:
    """The unknowns of the search, per unit and name."""
    parts = jnp.split(values, len(names))
    return split_units(shared, dict(zip(names, parts, strict=True)))


def _next_settings(
    shared: list[Unit],
    settings: Mapping[UnitKey, Settings],
    sums: Mapping[UnitKey, Sums],
    turn: _Turn,
) -> dict[UnitKey, Settings]:
    """The factors to try next, and the gradients of the best pass."""
    after = dict(settings)
    if not shared:
        return after
    tried = _unknowns_by_unit(shared, jnp.exp(turn.search.at), turn.names)
    pick = lambda new, old: jnp.where(turn.better, new, old)
    for key, factors in tried.items():
        own = settings[key]
        assert own.shared is not None
        step = jax.tree.map(pick, sums[key].gradient, own.shared.step)
        found = jnp.ones_like(own.target)
        given = own.shared._replace(**factors, found=found, step=step)
        after[key] = own._replace(shared=given)
    return after


def _make_findings(
    spec: SweepSpec, result: PassResult, implied: UnitValues, strained: Bool[Array, ""]
) -> Findings:
    """Which units' statistics are finite in every layer."""
    units = spec.units
    owner = unit_numbers(units)
    size, strength, change, a = (
        concat_units(units, _pick(implied, name))
        for name in ("size", "strength", "change", "output")
    )
    every = lambda good: jnp.ones(len(units), bool).at[owner].min(good)
    if spec.wide:
        by_path = step_rms(spec, result.gradient)
        lengths = {u.key: by_path[u.path] for u in units}
        kept = usable(concat_units(units, lengths)) | ~usable(change)
        kept &= spec.plain | (tells(strength) & tells(change))
        extreme, reach = jnp.array(False), every(kept)
    else:
        gradients = jnp.stack([strength, change, jnp.square(a) * change])
        extreme = is_extreme(gradients, size, a)
        reach = jnp.ones(len(units), bool)
    return Findings(
        names=spec.names,
        heard=every(concat_units(units, _pick(implied, "heard"))),
        activations=every(jnp.isfinite(size)),
        gradients=every(jnp.isfinite(strength) & jnp.isfinite(change)),
        loss=result.finite_loss,
        strained=strained,
        extreme=extreme,
        steps=jnp.ones(len(units), bool),
        moves=jnp.array(True),
        reach=reach,
    )
