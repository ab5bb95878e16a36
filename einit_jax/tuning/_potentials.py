"""From true cotangents to potentials, and from potentials to the factors b and c.

`phi(R) = 1 / geometric mean of rms(x_bar)` over the units whose inputs lie in region R;
inside of a unit, where its parameters live, `kappa = 1 / rms(Delta)`, x_bar and Delta
being those of true gradients. Then `b = phi(in) / kappa` and `c = kappa / phi(out)`
carry true gradients times a positive number for each parameter.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..core import usable
from ..graph import Regions

LOWEST, HIGHEST = -34.0, 34.0
"""Bounds of the natural logarithm of a cotangent's rms, for its square in float32."""
HALF = -6.0, 6.0
"""The same for float16, whose elements spread around their rms."""
OVERFLOW = 44.0
"""The logarithm of an rms whose square is the largest float32."""
LARGEST = 80.0
"""Bound of the logarithm of a factor: finite, and not zero, in float32."""


def log_potentials(
    regions: Regions,
    carried: Float[Array, " count"],
    strength: Float[Array, " n"],
    change: Float[Array, " n"],
) -> Float[Array, " count"]:
    """The logarithms of the potentials, from a pass that carried others.

    `carried` are the logarithms of those; `strength` and `change` the mean squares of
    the carried input gradients, and of the changes by the carried parameter gradients.
    Insides that share parameters share a potential, at which their mean square is 1; so
    does a region in which parameters of units are used.
    """
    region = _of_regions(regions, carried, strength)
    inner, count = regions.inner_region, regions.count
    level, known = _log_rms(change)
    top = jnp.where(known, level, -jnp.inf)
    top = jax.ops.segment_max(top, inner, count)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    share = jnp.where(known, jnp.exp(2 * (level - top[inner])), 0.0)
    members = _sum_by_region(known.astype(jnp.float32), inner, count)
    mean = _sum_by_region(share, inner, count) / jnp.maximum(members, 1)
    inside = carried - top - 0.5 * jnp.log(jnp.where(members > 0, mean, 1))
    outlet = np.arange(count)
    outlet[inner] = np.where(regions.free[inner], regions.output_region, inner)
    inside = jnp.where(members > 0, inside, region[outlet])
    return jnp.where(regions.by_update, inside, region)


def _of_regions(
    regions: Regions, carried: Float[Array, " count"], strength: Float[Array, " n"]
) -> Float[Array, " count"]:
    """The same of all regions that units read, 0 for that of the loss."""
    reads, count = regions.input_region >= 0, regions.count
    into = np.where(reads, regions.input_region, count)
    level, known = _log_rms(strength)
    known &= reads
    entries = _sum_by_region(known.astype(jnp.float32), into, count)
    total = _sum_by_region(jnp.where(known, level, 0.0), into, count)
    region = jnp.where(entries > 0, carried - total / jnp.maximum(entries, 1), jnp.nan)
    # where no gradient arrives: as small as the smallest of those that do
    region = jnp.where(jnp.isnan(region), jnp.nanmax(region, initial=0.0), region)
    return region.at[regions.loss].set(0.0)


def _log_rms(
    mean_sq: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """The logarithm of an rms, and where there is one.

    What overflows is taken to be as large as can be, so that the next pass, under the
    potentials that follow, can read it.
    """
    known = (mean_sq > 0) | jnp.isnan(mean_sq)
    held = jnp.where(jnp.isfinite(mean_sq) & known, mean_sq, 1)
    level = jnp.where(jnp.isfinite(mean_sq), 0.5 * jnp.log(held), OVERFLOW)
    return level, known


def _sum_by_region(values: Array, segments: np.ndarray, count: int) -> Array:
    return jax.ops.segment_sum(values, segments, count + 1)[:count]


def out_of_range(
    regions: Regions, strength: Float[Array, " n"], narrow: bool
) -> Bool[Array, ""]:
    """Whether carried input gradients leave the range in which they can be measured.

    A gradient of zero alone is no sign of it: branches may be dead. What vanishes for
    its size has neighbours that nearly do.
    """
    low, high = HALF if narrow else (LOWEST, HIGHEST)
    level = 0.5 * jnp.log(jnp.where(usable(strength), strength, 1))
    bad = ~jnp.isfinite(strength) | (level < low) | (level > high)
    return jnp.any(bad & (regions.input_region >= 0))


def factors_from_potentials(
    regions: Regions, potentials: Float[Array, " count"], strength: Float[Array, " n"]
) -> dict[str, Float[Array, " n"]]:
    """b and c of each unit and layer; b c = 1 where no gradient enters a unit's inputs.

    `potentials` are logarithms, of the dtype in which factors are wanted.
    """
    inside, reads = potentials[regions.inner_region], regions.input_region >= 0
    bounded = lambda x: jnp.exp(jnp.clip(x, -LARGEST, LARGEST))
    c = bounded(inside - potentials[regions.output_region])
    dead = (strength == 0) & reads
    b = bounded(potentials[np.maximum(regions.input_region, 0)] - inside)
    b = jnp.where(~reads, 1.0, jnp.where(dead, 1 / c, b))
    return {"input_grad": b, "output_grad": c}
