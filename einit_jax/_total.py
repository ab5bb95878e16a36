"""The total update: how far every unit's output moves when all parameters move.

One forward-mode pass with a step of the parameters as tangents, at b = c = 1. Tangents
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

from ._graph import Unit
from ._hook import Call, Leaves, unit_hook
from ._jaxprs import open_to_forward_mode
from ._math import multiply, squares, widen
from ._paths import RIDE, plain
from ._plan import anchor, floats_of, outputs_of
from ._problem import Batch, Problem, over_axis
from ._units import Kind, kind_of, riding

TOTAL = RIDE + "total"
SHRINK = 2.0**-20
"""Keeps squares of large tangents finite in float32; a power of two rounds nothing."""


def total_updates(
    task: Problem,
    units: tuple[Unit, ...],
    outputs: Mapping[Kind, jax.Array],
    params: Any,
    step: list[jax.Array],
    collections: Mapping,
    batch: Batch,
) -> dict[Kind, jax.Array]:
    """The rms of each unit's change, mean square over calls, to first order.

    Args:
        outputs: the factor a of each unit.
        step: a gradient for each floating leaf of params, in their order.
    """
    leaves = Leaves(plain(params))
    narrow = any(u.narrow for u in units)
    shrink = 1.0 if narrow else SHRINK
    step = [jnp.conj(shrink * widen(t)).astype(t.dtype) for t in step]
    zeros = {
        kind_of(u): dict.fromkeys(
            ("power", "size"), jnp.zeros_like(outputs[kind_of(u)])
        )
        for u in units
    }

    def moved(slots):
        def forward(*floats):
            entries = {k: {"output": outputs[k], **slot} for k, slot in slots.items()}
            filled = riding(leaves.build(list(floats)), TOTAL, entries)
            with nn.intercept_methods(unit_hook(TOTAL, _act)):
                made, _ = outputs_of(task, filled, collections, batch)
            return floats_of(made)

        plainly = open_to_forward_mode(forward, leaves.floats)
        _, tangents = jax.jvp(plainly, tuple(leaves.floats), tuple(step))
        return anchor(tangents)

    sums = over_axis(task.axis_name, lambda: jax.grad(moved)(zeros))
    return {
        kind: jnp.sqrt(found["power"] / jnp.maximum(found["size"], 1)) / shrink
        for kind, found in sums.items()
    }


def _act(call: Call, entry: Mapping[str, Any]) -> Any:
    """The call's outputs times a, tapped."""
    inputs = Leaves((call.args, dict(call.kwargs)))
    y = Leaves(call.proceed(*call.args, **call.kwargs))
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
    facts = {"power": power, "size": jnp.asarray(size, jnp.float32)}
    facts = {name: facts[name].reshape(slot[name].shape) for name in slot}
    return moved, (facts, Shapes(tuple((t.shape, t.dtype) for t in along)))


def _note_backward(residual, cotangents):
    facts, shapes = residual
    zeros = [jnp.zeros(shape, dtype) for shape, dtype in shapes.known]
    return [jnp.zeros_like(t) for t in cotangents], zeros, facts


_note.defvjp(_note_forward, _note_backward)
