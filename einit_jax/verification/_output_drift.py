"""Two sets of parameters, run side by side: how far each unit's outputs are apart.

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
    Partition,
    anchor,
    as_summed,
    emit,
    float_leaves,
    per_call,
    rms,
    rms_of_calls,
    summed_like,
    vary_with,
    widen,
)
from ..units import Interception, Objective, Unit, UnitCall, UnitKey, scaling

BOTH = "einit:both"
"""The name of the mapped axis over the two sets of parameters."""
DRIFT_SIZES = ("size", "change")

DriftSums = Mapping[UnitKey, Mapping[str, Any]]
"""Sums over calls for each unit: their number, that of elements that are not finite,
and each of these sizes as `core.as_summed` gives it."""


def output_drift(
    objective: Objective,
    units: tuple[Unit, ...],
    args: ModelArgs,
    *,
    now: Params,
    factors: Mapping[UnitKey, Mapping[str, Any]],
) -> dict[UnitKey, dict[str, Float[Array, "..."]]]:
    """The rms of each unit's outputs with the parameters `now`, and of their change.

    Squares are averaged over calls. The change is from the outputs with the parameters
    in `args`, on the same batch with the same random keys; the factors apply to both.
    Where both are arrays of no floats, those in `args` count.

    To be run inside of `objective.over_axis`. Not where types tell what varies
    (`jax.shard_map`): jax has no collectives under `vmap` there.
    """
    leaves = Partition(args.params)
    both = list(map(lambda *x: jnp.stack(x), leaves.floats, Partition(now).floats))
    zeros = vary_with({unit.key: _empty_drift(unit) for unit in units}, args)

    def run(floats: list[Array], sums: DriftSums) -> Float[Array, ""]:
        # the comparison is the outer one: it sees outputs that are scaled
        comparing = Interception("both", sums, _compare_call)
        filled = args._replace(params=leaves.build(floats))
        outputs, _ = objective.run(filled, comparing, scaling(factors))
        return anchor(float_leaves(outputs))

    def run_both(sums: DriftSums) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(run, axis_name=BOTH)(both, sums))

    sums = jax.grad(run_both)(zeros)
    return {
        k: _rms_over_calls(jax.tree.map(lambda t: t[1], own)) for k, own in sums.items()
    }


def _empty_drift(unit: Unit) -> dict[str, Any]:
    """Zeros, whose cotangents are the sums, for both sets of parameters."""
    zero = jnp.zeros((2, *unit.carried_shape), jnp.float32)
    summed = dict.fromkeys(DRIFT_SIZES, as_summed(zero, several=unit.calls > 1))
    return {"calls": zero, "bad": zero, **summed}


def _rms_over_calls(sums: Mapping[str, Any]) -> dict[str, Array]:
    """Root mean squares over calls; NaN where outputs are not finite."""

    def root(name: str) -> Array:
        size = rms_of_calls(sums[name], sums["calls"])
        return jnp.where(sums["bad"] > 0, jnp.nan, size)

    return {name: root(name) for name in DRIFT_SIZES}


def _compare_call(call: UnitCall, sums: Mapping[str, Any]) -> Any:
    """A call that emits its statistics, without any change of its outputs."""
    outputs = call.proceed(call.inputs)
    wide = [widen(jax.lax.stop_gradient(t)) for t in outputs]
    # jax does not index what is gathered from explicit axes of a mesh, nor pmean it
    apart = [2 * (t - jnp.mean(jax.lax.all_gather(t, BOTH), 0)) for t in wide]
    bad = sum((jnp.sum(~jnp.isfinite(t)) for t in wide), jnp.zeros((), jnp.int32))
    size = rms(wide)
    statistics = {
        "calls": per_call(1, size),
        "size": size,
        "change": rms(apart),
        "bad": bad.astype(jnp.float32),
    }
    return call.finish(emit(outputs, summed_like(statistics, sums), dict(sums)))
