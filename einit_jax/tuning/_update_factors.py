"""The third pillar: by how much updates are to be multiplied, unit by unit.

A raw parameter, which belongs to no unit, moves what reads it, by as much as a unit its
output. The total update is that of what multiplies: what is only added (tokens, tables
of positions) may lie so near to 0 before a normalization that its derivative there
tells of no step. Updates are linear in these numbers, so that one forward-mode pass
along a step gives them in closed form.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from ..binding import output_changes, own_changes
from ..core import (
    LARGEST,
    LEAST_RMS,
    MOST_RMS,
    SMALLEST,
    ModelArgs,
    Params,
    Path,
    first_step,
    in_range,
    inverse,
    rms,
    times,
    usable,
)
from ..units import (
    FACTORS,
    UPDATE,
    RawParameter,
    Unit,
    UnitKey,
    mask_unowned,
    only_at,
    param_rms,
    scale_by_owner,
    split_units,
)
from ._state import Findings, Solution, SweepSpec


def rescale_to_total(
    spec: SweepSpec, units: tuple[Unit, ...], solution: Solution, args: ModelArgs
) -> Solution:
    """One number s more in the potential of every inside: in every c, and out of b.

    What counts moves together; `s = 1 / max rms(D)` over all `units`, for D is linear
    in s. Parameters that the loss's region uses keep their gradients, and do not count.
    Before, raw parameters are brought to what units are at: to move what reads them
    by 1.
    """
    step = [jnp.conj(g) for g in _free_gradient(spec, solution.gradient)]
    outputs = _outputs(solution.factors)
    raw = {each.path for each in spec.raw}
    sizes = {path: n for path, n in step_rms(spec, step).items() if path in raw}
    alone = only_at(spec.movers, raw)
    step = scale_by_owner(step, alone, jax.tree.map(inverse, sizes))
    moved: dict[Path, Array] = {}
    if raw:
        how = {"outputs": outputs, "step": step, "movers": alone}
        _, moved = own_changes(spec.objective, units, args, **how)
    step = scale_by_owner(step, alone, jax.tree.map(inverse, moved))
    step = _counted(spec, step)
    changes = output_changes(
        spec.objective, units, args, outputs=outputs, step=step, wide=spec.wide
    )
    s = _one_over_largest(changes)
    grown = _growth(spec, s)
    factors = dict(solution.factors)
    for unit in spec.units:
        own, by = factors[unit.key], grown[unit.key]
        b = _regrown(own["input_grad"], by["input"], by["inside"])
        c = _regrown(own["output_grad"], by["inside"], by["output"])
        new = {"input_grad": b if unit.floats else own["input_grad"], "output_grad": c}
        if spec.wide:  # what is at the ends of the range stays there
            new = {n: jnp.where(in_range(own[n]), new[n], own[n]) for n in new}
        factors[unit.key] = {**own, **new}
    findings = _look_at_changes(spec, changes, solution.findings)
    fine = [jnp.all(jnp.isfinite(size)) for size in sizes.values()]
    steps = jnp.concatenate([findings.steps, jnp.array(fine, bool)])
    of_raw = {}
    for each in spec.raw:
        own = s / _raw_growth(spec, each, s)
        factor = _one_factor(own, sizes[each.path], moved[each.path])
        of_raw[each.key] = {"output_grad": factor}
    findings = replace(findings, steps=steps)
    return solution._replace(factors=factors, findings=findings, raw=of_raw)


@jax.jit
def _regrown(factor: Array, ahead: Array, behind: Array) -> Array:
    """A factor, where what is ahead of it has grown and what is behind."""
    return factor * ahead / behind


@jax.jit
def _one_factor(common: Array, size: Array, change: Array) -> Array:
    """What brings a step of some size, and its change at size 1, to a common one."""
    fine = usable(size) & usable(change)
    return jnp.where(fine, times(common, inverse(size), inverse(change)), 1.0)


def _raw_growth(spec: SweepSpec, raw: RawParameter, s: Float[Array, ""]) -> Array:
    """By how much a raw parameter's gradient grows: only where it is of an inside."""
    return jnp.where(spec.raw_inside[raw.path], s, 1.0)


def _look_at_changes(
    spec: SweepSpec, changes: Mapping[UnitKey, Array], findings: Findings
) -> Findings:
    """The findings with changes that overflow, and of which wide passes say more."""
    every = jnp.stack([_overflows(changes[unit.key]) for unit in spec.units])
    if not spec.wide:
        return replace(findings, extreme=findings.extreme | jnp.any(every))
    return replace(findings, reach=findings.reach & ~every)


@jax.jit
def _overflows(t: Float[Array, "..."]) -> Bool[Array, ""]:
    return jnp.any(jnp.isinf(t))


def keep_in_range(spec: SweepSpec, solution: Solution) -> Solution:
    """The solution with factors that are normal float32, and whether they were."""
    factors, reach = dict(solution.factors), []
    for unit in spec.units:
        own = factors[unit.key]
        a, b, c = (own[name] for name in FACTORS)
        sizes = [*own.values(), times(a, c), times(b, c)]
        fine = [jnp.all(in_range(size)) for size in sizes]
        reach.append(jnp.all(jnp.stack(fine)))
        factors[unit.key] = {n: jnp.clip(f, SMALLEST, LARGEST) for n, f in own.items()}
    findings = solution.findings
    findings = replace(findings, reach=findings.reach & jnp.stack(reach))
    return solution._replace(factors=factors, findings=findings)


def _counted(spec: SweepSpec, step: list[Array]) -> list[Array]:
    """The step of what counts in the total update, zeros for all else."""
    return mask_unowned(step, only_at(spec.movers, spec.counted))


def _free_gradient(spec: SweepSpec, gradient: list[Array]) -> list[Array]:
    """The gradients of what has factors, zeros where the loss's region gives them."""
    gradient = mask_unowned(gradient, spec.movers)
    if spec.regions is None:
        return gradient
    counted = spec.regions.by_update[spec.regions.inner_region]
    columns = {"counted": jnp.asarray(counted, jnp.float32)}
    by_unit = split_units(spec.units, columns)
    by_path = {path: own["counted"] for (path, _), own in by_unit.items()}
    return scale_by_owner(gradient, only_at(spec.movers, by_path), by_path)


def _growth(
    spec: SweepSpec, s: Float[Array, ""]
) -> Mapping[UnitKey, Mapping[str, Array]]:
    """By how much the potentials around and inside of each unit and layer grow."""
    if spec.regions is None:
        one = jnp.ones_like(s)
        same = {"input": one, "inside": s, "output": one}
        return dict.fromkeys((unit.key for unit in spec.units), same)
    regions = spec.regions
    places = {
        "input": np.maximum(regions.input_region, 0),
        "inside": regions.inner_region,
        "output": regions.output_region,
    }
    grown = lambda at: jnp.where(regions.by_update[at], s, 1.0)
    return split_units(spec.units, {name: grown(at) for name, at in places.items()})


def add_update_factors(
    spec: SweepSpec,
    units: tuple[Unit, ...],
    solution: Solution,
    args: ModelArgs,
    *,
    optimizer: optax.GradientTransformation,
    total: bool,
    like: Params,
) -> Solution:
    """A fourth factor for each unit, `update`, from the optimizer's own first step.

    It is `1 / rms(Delta)`, and with `total` a common number more. Raw parameters have
    theirs besides. The step of a unit is
    brought to rms 1 before it is followed: raw ones may leave the range of the dtype.
    The optimizer sees parameters nested as in `like`.
    """
    step = first_step(optimizer, like, args.params, solution.gradient)
    step = mask_unowned(step, spec.movers)
    outputs = _outputs(solution.factors)
    move = partial(
        output_changes, spec.objective, units, args, outputs=outputs, wide=spec.wide
    )
    sizes = step_rms(spec, step)
    step = scale_by_owner(step, spec.movers, jax.tree.map(inverse, sizes))
    if spec.raw:
        how = {"outputs": outputs, "step": step, "movers": spec.movers}
        own, of_raw = own_changes(spec.objective, units, args, **how)
        change = _mean_over_methods(spec, own) | of_raw
    else:
        change = _mean_over_methods(spec, move(step=step, inputs_held=True))
    common = jnp.ones((), jnp.float32)
    if total:
        balanced = scale_by_owner(step, spec.movers, jax.tree.map(inverse, change))
        common = _one_over_largest(move(step=_counted(spec, balanced)))
    factors = {key: {**own} for key, own in solution.factors.items()}
    for own in factors.values():
        own[UPDATE] = jnp.ones_like(own["output"])
    for unit in spec.units:
        size, moved = sizes[unit.path], change[unit.path]
        update = common / size / moved
        if spec.wide:
            update = times(common, inverse(size), inverse(moved))
        fine = usable(update) & usable(size) & usable(moved)
        factors[unit.key][UPDATE] = jnp.where(fine, update, 1.0)
    of_raw = {
        raw.key: {UPDATE: _one_factor(common, sizes[raw.path], change[raw.path])}
        for raw in spec.raw
    }
    off = lambda x: jnp.any((x > 0) & ((x < LEAST_RMS) | (x > MOST_RMS)))
    extreme = jnp.any(jnp.stack([off(x) for x in change.values()]))
    findings = replace(
        solution.findings,
        extreme=solution.findings.extreme | (extreme & (not spec.wide)),
        steps=jnp.stack(
            [jnp.all(jnp.isfinite(sizes[m.path])) for m in (*spec.units, *spec.raw)]
        ),
        moves=jnp.any(jnp.stack([jnp.any(size > 0) for size in sizes.values()])),
    )
    return solution._replace(factors=factors, findings=findings, raw=of_raw)


def _outputs(factors: Mapping[UnitKey, Mapping[str, Array]]) -> dict[UnitKey, Array]:
    return {key: own["output"] for key, own in factors.items()}


def step_rms(spec: SweepSpec, step: list[Array]) -> dict[Path, Array]:
    """The rms of the step of each unit and raw parameter, per layer, by path."""
    paths = {mover.path: mover for mover in (*spec.units, *spec.raw)}
    pairs = list(zip(step, spec.movers, strict=True))
    mine = lambda path: [s for s, u in pairs if u is not None and u.path == path]
    return {path: param_rms(mine(path), unit) for path, unit in paths.items()}


def _mean_over_methods(
    spec: SweepSpec, changes: Mapping[UnitKey, Array]
) -> dict[Path, Array]:
    """The root mean square over the methods of a module, which share parameters."""
    methods: dict[Path, list[Array]] = {}
    for unit in spec.units:
        methods.setdefault(unit.path, []).append(changes[unit.key])
    joint = lambda each: rms([jnp.stack(each, -1)], keep=each[0].ndim)
    return {
        path: joint(each) if len(each) > 1 else each[0]
        for path, each in methods.items()
    }


def _one_over_largest(changes: Mapping[UnitKey, Array]) -> Float[Array, ""]:
    """1 over the largest finite value, and 1 where that is none."""
    return inverse(jnp.max(jnp.stack([*map(_largest_finite, changes.values())])))


@jax.jit
def _largest_finite(t: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.max(jnp.where(jnp.isfinite(t), t, 0))
