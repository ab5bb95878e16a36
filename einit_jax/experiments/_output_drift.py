"""Two sets of parameters run side by side: how far each unit's outputs are apart.

Both run under one `vmap` with a name for its axis, so that each call of a unit sees
what the other one computes, inside of `nn.scan` and all other transforms too.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core import (
    ModelArgs,
    Params,
    anchor,
    emit,
    float_leaves,
    per_call,
    rms,
    widen,
)
from ..units import Interception, Objective, Unit, UnitCall, UnitKey, scaling

BOTH = "einit:both"
"""The mapped axis over the two."""
DRIFT_STATISTICS = ("calls", "size", "change", "bad")


def output_drift(
    objective: Objective,
    units: tuple[Unit, ...],
    args: ModelArgs,
    *,
    now: Params,
    factors: Mapping[UnitKey, Mapping[str, Any]],
) -> dict[UnitKey, dict[str, Float[Array, "..."]]]:
    """The rms of each unit's outputs with the parameters of now, and of their change.

    Mean squares over calls; the change is from the outputs with the parameters in
    `args`, on the same batch with the same random keys, both under the factors.
    """
    both = jax.tree.map(lambda a, b: jnp.stack([a, b]), args.params, now)
    zeros = {
        unit.key: dict.fromkeys(
            DRIFT_STATISTICS, jnp.zeros((2, *unit.carried_shape), jnp.float32)
        )
        for unit in units
    }

    def run(params: Params, sums: Any) -> Array:
        # the comparison is the outer one: it sees outputs that are scaled
        comparing = Interception("both", sums, _compare_call)
        filled = args._replace(params=params)
        outputs, _ = objective.run(filled, comparing, scaling(factors))
        return anchor(float_leaves(outputs))

    def run_both(sums: Any) -> Array:
        return jnp.sum(jax.vmap(run, axis_name=BOTH)(both, sums))

    sums = objective.over_axis(lambda: jax.grad(run_both)(zeros))
    return {k: _means(jax.tree.map(lambda t: t[1], own)) for k, own in sums.items()}


def _means(sums: Mapping[str, Array]) -> dict[str, Array]:
    """Root mean squares over calls; NaN where outputs are not finite."""
    calls = jnp.maximum(sums["calls"], 1)
    fine = lambda power: jnp.where(sums["bad"] > 0, jnp.nan, jnp.sqrt(power / calls))
    return {name: fine(sums[name]) for name in ("size", "change")}


def _compare_call(call: UnitCall, sums: Mapping[str, Array]) -> Any:
    outputs = call.proceed(call.inputs)
    wide = [widen(jax.lax.stop_gradient(t)) for t in outputs]
    pairs = [jax.lax.all_gather(t, BOTH) for t in wide]
    bad = sum((jnp.sum(~jnp.isfinite(t)) for t in wide), jnp.zeros((), jnp.int32))
    statistics = {
        "calls": per_call(1, wide),
        "size": jnp.square(rms(wide)),
        "change": jnp.square(rms([pair[1] - pair[0] for pair in pairs])),
        "bad": bad.astype(jnp.float32),
    }
    return call.finish(emit(outputs, statistics, dict(sums)))
