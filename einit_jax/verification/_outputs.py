"""One plain run of the scaled model: whether each unit's output has its target rms.

Outputs are read off captured intermediates. Those inside of lifted transforms, which
let no intermediates out, leave as cotangents; no gradient is computed for their sake.
"""

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
    as_summed,
    emit,
    float_leaves,
    is_concrete,
    link_cotangents,
    per_call,
    rms,
    rms_of_calls,
    summed_like,
    vary_with,
    widen,
)
from ..units import Interception, Objective, Unit, UnitCall, UnitKey, scaling

ALLOWED = 0.01
"""How far from its target the rms of an output may be, relative."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["targets", "sizes"],
    meta_fields=["names", "allowed"],
)
@dataclass(frozen=True)
class Verdict:
    """The rms of each unit's output in the scaled model, and what is due."""

    names: tuple[str, ...]
    targets: list[Float[Array | np.ndarray, "..."]]
    """By layer."""
    allowed: tuple[float, ...]
    """How far the natural logarithm may be from that of the target."""
    sizes: list[Array]
    """By draw and layer."""

    def check(self) -> None:
        """Raises where an output is not as large as its factor promises.

        Outputs of zero have no size that a factor could change. Under an outer trace
        nobody can tell.

        Raises:
            ValueError: names the units, with what was got and expected.
        """
        if not all(map(is_concrete, jax.tree.leaves(self))):
            return
        missed = self.missed()
        if missed:
            first = next(iter(missed))
            raise ValueError(
                "outputs of the scaled model are not as large as they were tuned to "
                f"be: rms {'; '.join(list(missed.values())[:8])}. Something between "
                "the factors and the units changes them (a transform of variables, a "
                "random stream of its own), passes did not settle (max_sweeps), or "
                "all that it reads is rounding (the mean over what a norm has "
                f"centered); leave such units out: tune(..., exclude={first!r})"
            )

    def missed(self) -> dict[str, str]:
        """What was got and expected of each unit that misses its target, by name."""
        (targets, sizes), missed = jax.device_get((self.targets, self.sizes)), {}
        rows = zip(self.names, targets, self.allowed, sizes, strict=True)
        for name, due, near, size in rows:
            target = np.broadcast_to(due, size.shape)
            far = np.abs(np.log(np.where(size > 0, size, target) / target))
            if np.any(~(far <= near)):
                worst = np.unravel_index(np.argmax(far), far.shape)
                pair = f"{size[worst]:.4g}, expected {target[worst]:.4g}"
                missed[name] = f"{name} has {pair}"
        return missed


def judge(
    units: Mapping[Unit, Float[Array | np.ndarray, "..."]],
    sizes: Mapping[UnitKey, Array],
    *,
    tolerance: float,
) -> Verdict:
    """The verdict on the sizes of outputs.

    Args:
        units: those tuned, with their targets.
        sizes: from `output_sizes`, along a first axis those of each draw under its own
            factors. The geometric means of these are no factors of any one draw: a unit
            also reads what others before it have missed.
        tolerance: at which the passes stop that units need which are called several
            times.
    """
    near = lambda unit: max(ALLOWED, tolerance) if unit.calls > 1 else ALLOWED
    return Verdict(
        names=tuple(unit.name for unit in units),
        targets=list(units.values()),
        allowed=tuple(map(near, units)),
        sizes=[sizes[unit.key] for unit in units],
    )


def output_sizes(
    objective: Objective,
    units: Sequence[Unit],
    factors: Mapping[UnitKey, Mapping[str, Array]],
    args: ModelArgs,
) -> dict[UnitKey, Array]:
    """The rms of each unit's output in the scaled model, by layer; 0 if unreached.

    Over calls it is the root mean square.
    """
    hidden = [unit for unit in units if unit.lifted_axes or unit.calls > 1]
    run = partial(_sizes, objective, tuple(units), factors, args)
    try:
        sizes = run(hidden=hidden)
    except (TypeError, ValueError):  # branches of nn.cond cannot capture: other trees
        return run(hidden=units)
    return sizes if len(sizes) == len(units) else run(hidden=units)


def captured_sizes(
    captured: Mapping[UnitKey, list[list[Array]]], units: Sequence[Unit]
) -> dict[UnitKey, Array]:
    """The rms of what was captured of units, over calls and their arrays.

    Units of which nothing came out are left out.
    """

    def over_calls(calls: list[list[Array]]) -> Array:
        sizes = [rms(call) for call in calls]
        return rms([jnp.stack(sizes)]) if len(sizes) > 1 else sizes[0]

    return {
        unit.key: over_calls(captured[unit.key]).reshape(unit.carried_shape)
        for unit in units
        if unit.key in captured
    }


def _sizes(
    objective: Objective,
    units: tuple[Unit, ...],
    factors: Mapping[UnitKey, Mapping[str, Array]],
    args: ModelArgs,
    *,
    hidden: Sequence[Unit],
) -> dict[UnitKey, Array]:
    """The sizes of what is captured, and of those units that are `hidden`."""
    shown = tuple(unit for unit in units if unit not in hidden)

    def run(sums: Any) -> tuple[Array, dict[UnitKey, Array]]:
        reading = Interception("verify", sums, _read_call)
        outputs, captured = objective.run(
            args, reading, scaling(factors), capture=shown
        )
        return anchor(float_leaves(outputs)), captured_sizes(captured, shown)

    if not hidden:
        return objective.over_axis(lambda: run({})[1])
    zeros = vary_with({unit.key: _nothing_read(unit) for unit in hidden}, args)
    sums, sizes = objective.over_axis(lambda: jax.grad(run, has_aux=True)(zeros))
    return sizes | {
        key: rms_of_calls(own["size"], own["calls"]) for key, own in sums.items()
    }


def _nothing_read(unit: Unit) -> dict[str, Any]:
    """Zeros, whose cotangents are the number and the joint size of calls."""
    zero = jnp.zeros(unit.carried_shape, jnp.float32)
    return {"calls": zero, "size": as_summed(zero, several=unit.calls > 1)}


def _read_call(call: UnitCall, sums: Mapping[str, Any]) -> Any:
    outputs = call.proceed(call.inputs)
    still = [widen(jax.lax.stop_gradient(t)) for t in outputs]
    size = rms(still)
    statistics = summed_like({"calls": per_call(1, size), "size": size}, sums)
    linked = link_cotangents(call.inputs, emit(outputs, statistics, sums))
    return call.finish(linked)
