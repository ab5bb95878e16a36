"""Two sets of parameters run side by side: how far each unit's outputs are apart.

Both run under one `vmap` with a name for its axis, so that each call of a unit sees
what the other one computes, inside of `nn.scan` and all other transforms too.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ..core import Batch, Partition, anchor, emit, float_leaves, per_call, rms, widen
from ..linen import (
    RIDE,
    SCALE,
    Call,
    Objective,
    carry_entries,
    intercept_units,
    outputs_of,
    over_mapped_axis,
    scaling_interceptor,
)
from ..units import Unit, UnitKey

PAIR = RIDE + "pair"


DRIFT_FACTS = ("calls", "size", "change", "bad")


def output_drift(
    task: Objective,
    units: tuple[Unit, ...],
    start: Any,
    now: Any,
    collections: Mapping,
    batch: Batch,
    scales: Mapping[UnitKey, Any],
) -> dict[UnitKey, dict[str, Float[Array, "..."]]]:
    """The rms of each unit's outputs with the parameters of now, and of their change.

    Mean squares over calls; the change is from the outputs with the parameters of the
    start, on the same batch with the same random keys.
    """
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), start, now)
    zeros = lambda u: jnp.zeros((2, *u.ride_shape), jnp.float32)
    slots = {u.key: dict.fromkeys(DRIFT_FACTS, zeros(u)) for u in units}

    def run(params, slots):
        filled = carry_entries(carry_entries(params, SCALE, scales), PAIR, slots)
        pairing, tuning = (
            intercept_units(PAIR, _compare_call),
            scaling_interceptor(set()),
        )
        # the first one is the outer one, which sees outputs that are scaled
        with nn.intercept_methods(pairing), nn.intercept_methods(tuning):
            out, _ = outputs_of(task, filled, collections, batch)
        return anchor(float_leaves(out))

    def of_both(slots):
        return jnp.sum(jax.vmap(run, axis_name=PAIR)(both, slots))

    sums = over_mapped_axis(task.axis_name, lambda: jax.grad(of_both)(slots))
    return {kind: _means(jax.tree.map(lambda t: t[1], v)) for kind, v in sums.items()}


def _means(sums: Mapping[str, Array]) -> dict[str, Array]:
    """Root mean squares over calls; NaN where outputs are not finite."""
    calls = jnp.maximum(sums["calls"], 1)
    fine = lambda power: jnp.where(sums["bad"] > 0, jnp.nan, jnp.sqrt(power / calls))
    return {name: fine(sums[name]) for name in ("size", "change")}


def _compare_call(call: Call, slot: Mapping[str, Array]) -> Any:
    y = Partition(call.proceed(*call.args, **call.kwargs))
    seen = [widen(jax.lax.stop_gradient(t)) for t in y.floats]
    pairs = [jax.lax.all_gather(t, PAIR) for t in seen]
    bad = sum((jnp.sum(~jnp.isfinite(t)) for t in seen), jnp.zeros((), jnp.int32))
    facts = {
        "calls": per_call(1, seen),
        "size": jnp.square(rms(seen)),
        "change": jnp.square(rms([pair[1] - pair[0] for pair in pairs])),
        "bad": bad.astype(jnp.float32),
    }
    return y.build(emit(y.floats, facts, dict(slot)))
