"""From sweeps to factors: one pass, or as many as shared units need.

Where regions form a chain, and with `gradients="unit"`, each unit solves its own b and
c where it stands. Else the sweep carries true gradients times the potentials of the
pass before (1 at first), and the factors follow from the statistics of all units; with
`gradients="plain"` the potentials stay 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Bool

from ..core import (
    ModelArgs,
    Params,
    Partition,
    anchor,
    anderson_init,
    float_leaves,
    geometric_mean,
    is_concrete,
    plain,
    vary_with,
)
from ..units import Mover, Unit, UnitKey, ones
from ..verification import Alignment, Verdict
from ._factors import forward_factors, local_factors, region_factors
from ._potentials import factor_dtype
from ._state import (
    Findings,
    PassResult,
    Solution,
    SolveState,
    SweepSpec,
    empty_sums,
    first_settings,
)
from ._sweep import sweeping

RANGE_SWEEPS = 4
"""The most passes for the sake of the range of the dtype alone."""


def solve(spec: SweepSpec, args: ModelArgs) -> Solution:
    """The factors on one batch: a sweep, and more where units are called repeatedly."""
    leaves = Partition(plain(args.params))
    zeros = {
        unit.key: empty_sums(unit, args.params, wide=spec.wide) for unit in spec.units
    }
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


def start_state(spec: SweepSpec, params: Params, floats: list[jax.Array]) -> SolveState:
    """Before the first pass: potentials of 1, and b and c of 1 where they are given."""
    units, fixed = spec.units, spec.fixed_gradients
    flags, fine = jnp.ones(len(units), bool), jnp.array(True)
    findings = Findings(
        names=spec.names,
        heard=flags,
        activations=flags,
        gradients=flags,
        loss=fine,
        strained=fine,
        extreme=~fine,
        steps=flags,
        moves=fine,
        reach=flags,
    )
    dtype = factor_dtype(floats) if fixed else jnp.float32
    factors = ones(units)
    for own in factors.values():
        own |= {name: own[name].astype(dtype) for name in ("input_grad", "output_grad")}
    unknowns = (1 if fixed else 2) * sum(unit.size for unit in spec.shared)
    return SolveState(
        settings={
            unit.key: first_settings(unit, target, params, fixed)
            for unit, target in units.items()
        },
        solution=Solution(factors, findings, [jnp.zeros_like(x) for x in floats]),
        search=anderson_init(unknowns),
        moved=jnp.full((), jnp.inf, jnp.float32),
        log_potentials=jnp.zeros(
            spec.regions.count if spec.regions else 0, jnp.float32
        ),
    )


def over_draws(
    movers: Iterable[Mover],
    drawn: Mapping[UnitKey, Mapping[str, jax.Array]],
    heard: Bool[Array, "draws units"],
) -> dict[UnitKey, dict[str, jax.Array]]:
    """The factors of all draws together.

    Draws lie along the first axis. Of each unit those count on which statistics came
    back: a branch that a draw does not take says nothing of its layers.
    """
    units = (mover for mover in movers if isinstance(mover, Unit))
    counted = {unit.key: heard[:, i] for i, unit in enumerate(units)}
    return {
        key: {name: geometric_mean(f, counted.get(key)) for name, f in own.items()}
        for key, own in drawn.items()
    }


def is_misled(findings: Findings, verdicts: Sequence[Verdict | Alignment]) -> bool:
    """Whether units ran on others' outputs at other sizes than these have.

    A unit from which no gradient reaches the loss keeps factors of 1, but the sweep has
    not known that on the way forward. Under an outer trace nobody can tell.
    """
    concrete = all(map(is_concrete, jax.tree.leaves((findings, verdicts))))
    return concrete and bool(findings.silent()) and any(v.missed() for v in verdicts)
