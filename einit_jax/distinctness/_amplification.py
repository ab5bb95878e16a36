"""The amplification of a model with its outputs at given sizes, as one number."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..binding import amplifications, compiled_once
from ..core import ModelArgs, Path, plain
from ..units import Objective, Unit

COLLAPSE = 1 / 8
"""What a loss of spread counts for beside an amplification."""


@compiled_once("objective", "units")
def amplification_with(
    sizes: Mapping[Path, Float[Array, ""]],
    args: ModelArgs,
    *,
    objective: Objective,
    units: tuple[Unit, ...],
) -> Float[Array, ""]:
    """That of the model's outputs; of those of its last unit where these have none.

    Args:
        sizes: the rms to which outputs of units are brought on the way, by path; those
            of other units stay as they are.
        args: what the model runs on.
        objective: the model; the loss is not used.
        units: all of its units, in call order.
    """
    targets = {
        unit.key: jnp.full(unit.carried_shape, sizes.get(unit.path, 0.0), jnp.float32)
        for unit in units
    }
    args = args._replace(params=plain(args.params))
    found = amplifications(objective, units, args, targets=targets, whole=True)
    every = jnp.concatenate([a.ravel() for a in found.of_units.values()])
    largest = jnp.max(jnp.where(jnp.isnan(every), -jnp.inf, every))
    largest = jnp.where(jnp.isneginf(largest), jnp.nan, largest)
    of_outputs = found.of_outputs
    of_outputs = jnp.where(jnp.isnan(of_outputs), largest, of_outputs)
    lost = jnp.where(jnp.isnan(found.spread_lost), 0, found.spread_lost)
    return jnp.maximum(of_outputs, COLLAPSE * lost)
