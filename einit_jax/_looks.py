"""What is seen of a scaled model on one batch, with its factors fixed."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array

from ._changes import changes
from ._graph import Unit
from ._hook import Leaves
from ._lift import fronted
from ._math import rms, widen
from ._observe import OBSERVE, observing, slots, statistics
from ._optimizer import first_step
from ._paths import plain
from ._plan import anchor, checked_loss, floats_of, outputs_of
from ._problem import Batch, Problem, over_axis
from ._units import (
    FACTORS,
    UPDATE,
    Kind,
    blank,
    flat_floats,
    kind_of,
    ones,
    only,
    own_floats,
    owners,
    riding,
    strength,
    weighed,
)


def observe(
    task: Problem,
    units: tuple[Unit, ...],
    params: Any,
    collections: Mapping,
    values: dict,
    batch: Batch,
    capture: bool,
    optimizer: optax.GradientTransformation | None,
    like: Any,
) -> tuple[dict[Kind, dict[str, Any]], jax.Array, jax.Array]:
    """The statistics of each unit, the loss, and what parameters of no unit move.

    Three looks at the model: with gradients as they are, with those that the factors
    carry, and with the changes by the latter, or by what the optimizer makes of them.
    """
    named = {kind_of(u): u for u in units}
    own = {kind: own_floats(params, unit) for kind, unit in named.items()}
    still = {kind: blank(params, unit) for kind, unit in named.items()}
    empty = {kind: slots(unit) for kind, unit in named.items()}
    leaves = Leaves(plain(params))
    owned = owners(params, units)

    def loss(floats, shifts, slots, steps, factors):
        entries = {
            kind: {"factors": factors[kind], "slots": slots[kind], "step": steps[kind]}
            | {"shift": shifts[kind]}
            | ({"opaque": values[kind]["output"]} if unit.opaque else {})
            for kind, unit in named.items()
        }
        filled = riding(leaves.build(floats), OBSERVE, entries)
        wanted = lambda module, name: (module.path, name) in named
        with nn.intercept_methods(observing()):
            outputs, written = outputs_of(
                task, filled, collections, batch,
                capture_intermediates=wanted if capture else False,
            )  # fmt: skip
        seen = _captured(written.get("intermediates", {}), named)
        value = checked_loss(task, outputs, batch)
        total = value + anchor(floats_of(outputs)).astype(value.dtype)
        return total, (seen, value)

    def look(steps, turn):
        factors, moves = turn
        gradient = jax.grad(loss, (0, 1, 2), has_aux=True)
        inside = lambda: gradient(leaves.floats, still, empty, steps, factors)
        (of_params, of_shifts, sums), (seen, value) = over_axis(task.axis_name, inside)
        step = [jnp.conj(g) for g in of_params]
        steps = jax.tree.map(jnp.conj, of_shifts)
        if optimizer is not None:
            step = _multiplied(
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
        sums[kind]["params"] = strength(own[kind].values(), unit)
    _add_directions(sums, units, owned, gradient, true[3])
    outputs = {kind: own["output"] for kind, own in values.items()}
    move = lambda step: changes(task, units, outputs, params, step, collections, batch)
    for kind, total in move(only(step, owned)).items():
        sums[kind]["total"] = total
    if all(owned):
        return sums, value, jnp.zeros((), jnp.float32)
    loose = move(only(step, owned, units=False))
    return sums, value, jnp.max(jnp.stack([jnp.max(t) for t in loose.values()]))


def _multiplied(
    step: list[Array],
    values: Mapping[Kind, Mapping[str, Array]],
    owned: Sequence[Unit | None],
) -> list[Array]:
    """An optimizer's step times the factor `update` of each unit, where it has one."""
    by = {path: own[UPDATE] for (path, _), own in values.items() if UPDATE in own}
    return weighed(step, owned, by) if by else step


def _add_directions(
    sums: dict[Kind, dict[str, Any]],
    units: Sequence[Unit],
    owned: Sequence[Unit | None],
    gradient: list[Array],
    true: list[Array],
) -> None:
    """Adds the rms of each unit's parameter gradients, and the cosine to true ones."""
    for unit in units:
        mine = [u is not None and u.path == unit.path for u in owned]
        carried, plain = (
            [fronted(g, unit.lift) for g, m in zip(x, mine, strict=True) if m]
            for x in (gradient, true)
        )
        keep = len(unit.layers)
        size = rms(carried, keep)
        cosine = _cosine(carried, plain, size, rms(plain, keep), keep)
        own = sums[kind_of(unit)]
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


def _captured(tree: Mapping, units: Mapping[Kind, Unit]) -> dict[Kind, dict]:
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
        calls = [floats_of(y) for y in node[chain - 1 :: chain]]
        if all(tuple(t.shape for t in y) == unit.shape for y in calls):
            each = [statistics(y) for y in calls]
            found[(path, method)] = {k: sum(e[k] for e in each) for k in each[0]}
    return jax.lax.stop_gradient(found)
