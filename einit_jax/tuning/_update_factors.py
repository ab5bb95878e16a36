"""The third pillar: by how much each unit's updates are to be multiplied.

Updates are linear in these numbers, so that one forward-mode pass along a step gives
them in closed form.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ..binding import output_changes
from ..core import ModelArgs, Params, Path, first_step, inverse, usable
from ..units import UPDATE, Unit, UnitKey, mask_unowned, param_rms, scale_by_owner
from ._state import Solution, SweepSpec


def rescale_to_total(
    spec: SweepSpec, units: tuple[Unit, ...], solution: Solution, args: ModelArgs
) -> Solution:
    """One number s more in every c, and taken out of every b.

    All parameters of tuned units move together; `s = 1 / max rms(D)` over all `units`,
    for D is linear in s.
    """
    step = [jnp.conj(g) for g in mask_unowned(solution.gradient, spec.owners)]
    outputs = _outputs(solution.factors)
    changes = output_changes(spec.objective, units, args, outputs=outputs, step=step)
    s = _one_over_largest(changes)
    factors = dict(solution.factors)
    for unit in spec.units:
        own = factors[unit.key]
        b = own["input_grad"] / s if unit.floats else own["input_grad"]
        new = {"input_grad": b, "output_grad": own["output_grad"] * s}
        factors[unit.key] = {**own, **new}
    return solution._replace(factors=factors)


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

    It is `1 / rms(Delta)`, and with `total` a common number more. The step of a unit is
    brought to rms 1 before it is followed: raw ones may leave the range of the dtype.
    The optimizer sees parameters nested as in `like`.
    """
    step = first_step(optimizer, like, args.params, solution.gradient)
    step = mask_unowned(step, spec.owners)
    outputs = _outputs(solution.factors)
    move = partial(output_changes, spec.objective, units, args, outputs=outputs)
    sizes = _step_rms(spec, step)
    step = scale_by_owner(step, spec.owners, jax.tree.map(inverse, sizes))
    change = _mean_over_methods(spec, move(step=step, inputs_held=True))
    common = jnp.ones((), jnp.float32)
    if total:
        balanced = scale_by_owner(step, spec.owners, jax.tree.map(inverse, change))
        common = _one_over_largest(move(step=balanced))
    factors = {key: {**own} for key, own in solution.factors.items()}
    for own in factors.values():
        own[UPDATE] = jnp.ones_like(own["output"])
    for unit in spec.units:
        update = common / sizes[unit.path] / change[unit.path]
        fine = usable(update) & usable(sizes[unit.path] * change[unit.path])
        factors[unit.key][UPDATE] = jnp.where(fine, update, 1.0)
    findings = replace(
        solution.findings,
        steps=jnp.stack([jnp.all(jnp.isfinite(sizes[u.path])) for u in spec.units]),
        moves=jnp.any(jnp.stack([jnp.any(size > 0) for size in sizes.values()])),
    )
    return solution._replace(factors=factors, findings=findings)


def _outputs(factors: Mapping[UnitKey, Mapping[str, Array]]) -> dict[UnitKey, Array]:
    return {key: own["output"] for key, own in factors.items()}


def _step_rms(spec: SweepSpec, step: list[Array]) -> dict[Path, Array]:
    """The rms of each unit's step, per layer, by path."""
    paths = {unit.path: unit for unit in spec.units}
    pairs = list(zip(step, spec.owners, strict=True))
    mine = lambda path: [s for s, u in pairs if u is not None and u.path == path]
    return {path: param_rms(mine(path), unit) for path, unit in paths.items()}


def _mean_over_methods(
    spec: SweepSpec, changes: Mapping[UnitKey, Array]
) -> dict[Path, Array]:
    """The root mean square over the methods of a module, which share parameters."""
    methods: dict[Path, list[Array]] = {}
    for unit in spec.units:
        methods.setdefault(unit.path, []).append(jnp.square(changes[unit.key]))
    return {path: jnp.sqrt(sum(each) / len(each)) for path, each in methods.items()}


def _one_over_largest(changes: Mapping[UnitKey, Array]) -> Float[Array, ""]:
    """1 over the largest finite value, and 1 where that is none."""
    finite = [jnp.max(jnp.where(jnp.isfinite(t), t, 0)) for t in changes.values()]
    return inverse(jnp.max(jnp.stack(finite)))
