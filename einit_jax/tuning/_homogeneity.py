"""Whether `f(a theta, x) = a f(theta, x)` holds: what folding rests on, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import (
    ModelArgs,
    anchor,
    emit,
    float_leaves,
    multiply,
    per_call,
    plain,
    rms,
    shaped_like,
    vary_with,
    widen,
)
from ..units import Interception, Objective, Unit, UnitCall, UnitKey, flat_floats

FOLD_STATISTICS = ("calls", "far")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["far", "blind", "apart"],
    meta_fields=["names"],
)
@dataclass(frozen=True)
class Homogeneity:
    """How far each unit is from homogeneous, in tolerances."""

    names: tuple[str, ...]
    far: list[Array]
    blind: list[Array]
    """Whether no call of the unit was seen."""
    apart: Array
    """How far the outputs of the folded model are from those of the tuned one."""

    def check(self) -> None:
        """Raises where some unit cannot be folded, or nobody could tell."""
        names = np.array(self.names)
        rough = names[~(np.array(jax.device_get(self.far)) <= 1)]
        if rough.size:
            raise ValueError(
                f"f(a theta, x) = a f(theta, x) does not hold for "
                f"{', '.join(rough[:8])}, or something transforms their parameters on "
                "the way (nn.WeightNorm): their factors cannot be folded; leave them "
                "out of tuning: tune(..., exclude=...)"
            )
        blind = names[np.array(jax.device_get(self.blind))]
        if blind.size:
            raise ValueError(
                f"the batch does not reach {', '.join(blind[:8])}, so that nothing "
                "shows whether their factors can be folded; pass one that does, or "
                "leave them out of tuning: tune(..., exclude=...)"
            )
        if not float(jax.device_get(self.apart)) <= 1:
            raise ValueError(
                "the model computes something else with folded parameters, though each "
                "unit by itself bears them: something transforms them on their way to "
                "the units; train the scaled model"
            )


def run_tuned(
    objective: Objective,
    units: tuple[Unit, ...],
    args: ModelArgs,
    factors: Mapping[UnitKey, Array],
) -> tuple[dict[UnitKey, dict[str, Array]], list[Array]]:
    """The statistics of each unit as the tuned model runs, and the outputs of that."""
    own = {unit.key: flat_floats(args.params, unit) for unit in units}
    filled = args._replace(params=plain(args.params))

    def loss(sums: dict) -> tuple[Array, list[Array]]:
        entries = {
            key: {"output": factors[key], "sums": sums[key], "own": own[key]}
            for key in own
        }
        outputs, _ = objective.run(filled, Interception("fold", entries, _fold_call))
        return anchor(float_leaves(outputs)), float_leaves(outputs)

    zeros = {
        unit.key: dict.fromkeys(FOLD_STATISTICS, jnp.zeros(unit.carried_shape))
        for unit in units
    }
    zeros = vary_with(zeros, args)
    return objective.over_axis(lambda: jax.grad(loss, has_aux=True)(zeros))


def _fold_call(call: UnitCall, entry: Mapping[str, Any]) -> Any:
    """The call's outputs times a, and how far f(a theta) is from a f(theta)."""
    a = entry["output"].reshape(())
    moved = call.rescaled(a)
    outputs = [multiply(t, a) for t in call.rescaled(jnp.ones_like(a))]
    own = call.params
    far = relative_gap(moved, outputs) / fold_tolerance((*outputs, *own))
    pairs = zip(own, entry["own"].values(), strict=True)
    changed = [jnp.any(here != shaped_like(carried, here)) for here, carried in pairs]
    far = jnp.where(jnp.any(jnp.array(changed)), jnp.inf, far)
    far = jnp.where(a == 1, 0, far)  # nothing to fold
    statistics = {
        "calls": per_call(1, far),
        "far": jnp.where(jnp.isfinite(far), far, jnp.inf),
    }
    return call.finish(emit(outputs, statistics, entry["sums"]))


def relative_gap(these: list[Array], those: list[Array]) -> Float[Array, ""]:
    """The rms of the difference of some arrays over that of the latter."""
    both = [[jax.lax.stop_gradient(widen(t)) for t in x] for x in (these, those)]
    size = rms(both[1])
    gap = rms([a - b for a, b in zip(*both, strict=True)])
    return gap / jnp.where(size > 0, size, 1)


def fold_tolerance(arrays: Sequence[Array]) -> float:
    """For the coarsest dtype: between eps, which sums exceed, and its square root."""
    return 4 * float(max(jnp.finfo(t.dtype).eps for t in arrays)) ** 0.75
