"""From sweeps to factors: one pass, or as many as shared units need.

Where regions form a chain, and with `gradients="unit"`, each unit solves its own b and
c where it stands. Else the sweep carries true gradients times the potentials of the
pass before (1 at first), and the factors follow from the statistics of all units; with
`gradients="plain"` the potentials stay 1.
"""

from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool

from ..core import ModelArgs, Partition, anchor, float_leaves, plain, vary_with
from ._factors import forward_factors, local_factors, region_factors
from ._state import PassResult, Solution, SolveState, SweepSpec, start_state
from ._sweep import empty_sums, sweeping

RANGE_SWEEPS = 4
"""The most passes for the sake of the range of the dtype alone."""


def solve(spec: SweepSpec, args: ModelArgs) -> Solution:
    """The factors on one batch: a sweep, and more where units are called repeatedly."""
    leaves = Partition(plain(args.params))
    zeros = {unit.key: empty_sums(unit, args.params) for unit in spec.units}
    zeros = vary_with(zeros, args)
    next_state = local_factors if spec.regions is None else region_factors
    next_state = forward_factors if spec.plain else next_state

    def loss(sums: Any, floats: list[Array], settings: Any) -> Array:
        filled = args._replace(params=leaves.build(floats))
        outputs, _ = spec.objective.run(filled, sweeping(settings, sums))
        value = spec.objective.loss(outputs, args.batch)
        return value + anchor(float_leaves(outputs)).astype(value.dtype)

    def sweep(state: SolveState) -> SolveState:
        gradient = jax.value_and_grad(loss, (0, 1))
        inside = lambda: gradient(zeros, leaves.floats, state.settings)
        value, (sums, of_params) = spec.objective.over_axis(inside)
        result = PassResult(sums, of_params, jnp.isfinite(value))
        return vary_with(next_state(spec, state, result), args)

    def unsettled(state: SolveState) -> Bool[Array, ""]:
        stopping = spec.stopping
        far = jnp.maximum(state.search.error, state.moved) > stopping.tolerance
        passes = state.search.passes
        more = (passes < stopping.max_passes) & far & bool(spec.shared)
        strained = state.solution.findings.strained & (spec.regions is not None)
        return more | (strained & (passes < RANGE_SWEEPS))

    state = vary_with(start_state(spec, args.params, leaves.floats), args)
    if spec.loops:
        return jax.lax.while_loop(unsettled, sweep, state).solution
    return sweep(state).solution
