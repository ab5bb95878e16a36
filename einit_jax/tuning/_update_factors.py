"""The third pillar: by how much each unit's updates are to be multiplied.

Updates are linear in these numbers, so that one forward-mode pass along a step gives
them in closed form.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ..core import Batch, first_step, inverse, usable
from ..linen import output_changes
from ..units import (
    UPDATE,
    Unit,
    UnitKey,
    mask_unowned,
    param_rms,
    scale_by_owner,
)
from ._state import Solution, SweepSpec


def rescale_to_total(
    job: SweepSpec,
    units: tuple[Unit, ...],
    solution: Solution,
    params: Any,
    collections: Mapping,
    batch: Batch,
) -> Solution:
    """One number s more in every c, and taken out of every b.

    All parameters of tuned units move together; `s = 1 / max rms(D)` over all `units`,
    for D is linear in s.
    """
    step = [jnp.conj(g) for g in mask_unowned(solution.gradient, job.owners)]
    outputs = _outputs(solution.factors)
    found = output_changes(job.task, units, outputs, params, step, collections, batch)
    s = _one_over_largest(found)
    factors = dict(solution.factors)
    for unit in job.units:
        own = factors[unit.key]
        b = own["input_grad"] / s if unit.floats else own["input_grad"]
        new = {"input_grad": b, "output_grad": own["output_grad"] * s}
        factors[unit.key] = {**own, **new}
    return solution._replace(factors=factors)


def add_update_factors(
    job: SweepSpec,
    units: tuple[Unit, ...],
    solution: Solution,
    optimizer: optax.GradientTransformation,
    total: bool,
    like: Any,
    params: Any,
    collections: Mapping,
    batch: Batch,
) -> Solution:
    """A fourth factor for each unit, `update`, from the optimizer's own first step.

    It is `1 / rms(Delta)`, and with `total` a common number more. The step of a unit is
    brought to rms 1 before it is followed: raw ones may leave the range of the dtype.
    """
    step = first_step(optimizer, like, params, solution.gradient)
    step = mask_unowned(step, job.owners)
    move = partial(output_changes, job.task, units, _outputs(solution.factors), params)
    move = partial(move, collections=collections, batch=batch)
    sizes = _step_rms(job, step)
    step = scale_by_owner(step, job.owners, jax.tree.map(inverse, sizes))
    change = _mean_over_methods(job, move(step=step, held=True))
    common = jnp.ones((), jnp.float32)
    if total:
        balanced = scale_by_owner(step, job.owners, jax.tree.map(inverse, change))
        common = _one_over_largest(move(step=balanced))
    factors = {kind: {**own} for kind, own in solution.factors.items()}
    for own in factors.values():
        own[UPDATE] = jnp.ones_like(own["output"])
    for unit in job.units:
        found = common / sizes[unit.path] / change[unit.path]
        fine = usable(found) & usable(sizes[unit.path] * change[unit.path])
        factors[unit.key][UPDATE] = jnp.where(fine, found, 1.0)
    findings = replace(
        solution.findings,
        steps=jnp.stack([jnp.all(jnp.isfinite(sizes[u.path])) for u in job.units]),
        moves=jnp.any(jnp.stack([jnp.any(size > 0) for size in sizes.values()])),
    )
    return solution._replace(factors=factors, findings=findings)


def _outputs(
    factors: Mapping[UnitKey, Mapping[str, jax.Array]],
) -> dict[UnitKey, jax.Array]:
    return {kind: own["output"] for kind, own in factors.items()}


def _step_rms(job: SweepSpec, step: list[jax.Array]) -> dict:
    """The rms of each unit's step, per layer, by path."""
    paths = {unit.path: unit for unit in job.units}
    pairs = list(zip(step, job.owners, strict=True))
    mine = lambda path: [s for s, u in pairs if u is not None and u.path == path]
    return {path: param_rms(mine(path), unit) for path, unit in paths.items()}


def _mean_over_methods(job: SweepSpec, found: Mapping[UnitKey, jax.Array]) -> dict:
    """The root mean square over the methods of a module, which share parameters."""
    methods: dict = {}
    for unit in job.units:
        methods.setdefault(unit.path, []).append(jnp.square(found[unit.key]))
    return {path: jnp.sqrt(sum(each) / len(each)) for path, each in methods.items()}


def _one_over_largest(found: Mapping[UnitKey, jax.Array]) -> jax.Array:
    """1 over the largest finite value, and 1 where that is none."""
    finite = [jnp.max(jnp.where(jnp.isfinite(t), t, 0)) for t in found.values()]
    return inverse(jnp.max(jnp.stack(finite)))
