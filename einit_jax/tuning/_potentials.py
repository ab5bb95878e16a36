"""From true cotangents to potentials, and from potentials to the factors b and c.

`phi(R) = 1 / geometric mean of rms(x_bar)` over the units whose inputs lie in region R;
inside of a unit, where its parameters live, `kappa = 1 / rms(Delta)`, x_bar and Delta
being those of true gradients. Then `b = phi(in) / kappa` and `c = kappa / phi(out)`
carry true gradients times a positive number for each parameter (design: section 1).
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
    where: Regions,
    gauge: Float[Array, " count"],
    strength: Float[Array, " n"],
    change: Float[Array, " n"],
) -> Float[Array, " count"]:
    """The logarithms of the potentials, from a pass that carried those of `gauge`.

    `strength` and `change` are mean squares of the carried input gradients and of the
    changes by the carried parameter gradients. Insides that share parameters share a
    potential, at which their mean square is 1.
    """
    into = np.where(where.into >= 0, where.into, where.count)
    level, seen = _log_rms(strength)
    seen &= where.into >= 0
    entries = _sum_by_region(seen.astype(jnp.float32), into, where.count)
    total = _sum_by_region(jnp.where(seen, level, 0.0), into, where.count)
    region = jnp.where(entries > 0, gauge - total / jnp.maximum(entries, 1), jnp.nan)
    # where no gradient arrives: as small as the smallest of those that do
    region = jnp.where(jnp.isnan(region), jnp.nanmax(region, initial=0.0), region)
    region = region.at[where.loss].set(0.0)
    level, seen = _log_rms(change)
    top = jax.ops.segment_max(jnp.where(seen, level, -jnp.inf), where.own, where.count)
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    share = jnp.where(seen, jnp.exp(2 * (level - top[where.own])), 0.0)
    members = _sum_by_region(seen.astype(jnp.float32), where.own, where.count)
    mean = _sum_by_region(share, where.own, where.count) / jnp.maximum(members, 1)
    inside = gauge - top - 0.5 * jnp.log(jnp.where(members > 0, mean, 1))
    outlet = np.zeros(where.count, int)
    outlet[where.own] = where.out
    inside = jnp.where(members > 0, inside, region[outlet])
    return jnp.where(where.free, inside, region)


def _log_rms(
    mean_sq: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """The logarithm of an rms, and where there is one.

    What overflows is taken to be as large as can be, so that the next pass, under the
    potentials that follow, can read it.
    """
    seen = (mean_sq > 0) | jnp.isnan(mean_sq)
    held = jnp.where(jnp.isfinite(mean_sq) & seen, mean_sq, 1)
    level = jnp.where(jnp.isfinite(mean_sq), 0.5 * jnp.log(held), OVERFLOW)
    return level, seen


def _sum_by_region(values: Array, segments: np.ndarray, count: int) -> Array:
    return jax.ops.segment_sum(values, segments, count + 1)[:count]


def out_of_range(
    where: Regions, strength: Float[Array, " n"], narrow: bool
) -> Bool[Array, ""]:
    """Whether carried input gradients leave the range in which they can be measured.

    A gradient of zero alone is no sign of it: branches may be dead. What vanishes for
    its size has neighbours that nearly do.
    """
    low, high = HALF if narrow else (LOWEST, HIGHEST)
    level = 0.5 * jnp.log(jnp.where(usable(strength), strength, 1))
    bad = ~jnp.isfinite(strength) | (level < low) | (level > high)
    return jnp.any(bad & (where.into >= 0))


def factors_from_potentials(
    where: Regions, potentials: Float[Array, " count"], strength: Float[Array, " n"]
) -> dict[str, Float[Array, " n"]]:
    """b and c of each unit and layer; b c = 1 where no gradient enters a unit's inputs.

    `potentials` are logarithms, of the dtype in which factors are wanted.
    """
    own = potentials[where.own]
    bounded = lambda x: jnp.exp(jnp.clip(x, -LARGEST, LARGEST))
    c = bounded(own - potentials[where.out])
    dead = (strength == 0) & (where.into >= 0)
    b = bounded(potentials[np.maximum(where.into, 0)] - own)
    b = jnp.where(where.into < 0, 1.0, jnp.where(dead, 1 / c, b))
    return {"input_grad": b, "output_grad": c}
