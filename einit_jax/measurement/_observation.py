"""What is seen of a scaled model on one batch, with its factors fixed."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array

from ..core import (
    Batch,
    Partition,
    anchor,
    first_step,
    float_leaves,
    layers_first,
    plain,
    rms,
    widen,
)
from ..linen import (
    Objective,
    carry_entries,
    checked_loss,
    output_changes,
    outputs_of,
    over_mapped_axis,
)
from ..units import (
    FACTORS,
    UPDATE,
    Unit,
    UnitKey,
    flat_floats,
    mask_unowned,
    ones,
    own_floats,
    owners,
    param_rms,
    scale_by_owner,
    zeros_like_params,
)
from ._unit_statistics import (
    OBSERVE,
    empty_sums,
    output_statistics,
    unit_statistics_interceptor,
)


def observe(
    task: Objective,
    units: tuple[Unit, ...],
    params: Any,
    collections: Mapping,
    values: dict,
    batch: Batch,
    capture: bool,
    optimizer: optax.GradientTransformation | None,
    like: Any,
) -> tuple[dict[UnitKey, dict[str, Any]], jax.Array, jax.Array]:
    """The statistics of each unit, the loss, and what parameters of no unit move.

    Three looks at the model: with gradients as they are, with those that the factors
    carry, and with the changes by the latter, or by what the optimizer makes of them.
    """
    named = {u.key: u for u in units}
    own = {kind: own_floats(params, unit) for kind, unit in named.items()}
    still = {kind: zeros_like_params(params, unit) for kind, unit in named.items()}
    empty = {kind: empty_sums(unit) for kind, unit in named.items()}
    leaves = Partition(plain(params))
    owned = owners(params, units)

    def loss(floats, shifts, slots, steps, factors):
        entries = {
            kind: {"factors": factors[kind], "slots": slots[kind], "step": steps[kind]}
            | {"shift": shifts[kind]}
            | ({"opaque": values[kind]["output"]} if unit.opaque else {})
            for kind, unit in named.items()
        }
        filled = carry_entries(leaves.build(floats), OBSERVE, entries)
        wanted = lambda module, name: (module.path, name) in named
        with nn.intercept_methods(unit_statistics_interceptor()):
            outputs, written = outputs_of(
                task, filled, collections, batch,
                capture_intermediates=wanted if capture else False,
            )  # fmt: skip
        seen = _captured(written.get("intermediates", {}), named)
        value = checked_loss(task, outputs, batch)
        total = value + anchor(float_leaves(outputs)).astype(value.dtype)
        return total, (seen, value)

    def look(steps, turn):
        factors, moves = turn
        gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
        inside = lambda: gradient(leaves.floats, still, empty, steps, factors)
        (of_params, of_shifts, sums), (seen, value) = over_mapped_axis(
            task.axis_name, inside
        )
        step = [jnp.conj(g) for g in of_params]
        steps = jax.tree.map(jnp.conj, of_shifts)
        if optimizer is not None:
            step = _scale_step(
                first_step(optimizer, like, params, of_params), values, owned
            )
            moved = leaves.build(step)
            steps = {kind: flat_floats(moved, unit) for kind, unit in named.items()}
        steps = jax.tree.map(lambda s: moves.astype(s.dtype) * s, steps)
        return steps, (sums, seen, value, of_params, step)

    forward = {
        kind: one | {"output": values[kind]["output"]}
        for kind, one in ones(units).items()
    }
    carry = {kind: {n: own[n] for n in FACTORS} for kind, own in values.items()}
    turns = jax.tree.map(lambda *x: jnp.stack(x), forward, carry, carry)
    _, found = jax.lax.scan(look, still, (turns, jnp.array([0.0, 1.0, 0.0])))
    # the last look only adds the changes by an update: with a step, cotangents also
    # flow through the derivative along it
    true, carried, moved = (jax.tree.map(lambda x, i=i: x[i], found) for i in range(3))
    sums, seen, value, gradient, step = carried
    for kind, unit in named.items():
        for name in ("update", "update_power"):
            sums[kind]["output"][name] = moved[0][kind]["output"][name]
        sums[kind]["output"] |= seen.get(kind, {})
        sums[kind]["true"] = true[0][kind]["input"]
        sums[kind]["params"] = param_rms(own[kind].values(), unit)
    _add_directions(sums, units, owned, gradient, true[3])
    outputs = {kind: own["output"] for kind, own in values.items()}
    move = lambda step: output_changes(
        task, units, outputs, params, step, collections, batch
    )
    for kind, total in move(mask_unowned(step, owned)).items():
        sums[kind]["total"] = total
    if all(owned):
        return sums, value, jnp.zeros((), jnp.float32)
    loose = move(mask_unowned(step, owned, units=False))
    return sums, value, jnp.max(jnp.stack([jnp.max(t) for t in loose.values()]))


def _scale_step(
    step: list[Array],
    values: Mapping[UnitKey, Mapping[str, Array]],
    owned: Sequence[Unit | None],
) -> list[Array]:
    """An optimizer's step times the factor `update` of each unit, where it has one."""
    by = {path: own[UPDATE] for (path, _), own in values.items() if UPDATE in own}
    return scale_by_owner(step, owned, by) if by else step


def _add_directions(
    sums: dict[UnitKey, dict[str, Any]],
    units: Sequence[Unit],
    owned: Sequence[Unit | None],
    gradient: list[Array],
    true: list[Array],
) -> None:
    """Adds the rms of each unit's parameter gradients, and the cosine to true ones."""
    for unit in units:
        mine = [u is not None and u.path == unit.path for u in owned]
        carried, plain = (
            [layers_first(g, unit.lift) for g, m in zip(x, mine, strict=True) if m]
            for x in (gradient, true)
        )
        keep = len(unit.layers)
        size = rms(carried, keep)
        cosine = _cosine(carried, plain, size, rms(plain, keep), keep)
        own = sums[unit.key]
        own["param_grads"] = size.reshape(unit.ride_shape)
        own["cosine"] = cosine.reshape(unit.ride_shape)


def _cosine(
    a: list[Array], b: list[Array], size_a: Array, size_b: Array, keep: int
) -> Array:
    """Between two lists of arrays, for each index of the first `keep` axes.

    The sizes are their joint rms; NaN where one is zero.
    """
    live = (size_a > 0) & (size_b > 0)
    flat = lambda x, size: (
        widen(x).reshape(*x.shape[:keep], -1)
        / jnp.where(live, size, 1).reshape(*size.shape, 1)
    )
    dots = [
        jnp.real(jnp.conj(flat(x, size_a)) * flat(y, size_b))
        for x, y in zip(a, b, strict=True)
    ]
    count = max(sum(d.shape[-1] for d in dots), 1)
    mean = sum((d.sum(-1) for d in dots), jnp.zeros(size_a.shape, jnp.float32)) / count
    return jnp.where(live, mean.astype(jnp.float32), jnp.nan)


def _captured(tree: Mapping, units: Mapping[UnitKey, Unit]) -> dict[UnitKey, dict]:
    """The statistics of captured outputs, of the units whose calls were all captured.

    A `super().__call__` chain captures the inner outputs of a call before its own.
    """
    found = {}
    for (path, method), unit in units.items():
        node: Any = tree
        for name in (*path, method):
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
        if unit.lift or not node or len(node) % unit.calls:
            continue
        chain = len(node) // unit.calls
        calls = [float_leaves(y) for y in node[chain - 1 :: chain]]
        if all(tuple(t.shape for t in y) == unit.shape for y in calls):
            each = [output_statistics(y) for y in calls]
            found[(path, method)] = {k: sum(e[k] for e in each) for k in each[0]}
    return jax.lax.stop_gradient(found)
