"""How far every unit's output moves when parameters take a step.

One forward-mode pass with the step as tangents, at b = c = 1: all units moving together
give the total update, with each unit's inputs held fixed it is the unit's own. Tangents
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
from flax import linen as nn

from ..core import (
    Batch,
    Partition,
    anchor,
    float_leaves,
    multiply,
    per_call,
    plain,
    squares,
    widen,
)
from ..graph import open_to_forward_mode
from ..units import Unit, UnitKey
from ._carrying import RIDE, carry_entries
from ._interception import Call, intercept_units
from ._objective import Objective, outputs_of, over_mapped_axis

CHANGES = RIDE + "changes"


SHRINK = 2.0**-20
"""Keeps squares of large tangents finite in float32; a power of two rounds nothing."""


def output_changes(
    task: Objective,
    units: tuple[Unit, ...],
    outputs: Mapping[UnitKey, jax.Array],
    params: Any,
    step: list[jax.Array],
    collections: Mapping,
    batch: Batch,
    held: bool = False,
) -> dict[UnitKey, jax.Array]:
    """The rms of each unit's change, mean square over calls, to first order.

    Args:
        outputs: the factor a of each unit.
        step: how each floating leaf of params moves, in their order.
        held: whether each unit sees its inputs fixed, and moves by itself.
    """
    leaves = Partition(plain(params))
    narrow = any(u.narrow for u in units)
    shrink = 1.0 if narrow else SHRINK
    step = [(shrink * widen(t)).astype(t.dtype) for t in step]
    zeros = {
        u.key: dict.fromkeys(("power", "size"), jnp.zeros_like(outputs[u.key]))
        for u in units
    }

    def moved(slots):
        def forward(*floats):
            entries = {k: {"output": outputs[k], **slot} for k, slot in slots.items()}
            if held:  # told by what rides: traces that nn.jit caches know no more
                entries = {k: {**own, "held": outputs[k]} for k, own in entries.items()}
            filled = carry_entries(leaves.build(list(floats)), CHANGES, entries)
            with nn.intercept_methods(intercept_units(CHANGES, _tap_call)):
                made, _ = outputs_of(task, filled, collections, batch)
            return float_leaves(made)

        plainly = open_to_forward_mode(forward, leaves.floats)
        _, tangents = jax.jvp(plainly, tuple(leaves.floats), tuple(step))
        return anchor(tangents)

    sums = over_mapped_axis(task.axis_name, lambda: jax.grad(moved)(zeros))
    return {
        kind: jnp.sqrt(found["power"] / jnp.maximum(found["size"], 1)) / shrink
        for kind, found in sums.items()
    }


def _tap_call(call: Call, entry: Mapping[str, Any]) -> Any:
    """The call's outputs times a, tapped."""
    inputs = Partition((call.args, dict(call.kwargs)))
    still = jax.lax.stop_gradient if "held" in entry else lambda x: x
    args, kwargs = inputs.build([still(x) for x in inputs.floats])
    y = Partition(call.proceed(*args, **kwargs))
    a = entry["output"].reshape(())
    outputs = [multiply(t, a) for t in y.floats]
    slot = {name: entry[name] for name in ("power", "size")}
    return y.build(_tap(outputs, inputs.floats, slot))


@jax.custom_jvp
def _tap(outputs, inputs, slot):
    """The outputs; what they move by is noted in the slot's cotangent."""
    return outputs


@_tap.defjvp
def _tap_jvp(primals, tangents):
    outputs, _, slot = primals
    moved, along, _ = tangents
    return outputs, _note([jax.lax.stop_gradient(t) for t in moved], along, slot)


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["known"])
@dataclass(frozen=True)
class Shapes:
    """Shapes and dtypes for a backward pass, which keeps no array for their sake."""

    known: tuple[tuple[tuple[int, ...], Any], ...]


@jax.custom_vjp
def _note(moved, along, slot):
    """The tangents of the outputs; `along`, those of the inputs, leads to more taps."""
    return moved


def _note_forward(moved, along, slot):
    power, size = squares(moved)
    facts = {"power": power, "size": per_call(size, moved)}
    facts = {name: facts[name].reshape(slot[name].shape) for name in slot}
    return moved, (facts, Shapes(tuple((t.shape, t.dtype) for t in along)))


def _note_backward(residual, cotangents):
    facts, shapes = residual
    zeros = [jnp.zeros(shape, dtype) for shape, dtype in shapes.known]
    return [jnp.zeros_like(t) for t in cotangents], zeros, facts


_note.defvjp(_note_forward, _note_backward)
