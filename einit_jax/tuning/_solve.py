"""From sweeps to factors: one pass, or as many as shared units need.

Where regions form a chain, and with `gradients="unit"`, each unit solves its own b and
c where it stands. Else the sweep carries true gradients times the potentials of the
pass before (1 at first), and the factors follow from the statistics of all units; with
`gradients="plain"` the potentials stay 1.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..core import Batch, Partition, anchor, float_leaves, plain
from ..linen import carry_entries, checked_loss, outputs_of, over_mapped_axis
from ._factors import forward_factors, local_factors, region_factors
from ._state import Solution, SolveState, SweepSpec, start_state
from ._sweep import SWEEP, sweep_interceptor

RANGE_SWEEPS = 4
"""The most passes for the sake of the range of the dtype alone."""


def solve(job: SweepSpec, params: Any, collections: Mapping, batch: Batch) -> Solution:
    """The factors on one batch: a sweep, and more where units are called repeatedly."""

    leaves = Partition(plain(params))

    def loss(entries, floats):
        filled = carry_entries(leaves.build(floats), SWEEP, entries)
        with nn.intercept_methods(sweep_interceptor()):
            outputs, _ = outputs_of(job.task, filled, collections, batch)
        value = checked_loss(job.task, outputs, batch)
        return value + anchor(float_leaves(outputs)).astype(value.dtype)

    def sweep(state: SolveState) -> SolveState:
        gradient = jax.value_and_grad(loss, (0, 1))
        inside = lambda: gradient(state.entries, leaves.floats)
        value, (sums, of_params) = over_mapped_axis(job.task.axis_name, inside)
        settle = local_factors if job.where is None else region_factors
        settle = forward_factors if job.plain else settle
        return settle(job, state, sums, of_params, jnp.isfinite(value))

    def unsettled(state: SolveState) -> jax.Array:
        far = jnp.maximum(state.search.error, state.moved) > job.effort.tolerance
        more = (state.search.passes < job.effort.max_sweeps) & far & bool(job.shared)
        strained = state.solution.findings.strained & (job.where is not None)
        return more | (strained & (state.search.passes < RANGE_SWEEPS))

    state = start_state(job, params, leaves.floats)
    once = not job.loops
    state = sweep(state) if once else jax.lax.while_loop(unsettled, sweep, state)
    return state.solution
