"""From sums to sizes, from these to potentials, and from potentials to factors.

A unit that solves its own factors has them in closed form. Else
`phi(R) = 1 / geometric mean of rms(x_bar)` over the units whose inputs lie in region R;
inside of a unit, where its parameters live, `kappa = 1 / rms(Delta)`, x_bar and Delta
being those of true gradients. Then `b = phi(in) / kappa` and `c = kappa / phi(out)`
carry true gradients times a positive number for each parameter.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..core import (
    LEAST_RMS,
    MOST_RMS,
    in_range,
    inverse,
    inverse_rms,
    rms_of_calls,
    times,
    usable,
)
from ..graph import Regions
from ..units import Unit, UnitKey
from ._state import Sums

LOWEST, HIGHEST = -34.0, 34.0
"""Bounds of the natural logarithm of a cotangent's rms, for its square in float32."""
FULL = -75.0, 75.0
"""The same in a wide pass, for its elements in float32."""
HALF = -6.0, 6.0
"""The same for float16, whose elements spread around their rms."""
OVERFLOW = 44.0
"""The logarithm of an rms whose square is the largest float32."""
MILD = 2.0**24
"""Up to this size, and down to 1 over it, outputs and factors a lose no gradient."""
BOUND = 87.0
"""Of the logarithm of a factor: finite, and not zero, in float32, but no more in the
range in which factors are accepted."""


def log_potentials(
    regions: Regions,
    carried: Float[Array, " count"],
    strength: Float[Array, " n"],
    change: Float[Array, " n"],
) -> Float[Array, " count"]:
    """The logarithms of the potentials, from a pass that carried others.

    `carried` are the logarithms of those; `strength` and `change` the rms values of the
    carried input gradients, and of the changes by the carried parameter gradients.
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
    rms: Float[Array, " n"],
) -> tuple[Float[Array, " n"], Bool[Array, " n"]]:
    """The logarithm of an rms, and where there is one.

    What overflows is taken to be as large as can be, so that the next pass, under the
    potentials that follow, can read it.
    """
    known = (rms > 0) | jnp.isnan(rms)
    held = jnp.where(jnp.isfinite(rms) & known, rms, 1)
    level = jnp.where(jnp.isfinite(rms), jnp.log(held), OVERFLOW)
    return level, known


def _sum_by_region(values: Array, segments: np.ndarray, count: int) -> Array:
    return jax.ops.segment_sum(values, segments, count + 1)[:count]


def out_of_range(
    regions: Regions, strength: Float[Array, " n"], *, narrow: bool, wide: bool
) -> Bool[Array, ""]:
    """Whether carried input gradients leave the range in which they can be measured.

    A gradient of zero alone is no sign of it: branches may be dead. What vanishes for
    its size has neighbours that nearly do.
    """
    low, high = FULL if wide else (LOWEST, HIGHEST)
    low, high = HALF if narrow else (low, high)
    level = jnp.log(jnp.where(usable(strength), strength, 1))
    bad = ~jnp.isfinite(strength) | (level < low) | (level > high)
    return jnp.any(bad & (regions.input_region >= 0))


def bounded_exp(log: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exponential, finite and not zero."""
    return jnp.exp(jnp.clip(log, -BOUND, BOUND))


def factors_from_potentials(
    regions: Regions, potentials: Float[Array, " count"], strength: Float[Array, " n"]
) -> dict[str, Float[Array, " n"]]:
    """b and c of each unit and layer; b c = 1 where no gradient enters a unit's inputs.

    `potentials` are logarithms, of the dtype in which factors are wanted.
    """
    inside, reads = potentials[regions.inner_region], regions.input_region >= 0
    c = bounded_exp(inside - potentials[regions.output_region])
    dead = (strength == 0) & reads
    b = bounded_exp(potentials[np.maximum(regions.input_region, 0)] - inside)
    b = jnp.where(~reads, 1.0, jnp.where(dead, 1 / c, b))
    return {"input_grad": b, "output_grad": c}


def closed_forms(
    units: Mapping[Unit, Float[np.ndarray, "..."]], sums: Mapping[UnitKey, Sums]
) -> dict[UnitKey, dict[str, Array]]:
    """What the sums of a pass tell of each unit."""
    return {
        unit.key: _closed_form(t, sums[unit.key]._replace(gradient=None))
        for unit, t in units.items()
    }


@partial(jax.jit, static_argnames="wide")
def output_factor(
    target: Float[Array | np.ndarray, "..."], size: Float[Array, "..."], *, wide: bool
) -> Float[Array, "..."]:
    """a, by which an output gets the rms aimed at; 1 where it has no size.

    `size` is its mean square, or if `wide` its rms.
    """
    a = times(target, inverse(size)) if wide else target * inverse_rms(size)
    return jnp.where(usable(size), a, 1.0)


@jax.jit
def _closed_form(target: Float[Array, "..."], sums: Sums) -> dict[str, Array]:
    """a and b c in closed form, and the numbers that they and c come from.

    Those are mean squares, the `change` at a = 1; from a wide pass they are root mean
    squares, the `change` at the a in force.
    """
    if sums.wide:
        size = rms_of_calls(sums.output["size"], sums.output_size)
        strength = rms_of_calls(sums.input_grad["size"], sums.input_size)
        change = rms_of_calls(sums.change["size"], sums.output_size)
        input_scale = inverse(strength)
    else:
        count = jnp.maximum(sums.output_size, 1)
        size, change = sums.output / count, sums.change / count
        strength = sums.input_grad / jnp.maximum(sums.input_size, 1)
        input_scale = inverse_rms(strength)
    return {
        "output": output_factor(target, size, wide=sums.wide),
        "input_scale": input_scale,
        "size": size,
        "strength": strength,
        "change": change,
        "sound": jnp.isfinite(size) & jnp.isfinite(strength),
        "heard": sums.output_size > 0,
    }


def tells(size: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a size tells a factor: not at the ends of float32's range, or zero."""
    return in_range(size) | ~usable(size)


def unit_factors(
    unit: Unit, implied: Mapping[str, Array], *, wide: bool
) -> dict[str, Array]:
    """a, b and c, from a, b c and the change of the output."""
    a, change = implied["output"], implied["change"]
    b, c = _gradient_factors(a, change, implied["input_scale"], wide=wide)
    b = b if unit.floats else jnp.ones_like(c)
    return {"output": a, "input_grad": b, "output_grad": c}


@partial(jax.jit, static_argnames="wide")
def _gradient_factors(
    a: Array, change: Array, input_scale: Array, *, wide: bool
) -> tuple[Array, Array]:
    """b and c."""
    c = inverse(change) if wide else inverse_rms(jnp.square(a) * change)
    return input_scale / c, c


def is_extreme(
    gradients: Float[Array, "kinds n"], size: Float[Array, " n"], a: Float[Array, " n"]
) -> Bool[Array, ""]:
    """Whether a pass that is not wide may have missed some size.

    Zeros are zeros, as `core.squares` tells them; but where no gradient is left at all,
    all may have been flushed to zero. `gradients` and `size` are mean squares.
    """
    off = lambda x, low, high: (x > 0) & ((x < low) | (x > high)) | ~jnp.isfinite(x)
    far = jnp.any(off(gradients, LEAST_RMS**2, MOST_RMS**2))
    mild = jnp.stack([size, jnp.square(a)])
    return far | jnp.any(off(mild, 1 / MILD**2, MILD**2)) | ~jnp.any(gradients > 0)


def factor_dtype(floats: list[jax.Array]) -> Any:
    """Of factors b and c: rounded to 32 bits they would blur gradients of 64 bits."""
    wide = any(jnp.finfo(leaf.dtype).bits == 64 for leaf in floats)
    return jnp.float64 if wide else jnp.float32
