"""Whether `f(a theta, x) = a f(theta, x)` holds: what folding rests on, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..core import (
    ModelArgs,
    Path,
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
    with_leaves,
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
                f"{', '.join(rough[:8])} (cells of recurrent networks, say), or "
                "something transforms their parameters on the way (nn.WeightNorm): "
                "their factors cannot be folded; keep the scaled model, which trains "
                "and serves as well, or leave them out of tuning: tune(..., "
                f"exclude={[*map(str, rough[:8])]})"
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


class JudgedUnits(NamedTuple):
    """What a run tells of a model's units."""

    statistics: dict[UnitKey, dict[str, Array]]
    """Of each unit how often it was called, and how far it is from homogeneous."""
    outputs: list[Array]


def judge_units(
    objective: Objective,
    units: tuple[Unit, ...],
    args: ModelArgs,
    factors: Mapping[UnitKey, Array],
    *,
    folded: Mapping[Path, Array] | None = None,
) -> JudgedUnits:
    """The units and the outputs of the tuned model, or of the plain one with folded
    parameters, by their paths: of which it is seen whether they arrive at their units.
    """
    params = args.params if folded is None else with_leaves(args.params, folded)
    own = {unit.key: flat_floats(params, unit) for unit in units}
    filled = args._replace(params=plain(params))
    name, handle = ("fold", _fold_call) if folded is None else ("folded", _folded_call)

    def loss(sums: dict) -> tuple[Array, list[Array]]:
        entries = {
            key: {"output": factors[key], "sums": sums[key], "own": own[key]}
            for key in own
        }
        outputs, _ = objective.run(filled, Interception(name, entries, handle))
        return anchor(float_leaves(outputs)), float_leaves(outputs)

    zeros = {
        unit.key: dict.fromkeys(FOLD_STATISTICS, jnp.zeros(unit.carried_shape))
        for unit in units
    }
    zeros = vary_with(zeros, args)
    grad = jax.grad(loss, has_aux=True)
    return JudgedUnits(*objective.over_axis(lambda: grad(zeros)))


def _fold_call(call: UnitCall, entry: Mapping[str, Any]) -> Any:
    """The call's outputs times a, and how far f(a theta) is from a f(theta)."""
    a = entry["output"].reshape(())
    moved = call.rescaled(a)
    outputs = [multiply(t, a) for t in call.rescaled(jnp.ones_like(a))]
    far = relative_gap(moved, outputs) / fold_tolerance((*outputs, *call.params))
    return _finished(call, entry, outputs, far)


def _folded_call(call: UnitCall, entry: Mapping[str, Any]) -> Any:
    """The call's outputs; what transforms parameters may have left theta as it is
    (`nn.WeightNorm`, which at first has norms of 1; a clip), but not a theta."""
    return _finished(call, entry, call.proceed(call.inputs), jnp.zeros(()))


def _finished(
    call: UnitCall, entry: Mapping[str, Any], outputs: list[Array], far: Array
) -> Any:
    """What the call returns; infinitely far where other parameters have arrived."""
    pairs = zip(call.params, entry["own"].values(), strict=True)
    changed = [jnp.any(here != shaped_like(carried, here)) for here, carried in pairs]
    far = jnp.where(jnp.any(jnp.array(changed)), jnp.inf, far)
    far = jnp.where(entry["output"].reshape(()) == 1, 0, far)  # nothing to fold
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
