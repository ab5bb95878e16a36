"""How far every unit's output moves when parameters take a step.

One forward-mode pass with the step as tangents, at b = c = 1: all units moving together
give the total update; with each unit's inputs held fixed it is the unit's own. Tangents
cannot leave lifted transforms, which drop all collections but `params`; so their
statistics leave as cotangents, by a backward pass over the tangents that skips the
units: it carries nothing but zeros from one tap to the next.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ..core import (
    FLOOR,
    ArrayType,
    ModelArgs,
    Partition,
    anchor,
    as_summed,
    float_leaves,
    multiply,
    per_call,
    plain,
    rms,
    rms_of_calls,
    squares,
    summed_like,
    type_of,
    vary_with,
    widen,
    zeros_of,
)
from ..graph import derivative_along
from ..units import Interception, Objective, Unit, UnitCall, UnitKey

SHRINK = 2.0**-20
"""Keeps squares of large tangents finite in float32; a power of two rounds nothing. In
a wide pass there is no need."""

ROUNDINGS = 8
"""Differences between examples of fewer relative roundings are taken for none."""


def output_changes(
    objective: Objective,
    units: tuple[Unit, ...],
    args: ModelArgs,
    *,
    outputs: Mapping[UnitKey, jax.Array],
    step: list[jax.Array],
    inputs_held: bool = False,
    wide: bool = True,
) -> dict[UnitKey, jax.Array]:
    """The rms of each unit's change, mean square over calls, to first order.

    Args:
        objective: the model; the loss is not used.
        units: those to be looked at.
        args: what the model runs on.
        outputs: the factor a of each unit.
        step: how each floating leaf of params moves, in their order.
        inputs_held: whether each unit sees its inputs fixed, and moves by itself.
        wide: whether changes may be such that their squares leave float32. It costs a
            reduction more for each unit.
    """
    leaves = Partition(plain(args.params))
    shrink = 1.0 if wide or any(unit.narrow for unit in units) else SHRINK
    step = [(shrink * widen(t)).astype(t.dtype) for t in step]
    zeros = {u.key: empty_changes(u, outputs[u.key], wide=wide) for u in units}
    zeros = vary_with(zeros, args)

    def moved(sums):
        def forward(*floats):
            entries = {
                key: {"output": outputs[key], **own} for key, own in sums.items()
            }
            if inputs_held:  # told by what is carried: a trace that nn.jit has cached
                # knows no more
                entries = {k: {**own, "held": outputs[k]} for k, own in entries.items()}
            taps = Interception("changes", entries, _tap_call)
            filled = args._replace(params=leaves.build(list(floats)))
            model_outputs, _ = objective.run(filled, taps)
            return float_leaves(model_outputs)

        _, tangents = derivative_along(forward, leaves.floats, step)
        return anchor(tangents)

    sums = objective.over_axis(lambda: jax.grad(moved)(zeros))
    if wide:
        return {k: rms_of_calls(own["size"], own["calls"]) for k, own in sums.items()}
    return {
        key: _root_mean(own["power"], own["calls"], shrink) for key, own in sums.items()
    }


@partial(jax.jit, static_argnums=2)
def _root_mean(power: Array, calls: Array, shrink: float) -> Array:
    """The root of the mean square over calls, at full size again."""
    return jnp.sqrt(power / jnp.maximum(calls, 1)) / shrink


def empty_changes(unit: Unit, like: jax.Array, *, wide: bool) -> dict[str, Any]:
    """Zeros in a shape, whose cotangents are what `tap_changes` finds of a unit."""
    zero = jnp.zeros_like(like)
    if not wide:
        return {"calls": zero, "power": zero}
    return {"calls": zero, "size": as_summed(zero, several=unit.calls > 1)}


def _tap_call(call: UnitCall, entry: Mapping[str, Any]) -> Any:
    """The call's outputs times a, tapped."""
    still = jax.lax.stop_gradient if "held" in entry else lambda x: x
    raw = call.proceed([still(x) for x in call.inputs])
    a = entry["output"].reshape(())
    outputs = [multiply(t, a) for t in raw]
    sums = {n: t for n, t in entry.items() if n in ("calls", "power", "size")}
    return call.finish(tap_changes(outputs, call.inputs, sums))


@jax.custom_jvp
def tap_changes(outputs, inputs, sums):
    """The outputs; statistics of what they move by are the cotangents of `sums`.

    These are "calls" and either "power", the mean square, or "size", the rms, as
    `core.as_summed`; in "spread", alike, that of the outputs around their mean over the
    batch.
    """
    return outputs


@tap_changes.defjvp
def _tap_jvp(primals, tangents):
    outputs, _, sums = primals
    moved, along, _ = tangents
    still = lambda arrays: [jax.lax.stop_gradient(t) for t in arrays]
    values = still(outputs) if "spread" in sums else []
    return outputs, _note(still(moved), values, along, sums)


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["known"])
@dataclass(frozen=True)
class Types:
    """Types of arrays for a backward pass, which keeps no array for their sake."""

    known: tuple[ArrayType, ...]


@jax.custom_vjp
def _note(moved, values, along, sums):
    """The tangents of the outputs; `along`, those of the inputs, leads to more taps."""
    return moved


def _note_forward(moved, values, along, sums):
    if "power" in sums:
        power, size = squares(moved, FLOOR)
        statistics = {"power": power / size}
    else:
        statistics = {"size": rms(moved)}
    if "spread" in sums:
        statistics["spread"] = sure_spread(values)
    types = [Types(tuple(map(type_of, arrays))) for arrays in (values, along)]
    return moved, (with_calls(statistics, sums), *types)


def with_calls(statistics: dict[str, Any], sums: Mapping[str, Any]) -> dict[str, Any]:
    """The statistics of one call and their count, as cotangents of `sums`.

    Each call counts the same, whatever its size.
    """
    some, *_ = statistics.values()
    return summed_like({**statistics, "calls": per_call(1, some)}, sums)


def _note_backward(residual, cotangents):
    statistics, *types = residual
    zeros = [[zeros_of(kind) for kind in arrays.known] for arrays in types]
    return [jnp.zeros_like(t) for t in cotangents], *zeros, statistics


_note.defvjp(_note_forward, _note_backward)


@jax.jit
def sure_spread(values: list[jax.Array]) -> jax.Array:
    """The rms of arrays around their means over the batch, their first axis.

    0 where it is no more than rounding: all examples look the same.
    """
    arrays = [t for t in values if t.ndim]
    wide = [widen(t) for t in arrays]
    spread = rms([t - jnp.mean(t, 0, keepdims=True) for t in wide])
    eps = max((float(jnp.finfo(t.dtype).eps) for t in arrays), default=0.0)
    return jnp.where(spread > ROUNDINGS * eps * rms(wide), spread, 0.0)
