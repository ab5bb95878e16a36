"""Taps: what a unit's activations and their gradients look like, out of any step.

A tap is carried beside the unit's parameters and leaves outputs as they are. Its
cotangent is what was read off the activation on the way forward and off its gradient on
the way back. Readings are sums over elements, so calls, layers, devices and steps add
up.
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
    as_integer,
    as_number,
    gathered,
    taken,
    vary_with,
    widen,
)
from ..units import Interception, UnitCall, UnitKey, check_methods

TAP_FACTS = ("count", "nonfinite", "sum", "squares")
"""What precedes the bins of the histogram in a reading."""


SIGNALS = ("activations", "gradients")


SIDES = ("output", "input")


@dataclass(frozen=True)
class TapSpec:
    """What is read off an array; static, equal by value."""

    of: str
    octaves: tuple[int, int]
    sample: int | None
    switched: bool

    @property
    def bins(self) -> int:
        """Octaves below zero, what is nearer to zero than all of them, those above."""
        low, high = self.octaves
        return 2 * (high - low) + 1

    @property
    def size(self) -> int:
        """The length of a tap: a reading of the activation, one of its gradient."""
        return len(SIGNALS) * (len(TAP_FACTS) + self.bins)

    def read(self, leaves: list[Array]) -> Float[Array, " facts"]:
        """A reading: sums over the finite ones of the sampled elements."""
        parts = [_flat_reals(leaf) for leaf in leaves if leaf.size]
        if not parts:
            return jnp.zeros(self.size // len(SIGNALS), jnp.float32)
        values = gathered(jnp.concatenate(parts))
        fine = jnp.isfinite(values)
        values, ones = jnp.where(fine, values, 0), fine.astype(jnp.float32)
        # one reduction and one scatter: kernels, not elements, are what reading costs
        each = (ones, values, jnp.square(values))
        add = lambda left, right: tuple(map(jnp.add, left, right))
        start = (jnp.float32(0),) * len(each)
        count, total, squares = jax.lax.reduce(each, start, add, (0,))
        facts = jnp.stack([count, values.size - count, total, squares])
        where = jnp.zeros(self.bins, jnp.float32).at[self._bin(values)]
        return jnp.concatenate([facts, where.add(ones, mode="promise_in_bounds")])

    def _bin(self, values: Float[Array, " n"]) -> Array:
        """The bin of each value: its octave, by the exponent bits of a float32."""
        low, high = self.octaves
        bits = jax.lax.bitcast_convert_type(values, jnp.int32)
        octave = ((bits >> 23) & 255) - 127
        far = jnp.clip(octave - low + 1, 0, high - low)
        return jnp.where(values < 0, -far, far) + (high - low)

    def edges(self) -> np.ndarray:
        """The bounds of the bins: `-2^high ... -2^low, 2^low ... 2^high`."""
        low, high = self.octaves
        positive = np.exp2(np.arange(low, high + 1.0))
        return np.concatenate([-positive[::-1], positive])

    def within(
        self, shares: Float[Array, "*rows bins"], bound: Float[Array, "*rows"]
    ) -> Float[Array, "*rows"]:
        """The share of values of at most a magnitude, as if even inside each bin.

        All of the bin around zero counts.
        """
        low, high = self.octaves
        above = jnp.exp2(jnp.arange(low, high, dtype=jnp.float32))
        filled = jnp.clip((bound[..., None] - above) / above, 0, 1)
        middle = high - low
        upper, lower = shares[..., middle + 1 :], shares[..., :middle][..., ::-1]
        return shares[..., middle] + jnp.sum((upper + lower) * filled, -1)


def sample_evenly(leaf: Array, most: int | None) -> Array:
    """At most so many elements of an array, evenly over its axes.

    The longest axis but the last is thinned first: a sample has whole channels, and of
    a batch some examples of each device.
    """
    steps, shape = [1] * leaf.ndim, list(leaf.shape)
    while most is not None and np.prod(shape) > max(most, 1):
        outer = shape[:-1] if max(shape[:-1], default=1) > 1 else shape
        axis = int(np.argmax(outer))
        steps[axis] *= 2
        shape[axis] = -(-(leaf.shape[axis] - steps[axis] // 2) // steps[axis])
    return taken(leaf, tuple(slice(step // 2, None, step) for step in steps))


def _flat_reals(leaf: Array) -> Float[Array, " n"]:
    """A flat float32 array; of complex numbers real and imaginary parts."""
    flat = widen(leaf).ravel()
    if jnp.iscomplexobj(flat):
        flat = jnp.concatenate([flat.real, flat.imag])
    return flat.astype(jnp.float32)


def tapping(spec: TapSpec, taps: Mapping[UnitKey, Array]) -> Interception:
    """The interception that reads what runs by the taps of units.

    Each is carried by a name that tells what is read: a trace that `nn.jit` has cached
    knows only what is carried.
    """
    entries = {key: {repr(spec): tap} for key, tap in taps.items()}
    return Interception("tap", entries, partial(_tap_unit, spec), _check_methods)


_check_methods = partial(
    check_methods, carried="taps", remedy="make taps by init with this model"
)


def _tap_unit(spec: TapSpec, call: UnitCall, entry: Mapping[str, Array]) -> Any:
    _check_methods(call)
    tap = entry[repr(spec)]
    if spec.of == "input":
        tap = vary_with(tap, call.inputs)
        return call.finish(call.proceed(_tapped(spec, call.inputs, tap)))
    outputs = call.proceed(call.inputs)
    return call.finish(_tapped(spec, outputs, vary_with(tap, outputs)))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tapped(spec: TapSpec, leaves: list, tap: Array) -> list:
    """The leaves, with the readings as the tap's cotangent.

    To inputs nothing (0 times the tap) is added: where `vmap` shares an input among its
    members, each has a gradient of its own, not to be summed before it is read.
    """
    if spec.of == "output":
        return leaves
    nothing = 0 * tap.ravel()[0]
    return [x + nothing.astype(x.dtype) for x in leaves]


def _tapped_forward(spec, leaves, tap):
    return _tapped(spec, leaves, tap), (_read_leaves(spec, leaves, tap), tap)


def _tapped_backward(spec, residual, cotangents):
    forward, tap = residual
    backward = _read_leaves(spec, cotangents, tap)
    return cotangents, jnp.concatenate([forward, backward]).reshape(tap.shape)


_tapped.defvjp(_tapped_forward, _tapped_backward)


def _read_leaves(spec: TapSpec, leaves: list, tap: Array) -> Array:
    """What is read, or zeros where the tap is switched off (zero)."""
    share = None if spec.sample is None else spec.sample // max(len(leaves), 1)
    leaves = [sample_evenly(leaf, share) for leaf in leaves]
    if not spec.switched:
        return spec.read(leaves)
    off = lambda leaves: jnp.zeros(spec.size // len(SIGNALS), jnp.float32)
    return jax.lax.cond(tap.ravel()[0] != 0, spec.read, off, leaves)


def check_stats_options(
    of: Any, every: Any, *, slots: Any, octaves: Any, near: Any, sample: Any
) -> None:
    """Raises a ValueError where an option of `activation_stats` is out of range."""
    whole = lambda value: as_integer(value) is not None
    pair = isinstance(octaves, Sequence) and len(octaves) == 2
    pair = pair and all(map(whole, octaves))
    wrong = {
        f"of={of!r}, expected 'output' or 'input'": of not in SIDES,
        f"every={every!r}, expected a positive integer": not whole(every) or every < 1,
        f"slots={slots!r}, expected an even positive integer": (
            not whole(slots) or slots < 2 or slots % 2
        ),
        f"octaves={octaves!r}, expected exponents (low, high) within -126 and 127": (
            not pair or not -126 <= octaves[0] < octaves[1] <= 127
        ),
        f"near={near!r}, expected a number of at least 0": (
            as_number(near) is None or not near >= 0
        ),
        f"sample={sample!r}, expected a positive integer or None": (
            sample is not None and (not whole(sample) or sample < 1)
        ),
    }
    for problem, holds in wrong.items():
        if holds:
            raise ValueError(f"activation_stats got {problem}")
